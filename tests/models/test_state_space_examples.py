"""What the examples know in closed form, against quadrature and grids."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.scipy.special import logsumexp
from linear_gaussian_joint import VECTOR
from scipy.stats import multivariate_normal

from bayesdiv.models.kalman import LinearGaussianParameters
from bayesdiv.models.state_space import StateSpaceModel
from bayesdiv.models.state_space_examples import (
    arch_in_noise,
    bearings_only,
    growth,
    linear_gaussian,
    norm_observed_walk,
    simulate_volatility_with_leverage,
    stochastic_volatility,
    stochastic_volatility_with_leverage,
    tobit,
)

RETURNS = jnp.array([0.3, -0.8, jnp.nan, 1.2, -0.1])
MODELS = {
    "linear_gaussian": linear_gaussian(LinearGaussianParameters(0.9, 1.0, 1.5, 0.3)),
    "linear_gaussian_vector": linear_gaussian(VECTOR),
    "growth": growth(1.0),
    "growth_sharp": growth(0.1),
    "volatility": stochastic_volatility(-1.02, 0.9702, 0.178),
    "leverage": stochastic_volatility_with_leverage(-1.0, 0.95, 0.3, -0.6, RETURNS),
    "arch": arch_in_noise(0.8, 0.5, 0.4),
    "bearings": bearings_only(),
    "ring": norm_observed_walk(0.1),
    "ring_wide": norm_observed_walk(2.0, transition_scale=0.5),
    "tobit": tobit(0.3),
}
SCALAR_STATES = np.array([-12.0, -3.0, -0.4, 0.0, 1.0, 2.5, 20.0])
PLANE_STATES = np.array([[0.0, 0.0], [1.0, -2.0], [-3.0, 0.2], [0.5, 0.1], [6.0, 8.0]])


def log_integral(model: StateSpaceModel, states, time, observation, grid) -> np.ndarray:
    """log ∫ q(x′ | x) g(y | x′) dx′ for each x, on points and logarithms of their weights."""
    points, log_weights = (jnp.asarray(part) for part in grid)

    @jax.jit
    def one(state, observation):
        before = jnp.broadcast_to(state, (1, *state.shape))
        moved = model.transition(before, time).log_prob(points)
        seen = model.emission(points, time).log_prob(observation)
        return logsumexp(moved + seen + log_weights)

    return np.array([one(jnp.asarray(state), observation) for state in states])


def line(lower: float, upper: float, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Trapezoidal: exact to rounding where the integrand is smooth and vanishes at the ends."""
    return np.linspace(lower, upper, count), np.full(count, np.log((upper - lower) / (count - 1)))


def square(half: float, count: int) -> tuple[np.ndarray, np.ndarray]:
    axis, log_weights = line(-half, half, count)
    points = np.stack(np.meshgrid(axis, axis, indexing="ij"), axis=-1).reshape(-1, 2)
    return points, np.full(len(points), 2.0 * log_weights[0])


def disc(radius: float) -> tuple[np.ndarray, np.ndarray]:
    """Polar, as a norm has a kink at the origin."""
    nodes, weights = np.polynomial.legendre.leggauss(800)
    distance, angle = radius * (nodes + 1.0) / 2.0, 2.0 * np.pi * np.arange(128) / 128
    points = distance[:, None, None] * np.stack([np.cos(angle), np.sin(angle)], axis=-1)
    log_weights = np.log(weights * radius / 2.0 * distance * 2.0 * np.pi / 128)
    return points.reshape(-1, 2), np.repeat(log_weights, 128)


LINE, SQUARE, DISC = line(-60.0, 60.0, 60_001), square(14.0, 281), disc(16.0)


@pytest.mark.parametrize(
    ("name", "states", "grid", "observations", "tolerance"),
    [
        ("linear_gaussian", SCALAR_STATES, LINE, (-2.0, 0.5), 1e-9),
        ("growth", SCALAR_STATES, LINE, (-1.0, 0.0, 0.5, 5.0, 20.0), 1e-7),
        ("growth_sharp", SCALAR_STATES, LINE, (0.0, 0.5, 5.0, 20.0), 1e-7),
        ("arch", SCALAR_STATES, LINE, (-2.0, 0.0, 5.0), 1e-9),
        ("ring", PLANE_STATES, DISC, (-0.2, 0.1, 1.0, 4.0), 1e-7),
        ("ring_wide", PLANE_STATES, DISC, (-1.0, 3.0), 1e-7),
        ("tobit", PLANE_STATES, SQUARE, (0.0, 0.05, 3.0), 1e-9),
    ],
)
def test_predictive_densities_are_integrals(name, states, grid, observations, tolerance):
    model = MODELS[name]
    for observation in observations:
        observation = jnp.asarray(observation)
        found = model.log_predictive(jnp.asarray(states), 3, observation)
        exact = log_integral(model, states, 3, observation, grid)
        np.testing.assert_allclose(found, exact, atol=tolerance, err_msg=f"y = {observation}")


def test_a_linear_observation_of_a_vector_has_its_predictive_density():
    model, matrices = MODELS["linear_gaussian_vector"], VECTOR
    state, observation = np.array([0.4, -1.0]), np.array([0.2, 1.0, -0.5])
    emission = matrices.emission_matrix
    spread = emission @ matrices.transition_scale
    exact = multivariate_normal(
        emission @ (matrices.transition_matrix @ state + matrices.transition_offset)
        + matrices.emission_offset,
        spread @ spread.T + matrices.emission_scale @ matrices.emission_scale.T,
    )
    found = model.log_predictive(jnp.asarray(state)[None], 1, jnp.asarray(observation))
    np.testing.assert_allclose(found, exact.logpdf(observation), rtol=1e-12)


@pytest.mark.parametrize("name", ["volatility", "leverage"])
@pytest.mark.parametrize("time", [1, 3, 4])
def test_the_lookahead_of_volatility_is_a_bound_and_close(name, time):
    model, states = MODELS[name], np.array([-1.2, -0.5, 0.5])
    grid = line(-8.0, 6.0, 20_001)
    for observation, slack in ((0.0, 0.02), (0.5, 0.15)):
        found = model.log_lookahead(jnp.asarray(states), time, jnp.asarray(observation))
        exact = log_integral(model, states, time, observation, grid)
        assert (found <= exact).all()
        assert (found > exact - slack).all()


@pytest.mark.parametrize(("name", "most"), [("growth", 0.02), ("growth_sharp", 5e-4)])
def test_the_lookahead_of_growth_chooses_nearly_as_the_density(name, most):
    """KL(W p(y|x) ‖ W ψ) between the two first stages, on a cloud as wide as the process."""
    model = MODELS[name]
    cloud = 10.0 * jax.random.normal(jax.random.key(0), (20_000,))
    losses = []
    for observation in (-0.5, 0.1, 0.5, 2.0, 5.0, 15.0, 30.0):
        exact, found = (
            function(cloud, 2, jnp.asarray(observation))
            for function in (model.log_predictive, model.log_lookahead)
        )
        weight = jnp.exp(exact - logsumexp(exact))
        losses.append((weight * (exact - found)).sum() - logsumexp(exact) + logsumexp(found))
    assert max(losses) < most * 5
    assert np.mean(losses) < most


def test_the_lookahead_of_bearings_is_close():
    model = MODELS["bearings"]
    states = np.array([[1.0, 1.0, 3e-3, -3e-3], [-0.5, 0.001, 0.0, -2e-3], [0.1, -0.2, 0.0, 0.0]])
    # Position alone is seen: integrate over its marginal law, of scale s / √3.
    scale = 2e-4 / np.sqrt(3.0)
    for state in states:
        centre = state[:2] + state[2:]
        axes = np.linspace(-8.0 * scale, 8.0 * scale, 161)
        grid = centre + np.stack(np.meshgrid(axes, axes), axis=-1).reshape(-1, 2)
        weight = np.exp(-0.5 * ((grid - centre) ** 2).sum(1) / scale**2)
        full = jnp.asarray(np.concatenate([grid, np.zeros_like(grid)], axis=1))
        for shift in (-2e-3, 0.0, 1e-3):
            observation = jnp.arctan2(centre[1], centre[0]) + shift
            seen = np.exp(model.emission(full, 1).log_prob(observation))
            exact = np.log((weight * seen).sum() / weight.sum())
            found = model.log_lookahead(jnp.asarray(state)[None], 1, observation)[0]
            np.testing.assert_allclose(found, exact, atol=2e-3)


def test_bearings_go_around_the_circle():
    model = MODELS["bearings"]
    above, below = jnp.array([[-1.0, 1e-4, 0.0, 0.0]]), jnp.array([[-1.0, -1e-4, 0.0, 0.0]])
    angle = jnp.arctan2(below[0, 1], below[0, 0])
    np.testing.assert_allclose(
        model.emission(above, 0).log_prob(angle),
        model.emission(below, 0).log_prob(angle) - 0.5 * (2e-4 / 1e-3) ** 2,
        rtol=1e-6,
    )


def test_bearings_have_the_moments_of_an_integrated_walk():
    """Position and velocity after one step, from a fine discretisation of Brownian velocity."""
    model = MODELS["bearings"]
    state = jnp.array([[1.0, 2.0, 0.1, -0.2]])
    law = model.transition(state, 1)
    np.testing.assert_allclose(law.mean[0], [1.1, 1.8, 0.1, -0.2], rtol=1e-6)
    times = (np.arange(2000) + 0.5) / 2000
    # An impulse at time u changes velocity by 1 and position by 1 − u.
    effect = np.stack([1.0 - times, np.zeros(2000), np.ones(2000), np.zeros(2000)])
    exact = 2e-4**2 * (effect @ effect.T) / 2000
    np.testing.assert_allclose(law.covariance_matrix[0, ::2, ::2], exact[::2, ::2], rtol=1e-5)
    np.testing.assert_allclose(law.covariance_matrix[0, 1::2, 1::2], exact[::2, ::2], rtol=1e-5)
    np.testing.assert_allclose(law.covariance_matrix[0, ::2, 1::2], 0.0, atol=1e-15)


SUPREMA = {
    "linear_gaussian": (np.linspace(-30.0, 30.0, 20_001), (-2.0, 3.0)),
    "growth": (np.linspace(-30.0, 30.0, 20_001), (-1.0, 0.0, 6.0)),
    "volatility": (np.linspace(-20.0, 20.0, 20_001), (0.01, -0.7, 11.0)),
    "leverage": (np.linspace(-20.0, 20.0, 20_001), (0.5,)),
    "arch": (np.linspace(-20.0, 20.0, 20_001), (0.5,)),
    "ring": (np.stack([np.linspace(0.0, 9.0, 20_001), np.zeros(20_001)], -1), (-0.3, 0.0, 4.0)),
    "tobit": (np.stack([np.linspace(-9.0, 9.0, 20_001), np.zeros(20_001)], -1), (0.0, 1.0)),
    "bearings": (
        np.stack([np.cos(turn := np.linspace(-3.1, 3.1, 200_001)), np.sin(turn), turn, turn], -1),
        (-3.0, 0.4),
    ),
}


@pytest.mark.parametrize("name", SUPREMA)
def test_suprema_are_the_largest_values_on_a_grid(name):
    states, observations = SUPREMA[name]
    for observation in observations:
        observation = jnp.asarray(observation)
        largest = MODELS[name].emission(jnp.asarray(states), 2).log_prob(observation).max()
        found = MODELS[name].log_emission_supremum(2, observation)
        assert found >= largest - 1e-12
        np.testing.assert_allclose(found, largest, atol=1e-3)


def test_the_supremum_of_a_vector_bounds_its_emission():
    model = MODELS["linear_gaussian_vector"]
    observation = jnp.array([0.2, 1.0, -0.5])
    states = jax.random.normal(jax.random.key(0), (2000, 2))
    assert (model.emission(states, 0).log_prob(observation)).max() < (
        model.log_emission_supremum(0, observation)
    )


@pytest.mark.parametrize("name", MODELS)
def test_every_model_holds_its_shapes_and_draws_numbers(name):
    model = MODELS[name]
    model.check()
    states, observations = model.simulate(jax.random.key(0), 5)
    assert len(states) == len(observations) == 5
    assert bool(jnp.isfinite(states).all())
    assert bool(jnp.isfinite(observations).all())


@pytest.mark.parametrize("name", ["linear_gaussian", "growth", "volatility", "arch", "tobit"])
def test_transition_means_are_means(name):
    model = MODELS[name]
    states = jnp.asarray(PLANE_STATES if name == "tobit" else SCALAR_STATES)
    np.testing.assert_allclose(
        model.transition_mean(states, 4), model.transition(states, 4).mean, atol=1e-12
    )


def test_growth_is_forced_by_the_time():
    states = np.array([-1.0, 0.5])
    for time in (1, 2, 7):
        exact = states / 2 + 25 * states / (1 + states**2) + 8 * np.cos(1.2 * (time - 1))
        found = MODELS["growth"].transition_mean(jnp.asarray(states), time)
        np.testing.assert_allclose(found, exact, rtol=1e-12)


def test_leverage_has_the_joint_density_of_correlated_shocks():
    """The model given returns, times the emissions, against pairs (η_t, ε_{t+1})."""
    mean, persistence, scale, leverage = -1.0, 0.9, 0.3, -0.6
    states, returns = simulate_volatility_with_leverage(
        jax.random.key(0), 6, mean, persistence, scale, leverage
    )
    model = stochastic_volatility_with_leverage(mean, persistence, scale, leverage, returns)
    found = model.initial().log_prob(states[0]) + sum(
        model.emission(states[t : t + 1], t).log_prob(returns[t])[0] for t in range(6)
    )
    found += sum(model.transition(states[t - 1 : t], t).log_prob(states[t])[0] for t in range(1, 6))
    x, y = np.asarray(states), np.asarray(returns)
    shocks = np.stack([y[:-1] * np.exp(-x[:-1] / 2), (x[1:] - mean - persistence * (x[:-1] - mean))
                       / scale], -1)  # fmt: skip
    pairs = multivariate_normal(np.zeros(2), [[1.0, leverage], [leverage, 1.0]])
    exact = pairs.logpdf(shocks).sum() - (x[:-1] / 2).sum() - 5 * np.log(scale)
    exact += multivariate_normal(0.0, np.exp(x[-1])).logpdf(y[-1])
    exact += multivariate_normal(mean, scale**2 / (1 - persistence**2)).logpdf(x[0])
    np.testing.assert_allclose(found, exact, rtol=1e-10)


def test_drawn_shocks_have_the_leverage():
    states, returns = simulate_volatility_with_leverage(
        jax.random.key(1), 20_000, -1.0, 0.9, 0.3, -0.6
    )
    shock = returns[:-1] * jnp.exp(-states[:-1] / 2)
    innovation = (states[1:] + 1.0 - 0.9 * (states[:-1] + 1.0)) / 0.3
    found = np.corrcoef(shock, innovation)[0, 1]
    assert abs(found + 0.6) < 5.0 * (1 - 0.6**2) / np.sqrt(20_000)
    np.testing.assert_allclose(innovation.std(), 1.0, atol=0.03)


def test_parameters_may_be_traced():
    observation = jnp.asarray(0.7)

    def lookahead(mean, persistence, scale):
        model = stochastic_volatility(mean, persistence, scale)
        return model.log_lookahead(jnp.zeros(3), 1, observation).sum() + model.initial().log_prob(
            0.1
        )

    slopes = jax.jit(jax.grad(lookahead, argnums=(0, 1, 2)))(-1.0, 0.9, 0.2)
    for place, step in enumerate(1e-6 * np.eye(3)):
        up, down = (lookahead(*(np.array([-1.0, 0.9, 0.2]) + sign * step)) for sign in (1, -1))
        np.testing.assert_allclose(slopes[place], (up - down) / 2e-6, rtol=1e-6)
