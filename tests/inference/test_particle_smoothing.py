"""Smoothing by genealogies, fixed lags and backward sampling, against the exact smoother."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import assert_within_standard_errors
from particle_models import kalman, keys, linear_model, linear_series, optimal_proposal

from bayesdiv.inference.particle_smoothing import (
    ancestor_paths,
    backward_trajectories,
    distinct_ancestors,
    fixed_lag_moments,
)
from bayesdiv.inference.smc import ParticleFilter

SERIES = linear_series(0.5, 25)
SERIES[[6, 7]] = np.nan
EXACT = kalman(SERIES, 0.5)
MODEL = linear_model(0.5)
COUNT = 400


@pytest.fixture(scope="module")
def results():
    """Forty runs of the guided filter with their clouds."""
    particle_filter = ParticleFilter(MODEL, optimal_proposal(0.5), num_particles=COUNT)
    return jax.jit(
        jax.vmap(
            lambda key: particle_filter.run(
                key, jnp.asarray(SERIES), store=("particles", "moments")
            )
        )
    )(keys(40))


@pytest.fixture(scope="module")
def trajectories(results):
    """Fifty of each run."""
    draw = jax.vmap(
        lambda key, result: backward_trajectories(key, MODEL, result, num_trajectories=50)
    )
    return jax.jit(draw)(keys(40, 1), results)


def one(results, index=0):
    return jax.tree.map(lambda leaf: leaf[index], results)


def test_paths_follow_the_ancestors(results):
    result = one(results)
    paths = np.asarray(ancestor_paths(result))
    assert paths.shape == (COUNT, 25)
    np.testing.assert_array_equal(paths[:, -1], result.particles[-1])
    rows = np.arange(COUNT)
    for time in range(24, 0, -1):
        rows = np.asarray(result.ancestors[time])[rows]
        np.testing.assert_array_equal(
            paths[:, time - 1], np.asarray(result.particles)[time - 1, rows]
        )


def test_distinct_ancestors_count_what_paths_pass_through(results):
    result = one(results)
    found = np.asarray(distinct_ancestors(result))
    paths = np.asarray(ancestor_paths(result))
    assert found.tolist() == [len(np.unique(column)) for column in paths.T]
    assert found[0] < found[-1] == COUNT


def test_paths_have_the_moments_of_the_smoother(results):
    def mean(result):
        weights = jnp.exp(result.log_weights[-1])
        return jnp.sum(weights[:, None] * ancestor_paths(result), axis=0)

    means = np.asarray(jax.vmap(mean)(results))
    assert_within_standard_errors(means, EXACT.smooth_mean)


def test_lag_zero_is_the_filter(results):
    result = one(results)
    moments = fixed_lag_moments(result, 0)
    np.testing.assert_allclose(moments.mean, result.mean, rtol=1e-10)
    np.testing.assert_allclose(moments.variance, result.variance, rtol=1e-8)


def test_a_lag_beyond_the_series_is_the_genealogy(results):
    result = one(results)
    moments = fixed_lag_moments(result, 100)
    weights = np.exp(np.asarray(result.log_weights[-1]))[:, None]
    np.testing.assert_allclose(
        moments.mean, (weights * np.asarray(ancestor_paths(result))).sum(0), rtol=1e-10
    )


def test_moderate_lags_reach_the_smoother_with_less_noise(results):
    lagged = jax.jit(jax.vmap(lambda result: fixed_lag_moments(result, 6)))(results)
    # The memory of the model is short: 6 steps leave less than this bias.
    assert np.abs(np.asarray(lagged.mean).mean(0) - EXACT.smooth_mean).max() < 0.03
    assert np.abs(np.asarray(lagged.variance).mean(0) - EXACT.smooth_variance).max() < 0.03
    filtered = np.abs(EXACT.mean - EXACT.smooth_mean).max()
    assert filtered > 0.2


def test_backward_trajectories_have_the_law_of_the_smoother(trajectories):
    paths = np.asarray(trajectories)
    assert paths.shape == (40, 50, 25)
    # Independent over the 40 runs, not within one.
    assert_within_standard_errors(paths.mean(1), EXACT.smooth_mean)
    assert_within_standard_errors(((paths - EXACT.smooth_mean) ** 2).mean(1), EXACT.smooth_variance)
    # The lag-one covariance under the smoother: gain times the later variance.
    later = EXACT.smooth_variance[1:]
    spread = 0.9**2 * EXACT.variance[:-1] + 1.0
    covariance = EXACT.variance[:-1] * 0.9 / spread * later
    centred = paths - EXACT.smooth_mean
    assert_within_standard_errors((centred[..., 1:] * centred[..., :-1]).mean(1), covariance)


@pytest.mark.slow
def test_backward_trajectories_do_not_merge():
    """Where the bootstrap filter's genealogy has merged into a few ancestors."""
    particle_filter = ParticleFilter(MODEL, num_particles=COUNT, ess_threshold=1.0)
    result = particle_filter.run(jax.random.key(0), jnp.asarray(SERIES), store="particles")
    drawn = backward_trajectories(jax.random.key(0), MODEL, result, num_trajectories=200)
    assert int(distinct_ancestors(result)[0]) < 20
    assert len(np.unique(np.asarray(drawn)[:, 0])) > 60


def test_trajectories_become_draws_of_an_arviz_object(results, trajectories):
    states = results.to_arviz(trajectories=trajectories)["posterior"]["state"]
    assert states.dims == ("chain", "draw", "time")
    np.testing.assert_array_equal(states.values, trajectories)


def test_one_time():
    result = ParticleFilter(MODEL, num_particles=5).run(
        jax.random.key(0), jnp.asarray(SERIES[:1]), store="particles"
    )
    assert ancestor_paths(result).shape == (5, 1)
    assert fixed_lag_moments(result, 3).mean.shape == (1,)
    drawn = backward_trajectories(jax.random.key(1), MODEL, result, num_trajectories=4)
    assert drawn.shape == (4, 1)


def test_bad_input_is_named(results):
    particle_filter = ParticleFilter(MODEL, num_particles=5)
    without = particle_filter.run(jax.random.key(0), jnp.asarray(SERIES))
    key = jax.random.key(0)
    with pytest.raises(ValueError, match="result must hold particles.* store='particles'"):
        ancestor_paths(without)
    with pytest.raises(ValueError, match=r"result must be of one run, .* got \(40, 25, 400\)"):
        distinct_ancestors(results)
    with pytest.raises(ValueError, match="lag must be a whole number of times, .* got -1"):
        fixed_lag_moments(one(results), -1)
    with pytest.raises(ValueError, match="num_trajectories must be a whole number .* got 0"):
        backward_trajectories(key, MODEL, one(results), num_trajectories=0)
    with pytest.raises(TypeError, match="model must have a function initial"):
        backward_trajectories(key, None, one(results))
