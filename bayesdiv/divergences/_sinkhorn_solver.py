r"""Entropic optimal transport by scaling, with hard or softened marginals.

Minimises over plans P ≥ 0, shape ``(n, m)``,

.. math:: \langle P, C\rangle + \epsilon\, KL(P \| a b^T)
          + \rho_x KL(P 1 \| a) + \rho_y KL(P^T 1 \| b)

(an infinite ρ is a hard marginal). With potentials f and g the plan is
``P = a b exp((f + g - C) / epsilon)`` and each half-step solves one marginal:
``f = -t_x ε log Σ_j b_j exp((g_j - C_ij)/ε)``, ``t = ρ / (ρ + ε)``, and g alike (Chizat, Peyré,
Schmitzer and Vialard, Scaling algorithms for unbalanced transport problems, 2018, proposition 4.3).

The half-steps here are matrix-vector products with a kernel into which the potentials have been
absorbed (Schmitzer, Stabilized sparse scaling, 2019): as safe as the log domain, without an
exponential per entry and half-step. Over-relaxation (Thibault, Chizat, Dossal and Papadakis,
Overrelaxed Sinkhorn-Knopp, 2021) cuts the number of rounds where marginals are hard; each round
ends with plain half-steps, after which the marginal error means what it says.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

from bayesdiv._array import Array, array_namespace, logsumexp
from bayesdiv.divergences._control import branch, repeat, while_loop

RELAXED_STEPS = 8
PLAIN_STEPS = 2
LARGEST_RELAXATION = 1.99
ANNEALING_START = 0.01
ANNEALING_FACTOR = 0.25


@dataclass(frozen=True)
class SolverSettings:
    """What a compiled solver is compiled for."""

    max_iterations: int
    tolerance: float
    hard: tuple[bool, bool]


class Problem(NamedTuple):
    """One transport problem: ``cost`` (n, m), weights (n,) and (m,), scalar ε, ρ_x and ρ_y."""

    cost: Array
    x_weights: Array
    y_weights: Array
    epsilon: Array
    x_penalty: Array
    y_penalty: Array


class SinkhornSolution(NamedTuple):
    """Potentials (n,) and (m,), the plan (n, m), its marginal error and how the solver ended.

    ``marginal_error`` is the L1 distance between the plan's marginals and those that the potentials
    ask for, both sides together: the weights themselves where the marginal is hard. ``converged``
    says whether the last iteration moved less than the tolerance.
    """

    x_potential: Array
    y_potential: Array
    plan: Array
    marginal_error: Array
    num_iterations: Array
    converged: Array


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


def softness(problem: Problem, epsilon: Array) -> tuple[Array, Array]:
    """The exponents t_x and t_y: 1 for a hard marginal, 0 for one that is not asked for."""
    return 1.0 / (1.0 + epsilon / problem.x_penalty), 1.0 / (1.0 + epsilon / problem.y_penalty)


def half_step_x(problem: Problem, y_potential: Array, epsilon: Array) -> Array:
    """The potential f that answers ``y_potential``, in the log domain."""
    log_weights = _log(problem.y_weights)
    scores = (y_potential - problem.cost) / epsilon + log_weights
    return -softness(problem, epsilon)[0] * epsilon * logsumexp(scores, axis=1)


def half_step_y(problem: Problem, x_potential: Array, epsilon: Array) -> Array:
    """The potential g that answers ``x_potential``, in the log domain."""
    log_weights = _log(problem.x_weights)
    scores = (x_potential[:, None] - problem.cost) / epsilon + log_weights[:, None]
    return -softness(problem, epsilon)[1] * epsilon * logsumexp(scores, axis=0)


def solution_from(
    settings: SolverSettings,
    problem: Problem,
    f: Array,
    g: Array,
    num_iterations: Array,
    last_error: Array | None = None,
) -> SinkhornSolution:
    """Plan and error of a pair of potentials; ``last_error`` is what the loop stopped at."""
    xp = array_namespace(f)
    exponent = (f[:, None] + g - problem.cost) / problem.epsilon
    plan = problem.x_weights[:, None] * xp.exp(exponent) * problem.y_weights
    wanted_x, wanted_y = problem.x_weights, problem.y_weights
    if not settings.hard[0]:
        wanted_x = wanted_x * xp.exp(-f / problem.x_penalty)
    if not settings.hard[1]:
        wanted_y = wanted_y * xp.exp(-g / problem.y_penalty)
    error = xp.sum(xp.abs(xp.sum(plan, axis=1) - wanted_x)) + xp.sum(
        xp.abs(xp.sum(plan, axis=0) - wanted_y)
    )
    tolerance = resolved_tolerance(settings.tolerance, f)
    converged = (error if last_error is None else last_error) <= tolerance
    return SinkhornSolution(f, g, plan, error, num_iterations, converged)


def unroll(settings: SolverSettings, problem: Problem) -> SinkhornSolution:
    """Exactly ``max_iterations`` log-domain iterations from zero, for autodiff through all of them.

    The x half-step comes first; the last one is on a hard side, y if both are.
    """
    xp = array_namespace(problem.cost)

    def iterate(potentials: tuple[Array, Array]) -> tuple[Array, Array]:
        f = half_step_x(problem, potentials[1], problem.epsilon)
        return f, half_step_y(problem, f, problem.epsilon)

    start = xp.zeros_like(problem.x_weights), xp.zeros_like(problem.y_weights)
    f, g = repeat(problem.cost, settings.max_iterations, iterate, start)
    if settings.hard[0] and not settings.hard[1]:
        f = half_step_x(problem, g, problem.epsilon)
    count = xp.zeros_like(problem.epsilon) + settings.max_iterations
    return solution_from(settings, problem, f, g, count)


def unroll_symmetric(settings: SolverSettings, problem: Problem) -> SinkhornSolution:
    """`unroll` for a sample against itself: one potential, averaged with its own answer."""
    xp = array_namespace(problem.cost)

    def iterate(f: Array) -> Array:
        return 0.5 * (f + half_step_x(problem, f, problem.epsilon))

    f = repeat(problem.cost, settings.max_iterations, iterate, xp.zeros_like(problem.x_weights))
    count = xp.zeros_like(problem.epsilon) + settings.max_iterations
    return solution_from(settings, problem, f, f, count)


def solve(settings: SolverSettings, *arrays: Any) -> SinkhornSolution:
    """Solve ``Problem(*arrays)`` to the tolerance; not differentiable."""
    problem = Problem(*arrays)
    xp = array_namespace(problem.cost)
    spread = xp.max(problem.cost) - xp.min(problem.cost)
    zero = xp.zeros_like(problem.epsilon)
    zero_x, zero_y = xp.zeros_like(problem.x_weights), xp.zeros_like(problem.y_weights)
    first = xp.maximum(problem.epsilon, ANNEALING_START * spread)
    state = _absorb(
        problem,
        _Round(
            zero_x, zero_y, problem.cost, zero_x, zero_y, zero_x, zero_y,
            first, zero + 1.0, zero + math.inf, zero,
        ),
    )  # fmt: skip
    tolerance = resolved_tolerance(settings.tolerance, problem.cost)

    def unfinished(state: _Round) -> Array:
        short = (state.error > tolerance) & (state.num_iterations < settings.max_iterations)
        return (state.epsilon > problem.epsilon) | short

    state = while_loop(
        problem.cost, unfinished, lambda state: _round(settings, problem, state), state
    )
    f, g = state.x_potential, state.y_potential
    if settings.hard[1]:
        g = half_step_y(problem, f, problem.epsilon)
    else:
        f = half_step_x(problem, g, problem.epsilon)
    return solution_from(settings, problem, f, g, state.num_iterations, state.error)


def resolved_tolerance(tolerance: float, like: Array) -> float:
    """``tolerance``, or what the sums of this dtype can resolve if that is more."""
    return max(tolerance, 64.0 * float(array_namespace(like).finfo(like.dtype).eps))


def _absorb(problem: Problem, state: _Round) -> _Round:
    """Rebuild the kernel around the potentials and start its scalings at one."""
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
    )


def _round(settings: SolverSettings, problem: Problem, state: _Round) -> _Round:
    """Some relaxed and some plain iterations at one ε, then what the next round needs."""
    xp = array_namespace(problem.cost)
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
    u, v, error, error_before = repeat(a, num_plain, plain, (u, v, state.error, state.error))
    log_u, log_v = xp.log(u), xp.log(v)
    largest = xp.maximum(xp.max(xp.abs(log_u)), xp.max(xp.abs(log_v)))
    moved = state._replace(
        x_potential=state.x_shift + epsilon * log_u,
        y_potential=state.y_shift + epsilon * log_v,
        x_scaling=u,
        y_scaling=v,
        num_iterations=state.num_iterations + (num_relaxed + num_plain),
    )
    limit = -0.25 * _log_smallest(problem.cost)
    at_target = epsilon <= problem.epsilon
    sound = largest < 3.0 * limit

    def keep(state: _Round) -> _Round:
        relaxation = _next_relaxation(settings, state, error, error_before, num_relaxed + num_plain)
        accepted = state._replace(
            relaxation=xp.where(at_target, relaxation, xp.ones_like(relaxation)),
            error=xp.where(at_target, error, xp.zeros_like(error) + math.inf),
            epsilon=xp.maximum(problem.epsilon, ANNEALING_FACTOR * epsilon),
        )
        settled = at_target & (largest < limit)
        return branch(settled, lambda s: s, lambda s: _absorb(problem, s), accepted)

    def start_over(_: _Round) -> _Round:
        # The scalings left the range of the dtype: one iteration in the log domain from before.
        f = half_step_x(problem, state.y_potential, epsilon)
        g = half_step_y(problem, f, epsilon)
        answered = state._replace(
            x_potential=f,
            y_potential=g,
            relaxation=xp.ones_like(state.relaxation),
            error=xp.zeros_like(state.error) + math.inf,
            num_iterations=state.num_iterations + 1,
        )
        return _absorb(problem, answered)

    return branch(sound, keep, start_over, moved)


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


def _log(weights: Array) -> Array:
    """log w with −inf, and no gradient, where w is zero."""
    xp = array_namespace(weights)
    positive = weights > 0
    return xp.where(positive, xp.log(xp.where(positive, weights, 1.0)), -math.inf)


def _log_smallest(like: Array) -> float:
    return math.log(float(array_namespace(like).finfo(like.dtype).tiny))
