"""Reversal, sums and generalised Jensen–Shannon: values, merging and what is refused."""

import math

import jax
import numpy as np
import pytest
import torch
from helpers import make_array, to_numpy

from bayesdiv.divergences import (
    Alpha,
    ForwardKL,
    GeneralizedJensenShannon,
    Jeffreys,
    JensenShannon,
    NeymanChi2,
    PearsonChi2,
    Reversed,
    ReverseKL,
    SoftenedReverseKL,
    SquaredHellinger,
    TotalVariation,
    WeightedSum,
)

GRID = np.linspace(-6.0, 6.0, 25)


def assert_same_divergence(backend, found, expected, *, scale=1.0):
    x = make_array(backend, GRID)
    for name in ("generator", "derivative", "pseudo_reward", "path_weight"):
        np.testing.assert_allclose(
            to_numpy(getattr(found, name)(x)),
            scale * to_numpy(getattr(expected, name)(x)),
            rtol=1e-10,
            atol=1e-10,
        )


def test_sum_of_both_kl_divergences_is_jeffreys(backend):
    assert_same_divergence(backend, ForwardKL() + ReverseKL(), Jeffreys())
    assert_same_divergence(backend, ReverseKL().symmetrized(), Jeffreys(), scale=0.5)


def test_alpha_meets_the_named_members(backend):
    assert_same_divergence(backend, Alpha(0.5), SquaredHellinger(), scale=2.0)
    assert_same_divergence(backend, Alpha(2.0), PearsonChi2(), scale=0.5)
    assert_same_divergence(backend, Alpha(-1.0), NeymanChi2(), scale=0.5)


def test_generalised_jensen_shannon_contains_the_usual_one_and_tends_to_kl(backend):
    assert_same_divergence(backend, GeneralizedJensenShannon(0.5), JensenShannon())
    x = make_array(backend, np.linspace(-3.0, 3.0, 13))
    tiny = 1e-6
    for member, limit, scale in (
        (GeneralizedJensenShannon(tiny), ForwardKL(), tiny),
        (GeneralizedJensenShannon(1.0 - tiny), ReverseKL(), tiny),
    ):
        np.testing.assert_allclose(
            to_numpy(member.generator(x)) / scale, to_numpy(limit.generator(x)), rtol=1e-4
        )


def test_generalised_jensen_shannon_is_two_kl_divergences_to_the_mixture(backend):
    p, q = np.asarray([0.5, 0.3, 0.2]), np.asarray([0.1, 0.1, 0.8])
    middle = 0.2 * p + 0.8 * q
    expected = 0.2 * np.sum(p * np.log(p / middle)) + 0.8 * np.sum(q * np.log(q / middle))
    found = GeneralizedJensenShannon(0.2).between_logits(
        make_array(backend, np.log(p)), make_array(backend, np.log(q))
    )
    assert float(found) == pytest.approx(expected, rel=1e-12)


def test_named_members_know_their_reversal():
    assert ReverseKL().reversed() == ForwardKL()
    assert ForwardKL().reversed() == ReverseKL()
    assert PearsonChi2().reversed() == NeymanChi2()
    assert NeymanChi2().reversed() == PearsonChi2()
    for member in (JensenShannon(), SquaredHellinger(), Jeffreys(), TotalVariation()):
        assert member.reversed() == member
    assert Alpha(2.5).reversed() == Alpha(-1.5)
    assert GeneralizedJensenShannon(0.25).reversed() == GeneralizedJensenShannon(0.75)
    assert SoftenedReverseKL().reversed() == Reversed(SoftenedReverseKL())
    assert SoftenedReverseKL().reversed().reversed() == SoftenedReverseKL()


def test_sums_are_flat_and_merge_equal_members():
    mixed = 2.0 * (ReverseKL() + 0.5 * JensenShannon()) + ReverseKL()
    assert mixed.terms == ((3.0, ReverseKL()), (1.0, JensenShannon()))
    assert hash(mixed) == hash(WeightedSum(mixed.terms))


def test_sum_carries_the_limits_of_its_terms():
    mixed = 2.0 * SquaredHellinger() + 3.0 * TotalVariation()
    assert mixed.value_at_zero == 3.5
    assert mixed.slope_at_infinity == 3.5
    assert mixed.second_derivative_at_one == math.inf
    assert not mixed.has_path_gradient
    assert mixed.tail_exponents is None
    assert mixed.mode_seeking_rank is None
    assert (2.0 * ReverseKL()).needs_normalizer is False
    assert (ReverseKL() + JensenShannon()).needs_normalizer
    assert (ReverseKL() + PearsonChi2()).tail_exponents == (0.0, 2.0)


def test_divergences_multiply_and_add_only_with_what_makes_sense():
    with pytest.raises(TypeError):
        ReverseKL() * ForwardKL()
    with pytest.raises(TypeError):
        ReverseKL() + 1.0
    with pytest.raises(TypeError, match="weight must be a number, got 'half'"):
        "half" * ReverseKL()


@pytest.mark.parametrize("weight", [0.0, -1.0])
def test_weights_have_to_be_positive(weight):
    with pytest.raises(ValueError, match=r"weight must be positive.*got -?[01]\.0.*reversed\(\)"):
        weight * ReverseKL()


@pytest.mark.parametrize("weight", [math.inf, math.nan])
def test_weights_have_to_be_finite(weight):
    with pytest.raises(ValueError, match=f"weight must be finite, got {weight}"):
        weight * ReverseKL()


@pytest.mark.parametrize("weight", [0.0, 1.0, -0.2, 3.0])
def test_generalised_jensen_shannon_needs_a_weight_inside_the_unit_interval(weight):
    with pytest.raises(ValueError, match=f"strictly between 0 and 1, got {weight}.*forward_kl"):
        GeneralizedJensenShannon(weight)


def test_alpha_refuses_its_limits_by_name():
    with pytest.raises(ValueError, match="neither 0 nor 1, got 0.*'reverse_kl' for 0"):
        Alpha(0)
    with pytest.raises(ValueError, match=r"neither 0 nor 1, got 1\.0.*'forward_kl' for 1"):
        Alpha(1.0)
    with pytest.raises(ValueError, match="order must be finite, got nan"):
        Alpha(math.nan)
    with pytest.raises(TypeError, match="order must be a number, got True of type bool"):
        Alpha(order=True)
    with pytest.raises(TypeError, match="order must be a number, got '0.5' of type str"):
        Alpha("0.5")


def test_array_valued_weights_are_learnable(backend):
    """A weight that is an array is left alone at construction and carries a gradient."""
    x = make_array(backend, [0.7])
    if backend == "torch":
        weight = torch.tensor(0.3, dtype=torch.float64, requires_grad=True)
        value = (weight * JensenShannon() + ReverseKL()).generator(x).sum()
        slope = torch.autograd.grad(value, weight)[0]
    else:
        slope = jax.grad(lambda w: (w * JensenShannon() + ReverseKL()).generator(x).sum())(0.3)
    assert float(slope) == pytest.approx(float(JensenShannon().generator(x)[0]))


def test_members_with_traced_orders_do_not_merge():
    def value(order):
        mixed = Alpha(order) + 2.0 * Alpha(order)
        return mixed.generator(jax.numpy.asarray(0.5)), len(mixed.terms)

    found, count = jax.jit(value)(0.5)
    assert int(count) == 2
    assert float(found) == pytest.approx(3.0 * float(Alpha(0.5).generator(jax.numpy.asarray(0.5))))
