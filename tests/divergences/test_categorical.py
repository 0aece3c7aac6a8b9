"""Divergences between categoricals from logits: against sums, at zero mass, masked, in gradient."""

import math

import jax
import numpy as np
import pytest
import torch
from divergence_cases import BUILT, CASES, NAMED, ORDERS
from helpers import gradient_of, make_array, to_numpy

from bayesdiv._array import array_namespace
from bayesdiv.divergences import Alpha, FDivergence, between_logits

every = pytest.mark.parametrize("member", CASES.values(), ids=CASES.keys())
NOTHING = -math.inf


def normalised(logits):
    values = np.exp(logits - np.max(logits, axis=-1, keepdims=True))
    return values / values.sum(axis=-1, keepdims=True)


def plain_sum(member, p, q):
    """Σ q f(p/q) in double precision, for positive p and q."""
    generator = member.generator(torch.tensor(np.log(p) - np.log(q))).numpy()
    return np.sum(q * generator, axis=-1)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@every
def test_equals_the_plain_sum(backend, member, dtype):
    p, q = 1.5 * np.random.default_rng(0).normal(size=(2, 4, 6))
    found = member.between_logits(make_array(backend, p, dtype), make_array(backend, q, dtype))
    assert str(found.dtype).endswith(dtype)
    np.testing.assert_allclose(
        to_numpy(found),
        plain_sum(member, normalised(p), normalised(q)),
        rtol=2e-5 if dtype == "float32" else 1e-11,
    )


@pytest.mark.parametrize("direction", ["forward_kl", "reverse_kl"])
def test_equals_the_kl_divergence_of_torch(direction):
    p, q = torch.tensor(5.0 * np.random.default_rng(2).normal(size=(2, 3, 8))).requires_grad_()
    first, second = (torch.distributions.Categorical(logits=x) for x in (p, q))
    pair = (first, second) if direction == "forward_kl" else (second, first)
    expected = torch.distributions.kl_divergence(*pair)
    found = between_logits(direction, p, q)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-13)
    for mine, theirs in zip(
        torch.autograd.grad(found.sum(), [p, q]),
        torch.autograd.grad(expected.sum(), [p, q]),
        strict=True,
    ):
        torch.testing.assert_close(mine, theirs, rtol=1e-10, atol=1e-12)


@every
def test_classes_without_mass_cost_their_limits(backend, member):
    p = make_array(backend, [math.log(0.25), math.log(0.75), NOTHING, NOTHING])
    q = make_array(backend, [math.log(0.4), NOTHING, math.log(0.6), NOTHING])
    shared = 0.4 * to_numpy(member.generator(make_array(backend, [math.log(0.25 / 0.4)])))[0]
    expected = shared + 0.6 * member.value_at_zero + 0.75 * member.slope_at_infinity
    assert float(member.between_logits(p, q)) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@every
def test_gradients_are_numbers_whatever_is_missing(backend, member, dtype):
    rows = [
        ([0.0, NOTHING, 2.0, NOTHING], [1.0, 2.0, NOTHING, NOTHING]),
        ([0.0, -1e9, 2.0, -1e9], [0.0, -1e9, 2.0, -1.1e9]),
        ([0.0, -100.0, -200.0, 3.0], [0.0, -200.0, -100.0, 2.0]),
        ([0.0, 0.0, 0.0, 0.0], [0.0, 0.0, 0.0, 0.0]),
    ]
    p, q = (np.asarray(side) for side in zip(*rows, strict=True))
    values = to_numpy(
        member.between_logits(make_array(backend, p, dtype), make_array(backend, q, dtype))
    )
    assert not np.isnan(values).any()
    assert abs(values[3]) < 1e-6

    def total(first, second):
        xp = array_namespace(first)
        return xp.sum(member.between_logits(first, second)[:-1])

    for slope in gradient_of(backend, total, p, q, dtype=dtype):
        assert not np.isnan(slope).any()


@every
def test_gradient_matches_finite_differences_beside_missing_classes(backend, member):
    if math.isinf(member.value_at_zero):
        p, q = np.asarray([0.2, -0.5, 0.1]), np.asarray([0.4, 0.3, -0.6])
    else:
        p, q = np.asarray([0.2, -0.5, NOTHING]), np.asarray([0.4, 0.3, -0.6])

    def value(logits):
        return member.between_logits(make_array(backend, p), make_array(backend, logits))

    found = gradient_of(
        backend, lambda logits: member.between_logits(make_array(backend, p), logits), q
    )[0]
    step = 1e-6
    for k in range(3):
        shift = step * np.eye(3)[k]
        slope = (float(value(q + shift)) - float(value(q - shift))) / (2.0 * step)
        assert found[k] == pytest.approx(slope, rel=1e-6, abs=1e-8)


def test_products_of_overflow_and_underflow_are_finite(backend):
    """χ² of a class with p = e⁻¹¹⁰, q = e⁻²⁰⁰ is e⁻²⁰, though u² overflows single precision."""
    p, q = [0.0, -110.0], [0.0, -200.0]
    for member, exact in (
        (NAMED["pearson_chi2"], math.exp(-20.0)),
        (NAMED["neyman_chi2"].reversed(), math.exp(-20.0)),
        (Alpha(2.5), math.exp(-200.0 + 2.5 * 90.0) / (2.5 * 1.5)),
        (2.0 * NAMED["pearson_chi2"] + NAMED["jensen_shannon"], 2.0 * math.exp(-20.0)),
    ):
        for first, second, direction in ((p, q, member), (q, p, member.reversed())):
            found = direction.between_logits(
                make_array(backend, first, "float32"), make_array(backend, second, "float32")
            )
            assert float(found) == pytest.approx(exact, rel=1e-4)


def test_traced_order_keeps_the_products_finite():
    found = jax.jit(lambda order, p, q: Alpha(order).between_logits(p, q))(
        2.0, *(make_array("jax", x, "float32") for x in ([0.0, -110.0], [0.0, -200.0]))
    )
    assert float(found) == pytest.approx(0.5 * math.exp(-20.0), rel=1e-4)
    missing = jax.jit(lambda order, p, q: Alpha(order).between_logits(p, q))
    p, q = make_array("jax", [0.0, NOTHING]), make_array("jax", [0.0, 0.0])
    assert float(missing(-0.5, p, q)) == math.inf
    expected = float(Alpha(0.5).between_logits(p, q))
    assert float(missing(0.5, p, q)) == pytest.approx(expected, rel=1e-12)


@every
def test_mask_removes_classes_before_normalising(backend, member):
    p, q = np.random.default_rng(3).normal(size=(2, 2, 5))
    mask = np.asarray([[True, True, True, False, False], [True, False, True, True, False]])
    found = member.between_logits(
        make_array(backend, p), make_array(backend, q), mask=make_array(backend, mask, "bool")
    )
    for row in range(2):
        kept = mask[row]
        expected = plain_sum(member, normalised(p[row, kept]), normalised(q[row, kept]))
        assert float(found[row]) == pytest.approx(expected, rel=1e-11)


@every
def test_row_without_classes_gives_zero_and_no_gradient(backend, member):
    p, q = np.random.default_rng(4).normal(size=(2, 2, 3))
    mask = make_array(backend, [[True, True, False], [False, False, False]], "bool")

    def total(first, second):
        xp = array_namespace(first)
        return xp.sum(member.between_logits(first, second, mask=mask))

    found = member.between_logits(make_array(backend, p), make_array(backend, q), mask=mask)
    assert float(found[1]) == 0.0
    for slope in gradient_of(backend, total, p, q):
        assert np.all(slope[1] == 0.0)
        assert np.any(slope[0] != 0.0)
        assert np.all(np.isfinite(slope))


def test_axis_and_broadcasting(backend):
    generator = np.random.default_rng(5)
    p, q = generator.normal(size=(4, 3)), generator.normal(size=(2, 4, 3))
    member = NAMED["jensen_shannon"]
    by_last = member.between_logits(make_array(backend, p), make_array(backend, q))
    assert tuple(by_last.shape) == (2, 4)
    by_first = member.between_logits(
        make_array(backend, p.T[:, None, :]), make_array(backend, np.moveaxis(q, -1, 0)), axis=0
    )
    np.testing.assert_allclose(to_numpy(by_first), to_numpy(by_last), rtol=1e-13)


def test_shifted_logits_change_nothing(backend):
    p, q = make_array(backend, [0.3, 1.0, -2.0]), make_array(backend, [0.0, 0.5, 0.2])
    expected = float(between_logits("alpha", p, q))
    assert float(between_logits("alpha", p + 300.0, q - 700.0)) == pytest.approx(expected)


@pytest.mark.parametrize("name", [*NAMED, *ORDERS, *BUILT])
def test_swapping_arguments_reverses(backend, name):
    p, q = (make_array(backend, x) for x in np.random.default_rng(6).normal(size=(2, 9)))
    member = CASES[name]
    assert float(member.reversed().between_logits(q, p)) == pytest.approx(
        float(member.between_logits(p, q)), rel=1e-11
    )


def test_name_object_and_own_divergence_are_accepted(backend):
    p, q = (make_array(backend, x) for x in np.random.default_rng(7).normal(size=(2, 5)))
    expected = float(NAMED["pearson_chi2"].between_logits(p, q))
    mine = FDivergence.from_generator(lambda u: u * u - 1.0)
    for divergence in ("pearson_chi2", NAMED["pearson_chi2"], mine):
        assert float(between_logits(divergence, p, q)) == pytest.approx(expected, rel=1e-12)


def test_what_is_wrong_is_said():
    p = torch.zeros(3)
    with pytest.raises(ValueError, match=r"same classes along axis -1.*\(3,\) and \(4,\)"):
        between_logits("reverse_kl", p, torch.zeros(4))
    with pytest.raises(ValueError, match="must have an axis of classes.*log-odds"):
        between_logits("reverse_kl", torch.tensor(0.0), p)
    with pytest.raises(TypeError, match="mask must be boolean, got torch.float32; pass mask > 0"):
        between_logits("reverse_kl", p, p, mask=torch.ones(3))
    with pytest.raises(TypeError, match="must be an f-divergence.*got MMD.*samples of p and q"):
        between_logits("mmd", p, p)
    with pytest.raises(ValueError, match="must be one of reverse_kl"):
        between_logits("kl", p, p)
