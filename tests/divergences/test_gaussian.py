"""Closed forms between Gaussians: golden values, quadrature, both parameterisations, gradients."""

import math

import numpy as np
import pytest
import torch
from helpers import gradient_of, make_array, to_numpy

from bayesdiv._array import array_namespace
from bayesdiv.divergences import (
    Alpha,
    ForwardKL,
    Reversed,
    SquaredHellinger,
    between_gaussians,
    gaussian_wasserstein2,
    get_divergence,
)

CLOSED = {
    "reverse_kl": get_divergence("reverse_kl"),
    "forward_kl": get_divergence("forward_kl"),
    "jeffreys": get_divergence("jeffreys"),
    "squared_hellinger": get_divergence("squared_hellinger"),
    "pearson_chi2": get_divergence("pearson_chi2"),
    "neyman_chi2": get_divergence("neyman_chi2"),
    "alpha(-0.4)": Alpha(-0.4),
    "alpha(0.3)": Alpha(0.3),
    "alpha(1.7)": Alpha(1.7),
    "reversed": Reversed(Alpha(0.3)),
    "sum": 0.3 * ForwardKL() + 2.0 * SquaredHellinger(),
}
closed = pytest.mark.parametrize("member", CLOSED.values(), ids=CLOSED.keys())


def triangular(generator, size):
    """A well-conditioned Cholesky factor."""
    return np.tril(0.3 * generator.normal(size=(size, size)), -1) + np.diag(
        np.exp(0.1 * generator.normal(size=size))
    )


@pytest.mark.parametrize(
    ("divergence", "expected"),
    [
        ("forward_kl", 0.4431471806),
        ("reverse_kl", 1.3068528194),
        ("jeffreys", 1.75),
        ("squared_hellinger", 0.2983890757),
        ("pearson_chi2", 0.7440263415),
        # Rényi's R of order a is log(1 + a(a − 1) D)/(a − 1).
        (Alpha(0.5), math.expm1(-0.5 * 0.3231435513) / (0.5 * -0.5)),
        (Alpha(2.0), math.expm1(0.5561964294) / 2.0),
        # 2 s_p² > s_q² fails, so that q²/p has no integral.
        ("neyman_chi2", math.inf),
    ],
)
def test_golden_values(backend, divergence, expected):
    """p = N(0, 1), q = N(1, 2²), of the machine-translation dossier."""
    zero, one, two = (make_array(backend, [x]) for x in (0.0, 1.0, 2.0))
    found = between_gaussians(divergence, zero, one, p_scale=one, q_scale=two)
    assert float(found) == pytest.approx(expected, rel=1e-9)
    full = between_gaussians(divergence, zero, one, p_scale_tril=one[None], q_scale_tril=two[None])
    assert float(full) == pytest.approx(expected, rel=1e-9)


@closed
def test_quadrature_in_one_dimension(backend, member):
    z = np.linspace(-25.0, 25.0, 50_001)
    p_scale, q_scale, shift = 1.0, 1.15, 0.7
    log_p = -0.5 * (z / p_scale) ** 2 - math.log(p_scale * math.sqrt(2.0 * math.pi))
    log_q = -0.5 * ((z - shift) / q_scale) ** 2 - math.log(q_scale * math.sqrt(2.0 * math.pi))
    terms = np.exp(log_q) * member.generator(torch.tensor(log_p - log_q)).numpy()
    found = between_gaussians(
        member,
        *(make_array(backend, [x]) for x in (0.0, shift)),
        p_scale=make_array(backend, [p_scale]),
        q_scale=make_array(backend, [q_scale]),
    )
    assert float(found) == pytest.approx(np.sum(terms) * (z[1] - z[0]), rel=1e-9)


@closed
def test_independent_coordinates_agree_with_full_covariances(backend, member):
    generator = np.random.default_rng(0)
    p_mean, q_mean = 0.3 * generator.normal(size=(2, 4, 3))
    p_scale, q_scale = np.exp(0.15 * generator.normal(size=(2, 4, 3)))
    means = [make_array(backend, x) for x in (p_mean, q_mean)]
    vectors = [make_array(backend, x) for x in (p_scale, q_scale)]
    matrices = [make_array(backend, x[..., None] * np.eye(3)) for x in (p_scale, q_scale)]
    expected = between_gaussians(member, *means, p_scale=vectors[0], q_scale=vectors[1])
    assert tuple(expected.shape) == (4,)
    for given in (
        {"p_scale_tril": matrices[0], "q_scale_tril": matrices[1]},
        {"p_scale": vectors[0], "q_scale_tril": matrices[1]},
        {"p_scale_tril": matrices[0], "q_scale": vectors[1]},
    ):
        found = between_gaussians(member, *means, **given)
        np.testing.assert_allclose(to_numpy(found), to_numpy(expected), rtol=1e-10)


@closed
def test_full_covariances_against_draws(member):
    """E_q f(p/q) over 2·10⁵ draws, to five standard errors.

    The covariances are close enough for E_q f² to exist, whichever tail f grows in.
    """
    generator = np.random.default_rng(1)
    mean = torch.tensor(0.2 * generator.normal(size=3))
    p_tril = torch.tensor(triangular(generator, 3))
    q_tril = p_tril + torch.tensor(np.tril(0.05 * generator.normal(size=(3, 3))))
    p = torch.distributions.MultivariateNormal(torch.zeros(3).double(), scale_tril=p_tril)
    q = torch.distributions.MultivariateNormal(mean, scale_tril=q_tril)
    draws = q.sample((200_000,))
    terms = member.generator(p.log_prob(draws) - q.log_prob(draws))
    exact = between_gaussians(member, p.loc, q.loc, p_scale_tril=p_tril, q_scale_tril=q_tril)
    assert torch.isfinite(exact)
    error = abs(float(terms.mean() - exact))
    assert error < 5.0 * float(terms.std()) / math.sqrt(len(terms))


@pytest.mark.parametrize("direction", ["forward_kl", "reverse_kl"])
def test_equals_the_kl_divergence_of_torch(direction):
    generator = np.random.default_rng(2)
    means = torch.tensor(generator.normal(size=(2, 5, 4)))
    trils = [torch.tensor(np.stack([triangular(generator, 4) for _ in range(5)])) for _ in range(2)]
    p, q = (
        torch.distributions.MultivariateNormal(mean, scale_tril=tril)
        for mean, tril in zip(means, trils, strict=True)
    )
    pair = (p, q) if direction == "forward_kl" else (q, p)
    found = between_gaussians(direction, *means, p_scale_tril=trils[0], q_scale_tril=trils[1])
    torch.testing.assert_close(
        found, torch.distributions.kl_divergence(*pair), rtol=1e-11, atol=1e-12
    )


@closed
def test_gradients_match_finite_differences(backend, member):
    start = [np.asarray(x) for x in ([0.1, -0.2], [0.3, 0.1], [1.0, 0.9], [1.1, 1.05])]

    def value(p_mean, q_mean, p_scale, q_scale):
        return between_gaussians(member, p_mean, q_mean, p_scale=p_scale, q_scale=q_scale)

    found = gradient_of(backend, value, *start)
    step = 1e-6
    for which, slope in enumerate(found):
        for k in range(2):
            ends = []
            for sign in (1.0, -1.0):
                moved = [x.copy() for x in start]
                moved[which][k] += sign * step
                ends.append(float(value(*(make_array(backend, x) for x in moved))))
            assert slope[k] == pytest.approx((ends[0] - ends[1]) / (2 * step), rel=1e-6, abs=1e-8)


@pytest.mark.parametrize("member", [Alpha(0.4), Alpha(1.5)], ids=repr)
def test_full_gradient_equals_that_of_independent_coordinates(backend, member):
    start = [np.asarray(x) for x in ([0.1, -0.2], [0.3, 0.1], [1.0, 0.9], [1.1, 1.05])]

    def independent(p_mean, q_mean, p_scale, q_scale):
        return between_gaussians(member, p_mean, q_mean, p_scale=p_scale, q_scale=q_scale)

    def full(p_mean, q_mean, p_scale, q_scale):
        eye = make_array(backend, np.eye(2))
        return between_gaussians(
            member,
            p_mean,
            q_mean,
            p_scale_tril=p_scale[:, None] * eye,
            q_scale_tril=q_scale[:, None] * eye,
        )

    for found, expected in zip(
        gradient_of(backend, full, *start), gradient_of(backend, independent, *start), strict=True
    ):
        np.testing.assert_allclose(found, expected, rtol=1e-10)


@pytest.mark.parametrize("member", [Alpha(3.0), get_divergence("pearson_chi2")], ids=repr)
def test_missing_integral_is_infinite_without_nan_in_gradients(backend, member):
    """Row 0: s_p too wide for the order; row 1: fine."""
    start = [np.zeros((2, 2)), np.zeros((2, 2)), np.asarray([[3.0, 1.0], [1.0, 1.0]])]
    start.append(np.asarray([[1.0, 1.0], [1.0, 1.1]]))

    def values(p_mean, q_mean, p_scale, q_scale, *, full):
        if not full:
            return between_gaussians(member, p_mean, q_mean, p_scale=p_scale, q_scale=q_scale)
        eye = make_array(backend, np.eye(2))
        return between_gaussians(
            member,
            p_mean,
            q_mean,
            p_scale_tril=p_scale[..., None] * eye,
            q_scale_tril=q_scale[..., None] * eye,
        )

    for full in (False, True):
        found = to_numpy(values(*(make_array(backend, x) for x in start), full=full))
        assert found[0] == math.inf
        assert np.isfinite(found[1])

        def total(*arrays, full=full):
            xp = array_namespace(arrays[0])
            return xp.sum(values(*arrays, full=full))

        for slope in gradient_of(backend, total, *start):
            assert np.all(np.isfinite(slope))


def test_equal_gaussians_are_at_distance_zero_exactly(backend):
    mean, scale = make_array(backend, [0.3, -2.0]), make_array(backend, [1e-3, 1e3])
    for member in CLOSED.values():
        found = between_gaussians(member, mean, mean, p_scale=scale, q_scale=scale)
        assert abs(float(found)) < 1e-14


def test_no_digits_are_lost_near_equality(backend):
    """A change of scale by a relative 10⁻⁶ costs 10⁻¹² nats; cancellation would leave none."""
    zero = make_array(backend, [0.0])
    scale, wider = make_array(backend, [1.0]), make_array(backend, [1.0 + 1e-6])
    found = between_gaussians("forward_kl", zero, zero, p_scale=scale, q_scale=wider)
    assert float(found) == pytest.approx(1e-12, rel=1e-3)


@pytest.mark.parametrize(
    "name",
    ["jensen_shannon", "total_variation", "softened_reverse_kl", "generalized_jensen_shannon"],
)
def test_divergences_without_a_closed_form_name_the_alternative(name):
    x = torch.ones(2)
    with pytest.raises(NotImplementedError, match="no closed form between Gaussians.*samples of q"):
        between_gaussians(name, x, x, p_scale=x, q_scale=x)
    with pytest.raises(NotImplementedError, match="no closed form"):
        between_gaussians(get_divergence(name) + ForwardKL(), x, x, p_scale=x, q_scale=x)


def test_wrong_shapes_and_scales_are_named():
    x, matrix = torch.ones(2), torch.eye(2)
    with pytest.raises(ValueError, match="exactly one of p_scale.*p_scale_tril.*got neither"):
        between_gaussians("forward_kl", x, x, q_scale=x)
    with pytest.raises(ValueError, match="exactly one of q_scale.*q_scale_tril.*got both"):
        between_gaussians("forward_kl", x, x, p_scale=x, q_scale=x, q_scale_tril=matrix)
    with pytest.raises(ValueError, match=r"p_scale_tril must end in \(dim, dim\), got \(2,\) and"):
        between_gaussians("forward_kl", x, x, p_scale_tril=x, q_scale=x)
    with pytest.raises(ValueError, match=r"q_scale must end in \(dim,\), got \(2,\) and \(3,\)"):
        between_gaussians("forward_kl", x, x, p_scale=x, q_scale=torch.ones(3))
    with pytest.raises(ValueError, match=r"same last axis, got shapes \(2,\) and \(3,\)"):
        between_gaussians("forward_kl", x, torch.ones(3), p_scale=x, q_scale=torch.ones(3))
    with pytest.raises(ValueError, match=r"must have shape \(\.\.\., dim\)"):
        between_gaussians("forward_kl", torch.tensor(0.0), x, p_scale=x, q_scale=x)


def test_wasserstein_golden_value(backend):
    zero, one, two = (make_array(backend, [x]) for x in (0.0, 1.0, 2.0))
    found = gaussian_wasserstein2(zero, one, p_scale=one, q_scale=two, squared=True)
    assert float(found) == pytest.approx(2.0, rel=1e-12)
    root = gaussian_wasserstein2(zero, one, p_scale=one, q_scale=two)
    assert float(root) == pytest.approx(math.sqrt(2.0), rel=1e-12)


def test_wasserstein_of_full_covariances_is_the_bures_distance(backend):
    generator = np.random.default_rng(3)
    p_mean, q_mean = generator.normal(size=(2, 4))
    p_tril, q_tril = triangular(generator, 4), triangular(generator, 4)

    def root(matrix):
        values, vectors = np.linalg.eigh(matrix)
        return (vectors * np.sqrt(values)) @ vectors.T

    p_cov, q_cov = p_tril @ p_tril.T, q_tril @ q_tril.T
    half = root(p_cov)
    expected = np.sum((p_mean - q_mean) ** 2) + np.trace(
        p_cov + q_cov - 2.0 * root(half @ q_cov @ half)
    )
    found = gaussian_wasserstein2(
        *(make_array(backend, x) for x in (p_mean, q_mean)),
        p_scale_tril=make_array(backend, p_tril),
        q_scale_tril=make_array(backend, q_tril),
        squared=True,
    )
    assert float(found) == pytest.approx(expected, rel=1e-12)


def test_wasserstein_gradient_is_a_number_at_equal_covariances(backend):
    tril = triangular(np.random.default_rng(4), 3)

    def value(q_mean, q_tril):
        zero = make_array(backend, np.zeros(3))
        return gaussian_wasserstein2(
            zero, q_mean, p_scale_tril=make_array(backend, tril), q_scale_tril=q_tril, squared=True
        )

    mean_slope, tril_slope = gradient_of(backend, value, np.asarray([1.0, 0.0, 0.0]), tril)
    np.testing.assert_allclose(mean_slope, [2.0, 0.0, 0.0], atol=1e-12)
    np.testing.assert_allclose(tril_slope, np.zeros((3, 3)), atol=1e-12)
