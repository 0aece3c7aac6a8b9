r"""The solver of entropic transport: stabilised, over-relaxed scaling.

The half-steps here are matrix-vector products with a kernel into which the potentials have been
absorbed (Schmitzer, Stabilized sparse scaling, 2019): as safe as the log domain, without an
exponential per entry and half-step. Over-relaxation (Thibault, Chizat, Dossal and Papadakis,
Overrelaxed Sinkhorn-Knopp, 2021) cuts the number of rounds where marginals are hard; each round
ends with plain half-steps, after which the marginal error means what it says.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

from bayesdiv._array import Array, array_namespace, logsumexp
from bayesdiv._control import branch, repeat, while_loop
from bayesdiv.divergences._sinkhorn_problem import (
    Problem,
    SinkhornSolution,
    SolverSettings,
    half_step_x,
    half_step_y,
    log_or_minus_infinity,
    resolved_tolerance,
    softness,
    solution_from,
    wanted_x,
    wanted_y,
)

RELAXED_STEPS = 8
PLAIN_STEPS = 2
LARGEST_RELAXATION = 1.998
ANNEALING_START = 0.01
ANNEALING_FACTOR = 0.25


class _Round(NamedTuple):
    x_potential: Array
    y_potential: Array
    kernel: Array
    x_shift: Array
    y_shift: Array
    x_scaling: Array
    y_scaling: Array
    epsilon: Array
    relaxation: Array
    error: Array
    num_iterations: Array
    is_stale: Array


def solve(settings: SolverSettings, *arrays: Any) -> SinkhornSolution:
    """Solve a problem to the tolerance, starting from a ``y_potential``; not differentiable.

    ``arrays`` are the fields of `Problem`, then the start.
    """
    *fields, start = arrays
    problem = Problem(*fields)
    xp = array_namespace(problem.cost)
    spread = xp.max(problem.cost) - xp.min(problem.cost)
    zero = xp.zeros_like(problem.epsilon)
    zero_x, zero_y = xp.zeros_like(problem.x_weights), xp.zeros_like(problem.y_weights)
    # A forbidden pair of infinite cost says nothing about the scale.
    first = xp.maximum(problem.epsilon, ANNEALING_START * spread)
    state = _Round(
        x_potential=zero_x,
        y_potential=start,
        kernel=problem.cost,
        x_shift=zero_x,
        y_shift=zero_y,
        x_scaling=zero_x,
        y_scaling=zero_y,
        epsilon=xp.where(xp.isfinite(spread), first, problem.epsilon),
        relaxation=zero + 1.0,
        error=zero + math.inf,
        num_iterations=zero,
        is_stale=zero < 1.0,
    )
    tolerance = resolved_tolerance(settings.tolerance, problem.cost)

    def unfinished(state: _Round) -> Array:
        short = (state.epsilon > problem.epsilon) | (state.error > tolerance)
        return short & (state.num_iterations < settings.max_iterations)

    state = while_loop(
        problem.cost, unfinished, lambda state: _round(settings, problem, state), state
    )
    return _finish(settings, problem, state)


def _finish(settings: SolverSettings, problem: Problem, state: _Round) -> SinkhornSolution:
    """The solution with one hard marginal, y if both are, made exact by scaling the plan.

    In float32 the exponent of an entry is off by the rounding of cost / ε; the scaling takes that
    out of the sums.
    """
    xp = array_namespace(problem.cost)
    f, g = state.x_potential, state.y_potential
    found = solution_from(settings, problem, f, g, state.num_iterations, state.error)
    if settings.hard[1]:
        factor = _ratio(problem.y_weights, xp.sum(found.plan, axis=0))
        g, plan = g + problem.epsilon * xp.log(factor), found.plan * factor
        error = xp.sum(xp.abs(xp.sum(plan, axis=1) - wanted_x(settings, problem, f)))
    elif settings.hard[0]:
        factor = _ratio(problem.x_weights, xp.sum(found.plan, axis=1))
        f, plan = f + problem.epsilon * xp.log(factor), found.plan * factor[:, None]
        error = xp.sum(xp.abs(xp.sum(plan, axis=0) - wanted_y(settings, problem, g)))
    else:
        return found
    return found._replace(x_potential=f, y_potential=g, plan=plan, marginal_error=error)


def _ratio(weights: Array, sums: Array) -> Array:
    """weights / sums, and 1 where there is nothing to scale."""
    xp = array_namespace(weights)
    usable = (weights > 0) & (sums > 0)
    return xp.where(usable, weights / xp.where(usable, sums, 1.0), 1.0)


def _absorb(problem: Problem, state: _Round) -> _Round:
    """Rebuild a stale kernel around the potentials and start its scalings at one."""
    xp = array_namespace(problem.cost)
    kernel, top = _row_scaled_kernel(problem.cost, state.y_potential, state.epsilon)
    row_sums = kernel @ problem.y_weights
    x_shift, y_shift = -state.epsilon * top, state.y_potential
    x_softness = softness(problem, state.epsilon)[0]
    x_scaling = row_sums ** (-x_softness) * xp.exp((1.0 - x_softness) * top)
    return state._replace(
        kernel=kernel,
        x_shift=x_shift,
        y_shift=y_shift,
        x_scaling=x_scaling,
        y_scaling=xp.ones_like(y_shift),
        is_stale=~state.is_stale,
    )


def _round(settings: SolverSettings, problem: Problem, state: _Round) -> _Round:
    """Some relaxed and some plain iterations at one ε, then what the next round needs."""
    xp = array_namespace(problem.cost)
    state = branch(state.is_stale, lambda old: _absorb(problem, old), lambda old: old, state)
    a, b, epsilon = problem.x_weights, problem.y_weights, state.epsilon
    x_answer = _scaling_answer(problem.x_penalty, state.x_shift, epsilon, hard=settings.hard[0])
    y_answer = _scaling_answer(problem.y_penalty, state.y_shift, epsilon, hard=settings.hard[1])

    def relaxed(scalings: tuple[Array, Array]) -> tuple[Array, Array]:
        u, v = scalings
        v = v * (y_answer((a * u) @ state.kernel) / v) ** state.relaxation
        u = u * (x_answer(state.kernel @ (b * v)) / u) ** state.relaxation
        return u, v

    def plain(carry: tuple[Array, Array, Array, Array]) -> tuple[Array, Array, Array, Array]:
        u, _, error, _ = carry
        v = y_answer((a * u) @ state.kernel)
        sums = state.kernel @ (b * v)
        answer = x_answer(sums)
        return answer, v, xp.sum(a * sums * xp.abs(answer - u)), error

    num_plain = min(PLAIN_STEPS, settings.max_iterations)
    num_relaxed = max(0, min(RELAXED_STEPS, settings.max_iterations - num_plain))
    u, v = repeat(a, num_relaxed, relaxed, (state.x_scaling, state.y_scaling))
    plain_u, plain_v, error, error_before = repeat(
        a, num_plain, plain, (u, v, state.error, state.error)
    )
    log_u, log_v = xp.log(plain_u), xp.log(plain_v)
    if settings.hard != (True, True):
        lift = _best_shift(
            problem, state.x_shift + epsilon * log_u, state.y_shift + epsilon * log_v
        )
        log_u, log_v = log_u + lift / epsilon, log_v - lift / epsilon
        plain_u, plain_v = xp.exp(log_u), xp.exp(log_v)
    largest = xp.maximum(xp.max(xp.abs(log_u)), xp.max(xp.abs(log_v)))
    # Plain steps would undo what over-relaxation has gathered, so that it goes on from before them.
    is_plain = state.relaxation <= 1.0
    moved = state._replace(
        x_potential=state.x_shift + epsilon * log_u,
        y_potential=state.y_shift + epsilon * log_v,
        x_scaling=xp.where(is_plain, plain_u, u),
        y_scaling=xp.where(is_plain, plain_v, v),
        num_iterations=state.num_iterations + (num_relaxed + num_plain),
    )
    limit = -0.25 * _log_smallest(problem.cost)
    at_target = epsilon <= problem.epsilon
    sound = largest < 3.0 * limit

    def keep(state: _Round) -> _Round:
        relaxation = _next_relaxation(settings, state, error, error_before, max(1, num_relaxed))
        return state._replace(
            relaxation=xp.where(at_target, relaxation, xp.ones_like(relaxation)),
            error=xp.where(at_target, error, xp.zeros_like(error) + math.inf),
            epsilon=xp.maximum(problem.epsilon, ANNEALING_FACTOR * epsilon),
            is_stale=~(at_target & (largest < limit)),
        )

    def start_over(_: _Round) -> _Round:
        # The scalings left the range of the dtype: one iteration in the log domain from before.
        f = half_step_x(problem, state.y_potential, epsilon)
        g = half_step_y(problem, f, epsilon)
        return state._replace(
            x_potential=f,
            y_potential=g,
            relaxation=xp.ones_like(state.relaxation),
            error=xp.zeros_like(state.error) + math.inf,
            num_iterations=state.num_iterations + 1,
            is_stale=~state.is_stale,
        )

    return branch(sound, keep, start_over, moved)


def _best_shift(problem: Problem, f: Array, g: Array) -> Array:
    """What to move from g to f: the constant that scaling finds only at rate ρ / (ρ + ε).

    It maximises the dual objective in that direction (Séjourné, Vialard and Peyré, Faster
    unbalanced optimal transport: translation invariant Sinkhorn, 2022, proposition 2).
    """
    log_x_mass = logsumexp(log_or_minus_infinity(problem.x_weights) - f / problem.x_penalty, axis=0)
    log_y_mass = logsumexp(log_or_minus_infinity(problem.y_weights) - g / problem.y_penalty, axis=0)
    return (log_x_mass - log_y_mass) / (1.0 / problem.x_penalty + 1.0 / problem.y_penalty)


def _scaling_answer(penalty: Array, shift: Array, epsilon: Array, *, hard: bool) -> Callable:
    """The half-step of one side on the sums of the shifted kernel."""
    if hard:
        return lambda sums: 1.0 / sums
    exponent = 1.0 / (1.0 + epsilon / penalty)
    damping = array_namespace(shift).exp(-(1.0 - exponent) * shift / epsilon)
    return lambda sums: sums ** (-exponent) * damping


def _next_relaxation(
    settings: SolverSettings, state: _Round, error: Array, error_before: Array, num_steps: int
) -> Array:
    """The over-relaxation for the contraction that has been seen; 1 after a setback.

    Near the solution plain scaling contracts by some κ per iteration, over-relaxed scaling by λ
    with ``(λ + ω - 1)² = κ λ ω²``, which is least at ``ω = 2 / (1 + √(1 - κ))`` (Young's theory of
    successive over-relaxation). A round at ω tells λ, hence κ, hence the next ω.
    """
    xp = array_namespace(error)
    if settings.hard != (True, True):
        return state.relaxation
    omega = state.relaxation
    fresh = (omega <= 1.0) | ~xp.isfinite(state.error)
    tiny = xp.finfo(error.dtype).tiny
    per_step = (error / xp.clip(state.error, tiny, None)) ** (1.0 / num_steps)
    rate = xp.where(fresh, error / xp.clip(error_before, tiny, None), per_step)
    squared = (rate + omega - 1.0) ** 2 / xp.clip(rate * omega * omega, tiny, None)
    contraction = xp.where(fresh, rate, squared)
    contraction = xp.where(xp.isfinite(contraction), xp.clip(contraction, 0.0, 1.0), 0.0 * rate)
    proposal = xp.clip(2.0 / (1.0 + xp.sqrt(1.0 - contraction)), 1.0, LARGEST_RELAXATION)
    faster = xp.where(fresh | (rate > omega - 1.0), xp.maximum(omega, proposal), omega)
    setback = ~fresh & (error > state.error)
    return xp.where(setback, xp.ones_like(omega), faster)


def solve_symmetric(settings: SolverSettings, *arrays: Any) -> SinkhornSolution:
    """`solve` for a sample against itself, by averaging the potential with its own answer.

    Averaged iterations converge in a few dozen rounds at any ε (Feydy, Geometric data analysis,
    beyond convolutions, 2020, section 3.3.2), so that neither annealing nor relaxation is needed.
    """
    problem = Problem(*arrays)
    xp = array_namespace(problem.cost)
    epsilon = problem.epsilon
    x_softness = softness(problem, epsilon)[0]
    tolerance = resolved_tolerance(settings.tolerance, problem.cost)
    num_steps = min(RELAXED_STEPS + PLAIN_STEPS, settings.max_iterations)

    def round_(state: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        f, _, count = state
        kernel, top = _row_scaled_kernel(problem.cost, f, epsilon)
        shift = xp.exp(-x_softness * top - f / epsilon)

        def average(carry: tuple[Array, Array]) -> tuple[Array, Array]:
            scaling, _ = carry
            answer = (kernel @ (problem.x_weights * scaling)) ** (-x_softness) * shift
            error = xp.sum(problem.x_weights * xp.abs(scaling / answer - 1.0))
            return xp.sqrt(scaling * answer), error

        scaling, error = repeat(f, num_steps, average, (xp.ones_like(f), zero))
        moved = f + epsilon * xp.log(scaling)
        sound = xp.all(xp.isfinite(moved))

        def answer_in_log(_: Array) -> Array:
            return 0.5 * (f + half_step_x(problem, f, epsilon))

        f = branch(sound, lambda new: new, answer_in_log, moved)
        return f, xp.where(sound, error, zero + math.inf), count + num_steps

    zero = xp.zeros_like(epsilon)
    start = (xp.zeros_like(problem.x_weights), zero + math.inf, zero)
    f, error, count = while_loop(
        problem.cost,
        lambda state: (state[1] > tolerance) & (state[2] < settings.max_iterations),
        round_,
        start,
    )
    return solution_from(settings, problem, f, f, count, error)


def _row_scaled_kernel(cost: Array, potential: Array, epsilon: Array) -> tuple[Array, Array]:
    """exp((g_j - C_ij)/ε) over its row's largest entry, and the log of that entry."""
    xp = array_namespace(cost)
    scores = (potential - cost) / epsilon
    top = xp.max(scores, axis=1)
    scores = scores - top[:, None]
    # Far below the row's largest entry nothing counts, and denormal numbers would be slow.
    negligible = 0.7 * _log_smallest(cost)
    return xp.exp(xp.where(scores < negligible, -math.inf, scores)), top


def _log_smallest(like: Array) -> float:
    return math.log(float(array_namespace(like).finfo(like.dtype).tiny))
