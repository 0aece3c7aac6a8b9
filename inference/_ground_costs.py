r"""What it costs to move mass from one expert to another at the same features.

The cost is a divergence D(local‖reduced) of the shared layer, chosen by name: its closed form
between Gaussians or Bernoulli laws where there is one, else Gauss–Hermite quadrature. "Place" is an
expert's mean, for Bernoulli experts its logit.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from bayesdiv.divergences import (
    FDivergence,
    ForwardKL,
    ReverseKL,
    between_gaussians,
    between_logits,
    gaussian_wasserstein2,
    get_divergence,
    list_divergences,
)
from bayesdiv.divergences._gaussian import alpha_terms
from bayesdiv.inference._ground_cost_updates import (
    Experts,
    TransportPlan,
    bernoulli_update,
    gaussian_update,
    least_squares,
    mass_by_expert,
    residual_squares,
)

__all__ = [
    "BernoulliDivergence",
    "GaussianDivergence",
    "GaussianForwardKL",
    "GaussianRenyi",
    "GaussianReverseKL",
    "GaussianWasserstein2",
    "GroundCost",
    "get_ground_cost",
    "list_ground_costs",
]


@dataclass(frozen=True)
class GroundCost:
    """A cost between experts and the update of the reduced experts that it asks for.

    Write one of your own by subclassing: `between` is needed, `update` only where a closed form
    is known. ``num_evaluations`` says how many numbers one cost is made of, which bounds memory.
    """

    num_evaluations = 1
    is_closed_form = False

    def between(
        self, place: jax.Array, scale: Any, reduced_place: jax.Array, reduced_scale: Any
    ) -> jax.Array:
        """The cost, elementwise; arguments broadcast. Scales are None for Bernoulli experts."""
        raise NotImplementedError

    def update(
        self, features: jax.Array, plan: TransportPlan, local: Experts, current: Experts
    ) -> Experts:
        """Reduced experts that cost no more than ``current`` under ``plan``."""
        update = bernoulli_update if current.scale is None else gaussian_update
        return update(self.between, features, plan, local, current)


@dataclass(frozen=True)
class GaussianDivergence(GroundCost):
    r"""D(p‖q) of the shared layer between N(m₁, s₁²) = p, local, and N(m₂, s₂²) = q, reduced.

    Without a closed form, as for Jensen–Shannon,

    .. math:: D_f(p‖q) = E_p[f'(u)] - E_q[u f'(u) - f(u)], \qquad u = p/q,

    by ``num_nodes`` Gauss–Hermite nodes under p and as many under q.
    """

    divergence: FDivergence
    num_nodes: int = 12

    def __post_init__(self) -> None:
        if self.num_nodes < 2:
            raise ValueError(f"num_nodes must be at least 2, got {self.num_nodes}.")

    @property
    def has_formula(self) -> bool:
        """Whether the layer knows the closed form."""
        return alpha_terms(self.divergence) is not None

    @property
    def num_evaluations(self) -> int:
        return 1 if self.has_formula else 2 * self.num_nodes

    def between(
        self, place: jax.Array, scale: Any, reduced_place: jax.Array, reduced_scale: Any
    ) -> jax.Array:
        if not self.has_formula:
            return self._by_quadrature(place, scale, reduced_place, reduced_scale)
        return between_gaussians(
            self.divergence,
            place[..., None],
            reduced_place[..., None],
            p_scale=scale[..., None],
            q_scale=reduced_scale[..., None],
        )

    def _by_quadrature(
        self, place: jax.Array, scale: Any, reduced_place: jax.Array, reduced_scale: Any
    ) -> jax.Array:
        nodes, weights = np.polynomial.hermite_e.hermegauss(self.num_nodes)
        log_scales = jnp.log(reduced_scale) - jnp.log(scale)

        def log_ratio(value: jax.Array) -> jax.Array:
            reduced_square = ((value - reduced_place) / reduced_scale) ** 2
            return log_scales + 0.5 * (reduced_square - ((value - place) / scale) ** 2)

        def add(total: jax.Array, node_and_weight: jax.Array) -> tuple[jax.Array, None]:
            node, weight = node_and_weight
            local_part = self.divergence.derivative(log_ratio(place + scale * node))
            reduced_part = self.divergence.pseudo_reward(
                log_ratio(reduced_place + reduced_scale * node)
            )
            return total + weight * (local_part - reduced_part), None

        start = jnp.zeros_like(place + scale + reduced_place + reduced_scale)
        rule = jnp.asarray(np.stack([nodes, weights / weights.sum()], axis=1), start.dtype)
        return jax.lax.scan(add, start, rule)[0]


@dataclass(frozen=True)
class GaussianForwardKL(GaussianDivergence):
    """KL(local‖reduced): moments are matched, the spread between the experts included."""

    divergence: FDivergence = ForwardKL()
    is_closed_form = True

    def update(
        self, features: jax.Array, plan: TransportPlan, local: Experts, current: Experts
    ) -> Experts:
        coefficients = least_squares(features, plan, local.places)
        within = mass_by_expert(plan, local.scale[plan.local] ** 2)
        between = residual_squares(features, plan, local.places, coefficients)
        total = mass_by_expert(plan, 1.0)
        return Experts(coefficients, jnp.sqrt((within + between) / total))


@dataclass(frozen=True)
class GaussianReverseKL(GaussianDivergence):
    """KL(reduced‖local): precisions are averaged, narrow experts pull hardest."""

    divergence: FDivergence = ReverseKL()
    is_closed_form = True

    def update(
        self, features: jax.Array, plan: TransportPlan, local: Experts, current: Experts
    ) -> Experts:
        precision = local.scale[plan.local] ** -2.0
        coefficients = least_squares(features, plan, local.places, weights=precision)
        mean_precision = mass_by_expert(plan, precision) / mass_by_expert(plan, 1.0)
        return Experts(coefficients, mean_precision**-0.5)


@dataclass(frozen=True)
class GaussianWasserstein2(GroundCost):
    """W₂² = (m₁ − m₂)² + (s₁ − s₂)², in squared units of the outcome: places and sds averaged."""

    is_closed_form = True

    def between(
        self, place: jax.Array, scale: Any, reduced_place: jax.Array, reduced_scale: Any
    ) -> jax.Array:
        return gaussian_wasserstein2(
            place[..., None],
            reduced_place[..., None],
            p_scale=scale[..., None],
            q_scale=reduced_scale[..., None],
            squared=True,
        )

    def update(
        self, features: jax.Array, plan: TransportPlan, local: Experts, current: Experts
    ) -> Experts:
        coefficients = least_squares(features, plan, local.places)
        scale = mass_by_expert(plan, local.scale[plan.local]) / mass_by_expert(plan, 1.0)
        return Experts(coefficients, scale)


@dataclass(frozen=True)
class GaussianRenyi(GroundCost):
    r"""Rényi's divergence of order a, log ∫ p^a q^(1−a) / (a − 1), local p and reduced q.

    .. math:: \log\frac{s_2}{s_1} + \frac{\log(v_2/v^*)}{2(a-1)} + \frac{a (m_1-m_2)^2}{2 v^*},
              \qquad v^* = a v_2 + (1-a) v_1,

    infinite where v* ≤ 0.
    """

    order: float = 0.5

    def __post_init__(self) -> None:
        if not 0.0 < self.order < np.inf or self.order == 1.0:
            raise ValueError(
                f"order must be positive and not 1, got {self.order}; use forward_kl for 1."
            )

    def between(
        self, place: jax.Array, scale: Any, reduced_place: jax.Array, reduced_scale: Any
    ) -> jax.Array:
        mixed = self.order * reduced_scale**2 + (1.0 - self.order) * scale**2
        exists = mixed > 0.0
        mixed = jnp.where(exists, mixed, 1.0)
        value = (
            jnp.log(reduced_scale / scale)
            + 0.5 * jnp.log(reduced_scale**2 / mixed) / (self.order - 1.0)
            + 0.5 * self.order * (place - reduced_place) ** 2 / mixed
        )
        return jnp.where(exists, value, jnp.inf)


@dataclass(frozen=True)
class BernoulliDivergence(GroundCost):
    """D(p‖q) of the shared layer between Bernoulli laws, from their logits; any f-divergence."""

    divergence: FDivergence

    def between(
        self, place: jax.Array, scale: Any, reduced_place: jax.Array, reduced_scale: Any
    ) -> jax.Array:
        logits = (jnp.stack([jnp.zeros_like(x), x], axis=-1) for x in (place, reduced_place))
        return between_logits(self.divergence, *logits)


_GAUSSIAN: dict[str, Callable[..., GroundCost]] = {
    "forward_kl": GaussianForwardKL,
    "reverse_kl": GaussianReverseKL,
    "wasserstein2": GaussianWasserstein2,
    "renyi": GaussianRenyi,
}
# f jumps in slope where the densities cross: no update by curvature.
_NOT_SMOOTH = ("total_variation",)


def list_ground_costs(experts: str = "normal") -> list[str]:
    """Names that `get_ground_cost` knows for ``experts``, "normal" or "bernoulli"."""
    shared = [name for name in list_divergences("f") if name not in _NOT_SMOOTH]
    return shared if experts == "bernoulli" else list(dict.fromkeys([*_GAUSSIAN, *shared]))


def get_ground_cost(
    cost: str | FDivergence | GroundCost, *, experts: str = "normal", **parameters: Any
) -> GroundCost:
    """The ground cost called ``cost``, of an f-divergence of the layer, or ``cost`` itself.

    Parameters
    ----------
    cost
        One of `list_ground_costs`, an ``FDivergence`` such as ``Alpha(0.5)``, or a `GroundCost`.
    experts
        "normal" or "bernoulli".
    parameters
        Of the divergence, as ``order`` of "alpha" and "renyi".

    Raises
    ------
    ValueError
        An unknown name; the known ones are listed.
    TypeError
        None of the three.
    """
    if isinstance(cost, GroundCost):
        if isinstance(cost, BernoulliDivergence) != (experts == "bernoulli") and isinstance(
            cost, BernoulliDivergence | GaussianDivergence | GaussianWasserstein2 | GaussianRenyi
        ):
            raise ValueError(f"cost {cost!r} is not one between {experts} experts.")
        return cost
    known = list_ground_costs(experts)
    if isinstance(cost, str):
        if cost not in known:
            raise ValueError(
                f"cost between {experts} experts must be one of {', '.join(known)}, an FDivergence "
                f"or a GroundCost, got {cost!r}."
            )
        if experts == "normal" and cost in _GAUSSIAN:
            return _GAUSSIAN[cost](**parameters)
        divergence = get_divergence(cost, **parameters)
    elif isinstance(cost, FDivergence):
        divergence = cost
    else:
        raise TypeError(
            "cost must be a name, an FDivergence or a GroundCost, got "
            f"{cost!r} of type {type(cost).__name__}."
        )
    if experts == "bernoulli":
        return BernoulliDivergence(divergence)
    if isinstance(divergence, ForwardKL):
        return GaussianForwardKL()
    if isinstance(divergence, ReverseKL):
        return GaussianReverseKL()
    return GaussianDivergence(divergence)
