r"""Sinkhorn divergences: entropic optimal transport, debiased or plain, balanced or softened."""

import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

from bayesdiv._array import Array, array_namespace, as_array_like, stop_gradient
from bayesdiv._control import is_traced, run_compiled
from bayesdiv.divergences._costs import check_ground_cost, pairwise_cost, planned_cost
from bayesdiv.divergences._sinkhorn_adjoint import sharp_adjoint
from bayesdiv.divergences._sinkhorn_problem import (
    Problem,
    SinkhornSolution,
    SolverSettings,
    unroll,
    unroll_symmetric,
)
from bayesdiv.divergences._sinkhorn_solver import solve, solve_symmetric
from bayesdiv.divergences._two_sample import (
    Samples,
    TwoSampleDivergence,
    check_choice,
    check_count,
    check_positive,
    check_samples,
    check_weights,
    sample_count,
    uniform_weights,
)


class _Term(NamedTuple):
    """One of the three transport problems of a Sinkhorn divergence, with its graph."""

    cost: Array
    planned: Callable[[Array], Array]
    x_weights: Array
    y_weights: Array
    is_symmetric: bool


@dataclass(frozen=True)
class Sinkhorn(TwoSampleDivergence):
    r"""Entropic transport cost between two samples, in the units of the cost; no root is taken.

    .. math:: OT(\mu, \nu) = \min_P \langle P, C \rangle + \epsilon\, KL(P \| a b^T)
              + \rho_x KL(P 1 \| a) + \rho_y KL(P^T 1 \| b)

    With ``debias`` (default) the value is
    :math:`OT(\mu,\nu) - \tfrac12 OT(\mu,\mu) - \tfrac12 OT(\nu,\nu)`, not negative, and zero with
    zero gradient at equal samples; without, the plan blurs and pulls equal samples together. ``x``
    has shape ``(n, dim)``, ``y`` ``(m, dim)``; swapping them with their penalties changes nothing.

    Attributes
    ----------
    epsilon : float
        Entropic regularisation ε in the units of the cost (with the default cost, squared units of
        the data; geomloss's ``blur`` is ``sqrt(epsilon / 2)`` for it). Small values are annealed
        to.
    relative : bool
        Take ε as a fraction of the mean cost between the samples, held constant for the gradient.
    cost : {"sqeuclidean", "euclidean", "l1"} or callable
        Ground cost; a function takes ``(x, y)`` and returns ``(n, m)``.
    debias : bool
        Whether to subtract the two self terms.
    value : {"regularized", "sharp"}
        The minimum above, or only its ⟨P, C⟩.
    marginal_penalty : (float, float)
        (ρ_x, ρ_y), infinite for a hard marginal. Softened marginals with ``debias`` must be equal.
    gradient : {"envelope", "implicit", "unroll"}
        How derivatives are taken. ``"envelope"`` holds the plan fixed: exact for the regularised
        value, for the sharp one the gradient of the regularised objective instead. ``"implicit"``
        is exact at convergence for both, at the price of one linear solve for the sharp one.
        ``"unroll"`` differentiates through exactly ``max_iterations`` log-domain iterations,
        whether or not they have converged, and stores all of them.
    max_iterations : int
        Where to stop without convergence (with a warning outside JAX transformations); looked at
        every ten iterations.
    tolerance : float
        L1 error of the marginals at which to stop; raised to what the dtype resolves.
    reduction : {"mean", "sum"}
        ``"sum"`` gives each of n samples mass 1 instead of 1/n: n times the value.

    Raises
    ------
    ValueError
        If a setting is outside its domain, and as `TwoSampleDivergence` says of the samples.

    References
    ----------
    Cuturi (2013), Sinkhorn distances, eq. 2; Feydy et al. (2019), Interpolating between optimal
    transport and MMD using Sinkhorn divergences, eq. 3; Chizat et al. (2018), Scaling algorithms
    for unbalanced transport problems, definition 3.
    """

    epsilon: Any = 0.1
    relative: bool = False
    cost: str | Callable = "sqeuclidean"
    debias: bool = True
    value: str = "regularized"
    marginal_penalty: tuple[Any, Any] = (math.inf, math.inf)
    gradient: str = "envelope"
    max_iterations: int = 2000
    tolerance: float = 1e-6
    reduction: str = "mean"

    def __post_init__(self) -> None:
        check_positive("epsilon", self.epsilon)
        check_ground_cost(self.cost)
        check_choice("value", self.value, ("regularized", "sharp"))
        check_choice("gradient", self.gradient, ("envelope", "implicit", "unroll"))
        check_choice("reduction", self.reduction, ("mean", "sum"))
        check_count("max_iterations", self.max_iterations)
        check_positive("tolerance", self.tolerance)
        if not isinstance(self.marginal_penalty, tuple) or len(self.marginal_penalty) != 2:
            raise ValueError(
                "marginal_penalty must be a pair (x_penalty, y_penalty), "
                f"got {self.marginal_penalty!r}; use math.inf for a hard marginal."
            )
        for penalty in self.marginal_penalty:
            check_positive("marginal_penalty", penalty, allow_infinity=True)
        if self.debias and self.marginal_penalty[0] is not self.marginal_penalty[1]:
            if any(map(is_traced, self.marginal_penalty)) or len(set(self.marginal_penalty)) > 1:
                raise ValueError(
                    "marginal_penalty must be the same on both sides with debias=True, "
                    f"got {self.marginal_penalty!r}; pass debias=False."
                )

    def solve(
        self,
        x: Array,
        y: Array,
        *,
        x_weights: Array | None = None,
        y_weights: Array | None = None,
    ) -> SinkhornSolution:
        """Potentials and plan between the samples, without gradient (except with ``"unroll"``)."""
        samples = check_samples(x, y, x_weights, y_weights)
        cross = self._cross_term(samples)
        return self._solution(cross, self._epsilon_for(cross.cost))

    def solve_cost(
        self,
        cost: Array,
        *,
        x_weights: Array | None = None,
        y_weights: Array | None = None,
    ) -> SinkhornSolution:
        """`solve` for a given cost matrix, shape ``(n, m)``, in place of samples."""
        term = self._given_term(cost, x_weights, y_weights)
        return self._solution(term, self._epsilon_for(cost))

    def value_from_cost(
        self,
        cost: Array,
        *,
        x_weights: Array | None = None,
        y_weights: Array | None = None,
    ) -> Array:
        """The plain value for a given cost matrix, shape ``(n, m)``, differentiable in it.

        Raises
        ------
        ValueError
            If ``debias`` is on, which needs the costs within each sample too.
        """
        if self.debias:
            raise ValueError(
                "value_from_cost knows one cost only, got debias=True; pass debias=False."
            )
        term = self._given_term(cost, x_weights, y_weights)
        epsilon = self._epsilon_for(cost)
        value = self._term_value(term, epsilon, self._solution(term, epsilon))
        if self.reduction == "mean":
            return value
        return value * sample_count(Samples(cost, cost.T, x_weights, y_weights))

    def _value(self, state: Any, samples: Samples, rng: Any) -> Array:
        cross = self._cross_term(samples)
        epsilon = self._epsilon_for(cross.cost)
        if self.debias:
            x, y, a, b = samples.x, samples.y, cross.x_weights, cross.y_weights
            own_x = self._sample_term(x, x, a, a, is_symmetric=True)
            own_y = self._sample_term(y, y, b, b, is_symmetric=True)
            own_x_solution = self._solution(own_x, epsilon)
            own_y_solution = self._solution(own_y, epsilon)
            # Where the samples are close, so are their potentials; where they are equal, the same.
            solution = self._solution(cross, epsilon, start=own_y_solution.y_potential)
            value = self._term_value(cross, epsilon, solution) - 0.5 * (
                self._term_value(own_x, epsilon, own_x_solution)
                + self._term_value(own_y, epsilon, own_y_solution)
            )
        else:
            value = self._term_value(cross, epsilon, self._solution(cross, epsilon))
        return value * sample_count(samples) if self.reduction == "sum" else value

    def _cross_term(self, samples: Samples) -> _Term:
        a = uniform_weights(samples.x_weights, samples.x)
        b = uniform_weights(samples.y_weights, samples.y)
        return self._sample_term(samples.x, samples.y, a, b, is_symmetric=False)

    def _sample_term(self, x: Array, y: Array, a: Array, b: Array, *, is_symmetric: bool) -> _Term:
        if self.gradient == "unroll":
            cost = pairwise_cost(x, y, self.cost)
        else:
            cost = pairwise_cost(stop_gradient(x), stop_gradient(y), self.cost)
        return _Term(cost, lambda plan: planned_cost(plan, x, y, self.cost), a, b, is_symmetric)

    def _given_term(self, cost: Array, x_weights: Array | None, y_weights: Array | None) -> _Term:
        samples = check_samples(cost, cost)
        cost = samples.x
        a = uniform_weights(check_weights("x_weights", x_weights, cost), cost)
        b = uniform_weights(check_weights("y_weights", y_weights, cost.T), cost.T)
        xp = array_namespace(cost)
        return _Term(cost, lambda plan: xp.sum(plan * cost), a, b, is_symmetric=False)

    def _epsilon_for(self, cost: Array) -> Array:
        epsilon = as_array_like(self.epsilon, cost)
        if not self.relative:
            return epsilon
        return epsilon * stop_gradient(array_namespace(cost).mean(cost))

    def _is_hard(self) -> tuple[bool, bool]:
        first, second = (
            not is_traced(penalty) and math.isinf(penalty) for penalty in self.marginal_penalty
        )
        return first, second

    def _problem(self, term: _Term, epsilon: Array) -> Problem:
        penalties = (as_array_like(penalty, term.cost) for penalty in self.marginal_penalty)
        return Problem(term.cost, term.x_weights, term.y_weights, epsilon, *penalties)

    def _solution(
        self, term: _Term, epsilon: Array, start: Array | None = None
    ) -> SinkhornSolution:
        settings = SolverSettings(self.max_iterations, self.tolerance, self._is_hard())
        problem = self._problem(term, epsilon)
        if self.gradient == "unroll":
            return run_compiled(
                _unroll_symmetric if term.is_symmetric else _unroll, settings, *problem
            )
        fixed = [stop_gradient(array) for array in problem]
        if term.is_symmetric:
            solution = run_compiled(solve_symmetric, settings, *fixed)
        else:
            fixed.append(0.0 * fixed[2] if start is None else start)
            solution = run_compiled(solve, settings, *fixed)
        _warn_unless_converged(settings, solution)
        return solution

    def _term_value(self, term: _Term, epsilon: Array, solution: SinkhornSolution) -> Array:
        xp = array_namespace(term.cost)
        problem = self._problem(term, epsilon)
        if self.gradient == "unroll":
            if self.value == "sharp":
                return xp.sum(solution.plan * term.cost)
            return self._regularized(problem, solution)
        fixed = Problem(*(stop_gradient(array) for array in problem))
        if self.value == "regularized":
            value = self._regularized(fixed, solution)
            weights, x_slope, y_slope = solution.plan, *self._weight_slopes(fixed, solution)
        elif self.gradient == "implicit":
            value = xp.sum(solution.plan * fixed.cost)
            weights, x_slope, y_slope = sharp_adjoint(self._is_hard(), fixed, solution)
        else:
            value = xp.sum(solution.plan * fixed.cost)
            weights, x_slope, y_slope = solution.plan, 0.0 * fixed.x_weights, 0.0 * fixed.y_weights
        # A linear function with the gradient wanted, of which only the gradient is kept.
        linear = term.planned(weights) + x_slope @ term.x_weights + y_slope @ term.y_weights
        return value + (linear - stop_gradient(linear))

    def _regularized(self, problem: Problem, solution: SinkhornSolution) -> Array:
        """The dual objective, whose error is second order in that of the potentials."""
        xp = array_namespace(problem.cost)
        x_hard, y_hard = self._is_hard()
        f, g = solution.x_potential, solution.y_potential
        if not x_hard:
            f = -problem.x_penalty * xp.expm1(-f / problem.x_penalty)
        if not y_hard:
            g = -problem.y_penalty * xp.expm1(-g / problem.y_penalty)
        mass = xp.sum(problem.x_weights) * xp.sum(problem.y_weights)
        excess = xp.sum(solution.plan) - mass
        return problem.x_weights @ f + problem.y_weights @ g - problem.epsilon * excess

    def _weight_slopes(self, problem: Problem, solution: SinkhornSolution) -> tuple[Array, Array]:
        """Derivatives of the regularised value in the weights."""
        xp = array_namespace(problem.cost)
        x_hard, y_hard = self._is_hard()
        f, g, epsilon = solution.x_potential, solution.y_potential, problem.epsilon
        if not x_hard:
            f = -(problem.x_penalty + epsilon) * xp.expm1(-f / problem.x_penalty)
        if not y_hard:
            g = -(problem.y_penalty + epsilon) * xp.expm1(-g / problem.y_penalty)
        return f, g


def _unroll(settings: SolverSettings, *arrays: Any) -> SinkhornSolution:
    return unroll(settings, Problem(*arrays))


def _unroll_symmetric(settings: SolverSettings, *arrays: Any) -> SinkhornSolution:
    return unroll_symmetric(settings, Problem(*arrays))


def _warn_unless_converged(settings: SolverSettings, solution: SinkhornSolution) -> None:
    if is_traced(solution.converged) or bool(solution.converged):
        return
    warnings.warn(
        f"Sinkhorn stopped after {int(solution.num_iterations)} iterations with marginal error "
        f"{float(solution.marginal_error):.2e}, above the tolerance {settings.tolerance:.0e}; "
        "raise max_iterations or epsilon.",
        stacklevel=2,
    )
