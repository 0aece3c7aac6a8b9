"""The expected transportation divergence between any two mixtures of experts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from bayesdiv._mixture_of_experts import MixtureOfExpertsParameters
from bayesdiv.divergences import FDivergence
from bayesdiv.inference._ground_costs import GroundCost, get_ground_cost
from bayesdiv.inference._pooled_experts import pool_experts
from bayesdiv.inference._reduction_steps import evaluate

__all__ = ["expected_divergence"]


def expected_divergence(
    p: MixtureOfExpertsParameters | Sequence[MixtureOfExpertsParameters],
    q: MixtureOfExpertsParameters,
    support: Any,
    *,
    cost: str | FDivergence | GroundCost = "forward_kl",
    weights: Any = None,
    experts: str = "normal",
    coupling: str = "relaxed",
) -> float:
    r"""T(p, q): what it costs to move the experts of p to those of q, averaged over ``support``.

    .. math:: E_x \min_{P} Σ_{l,k} P_{lk} \, c(p_l(·|x), q_k(·|x)), \qquad Σ_k P_{lk} = Π_l(x).

    ``coupling="relaxed"`` asks no more of P, so that gates of q do not count: all mass goes to the
    cheapest expert. ``"exact"`` also asks Σ_l P_lk = π_k(x), one transport problem a row, solved by
    POT.

    Parameters
    ----------
    p
        A model, or several that are pooled with ``weights``.
    q
        The model to compare with.
    support
        Predictors without the intercept, ``(rows, dim)``.
    cost, experts
        As in `TransportReduction`.
    weights
        Of the models in p.
    coupling
        See above.

    Returns
    -------
    float
        In units of the cost; not symmetric unless the cost is.

    Raises
    ------
    TypeError, ValueError
        Models or support that do not fit, or an unknown coupling.
    """
    if coupling not in ("relaxed", "exact"):
        raise ValueError(f"coupling must be 'relaxed' or 'exact', got {coupling!r}.")
    ground_cost = get_ground_cost(cost, experts=experts)
    models = [p] if isinstance(p, MixtureOfExpertsParameters) else p
    pooled = pool_experts(models, weights, support, experts=experts)
    # Checked as a model of its own, and for its gates.
    other = pool_experts([q], None, support, experts=experts)
    reduced = pooled.experts_of(other.parameters[0])
    if coupling == "relaxed":
        return float(evaluate(pooled.problem, reduced, cost=ground_cost, epsilon=None).objective)
    from ot import emd2

    places = pooled.features @ reduced.coefficients.T
    costs = np.asarray(
        ground_cost.between(
            pooled.local.places[:, :, None],
            None if pooled.local.scale is None else pooled.local.scale[:, None],
            places[:, None, :],
            reduced.scale,
        )
    ).astype(float)
    sources, targets = (_rows(part.mass) for part in (pooled, other))
    return float(
        np.mean(
            [
                emd2(source, target, matrix)
                for source, target, matrix in zip(sources, targets, costs, strict=True)
            ]
        )
    )


def _rows(mass: Any) -> np.ndarray:
    """Rows that sum to 1 in double precision, as POT asks."""
    rows = np.asarray(mass, float)
    return rows / rows.sum(axis=1, keepdims=True)
