"""Sinkhorn and sliced distances with gradient in JAX, compiled: ours, ott and POT."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import ot
from ott.geometry.pointcloud import PointCloud
from ott.solvers import linear
from ott.tools.sinkhorn_divergence import sinkdiv
from ott.tools.sliced import random_proj_sphere, sliced_wasserstein

from bayesdiv.divergences import Sinkhorn, SlicedWasserstein
from benchmarks import transport_problem as problem_
from benchmarks.cases import Case, Comparison, Duel, agree
from benchmarks.transport_problem import SinkhornProblem, SlicedProblem

MAX_ITERATIONS = 5_000
Value = Callable[..., jax.Array]


def cases(*, quick: bool) -> list[Case]:
    """Every problem of :mod:`benchmarks.transport_problem`."""
    sinkhorn = [
        Case(f"jax/sinkhorn/{problem.name}", functools.partial(prepare_sinkhorn, problem))
        for problem in problem_.sinkhorn_problems(quick=quick)
    ]
    sliced = [
        Case(f"jax/sliced/{problem.name}", functools.partial(prepare_sliced, problem))
        for problem in problem_.sliced_problems(quick=quick)
    ]
    return sinkhorn + sliced


def prepare_sinkhorn(problem: SinkhornProblem) -> Duel:
    """Each solver at its loosest setting within the marginal error wanted."""
    x, y = problem_.samples(problem.count, problem.count, problem.dim)
    cost = problem_.squared_distances(x, y)
    epsilon = problem.relative_epsilon * float(cost.mean())
    points = jnp.asarray(x), jnp.asarray(y)
    values: dict[str, Value] = {}
    notes: dict[str, str] = {}
    for name, (log_plan, value) in _solvers(problem, epsilon, cost).items():
        found = problem_.loosest(
            problem_.tolerances(problem.error),
            lambda s, plan=log_plan: problem_.marginal_error(plan(s, *points)),
            problem.error,
        )
        if found is None:
            notes[name] = "left out: it reaches the marginal error at none of its settings"
        else:
            notes[name] = f"setting {found.setting:g}, marginal error {found.error:.1e}"
            values[name] = functools.partial(value, found.setting)
    compiled = {name: _compiled(value) for name, value in values.items()}
    agreement = _agreement(compiled, points, 10.0 * problem.error)
    rivals = [Comparison("ours", name, 1.0) for name in values if name != "ours"]
    return Duel(_steps(compiled, points), rivals, agreement, notes)


def prepare_sliced(problem: SlicedProblem) -> Duel:
    """Each draws its own directions when timed; given directions, all agree."""
    x, y = problem_.samples(problem.x_count, problem.y_count, problem.dim)
    points = jnp.asarray(x), jnp.asarray(y)
    directions = jnp.asarray(problem_.unit_directions(problem.directions, problem.dim))
    member = SlicedWasserstein(num_projections=problem.directions)

    # POT compiles only if weights are given, and its own draw is not pure: it gets ott's.
    x_weights = jnp.full(problem.x_count, 1.0 / problem.x_count)
    y_weights = jnp.full(problem.y_count, 1.0 / problem.y_count)

    def pot_along(x: jax.Array, y: jax.Array, drawn: jax.Array) -> jax.Array:
        return ot.sliced_wasserstein_distance(x, y, x_weights, y_weights, projections=drawn)

    def pot(x: jax.Array, y: jax.Array, key: jax.Array) -> jax.Array:
        return pot_along(x, y, random_proj_sphere(jnp.eye(problem.dim), problem.directions, key))

    def ott(x: jax.Array, y: jax.Array, key: jax.Array) -> jax.Array:
        return jnp.sqrt(sliced_wasserstein(x, y, n_proj=problem.directions, rng=key)[0])

    given = {
        "POT": lambda x, y: pot_along(x, y, directions.T),
        "ott": lambda x, y: jnp.sqrt(
            sliced_wasserstein(x, y, proj_fn=lambda points: points @ directions.T)[0]
        ),
        "ours": lambda x, y: member.along(x, y, directions),
    }
    values = {"POT": pot, "ott": ott, "ours": lambda x, y, key: member(x, y, rng=key)}
    agreement = _agreement(
        {n: _compiled(v) for n, v in given.items()}, points, problem_.SLICED_TOLERANCE
    )
    steps = _steps({n: _compiled(v) for n, v in values.items()}, (*points, jax.random.key(0)))
    return Duel(steps, [Comparison("ours", "POT", 0.5), Comparison("ours", "ott")], agreement)


def _solvers(problem: SinkhornProblem, epsilon: float, cost: np.ndarray) -> dict[str, Any]:
    """The plan's logarithm and the value at a tolerance, by solver."""
    uniform = -2.0 * math.log(problem.count)

    def ott(*, lse_mode: bool) -> Any:
        keywords = {"lse_mode": lse_mode, "max_iterations": MAX_ITERATIONS}

        def plan(setting: float, x: jax.Array, y: jax.Array) -> np.ndarray:
            geometry = PointCloud(x, y, epsilon=epsilon)
            solution = linear.solve(geometry, threshold=setting, **keywords)
            return (_plus(solution.f, solution.g) - cost) / epsilon

        def value(setting: float, x: jax.Array, y: jax.Array) -> jax.Array:
            if problem.debias:
                settings = {"threshold": setting, **keywords}
                return sinkdiv(x, y, epsilon=epsilon, solve_kwargs=settings)[0]
            geometry = PointCloud(x, y, epsilon=epsilon)
            return linear.solve(geometry, threshold=setting, **keywords).reg_ot_cost

        return plan, value

    def member(setting: float) -> Sinkhorn:
        return Sinkhorn(
            epsilon, tolerance=setting, debias=problem.debias, max_iterations=MAX_ITERATIONS
        )

    def our_plan(setting: float, x: jax.Array, y: jax.Array) -> np.ndarray:
        solution = member(setting).solve(x, y)
        f, g = solution.x_potential, solution.y_potential
        return (_plus(f, g) - cost) / epsilon + uniform

    return {
        "ott": ott(lse_mode=True),
        "ott kernel": ott(lse_mode=False),
        "ours": (our_plan, lambda setting, x, y: member(setting)(x, y)),
    }


def _plus(f: jax.Array, g: jax.Array) -> np.ndarray:
    return np.asarray(f, dtype=float)[:, None] + np.asarray(g, dtype=float)[None, :]


def _compiled(value: Value) -> Callable[..., Any]:
    return jax.jit(jax.value_and_grad(value, argnums=(0, 1)))


def _steps(compiled: dict[str, Any], arguments: tuple[Any, ...]) -> dict[str, Any]:
    return {
        name: lambda function=function: jax.block_until_ready(function(*arguments))
        for name, function in compiled.items()
    }


def _agreement(
    compiled: dict[str, Any], points: tuple[jax.Array, jax.Array], tolerance: float
) -> dict[str, float]:
    value, gradients = compiled["ours"](*points)
    found: dict[str, float] = {}
    for name, rival in compiled.items():
        if name != "ours":
            theirs, their_gradients = rival(*points)
            found |= agree(f"{name}: value", value, theirs, tolerance)
            for side, ours, wanted in zip("xy", gradients, their_gradients, strict=True):
                found |= agree(f"{name}: gradient in {side}", ours, wanted, tolerance)
    return found
