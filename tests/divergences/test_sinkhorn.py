"""Sinkhorn divergences: golden values, limits, identities and the three gradients."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import ot
import pytest
import torch
from helpers import gradient_of, make_array, to_numpy

from bayesdiv.divergences._sinkhorn import Sinkhorn


def softmax_rows(logits):
    exponential = np.exp(logits - logits.max(axis=1, keepdims=True))
    return exponential / exponential.sum(axis=1, keepdims=True)


def fixture_distributions():
    """The draws of the cross-library table: 16 students and teachers over 10 classes."""
    generator = np.random.default_rng(0)
    student = softmax_rows(generator.normal(size=(16, 10)))
    return student, softmax_rows(2.0 * generator.normal(size=(16, 10)))


def l1_costs(x, y):
    return np.abs(x[:, None, :] - y[None, :, :]).sum(-1)


def plain(**settings):
    return Sinkhorn(
        **{"epsilon": 0.1, "cost": "l1", "debias": False, "tolerance": 1e-13} | settings
    )


STUDENT, TEACHER = fixture_distributions()
COST = l1_costs(STUDENT, TEACHER)
UNIFORM = np.full(16, 1 / 16)


@pytest.mark.parametrize(
    ("divergence", "expected", "error"),
    [
        (plain(value="sharp"), 1.0779258170, 1e-9),
        (plain(value="sharp", reduction="sum"), 16 * 1.0779258170, 2e-8),
        (plain(), 1.1606396599, 1e-9),
        (plain(debias=True), 0.8847348, 2e-7),
        (plain(cost="euclidean"), 0.5708400, 1e-7),
        (
            plain(value="sharp", gradient="unroll", max_iterations=20, reduction="sum"),
            17.246813075,
            1e-8,
        ),
    ],
    ids=["sharp", "sharp_sum", "regularized", "debiased", "euclidean", "twenty_iterations"],
)
def test_cross_library_fixture(backend, divergence, expected, error):
    value = divergence(make_array(backend, STUDENT), make_array(backend, TEACHER))
    assert abs(float(value) - expected) < error


@pytest.mark.parametrize("epsilon", [0.1, 0.5, 1.0, 10.0])
@pytest.mark.parametrize("gradient", ["envelope", "unroll"])
def test_two_points_in_closed_form(backend, epsilon, gradient):
    divergence = plain(epsilon=epsilon, value="sharp", gradient=gradient, reduction="sum")
    cost = make_array(backend, [[0.0, 1.0], [1.0, 0.0]])
    expected = 2.0 / (1.0 + math.exp(1.0 / epsilon))
    assert float(divergence.value_from_cost(cost)) == pytest.approx(expected, rel=1e-10)


def test_one_point_is_its_cost(backend):
    x, y = make_array(backend, STUDENT[:1]), make_array(backend, TEACHER[:1])
    expected = np.abs(STUDENT[0] - TEACHER[0]).sum()
    assert float(plain()(x, y)) == pytest.approx(expected, abs=1e-13)


def test_costs_of_the_column_alone_give_the_uniform_plan(backend):
    columns = np.array([0.3, 1.1, 0.2, 0.9])
    cost = make_array(backend, np.tile(columns, (4, 1)))
    solution = plain().solve_cost(cost)
    np.testing.assert_allclose(to_numpy(solution.plan), 1 / 16, atol=1e-14)
    assert float(plain(value="sharp").value_from_cost(cost)) == pytest.approx(columns.mean())


def test_order_of_either_sample_is_nothing(backend):
    generator = np.random.default_rng(1)
    rows, columns = generator.permutation(16), generator.permutation(16)
    value = plain(debias=True)(make_array(backend, STUDENT), make_array(backend, TEACHER))
    permuted = plain(debias=True)(
        make_array(backend, STUDENT[rows]), make_array(backend, TEACHER[columns])
    )
    assert float(permuted) == pytest.approx(float(value), abs=1e-12)


@pytest.mark.parametrize("count", [1, 3, 20])
def test_unrolled_iterations_are_the_multiplicative_loop(backend, count):
    kernel = np.exp(-COST / 0.1)
    for _ in range(count):
        kernel = kernel / kernel.sum(axis=1, keepdims=True)
        kernel = kernel / kernel.sum(axis=0, keepdims=True)
    divergence = plain(value="sharp", gradient="unroll", max_iterations=count, reduction="sum")
    value = divergence(make_array(backend, STUDENT), make_array(backend, TEACHER))
    assert float(value) == pytest.approx((kernel * COST).sum(), abs=1e-12)


def test_converged_plan_is_the_library_plan(backend):
    expected = ot.sinkhorn(UNIFORM, UNIFORM, COST, reg=0.1, stopThr=1e-14)
    plan = plain().solve(make_array(backend, STUDENT), make_array(backend, TEACHER)).plan
    np.testing.assert_allclose(to_numpy(plan), expected, atol=1e-12)


def test_small_epsilon_reaches_exact_transport(backend):
    divergence = plain(epsilon=0.003, value="sharp", tolerance=1e-4)
    value = divergence(make_array(backend, STUDENT), make_array(backend, TEACHER))
    assert abs(float(value) - ot.emd2(UNIFORM, UNIFORM, COST)) < 1e-3


def test_large_epsilon_reaches_the_mean_cost(backend):
    value = plain(epsilon=1e3, value="sharp")(
        make_array(backend, STUDENT), make_array(backend, TEACHER)
    )
    assert abs(float(value) - COST.mean()) < 1e-3


def test_values_fall_to_exact_transport_with_epsilon(backend):
    x, y = make_array(backend, STUDENT), make_array(backend, TEACHER)
    epsilons = [10.0, 1.0, 0.3, 0.1, 0.03]
    sharp = [float(plain(epsilon=e, value="sharp")(x, y)) for e in epsilons]
    regularized = [float(plain(epsilon=e)(x, y)) for e in epsilons]
    exact = ot.emd2(UNIFORM, UNIFORM, COST)
    assert np.all(np.diff(sharp) < 0)
    assert np.all(np.diff(regularized) < 0)
    assert np.all(np.array(sharp) <= regularized)
    assert sharp[-1] > exact
    assert regularized[-1] - exact <= 0.03 * math.log(16)


def test_two_classes_are_sorted(backend):
    first, second = STUDENT[:, :1] / STUDENT[:, :2].sum(1, keepdims=True), TEACHER[:, 3:4]
    x, y = np.hstack([first, 1 - first]), np.hstack([second, 1 - second])
    expected = 2.0 * np.abs(np.sort(first[:, 0]) - np.sort(second[:, 0])).mean()
    divergence = plain(epsilon=1e-3, value="sharp", tolerance=1e-5)
    value = divergence(make_array(backend, x), make_array(backend, y))
    assert abs(float(value) - expected) < 1e-3


@pytest.mark.parametrize("value", ["regularized", "sharp"])
def test_equal_samples_debiased_are_nothing(backend, value):
    points = np.random.default_rng(2).normal(size=(12, 3))
    divergence = Sinkhorn(epsilon=0.5, value=value, gradient="implicit", tolerance=1e-12)
    assert abs(float(divergence(make_array(backend, points), make_array(backend, points)))) < 1e-12
    for gradient in gradient_of(backend, divergence, points, points):
        assert np.abs(gradient).max() < 1e-6
    blurred = Sinkhorn(epsilon=0.5, value=value, debias=False)
    assert float(blurred(make_array(backend, points), make_array(backend, points))) > 0.1


def test_constant_added_to_logits_changes_nothing(backend):
    logits = np.random.default_rng(3).normal(size=(8, 5))
    softmax = {"torch": lambda z: torch.softmax(z, dim=1), "jax": lambda z: jax.nn.softmax(z)}
    divergence = plain(debias=True)

    def value(values):
        rows = softmax[backend](make_array(backend, values))
        return float(divergence(rows, make_array(backend, TEACHER[:8, :5])))

    shift = np.arange(8.0)[:, None]
    assert value(logits + shift) == pytest.approx(value(logits), abs=1e-12)


def test_float32_agrees_between_libraries():
    values = {
        backend: float(
            Sinkhorn(epsilon=0.1, cost="l1")(
                make_array(backend, STUDENT, "float32"), make_array(backend, TEACHER, "float32")
            )
        )
        for backend in ("torch", "jax")
    }
    assert values["torch"] == pytest.approx(values["jax"], abs=1e-6)


def rectangular():
    generator = np.random.default_rng(4)
    x, y = generator.normal(size=(9, 2)), 1.0 + generator.normal(size=(6, 2))
    return x, y, generator.dirichlet(np.ones(9)), generator.dirichlet(np.ones(6))


def test_weights_of_unequal_samples_are_the_marginals(backend):
    x, y, a, b = (make_array(backend, values) for values in rectangular())
    solution = Sinkhorn(epsilon=0.3, tolerance=1e-12).solve(x, y, x_weights=a, y_weights=b)
    np.testing.assert_allclose(to_numpy(solution.plan).sum(1), to_numpy(a), atol=1e-12)
    np.testing.assert_allclose(to_numpy(solution.plan).sum(0), to_numpy(b), atol=1e-12)
    assert float(solution.marginal_error) < 1e-11


def test_weight_of_zero_is_no_point(backend):
    x, y, a, b = rectangular()
    a[3] = b[0] = 0.0
    a, b = a / a.sum(), b / b.sum()
    divergence = Sinkhorn(epsilon=0.3, tolerance=1e-12)

    def value(x, y, a, b):
        weights = {"x_weights": make_array(backend, a), "y_weights": make_array(backend, b)}
        return float(divergence(make_array(backend, x), make_array(backend, y), **weights))

    kept = value(np.delete(x, 3, 0), y[1:], np.delete(a, 3), b[1:])
    assert value(x, y, a, b) == pytest.approx(kept, abs=1e-11)


@pytest.mark.parametrize("penalty", [(1.0, 1.0), (0.2, 5.0)])
def test_soft_marginals_agree_with_the_library(backend, penalty):
    x, y, a, b = rectangular()
    cost = ot.dist(x, y)
    expected = ot.unbalanced.sinkhorn_unbalanced(
        a, b, cost, reg=0.5, reg_m=penalty, reg_type="KL", c=a[:, None] * b, stopThr=1e-14
    )
    divergence = Sinkhorn(epsilon=0.5, marginal_penalty=penalty, debias=False, tolerance=1e-13)
    solution = divergence.solve(
        make_array(backend, x),
        make_array(backend, y),
        x_weights=make_array(backend, a),
        y_weights=make_array(backend, b),
    )
    np.testing.assert_allclose(to_numpy(solution.plan), expected, atol=1e-10)


def test_small_epsilon_in_float32_stays_finite(backend):
    cost = make_array(backend, 2.0 - 2.0 * np.eye(5), "float32")
    divergence = plain(epsilon=0.01, value="sharp", tolerance=1e-5)
    assert float(divergence.value_from_cost(cost)) == pytest.approx(0.0, abs=1e-6)
    far = make_array(backend, 2.0 + np.zeros((3, 3)), "float32")
    assert float(divergence.value_from_cost(far)) == pytest.approx(2.0, rel=1e-6)


def test_scalings_that_leave_the_range_start_over_in_the_log_domain(backend):
    x, y = np.array([[0.0], [0.1]]), np.array([[0.0], [10.0]])
    divergence = Sinkhorn(epsilon=0.05, debias=False, value="sharp", tolerance=1e-5)
    value = divergence(make_array(backend, x, "float32"), make_array(backend, y, "float32"))
    assert float(value) == pytest.approx((0.0 + 9.9**2) / 2, rel=1e-5)
    self_term = Sinkhorn(epsilon=1e-3, tolerance=1e-5)
    far = make_array(backend, [[0.0], [30.0]], "float32")
    assert float(self_term(far, far)) == pytest.approx(0.0, abs=1e-4)


@pytest.mark.filterwarnings("ignore:Sinkhorn stopped")
def test_forbidden_pairs_and_impossible_problems_come_to_an_end(backend):
    def costs(forbidden):
        def cost(x, y):
            matrix = (x - y.T) ** 2
            return matrix + make_array(backend, np.where(forbidden, math.inf, 0.0))

        return Sinkhorn(cost=cost, debias=False, value="sharp", epsilon=0.1)

    x = make_array(backend, [[0.0], [1.0]])
    y = make_array(backend, [[0.2], [0.9]])
    plan = costs(np.array([[True, False], [False, True]])).solve(x, y).plan
    np.testing.assert_allclose(to_numpy(plan), [[0.0, 0.5], [0.5, 0.0]], atol=1e-12)
    nobody = costs(np.array([[True, True], [False, False]])).solve(x, y)
    assert not bool(nobody.converged)


def test_relative_epsilon_follows_the_scale_of_the_cost(backend):
    x, y, _, _ = rectangular()
    divergence = Sinkhorn(epsilon=0.2, relative=True, tolerance=1e-12)
    small = float(divergence(make_array(backend, x), make_array(backend, y)))
    large = float(divergence(make_array(backend, 10 * x), make_array(backend, 10 * y)))
    assert large == pytest.approx(100 * small, rel=1e-9)


def test_cost_of_the_users_own(backend):
    x, y, _, _ = rectangular()

    def cubed(x, y):
        return ((x[:, None, :] - y[None, :, :]) ** 2).sum(-1) ** 1.5

    value = Sinkhorn(epsilon=0.5, cost=cubed, debias=False, tolerance=1e-12)(
        make_array(backend, x), make_array(backend, y)
    )
    matrix = np.linalg.norm(x[:, None] - y[None], axis=-1) ** 3
    expected = ot.solve(matrix, reg=0.5, reg_type="KL", tol=1e-13, max_iter=10_000).value
    assert float(value) == pytest.approx(expected, rel=1e-8)


def test_half_precision_is_computed_in_single():
    x, y = (torch.tensor(values).to(torch.bfloat16) for values in (STUDENT, TEACHER))
    value = Sinkhorn(cost="l1")(x, y)
    assert value.dtype == torch.bfloat16
    single = Sinkhorn(cost="l1")(x.float(), y.float())
    assert float(value) == pytest.approx(float(single), rel=5e-3)


def test_jax_transformations_and_a_traced_epsilon():
    x, y = jnp.asarray(STUDENT), jnp.asarray(TEACHER)

    def value(epsilon):
        return Sinkhorn(epsilon=epsilon, cost="l1", tolerance=1e-12)(x, y)

    epsilons = jnp.asarray([0.1, 0.3])
    expected = [float(value(0.1)), float(value(0.3))]
    np.testing.assert_allclose(jax.vmap(value)(epsilons), expected, rtol=1e-10)
    np.testing.assert_allclose(jax.jit(value)(0.1), expected[0], rtol=1e-12)


def test_stopping_early_is_not_silent(backend):
    x, y = make_array(backend, STUDENT), make_array(backend, TEACHER)
    divergence = plain(epsilon=0.01, max_iterations=10, tolerance=1e-9)
    with pytest.warns(UserWarning, match=r"stopped after 10 .* marginal error .* raise max_iter"):
        solution = divergence.solve(x, y)
    assert not bool(solution.converged)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"epsilon": 0.0}, "epsilon must be positive and finite, got 0.0"),
        ({"epsilon": math.nan}, "epsilon must be positive and finite, got nan"),
        ({"cost": "cosine"}, "cost must be one of 'sqeuclidean', 'euclidean', 'l1', or a function"),
        ({"value": "primal"}, "value must be one of 'regularized', 'sharp', got 'primal'"),
        ({"gradient": "auto"}, "gradient must be one of 'envelope', 'implicit', 'unroll', got"),
        ({"reduction": "none"}, "reduction must be one of 'mean', 'sum', got 'none'"),
        ({"max_iterations": 0}, "max_iterations must be an integer of at least 1, got 0"),
        ({"tolerance": -1.0}, "tolerance must be positive and finite, got -1.0"),
        ({"marginal_penalty": 1.0}, r"marginal_penalty must be a pair .* got 1.0; use math.inf"),
        ({"marginal_penalty": (0.0, 1.0)}, "marginal_penalty must be positive, got 0.0"),
        ({"marginal_penalty": (1.0, math.inf)}, "same on both sides with debias=True, got"),
    ],
)
def test_settings_outside_their_domain(settings, message):
    with pytest.raises(ValueError, match=message):
        Sinkhorn(**settings)


def test_errors_at_the_call(backend):
    x, y, _, _ = (make_array(backend, values) for values in rectangular())
    with pytest.raises(ValueError, match="value_from_cost knows one cost only, got debias=True"):
        Sinkhorn().value_from_cost(x)
    with pytest.raises(ValueError, match=r"reduction='sum' needs .* sizes 9 and 6"):
        Sinkhorn(epsilon=1.0, reduction="sum")(x, y)
    with pytest.raises(ValueError, match=r"cost must return shape \(9, 6\) .* got \(9, 9\)"):
        Sinkhorn(cost=lambda x, y: x @ x.T)(x, y)
