"""Max-sliced and distributional sliced distances: closed forms, order between them, state."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from helpers import gradient_of, make_array, to_numpy

from bayesdiv.divergences._distributional_sliced import (
    DistributionalSlicedWasserstein,
    mean_absolute_cosine,
)
from bayesdiv.divergences._learned_slices import LearnedSlices
from bayesdiv.divergences._max_sliced import MaxSlicedWasserstein
from bayesdiv.divergences._sliced import SlicedWasserstein

MEMBERS = [
    MaxSlicedWasserstein(num_steps=10),
    DistributionalSlicedWasserstein(num_steps=10, num_projections=16),
]


def key(backend, seed=0):
    return seed if backend == "torch" else jax.random.key(seed)


def gaussians(n=1000, dim=10, shift=3.0, scale=2.0):
    """N(0, I) and N(m, scale² I) with |m| = shift."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(n, dim, generator=generator, dtype=torch.float64)
    y = scale * torch.randn(n, dim, generator=generator, dtype=torch.float64)
    y[:, 0] += shift
    return x, y


def clouds(seed=0, n=12, m=9, dim=3):
    generator = np.random.default_rng(seed)
    x, y = generator.normal(size=(n, dim)), 1.0 + 1.5 * generator.normal(size=(m, dim))
    return x, y, generator.dirichlet(np.ones(n)), generator.dirichlet(np.ones(m))


def test_max_sliced_closed_form_between_gaussians():
    """√(|Δm|² + (s1 − s2)²) = 3.1623, up to the floor of a thousand points."""
    value = float(MaxSlicedWasserstein(num_steps=100)(*gaussians(), rng=0))
    assert value == pytest.approx(math.sqrt(10.0), abs=0.15)


def test_max_sliced_is_the_mean_difference_where_nothing_else_differs(backend):
    x, _, _, _ = clouds(n=20)
    shift = np.array([2.0, -1.0, 2.0])
    value = MaxSlicedWasserstein()(
        make_array(backend, x), make_array(backend, x + shift), rng=key(backend)
    )
    assert float(value) == pytest.approx(3.0, rel=1e-3)


def test_max_sliced_finds_a_line_that_the_means_do_not_show(backend):
    """Equal means; only one coordinate's scale differs, by a factor of three."""
    generator = np.random.default_rng(5)
    x = generator.normal(size=(60, 4))
    x -= x.mean(0)
    y = x * np.array([1.0, 1.0, 3.0, 1.0])
    divergence = MaxSlicedWasserstein(num_steps=100)
    samples = make_array(backend, x), make_array(backend, y)
    state, info = divergence.step(divergence.init(*samples, rng=key(backend)), *samples)
    truth = 2.0 * math.sqrt((x[:, 2] ** 2).mean())
    assert float(info.objective) == pytest.approx(truth, rel=0.02)
    powers = [
        float(SlicedWasserstein().along(*samples, line[None, :]))
        for line in divergence.directions(state)
    ]
    assert float(info.objective) == pytest.approx(max(powers), rel=1e-12)


@pytest.mark.slow
def test_distributional_lies_between_sliced_and_max_sliced():
    """Distance and E|cos| of the learnt law over λ: from the max-sliced to the sliced distance.

    The expected values are of other draws of the same laws; at λ = 1, the bend between the two,
    draws move E|cos| by about 0.02.
    """
    x, y = gaussians()
    distances, cosines = [], []
    for strength in (0.1, 1.0, 3.0, 10.0, 100.0):
        divergence = DistributionalSlicedWasserstein(
            regularization=strength, num_projections=200, num_steps=250, learning_rate=1e-2
        )
        state, _ = divergence.step(divergence.init(x, y, rng=0), x, y, rng=1)
        distances.append(float(divergence.evaluate(state, x, y)))
        cosines.append(float(mean_absolute_cosine(divergence.directions(state))))
    np.testing.assert_allclose(distances, [3.216, 3.136, 2.264, 1.703, 1.446], rtol=0.08)
    np.testing.assert_allclose(cosines, [1.0, 0.905, 0.391, 0.269, 0.255], atol=0.06)
    assert np.all(np.diff(distances) < 0)
    assert np.all(np.diff(cosines) < 0)
    sliced = float(SlicedWasserstein(num_projections=2000)(x, y, rng=0))
    assert sliced * 0.95 < distances[-1]
    assert distances[0] <= float(MaxSlicedWasserstein(num_steps=100)(x, y, rng=0)) + 1e-3


def test_uniform_lines_have_the_cosine_of_the_sphere():
    """E|cos| = Γ(D/2) / (√π Γ((D+1)/2)), plus (1 − E|cos|)/L for a line with itself."""
    x, y = gaussians(n=4)
    divergence = DistributionalSlicedWasserstein(num_projections=1000)
    state = divergence.init(x, y, rng=0)
    uniform = math.gamma(5.0) / (math.sqrt(math.pi) * math.gamma(5.5))
    assert uniform == pytest.approx(0.25869, abs=1e-5)
    expected = uniform + (1 - uniform) / 1000
    found = float(mean_absolute_cosine(divergence.directions(state)))
    assert found == pytest.approx(expected, abs=0.002)


def test_equal_laws_leave_the_floor_of_finite_samples():
    """Of order n^(-1/2), largest for the worst line; reference values of other draws."""
    x, y = gaussians(shift=0.0, scale=1.0)
    sliced = float(SlicedWasserstein(num_projections=500)(x, y, rng=0))
    spread = DistributionalSlicedWasserstein(regularization=1.0, num_projections=200)
    distributional = float(spread(x, y, rng=0))
    largest = float(MaxSlicedWasserstein(num_steps=100)(x, y, rng=0))
    assert sliced == pytest.approx(0.080, rel=0.3)
    assert largest == pytest.approx(0.191, rel=0.3)
    assert sliced < 1.2 * distributional < largest


def test_sum_scale_needs_a_regularization_root_n_times_larger():
    x, y = gaussians(n=256)
    settings = {"num_projections": 50, "num_steps": 20, "learning_rate": 1e-2}
    mean = DistributionalSlicedWasserstein(regularization=2.0, **settings)
    total = DistributionalSlicedWasserstein(regularization=32.0, reduction="sum", **settings)
    assert float(total(x, y, rng=0)) == pytest.approx(16.0 * float(mean(x, y, rng=0)), rel=1e-6)


@pytest.mark.parametrize("divergence", MEMBERS, ids=lambda d: type(d).__name__)
def test_state_carries_on_and_the_objective_rises(backend, divergence):
    x, y, a, b = clouds()
    samples = make_array(backend, x), make_array(backend, y)
    weights = {"x_weights": make_array(backend, a), "y_weights": make_array(backend, b)}
    state = divergence.init(*samples, rng=key(backend))
    objectives = []
    for seed in range(3):
        state, info = divergence.step(state, *samples, **weights, rng=key(backend, seed))
        objectives.append(float(info.objective))
    assert float(state.ascent.num_steps) == 30
    assert objectives[-1] > objectives[0]
    lengths = np.linalg.norm(to_numpy(divergence.directions(state)), axis=1)
    np.testing.assert_allclose(lengths, 1.0, atol=1e-12)


@pytest.mark.parametrize("divergence", MEMBERS, ids=lambda d: type(d).__name__)
def test_gradient_holds_the_state_fixed(backend, divergence):
    x, y, a, b = clouds()
    samples = make_array(backend, x), make_array(backend, y)
    weights = {"x_weights": make_array(backend, a), "y_weights": make_array(backend, b)}
    state = divergence.init(*samples, rng=key(backend))
    state, _ = divergence.step(state, *samples, **weights, rng=key(backend, 1))

    def value(x, y):
        return divergence.evaluate(state, x, y, **weights)

    found = gradient_of(backend, value, x, y)
    for position, index in [(0, (0, 0)), (1, (4, 2))]:
        ends = []
        for sign in (1, -1):
            moved = [x.copy(), y.copy()]
            moved[position][index] += sign * 1e-6
            ends.append(float(value(*(make_array(backend, m) for m in moved))))
        assert found[position][index] == pytest.approx((ends[0] - ends[1]) / 2e-6, abs=1e-8)


@pytest.mark.parametrize("divergence", MEMBERS, ids=lambda d: type(d).__name__)
def test_libraries_take_the_same_steps(divergence):
    """From one state, copied; few steps, as Adam magnifies rounding."""
    x, y, a, b = clouds()
    divergence = type(divergence)(num_steps=5)
    values = []
    base = np.random.default_rng(3).normal(size=(64, 3))
    base /= np.linalg.norm(base, axis=1, keepdims=True)
    for backend in ("torch", "jax"):
        samples = make_array(backend, x), make_array(backend, y)
        state = divergence.init(*samples, rng=key(backend))
        if isinstance(divergence, DistributionalSlicedWasserstein):
            state = state._replace(base=make_array(backend, base))
        else:
            lines = make_array(backend, base[: divergence.num_starts])
            state = state._replace(ascent=state.ascent._replace(parameters=(lines,)))
        checked = divergence_samples(backend, x, y, a, b)
        state, _ = divergence._climb(state, checked)
        weights = {"x_weights": checked.x_weights, "y_weights": checked.y_weights}
        values.append(float(divergence.evaluate(state, *samples, **weights)))
    assert values[0] == pytest.approx(values[1], rel=1e-12)


def divergence_samples(backend, x, y, a, b):
    from bayesdiv.divergences._two_sample import check_samples

    return check_samples(*(make_array(backend, values) for values in (x, y, a, b)))


@pytest.mark.parametrize("divergence", MEMBERS, ids=lambda d: type(d).__name__)
def test_steps_leave_no_history_and_need_no_gradient(divergence):
    x, y, _, _ = (torch.tensor(values, requires_grad=True) for values in clouds())
    with torch.no_grad():
        state, info = divergence.step(divergence.init(x, y, rng=0), x, y, rng=0)
    assert not info.objective.requires_grad
    assert not any(parameter.requires_grad for parameter in state.ascent.parameters)
    assert divergence.evaluate(state, x, y).requires_grad


@pytest.mark.parametrize("divergence", MEMBERS, ids=lambda d: type(d).__name__)
def test_jax_scans_the_inner_step_and_vmaps_the_call(divergence):
    x, y, _, _ = (jnp.asarray(values) for values in clouds())
    keys = jax.random.split(jax.random.key(0), 3)

    def train(x, y):
        state = divergence.init(x, y, rng=jax.random.key(1))
        return jax.lax.scan(lambda s, k: divergence.step(s, x, y, rng=k), state, keys)

    state, infos = jax.jit(train)(x, y)
    assert infos.objective.shape == (3,)
    assert float(state.ascent.num_steps) == 30
    each = jax.vmap(lambda k: divergence(x, y, rng=k))(keys)
    assert np.ptp(each) > 0
    traced = jax.jit(
        lambda rate: type(divergence)(learning_rate=rate, num_steps=3)(x, y, rng=keys[0])
    )
    assert np.isfinite(traced(0.01))


def test_one_call_is_init_step_evaluate():
    x, y, _, _ = (torch.tensor(values) for values in clouds())
    for divergence in MEMBERS:
        generator = torch.Generator().manual_seed(5)
        state = divergence.init(x, y, rng=generator)
        state, _ = divergence.step(state, x, y, rng=generator)
        assert divergence(x, y, rng=5) == divergence.evaluate(state, x, y)


@pytest.mark.parametrize("divergence", MEMBERS, ids=lambda d: type(d).__name__)
def test_equal_samples_have_a_finite_gradient(backend, divergence):
    x, _, _, _ = clouds()

    def value(x, y):
        return divergence(x, y, rng=key(backend))

    assert float(value(make_array(backend, x), make_array(backend, x))) == 0.0
    for gradient in gradient_of(backend, value, x, x):
        assert np.array_equal(gradient, np.zeros_like(x))


@pytest.mark.parametrize(
    ("member", "settings", "message"),
    [
        (MaxSlicedWasserstein, {"num_starts": 0}, "num_starts must be an integer of at least 1"),
        (MaxSlicedWasserstein, {"num_steps": 0}, "num_steps must be an integer of at least 1"),
        (MaxSlicedWasserstein, {"learning_rate": 0.0}, "learning_rate must be positive, got 0.0"),
        (MaxSlicedWasserstein, {"order": 0.0}, "order must be finite and at least 1, got 0.0"),
        (
            DistributionalSlicedWasserstein,
            {"num_projections": -1},
            "num_projections must be an integer of at least 1, got -1",
        ),
        (
            DistributionalSlicedWasserstein,
            {"regularization": -0.1},
            "regularization must be at least 0, got -0.1",
        ),
    ],
)
def test_settings_outside_their_domain(member, settings, message):
    with pytest.raises(ValueError, match=message):
        member(**settings)


def test_jax_needs_a_key_and_a_member_its_climb():
    x, y, _, _ = (jnp.asarray(values) for values in clouds())
    for divergence in MEMBERS:
        with pytest.raises(ValueError, match="rng must be a JAX key for JAX samples, got None"):
            divergence(x, y)
    with pytest.raises(NotImplementedError, match="LearnedSlices must implement _climb"):
        LearnedSlices()._climb(None, None)
