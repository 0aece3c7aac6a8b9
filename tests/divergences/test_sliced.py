"""The sliced Wasserstein distance: closed forms, the library, gradients, randomness."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import ot
import pytest
import torch
from helpers import assert_within_standard_errors, gradient_of, make_array

from bayesdiv.divergences._sliced import SlicedWasserstein


def key(backend, seed=0):
    return seed if backend == "torch" else jax.random.key(seed)


def directions(count, dim, seed=7):
    draws = np.random.default_rng(seed).normal(size=(count, dim))
    return draws / np.linalg.norm(draws, axis=1, keepdims=True)


def clouds(seed=0, n=9, m=6, dim=3):
    generator = np.random.default_rng(seed)
    x, y = generator.normal(size=(n, dim)), 1.0 + generator.normal(size=(m, dim))
    return x, y, generator.dirichlet(np.ones(n)), generator.dirichlet(np.ones(m))


@pytest.mark.parametrize("order", [1.0, 1.5, 2.0])
@pytest.mark.parametrize(("n", "m"), [(8, 8), (9, 6), (6, 9), (1, 5)])
@pytest.mark.parametrize("weighted", ["none", "x", "both"])
def test_given_directions_agree_with_the_library(backend, weighted, n, m, order):
    x, y, a, b = clouds(n=n, m=m)
    lines = directions(20, 3)
    used_a, used_b = a if weighted != "none" else None, b if weighted == "both" else None
    expected = ot.sliced_wasserstein_distance(x, y, used_a, used_b, p=order, projections=lines.T)
    value = SlicedWasserstein(order=order).along(
        make_array(backend, x),
        make_array(backend, y),
        make_array(backend, lines),
        x_weights=None if used_a is None else make_array(backend, used_a),
        y_weights=None if used_b is None else make_array(backend, used_b),
    )
    assert float(value) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize(("dtype", "error"), [("float32", 1e-6), ("float64", 1e-12)])
@pytest.mark.parametrize("sizes", [(40, 40), (30, 20)])
def test_libraries_agree(sizes, dtype, error):
    x, y, _, _ = clouds(n=sizes[0], m=sizes[1], dim=5)
    lines = directions(16, 5)
    values = [
        float(SlicedWasserstein().along(*(make_array(name, z, dtype) for z in (x, y, lines))))
        for name in ("torch", "jax")
    ]
    assert values[0] == pytest.approx(values[1], rel=error)


def test_closed_form_between_gaussians():
    """|Δm|²/D + (s1 − s2)²; the bias of finite samples, about 0.005 here, is far below the gate."""
    generator = torch.Generator().manual_seed(0)
    divergence = SlicedWasserstein(num_projections=50, root=False)
    draws = []
    for _ in range(40):
        x = torch.randn(1000, 10, generator=generator, dtype=torch.float64)
        y = 2.0 * torch.randn(1000, 10, generator=generator, dtype=torch.float64)
        y[:, 0] += 3.0
        draws.append(float(divergence(x, y, rng=generator)))
    assert_within_standard_errors(np.array(draws), 9 / 10 + 1.0)
    assert np.mean(draws) ** 0.5 == pytest.approx(1.3784, abs=0.05)


def test_equal_weights_are_no_weights(backend):
    x, y, _, _ = clouds()
    lines = make_array(backend, directions(10, 3))
    uniform = {
        "x_weights": make_array(backend, np.full(9, 1 / 9)),
        "y_weights": make_array(backend, np.full(6, 1 / 6)),
    }
    samples = make_array(backend, x), make_array(backend, y)
    plain = SlicedWasserstein().along(*samples, lines)
    weighted = SlicedWasserstein().along(*samples, lines, **uniform)
    assert float(weighted) == pytest.approx(float(plain), rel=1e-12)


@pytest.mark.parametrize("order", [1.0, 1.5, 2.0])
@pytest.mark.parametrize("case", ["equal", "unequal", "weighted"])
def test_gradient_by_finite_differences(backend, case, order):
    x, y, a, b = clouds(n=6 if case == "equal" else 9, m=6)
    weights = {}
    if case == "weighted":
        weights = {"x_weights": make_array(backend, a), "y_weights": make_array(backend, b)}
    lines = make_array(backend, directions(10, 3))

    def distance(x, y):
        return SlicedWasserstein(order=order).along(x, y, lines, **weights)

    found = gradient_of(backend, distance, x, y)
    step = 1e-6
    for position, index in [(0, (0, 0)), (0, (4, 2)), (1, (3, 1))]:
        ends = []
        for sign in (1, -1):
            samples = [x.copy(), y.copy()]
            samples[position][index] += sign * step
            ends.append(float(distance(*(make_array(backend, s) for s in samples))))
        assert found[position][index] == pytest.approx((ends[0] - ends[1]) / (2 * step), abs=1e-8)


@pytest.mark.parametrize("order", [1.0, 1.5, 2.0])
def test_equal_samples_have_no_distance_and_a_finite_gradient(backend, order):
    x, _, _, _ = clouds()

    def distance(x, y):
        return SlicedWasserstein(order=order)(x, y, rng=key(backend))

    assert float(distance(make_array(backend, x), make_array(backend, x))) == 0.0
    for gradient in gradient_of(backend, distance, x, x):
        assert np.array_equal(gradient, np.zeros_like(x))


def test_order_of_points_is_nothing_and_sum_is_root_n_times_mean(backend):
    x, y, _, _ = clouds(n=8, m=8)
    shuffled = np.random.default_rng(1).permutation(8)
    lines = make_array(backend, directions(10, 3))
    samples = make_array(backend, x), make_array(backend, y)
    mean = float(SlicedWasserstein().along(*samples, lines))
    permuted = SlicedWasserstein().along(make_array(backend, x[shuffled]), samples[1], lines)
    assert float(permuted) == pytest.approx(mean, rel=1e-13)
    for order in (1.0, 2.0):
        scaled = SlicedWasserstein(order=order, reduction="sum").along(*samples, lines)
        plain = SlicedWasserstein(order=order).along(*samples, lines)
        assert float(scaled) == pytest.approx(8 ** (1 / order) * float(plain), rel=1e-12)


def test_rotating_both_changes_nothing_in_law():
    x, y, _, _ = (torch.tensor(values) for values in clouds(n=50, m=50))
    rotation, _ = np.linalg.qr(np.random.default_rng(2).normal(size=(3, 3)))
    rotation = torch.tensor(rotation)
    divergence = SlicedWasserstein(num_projections=20, root=False)
    generator = torch.Generator().manual_seed(3)
    gaps = [
        float(divergence(x, y, rng=generator))
        - float(divergence(x @ rotation, y @ rotation, rng=generator))
        for _ in range(60)
    ]
    assert_within_standard_errors(np.array(gaps), 0.0)


def test_selecting_a_scale_reaches_the_optimum_in_closed_form():
    """x ~ N(m, v), model w + ε with w ~ N(mu, τ²): least at mu = m, τ² = v − σ²."""
    generator = torch.Generator().manual_seed(0)
    dim, variance, sigma = 8, 2.89, 0.1
    centre = torch.linspace(-1.0, 1.0, dim)
    mean = torch.zeros(dim, requires_grad=True)
    log_scale = torch.zeros((), requires_grad=True)
    optimizer = torch.optim.Adam([mean, log_scale], lr=0.05)
    schedule = torch.optim.lr_scheduler.ExponentialLR(optimizer, gamma=0.985)
    divergence = SlicedWasserstein(num_projections=50)
    for _ in range(250):
        data = centre + variance**0.5 * torch.randn(512, dim, generator=generator)
        model = mean + log_scale.exp() * torch.randn(512, dim, generator=generator)
        model = model + sigma * torch.randn(512, dim, generator=generator)
        optimizer.zero_grad()
        divergence(model, data, rng=generator).backward()
        optimizer.step()
        schedule.step()
    assert float((2 * log_scale.detach()).exp()) == pytest.approx(variance - sigma**2, rel=0.05)
    assert float((mean.detach() - centre).abs().max()) < 0.1


def test_seeds_and_generators_reproduce():
    x, y, _, _ = (torch.tensor(values) for values in clouds())
    divergence = SlicedWasserstein()
    assert divergence(x, y, rng=3) == divergence(x, y, rng=3)
    assert divergence(x, y, rng=3) != divergence(x, y, rng=4)
    assert divergence(x, y, rng=3) == divergence(x, y, rng=torch.Generator().manual_seed(3))
    torch.manual_seed(3)
    assert divergence(x, y) == divergence(x, y, rng=3)


def test_torch_function_transforms_agree_with_autograd():
    x, y, _, _ = (torch.tensor(values) for values in clouds(n=6, m=6))
    lines = torch.tensor(directions(10, 3))
    divergence = SlicedWasserstein()
    found = torch.func.grad(lambda x: divergence.along(x, y, lines))(x)
    expected, _ = gradient_of("torch", lambda x, y: divergence.along(x, y, lines), x, y)
    np.testing.assert_allclose(found, expected, atol=1e-15)


def test_jax_transformations():
    x, y, a, b = (jnp.asarray(values) for values in clouds())
    divergence = SlicedWasserstein()

    def value(x, rng):
        return divergence(x, y, x_weights=a, y_weights=b, rng=rng)

    eager = float(value(x, jax.random.key(0)))
    assert float(jax.jit(value)(x, jax.random.key(0))) == pytest.approx(eager, rel=1e-13)
    assert float(value(x, jax.random.PRNGKey(0))) == pytest.approx(eager, rel=1e-13)
    keys = jax.random.split(jax.random.key(1), 3)
    each = jax.vmap(value, in_axes=(None, 0))(x, keys)
    np.testing.assert_allclose(each, [float(value(x, k)) for k in keys], rtol=1e-12)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_projections": 0}, "num_projections must be an integer of at least 1, got 0"),
        ({"num_projections": 2.5}, "num_projections must be an integer of at least 1, got 2.5"),
        ({"order": 0.9}, "order must be finite and at least 1, got 0.9"),
        ({"reduction": "max"}, "reduction must be one of 'mean', 'sum', got 'max'"),
    ],
)
def test_settings_outside_their_domain(settings, message):
    with pytest.raises(ValueError, match=message):
        SlicedWasserstein(**settings)


def test_sources_of_randomness_that_do_not_fit():
    x, y, _, _ = clouds()
    divergence = SlicedWasserstein()
    with pytest.raises(ValueError, match=r"rng must be a JAX key .* got None; pass .*key\(0\)"):
        divergence(jnp.asarray(x), jnp.asarray(y))
    with pytest.raises(TypeError, match="rng must be a JAX key for JAX samples, got int"):
        divergence(jnp.asarray(x), jnp.asarray(y), rng=0)
    with pytest.raises(TypeError, match="rng must be a torch.Generator, an integer seed or None"):
        divergence(torch.tensor(x), torch.tensor(y), rng="seed")


def test_errors_at_the_call(backend):
    x, y, _, _ = (make_array(backend, values) for values in clouds())
    with pytest.raises(ValueError, match=r"directions must have shape \(lines, 3\), got \(2, 4\)"):
        SlicedWasserstein().along(x, y, make_array(backend, np.ones((2, 4))))
    with pytest.raises(ValueError, match=r"reduction='sum' needs .* got sizes 9 and 6"):
        SlicedWasserstein(reduction="sum")(x, y, rng=key(backend))


def test_infinite_samples_are_named(backend):
    x, y, _, _ = clouds()
    y[4, 1] = math.inf
    with pytest.raises(ValueError, match="y must be finite, got NaN or infinity first in row 4"):
        SlicedWasserstein()(make_array(backend, x), make_array(backend, y), rng=key(backend))
