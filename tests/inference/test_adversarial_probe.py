"""A fresh critic against closed forms, and the check that tells a dead critic."""

import math
import warnings

import pyro
import pyro.distributions as dist
import pytest
import torch
from adversarial_cases import Location, normal_pool

from bayesdiv.inference.adversarial import (
    AdversarialInference,
    AdversarialSettings,
    BatchNormLogitCritic,
    CodeCritic,
    ProbeSettings,
    probe_codes,
)
from bayesdiv.objectives import RatioCritic
from bayesdiv.pyro import EmpiricalPrior

NORMAL = ProbeSettings(hidden=(), learning_rate=0.05, num_steps=600, penalty=0.0, max_rows=None)
QUICK = ProbeSettings(hidden=(8,), num_steps=100, learning_rate=1e-2)


def normals(location, scale, count=40_000):
    generator = torch.Generator().manual_seed(3)
    p, noise = torch.randn(2, count, 1, dtype=torch.float64, generator=generator)
    return p, location + scale * noise


def kl_to_standard(location, scale):
    """KL(N(m, s²)‖N(0, 1))."""
    return -math.log(scale) + 0.5 * (scale**2 + location**2 - 1.0)


def kl_from_standard(location, scale):
    """KL(N(0, 1)‖N(m, s²))."""
    return math.log(scale) + 0.5 * (1.0 + location**2) / scale**2 - 0.5


@pytest.mark.parametrize(("location", "scale"), [(1.0, 1.0), (0.0, 2.0), (0.0, 0.5), (1.5, 0.7)])
def test_estimates_are_the_closed_forms(location, scale):
    """Within 5 % as far as 1.3 nats."""
    found = probe_codes(*normals(location, scale), NORMAL)
    for estimate, exact in (
        (found.reverse_kl, kl_to_standard(location, scale)),
        (found.reverse_kl_bound, kl_to_standard(location, scale)),
        (found.forward_kl, kl_from_standard(location, scale)),
    ):
        assert estimate == pytest.approx(exact, rel=0.05 if exact < 1.3 else 0.1)


@pytest.mark.parametrize(("location", "scale"), [(1.0, 1.0), (0.0, 2.0), (1.5, 0.7)])
def test_jensen_shannon_is_that_of_quadrature(location, scale):
    z = torch.linspace(-14.0, 14.0, 20_001, dtype=torch.float64)
    laws = [torch.distributions.Normal(0.0, 1.0), torch.distributions.Normal(location, scale)]
    p, q = (law.log_prob(z).exp() for law in laws)
    mixture = 0.5 * (p + q)
    parts = torch.xlogy(p, p / mixture) + torch.xlogy(q, q / mixture)
    exact = float(0.5 * torch.trapezoid(parts.nan_to_num(), z))
    found = probe_codes(*normals(location, scale), NORMAL)
    assert found.jensen_shannon == pytest.approx(exact, rel=0.05)


def test_linear_critic_is_blind_to_spread():
    settings = ProbeSettings(hidden=(), quadratic=False, learning_rate=0.05, max_rows=None)
    found = probe_codes(*normals(0.0, 2.0), settings)
    assert abs(found.reverse_kl) < 0.01
    assert not found.separates


def test_probe_draws_nothing_from_the_global_generator():
    before = torch.get_rng_state()
    first, second = (probe_codes(*normals(1.0, 1.0, 200), QUICK) for _ in range(2))
    assert torch.equal(before, torch.get_rng_state())
    assert first == second


def test_separable_codes_are_reported():
    p, q = normals(40.0, 1.0, 400)
    found = probe_codes(p, q, QUICK)
    assert found.is_separable
    with pytest.warns(RuntimeWarning, match=r"separable from the prior's .held-out accuracy 1\.0"):
        found.warn()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        probe_codes(*normals(0.5, 1.0, 400), QUICK).warn()


class Apart(torch.nn.Module):
    """Codes in ten dimensions, three standard deviations from the prior in each."""

    def __init__(self):
        super().__init__()
        self.shift = torch.nn.Parameter(torch.full((10,), 3.0))
        self.pool = torch.randn(2000, 10)

    def model(self, rows):
        with pyro.plate("rows", len(rows)):
            pyro.sample("z", EmpiricalPrior(self.pool))

    def guide(self, rows):
        shift = pyro.param("shift", self.shift)
        with pyro.plate("rows", len(rows)):
            pyro.sample("z", dist.Delta(rows + shift, event_dim=1))


def watch(critic, num_steps=200):
    program = Apart()
    settings = AdversarialSettings(critic_rate=1e-2, probe=QUICK, seed=1)
    routine = AdversarialInference(
        program.model, program.guide, critic=critic, weight=0.0, settings=settings
    )
    losses = [float(routine.step(torch.randn(128, 10))["critic_loss"]) for _ in range(num_steps)]
    return routine, losses


def test_dead_critic_is_caught():
    """Batch normalisation of the logit, class by class, leaves any two laws alike."""
    with pytest.warns(RuntimeWarning, match="the critic is dead: its loss was 1"):
        routine, losses = watch("batch_norm_logit")
    assert routine.report().is_dead
    assert min(losses) > 2.0 * math.log(2.0) - 1e-2
    assert sum(losses[-50:]) / 50 == pytest.approx(2.0 * math.log(2.0), abs=2e-3)


def test_living_critic_tells_the_same_codes_apart():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        routine, losses = watch("spectral_norm")
    assert not routine.report().is_dead
    assert losses[-1] < 0.1


def test_batch_norm_in_one_joint_batch_is_alive():
    """It is the separate normalisation that kills: without it the same critic learns."""
    critic = BatchNormLogitCritic(10)
    joint = RatioCritic(
        lambda rows: critic.layers(rows)[:, 0],
        torch.optim.Adam(critic.parameters(), lr=1e-2),
        parameters=critic,
    )
    for _ in range(300):
        metrics = joint.step((torch.randn(128, 10), torch.randn(128, 10) + 3.0))
    assert float(metrics["loss"]) < 0.2


def test_equal_laws_leave_the_critic_at_chance_without_a_warning():
    program = Location(0.0, 1.0, pool=normal_pool(4000))
    routine = AdversarialInference(
        program.model, program.guide, weight=0.0, settings=AdversarialSettings(probe=QUICK)
    )
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        losses = [float(routine.step(512)["critic_loss"]) for _ in range(200)]
    assert sum(losses[-100:]) / 100 == pytest.approx(2.0 * math.log(2.0), abs=5e-3)
    assert not routine.report().is_dead


def test_critic_is_no_steeper_than_its_output_layer():
    critic = CodeCritic(5).double()
    for _ in range(20):
        critic(torch.zeros(1, 5, dtype=torch.float64))
    rows = 10.0 * torch.randn(200, 5, dtype=torch.float64)
    rows.requires_grad_()
    (slopes,) = torch.autograd.grad(critic(rows).sum(), rows)
    bound = float(critic.layers[-1].weight.detach().norm())
    assert 0.0 < float(slopes.norm(dim=1).max()) <= 1.01 * bound
