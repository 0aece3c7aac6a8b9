"""Whether each divergence covers two modes or collapses onto one, at its exact threshold.

Target on two bits: p(00) = p(11) = (1 − ε)/2, p(01) = p(10) = ε/2. Approximation: independent bits
with P(1) = (1 + m)/2 each. m = 0 covers both modes, m → 1 has collapsed. With t = q/p and the
generator written in it, m = 0 is a minimum while 2 A g''(A) + g'(A) ≥ g'(B), A = 1/(2(1 − ε)),
B = 1/(2ε). Own derivation of the f-DPG dossier, §7; swapping directions fails it at once.
"""

import math

import numpy as np
import pytest
import torch

from bayesdiv.divergences import Alpha, get_divergence

M = np.linspace(0.0, 0.999, 1000)


def target(epsilon):
    return torch.tensor([1.0 - epsilon, epsilon, epsilon, 1.0 - epsilon], dtype=torch.float64) / 2.0


def profile(member, epsilon):
    """D(p‖q_m) on the grid of m."""
    p = target(epsilon)
    up, down = (1.0 + M) / 2.0, (1.0 - M) / 2.0
    q = np.stack([down * down, down * up, up * down, up * up], axis=-1)
    return member.between_logits(p.log(), torch.tensor(np.log(q))).numpy()


def curvature_at_zero(member, epsilon):
    """Second difference of D in m at 0, where D is even."""
    p = target(epsilon)
    step = 1e-3
    up, down = (1.0 + step) / 2.0, (1.0 - step) / 2.0
    q = np.asarray([[0.25] * 4, [down * down, down * up, up * down, up * up]])
    centre, beside = member.between_logits(p.log(), torch.tensor(np.log(q)))
    return 2.0 * float(beside - centre) / step**2


NEVER = [
    get_divergence("forward_kl"),
    get_divergence("jensen_shannon"),
    get_divergence("pearson_chi2"),
    get_divergence("squared_hellinger"),
    # Their order counts powers of q: α of theirs is our 1 − α.
    Alpha(0.5),
    Alpha(0.75),
    Alpha(2.0),
]
THRESHOLDS = [
    (get_divergence("reverse_kl"), 1.0 / (1.0 + math.exp(2.0))),
    (Alpha(1.0 - 0.6), 0.017574),
    (Alpha(1.0 - 0.75), 0.058824),
    (Alpha(1.0 - 1.5), 0.2),
    (Alpha(1.0 - 2.0), 0.25),
    (get_divergence("neyman_chi2"), 0.25),
    (Alpha(1.0 - 3.0), 0.309017),
    (get_divergence("jeffreys"), 0.017981),
]


@pytest.mark.parametrize("member", NEVER, ids=repr)
def test_mass_covering_divergences_never_collapse(member):
    for epsilon in (0.24, 0.115, 0.05, 0.01, 0.001):
        assert np.argmin(profile(member, epsilon)) == 0
        assert curvature_at_zero(member, epsilon) > 0.0


@pytest.mark.parametrize(("member", "threshold"), THRESHOLDS, ids=repr)
def test_mode_seeking_divergences_collapse_below_their_threshold(member, threshold):
    assert curvature_at_zero(member, 1.01 * threshold) > 0.0
    assert curvature_at_zero(member, 0.99 * threshold) < 0.0


def test_alpha_thresholds_are_those_of_the_formula():
    for order in (0.6, 0.75, 1.5, 2.0, 3.0):
        odds = (2.0 * order - 1.0) ** (1.0 / (order - 1.0))
        threshold = 1.0 / (1.0 + odds)
        low, high = 0.5 * threshold, min(0.49, 2.0 * threshold)
        for _ in range(40):
            middle = 0.5 * (low + high)
            if curvature_at_zero(Alpha(1.0 - order), middle) < 0.0:
                low = middle
            else:
                high = middle
        assert low == pytest.approx(threshold, rel=1e-4)


@pytest.mark.parametrize("epsilon", [0.115, 0.05, 0.01])
def test_reverse_kl_collapses_to_the_mean_field_magnetisation(epsilon):
    m = 0.9
    for _ in range(2000):
        m = math.tanh(0.5 * m * math.log((1.0 - epsilon) / epsilon))
    found = M[np.argmin(profile(get_divergence("reverse_kl"), epsilon))]
    assert found == pytest.approx(m, abs=1.5e-3)


@pytest.mark.parametrize("epsilon", [0.24, 0.15, 0.05, 0.01])
def test_total_variation_splits_the_difference(epsilon):
    found = M[np.argmin(profile(get_divergence("total_variation"), epsilon))]
    assert found == pytest.approx(math.sqrt(2.0 * (1.0 - epsilon)) - 1.0, abs=1.5e-3)


@pytest.mark.parametrize(
    ("member", "minimisers"),
    [
        (get_divergence("reverse_kl"), {0.24: 0, 0.15: 0, 0.115: 0.243, 0.05: 0.848, 0.01: 0.978}),
        (
            get_divergence("neyman_chi2"),
            {0.24: 0.200, 0.15: 0.632, 0.115: 0.735, 0.05: 0.894, 0.01: 0.980},
        ),
        (get_divergence("jeffreys"), {0.24: 0, 0.15: 0, 0.115: 0, 0.05: 0, 0.01: 0.431}),
        (Alpha(0.25), {0.24: 0, 0.15: 0, 0.115: 0, 0.05: 0.530, 0.01: 0.968}),
        (Alpha(-0.5), {0.24: 0, 0.15: 0.542, 0.115: 0.693, 0.05: 0.889, 0.01: 0.980}),
        (Alpha(-2.0), {0.24: 0.420, 0.15: 0.671, 0.115: 0.754, 0.05: 0.897, 0.01: 0.980}),
    ],
    ids=repr,
)
def test_global_minimiser(member, minimisers):
    for epsilon, expected in minimisers.items():
        assert M[np.argmin(profile(member, epsilon))] == pytest.approx(expected, abs=1.6e-3)
