"""State across steps: warm start, schedules, the running normaliser, mutable sites."""

import copy
import pickle

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from jax.scipy.special import logsumexp
from numpyro.infer import SVI
from numpyro.infer.autoguide import AutoNormal

from bayesdiv.numpyro import StatefulGuide, objective
from bayesdiv.objectives import linear_schedule

KEY = jax.random.key(7)
DATA = jnp.array([0.3, -0.4, 1.1])


def model(data=DATA):
    with numpyro.plate("data", 3):
        z = numpyro.sample("z", dist.Normal(0.0, 1.0))
        numpyro.sample("x", dist.Normal(z, 1.0), obs=data)


def guide(data=DATA):
    with numpyro.plate("data", 3):
        numpyro.sample("z", dist.Normal(numpyro.param("loc", 0.3), 0.6))


def losses_of(loss, num_steps, *, guide=guide, rate=0.0, **options):
    """Losses with the parameters at rest unless there is a rate, and the last state."""
    svi = SVI(model, guide, numpyro.optim.SGD(rate), loss)
    result = svi.run(KEY, num_steps, progress_bar=False, **options)
    return np.asarray(result.losses), result.state


def test_warm_start_is_reverse_kl_then_the_objective():
    loss = objective("forward_kl", warmup=2, num_particles=3)
    found, state = losses_of(loss, 4, guide=loss.stateful(guide))
    params = {"loc": jnp.array(0.3)}
    key = jax.random.split(KEY, 3)[0]
    expected = []
    for step in range(4):
        key, step_key = jax.random.split(key)
        log_weight = objective("forward_kl", num_particles=3)
        full = log_weight.estimate(step_key, params, model, guide, num_particles=3)
        cold = -full.log_weight.mean(0).sum()
        expected.append(cold if step < 2 else full.value)
    np.testing.assert_allclose(found, expected, rtol=1e-10)
    assert int(state.mutable_state["bayesdiv_state"]["step"]) == 4


def test_progress_bar_makes_no_difference():
    loss = objective("jensen_shannon", warmup=2, num_particles=3)
    svi = SVI(model, loss.stateful(guide), numpyro.optim.SGD(0.1), loss)
    loops = [svi.run(KEY, 4, progress_bar=bar).losses for bar in (False, True)]
    np.testing.assert_allclose(*loops, rtol=1e-12)


def test_schedule_follows_the_step():
    loss = objective("alpha", order=linear_schedule(0.2, 0.8, 3), num_particles=3)
    found, _ = losses_of(loss, 5, guide=loss.stateful(guide))
    params = {"loc": jnp.array(0.3)}
    key = jax.random.split(KEY, 3)[0]
    for step, order in enumerate([0.2, 0.4, 0.6, 0.8, 0.8]):
        key, step_key = jax.random.split(key)
        fixed = objective("alpha", order=order, num_particles=3)
        expected = fixed.loss(step_key, params, model, guide)
        # The step is an int32, whose quotient is a float32.
        np.testing.assert_allclose(found[step], expected, rtol=1e-6)


def test_running_normalizer_is_the_mean_over_all_steps_for_each_plate():
    loss = objective("forward_kl", normalizer="running", num_particles=3)
    _, state = losses_of(loss, 4, guide=loss.stateful(guide))
    stored = state.mutable_state["bayesdiv_state"]
    key = jax.random.split(KEY, 3)[0]
    rows = []
    for _ in range(4):
        key, step_key = jax.random.split(key)
        params = {"loc": jnp.array(0.3)}
        rows.append(
            loss.estimate(
                step_key, {**params, "bayesdiv_state": stored}, model, guide, num_particles=3
            ).log_weight
        )
    weights = jnp.concatenate(rows)
    np.testing.assert_allclose(stored["log_mean"], logsumexp(weights, 0) - np.log(12), rtol=1e-10)
    assert float(stored["count"]) == 4.0


def test_running_normalizer_where_the_guide_has_more_common_plates():
    def wider():
        z = numpyro.sample("z", dist.Normal(0.0, 1.0).expand([3]).to_event(1))
        with numpyro.plate("data", 3):
            numpyro.sample("x", dist.Normal(z, 1.0), obs=DATA)

    def global_model():
        with numpyro.plate("data", 3):
            z = numpyro.sample("z", dist.Normal(0.0, 1.0))
        numpyro.sample("x", dist.Normal(z.sum(), 1.0), obs=0.5)

    loss = objective("forward_kl", normalizer="running", num_particles=3)
    svi = SVI(global_model, loss.stateful(guide), numpyro.optim.SGD(0.1), loss)
    state = svi.run(KEY, 3, progress_bar=False).state
    log_mean = state.mutable_state["bayesdiv_state"]["log_mean"]
    assert log_mean.shape == (3,)
    assert np.isfinite(log_mean).all()
    assert np.ptp(log_mean) == 0.0


def test_running_normalizer_ignores_a_step_that_is_not_a_number():
    def tilted(tilt):
        with numpyro.plate("data", 3):
            numpyro.factor("tilt", tilt)
            numpyro.sample("z", dist.Normal(0.0, 1.0))

    loss = objective("forward_kl", normalizer="running", num_particles=3)
    svi = SVI(tilted, loss.stateful(guide), numpyro.optim.SGD(0.1), loss)
    update = jax.jit(svi.stable_update)
    state, _ = update(svi.init(KEY, DATA), DATA)
    broken, value = update(state, DATA.at[1].set(jnp.nan))
    assert np.isnan(value)
    before, after = (s.mutable_state["bayesdiv_state"] for s in (state, broken))
    np.testing.assert_array_equal(before["log_mean"], after["log_mean"])
    assert float(after["count"]) == float(before["count"]) == 1.0
    assert svi.get_params(broken) == svi.get_params(state)
    good, value = update(broken, DATA)
    assert np.isfinite(value)
    assert float(good.mutable_state["bayesdiv_state"]["count"]) == 2.0


@pytest.mark.parametrize(
    "arguments",
    [{"warmup": 3}, {"order": linear_schedule(0.2, 0.8, 3)}, {"normalizer": "running"}],
    ids=["warmup", "schedule", "running"],
)
def test_missing_state_is_refused(arguments):
    loss = objective("alpha", **arguments)
    with pytest.raises(ValueError, match=r"SVI\(model, loss.stateful\(guide\), optim, loss\)"):
        SVI(model, guide, numpyro.optim.SGD(0.1), loss).run(KEY, 2, progress_bar=False)


def test_evaluation_without_the_state():
    params = {"loc": jnp.array(0.3)}
    warm = objective("forward_kl", warmup=5, num_particles=3)
    plain = objective("forward_kl", num_particles=3)
    np.testing.assert_allclose(
        warm.loss(KEY, params, model, warm.stateful(guide)),
        plain.loss(KEY, params, model, guide),
        rtol=1e-12,
    )
    running = objective("forward_kl", normalizer="running", num_particles=3)
    np.testing.assert_allclose(
        running.loss(KEY, params, model, running.stateful(guide)),
        plain.loss(KEY, params, model, guide),
        rtol=1e-12,
    )
    scheduled = objective("alpha", order=linear_schedule(0.2, 0.8, 3))
    with pytest.raises(ValueError, match=r"\{\*\*params, \*\*svi_state.mutable_state\}"):
        scheduled.loss(KEY, params, model, scheduled.stateful(guide))


def test_running_normalizer_refuses_elements_that_change():
    def subsampled():
        with numpyro.plate("data", 3, subsample_size=2):
            numpyro.sample("z", dist.Normal(0.0, 1.0))

    loss = objective("forward_kl", normalizer="running")
    svi = SVI(subsampled, loss.stateful(subsampled), numpyro.optim.SGD(0.1), loss)
    with pytest.raises(ValueError, match=r"plates \['data'\] are subsampled"):
        svi.update(svi.init(KEY))


def test_stateful_guide_is_the_guide_in_all_else():
    loss = objective("forward_kl", warmup=1)
    auto = AutoNormal(model)
    wrapped = loss.stateful(auto)
    assert isinstance(wrapped, StatefulGuide)
    assert loss.stateful(wrapped) is wrapped
    params = (
        SVI(model, wrapped, numpyro.optim.SGD(0.1), loss).run(KEY, 3, progress_bar=False).params
    )
    draws = wrapped.sample_posterior(KEY, params, sample_shape=(2,))
    assert draws["z"].shape == (2, 3)
    np.testing.assert_allclose(wrapped.median(params)["z"], params["z_auto_loc"])
    assert pickle.loads(pickle.dumps(loss.stateful(guide)))._guide is guide
    assert copy.copy(wrapped)._guide is auto


@pytest.mark.parametrize("num_particles", [1, 4])
def test_mutable_sites_of_the_model_move_on(num_particles):
    def counting():
        memory = numpyro.primitives.mutable("memory", {"calls": 0, "mean": 0.0})
        z = numpyro.sample("z", dist.Normal(0.0, 1.0))
        memory["mean"] = 0.5 * memory["mean"] + 0.5 * z
        memory["calls"] = memory["calls"] + 1
        numpyro.sample("x", dist.Normal(z, 1.0), obs=0.3)

    def single():
        numpyro.sample("z", dist.Normal(numpyro.param("loc", 0.3), 0.6))

    loss = objective("forward_kl", num_particles=num_particles, warmup=1)
    svi = SVI(counting, loss.stateful(single), numpyro.optim.SGD(0.0), loss)
    state = svi.init(KEY)
    start = state.mutable_state["memory"]["mean"]
    state = jax.jit(lambda s: svi.update(s)[0])(state)
    memory = state.mutable_state["memory"]
    assert int(memory["calls"]) == 2
    assert int(state.mutable_state["bayesdiv_state"]["step"]) == 1
    _, step_key = jax.random.split(svi.init(KEY).rng_key)
    _, rest = jax.random.split(step_key)
    draws = [
        0.3 + 0.6 * _first_normal(jax.random.split(key)[1])
        for key in jax.random.split(rest, num_particles)
    ]
    np.testing.assert_allclose(memory["mean"], 0.5 * start + 0.5 * np.mean(draws), rtol=1e-10)


def _first_normal(key):
    """What the first site of a seeded function draws."""
    _, first = jax.random.split(key)
    return jax.random.normal(first)
