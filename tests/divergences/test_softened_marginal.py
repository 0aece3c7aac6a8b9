"""Sinkhorn with one softened marginal: the assignment step of regularised clustering.

Minimising KL(Q‖P) / N + ρ KL(f‖u) over assignments Q, with f the mean of its rows, is entropic
transport with cost log(u / P), ε = 1, a hard marginal on samples and a soft one on clusters.
"""

import math

import numpy as np
import pytest
from helpers import make_array, to_numpy

from bayesdiv.divergences._sinkhorn import Sinkhorn

P = np.array([[0.7, 0.2, 0.1], [0.6, 0.3, 0.1], [0.2, 0.5, 0.3], [0.8, 0.1, 0.1]])
THIRDS = np.full(3, 1 / 3)


def clusters(rho, **settings):
    return Sinkhorn(
        epsilon=1.0,
        debias=False,
        marginal_penalty=(math.inf, rho),
        **({"tolerance": 1e-14} | settings),
    )


def assign(backend, p, u, rho, **settings):
    """Q, shape (samples, clusters), and the value of the objective at it."""
    divergence = clusters(rho, **settings)
    cost, prior = make_array(backend, np.log(u / p)), make_array(backend, u)
    plan = divergence.solve_cost(cost, y_weights=prior).plan
    value = divergence.value_from_cost(cost, y_weights=prior)
    return len(p) * to_numpy(plan), float(value)


def objective(q, p, u, rho=1.0):
    frequency = q.mean(0)
    return (q * np.log(q / p)).sum() / len(p) + rho * (frequency * np.log(frequency / u)).sum()


def closed_form(p, u):
    weighted = p * np.sqrt(u / p.mean(0))
    return weighted / weighted.sum(1, keepdims=True)


def test_golden_assignment(backend):
    expected = [
        [0.577805, 0.251593, 0.170602],
        [0.474728, 0.361743, 0.163528],
        [0.126419, 0.481657, 0.391925],
        [0.690202, 0.131484, 0.178314],
    ]
    q, value = assign(backend, P, THIRDS, 1.0)
    np.testing.assert_allclose(q, expected, atol=1e-6)
    assert value == pytest.approx(0.07971013, abs=1e-8)
    assert objective(q, P, THIRDS) == pytest.approx(value, abs=1e-12)


def test_golden_assignment_with_a_prior(backend):
    u = np.array([0.5, 0.3, 0.2])
    q, value = assign(backend, P, u, 1.0)
    np.testing.assert_allclose(q.mean(0), [0.542354, 0.285563, 0.172083], atol=1e-6)
    assert value == pytest.approx(0.00742602, abs=1e-8)


@pytest.mark.parametrize(
    ("rho", "expected"),
    [
        (0.1, [0.557848, 0.280563, 0.161590]),
        (1.0, [0.467289, 0.306619, 0.226092]),
        (10.0, [0.358556, 0.329602, 0.311842]),
    ],
)
def test_golden_frequencies(backend, rho, expected):
    q, _ = assign(backend, P, THIRDS, rho)
    np.testing.assert_allclose(q.mean(0), expected, atol=1e-6)


@pytest.mark.parametrize("gradient", ["envelope", "unroll"])
@pytest.mark.filterwarnings("ignore:Sinkhorn stopped")
def test_first_iterate_is_the_closed_form(backend, gradient):
    u = np.array([0.5, 0.3, 0.2])
    q, _ = assign(backend, P, u, 1.0, max_iterations=1, gradient=gradient)
    np.testing.assert_allclose(q, closed_form(P, u), atol=1e-15)


def test_stationarity_and_order_of_objectives(backend):
    generator = np.random.default_rng(0)
    for _ in range(5):
        p, u = generator.dirichlet(np.ones(4), size=7), generator.dirichlet(5 * np.ones(4))
        q, value = assign(backend, p, u, 1.0)
        condition = np.log(q * q.mean(0) / (p * u))
        assert np.ptp(condition, axis=1).max() < 1e-12
        assert value <= objective(closed_form(p, u), p, u) <= objective(p, p, u)


def test_identical_rows_and_matching_columns(backend):
    rows = np.tile([0.7, 0.2, 0.1], (5, 1))
    q, _ = assign(backend, rows, THIRDS, 1.0)
    np.testing.assert_allclose(q, np.tile([0.522879, 0.279491, 0.197630], (5, 1)), atol=1e-6)
    q, value = assign(backend, P, P.mean(0), 1.0)
    np.testing.assert_allclose(q, P, atol=1e-13)
    assert abs(value) < 1e-14


def test_permutations_carry_over(backend):
    samples, classes = [2, 0, 3, 1], [1, 2, 0]
    u = np.array([0.5, 0.3, 0.2])
    q, _ = assign(backend, P, u, 1.0)
    permuted, _ = assign(backend, P[samples][:, classes], u[classes], 1.0)
    np.testing.assert_allclose(permuted, q[samples][:, classes], atol=1e-13)


def test_strong_penalty_balances(backend):
    q, _ = assign(backend, P, THIRDS, 1e6)
    np.testing.assert_allclose(q.mean(0), THIRDS, atol=1e-6)
    balanced, _ = assign(backend, P, THIRDS, math.inf)
    np.testing.assert_allclose(q, balanced, atol=1e-5)
