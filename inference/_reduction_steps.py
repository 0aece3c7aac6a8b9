r"""Majorise–minimise steps of a reduction: all mass to the cheapest expert, then better experts.

.. math:: R(g) = \frac1S Σ_s Σ_l Π_l(x_s) \min_k c(p_l, p_k; x_s)

falls at every step. The entropic plan replaces the minimum by −ε log of the mean of e^(−c/ε) over
k, which is at least the minimum and tends to it with ε.
"""

from __future__ import annotations

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

# Costs that are held at once: rows are worked on in blocks beyond it.
_LARGEST_BLOCK = 30_000_000
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
    num_experts = len(coefficients)
    num_rows, num_local = problem.mass.shape

    def row(arguments: tuple) -> tuple:
        local_place, mass, place = arguments
        local_scale = None if problem.local.scale is None else problem.local.scale[:, None]
        costs = cost.between(
            local_place[:, None], local_scale, place, None if scale is None else scale
        )
        if epsilon is None:
            best = jnp.argmin(costs, axis=1)
            return jnp.where(mass > 0.0, jnp.min(costs, axis=1), 0.0), best, mass
        log_shares = jax.nn.log_softmax(-costs / epsilon, axis=1)
        soft = -epsilon * (jax.nn.logsumexp(-costs / epsilon, axis=1) - jnp.log(num_experts))
        return jnp.where(mass > 0.0, soft, 0.0), None, mass[:, None] * jnp.exp(log_shares)

    arguments = (problem.local.places, problem.mass, places)
    block = max(1, _LARGEST_BLOCK // (num_local * num_experts))
    if block >= num_rows:
        costs, best, mass = jax.vmap(row)(arguments)
    else:
        costs, best, mass = jax.lax.map(row, arguments, batch_size=block)
    if epsilon is None:
        local_index = jnp.arange(num_local)
    else:
        mass = mass.reshape(num_rows, -1)
        best = jnp.broadcast_to(jnp.tile(jnp.arange(num_experts), num_local), mass.shape)
        local_index = jnp.repeat(jnp.arange(num_local), num_experts)
    plan = TransportPlan(mass, best, local_index, num_experts)
    local_costs = jnp.mean(problem.mass * costs, axis=0)
    return ReductionState(Experts(coefficients, scale), plan, jnp.sum(local_costs), local_costs)


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
    trace = jnp.full((max_steps + 1,), jnp.nan, state.objective.dtype)

    def body(carry: tuple) -> tuple:
        state, trace, count, _ = carry
        new, _ = step(state, problem, cost=cost, epsilon=epsilon)
        falls = new.objective <= state.objective
        kept = jax.tree.map(lambda a, b: jnp.where(falls, a, b), new, state)
        fall = state.objective - new.objective
        # Also where the first objective is infinite and the next is not.
        going = falls & ~(fall <= tolerance * (1.0 + jnp.abs(state.objective)))
        count = count + 1
        return kept, trace.at[count].set(kept.objective), count, going

    carry = (state, trace.at[0].set(state.objective), jnp.zeros((), int), jnp.ones((), bool))
    state, trace, count, _ = jax.lax.while_loop(
        lambda carry: carry[3] & (carry[2] < max_steps), body, carry
    )
    return state, trace, count
