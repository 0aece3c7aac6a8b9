"""Bootstrap filters in JAX that are not ours: a scan by hand, smcx and cuthbert.

Each is a compiled function of a key that returns the log-evidence first, on formulas written by
hand.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import cuthbert
import jax
import jax.numpy as jnp
import smcx
from cuthbert.smc import particle_filter
from cuthbertlib.resampling import systematic
from cuthbertlib.resampling.adaptive import ess_decorator

from benchmarks.filters_models import formulas
from benchmarks.filters_problem import ESS_THRESHOLD, Problem

Run = Callable[[jax.Array], tuple]


def bare_scan(problem: Problem) -> Run:
    """What a filter has to do and nothing more; float prefix sums, which err at 10⁶ particles.

    It returns what ours reports: evidence increments, effective sample sizes, whether it resampled,
    means and variances.
    """
    given, count = formulas(problem.model), problem.num_particles
    observations = jnp.asarray(problem.observations)

    def weigh(states: jax.Array, base: jax.Array, observation: jax.Array) -> tuple:
        log_weights = base + given.log_emission(states, observation)
        largest = jnp.max(log_weights)
        weights = jnp.exp(log_weights - largest)
        total = jnp.sum(weights)
        increment = largest + jnp.log(total)
        ess = total * total / jnp.sum(weights * weights)
        mean = jnp.sum(weights * states) / total
        variance = jnp.sum(weights * (states - mean) ** 2) / total
        return (states, log_weights - increment, ess), (increment, ess, mean, variance)

    def resample(key: jax.Array, states: jax.Array, log_weights: jax.Array) -> tuple:
        cumulative = jnp.cumsum(jnp.exp(log_weights))
        places = count * cumulative / cumulative[-1] - jax.random.uniform(key)
        ends = jnp.ceil(places).astype(jnp.int32)
        starts = jnp.zeros(count, jnp.int32).at[ends].add(1, mode="drop", indices_are_sorted=True)
        ancestors = jnp.minimum(jnp.cumsum(starts), count - 1)
        return states[ancestors], jnp.full(count, -math.log(count))

    def step(cloud: tuple, row: tuple) -> tuple:
        states, log_weights, ess = cloud
        time, observation, (move_key, resample_key) = row
        resampled = ess < ESS_THRESHOLD * count
        states, base = jax.lax.cond(
            resampled,
            lambda: resample(resample_key, states, log_weights),
            lambda: (states, log_weights),
        )
        noise = jax.random.normal(move_key, (count,))
        states = given.move(states, time) + given.scale * noise
        cloud, report = weigh(states, base, observation)
        return cloud, (*report, resampled)

    def run(key: jax.Array) -> tuple:
        first_key, key = jax.random.split(key)
        mean, scale = given.initial
        states = mean + scale * jax.random.normal(first_key, (count,))
        cloud, first = weigh(states, jnp.full(count, -math.log(count)), observations[0])
        times = jnp.arange(1, problem.num_times)
        keys = jax.random.split(key, (problem.num_times - 1, 2))
        _, later = jax.lax.scan(step, cloud, (times, observations[1:], keys))
        return first[0] + jnp.sum(later[0]), later

    return jax.jit(run)


def smcx_filter(problem: Problem) -> Run:
    """Time is an input, as its transitions are not told; each particle has a key of its own."""
    given = formulas(problem.model)
    observations = jnp.asarray(problem.observations)

    def initial(key: jax.Array, num_particles: int) -> jax.Array:
        mean, scale = given.initial
        return mean + scale * jax.random.normal(key, (num_particles,))

    def move(key: jax.Array, state: jax.Array, inputs: jax.Array) -> jax.Array:
        return given.move(state, inputs[0]) + given.scale * jax.random.normal(key)

    def run(key: jax.Array) -> tuple:
        found = smcx.bootstrap_filter(
            key,
            lambda key, num_particles, inputs: initial(key, num_particles),
            move,
            lambda observation, state, inputs: given.log_emission(state, observation[0]),
            observations,
            problem.num_particles,
            resampling_threshold=ESS_THRESHOLD,
            inputs=jnp.arange(problem.num_times, dtype=observations.dtype),
            store_history=False,
        )
        return found.marginal_loglik, found.ess

    return jax.jit(run)


def cuthbert_filter(problem: Problem) -> Run:
    """Its states start unobserved; ours emit at once, so that its first ones are weighed here."""
    given, count = formulas(problem.model), problem.num_particles
    observations = jnp.asarray(problem.observations)
    log_emission = given.log_emission

    def initial(key: jax.Array) -> jax.Array:
        mean, scale = given.initial
        return mean + scale * jax.random.normal(key)

    def move(key: jax.Array, state: jax.Array, inputs: tuple) -> jax.Array:
        return given.move(state, inputs[0]) + given.scale * jax.random.normal(key)

    peer = particle_filter.build_filter(
        initial,
        move,
        lambda before, state, inputs: log_emission(state, inputs[1]),
        count,
        ess_decorator(systematic.resampling, ESS_THRESHOLD),
    )
    inputs = jnp.arange(1, problem.num_times), observations[1:]

    def run(key: jax.Array) -> tuple:
        first_key, key = jax.random.split(key)
        state = peer.init_prepare(key=first_key)
        log_weights = log_emission(state.particles, observations[0])
        evidence = jax.nn.logsumexp(log_weights) - math.log(count)
        state = state._replace(log_weights=log_weights, log_normalizing_constant=evidence)
        states = cuthbert.filter(peer, inputs, state, key=key)
        return (states.log_normalizing_constant[-1],)

    return jax.jit(run)
