"""Time for a hundred effective draws: our SGHMC, blackjax's integrator, and NUTS of NumPyro.

Each is adapted beforehand; a pilot run says how many steps or draws it needs for that many
effective draws of its slowest coordinate, and these are timed.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from blackjax.sgmcmc import diffusions
from numpyro.diagnostics import effective_sample_size
from numpyro.infer import MCMC, NUTS

from bayesdiv.inference.sghmc import SGHMCDynamics
from benchmarks import sghmc_problem as problem_
from benchmarks.cases import Case, Comparison, Duel, agree
from benchmarks.sghmc_problem import FRICTION

STEP_SIZE = 0.02
WANTED = 100
# Of the pilots' standard deviations, which are estimates themselves.
TOLERANCE = 0.3
# Steps between kept positions of a pilot run.
THINNING = 20
Potential = Callable[[jax.Array, jax.Array | None], jax.Array]


def cases(*, quick: bool) -> list[Case]:
    """A logistic regression, and a hierarchy of normal groups with unknown scales."""
    num_data, dim, groups = (100, 3, 4) if quick else (1000, 50, 20)
    pilot = 20_000 if quick else 100_000
    logistic = functools.partial(logistic_potential, num_data, dim)
    hierarchy = functools.partial(hierarchical_potential, num_data, groups)
    return [
        Case(
            f"jax/sghmc/effective/{name}",
            functools.partial(prepare, make, size, pilot),
            single_calls=True,
        )
        for name, make, size in (
            ("logistic", logistic, dim),
            ("hierarchical", hierarchy, groups + 3),
        )
    ]


def logistic_potential(num_data: int, dim: int) -> Potential:
    """U from a minibatch drawn by the key, or from all data without one."""
    problem = problem_.classification(num_data, dim)
    inputs, outputs = jnp.asarray(problem.inputs), jnp.asarray(problem.outputs)

    def potential(w: jax.Array, key: jax.Array | None) -> jax.Array:
        rows, scale = _rows(key, num_data, problem.batch_size)
        logits = inputs[rows] @ w
        errors = jax.nn.softplus(logits) - outputs[rows] * logits
        return scale * jnp.sum(errors) + 0.5 * jnp.sum(w * w)

    return potential


def hierarchical_potential(num_data: int, groups: int) -> Potential:
    """Position: grand mean, log spread of groups, log noise, and the groups' means.

    y_i ~ N(mean of its group, noise²); means ~ N(grand mean, spread²); N(0, 1) on the first three.
    """
    rng = np.random.default_rng(1)
    group = jnp.asarray(np.arange(num_data) % groups)
    means = 0.5 + 0.8 * rng.normal(size=groups)
    outputs = jnp.asarray(means[np.asarray(group)] + rng.normal(size=num_data), dtype="float32")

    def potential(w: jax.Array, key: jax.Array | None) -> jax.Array:
        rows, scale = _rows(key, num_data, 32)
        top, log_spread, log_noise, means = w[0], w[1], w[2], w[3:]
        error = (outputs[rows] - means[group[rows]]) * jnp.exp(-log_noise)
        fit = scale * jnp.sum(0.5 * error * error + log_noise)
        deviation = (means - top) * jnp.exp(-log_spread)
        return fit + jnp.sum(0.5 * deviation**2 + log_spread) + 0.5 * jnp.sum(w[:3] ** 2)

    return potential


def prepare(make: Callable[[], Potential], dim: int, pilot: int) -> Duel:
    """Adapt, run the pilots, and compile what is timed."""
    potential = make()
    gradient = jax.value_and_grad(potential)
    exact, nuts_timed, nuts_need = _nuts(potential, dim, pilot // 100)
    dynamics = SGHMCDynamics(STEP_SIZE, FRICTION, num_burn_in=pilot // 20)
    state = dynamics.init(jnp.asarray(exact.mean(0)), jax.random.key(0))
    state, _ = _trajectory(lambda s: dynamics.step(s, gradient)[0], pilot // 10, THINNING)(state)

    # Its one step size must do for every coordinate: that of ours with the largest V.
    their_step = float(STEP_SIZE / jnp.max(state.second_moment) ** 0.25)
    integrate = diffusions.sghmc(FRICTION / their_step)

    def blackjax(carry: Any) -> Any:
        position, momentum, key = carry
        key, noise_key, batch_key = jax.random.split(key, 3)
        slope = -gradient(position, batch_key)[1]
        return (*integrate(noise_key, position, momentum, slope, their_step), key)

    their_state = state.position, jnp.zeros(dim), jax.random.key(1)
    steps: dict[str, Callable[[], Any]] = {"NUTS": nuts_timed}
    notes = {"NUTS": f"{nuts_need} draws"}
    agreement: dict[str, float] = {}
    for name, move, start, of in (
        ("ours", lambda s: dynamics.step(s, gradient)[0], state, lambda s: s.position),
        ("blackjax", blackjax, their_state, lambda s: s[0]),
    ):
        _, draws = _trajectory(move, pilot, THINNING, of)(start)
        need = _needed(draws, THINNING)
        run = _trajectory(move, need, THINNING, of).lower(start).compile()
        steps[name] = lambda run=run, start=start: jax.block_until_ready(run(start))
        ratio = np.asarray(draws).std(0) / exact.std(0)
        if name == "ours":
            agreement |= agree("ours: sd by NUTS", draws.std(0), exact.std(0), TOLERANCE)
        notes[name] = f"{need} steps, sd {ratio.min():.2f} to {ratio.max():.2f} of NUTS"
    comparisons = [Comparison("ours", "NUTS"), Comparison("ours", "blackjax")]
    return Duel(steps, comparisons, agreement, notes)


def _rows(key: jax.Array | None, num_data: int, batch_size: int) -> tuple[Any, float]:
    if key is None:
        return slice(None), 1.0
    return jax.random.randint(key, (batch_size,), 0, num_data), num_data / batch_size


def _trajectory(
    move: Callable[[Any], Any],
    steps: int,
    every: int,
    of: Callable[[Any], jax.Array] = lambda state: state.position,
) -> Any:
    """The last state and every ``every``-th position."""

    @jax.jit
    def run(state: Any) -> tuple[Any, jax.Array]:
        def block(state: Any, _: None) -> tuple[Any, jax.Array]:
            state = jax.lax.fori_loop(0, every, lambda _, s: move(s), state)
            return state, of(state)

        return jax.lax.scan(block, state, None, length=-(-steps // every))

    return run


def _needed(draws: jax.Array, every: int) -> int:
    """Steps for the effective draws wanted, by the slowest coordinate."""
    effective = float(np.min(effective_sample_size(np.asarray(draws)[None])))
    return max(every, int(WANTED * len(draws) * every / effective))


def _nuts(potential: Potential, dim: int, draws: int) -> tuple[np.ndarray, Any, int]:
    """Draws of a pilot; what runs as many more as are needed, in one scan; that number."""
    kernel = NUTS(potential_fn=lambda w: potential(w, None))
    pilot = MCMC(kernel, num_warmup=500, num_samples=draws, progress_bar=False)
    pilot.run(jax.random.key(2), init_params=jnp.zeros(dim))
    need = _needed(pilot.get_samples(), 1)
    start = pilot.last_state
    # MCMC.run would be traced again at every call.
    move = functools.partial(kernel.sample, model_args=(), model_kwargs={})
    run = _trajectory(move, need, 1, lambda state: state.z).lower(start).compile()
    timed = lambda: jax.block_until_ready(run(start))  # noqa: E731
    return np.asarray(pilot.get_samples()), timed, need
