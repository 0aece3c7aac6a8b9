r"""What it costs to move mass from one expert to another at the same features.

The cost is a divergence D(local‖reduced) of the shared layer, chosen by name: its closed form
between Gaussians or Bernoulli laws where there is one, else Gauss–Hermite quadrature. "Place" is an
expert's mean, for Bernoulli experts its logit.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

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
from bayesdiv.divergences._categorical import require_f_divergence
from bayesdiv.divergences._gaussian import alpha_terms
from bayesdiv.inference._gaussian_quadrature import gaussian_quadrature
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
    is known.

    Attributes
    ----------
    is_closed_form
        Whether `update` minimises at once; else a reduction starts from where forward KL ends.
    """

    is_closed_form: ClassVar[bool] = False

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
    """D(p‖q) of the shared layer between N(m₁, s₁²) = p, local, and N(m₂, s₂²) = q, reduced.

    Without a closed form, as for Jensen–Shannon, by `gaussian_quadrature` with ``num_nodes``.
    """

    divergence: FDivergence
    num_nodes: int = 12

    def __post_init__(self) -> None:
        if self.num_nodes < 2:
            raise ValueError(f"num_nodes must be at least 2, got {self.num_nodes}.")
        if not (self.has_formula or _is_bounded(self.divergence)):
            raise ValueError(
                f"{self.divergence!r} has no closed form between Gaussians, and quadrature serves "
                "smooth bounded divergences only, such as jensen_shannon; choose one of "
                f"{', '.join(list_ground_costs())}."
            )

    @property
    def has_formula(self) -> bool:
        """Whether the layer knows the closed form."""
        return alpha_terms(self.divergence) is not None

    def between(
        self, place: jax.Array, scale: Any, reduced_place: jax.Array, reduced_scale: Any
    ) -> jax.Array:
        if not self.has_formula:
            return gaussian_quadrature(
                self.divergence,
                place,
                scale,
                reduced_place,
                reduced_scale,
                num_nodes=self.num_nodes,
            )
        return between_gaussians(
            self.divergence,
            place[..., None],
            reduced_place[..., None],
            p_scale=scale[..., None],
            q_scale=reduced_scale[..., None],
        )


@dataclass(frozen=True)
class GaussianForwardKL(GaussianDivergence):
    """KL(local‖reduced): moments are matched, the spread between the experts included."""

    divergence: FDivergence = ForwardKL()
    is_closed_form: ClassVar[bool] = True

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
    is_closed_form: ClassVar[bool] = True

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

    is_closed_form: ClassVar[bool] = True

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
    """D(p‖q) of the shared layer between Bernoulli laws, from their logits; f must be smooth."""

    divergence: FDivergence

    def __post_init__(self) -> None:
        if not self.divergence.has_path_gradient:
            raise ValueError(
                f"{self.divergence!r} is not smooth, so that no step lowers it; choose one of "
                f"{', '.join(list_ground_costs('bernoulli'))}."
            )

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


def _is_bounded(divergence: FDivergence) -> bool:
    """Whether D is at most f(0) + f'(∞) < ∞, and f smooth."""
    ends = divergence.value_at_zero, divergence.slope_at_infinity
    return divergence.has_path_gradient and all(math.isfinite(end) for end in ends)


def list_ground_costs(experts: str = "normal") -> list[str]:
    """Names that `get_ground_cost` knows for ``experts``, "normal" or "bernoulli"."""
    members = {name: require_f_divergence(name) for name in list_divergences("f")}
    # f that jumps in slope has no update by curvature.
    shared = [name for name, member in members.items() if member.has_path_gradient]
    if experts == "bernoulli":
        return shared
    known = [n for n in shared if alpha_terms(members[n]) is not None or _is_bounded(members[n])]
    return list(dict.fromkeys([*_GAUSSIAN, *known]))


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
        divergence = require_f_divergence(get_divergence(cost, **parameters))
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
