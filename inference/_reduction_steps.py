r"""Majorise–minimise steps of a reduction: all mass to the cheapest expert, then better experts.

.. math:: R(g) = \frac1S Σ_s Σ_l Π_l(x_s) \min_k c(p_l, p_k; x_s)

falls at every step. The entropic plan replaces the minimum by −ε log of the mean of e^(−c/ε) over
k, which is at least the minimum and tends to it with ε.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp

from bayesdiv.inference._ground_cost_updates import (
    Experts,
    TransportPlan,
    mass_by_expert,
    places_of,
)
from bayesdiv.inference._ground_costs import GroundCost
from bayesdiv.inference._pooled_experts import StepProblem

__all__ = [
    "ReductionInfo",
    "ReductionState",
    "StepProblem",
    "evaluate",
    "init",
    "run_steps",
    "step",
]

_EMPTY_MASS = 1e-10


class ReductionState(NamedTuple):
    """Experts, the plan that is best for them, its objective, and what each local expert costs."""

    experts: Experts
    plan: TransportPlan
    objective: jax.Array
    local_costs: jax.Array


class ReductionInfo(NamedTuple):
    """One step's report: the new objective, experts that no mass went to, and mass that moved."""

    objective: jax.Array
    num_empty: jax.Array
    moved_mass: jax.Array


def init(
    problem: StepProblem, experts: Experts, *, cost: GroundCost, epsilon: float | None
) -> ReductionState:
    """The state at ``experts``. ``epsilon`` None is the hard plan."""
    coefficients, scale, _ = experts
    places = places_of(problem.features, coefficients)
    num_experts, num_local = len(coefficients), problem.mass.shape[1]

    def costs_to(place: jax.Array, own_scale: jax.Array | None) -> jax.Array:
        """Of every local expert to one reduced expert, ``(rows, L)``."""
        return cost.between(problem.local.places, problem.local.scale, place[:, None], own_scale)

    if epsilon is None:
        costs, best = _cheapest(costs_to, places, scale)
        plan = TransportPlan(problem.mass, best, jnp.arange(num_local), num_experts)
    else:
        every = jax.lax.map(lambda one: costs_to(*one), (places.T, scale))
        shares = jax.nn.softmax(-every / epsilon, axis=0)
        costs = -epsilon * (jax.nn.logsumexp(-every / epsilon, axis=0) - math.log(num_experts))
        mass = jnp.moveaxis(problem.mass * shares, 0, 2).reshape(len(places), -1)
        best = jnp.broadcast_to(jnp.tile(jnp.arange(num_experts), num_local), mass.shape)
        local_index = jnp.repeat(jnp.arange(num_local), num_experts)
        plan = TransportPlan(mass, best, local_index, num_experts)
    costs = jnp.where(problem.mass > 0.0, problem.mass * costs, 0.0)
    local_costs = jnp.mean(costs, axis=0)
    return ReductionState(Experts(coefficients, scale), plan, jnp.sum(local_costs), local_costs)


def _cheapest(
    costs_to: Callable[..., jax.Array], places: jax.Array, scale: jax.Array | None
) -> tuple[jax.Array, jax.Array]:
    """Least cost and the first expert that has it, ``(rows, L)`` each; one expert at a time.

    Never more than one cost a row and local expert is held, and loops run along local experts.
    """
    first = costs_to(places[:, 0], None if scale is None else scale[0])

    def compare(carry: tuple, one: tuple) -> tuple:
        least, best = carry
        index, place, own_scale = one
        costs = costs_to(place, own_scale)
        cheaper = costs < least
        return (jnp.where(cheaper, costs, least), jnp.where(cheaper, index, best)), None

    rest = (
        jnp.arange(1, places.shape[1], dtype=jnp.int32),
        places.T[1:],
        None if scale is None else scale[1:],
    )
    start = (first, jnp.zeros(first.shape, jnp.int32))
    return jax.lax.scan(compare, start, rest)[0]


evaluate = jax.jit(init, static_argnames=("cost", "epsilon"))
"""`init`, compiled."""


def step(
    state: ReductionState, problem: StepProblem, *, cost: GroundCost, epsilon: float | None
) -> tuple[ReductionState, ReductionInfo]:
    """Better experts for the plan, then the best plan for them; the objective does not rise.

    An expert that no mass goes to moves to the local expert that costs most: with a hard plan that
    cannot raise the objective either.
    """
    experts = cost.update(problem.features, state.plan, problem.local, state.experts)
    share = mass_by_expert(state.plan, 1.0) / len(problem.features)
    empty = share < _EMPTY_MASS
    dearest = jnp.argsort(-state.local_costs)
    seed = dearest[jnp.clip(jnp.cumsum(empty) - 1, 0, len(dearest) - 1)]
    experts = Experts(
        jnp.where(empty[:, None], problem.local.coefficients[seed], experts.coefficients),
        None
        if experts.scale is None
        else jnp.where(empty, problem.local.scale[seed], experts.scale),
    )
    new = init(problem, experts, cost=cost, epsilon=epsilon)
    if epsilon is None:
        moved = jnp.where(new.plan.expert != state.plan.expert, problem.mass, 0.0)
    else:
        moved = 0.5 * jnp.abs(new.plan.mass - state.plan.mass)
    info = ReductionInfo(new.objective, jnp.sum(empty), jnp.mean(jnp.sum(moved, axis=1)))
    return new, info


@partial(jax.jit, static_argnames=("cost", "epsilon", "max_steps"))
def run_steps(
    problem: StepProblem,
    experts: Experts,
    *,
    cost: GroundCost,
    epsilon: float | None,
    tolerance: float,
    max_steps: int,
) -> tuple[ReductionState, jax.Array, jax.Array]:
    """Steps until one lowers the objective by less than tolerance (1 + |objective|).

    Returns the last state, the objectives ``(max_steps + 1,)``, NaN after the last step, and the
    number of steps. A step whose objective rises, which rounding alone can make, is not taken.
    """
    state = init(problem, experts, cost=cost, epsilon=epsilon)
    # What rounding leaves of a sum is no descent.
    least_fall = jnp.maximum(tolerance, 4.0 * jnp.finfo(state.objective.dtype).eps)
    trace = jnp.full((max_steps + 1,), jnp.nan, state.objective.dtype)

    def body(carry: tuple) -> tuple:
        state, trace, count, _ = carry
        new, _ = step(state, problem, cost=cost, epsilon=epsilon)
        falls = new.objective <= state.objective
        kept = jax.tree.map(lambda a, b: jnp.where(falls, a, b), new, state)
        fall = state.objective - new.objective
        # Also where the first objective is infinite and the next is not.
        going = falls & ~(fall <= least_fall * (1.0 + jnp.abs(state.objective)))
        count = count + 1
        return kept, trace.at[count].set(kept.objective), count, going

    carry = (state, trace.at[0].set(state.objective), jnp.zeros((), int), jnp.ones((), bool))
    state, trace, count, _ = jax.lax.while_loop(
        lambda carry: carry[3] & (carry[2] < max_steps), body, carry
    )
    return state, trace, count
