"""Path, reparameterised and score gradients estimate the same thing, whatever the guide."""

import gc
import weakref

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.distributions import constraints, transforms
from pyro.infer.autoguide import (
    AutoDelta,
    AutoGuideList,
    AutoHierarchicalNormalMessenger,
    AutoIAFNormal,
    AutoLowRankMultivariateNormal,
    AutoMultivariateNormal,
    AutoNormal,
    AutoNormalizingFlow,
    AutoNormalMessenger,
    AutoStructured,
)
from pyro.nn import PyroModule, PyroParam
from pyro_steps import assert_same_mean, gradient_draws, leaves, step

from bayesdiv.pyro import objective

DATA = torch.tensor([0.4, 1.1, -0.3], dtype=torch.float64)
LOG_EVIDENCE = -5.0  # Any number will do: it defines which functional is differentiated.


@pytest.fixture(autouse=True)
def _float64():
    torch.set_default_dtype(torch.float64)


def model():
    first = pyro.sample("first", dist.Normal(0.0, 1.0))
    second = pyro.sample("second", dist.Normal(first, 0.7))
    with pyro.plate("rows", len(DATA), dim=-1):
        pyro.sample("x", dist.Normal(second, 1.0), obs=DATA)


def positive_model():
    first = pyro.sample("first", dist.LogNormal(0.0, 0.5))
    second = pyro.sample("second", dist.Normal(0.0, 1.0))
    with pyro.plate("rows", len(DATA), dim=-1):
        pyro.sample("x", dist.Normal(second, first), obs=DATA)


def parameters():
    return (
        pyro.param("shift", torch.tensor(0.3)),
        pyro.param("slope", torch.tensor(0.6)),
        pyro.param("scale", torch.tensor(0.8), constraint=constraints.positive),
    )


def hierarchical(*_):
    shift, slope, scale = parameters()
    first = pyro.sample("first", dist.Normal(shift, scale))
    pyro.sample("second", dist.Normal(slope * first, scale))


def through_a_network():
    network = torch.nn.Sequential(torch.nn.Linear(1, 4), torch.nn.Tanh(), torch.nn.Linear(4, 1))

    def guide():
        shift, _, scale = parameters()
        pyro.module("network", network)
        first = pyro.sample("first", dist.Normal(shift, scale))
        location = network(first[..., None])[..., 0]
        pyro.sample("second", dist.Normal(location, scale))

    return guide


class ModuleGuide(PyroModule):
    def __init__(self):
        super().__init__()
        self.shift = PyroParam(torch.tensor(0.3))
        self.scale = PyroParam(torch.tensor(0.8), constraint=constraints.positive)
        self.slope = torch.nn.Parameter(torch.tensor(0.6))

    def forward(self):
        first = pyro.sample("first", dist.Normal(self.shift, self.scale))
        pyro.sample("second", dist.Normal(self.slope * first, self.scale))

    def independent(self):
        pyro.sample("first", dist.Normal(self.shift, self.scale))
        pyro.sample("second", dist.Normal(self.slope, self.scale))


def affine_flow():
    shift, slope, scale = parameters()
    base = dist.Normal(0.0, 1.0)
    flow = [transforms.AffineTransform(shift, scale)]
    first = pyro.sample("first", dist.TransformedDistribution(base, flow))
    flow = [transforms.AffineTransform(slope * first, scale).inv]
    pyro.sample("second", dist.TransformedDistribution(base, flow))


def independent_flow():
    shift, slope, scale = parameters()
    flow = [transforms.AffineTransform(slope, scale), transforms.ExpTransform()]
    pyro.sample("first", dist.TransformedDistribution(dist.Normal(0.0, 1.0), flow))
    pyro.sample("second", dist.Normal(shift, scale))


def masked_and_expanded():
    shift, slope, scale = parameters()
    pyro.sample("first", dist.Normal(shift, scale).expand([]))
    pyro.sample("second", dist.Normal(slope, scale).mask(torch.ones((), dtype=torch.bool)))


def conditioned_flow():
    # Its parameters hide in a closure, which detaching the distribution does not reach.
    context = pyro.module("planes", _PLANES)
    shift, _, scale = parameters()
    first = pyro.sample("first", dist.Normal(shift, scale))
    spline = context.condition(first[..., None])
    flow = dist.TransformedDistribution(dist.Normal(torch.zeros(1), 1.0).to_event(1), [spline])
    second = pyro.sample("second_raw", flow, infer={"is_auxiliary": True})
    pyro.sample("second", dist.Delta(second[..., 0]))


torch.manual_seed(7)
_PLANES = transforms.conditional_spline(1, context_dim=1, hidden_dims=[3], count_bins=3).double()


def a_list():
    guide = AutoGuideList(model)
    guide.append(AutoNormal(poutine.block(model, expose=["first"]), init_scale=0.8))
    guide.append(AutoMultivariateNormal(poutine.block(model, expose=["second"]), init_scale=0.5))
    return guide


PATHS = {
    "normal": (model, lambda: AutoNormal(model, init_scale=0.6)),
    "multivariate": (model, lambda: AutoMultivariateNormal(model, init_scale=0.6)),
    "low_rank": (model, lambda: AutoLowRankMultivariateNormal(model, init_scale=0.6)),
    "positive": (positive_model, lambda: AutoNormal(positive_model, init_scale=0.4)),
    "list": (model, a_list),
    "iaf": (model, lambda: AutoIAFNormal(model, hidden_dim=[4])),
    "messenger": (model, lambda: AutoNormalMessenger(model, init_scale=0.6)),
    "hierarchical": (model, lambda: hierarchical),
    "network": (model, through_a_network),
    "module": (model, ModuleGuide),
    "bound_method": (model, lambda: ModuleGuide().independent),
    "affine": (model, lambda: affine_flow),
    "exp_affine": (positive_model, lambda: independent_flow),
    "masked": (model, lambda: masked_and_expanded),
    "closure": (model, lambda: conditioned_flow),
}


@pytest.mark.parametrize("name", PATHS)
def test_three_estimators_of_one_gradient(name):
    target, make = PATHS[name]
    torch.manual_seed(1)
    guide = make()
    guide()
    draws = {
        gradient: gradient_draws(
            objective(
                "jensen_shannon",
                num_particles=500,
                gradient=gradient,
                normalizer=LOG_EVIDENCE,
                max_plate_nesting=1,
            ),
            target,
            guide,
            count=30,
        )
        for gradient in ("path", "reparam", "score")
    }
    for gradient in ("reparam", "score"):
        assert_same_mean(draws["path"], draws[gradient])


@pytest.mark.parametrize("vectorized", [True, False])
def test_path_gradients_vanish_at_the_posterior_of_a_hierarchy(vectorized):
    # q(second) q(first | second) is exact, so each particle's path gradient is 0, not its mean.
    precision = 1.0 / 1.49 + len(DATA)
    location = float(DATA.sum()) / precision

    def guide():
        slope = pyro.param("slope", torch.tensor(1.0 / 1.49))
        centre = pyro.param("centre", torch.tensor(location))
        width = pyro.param("width", torch.tensor(precision**-0.5))
        second = pyro.sample("second", dist.Normal(centre, width))
        pyro.sample("first", dist.Normal(slope * second, (0.49 / 1.49) ** 0.5))

    guide()
    for name in ("reverse_kl", "forward_kl", "jensen_shannon", "iwae"):
        loss = objective(name, num_particles=3, gradient="path", vectorize_particles=vectorized)
        _, gradients = step(loss, model, guide)
        for gradient in gradients.values():
            assert abs(gradient.item()) < 1e-12
    _, noisy = step(objective("reverse_kl", num_particles=3, gradient="reparam"), model, guide)
    assert abs(noisy["slope"].item()) > 1e-3


def test_gradient_of_a_hierarchy_is_that_of_quadrature():
    divergence = objective("jensen_shannon").settings.at(0)
    hierarchical()
    grid = torch.linspace(-7.0, 7.0, 701)
    first, second = grid[:, None], grid[None, :]
    shift, slope, scale = parameters()
    log_q = dist.Normal(shift, scale).log_prob(first)
    log_q = log_q + dist.Normal(slope * first, scale).log_prob(second)
    log_p = dist.Normal(0.0, 1.0).log_prob(first) + dist.Normal(first, 0.7).log_prob(second)
    log_p = log_p + dist.Normal(second[..., None], 1.0).log_prob(DATA).sum(-1)
    cell = (grid[1] - grid[0]) ** 2
    exact = (log_q.exp() * divergence.generator(log_p - log_q - LOG_EVIDENCE)).sum() * cell
    names = list(leaves())
    expected = dict(zip(names, torch.autograd.grad(exact, list(leaves().values())), strict=True))
    loss = objective("jensen_shannon", num_particles=2000, gradient="path", normalizer=LOG_EVIDENCE)
    draws = gradient_draws(loss, model, hierarchical, count=40)
    for name in names:
        mean, error = draws[name].mean(0), draws[name].std(0) / len(draws[name]) ** 0.5
        assert abs(mean - expected[name]) < 5.0 * error
        assert error < 0.1 * abs(expected[name])


NO_PATH = {
    "structured": (
        lambda: AutoStructured(
            model,
            conditionals={"first": "normal", "second": "normal"},
            dependencies={"second": {"first": "linear"}},
        ),
        "is a function of parameters and of other sites",
    ),
    "planar": (lambda: AutoNormalizingFlow(model, transforms.Planar), "has no inverse"),
    "messenger": (lambda: AutoHierarchicalNormalMessenger(model), "runs only once"),
}


@pytest.mark.parametrize("name", NO_PATH)
def test_auto_falls_back_on_reparameterisation(name):
    make, message = NO_PATH[name]
    guide = make()
    guide()
    arguments = {"num_particles": 6, "max_plate_nesting": 1}
    auto = objective("forward_kl", **arguments)
    plain = objective("forward_kl", gradient="reparam", **arguments)
    step(auto, model, guide)
    again, expected = step(auto, model, guide, seed=2), step(plain, model, guide, seed=2)
    assert again[0] == pytest.approx(expected[0], rel=1e-12)
    for key, gradient in expected[1].items():
        torch.testing.assert_close(again[1][key], gradient)
    with pytest.raises(ValueError, match=f"gradient='path' does not exist here.*{message}"):
        step(objective("forward_kl", gradient="path", **arguments), model, guide)


@pytest.mark.parametrize("name", ["structured", "planar"])
def test_guides_without_a_score_function_are_refused(name):
    guide = NO_PATH[name][0]()
    guide()
    with pytest.raises(ValueError, match="no score function|gradient='score' does not exist"):
        step(objective("total_variation"), model, guide)


def test_a_guide_with_dropout_has_no_path_gradient():
    dropout = torch.nn.Dropout(0.5)

    def guide():
        shift, slope, scale = parameters()
        first = pyro.sample("first", dist.Normal(shift, scale))
        pyro.sample("second", dist.Normal(slope * dropout(first + torch.ones(64)).mean(), scale))

    with pytest.raises(ValueError, match="differs between two runs of the guide"):
        step(
            objective("forward_kl", gradient="path", vectorize_particles=False, num_particles=2),
            model,
            guide,
        )


def test_parameters_out_of_reach_have_no_path_gradient():
    hidden = torch.tensor(0.6, requires_grad=True)

    def guide():
        shift, _, scale = parameters()
        first = pyro.sample("first", dist.Normal(shift, scale))
        pyro.sample("second", dist.Normal(hidden * first, scale))

    with pytest.raises(ValueError, match="neither pyro.param nor those of the guide's module"):
        step(objective("forward_kl", gradient="path"), model, guide)
    assert hidden.requires_grad


def test_freezing_leaves_parameters_as_they_were():
    step(objective("forward_kl"), model, hierarchical)
    assert all(leaf.requires_grad for leaf in leaves().values())


def test_structure_is_read_anew_when_a_guide_changes_its_mind():
    depends = False

    def guide():
        shift, slope, scale = parameters()
        first = pyro.sample("first", dist.Normal(shift, scale))
        location = slope * first if depends else slope
        pyro.sample("second", dist.Normal(location, scale))

    loss = objective("forward_kl", gradient="path", max_plate_nesting=1)
    step(loss, model, guide)
    depends = True
    found = step(loss, model, guide, seed=5)
    fresh = objective("forward_kl", gradient="path", max_plate_nesting=1)
    expected = step(fresh, model, hierarchical, seed=5)
    for name, gradient in expected[1].items():
        torch.testing.assert_close(found[1][name], gradient)


def test_one_objective_serves_two_guides_and_keeps_neither_alive():
    loss = objective("forward_kl", gradient="path", num_particles=4)
    first, second = AutoNormal(model), ModuleGuide()
    step(loss, model, first)
    step(loss, model, second)
    mean_field = step(loss, model, second.independent)
    assert "slope" in mean_field[1]
    gone = weakref.ref(first)
    del first
    gc.collect()
    assert gone() is None


def test_point_estimates_are_held_fixed_in_the_density_of_other_sites():
    def target():
        first = pyro.sample("first", dist.Normal(0.0, 1.0))
        second = pyro.sample("second", dist.Normal(first, 0.7))
        pyro.sample("x", dist.Normal(second, 1.0), obs=DATA[0])

    def guide():
        point = pyro.param("point", torch.tensor(0.2))
        slope = pyro.param("slope", torch.tensor(0.5))
        first = pyro.sample("first", dist.Delta(point))
        middle = pyro.sample(
            "middle", dist.Normal(slope * first, 0.4), infer={"is_auxiliary": True}
        )
        pyro.sample("second", dist.Normal(middle + first, 0.6))

    loss = objective("jensen_shannon", num_particles=400, gradient="path", normalizer=-1.5)
    draws = gradient_draws(loss, target, guide, count=40)
    # The slope's gradient is a guide parameter's in the usual sense, by the score function.
    score = objective("jensen_shannon", num_particles=400, gradient="score", normalizer=-1.5)
    other = gradient_draws(score, target, guide, count=40)
    assert_same_mean({"slope": draws["slope"]}, {"slope": other["slope"]})


def test_point_estimates_alone_get_the_gradient_of_the_posterior_mode():
    guide = AutoDelta(model)
    guide()
    mode = step(objective("reverse_kl"), model, guide)
    covering = step(objective("total_variation"), model, guide)
    assert set(mode[1]) == set(covering[1])
    for name, gradient in mode[1].items():
        torch.testing.assert_close(covering[1][name], gradient)


def test_parameters_of_the_model_get_the_gradient_of_the_bound():
    def target():
        bias = pyro.param("bias", torch.tensor(0.3))
        second = pyro.sample("second", dist.Normal(bias, 1.0))
        pyro.sample("x", dist.Normal(second, 1.0), obs=DATA[1])

    def guide():
        pyro.sample("second", dist.Normal(pyro.param("centre", torch.tensor(0.1)), 0.7))

    auto = step(objective("iwae", num_particles=5), target, guide)
    plain = step(objective("iwae", num_particles=5, gradient="reparam"), target, guide)
    for name, gradient in plain[1].items():
        torch.testing.assert_close(auto[1][name], gradient)
    with pytest.raises(ValueError, match="the model has parameters"):
        step(objective("iwae", num_particles=5, gradient="path"), target, guide)
    assert "bias" in step(objective("forward_kl", gradient="path"), target, guide)[1]
