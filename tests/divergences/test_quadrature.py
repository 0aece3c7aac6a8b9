"""Value and both gradients of every f-divergence between 1-D Gaussians, by quadrature."""

import math

import numpy as np
import pytest
import torch
from divergence_cases import CASES, SMOOTH

# p = N(0.3, 1), q = N(m, s) with s² < 2 and 2 s² > 1: every member is finite on both sides.
Z = torch.linspace(-30.0, 30.0, 60_001, dtype=torch.float64)
STEP = float(Z[1] - Z[0])
TARGET = torch.distributions.Normal(
    torch.tensor(0.3, dtype=torch.float64), torch.tensor(1.0, dtype=torch.float64)
)
MEAN, SCALE = 1.1, 1.0 / 1.2
every = pytest.mark.parametrize("member", CASES.values(), ids=CASES.keys())
smooth = pytest.mark.parametrize("member", SMOOTH.values(), ids=SMOOTH.keys())


def integral(values):
    return values.sum() * STEP


def log_ratio_and_density(mean, scale):
    q = torch.distributions.Normal(mean, scale)
    log_q = q.log_prob(Z)
    return TARGET.log_prob(Z) - log_q, log_q


def parameters():
    return [torch.tensor(x, dtype=torch.float64, requires_grad=True) for x in (MEAN, SCALE)]


def divergence_by_quadrature(member, mean, scale):
    log_ratio, log_q = log_ratio_and_density(mean, scale)
    # Far out both densities are below any rounding of the sum, and u overflows first.
    kept = (log_q > -600.0) & (TARGET.log_prob(Z) > -600.0)
    value = member.generator(torch.where(kept, log_ratio, 0.0))
    return integral(torch.where(kept, log_q.exp() * value, 0.0))


@every
def test_score_gradient_is_the_derivative_of_the_value(member):
    mean, scale = parameters()
    exact = torch.autograd.grad(divergence_by_quadrature(member, mean, scale), [mean, scale])
    log_ratio, log_q = log_ratio_and_density(mean, scale)
    weight = (log_q.exp() * member.pseudo_reward(log_ratio)).detach()
    kept = torch.where(weight == 0.0, 0.0, weight)
    score = torch.autograd.grad(-integral(kept * log_q), [mean, scale])
    # A kink of f leaves the trapezoid rule an error of the order of the step.
    tolerance = 1e-8 if member.has_path_gradient else 2e-3
    for found, expected in zip(score, exact, strict=True):
        assert abs(float(found - expected)) < tolerance * max(1.0, abs(float(expected)))


@smooth
def test_path_gradient_is_the_derivative_of_the_value(member):
    mean, scale = parameters()
    exact = torch.autograd.grad(divergence_by_quadrature(member, mean, scale), [mean, scale])
    with torch.no_grad():
        log_ratio, log_q = log_ratio_and_density(mean, scale)
        weight = torch.exp(log_q + member.log_path_weight(log_ratio))
        noise = (Z - MEAN) / SCALE
        slope_in_z = -(Z - 0.3) + noise / SCALE
        found = (
            -integral(weight * slope_in_z),
            -integral(weight * slope_in_z * noise),
        )
    for value, expected in zip(found, exact, strict=True):
        assert abs(float(value - expected)) < 1e-8 * max(1.0, abs(float(expected)))


@every
def test_reversed_divergence_swaps_the_gaussians(member):
    mean, scale = (torch.tensor(x, dtype=torch.float64) for x in (MEAN, SCALE))
    log_ratio, log_q = log_ratio_and_density(mean, scale)
    kept = (log_q > -600.0) & (TARGET.log_prob(Z) > -600.0)
    safe = torch.where(kept, log_ratio, 0.0)
    swapped = integral(torch.where(kept, TARGET.log_prob(Z).exp() * member.generator(-safe), 0.0))
    found = divergence_by_quadrature(member.reversed(), mean, scale)
    assert float(found) == pytest.approx(float(swapped), rel=1e-9)


@smooth
def test_divergence_is_half_its_curvature_times_chi2_near_equality(member):
    shift = 1e-3
    mean = torch.tensor(0.3 + shift, dtype=torch.float64)
    found = divergence_by_quadrature(member, mean, torch.tensor(1.0, dtype=torch.float64))
    chi2 = math.expm1(shift**2)
    assert float(found) == pytest.approx(0.5 * member.second_derivative_at_one * chi2, rel=2e-3)


def test_quadrature_itself_is_exact():
    """KL of Gaussians has a closed form, which the grid reproduces."""
    mean, scale = (torch.tensor(x, dtype=torch.float64) for x in (MEAN, SCALE))
    exact = math.log(SCALE) + (1.0 + (MEAN - 0.3) ** 2) / (2.0 * SCALE**2) - 0.5
    found = divergence_by_quadrature(CASES["forward_kl"], mean, scale)
    assert float(found) == pytest.approx(exact, rel=1e-12)
    assert np.isfinite(float(found))
