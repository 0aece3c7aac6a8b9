"""Laws that make three functions of log u one divergence, in float64 on both backends."""

import math

import jax
import numpy as np
import pytest
import torch
from divergence_cases import CASES, NAMED, ORDERS, SMOOTH
from helpers import gradient_of, make_array, to_numpy

from bayesdiv._array import array_namespace
from bayesdiv.divergences import Alpha, FDivergence, Reversed

GRID = np.concatenate([np.linspace(-6.0, 6.0, 49), [-1e-3, 1e-3]])
every = pytest.mark.parametrize("member", CASES.values(), ids=CASES.keys())
smooth = pytest.mark.parametrize("member", SMOOTH.values(), ids=SMOOTH.keys())


def values(backend, function, points=GRID):
    return to_numpy(function(make_array(backend, points)))


def slopes(backend, function, points=GRID):
    """Elementwise derivative of ``function``."""

    def total(x):
        xp = array_namespace(x)
        return xp.sum(function(x))

    return gradient_of(backend, total, points)[0]


@every
def test_generator_and_its_slope_vanish_at_one(backend, member):
    one = np.zeros(1)
    assert abs(values(backend, member.generator, one)[0]) < 1e-12
    assert abs(values(backend, member.derivative, one)[0]) < 1e-12
    assert abs(values(backend, member.pseudo_reward, one)[0]) < 1e-12


@every
def test_generator_is_positive_away_from_one(backend, member):
    found = values(backend, member.generator)
    assert np.all(found[np.abs(GRID) > 0.01] > 0.0)
    # Beside 1 f is quadratic, or linear at a kink: far above its rounding.
    assert np.all(found[-2:] > 1e-8)


@every
def test_slope_of_the_generator_is_u_times_the_derivative(backend, member):
    points = GRID[GRID != 0.0]
    found = slopes(backend, member.generator, points)
    expected = np.exp(points) * values(backend, member.derivative, points)
    np.testing.assert_allclose(found, expected, rtol=1e-9, atol=1e-12)


@every
def test_pseudo_reward_is_u_times_the_derivative_less_the_generator(backend, member):
    derivative = values(backend, member.derivative)
    expected = np.exp(GRID) * derivative - values(backend, member.generator)
    scale = 1.0 + np.exp(GRID) * np.abs(derivative)
    assert np.all(np.abs(values(backend, member.pseudo_reward) - expected) < 1e-12 * scale)


@smooth
def test_path_weight_is_the_slope_of_the_pseudo_reward(backend, member):
    found = slopes(backend, member.pseudo_reward)
    expected = values(backend, member.path_weight)
    np.testing.assert_allclose(found, expected, rtol=1e-9, atol=1e-12)
    assert np.all(expected > 0.0)


@smooth
def test_log_path_weight_is_its_logarithm(backend, member):
    expected = np.log(values(backend, member.path_weight))
    np.testing.assert_allclose(values(backend, member.log_path_weight), expected, atol=1e-9)


@every
def test_fenchel_young_is_an_equality_at_the_derivative(backend, member):
    points = GRID[GRID != 0.0]
    slope = values(backend, member.derivative, points)
    conjugate = values(backend, member.conjugate, slope)
    expected = values(backend, member.pseudo_reward, points)
    scale = 1.0 + np.exp(points) * (1.0 + np.abs(slope))
    assert np.all(np.abs(conjugate - expected) < 1e-9 * scale)


@every
def test_fenchel_young_is_an_inequality_elsewhere(backend, member):
    points = np.linspace(-3.0, 3.0, 13)
    t = np.linspace(-4.0, 4.0, 33)
    conjugate = values(backend, member.conjugate, t)
    gap = (
        values(backend, member.generator, points)[:, None]
        + conjugate[None, :]
        - np.exp(points)[:, None] * t[None, :]
    )
    assert np.all(gap > -1e-9)
    above = t > member.slope_at_infinity + 1e-9
    assert np.all(np.isinf(conjugate[above]))
    assert np.all(np.isfinite(conjugate[t < member.slope_at_infinity - 1e-9]))


@smooth
def test_slope_of_the_conjugate_is_u(backend, member):
    points = np.linspace(-3.0, 3.0, 13)
    t = values(backend, member.derivative, points)
    np.testing.assert_allclose(slopes(backend, member.conjugate, t), np.exp(points), rtol=1e-7)


@every
def test_reversal_swaps_p_and_q(backend, member):
    points = np.linspace(-5.0, 5.0, 41)
    # D(q‖p) as an expectation under q: u f(1/u).
    expected = np.exp(points) * values(backend, member.generator, -points)
    for found in (member.reversed(), Reversed(member)):
        np.testing.assert_allclose(
            values(backend, found.generator, points), expected, rtol=1e-8, atol=1e-11
        )
        assert found.value_at_zero == pytest.approx(member.slope_at_infinity)
        assert found.slope_at_infinity == pytest.approx(member.value_at_zero)
        assert found.has_path_gradient == member.has_path_gradient
        if member.tail_exponents is not None:
            low, high = member.tail_exponents
            assert found.tail_exponents == pytest.approx((1.0 - high, 1.0 - low))


@every
def test_reversing_twice_changes_nothing(backend, member):
    twice = member.reversed().reversed()
    for name in ("generator", "derivative", "pseudo_reward"):
        np.testing.assert_allclose(
            values(backend, getattr(twice, name)),
            values(backend, getattr(member, name)),
            rtol=1e-12,
            atol=1e-13,
        )


@every
def test_symmetrized_divergence_is_its_own_reversal(backend, member):
    symmetric = member.symmetrized()
    np.testing.assert_allclose(
        values(backend, symmetric.generator),
        np.exp(GRID) * values(backend, symmetric.generator, -GRID),
        rtol=1e-8,
        atol=1e-11,
    )


@every
def test_limits_are_those_of_the_generator(backend, member):
    low, high = values(backend, member.generator, [-math.inf, math.inf])
    if math.isinf(member.value_at_zero):
        assert low == math.inf
        assert values(backend, member.generator, [-60.0])[0] > 15.0
    else:
        assert low == pytest.approx(member.value_at_zero)
        assert values(backend, member.generator, [-60.0])[0] == pytest.approx(
            member.value_at_zero, rel=1e-6
        )
    assert high == math.inf
    ratio = values(backend, member.generator, [60.0])[0] * math.exp(-60.0)
    if math.isinf(member.slope_at_infinity):
        assert ratio > 15.0
    else:
        assert ratio == pytest.approx(member.slope_at_infinity, rel=1e-6)


@smooth
def test_second_derivative_at_one_is_the_path_weight_there(backend, member):
    assert member.second_derivative_at_one == pytest.approx(
        values(backend, member.path_weight, np.zeros(1))[0], rel=1e-6
    )


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@every
def test_extreme_ratios_give_numbers_and_finite_or_infinite_slopes(backend, member, dtype):
    points = [-math.inf, -1e4, -800.0, -100.0, -50.0, 50.0, 100.0, 800.0, 1e4, math.inf]
    names = ["generator", "derivative", "pseudo_reward"]
    if member.has_path_gradient:
        names += ["path_weight", "log_path_weight"]
    for name in names:
        function = getattr(member, name)
        assert not np.isnan(to_numpy(function(make_array(backend, points, dtype)))).any(), name
    slope = gradient_of(
        backend,
        lambda x: array_namespace(x).sum(member.generator(x)),
        points,
        dtype=dtype,
    )[0]
    assert not np.isnan(slope).any()


@pytest.mark.parametrize(
    ("member", "tail"),
    [
        (member, member.tail_exponents)
        for member in SMOOTH.values()
        if member.tail_exponents is not None
    ],
    ids=[name for name, member in SMOOTH.items() if member.tail_exponents is not None],
)
def test_tail_exponents_are_those_of_the_path_weight(backend, member, tail):
    for exponent, far in zip(tail, (-60.0, 60.0), strict=True):
        first, last = values(backend, member.log_path_weight, [far, 1.5 * far])
        assert (last - first) / (0.5 * far) == pytest.approx(exponent, abs=1e-6)


def test_mode_seeking_ranks_order_the_named_members():
    ranked = sorted(
        (name for name in NAMED if name != "total_variation"),
        key=lambda name: NAMED[name].mode_seeking_rank,
    )
    assert ranked == [
        "neyman_chi2",
        "softened_reverse_kl",
        "reverse_kl",
        "jensen_shannon",
        "squared_hellinger",
        "jeffreys",
        "forward_kl",
        "pearson_chi2",
    ]
    assert NAMED["total_variation"].mode_seeking_rank is None
    assert Alpha(0.5).mode_seeking_rank == NAMED["squared_hellinger"].mode_seeking_rank
    assert ORDERS["alpha(2.5)"].mode_seeking_rank > NAMED["pearson_chi2"].mode_seeking_rank


def test_total_variation_alone_has_no_path_gradient():
    assert [name for name, member in NAMED.items() if not member.has_path_gradient] == [
        "total_variation"
    ]
    with pytest.raises(NotImplementedError, match="gradient='score'"):
        NAMED["total_variation"].path_weight(torch.zeros(1))


@every
def test_normaliser_matters_unless_the_reward_only_shifts(backend, member):
    """Multiplying p by e changes score gradients unless the pseudo-reward moves by a constant."""
    shift = values(backend, member.pseudo_reward, GRID + 1.0) - values(
        backend, member.pseudo_reward, GRID
    )
    assert member.needs_normalizer == bool(np.ptp(shift) > 1e-9)


def test_base_class_asks_for_what_is_missing():
    empty = FDivergence()
    for name in ("value_at_zero", "slope_at_infinity", "second_derivative_at_one"):
        with pytest.raises(NotImplementedError):
            getattr(empty, name)
    for name in ("generator", "derivative", "log_path_weight"):
        with pytest.raises(NotImplementedError):
            getattr(empty, name)(torch.zeros(1))


@pytest.mark.parametrize("order", [1e-7, 1.0 - 1e-7, 1.0 + 1e-7])
def test_orders_near_the_limits_keep_their_digits(backend, order):
    limit = NAMED["reverse_kl"] if order < 0.5 else NAMED["forward_kl"]
    points = np.linspace(-5.0, 5.0, 21)
    np.testing.assert_allclose(
        values(backend, Alpha(order).generator, points),
        values(backend, limit.generator, points),
        rtol=1e-5,
    )


def test_traced_order_gives_the_same_numbers_from_one_compilation():
    traces = []

    @jax.jit
    def report(order, weight, x):
        traces.append(1)
        mixed = Alpha(order) + weight * NAMED["jensen_shannon"]
        return (
            mixed.generator(x),
            mixed.pseudo_reward(x),
            mixed.log_path_weight(x),
            Alpha(order).conjugate(0.1 * x),
            mixed.reversed().generator(x),
            mixed.value_at_zero,
            mixed.slope_at_infinity,
        )

    x = jax.numpy.linspace(-3.0, 3.0, 7)
    for order, weight in ((-0.5, 0.1), (0.3, 2.0), (2.5, 0.7)):
        mixed = Alpha(order) + weight * NAMED["jensen_shannon"]
        expected = (
            mixed.generator(x),
            mixed.pseudo_reward(x),
            mixed.log_path_weight(x),
            Alpha(order).conjugate(0.1 * x),
            mixed.reversed().generator(x),
            mixed.value_at_zero,
            mixed.slope_at_infinity,
        )
        for found, number in zip(report(order, weight, x), expected, strict=True):
            np.testing.assert_allclose(found, number, rtol=1e-12, atol=1e-14)
    assert len(traces) == 1
