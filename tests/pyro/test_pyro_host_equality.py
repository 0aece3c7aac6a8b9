"""objective("reverse_kl") is Trace_ELBO, and the bounds are RenyiELBO, draw for draw."""

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import RenyiELBO, Trace_ELBO
from pyro.infer.autoguide import (
    AutoDelta,
    AutoGaussian,
    AutoGuideList,
    AutoIAFNormal,
    AutoLaplaceApproximation,
    AutoLowRankMultivariateNormal,
    AutoMultivariateNormal,
    AutoNormal,
    AutoNormalizingFlow,
    AutoNormalMessenger,
    AutoStructured,
)
from pyro_steps import assert_same_step, step

from bayesdiv.pyro import objective

DATA = torch.tensor([0.4, 1.1, -0.3, 2.0, 0.7], dtype=torch.float64)


@pytest.fixture(autouse=True)
def _float64():
    torch.set_default_dtype(torch.float64)


def normal_model(data=DATA):
    location = pyro.sample("location", dist.Normal(0.0, 2.0))
    spread = pyro.sample("spread", dist.Gamma(2.0, 2.0))
    with pyro.plate("rows", len(data), dim=-1):
        local = pyro.sample("local", dist.Normal(location, 1.0))
        pyro.sample("x", dist.Normal(local, spread), obs=data)
    pyro.deterministic("twice", 2.0 * location)


def parts_guide(model):
    guide = AutoGuideList(model)
    guide.append(AutoNormal(poutine.block(model, expose=["location"])))
    guide.append(AutoDelta(poutine.block(model, expose=["spread"])))
    guide.append(AutoMultivariateNormal(poutine.block(model, expose=["local"])))
    return guide


def structured_guide(model):
    return AutoStructured(
        model,
        conditionals={"location": "normal", "spread": "delta", "local": "mvn"},
        dependencies={"local": {"location": "linear"}},
    )


GUIDES = {
    "normal": AutoNormal,
    "multivariate": AutoMultivariateNormal,
    "low_rank": AutoLowRankMultivariateNormal,
    "delta": AutoDelta,
    "laplace": AutoLaplaceApproximation,
    "iaf": lambda model: AutoIAFNormal(model, hidden_dim=[8]),
    "planar": lambda model: AutoNormalizingFlow(model, dist.transforms.Planar),
    "gaussian": AutoGaussian,
    "structured": structured_guide,
    "messenger": AutoNormalMessenger,
    "list": parts_guide,
}


def both(model, guide, *args, num_particles, vectorized, **host):
    ours = objective(
        "reverse_kl", num_particles=num_particles, vectorize_particles=vectorized, **host
    )
    theirs = Trace_ELBO(num_particles=num_particles, vectorize_particles=vectorized, **host)
    return step(ours, model, guide, *args, seed=3), step(theirs, model, guide, *args, seed=3)


@pytest.mark.parametrize(("num_particles", "vectorized"), [(1, False), (5, True), (3, False)])
@pytest.mark.parametrize("name", GUIDES)
def test_reverse_kl_is_trace_elbo_with_every_autoguide(name, num_particles, vectorized):
    guide = GUIDES[name](normal_model)
    guide(DATA)
    ours, theirs = both(
        normal_model, guide, DATA, num_particles=num_particles, vectorized=vectorized
    )
    assert theirs[1]
    assert_same_step(ours, theirs)


def test_default_reverse_kl_takes_the_draws_of_a_default_trace_elbo():
    guide = AutoNormal(normal_model)
    guide(DATA)
    ours = step(objective("reverse_kl"), normal_model, guide, DATA)
    assert_same_step(ours, step(Trace_ELBO(), normal_model, guide, DATA))


def hierarchical_guide():
    shift = pyro.param("shift", torch.tensor(0.3))
    slope = pyro.param("slope", torch.tensor(0.8))
    scale = pyro.param("scale", torch.tensor(0.5), constraint=dist.constraints.positive)
    first = pyro.sample("first", dist.Normal(shift, scale))
    pyro.sample("second", dist.Normal(slope * first, scale))


def scaled_and_masked_model():
    bias = pyro.param("bias", torch.tensor(0.1))
    with poutine.scale(scale=0.3):
        first = pyro.sample("first", dist.Normal(bias, 1.0))
    second = pyro.sample("second", dist.Normal(first, 1.0))
    pyro.factor("penalty", -0.1 * second**2)
    with pyro.plate("rows", len(DATA), dim=-1):
        pyro.sample("x", dist.Normal(second, 1.0).mask(DATA > 0.0), obs=DATA)


@pytest.mark.parametrize(("num_particles", "vectorized"), [(1, False), (4, True), (4, False)])
def test_model_parameters_masks_scales_and_factors(num_particles, vectorized):
    hierarchical_guide()
    ours, theirs = both(
        scaled_and_masked_model,
        hierarchical_guide,
        num_particles=num_particles,
        vectorized=vectorized,
    )
    assert set(theirs[1]) == {"bias", "shift", "slope", "scale"}
    assert_same_step(ours, theirs)


def subsampled_model(data):
    location = pyro.sample("location", dist.Normal(0.0, 1.0))
    with pyro.plate("rows", len(data), subsample_size=2, dim=-1) as index:
        pyro.sample("x", dist.Normal(location, 1.0), obs=data[index])


def looped_model(data):
    location = pyro.sample("location", dist.Normal(0.0, 1.0))
    for i in pyro.plate("rows", len(data), subsample_size=3):
        pyro.sample(f"x{i}", dist.Normal(location, 1.0), obs=data[i])


@pytest.mark.parametrize("model", [subsampled_model, looped_model])
@pytest.mark.parametrize("num_particles", [1, 4])
def test_subsampled_plates(model, num_particles):
    guide = AutoNormal(model)
    guide(DATA)
    vectorized = num_particles > 1
    assert_same_step(*both(model, guide, DATA, num_particles=num_particles, vectorized=vectorized))


def test_a_network_in_the_guide_and_one_in_the_model():
    encoder, decoder = torch.nn.Linear(1, 2), torch.nn.Linear(1, 1)

    def model(data):
        pyro.module("decoder", decoder)
        with pyro.plate("rows", len(data), dim=-1):
            code = pyro.sample("code", dist.Normal(torch.zeros(1), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(decoder(code), 1.0).to_event(1), obs=data[:, None])

    def guide(data):
        pyro.module("encoder", encoder)
        location, raw = encoder(data[:, None]).chunk(2, -1)
        with pyro.plate("rows", len(data), dim=-1):
            pyro.sample("code", dist.Normal(location, raw.exp()).to_event(1))

    ours, theirs = both(model, guide, DATA, num_particles=6, vectorized=True)
    assert len(theirs[1]) == 4
    assert_same_step(ours, theirs)


def test_a_single_particle_with_score_terms_is_trace_elbo():
    probability = torch.tensor(0.3)

    def model():
        choice = pyro.sample("choice", dist.Bernoulli(probability))
        pyro.sample("x", dist.Normal(choice, 1.0), obs=torch.tensor(0.9))

    def guide():
        logit = pyro.param("logit", torch.tensor(0.2))
        pyro.sample("choice", dist.Bernoulli(logits=logit))

    guide()
    assert_same_step(*both(model, guide, num_particles=1, vectorized=False))


def test_a_factor_in_the_guide():
    def guide():
        hierarchical_guide()
        pyro.factor("tilt", 0.1 * pyro.param("shift") ** 2, has_rsample=True)

    with poutine.trace():
        guide()
    assert_same_step(*both(scaled_and_masked_model, guide, num_particles=3, vectorized=True))
    for name in ("forward_kl", "total_variation"):
        assert "shift" in step(objective(name), scaled_and_masked_model, guide)[1]


@pytest.mark.parametrize("order", [0.0, 0.5, 2.0])
@pytest.mark.parametrize("vectorized", [True, False])
def test_bounds_are_those_of_renyi_elbo(order, vectorized):
    guide = AutoNormal(normal_model)
    guide(DATA)
    ours = objective(
        "renyi", order=order, num_particles=6, gradient="reparam", vectorize_particles=vectorized
    )
    theirs = RenyiELBO(alpha=order, num_particles=6, vectorize_particles=vectorized)
    assert_same_step(step(ours, normal_model, guide, DATA), step(theirs, normal_model, guide, DATA))


def test_bounds_with_a_common_plate_are_those_of_renyi_elbo():
    def model(data):
        with pyro.plate("rows", len(data), dim=-1):
            local = pyro.sample("local", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(local, 0.5), obs=data)

    guide = AutoNormal(model)
    guide(DATA)
    ours = objective("iwae", num_particles=4, gradient="reparam")
    theirs = RenyiELBO(alpha=0.0, num_particles=4, vectorize_particles=True)
    assert_same_step(step(ours, model, guide, DATA), step(theirs, model, guide, DATA))


@pytest.mark.parametrize("name", ["iwae", "renyi"])
def test_one_particle_of_a_bound_is_reverse_kl(name):
    guide = AutoNormal(normal_model)
    guide(DATA)
    bound = step(objective(name, num_particles=1, gradient="reparam"), normal_model, guide, DATA)
    assert_same_step(bound, step(objective("reverse_kl"), normal_model, guide, DATA))


@pytest.mark.parametrize("name", ["forward_kl", "jensen_shannon", "squared_hellinger"])
def test_one_self_normalised_particle_has_the_gradient_of_reverse_kl(name):
    # u = 1 there, so the weight is f''(1) and the value 0.
    guide = AutoNormal(normal_model)
    guide(DATA)
    one = objective(name, num_particles=1, gradient="path")
    value, gradient = step(one, normal_model, guide, DATA)
    path = objective("reverse_kl", gradient="path")
    _, expected = step(path, normal_model, guide, DATA)
    curvature = one.settings.at(0).second_derivative_at_one
    assert value == pytest.approx(0.0, abs=1e-12)
    for key in expected:
        torch.testing.assert_close(gradient[key], curvature * expected[key])


def test_the_module_interface_has_the_same_loss_and_gradient():
    guide = AutoNormal(normal_model)
    guide(DATA)
    value, expected = step(objective("jensen_shannon"), normal_model, guide, DATA)
    with pyro.settings.context(module_local_params=True):
        local = AutoNormal(normal_model)
        local(DATA)
        module = objective("jensen_shannon")(normal_model, local)
        torch.manual_seed(0)
        loss = module(DATA)
        loss.backward()
        assert loss.item() == pytest.approx(value, rel=1e-12)
        found = {name: leaf.grad for name, leaf in local.named_parameters()}
    flat = torch.cat([g.flatten() for _, g in sorted(expected.items())])
    again = torch.cat([g.flatten() for _, g in sorted(found.items())])
    torch.testing.assert_close(again.sort().values, flat.sort().values)


def test_the_module_interface_trains_with_torch_optimisers():
    def model(data):
        location = pyro.sample("location", dist.Normal(0.0, 10.0))
        with pyro.plate("rows", len(data), dim=-1):
            pyro.sample("x", dist.Normal(location, 1.0), obs=data)

    with pyro.settings.context(module_local_params=True):
        guide = AutoNormal(model)
        module = objective("reverse_kl", num_particles=8, gradient="path")(model, guide)
        module(DATA)
        optimiser = torch.optim.Adam(module.parameters(), lr=0.1)
        for _ in range(150):
            optimiser.zero_grad()
            module(DATA).backward()
            optimiser.step()
        precision = len(DATA) + 0.01
        assert guide.median()["location"].item() == pytest.approx(
            DATA.sum().item() / precision, abs=1e-2
        )
        assert guide.scales.location.item() == pytest.approx(1.0 / math.sqrt(precision), rel=0.02)
