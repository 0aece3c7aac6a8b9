"""Pareto-smoothed importance sampling: may these draws be trusted, and can weights repair them?"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from bayesdiv.diagnostics._groups import Groups, as_numpy
from bayesdiv.objectives._pareto import MIN_PARTICLES, smooth_log_weights

GOOD, RELIABLE, MEAN_EXISTS = 0.5, 0.7, 1.0


@dataclass(frozen=True, eq=False)
class SmoothedWeights:
    r"""Pareto-smoothed weights of draws, and what their tail says.

    ``log_weights``, shape ``(draw,)``, are normalised: their exponentials sum to 1. ``k`` is the
    shape of the generalised Pareto distribution fitted to the largest raw weights.
    """

    log_weights: np.ndarray
    k: float

    @property
    def weights(self) -> np.ndarray:
        """They sum to 1."""
        return np.exp(self.log_weights)

    @property
    def ess(self) -> float:
        """Effective sample size 1/Σw², in [1, number of draws]."""
        return float(1.0 / np.sum(self.weights**2))

    @property
    def verdict(self) -> str:
        """See :func:`describe_k`."""
        return describe_k(self.k)


def psis(log_weights: Any) -> SmoothedWeights:
    """Smooth the weights of draws from an approximation q of p (Vehtari et al. 2024, §2.4).

    The largest weights, at most a fifth of them and at most 3√n, are replaced by quantiles of the
    generalised Pareto distribution fitted to them, which bounds them.

    Parameters
    ----------
    log_weights
        log p̃ − log q at draws of q, ``(draw,)``, nats; a constant makes no difference.

    Raises
    ------
    ValueError
        Another shape, fewer than 25 draws, NaN, plus infinity, or no positive weight.
    """
    values = as_numpy(log_weights).astype(np.float64)
    if values.ndim != 1 or len(values) < MIN_PARTICLES:
        raise ValueError(
            f"log_weights must have shape (draw,) with at least {MIN_PARTICLES} draws, got "
            f"{values.shape}."
        )
    bad = np.isnan(values) | (values == np.inf)
    if bad.any():
        raise ValueError(
            f"log_weights must be finite or -inf, got {values[bad][0]} first at draw "
            f"{int(bad.argmax())}."
        )
    if values.max() == -np.inf:
        raise ValueError("log_weights must have a finite entry, got -inf everywhere.")
    return SmoothedWeights(*smooth_log_weights(values))


def describe_k(k: float) -> str:
    """What a Pareto k means for the approximation it comes from.

    "good" below 0.5 (the weights have finite variance), "ok" below 0.7 (smoothed estimates are
    reliable), "bad" below 1 (they are not), "very bad" from 1 on (the weights have no mean);
    "unknown" for NaN.
    """
    if np.isnan(k):
        return "unknown"
    if k < GOOD:
        return "good"
    if k < RELIABLE:
        return "ok"
    return "bad" if k < MEAN_EXISTS else "very bad"


def psis_resample(
    draws: Mapping[str, Any],
    log_weights: Any,
    *,
    num_draws: int | None = None,
    seed: int | None = None,
    replace: bool = True,
) -> dict[str, np.ndarray]:
    """Draws of p̃ from draws of q: chosen with probability their smoothed weights.

    Parameters
    ----------
    draws
        ``{name: (draw, *shape)}``.
    log_weights
        ``(draw,)``, as for :func:`psis`.
    num_draws
        How many to return; as many as there are by default.
    seed
        Of the choice; None takes a fresh one.
    replace
        Systematic resampling with repetition; False draws without (Gumbel top-k), which needs
        fewer draws than there are.

    Returns
    -------
    dict
        NumPy arrays ``{name: (num_draws, *shape)}`` with equal weights.

    Raises
    ------
    ValueError
        Shapes that do not fit, as :func:`psis` raises, or too many draws without replacement.
    """
    smoothed = psis(log_weights)
    total = len(smoothed.log_weights)
    values = {name: as_numpy(value) for name, value in draws.items()}
    for name, value in values.items():
        if value.shape[:1] != (total,):
            raise ValueError(
                f"draws[{name!r}] must have {total} draws in front, as log_weights, got shape "
                f"{value.shape}."
            )
    count = total if num_draws is None else num_draws
    if isinstance(count, bool) or not isinstance(count, int | np.integer) or count < 1:
        raise ValueError(f"num_draws must be an integer of at least 1, got {num_draws!r}.")
    if not replace and count >= total:
        raise ValueError(
            f"num_draws must be below the {total} draws there are with replace=False, got {count}."
        )
    chosen = _choose(smoothed, count, np.random.default_rng(seed), replace=replace)
    return {name: value[chosen] for name, value in values.items()}


def _choose(
    smoothed: SmoothedWeights, count: int, rng: np.random.Generator, *, replace: bool = True
) -> np.ndarray:
    """Indices of draws in random order, ``(count,)``."""
    if not replace:
        keys = smoothed.log_weights + rng.gumbel(size=len(smoothed.log_weights))
        return np.argsort(-keys)[:count]
    # One uniform for all strata: a draw of weight w comes floor(count w) or ceil(count w) times.
    points = (np.arange(count) + rng.uniform()) / count
    cumulative = np.cumsum(smoothed.weights)
    chosen = np.searchsorted(cumulative / cumulative[-1], points, side="right")
    return rng.permutation(np.minimum(chosen, len(cumulative) - 1))


def resample_groups(groups: Groups, *, seed: int | None = None) -> Groups:
    """Each chain resampled by its weights: ``log_weight``, or log p̃ − log q.

    Raises
    ------
    ValueError
        If ``sample_stats`` has neither.
    """
    stats = groups.variables.get("sample_stats", {})
    if "log_weight" in stats:
        log_weight = stats["log_weight"]
    elif "log_p" in stats and "log_q" in stats:
        log_weight = stats["log_p"] - stats["log_q"]
    else:
        raise ValueError(
            "resample=True needs log_weights, or a guide with log_p and log_q; got sample_stats "
            f"{sorted(stats)}."
        )
    smoothed = [psis(row) for row in log_weight]
    rng = np.random.default_rng(seed)
    chosen = np.stack([_choose(chain, log_weight.shape[1], rng) for chain in smoothed])
    rows = np.arange(len(chosen))[:, None]
    variables = {
        group: {
            name: value if "data" in group else value[rows, chosen]
            for name, value in values.items()
            if name != "log_weight"
        }
        for group, values in groups.variables.items()
    }
    return replace(groups, variables=variables).with_attrs(
        resampled="psis", pareto_k=[c.k for c in smoothed], ess=[c.ess for c in smoothed]
    )
