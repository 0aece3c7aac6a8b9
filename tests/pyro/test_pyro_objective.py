"""The objective as an object: its errors, its state, its diagnostics."""

import copy
import pickle

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import SVI
from pyro.infer.autoguide import AutoNormal
from pyro.infer.elbo import ELBO
from pyro.optim import Adam
from pyro_steps import assert_same_step, leaves, step

from bayesdiv.objectives import linear_schedule
from bayesdiv.pyro import DivergenceELBO, objective

DATA = torch.tensor([0.4, 1.1, -0.3])


@pytest.fixture(autouse=True)
def _validation():
    yield
    pyro.enable_validation(is_validate=True)


def model(data=DATA):
    location = pyro.sample("location", dist.Normal(0.0, 1.0))
    with pyro.plate("rows", len(data), dim=-1):
        pyro.sample("x", dist.Normal(location, 1.0), obs=data)


def guide(data=DATA):
    centre = pyro.param("centre", torch.tensor(0.1))
    pyro.sample("location", dist.Normal(centre, 0.7))


def log_evidence():
    covariance = torch.eye(3) + torch.ones(3, 3)
    return dist.MultivariateNormal(torch.zeros(3), covariance).log_prob(DATA).item()


def test_objective_is_an_elbo_with_the_hosts_arguments():
    loss = objective("alpha", order=0.5, max_plate_nesting=2, retain_graph=True)
    assert isinstance(loss, ELBO)
    assert isinstance(loss, DivergenceELBO)
    assert loss.num_particles == 16
    assert loss.max_plate_nesting == 3  # One more for the particles.
    assert loss.retain_graph
    assert objective("reverse_kl").num_particles == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"divergence": "forwards_kl"}, "objective must be one of reverse_kl, forward_kl"),
        ({"divergence": "alpha", "ordr": 0.5}, "'alpha' has no parameter 'ordr'"),
        ({"divergence": "alpha", "order": 1.0}, "order"),
        ({"divergence": "forward_kl", "gradient": "pathwise"}, "gradient must be 'auto'"),
        ({"divergence": "total_variation", "gradient": "path"}, "does not exist for Total"),
        ({"divergence": "tail_adaptive", "num_particles": 1}, "at least 2 for TailAdaptive"),
        ({"divergence": "forward_kl", "num_particles": 0}, "num_particles must be an integer"),
        ({"divergence": "forward_kl", "warmup": -1}, "warmup must be a number of steps"),
        ({"divergence": "forward_kl", "normalizer": "mean"}, "normalizer must be 'self'"),
    ],
)
def test_bad_settings_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        objective(**arguments)


def test_a_model_that_does_not_broadcast_over_particles():
    features = torch.ones(3, 2)

    def target():
        weights = pyro.sample("weights", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        with pyro.plate("rows", 3, dim=-1):
            location = (features * weights.unsqueeze(-2)).sum(-1)
            pyro.sample("x", dist.Normal(location, 1.0), obs=DATA)

    mean_field = AutoNormal(target)
    mean_field()
    step(objective("forward_kl", num_particles=4, vectorize_particles=False), target, mean_field)
    for name in ("reverse_kl", "forward_kl"):
        message = r"site 'x' has a log-probability of shape \(4, 4, 3\).*vectorize_particles=False"
        with pytest.raises(ValueError, match=message):
            step(objective(name, num_particles=4), target, mean_field)


def test_a_site_that_the_guide_lacks():
    def empty():
        pyro.param("centre", torch.tensor(0.1))

    with pytest.raises(ValueError, match=r"the guide lacks the latent sites \['location'\]"):
        step(objective("forward_kl"), model, empty)


def test_a_site_that_the_model_lacks():
    def more():
        guide()
        pyro.sample("other", dist.Normal(0.0, 1.0))

    with pytest.raises(ValueError, match=r"the guide has sites \['other'\] that the model lacks"):
        step(objective("forward_kl"), model, more)


def test_event_shapes_that_differ():
    def vector():
        pyro.sample("location", dist.Normal(torch.zeros(1), 1.0).to_event(1))

    with pytest.raises(
        ValueError, match=r"'location' has event shape \(1,\) in the guide but \(\)"
    ):
        step(objective("forward_kl", num_particles=1), model, vector)


@pytest.mark.parametrize("num_particles", [1, 4])
def test_a_value_outside_the_support_names_the_site(num_particles):
    loss = objective("forward_kl", num_particles=num_particles)
    with pytest.raises(ValueError, match="at site 'x'"):
        step(loss, model, guide, torch.tensor([float("nan")]))


def tilted(bad):
    location = pyro.sample("location", dist.Normal(0.0, 1.0))
    wrong = torch.tensor([0.0, 0.0, bad, 0.0])
    shape = (4,) + (1,) * (location.ndim - 1) if location.ndim else ()
    pyro.factor("tilt", wrong.reshape(shape) if location.ndim else wrong[2].clone())


def tilted_guide(bad):
    guide()


@pytest.mark.parametrize("name", ["reverse_kl", "forward_kl", "renyi"])
@pytest.mark.parametrize("normalizer", ["self", "running"])
def test_a_loss_that_is_not_finite_names_site_and_particle_and_changes_nothing(name, normalizer):
    loss = objective(name, num_particles=4, normalizer=normalizer)
    svi = SVI(tilted, tilted_guide, Adam({"lr": 0.1}), loss=loss)
    pyro.enable_validation(
        is_validate=False
    )  # Distributions check their arguments themselves otherwise.
    svi.step(0.0)
    before = {key: leaf.detach().clone() for key, leaf in leaves().items()}
    state = loss.state_dict()
    with pytest.raises(ValueError, match=r"at step 1 is nan: site 'tilt'.*NaN at particle 2\b"):
        svi.step(float("nan"))
    assert loss.state_dict() == state
    for key, leaf in leaves().items():
        torch.testing.assert_close(leaf, before[key], rtol=0.0, atol=0.0)
        assert leaf.grad is None or not bool(leaf.grad.any())
    svi.step(0.0)
    assert loss.step == 2


def test_the_particle_of_a_loop_is_named():
    calls = []

    def target():
        pyro.sample("location", dist.Normal(0.0, 1.0))
        calls.append(None)
        pyro.factor("tilt", torch.tensor(float("inf") if len(calls) == 3 else 0.0))

    loss = objective("reverse_kl", num_particles=4, vectorize_particles=False)
    pyro.enable_validation(is_validate=False)
    with pytest.raises(ValueError, match="is -inf: site 'tilt' has log-probability inf at .* 2"):
        step(loss, target, guide)


def test_the_module_interface_refuses_too():
    module = objective("reverse_kl")(tilted, tilted_guide)
    pyro.enable_validation(is_validate=False)
    with pytest.raises(ValueError, match="the loss at step 0 is nan"):
        module(float("nan"))


def test_evaluating_is_not_a_step():
    loss = objective("forward_kl", normalizer="running", warmup=2)
    svi = SVI(model, guide, Adam({"lr": 0.1}), loss=loss)
    svi.step()
    state = copy.deepcopy(loss.state_dict())
    before = {key: leaf.detach().clone() for key, leaf in leaves().items()}
    assert isinstance(svi.evaluate_loss(), float)
    loss.estimate(model, guide, num_particles=7)
    with torch.no_grad():
        loss.differentiable_loss(model, guide)
    assert loss.state_dict() == state
    assert loss.step == 1
    for key, leaf in leaves().items():
        torch.testing.assert_close(leaf, before[key], rtol=0.0, atol=0.0)


def test_warm_start_is_reverse_kl_and_then_the_objective():
    warm = objective("forward_kl", warmup=2, num_particles=4, max_plate_nesting=1)
    plain = objective("reverse_kl", num_particles=4, max_plate_nesting=1)
    after = objective("forward_kl", num_particles=4, max_plate_nesting=1)
    for seed in range(2):
        assert_same_step(
            step(warm, model, guide, seed=seed),
            step(plain, model, guide, seed=seed),
            tolerance=1e-6,
        )
    assert_same_step(step(warm, model, guide, seed=5), step(after, model, guide, seed=5))


def test_a_schedule_follows_the_step():
    arguments = {"num_particles": 4, "max_plate_nesting": 1}
    moving = objective("alpha", order=linear_schedule(0.2, 0.8, 2), **arguments)
    for number, order in enumerate([0.2, 0.5, 0.8, 0.8]):
        fixed = objective("alpha", order=order, **arguments)
        assert_same_step(
            step(moving, model, guide, seed=number), step(fixed, model, guide, seed=number)
        )


def test_the_running_normaliser_finds_the_evidence_with_one_particle_a_step():
    loss = objective("forward_kl", normalizer="running", num_particles=1)
    with pyro.validation_enabled(is_validate=False):
        for seed in range(800):
            step(loss, model, guide, seed=seed)
    # Weights of this guide have sd below 1, hence an error of the log of about 1/√800.
    assert loss.normalizer_state.log_mean.item() == pytest.approx(
        log_evidence(), abs=5.0 / 800**0.5
    )


def test_a_run_resumed_from_its_state_goes_on_as_if_never_stopped():
    def run(loss, numbers):
        return [step(loss, model, guide, seed=number)[0] for number in numbers]

    arguments = {"normalizer": "running", "warmup": 2, "num_particles": 4, "max_plate_nesting": 1}
    whole = run(objective("forward_kl", **arguments), range(8))
    first = objective("forward_kl", **arguments)
    head = run(first, range(4))
    second = objective("forward_kl", **arguments)
    second.load_state_dict(pickle.loads(pickle.dumps(first.state_dict())))
    assert head + run(second, range(4, 8)) == whole


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))])
def test_copies_behave_like_the_original(duplicate):
    loss = objective("jensen_shannon", num_particles=4)
    step(loss, model, guide)
    twin = duplicate(loss)
    assert twin.step == 1
    assert_same_step(step(twin, model, guide, seed=3), step(loss, model, guide, seed=3))


def test_estimate_reports_evidence_sample_size_and_tail():
    loss = objective("jensen_shannon", num_particles=4)
    guide()
    torch.manual_seed(0)
    result = loss.estimate(model, guide, num_particles=4000, chunk_size=1500)
    assert result.log_weight.shape == (4000,)
    assert not result.log_weight.requires_grad
    relative = result.log_weight.exp() / result.log_weight.exp().mean()
    error = relative.std().item() / 4000**0.5
    assert abs(result.log_evidence.item() - log_evidence()) < 5.0 * error
    assert 1.0 <= result.ess.item() <= 4000.0
    assert result.ess.item() == pytest.approx(4000.0 / (relative**2).mean().item(), rel=1e-3)
    assert result.pareto_k < 0.7
    assert 0.0 < result.value.item() < 0.7


@pytest.mark.parametrize("vectorized", [True, False])
@pytest.mark.parametrize("trained_with", [1, 4])
@pytest.mark.parametrize("asked_for", [1, 6])
def test_estimate_takes_any_number_of_particles(vectorized, trained_with, asked_for):
    loss = objective("reverse_kl", num_particles=trained_with, vectorize_particles=vectorized)
    step(loss, model, guide)
    result = loss.estimate(model, guide, num_particles=asked_for)
    assert result.log_weight.shape == (asked_for,)
    step(loss, model, guide)
    fixed = objective("reverse_kl", num_particles=trained_with, max_plate_nesting=1)
    assert fixed.estimate(model, guide, num_particles=asked_for).log_weight.shape == (asked_for,)
    step(fixed, model, guide)


@pytest.mark.parametrize("argument", ["num_particles", "chunk_size"])
def test_estimate_needs_particles(argument):
    with pytest.raises(ValueError, match=f"{argument} must be at least 1, got 0"):
        objective("reverse_kl").estimate(model, guide, **{argument: 0})


def test_estimate_keeps_plates_apart():
    def rows():
        with pyro.plate("rows", 3, dim=-1):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=DATA)

    def rows_guide():
        with pyro.plate("rows", 3, dim=-1):
            pyro.sample("z", dist.Normal(0.5 * DATA, 0.5**0.5))

    for name in ("reverse_kl", "forward_kl"):
        result = objective(name).estimate(rows, rows_guide, num_particles=50)
        # The guide is the posterior: every weight is the evidence of its row.
        assert result.log_weight.shape == (50, 3)
        exact = dist.Normal(0.0, 2.0**0.5).log_prob(DATA)
        torch.testing.assert_close(result.log_evidence, exact.sum(), rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(result.ess, torch.full((3,), 50.0), rtol=1e-3, atol=0.0)


def test_a_retained_graph_can_be_used_twice():
    loss = objective("forward_kl", retain_graph=True)
    first = step(loss, model, guide)[1]["centre"]
    value = loss.differentiable_loss(model, guide)
    value.backward(retain_graph=True)
    once = pyro.param("centre").grad.clone()
    value.backward()
    torch.testing.assert_close(pyro.param("centre").grad - once, once - first)


def test_one_objective_serves_two_models():
    loss = objective("forward_kl", max_plate_nesting=1, num_particles=4)
    first = AutoNormal(model)
    first()
    alone = step(loss, model, first)
    pyro.clear_param_store()
    step(loss, model, guide)
    pyro.clear_param_store()
    again = AutoNormal(model)
    again()
    assert_same_step(step(loss, model, again), alone)


def test_a_model_without_latent_sites_is_its_likelihood():
    def target():
        bias = pyro.param("bias", torch.tensor(0.3))
        with pyro.plate("rows", 3, dim=-1):
            pyro.sample("x", dist.Normal(bias, 1.0), obs=DATA)

    def nothing():
        pass

    expected = -dist.Normal(0.3, 1.0).log_prob(DATA).sum().item()
    for name in ("reverse_kl", "iwae"):
        value, gradients = step(objective(name, num_particles=3), target, nothing)
        assert value == pytest.approx(expected, rel=1e-5)
        assert gradients["bias"].item() == pytest.approx(0.9 - DATA.sum().item(), rel=1e-4)
