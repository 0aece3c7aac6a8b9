r"""Entropic transport problems with hard or softened marginals, and their log-domain iteration.

Minimises over plans P ≥ 0, shape ``(n, m)``,

.. math:: \langle P, C\rangle + \epsilon\, KL(P \| a b^T)
          + \rho_x KL(P 1 \| a) + \rho_y KL(P^T 1 \| b)

(an infinite ρ is a hard marginal). With potentials f and g the plan is
``P = a b exp((f + g - C) / ε)`` and each half-step solves one marginal:
``f = -t_x ε log Σ_j b_j exp((g_j - C_ij)/ε)``, ``t = ρ / (ρ + ε)``, and g alike (Chizat, Peyré,
Schmitzer and Vialard, Scaling algorithms for unbalanced transport problems, 2018, proposition 4.3).
"""

import math
from dataclasses import dataclass
from typing import NamedTuple

from bayesdiv._array import Array, array_namespace, logsumexp
from bayesdiv._control import repeat


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


def softness(problem: Problem, epsilon: Array) -> tuple[Array, Array]:
    """The exponents t_x and t_y: 1 for a hard marginal, 0 for one that is not asked for."""
    return 1.0 / (1.0 + epsilon / problem.x_penalty), 1.0 / (1.0 + epsilon / problem.y_penalty)


def half_step_x(problem: Problem, y_potential: Array, epsilon: Array) -> Array:
    """The potential f that answers ``y_potential``, in the log domain."""
    log_weights = log_or_minus_infinity(problem.y_weights)
    scores = (y_potential - problem.cost) / epsilon + log_weights
    return -softness(problem, epsilon)[0] * epsilon * logsumexp(scores, axis=1)


def half_step_y(problem: Problem, x_potential: Array, epsilon: Array) -> Array:
    """The potential g that answers ``x_potential``, in the log domain."""
    log_weights = log_or_minus_infinity(problem.x_weights)
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
    x_error = xp.abs(xp.sum(plan, axis=1) - wanted_x(settings, problem, f))
    y_error = xp.abs(xp.sum(plan, axis=0) - wanted_y(settings, problem, g))
    error = xp.sum(x_error) + xp.sum(y_error)
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


def wanted_x(settings: SolverSettings, problem: Problem, f: Array) -> Array:
    if settings.hard[0]:
        return problem.x_weights
    return problem.x_weights * array_namespace(f).exp(-f / problem.x_penalty)


def wanted_y(settings: SolverSettings, problem: Problem, g: Array) -> Array:
    if settings.hard[1]:
        return problem.y_weights
    return problem.y_weights * array_namespace(g).exp(-g / problem.y_penalty)


def resolved_tolerance(tolerance: float, like: Array) -> float:
    """``tolerance``, or what the sums of this dtype can resolve if that is more."""
    return max(tolerance, 64.0 * float(array_namespace(like).finfo(like.dtype).eps))


def log_or_minus_infinity(weights: Array) -> Array:
    """log w with −inf, and no gradient, where w is zero."""
    xp = array_namespace(weights)
    positive = weights > 0
    return xp.where(positive, xp.log(xp.where(positive, weights, 1.0)), -math.inf)
