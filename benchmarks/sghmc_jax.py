"""A step of SGHMC in JAX inside one scan: ours and blackjax's integrator."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from blackjax.sgmcmc import diffusions
from blackjax.sgmcmc.gradients import grad_estimator

from bayesdiv.inference.sghmc import SGHMCDynamics, SGHMCState
from benchmarks import sghmc_problem as problem_
from benchmarks.cases import Case, Comparison, Duel, agree
from benchmarks.sghmc_problem import BURN_IN, FRICTION, STEP_SIZE, TOLERANCE, Problem

Batch = tuple[jax.Array, jax.Array]


def cases(*, quick: bool) -> list[Case]:
    """A logistic regression with one chain and with sixteen."""
    num_data, dim, steps = (100, 5, 20) if quick else (1000, 50, 1000)
    problem = problem_.classification(num_data, dim)
    return [
        Case(
            f"jax/sghmc/logistic/{dim}x{chains}",
            functools.partial(prepare, problem, chains, steps),
        )
        for chains in (1, 16)
    ]


def log_prior(w: jax.Array) -> jax.Array:
    """Standard normal, without its constant."""
    return -0.5 * jnp.sum(w * w)


def log_likelihood(w: jax.Array, datum: Batch) -> jax.Array:
    """Of one row."""
    x, y = datum
    logit = x @ w
    return y * logit - jax.nn.softplus(logit)


def prepare(problem: Problem, chains: int, steps: int) -> Duel:
    """One compiled scan each; chains by vmap for blackjax, as an axis for us."""
    estimator = grad_estimator(log_prior, log_likelihood, problem.num_data)
    draw = functools.partial(minibatch, problem)

    def potential(w: jax.Array, key: jax.Array) -> jax.Array:
        x, y = draw(key)
        logits = x @ w
        errors = jax.nn.softplus(logits) - y * logits
        return problem.scale * jnp.sum(errors) - log_prior(w)

    one = jax.value_and_grad(potential)

    def target(position: jax.Array, key: jax.Array) -> tuple[jax.Array, jax.Array]:
        if position.ndim == 1:
            return one(position, key)
        return jax.vmap(one)(position, jax.random.split(key, chains))

    dynamics = SGHMCDynamics(STEP_SIZE, FRICTION, num_burn_in=BURN_IN)
    shape = (problem.dim,) if chains == 1 else (chains, problem.dim)
    start = 0.1 * jax.random.normal(jax.random.key(0), shape)
    state = _scanned(dynamics, target, BURN_IN + 1)(dynamics.init(start, jax.random.key(1)))
    contestants = {
        "ours": _timed(_scanned(dynamics, target, steps), state),
        "blackjax": _timed(_blackjax(estimator, draw, chains, steps), state.position),
    }
    key, w = jax.random.key(2), start.reshape(-1, problem.dim)[0]
    agreement = agree("gradient", one(w, key)[1], -estimator(w, draw(key)), TOLERANCE)
    notes = {"unit": f"{steps} steps in one scan"}
    return Duel(contestants, [Comparison("ours", "blackjax", 1.10)], agreement, notes)


def minibatch(problem: Problem, key: jax.Array) -> Batch:
    """Rows drawn with replacement."""
    rows = jax.random.randint(key, (problem.batch_size,), 0, problem.num_data)
    return jnp.asarray(problem.inputs)[rows], jnp.asarray(problem.outputs)[rows]


def _timed(function: Callable[..., Any], *arguments: Any) -> Callable[[], Any]:
    compiled = jax.jit(function).lower(*arguments).compile()
    return lambda: jax.block_until_ready(compiled(*arguments))


def _scanned(dynamics: SGHMCDynamics, target: Any, steps: int) -> Callable[..., SGHMCState]:
    def run(state: SGHMCState) -> SGHMCState:
        def step(state: SGHMCState, _: None) -> tuple[SGHMCState, None]:
            return dynamics.step(state, target)[0], None

        return jax.lax.scan(step, state, None, length=steps)[0]

    return run


def _blackjax(estimator: Any, draw: Any, chains: int, steps: int) -> Callable[..., Any]:
    """A gradient from a fresh minibatch a step, as ours; its sampler would keep one for several."""
    integrate = diffusions.sghmc(FRICTION / STEP_SIZE)

    def step(position: jax.Array, momentum: jax.Array, key: jax.Array) -> Any:
        batch_key, noise_key = jax.random.split(key)
        gradient = estimator(position, draw(batch_key))
        return integrate(noise_key, position, momentum, gradient, STEP_SIZE)

    def move(carry: Any, key: jax.Array) -> tuple[Any, None]:
        if chains == 1:
            return step(*carry, key), None
        return jax.vmap(step)(*carry, jax.random.split(key, chains)), None

    def run(position: jax.Array) -> Any:
        keys = jax.random.split(jax.random.key(3), steps)
        return jax.lax.scan(move, (position, jnp.zeros_like(position)), keys)[0]

    return run
