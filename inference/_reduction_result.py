"""What a reduction found, and what is read off it at the end."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from bayesdiv._mixture_of_experts import MixtureOfExpertsParameters, expert_log_densities
from bayesdiv.inference._ground_cost_updates import Experts, TransportPlan
from bayesdiv.inference._ground_costs import GroundCost
from bayesdiv.inference._pooled_experts import PooledExperts
from bayesdiv.inference._reduction_starts import ModelDistances, mean_costs
from bayesdiv.inference._reduction_steps import ReductionState, evaluate

__all__ = ["Reduction", "model_costs", "num_distinct", "posterior_targets"]

# Experts nearer than this in mean KL are one.
_SAME_EXPERT = 1e-6


class Reduction(NamedTuple):
    """What `TransportReduction.run` found.

    Parameters
    ----------
    parameters
        The reduced model, for features (1, predictors), in the units of the data.
    objective
        At the end, in units of the cost: the relaxed divergence from the pooled model.
    trace
        Objectives by step, ``(steps + 1,)``; it never rises.
    plan
        Where the mass of every local expert went.
    gate_targets
        ``(rows, experts)``, what the gate was fitted to.
    model_costs
        Cost of moving each model to the reduced one, ``(models,)``, flagged ones included.
    distances
        Of the models to their medoid, threshold and flags.
    used
        Which models were reduced, ``(models,)``.
    start
        Which start ended lowest: "given", "aligned", "greedy" or "cluster 0", ….
    start_objectives
        Where each start ended, by name.
    num_distinct
        Reduced experts of positive mass that differ from each other; fewer than K suggests a
        smaller K.
    seconds
        Wall clock, compilation included.
    """

    parameters: MixtureOfExpertsParameters
    objective: float
    trace: np.ndarray
    plan: TransportPlan
    gate_targets: Any
    model_costs: np.ndarray
    distances: ModelDistances
    used: np.ndarray
    start: str
    start_objectives: dict[str, float]
    num_distinct: int
    seconds: float


def posterior_targets(
    targets: jax.Array, outcome: np.ndarray, pooled: PooledExperts, experts: Experts
) -> jax.Array:
    """t_k p_k(y | x), normalised over k."""
    parameters = MixtureOfExpertsParameters(jnp.zeros_like(experts.coefficients), *experts[:2])
    densities = expert_log_densities(
        jnp.asarray(outcome - pooled.units.shift, targets.dtype),
        pooled.features,
        parameters,
        experts=pooled.experts,
    )
    return jax.nn.softmax(jnp.log(targets) + densities, axis=1)


def model_costs(
    pooled: PooledExperts, state: ReductionState, used: np.ndarray, cost: GroundCost
) -> np.ndarray:
    """Σ of the local experts' costs under the hard plan, over the model's weight."""
    local_costs = state.local_costs
    is_hard = state.plan.mass.shape[1] == len(pooled.shard)
    if not (is_hard and used.all()):
        local_costs = evaluate(pooled.problem, state.experts, cost=cost, epsilon=None).local_costs
    costs = np.bincount(pooled.shard, np.asarray(local_costs, float))
    return costs / np.maximum(pooled.mean_weights, np.finfo(float).tiny)


def num_distinct(pooled: PooledExperts, state: ReductionState) -> int:
    """Experts that receive mass, each counted once however often it is there."""
    received = np.asarray(state.plan.received()).sum(axis=0) > 1e-10 * len(pooled.features)
    places = pooled.features @ state.experts.coefficients.T
    columns = np.arange(places.shape[1])
    between = mean_costs(places, state.experts.scale, columns, experts=pooled.experts)
    same = between < _SAME_EXPERT
    earlier = np.tril(same | same.T, -1)
    return int((received & ~(earlier & received[None, :]).any(axis=1)).sum())
