"""The exact Wasserstein distance: closed forms, the library's plan, gradients, bad input."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import ot
import pytest
import torch
from helpers import gradient_of, make_array
from scipy.stats import wasserstein_distance

from bayesdiv.divergences._wasserstein import Wasserstein


def clouds(seed=0, n=9, m=6, dim=2):
    generator = np.random.default_rng(seed)
    x, y = generator.normal(size=(n, dim)), 1.0 + generator.normal(size=(m, dim))
    return x, y, generator.dirichlet(np.ones(n)), generator.dirichlet(np.ones(m))


def library_power(x, y, a, b, order):
    return ot.emd2(a, b, np.linalg.norm(x[:, None] - y[None], axis=-1) ** order)


@pytest.mark.parametrize("order", [1.0, 1.5, 2.0, 3.0])
@pytest.mark.parametrize("dim", [1, 3])
def test_weighted_unequal_samples_agree_with_the_library(backend, dim, order):
    x, y, a, b = clouds(dim=dim)
    expected = library_power(x, y, a, b, order)
    weights = {"x_weights": make_array(backend, a), "y_weights": make_array(backend, b)}
    x, y = make_array(backend, x), make_array(backend, y)
    power = Wasserstein(order=order, root=False)(x, y, **weights)
    distance = Wasserstein(order=order)(x, y, **weights)
    assert float(power) == pytest.approx(expected, rel=1e-10)
    assert float(distance) == pytest.approx(expected ** (1 / order), rel=1e-10)


@pytest.mark.parametrize(("n", "m"), [(1, 1), (1, 7), (6, 4), (8, 8), (5, 11)])
def test_uniform_weights_on_the_line(backend, n, m):
    x, y, _, _ = clouds(n=n, m=m, dim=1)
    value = Wasserstein(order=1)(make_array(backend, x), make_array(backend, y))
    assert float(value) == pytest.approx(wasserstein_distance(x[:, 0], y[:, 0]), rel=1e-12)


def test_translation_moves_by_its_length(backend):
    x, _, _, _ = clouds(n=20, dim=3)
    shift = np.array([3.0, 0.0, 4.0])
    value = Wasserstein()(make_array(backend, x), make_array(backend, x + shift))
    assert float(value) == pytest.approx(5.0, rel=1e-12)
    gradient, _ = gradient_of(backend, Wasserstein(), x, x + shift)
    np.testing.assert_allclose(gradient.sum(0), -shift / 5.0, atol=1e-12)


@pytest.mark.parametrize("order", [1.0, 2.0, 3.0])
@pytest.mark.parametrize("dim", [1, 2])
@pytest.mark.parametrize("weighted", [False, True])
def test_gradient_by_finite_differences(backend, weighted, dim, order):
    x, y, a, b = clouds(seed=3, dim=dim)
    weights = {}
    if weighted:
        weights = {"x_weights": make_array(backend, a), "y_weights": make_array(backend, b)}

    def distance(x, y):
        return Wasserstein(order=order)(x, y, **weights)

    found = gradient_of(backend, distance, x, y)
    step = 1e-6
    for row in (0, 5):
        moved = np.zeros_like(x)
        moved[row, 0] = step
        ends = [
            float(distance(make_array(backend, x + sign * moved), make_array(backend, y)))
            for sign in (1, -1)
        ]
        assert found[0][row, 0] == pytest.approx((ends[0] - ends[1]) / (2 * step), abs=1e-8)


@pytest.mark.parametrize("order", [1.0, 2.0])
@pytest.mark.parametrize("dim", [1, 2])
def test_equal_samples_have_no_distance_and_a_finite_gradient(backend, dim, order):
    x, _, _, _ = clouds(dim=dim)
    assert float(Wasserstein(order=order)(make_array(backend, x), make_array(backend, x))) == 0.0
    for gradient in gradient_of(backend, Wasserstein(order=order), x, x):
        assert np.array_equal(gradient, np.zeros_like(x))


def test_gradient_in_weights_on_the_line(backend):
    x, y, a, b = clouds(dim=1)

    def power(a, b):
        samples = make_array(backend, x), make_array(backend, y)
        return Wasserstein(root=False)(*samples, x_weights=a, y_weights=b)

    found, _ = gradient_of(backend, power, a, b)
    move = np.zeros(9)
    move[[2, 7]] = 1e-7, -1e-7
    ends = [library_power(x, y, a + sign * move, b, 2.0) for sign in (1, -1)]
    assert found @ move == pytest.approx((ends[0] - ends[1]) / 2, abs=1e-13)


def test_float32_agrees_between_libraries():
    x, y, _, _ = clouds(n=30, m=20, dim=4)
    values = [
        float(Wasserstein()(make_array(name, x, "float32"), make_array(name, y, "float32")))
        for name in ("torch", "jax")
    ]
    assert values[0] == pytest.approx(values[1], rel=1e-6)


def test_jax_transformations_run_the_simplex_on_the_host():
    x, y, _, _ = (jnp.asarray(values) for values in clouds(n=40, m=40, dim=3))
    divergence = Wasserstein()
    eager, gradient = jax.value_and_grad(divergence)(x, y)
    compiled, compiled_gradient = jax.jit(jax.value_and_grad(divergence))(x, y)
    assert float(compiled) == pytest.approx(float(eager), rel=1e-13)
    np.testing.assert_allclose(compiled_gradient, gradient, atol=1e-14)
    pairs = jnp.stack([x, x + 1.0])
    each = jax.vmap(lambda z: divergence(z, y))(pairs)
    np.testing.assert_allclose(each, [float(divergence(z, y)) for z in pairs], rtol=1e-12)


@pytest.mark.parametrize("order", [0.5, math.inf, math.nan])
def test_order_outside_its_domain(order):
    with pytest.raises(ValueError, match="order must be finite and at least 1, got"):
        Wasserstein(order=order)


def bad_inputs():
    x, y = torch.ones(4, 2), torch.ones(3, 2)
    nan = x.clone()
    nan[2, 1] = math.nan
    quarter, third = torch.full((4,), 0.25), torch.full((3,), 1 / 3)
    return {
        "numpy": ((np.ones((4, 2)), y), {}, TypeError, "x must be a torch tensor or a JAX array"),
        "mixed": ((x, jnp.ones((3, 2))), {}, TypeError, "x and y must belong to one library"),
        "vector": ((x, y[:, 0]), {}, ValueError, r"y must have shape \(number of samples, dim\)"),
        "empty": ((x[:0], y), {}, ValueError, r"x must have shape .* got \(0, 2\)"),
        "integer": ((x.int(), y), {}, ValueError, "x must have a floating dtype, got torch.int32"),
        "dim": (
            (x, torch.ones(3, 5)),
            {},
            ValueError,
            r"same dim, got shapes \(4, 2\) and \(3, 5\)",
        ),
        "dtype": (
            (x, y.double()),
            {},
            ValueError,
            "same dtype, got torch.float32 and torch.float64",
        ),
        "nan": ((nan, y), {}, ValueError, "x must be finite, got NaN or infinity first in row 2"),
        "infinite": ((x, y * math.inf), {}, ValueError, "y must be finite, .* in row 0"),
        "length": (
            (x, y),
            {"x_weights": third},
            ValueError,
            r"x_weights must have shape \(4,\), .* got \(3,\)",
        ),
        "sum": (
            (x, y),
            {"x_weights": quarter, "y_weights": 2 * third},
            ValueError,
            "y_weights must sum to 1, got 2.0; divide them by their sum",
        ),
        "negative": (
            (x, y),
            {"x_weights": torch.tensor([0.5, -0.5, 0.5, 0.5])},
            ValueError,
            "x_weights must not be negative or NaN, got minimum -0.5",
        ),
        "weight_nan": (
            (x, y),
            {"x_weights": quarter * math.nan},
            ValueError,
            "x_weights must not be negative or NaN, got minimum nan",
        ),
        "weight_library": (
            (x, y),
            {"x_weights": [0.25] * 4},
            TypeError,
            "x_weights must be an array of its sample's library, got list",
        ),
    }


@pytest.mark.parametrize("case", list(bad_inputs()))
def test_bad_samples_and_weights(case):
    samples, weights, error, message = bad_inputs()[case]
    with pytest.raises(error, match=message):
        Wasserstein()(*samples, **weights)


def test_large_finite_samples_are_not_mistaken_for_infinite(backend):
    x = make_array(backend, [[1e38], [3e38], [3e38]], "float32")
    assert float(Wasserstein(order=1)(x, x)) == 0.0


def test_weights_that_require_gradients_raise_no_warning():
    x, y, a, b = (torch.tensor(values, requires_grad=True) for values in clouds())
    assert Wasserstein()(x, y, x_weights=a, y_weights=b).requires_grad
