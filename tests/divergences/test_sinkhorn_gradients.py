"""Derivatives of Sinkhorn divergences: three ways, in samples, costs and weights."""

import math

import numpy as np
import pytest
from helpers import gradient_of, make_array, to_numpy

from bayesdiv.divergences._sinkhorn import Sinkhorn


def rectangular():
    generator = np.random.default_rng(4)
    x, y = generator.normal(size=(9, 2)), 1.0 + generator.normal(size=(6, 2))
    return x, y, generator.dirichlet(np.ones(9)), generator.dirichlet(np.ones(6))


@pytest.mark.parametrize(
    ("value", "gradient", "penalty"),
    [
        ("regularized", "envelope", (math.inf, math.inf)),
        ("regularized", "envelope", (0.7, 2.0)),
        ("regularized", "unroll", (math.inf, 0.5)),
        ("sharp", "implicit", (math.inf, math.inf)),
        ("sharp", "implicit", (0.7, 2.0)),
        ("sharp", "implicit", (math.inf, 0.5)),
        ("sharp", "unroll", (math.inf, math.inf)),
    ],
)
def test_gradient_by_finite_differences(backend, value, gradient, penalty):
    x, y, a, b = rectangular()
    divergence = Sinkhorn(
        epsilon=0.5,
        debias=False,
        value=value,
        gradient=gradient,
        marginal_penalty=penalty,
        tolerance=1e-13,
        max_iterations=400,
    )
    weights = {"x_weights": make_array(backend, a), "y_weights": make_array(backend, b)}

    def at(x, y):
        return divergence(x, y, **weights)

    found = gradient_of(backend, at, x, y)
    step = 1e-5
    for position, (sample, gradient_found) in enumerate(zip((x, y), found, strict=True)):
        for index in [(0, 0), (2, 1), (5, 0)]:
            moved = np.zeros_like(sample)
            moved[index] = step
            samples = [[x, y], [x, y]]
            samples[0][position], samples[1][position] = sample + moved, sample - moved
            up, down = (float(at(*(make_array(backend, s) for s in pair))) for pair in samples)
            assert gradient_found[index] == pytest.approx((up - down) / (2 * step), abs=2e-8)


@pytest.mark.parametrize("penalty", [(math.inf, math.inf), (0.7, 2.0)])
@pytest.mark.parametrize("value", ["regularized", "sharp"])
def test_gradient_in_weights(backend, value, penalty):
    x, y, a, b = rectangular()
    divergence = Sinkhorn(
        epsilon=0.5,
        debias=False,
        value=value,
        gradient="implicit",
        marginal_penalty=penalty,
        tolerance=1e-13,
    )

    def at(a, b):
        samples = make_array(backend, x), make_array(backend, y)
        return divergence(*samples, x_weights=a, y_weights=b)

    found = gradient_of(backend, at, a, b)
    # Moves that keep the sum, along which hard marginals stay feasible.
    moves = [np.zeros(9), np.zeros(6)]
    moves[0][[1, 4]], moves[1][[0, 5]] = (1e-6, -1e-6), (1e-6, -1e-6)
    for position in range(2):
        ends = []
        for sign in (1.0, -1.0):
            weights = [a, b]
            weights[position] = weights[position] + sign * moves[position]
            ends.append(float(at(*(make_array(backend, w) for w in weights))))
        slope = found[position] @ moves[position]
        assert slope == pytest.approx((ends[0] - ends[1]) / 2, abs=1e-12)


def test_sharp_gradient_matches_autodiff_through_the_iterations(backend):
    x, y, _, _ = rectangular()
    settings = {"value": "sharp", "epsilon": 0.5, "debias": False, "tolerance": 1e-13}
    implicit = gradient_of(backend, Sinkhorn(**settings, gradient="implicit"), x, y)
    unrolled = gradient_of(
        backend, Sinkhorn(**settings, gradient="unroll", max_iterations=400), x, y
    )
    envelope = gradient_of(backend, Sinkhorn(**settings), x, y)
    np.testing.assert_allclose(implicit[0], unrolled[0], atol=1e-13)
    np.testing.assert_allclose(implicit[1], unrolled[1], atol=1e-13)
    assert np.abs(envelope[0] - implicit[0]).max() > 1e-3


@pytest.mark.parametrize("value", ["regularized", "sharp"])
def test_debiased_gradient_matches_autodiff_through_the_iterations(value):
    backend = "torch"
    x, y, _, _ = rectangular()
    settings = {"epsilon": 1.0, "value": value, "tolerance": 1e-13}
    exact = Sinkhorn(**settings, gradient="implicit")
    unrolled = Sinkhorn(**settings, gradient="unroll", max_iterations=200)
    samples = make_array(backend, x), make_array(backend, y)
    assert float(unrolled(*samples)) == pytest.approx(float(exact(*samples)), abs=1e-12)
    for found, expected in zip(
        gradient_of(backend, unrolled, x, y), gradient_of(backend, exact, x, y), strict=True
    ):
        np.testing.assert_allclose(found, expected, atol=1e-12)


def test_regularized_gradient_is_the_plan(backend):
    cost = np.random.default_rng(5).uniform(size=(7, 5))
    divergence = Sinkhorn(debias=False, tolerance=1e-13)
    plan = divergence.solve_cost(make_array(backend, cost)).plan
    (gradient,) = gradient_of(backend, divergence.value_from_cost, cost)
    np.testing.assert_allclose(gradient, to_numpy(plan), atol=1e-14)
