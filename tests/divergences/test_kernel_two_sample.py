"""Energy distance and MMD: definitions in loops, closed forms, unbiasedness, bad input."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from helpers import assert_within_standard_errors, gradient_of, make_array
from scipy.spatial.distance import cdist, pdist
from scipy.stats import energy_distance

from bayesdiv.divergences._energy import EnergyDistance
from bayesdiv.divergences._mmd import MMD, median_distance

KERNELS = {
    "gaussian": lambda r, h, alpha: np.exp(-(r**2) / (2 * h**2)),
    "laplace": lambda r, h, alpha: np.exp(-r / h),
    "rational_quadratic": lambda r, h, alpha: (1 + r**2 / (2 * alpha * h**2)) ** -alpha,
}
MEMBERS = [
    EnergyDistance(),
    EnergyDistance(exponent=1.5, root=True),
    EnergyDistance(unbiased=True),
    MMD(),
    MMD(kernel="laplace", bandwidth=0.7, multipliers=(0.5, 2.0)),
    MMD(kernel="rational_quadratic", bandwidth=1.3, mixture=0.5, root=True),
    MMD(bandwidth=1.0, unbiased=True),
]


def clouds(seed=0, n=9, m=6, dim=2):
    generator = np.random.default_rng(seed)
    x, y = generator.normal(size=(n, dim)), 1.0 + generator.normal(size=(m, dim))
    return x, y, generator.dirichlet(np.ones(n)), generator.dirichlet(np.ones(m))


def pair_means(matrix_of, x, y, a, b, *, unbiased):
    """Weighted means of a function of distances over the three kinds of pairs."""

    def within(sample, weights):
        matrix = matrix_of(cdist(sample, sample))
        pairs = weights[:, None] * weights
        if unbiased:
            np.fill_diagonal(pairs, 0.0)
        return (pairs * matrix).sum() / pairs.sum()

    return a @ matrix_of(cdist(x, y)) @ b, within(x, a), within(y, b)


@pytest.mark.parametrize("unbiased", [False, True])
@pytest.mark.parametrize("exponent", [0.5, 1.0, 1.5])
@pytest.mark.parametrize("weighted", [False, True])
def test_energy_distance_by_its_definition(backend, weighted, exponent, unbiased):
    x, y, a, b = clouds()
    weights = {}
    if weighted:
        weights = {"x_weights": make_array(backend, a), "y_weights": make_array(backend, b)}
    else:
        a, b = np.full(9, 1 / 9), np.full(6, 1 / 6)
    cross, within_x, within_y = pair_means(lambda r: r**exponent, x, y, a, b, unbiased=unbiased)
    value = EnergyDistance(exponent=exponent, unbiased=unbiased)(
        make_array(backend, x), make_array(backend, y), **weights
    )
    assert float(value) == pytest.approx(2 * cross - within_x - within_y, abs=1e-13)


def test_energy_distance_on_the_line_is_the_library_value(backend):
    x, y, _, _ = clouds(dim=1)
    value = EnergyDistance(root=True)(make_array(backend, x), make_array(backend, y))
    assert float(value) == pytest.approx(energy_distance(x[:, 0], y[:, 0]), rel=1e-12)


@pytest.mark.parametrize("kernel", list(KERNELS))
@pytest.mark.parametrize("unbiased", [False, True])
@pytest.mark.parametrize("weighted", [False, True])
def test_mmd_by_its_definition(backend, weighted, unbiased, kernel):
    x, y, a, b = clouds()
    weights = {}
    if weighted:
        weights = {"x_weights": make_array(backend, a), "y_weights": make_array(backend, b)}
    else:
        a, b = np.full(9, 1 / 9), np.full(6, 1 / 6)

    def mean_kernel(r):
        return np.mean([KERNELS[kernel](r, 0.8 * scale, 0.6) for scale in (0.5, 1.0, 3.0)], axis=0)

    cross, within_x, within_y = pair_means(mean_kernel, x, y, a, b, unbiased=unbiased)
    divergence = MMD(
        kernel=kernel,
        bandwidth=0.8,
        multipliers=(0.5, 1.0, 3.0),
        mixture=0.6,
        unbiased=unbiased,
    )
    value = divergence(make_array(backend, x), make_array(backend, y), **weights)
    assert float(value) == pytest.approx(within_x + within_y - 2 * cross, abs=1e-13)


def test_mmd_between_gaussians_in_closed_form():
    """E k over N(0, s² I): (h² / (h² + s²))^(d/2), with exp(−|m|² / (2 (h² + s²))) for a shift."""
    generator = torch.Generator().manual_seed(0)
    dim, shift = 3, 1.0
    divergence = MMD(bandwidth=1.0, unbiased=True)
    draws = []
    for _ in range(200):
        x = torch.randn(60, dim, generator=generator, dtype=torch.float64)
        y = torch.randn(50, dim, generator=generator, dtype=torch.float64)
        y[:, 0] += shift
        draws.append(float(divergence(x, y)))
    width = (1.0 / 3.0) ** (dim / 2)
    assert_within_standard_errors(draws, 2 * width * (1 - math.exp(-(shift**2) / 6)))


def test_unbiased_energy_distance_of_one_law_averages_to_zero():
    generator = torch.Generator().manual_seed(1)
    divergence = EnergyDistance(unbiased=True)
    draws = [
        float(divergence(*torch.randn(2, 30, 2, generator=generator, dtype=torch.float64)))
        for _ in range(300)
    ]
    assert_within_standard_errors(draws, 0.0)
    assert min(draws) < 0


@pytest.mark.parametrize("sizes", [(9, 6), (9, 7), (2, 1)])
def test_median_bandwidth_is_the_median_over_distinct_pairs(backend, sizes):
    x, y, _, _ = clouds(n=sizes[0], m=sizes[1])
    expected = np.median(pdist(np.concatenate([x, y])))
    samples = make_array(backend, x), make_array(backend, y)
    assert float(median_distance(*samples)) == pytest.approx(expected, rel=1e-13)
    named = MMD(bandwidth=float(expected))(*samples)
    assert float(MMD()(*samples)) == pytest.approx(float(named), rel=1e-12)


def test_median_bandwidth_is_a_constant_of_differentiation(backend):
    x, y, _, _ = clouds()
    width = float(median_distance(make_array(backend, x), make_array(backend, y)))
    found = gradient_of(backend, MMD(), x, y)
    expected = gradient_of(backend, MMD(bandwidth=width), x, y)
    np.testing.assert_allclose(found[0], expected[0], atol=1e-15)


def test_coinciding_points_have_a_bandwidth(backend):
    point = make_array(backend, np.ones((4, 2)))
    assert float(median_distance(point, point)) == 1.0
    assert float(MMD()(point, point)) == 0.0


def test_large_samples_are_thinned_for_the_median():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2000, 2, generator=generator, dtype=torch.float64)
    y = torch.randn(1999, 2, generator=generator, dtype=torch.float64)
    expected = 2.0 * math.sqrt(math.log(2.0))
    assert float(median_distance(x, y)) == pytest.approx(expected, rel=0.1)


@pytest.mark.parametrize("divergence", MEMBERS, ids=repr)
@pytest.mark.parametrize("weighted", [False, True])
def test_gradient_by_finite_differences(backend, divergence, weighted):
    x, y, a, b = clouds()
    weights = {}
    if weighted:
        weights = {"x_weights": make_array(backend, a), "y_weights": make_array(backend, b)}
    if divergence == MMD():
        divergence = MMD(bandwidth=1.1)

    def value(x, y):
        return divergence(x, y, **weights)

    found = gradient_of(backend, value, x, y)
    for position, index in [(0, (0, 0)), (1, (4, 1))]:
        ends = []
        for sign in (1, -1):
            samples = [x.copy(), y.copy()]
            samples[position][index] += sign * 1e-6
            ends.append(float(value(*(make_array(backend, s) for s in samples))))
        assert found[position][index] == pytest.approx((ends[0] - ends[1]) / 2e-6, abs=2e-9)


@pytest.mark.parametrize("divergence", MEMBERS, ids=repr)
def test_equal_samples_have_no_distance_and_a_finite_gradient(backend, divergence):
    x, _, _, _ = clouds()
    if not divergence.unbiased:
        value = divergence(make_array(backend, x), make_array(backend, x))
        assert float(value) == pytest.approx(0.0, abs=3e-8 if divergence.root else 1e-14)
    for gradient in gradient_of(backend, divergence, x, x):
        assert np.all(np.isfinite(gradient))


@pytest.mark.parametrize("divergence", MEMBERS, ids=repr)
@pytest.mark.parametrize(("dtype", "error"), [("float32", 1e-6), ("float64", 1e-12)])
def test_libraries_agree(divergence, dtype, error):
    x, y, _, _ = clouds(n=30, m=20, dim=4)
    torch_value, jax_value = (
        float(divergence(make_array(name, x, dtype), make_array(name, y, dtype)))
        for name in ("torch", "jax")
    )
    assert torch_value == pytest.approx(jax_value, abs=error)


def test_jax_transformations():
    x, y, a, b = (jnp.asarray(values) for values in clouds())
    for divergence in MEMBERS:
        eager = float(divergence(x, y, x_weights=a, y_weights=b))
        compiled = jax.jit(divergence)(x, y, x_weights=a, y_weights=b)
        assert float(compiled) == pytest.approx(eager, abs=1e-13)
    widths = jnp.asarray([0.5, 2.0])
    each = jax.vmap(lambda h: MMD(bandwidth=h)(x, y))(widths)
    np.testing.assert_allclose(each, [float(MMD(bandwidth=h)(x, y)) for h in (0.5, 2.0)])


@pytest.mark.parametrize(
    ("member", "settings", "message"),
    [
        (EnergyDistance, {"exponent": 2.0}, "exponent must be below 2, got 2.0; at 2 only means"),
        (EnergyDistance, {"exponent": 0.0}, "exponent must be positive and finite, got 0.0"),
        (EnergyDistance, {"unbiased": True, "root": True}, "root must be False with unbiased=True"),
        (MMD, {"kernel": "cosine"}, "kernel must be one of 'gaussian', 'laplace', 'rational_quad"),
        (MMD, {"bandwidth": -1.0}, "bandwidth must be positive and finite, got -1.0"),
        (MMD, {"multipliers": ()}, r"multipliers must be a tuple of numbers, got \(\)"),
        (MMD, {"multipliers": [1.0]}, r"multipliers must be a tuple of numbers, got \[1.0\]"),
        (MMD, {"multipliers": (1.0, 0.0)}, "multipliers must be positive and finite, got 0.0"),
        (MMD, {"mixture": math.inf}, "mixture must be positive and finite, got inf"),
        (MMD, {"unbiased": True, "root": True}, "root must be False with unbiased=True"),
    ],
)
def test_settings_outside_their_domain(member, settings, message):
    with pytest.raises(ValueError, match=message):
        member(**settings)


@pytest.mark.parametrize("divergence", [EnergyDistance(unbiased=True), MMD(unbiased=True)])
def test_one_point_has_no_pairs(backend, divergence):
    x, y, _, _ = (make_array(backend, values) for values in clouds(n=1))
    with pytest.raises(ValueError, match="unbiased=True needs at least 2 points in each sample"):
        divergence(x, y)
