"""Two-sample divergences as Pyro objectives: posteriors, predictive fits, codes, the protocol."""

import copy
import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import SVI
from pyro.infer.autoguide import AutoMultivariateNormal, AutoNormal
from torch.distributions import constraints

from bayesdiv.pyro import objective
from bayesdiv.pyro._sample_objective import SampleObjective


@pytest.fixture(autouse=True)
def _double():
    torch.set_default_dtype(torch.float64)


def normal_model(data):
    mean = pyro.sample("mean", dist.Normal(0.0, 2.0))
    with pyro.plate("n", len(data)):
        pyro.sample("x", dist.Normal(mean, 1.0), obs=data)


DATA = torch.tensor([0.4, 1.9, 1.1, 2.3, 0.8], dtype=torch.float64)
POSTERIOR_SD = (1 / (0.25 + len(DATA))) ** 0.5
POSTERIOR_MEAN = float(DATA.sum()) * POSTERIOR_SD**2

X = torch.stack([torch.ones(20), torch.linspace(0.0, 2.0, 20)], 1).double()
Y = X @ torch.tensor([0.5, -1.0]).double() + 0.5 * torch.cos(3.0 * torch.arange(20).double())
COVARIANCE = torch.linalg.inv(X.T @ X / 0.25 + torch.eye(2).double())
MEAN = COVARIANCE @ X.T @ Y / 0.25


def regression():
    weights = pyro.sample("w", dist.Normal(torch.zeros(2), 1.0).to_event(1))
    with pyro.plate("n", 20):
        pyro.sample("y", dist.Normal((weights * X).sum(-1), 0.5), obs=Y)


def fit(model, guide, loss, num_steps, *args, rate=0.03):
    # A short memory of squared gradients: those of reverse KL are thousands of times larger.
    settings = {"lr": rate, "lrd": 0.03 ** (1 / num_steps), "betas": (0.9, 0.95)}
    svi = SVI(model, guide, pyro.optim.ClippedAdam(settings), loss)
    for _ in range(num_steps):
        last = svi.step(*args)
    return last


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("energy_distance", {}),
        ("mmd", {}),
        ("sinkhorn", {"epsilon": 0.5}),
        ("sliced_wasserstein", {"num_projections": 8}),
        ("wasserstein", {"root": False}),
    ],
)
def test_latent_finds_the_conjugate_posterior(name, parameters):
    guide = AutoNormal(normal_model)
    loss = objective(name, warmup=100, num_particles=32, **parameters)
    assert isinstance(loss, SampleObjective)
    fit(normal_model, guide, loss, 400, DATA)
    scale = guide.scales.mean.item()
    assert guide.locs.mean.item() == pytest.approx(POSTERIOR_MEAN, abs=0.05 * POSTERIOR_SD)
    assert scale == pytest.approx(POSTERIOR_SD, rel=0.05)
    assert loss.effective_size > 30.0


@pytest.mark.parametrize("name", ["sliced_wasserstein", "max_sliced_wasserstein"])
def test_latent_finds_a_correlated_posterior(name):
    guide = AutoMultivariateNormal(regression)
    parameters = {"num_steps": 3, "root": False} if "max" in name else {"num_projections": 16}
    fit(regression, guide, objective(name, warmup=200, num_particles=48, **parameters), 700)
    _assert_posterior(guide, mean=0.05, spread=0.05)


def test_latent_approaches_reference_draws():
    draws = torch.distributions.MultivariateNormal(MEAN, COVARIANCE).sample((400,))
    guide = AutoMultivariateNormal(regression)
    loss = objective(
        "energy_distance", warmup=200, num_particles=64, reference={"w": draws.numpy()}
    )
    fit(regression, guide, loss, 500)
    # 400 draws miss the mean by 0.05 sd; a sample of 64 points is fitted best somewhat narrower.
    _assert_posterior(guide, mean=0.15, spread=0.12)


def _assert_posterior(guide, *, mean, spread):
    found = guide.get_posterior()
    deviations = COVARIANCE.diagonal().sqrt()
    error = (found.mean.detach() - MEAN) / deviations
    covariance = found.covariance_matrix.detach()
    assert error.abs().max() < mean
    assert ((covariance.diagonal().sqrt() / deviations) - 1).abs().max() < spread
    correlation = covariance[0, 1] / covariance.diagonal().sqrt().prod()
    assert correlation.item() == pytest.approx(
        (COVARIANCE[0, 1] / deviations.prod()).item(), abs=0.05
    )


def test_latent_lays_constrained_sites_out_unconstrained():
    def model():
        pyro.sample("rate", dist.Gamma(3.0, 2.0))

    def guide():
        location = pyro.param("location", torch.tensor(0.0))
        spread = pyro.param("spread", torch.tensor(1.0), constraint=constraints.positive)
        pyro.sample("rate", dist.LogNormal(location, spread))

    fit(model, guide, objective("energy_distance", num_particles=64), 500)
    # In log(rate): mean and sd of a log-gamma, which the guide's normal can match.
    assert pyro.param("location").item() == pytest.approx(
        torch.digamma(torch.tensor(3.0)).item() - math.log(2.0), abs=0.1
    )
    variance = torch.polygamma(1, torch.tensor(3.0)).item()
    assert pyro.param("spread").item() == pytest.approx(variance**0.5, rel=0.1)


def _gradients(loss_of, *parameters):
    leaves = [pyro.get_param_store()._params[name] for name in parameters]
    for leaf in leaves:
        leaf.grad = None
    value = loss_of()
    return value, [leaf.grad.clone() for leaf in leaves]


def _mean_field(data):
    location = pyro.param("location", torch.tensor(0.3))
    spread = pyro.param("spread", torch.tensor(0.6), constraint=constraints.positive)
    pyro.sample("mean", dist.Normal(location, spread))


def test_loops_and_vectorised_particles_give_the_same_step():
    found = []
    for vectorize in (True, False):
        loss = objective("energy_distance", num_particles=6, vectorize_particles=vectorize)
        torch.manual_seed(1)
        loss.max_plate_nesting = 2 if vectorize else 1
        _mean_field(DATA)
        torch.manual_seed(1)
        found.append(
            _gradients(
                lambda loss=loss: loss.loss_and_grads(normal_model, _mean_field, DATA),
                "location",
                "spread",
            )
        )
    (one, first), (other, second) = found
    assert one == pytest.approx(other, rel=1e-10)
    torch.testing.assert_close(first, second)


def test_three_methods_and_the_module_interface_agree():
    _mean_field(DATA)
    loss = objective("energy_distance", num_particles=8)
    loss.loss(normal_model, _mean_field, DATA)
    assert loss.step == 0

    def seeded(run):
        torch.manual_seed(2)
        return run()

    value = seeded(lambda: loss.loss(normal_model, _mean_field, DATA))
    stepped, gradients = seeded(
        lambda: _gradients(
            lambda: loss.loss_and_grads(normal_model, _mean_field, DATA), "location", "spread"
        )
    )

    def backward():
        result = loss.differentiable_loss(normal_model, _mean_field, DATA)
        result.backward()
        return result.item()

    differentiated, same = seeded(lambda: _gradients(backward, "location", "spread"))
    assert value == pytest.approx(stepped, rel=1e-12)
    assert differentiated == pytest.approx(stepped, rel=1e-12)
    torch.testing.assert_close(gradients, same)
    assert loss.step == 2


def test_module_interface_trains():
    with pyro.settings.context(module_local_params=True):
        guide = AutoNormal(normal_model)
        module = objective("energy_distance", num_particles=16)(_Model(), guide)
        module(DATA)
        optimiser = torch.optim.Adam(module.parameters(), lr=0.05)
        for _ in range(5):
            optimiser.zero_grad()
            module(DATA).backward()
            optimiser.step()
        assert all(p.grad is not None and torch.isfinite(p.grad) for p in guide.parameters())


class _Model(torch.nn.Module):
    def forward(self, data):
        return normal_model(data)


def test_warm_start_is_reverse_kl():
    _mean_field(DATA)
    loss = objective("energy_distance", warmup=1, num_particles=8)
    plain = objective("reverse_kl", num_particles=8)
    steps = []
    for each in (plain, loss, loss):
        torch.manual_seed(4)
        steps.append(
            _gradients(
                lambda each=each: each.loss_and_grads(normal_model, _mean_field, DATA), "location"
            )
        )
    assert steps[0] == steps[1]
    assert steps[2][0] < 1.0 < steps[0][0]


def test_learnt_slices_keep_their_state_and_evaluation_leaves_it():
    guide = AutoMultivariateNormal(regression)
    loss = objective("max_sliced_wasserstein", num_particles=8, num_steps=2, rng=0)
    fit(regression, guide, loss, 3)
    before = copy.deepcopy(loss.inner_state["latent"])
    loss.loss(regression, guide)
    assert loss.step == 3
    after = loss.inner_state["latent"]
    assert float(before.ascent.num_steps) == 6.0
    torch.testing.assert_close(before.ascent.parameters, after.ascent.parameters)


def test_draws_outside_the_support_weigh_nothing():
    def model():
        mean = pyro.sample("mean", dist.Normal(0.0, 1.0))
        pyro.factor("positive", torch.where(mean > 0, 0.0, -math.inf))

    def guide():
        pyro.sample("mean", dist.Normal(pyro.param("location", torch.tensor(0.0)), 1.0))

    loss = objective("energy_distance", num_particles=64)
    loss.loss(model, guide)
    _, (gradient,) = _gradients(lambda: loss.loss_and_grads(model, guide), "location")
    assert gradient < 0.0
    # The weights are equal on the positive half.
    assert 20.0 < loss.effective_size < 44.0


def test_model_parameters_get_the_wake_gradient():
    def model():
        scale = pyro.param("scale", torch.tensor(1.5), constraint=constraints.positive)
        mean = pyro.sample("mean", dist.Normal(0.0, scale))
        pyro.sample("x", dist.Normal(mean, 1.0), obs=torch.tensor(2.0))

    def guide():
        pyro.sample("mean", dist.Normal(pyro.param("location", torch.tensor(0.5)), 0.8))

    loss = objective("energy_distance", num_particles=5)
    loss.loss(model, guide)
    torch.manual_seed(6)
    _, (gradient,) = _gradients(lambda: loss.loss_and_grads(model, guide), "scale")
    torch.manual_seed(6)
    draws = 0.5 + 0.8 * torch.randn(5)
    unconstrained = torch.tensor(1.5).log().requires_grad_()
    prior = dist.Normal(0.0, unconstrained.exp()).log_prob(draws)
    likelihood = dist.Normal(draws, 1.0).log_prob(torch.tensor(2.0))
    log_weight = prior.detach() + likelihood - dist.Normal(0.5, 0.8).log_prob(draws)
    wake = -(torch.softmax(log_weight, 0) * prior).sum()
    torch.testing.assert_close(gradient, torch.autograd.grad(wake, unconstrained)[0])
