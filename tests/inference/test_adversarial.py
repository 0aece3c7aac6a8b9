"""Adversarial inference: the layer's gradients, exact densities, and what matching achieves."""

import pyro
import pytest
import torch
from adversarial_cases import Autoencoder, Location, normal_pool
from torch.nn.functional import softplus

from bayesdiv.divergences import EnergyDistance
from bayesdiv.inference._adversarial_sites import call_of
from bayesdiv.inference.adversarial import (
    AdversarialInference,
    AdversarialSettings,
    CodeCritic,
    ProbeSettings,
)
from bayesdiv.pyro import objective

# What the guide descends, l = log p*/q at its codes, in the forms of the literature.
GENERATOR_LOSSES = {
    "reverse_kl": lambda log_ratio: -log_ratio,
    "softened_reverse_kl": lambda log_ratio: softplus(-log_ratio),
    "jensen_shannon": lambda log_ratio: -0.5 * softplus(log_ratio),
    "forward_kl": lambda log_ratio: -log_ratio.exp(),
    "squared_hellinger": lambda log_ratio: -(0.5 * log_ratio).exp(),
}
# Too small to move anything.
STILL = 1e-300


class Quadratic(torch.nn.Module):
    """A critic of one dimension with given coefficients."""

    def __init__(self, *coefficients):
        super().__init__()
        self.coefficients = torch.nn.Parameter(torch.tensor(coefficients, dtype=torch.float64))

    def forward(self, rows):
        z = rows[:, 0]
        return self.coefficients @ torch.stack([torch.ones_like(z), z, z * z])


def compared(divergence, critic):
    """One batch's codes, and their comparison with the prior by a critic that stays as it is."""
    program = Location(1.0, 0.8, pool=normal_pool(500))
    routine = AdversarialInference(
        program.model,
        program.guide,
        divergence=divergence,
        critic=critic,
        settings=AdversarialSettings(critic_rate=STILL),
    )
    rows, setup = routine._trace(call_of(64))
    return rows.codes, setup.compare(rows)


@pytest.mark.parametrize("name", GENERATOR_LOSSES)
def test_generator_losses_are_those_of_the_literature(name):
    critic = Quadratic(0.2, -0.8, -0.1)
    codes, found = compared(name, critic)
    (slope,) = torch.autograd.grad(found.surrogate, codes)
    again = codes.detach().requires_grad_()
    (expected,) = torch.autograd.grad(GENERATOR_LOSSES[name](critic(again)).mean(), again)
    torch.testing.assert_close(slope, expected, rtol=1e-12, atol=1e-15)


def test_codes_beyond_the_clamp_are_still_pulled():
    """A clamped log-ratio has slope 0, and codes far from the prior would stay there."""
    codes, found = compared("reverse_kl", Quadratic(0.0, -50.0, 0.0))
    (slope,) = torch.autograd.grad(found.surrogate, codes)
    torch.testing.assert_close(slope, torch.full_like(codes, 50.0 / 64))


def test_published_loss_is_the_default():
    program = Location(1.0, 0.8, pool=normal_pool(500))
    routine = AdversarialInference(program.model, program.guide)
    routine.step(16)
    report = routine.report()
    assert type(report.divergence).__name__ == "SoftenedReverseKL"
    assert (report.match, report.access, report.num_steps) == ("aggregate", "learned", 1)


def test_rates_of_the_guide_fall_together():
    """An adversarial step that went on alone would have the last word."""
    program = Autoencoder(3, 2, prior=torch.randn(50, 2, dtype=torch.float64))
    settings = AdversarialSettings(num_decay_steps=4)
    routine = AdversarialInference(program.model, program.guide, settings=settings)
    x, changes = torch.randn(30, 3, dtype=torch.float64), []
    for _ in range(5):
        before = [each.detach().clone() for each in program.parameters()]
        routine.step(x)
        changes.append(
            [now.detach() - old for now, old in zip(program.parameters(), before, strict=True)]
        )
    assert all(bool((change != 0.0).all()) for change in changes[3])
    assert all(bool((change == 0.0).all()) for change in changes[4])


# Explicit densities


def moved(parameters, step):
    """How far one ``step`` moves each parameter, and what the step returns."""
    before = [each.detach().clone() for each in parameters]
    torch.manual_seed(5)
    found = step()
    return [now.detach() - old for now, old in zip(parameters, before, strict=True)], found


@pytest.mark.parametrize("total", [None, 120])
def test_explicit_reverse_kl_is_the_evidence_bound(total):
    x = torch.randn(40, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))

    def run(make_step):
        pyro.clear_param_store()
        torch.manual_seed(1)
        program = Autoencoder(3, 2, noise=0.7, scale=0.5, total=total)
        return moved(list(program.parameters()), make_step(program))

    def adversarial(program):
        routine = AdversarialInference(program.model, program.guide, divergence="reverse_kl")
        return lambda: routine.step(x)["loss"]

    def bound(program):
        optimizer, loss = pyro.optim.Adam({"lr": 2e-3}), objective("reverse_kl")
        svi = pyro.infer.SVI(program.model, program.guide, optimizer, loss=loss)
        return lambda: svi.step(x)

    (ours, value), (theirs, expected) = run(adversarial), run(bound)
    assert float(value) * (total or 40) == pytest.approx(expected, rel=1e-12)
    for left, right in zip(ours, theirs, strict=True):
        torch.testing.assert_close(left, right, rtol=1e-6, atol=1e-10)


@pytest.mark.parametrize(
    "name", ["reverse_kl", "forward_kl", "jensen_shannon", "squared_hellinger", "alpha", "jeffreys"]
)
def test_explicit_codes_have_the_gradient_of_the_objective(name):
    """Rows of a plate are the particles of a model without it."""

    def run(make_step):
        pyro.clear_param_store()
        program = Location(0.7, 0.6, implicit=False)
        return moved(list(program.parameters()), make_step(program))

    def adversarial(program):
        settings = AdversarialSettings(reconstruction_rate=1e-2)
        routine = AdversarialInference(
            program.model, program.guide, divergence=name, settings=settings
        )
        return lambda: routine.step(50)["divergence"]

    def bound(program):
        loss = objective(name, num_particles=50, normalizer=0.0, max_plate_nesting=1)
        optimizer = pyro.optim.Adam({"lr": 1e-2})
        svi = pyro.infer.SVI(program.model, program.guide, optimizer, loss=loss)
        return lambda: svi.step(1)

    (ours, value), (theirs, expected) = run(adversarial), run(bound)
    assert float(value) == pytest.approx(expected, rel=1e-10)
    for left, right in zip(ours, theirs, strict=True):
        torch.testing.assert_close(left, right, rtol=1e-6, atol=1e-12)


def test_aggregate_match_of_explicit_codes_is_learnt():
    program = Location(0.7, 0.6, implicit=False)
    routine = AdversarialInference(program.model, program.guide, match="aggregate")
    assert "critic_loss" in routine.step(20)
    assert routine.report().access == "learned"


# What matching achieves


@pytest.mark.parametrize(
    "name",
    [
        *GENERATOR_LOSSES,
        "alpha",
        "sliced_wasserstein",
        "energy_distance",
        "mmd",
        "max_sliced_wasserstein",
    ],
)
def test_every_divergence_brings_codes_to_the_prior(name):
    pool = normal_pool(2000)
    program = Location(1.5, 0.5, pool=pool)
    settings = AdversarialSettings(
        encoder_rate=0.02, critic_rate=0.02, num_critic_steps=2, probe=ProbeSettings(hidden=())
    )
    routine = AdversarialInference(program.model, program.guide, divergence=name, settings=settings)
    distance = EnergyDistance()
    before = float(distance(*routine.draw(500)))
    for _ in range(120):
        routine.step(64)
    assert float(distance(*routine.draw(500))) < 0.25 * before


def linear_problem():
    """Signals e = A z + noise and s = C z + noise, centred, and their reduced-rank regression."""
    generator = torch.Generator().manual_seed(0)

    def draw(*shape):
        return torch.randn(*shape, dtype=torch.float64, generator=generator)

    z = draw(600, 2)
    e, s = z @ draw(2, 6) + 0.3 * draw(600, 6), z @ draw(2, 5) + 0.3 * draw(600, 5)
    e, s = e - e.mean(0), s - s.mean(0)
    fitted = s @ torch.linalg.lstsq(s, e).solution
    range_of_fit = torch.linalg.svd(fitted, full_matrices=False).Vh[:2]
    error = float((e - fitted @ range_of_fit.T @ range_of_fit).square().sum(1).mean())
    principal = torch.linalg.svd(e, full_matrices=False).Vh[:2]
    return e, s, range_of_fit, error, principal


@pytest.mark.parametrize("name", ["softened_reverse_kl", "sliced_wasserstein"])
def test_linear_gaussian_case_is_reduced_rank_regression(name):
    """Codes may be turned and scaled at no cost, so that matching them costs no accuracy."""
    e, s, range_of_fit, error, principal = linear_problem()
    torch.manual_seed(3)
    program = Autoencoder(5, 2, prior=e @ principal.T)
    program.decoder = torch.nn.Linear(2, 6, dtype=torch.float64)
    settings = AdversarialSettings(encoder_rate=1e-3, critic_rate=1e-2, reconstruction_rate=0.02)
    critic = CodeCritic(2, (16, 16))
    routine = AdversarialInference(
        program.model, program.guide, divergence=name, critic=critic, settings=settings
    )
    before = float(EnergyDistance()(*routine.draw((s, e))))
    for _ in range(300):
        routine.step((s, e))
    with torch.no_grad():
        found = float((e - program.decoder(program.encoder(s))).square().sum(1).mean())
    assert found == pytest.approx(error, rel=5e-3)
    # Sines of the angles between the two ranges.
    basis = torch.linalg.qr(program.decoder.weight.detach()).Q
    sines = torch.linalg.svdvals(basis - range_of_fit.T @ (range_of_fit @ basis))
    assert float(sines.max()) < 0.01
    assert float(EnergyDistance()(*routine.draw((s, e)))) < 0.25 * before


def test_paired_match_learns_each_row_its_own_code():
    torch.manual_seed(0)
    target = torch.nn.Linear(3, 2, dtype=torch.float64).requires_grad_(requires_grad=False)
    program = Autoencoder(3, 2, prior=target)
    settings = AdversarialSettings(reconstruction_rate=0.05)
    routine = AdversarialInference(
        program.model, program.guide, match="paired", weight=100.0, settings=settings
    )
    x = torch.randn(200, 3, dtype=torch.float64)
    first = float(routine.step(x)["divergence"])
    last = [float(routine.step(x)["divergence"]) for _ in range(150)][-1]
    assert last < 0.01 * first
    assert routine.report().access == "paired"


def test_conditional_match_sees_pairs_that_the_aggregate_does_not():
    """Codes with the prior's law, each at another row: only a critic with context objects."""
    torch.manual_seed(0)
    target = torch.nn.Linear(1, 1, bias=False, dtype=torch.float64)
    torch.nn.init.ones_(target.weight).requires_grad_(requires_grad=False)
    program = Autoencoder(1, 1, prior=target)
    torch.nn.init.constant_(program.encoder.weight, -1.0)
    torch.nn.init.zeros_(program.encoder.bias)
    x = torch.randn(2000, 1, dtype=torch.float64)
    probe = ProbeSettings(hidden=(16,), num_steps=200, learning_rate=0.02)
    found = {}
    for match in ("aggregate", "conditional"):
        context = (lambda rows: rows) if match == "conditional" else None
        routine = AdversarialInference(
            program.model, program.guide, match=match, context=context, weight=0.0
        )
        routine.step(x[:64])
        prior, codes = routine.draw(x)
        assert prior.shape == codes.shape == (2000, 2 if context else 1)
        found[match] = routine.probe(x, settings=probe)
    assert not found["aggregate"].separates
    assert found["conditional"].separates
    assert found["conditional"].accuracy > 0.85
