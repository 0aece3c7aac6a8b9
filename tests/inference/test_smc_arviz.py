"""Results of particle filters as ArviZ objects."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from particle_models import keys, linear_model, linear_series

from bayesdiv.inference.smc import ParticleFilter

SERIES = jnp.asarray(linear_series(0.5, 12)).at[5].set(jnp.nan)
KEY = jax.random.key(0)


def test_runs_become_chains_of_an_arviz_object():
    particle_filter = ParticleFilter(linear_model(0.5), num_particles=60)
    many = jax.vmap(lambda key: particle_filter.run(key, SERIES, store="particles"))(keys(3))
    data = many.to_arviz(observations=SERIES, pareto_k=True)
    states = data["posterior"]["state"]
    assert states.dims == ("chain", "draw", "time")
    assert states.shape == (3, 60, 12)
    weights = np.exp(np.asarray(many.log_weights))
    filtered = (weights * np.asarray(many.particles)).sum(-1)
    # Systematic draws of 60 from 60 particles: a tooth's width times the spread, at most.
    np.testing.assert_allclose(states.mean("draw"), filtered, atol=0.15)
    stats = data["sample_stats"]
    assert {"ess", "kl", "cv2", "max_weight", "resampled", "pareto_k"} <= set(stats.data_vars)
    assert stats["ess"].dims == ("chain", "draw", "time")
    np.testing.assert_allclose(stats["ess"].values[:, 0], many.ess)
    np.testing.assert_allclose(
        data["log_likelihood"]["observation"].values[:, 0], many.log_evidence_increments
    )
    np.testing.assert_array_equal(data["observed_data"]["observation"].values, SERIES)
    assert data["posterior"].attrs["num_particles"] == 60
    fewer = many.to_arviz(num_draws=10, name="level")
    assert fewer["posterior"]["level"].shape == (3, 10, 12)


def test_one_run_is_one_chain():
    stored = ParticleFilter(linear_model(0.5), num_particles=20).run(KEY, SERIES, store="particles")
    data = stored.to_arviz()
    assert data["posterior"]["state"].shape == (1, 20, 12)
    trajectories = jnp.zeros((5, 12))
    assert stored.to_arviz(trajectories=trajectories)["posterior"]["state"].shape == (1, 5, 12)
    with pytest.raises(ValueError, match=r"trajectories must have shape .* got \(5, 11\)"):
        stored.to_arviz(trajectories=trajectories[:, 1:])
    with pytest.raises(ValueError, match="num_draws must be an integer of at least 1, got 0"):
        stored.to_arviz(num_draws=0)


def test_arviz_without_particles_says_what_is_missing():
    result = ParticleFilter(linear_model(0.5), num_particles=10).run(KEY, SERIES)
    with pytest.raises(ValueError, match="draws of the states need particles or trajectories"):
        result.to_arviz()
    with pytest.raises(ValueError, match="pareto_k needs the weights of every step"):
        result.to_arviz(trajectories=jnp.zeros((3, 12)), pareto_k=True)
