r"""Reduced experts from a transport plan: weighted moments, or steps where no closed form is known.

A plan is kept as masses and the experts that they go to. Under a hard plan there is one column for
each local expert; an entropic one has a column for each pair. Sums over columns that go to expert k
never form the dense array (rows, local experts, reduced experts).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

__all__ = [
    "Experts",
    "TransportPlan",
    "bernoulli_update",
    "gaussian_update",
    "least_squares",
    "mass_by_expert",
    "places_of",
    "planned_cost",
    "residual_squares",
]

# Relative to the trace of a Gram matrix: keeps it positive definite where rows are too few.
_RIDGE = {32: 1e-6, 64: 1e-10}
_NUM_HALVINGS = 25
# Two rounds of (coefficients, scale) for a plan: the next plan changes the problem anyhow.
_NUM_ROUNDS = 2


class Experts(NamedTuple):
    """``coefficients`` ``(experts, features)``, ``scale`` ``(experts,)`` or None; for local ones
    also ``places`` ``(rows, experts)``, their means or logits on the support."""

    coefficients: Any
    scale: Any
    places: Any = None


@partial(
    jax.tree_util.register_dataclass,
    data_fields=("mass", "expert", "local"),
    meta_fields=("num_experts",),
)
@dataclass(frozen=True, eq=False)
class TransportPlan:
    """Where the mass of every local expert goes at every row of the support.

    Attributes
    ----------
    mass
        ``(rows, columns)``; each row sums to 1.
    expert
        ``(rows, columns)``, integers: the reduced expert that receives it.
    local
        ``(columns,)``: the local expert that it comes from.
    num_experts
        Reduced experts; static.
    """

    mass: jax.Array
    expert: jax.Array
    local: jax.Array
    num_experts: int

    def received(self, values: jax.Array | float = 1.0) -> jax.Array:
        """Σ mass · values over the columns that go to each expert, ``(rows, experts)``."""
        weighted = self.mass * values
        return jnp.stack(
            [
                jnp.sum(jnp.where(self.expert == index, weighted, 0.0), axis=1)
                for index in range(self.num_experts)
            ],
            axis=1,
        )


def places_of(features: jax.Array, coefficients: jax.Array) -> jax.Array:
    """Means or logits of experts on the support, ``(rows, experts)``."""
    return features @ coefficients.T


def mass_by_expert(plan: TransportPlan, values: jax.Array | float) -> jax.Array:
    """Σ mass · values over rows and columns that go to each expert, ``(experts,)``."""
    return jnp.sum(plan.received(values), axis=0)


def residual_squares(
    features: jax.Array, plan: TransportPlan, places: jax.Array, coefficients: jax.Array
) -> jax.Array:
    """Σ mass (local place − reduced place)², ``(experts,)``: the spread between the experts."""
    gap = places[:, plan.local] - _taken(places_of(features, coefficients), plan)
    return mass_by_expert(plan, gap**2)


def least_squares(
    features: jax.Array,
    plan: TransportPlan,
    places: jax.Array,
    *,
    weights: jax.Array | float = 1.0,
) -> jax.Array:
    """argmin_B Σ mass · weights (local place − B_k φ)², ``(experts, features)``."""
    received = plan.received(weights)
    targets = plan.received(weights * places[:, plan.local])
    gram = jnp.einsum("sk,sf,sg->kfg", received, features, features)
    return _solve(gram, targets.T @ features)


def planned_cost(
    between: Callable[..., jax.Array],
    features: jax.Array,
    plan: TransportPlan,
    local: Experts,
    reduced: Experts,
) -> jax.Array:
    """Σ mass · cost by reduced expert, ``(experts,)``; columns without mass cost nothing."""
    places = _taken(places_of(features, reduced.coefficients), plan)
    cost = between(
        local.places[:, plan.local], _local_scale(plan, local), places, _scale(plan, reduced)
    )
    return mass_by_expert(plan, jnp.where(plan.mass > 0.0, cost, 0.0))


def gaussian_update(
    between: Callable[..., jax.Array],
    features: jax.Array,
    plan: TransportPlan,
    local: Experts,
    current: Experts,
) -> Experts:
    """Steps of coefficients, then of log-scales, each halved until the planned cost falls.

    Coefficients go to a weighted least-squares fit with weights c'(δ)/δ of the residual δ, which
    majorises costs that are concave in δ² (Jensen–Shannon, Hellinger) and solves those that are
    linear in it (Kullback–Leibler, Rényi). Scales take Newton's step in their logarithm.
    """
    local_place, local_scale = local.places[:, plan.local], _local_scale(plan, local)

    def total(experts: Experts) -> jax.Array:
        return planned_cost(between, features, plan, local, experts)

    def coefficient_step(now: Experts) -> Experts:
        scale = _scale(plan, now)
        gap = _taken(places_of(features, now.coefficients), plan) - local_place
        # At δ = 0 the ratio is the curvature, which a small δ approximates.
        least = 1e-2 * scale
        gap = jnp.where(jnp.abs(gap) < least, jnp.where(gap < 0.0, -least, least), gap)
        slope = _derivative(lambda place: between(local_place, local_scale, place, scale))(
            local_place + gap
        )
        weights = jnp.where(jnp.isfinite(slope), jnp.maximum(slope / gap, 0.0), 0.0)
        target = least_squares(features, plan, local.places, weights=weights)
        return Experts(target - now.coefficients, jnp.zeros_like(now.scale))

    def scale_step(now: Experts) -> Experts:
        def of_log_scale(log_scale: jax.Array) -> jax.Array:
            return total(Experts(now.coefficients, jnp.exp(log_scale)))

        def with_slope(log_scale: jax.Array) -> tuple[jax.Array, jax.Array]:
            return jax.jvp(_derivative(of_log_scale), (log_scale,), (jnp.ones_like(log_scale),))

        slope, curvature = with_slope(jnp.log(now.scale))
        move = jnp.clip(-slope / jnp.maximum(jnp.abs(curvature), 1e-12), -1.0, 1.0)
        move = jnp.where(jnp.isfinite(move), move, 0.0)
        return Experts(jnp.zeros_like(now.coefficients), move)

    def step(index: jax.Array, carry: tuple[Experts, jax.Array]) -> tuple[Experts, jax.Array]:
        now, cost = carry
        direction = jax.lax.cond(index % 2 == 0, coefficient_step, scale_step, now)
        return _line_search(total, now, cost, direction)

    current = Experts(*current[:2])
    start = (current, total(current))
    return jax.lax.fori_loop(0, 2 * _NUM_ROUNDS, step, start)[0]


def bernoulli_update(
    between: Callable[..., jax.Array],
    features: jax.Array,
    plan: TransportPlan,
    local: Experts,
    current: Experts,
) -> Experts:
    """Newton's steps of the logits' coefficients, halved until the planned cost falls.

    The curvature is kept above a hundredth of p (1 − p): bounded costs are concave far from their
    minimum.
    """
    local_place = local.places[:, plan.local]

    def total(experts: Experts) -> jax.Array:
        return planned_cost(between, features, plan, local, experts)

    def slope_of(place: jax.Array) -> jax.Array:
        return _derivative(lambda x: between(local_place, None, x, None))(place)

    def step(_: int, carry: tuple[Experts, jax.Array]) -> tuple[Experts, jax.Array]:
        now, cost = carry
        place = _taken(places_of(features, now.coefficients), plan)
        slope, curvature = jax.jvp(slope_of, (place,), (jnp.ones_like(place),))
        fisher = jax.nn.sigmoid(place) * jax.nn.sigmoid(-place)
        curvature = jnp.maximum(curvature, 1e-2 * fisher)
        gradient = plan.received(slope).T @ features
        hessian = jnp.einsum("sk,sf,sg->kfg", plan.received(curvature), features, features)
        return _line_search(total, now, cost, Experts(-_solve(hessian, gradient), None))

    current = Experts(*current[:2])
    return jax.lax.fori_loop(0, _NUM_ROUNDS, step, (current, total(current)))[0]


def _derivative(function: Callable[[jax.Array], jax.Array]) -> Callable[[jax.Array], jax.Array]:
    """f' of a function that maps every entry by itself."""

    def slope(x: jax.Array) -> jax.Array:
        return jax.jvp(function, (x,), (jnp.ones_like(x),))[1]

    return slope


def _line_search(
    total: Callable[[Experts], jax.Array], current: Experts, cost: jax.Array, direction: Experts
) -> tuple[Experts, jax.Array]:
    """Halve each expert's own step until its cost does not rise; in the end stay.

    ``direction`` is of coefficients and of log-scales; returns experts and their costs.
    """

    def moved(step: jax.Array) -> Experts:
        coefficients = current.coefficients + step[:, None] * direction.coefficients
        if current.scale is None:
            return Experts(coefficients, None)
        return Experts(coefficients, current.scale * jnp.exp(step * direction.scale))

    def halve(carry: tuple) -> tuple:
        step, _, worse, count = carry
        shorter = jnp.where(count < _NUM_HALVINGS, 0.5 * step, 0.0)
        step = jnp.where(worse, shorter, step)
        new = total(moved(step))
        # Not "new > cost", so that NaN counts as worse.
        return step, new, ~(new <= cost) & (step > 0.0), count + 1

    first = (jnp.full_like(cost, 2.0), cost, jnp.ones(cost.shape, bool), jnp.zeros((), int))
    step, new, _, _ = jax.lax.while_loop(lambda carry: jnp.any(carry[2]), halve, first)
    return moved(step), jnp.where(step > 0.0, new, cost)


def _taken(values: jax.Array, plan: TransportPlan) -> jax.Array:
    """Of ``values`` ``(rows, experts)`` those of the expert each column goes to."""
    return jnp.take_along_axis(values, plan.expert, axis=1)


def _scale(plan: TransportPlan, experts: Experts) -> Any:
    return None if experts.scale is None else experts.scale[plan.expert]


def _local_scale(plan: TransportPlan, local: Experts) -> Any:
    return None if local.scale is None else local.scale[plan.local]


def _solve(gram: jax.Array, right: jax.Array) -> jax.Array:
    """gram⁻¹ right for each expert; a ridge relative to the trace keeps it solvable."""
    width = gram.shape[-1]
    ridge = _RIDGE[jnp.finfo(gram.dtype).bits] / width
    trace = jnp.trace(gram, axis1=-2, axis2=-1)
    padding = jnp.maximum(ridge * trace, jnp.finfo(gram.dtype).tiny)[:, None, None]
    padded = gram + padding * jnp.eye(width, dtype=gram.dtype)
    first = jnp.linalg.solve(padded, right[..., None])
    # One refinement squares the ridge's relative effect.
    second = jnp.linalg.solve(padded, right[..., None] - gram @ first)
    return (first + second)[..., 0]
