r"""A posterior over the last layer of a reward model, and choices that distrust it.

With features φ(y) of a trained critic held fixed, rows of two classes and their labels,

.. math:: β ∼ N(0, σ^2 I), \quad α ∼ N(0, σ_0^2), \quad
          \text{label} ∼ \mathrm{Bernoulli}(\mathrm{logit} = α + φ(y)^\top β),

is sampled by NUTS. Each draw is a reward α + φᵀβ; what the best of N exploits is where draws
disagree, and a low quantile over draws is what is left of the reward there.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from numpyro.infer import MCMC, NUTS

from bayesdiv.diagnostics._container import build_container
from bayesdiv.diagnostics._groups import Groups
from bayesdiv.objectives import DensityRatio

__all__ = ["BayesianRewardHead", "FittedRewardHead", "reward_head"]


def reward_head(
    features: jax.Array,
    labels: jax.Array | None = None,
    *,
    prior_scale: float = 1.0,
    intercept_scale: float = 5.0,
) -> None:
    """Logistic regression of the class on features ``(n, width)``; ``labels`` ``(n,)``, 0 or 1."""
    intercept = numpyro.sample("intercept", dist.Normal(0.0, intercept_scale))
    with numpyro.plate("width", features.shape[-1]):
        weights = numpyro.sample("weights", dist.Normal(0.0, prior_scale))
    with numpyro.plate("rows", features.shape[0]):
        numpyro.sample("label", dist.Bernoulli(logits=intercept + features @ weights), obs=labels)


@dataclass(frozen=True)
class BayesianRewardHead:
    """How the posterior is sampled.

    Attributes
    ----------
    prior_scale : float
        σ, for features that are standardised here.
    num_warmup, num_samples, num_chains : int
        Of NUTS; the chains run side by side.
    target_accept : float
        Of NUTS's step size.

    Raises
    ------
    ValueError
        A setting outside its domain.

    References
    ----------
    Hoffman and Gelman (2014), for NUTS.
    """

    prior_scale: float = 1.0
    num_warmup: int = 300
    num_samples: int = 300
    num_chains: int = 2
    target_accept: float = 0.8

    def __post_init__(self) -> None:
        if not 0.0 < self.prior_scale < math.inf:
            raise ValueError(f"prior_scale must be positive and finite, got {self.prior_scale!r}.")
        for name in ("num_warmup", "num_samples", "num_chains"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise ValueError(f"{name} must be a whole number of at least 1, got {value!r}.")
        if not 0.0 < self.target_accept < 1.0:
            raise ValueError(f"target_accept must be in (0, 1), got {self.target_accept!r}.")

    def fit(
        self, positives: Any, negatives: Any, *, rng_key: jax.Array, progress_bar: bool = False
    ) -> FittedRewardHead:
        """The posterior given features of rows of either class, ``(n, width)`` and ``(m, width)``.

        Parameters
        ----------
        positives, negatives
            Arrays that NumPy can read; features without spread are left out.
        rng_key
            A JAX key.
        progress_bar
            NumPyro's.

        Raises
        ------
        ValueError
            Shapes that do not fit, features that are not finite or have no spread at all, or
            classes that `bayesdiv.objectives.DensityRatio` refuses.
        """
        classes = [_checked(name, rows) for name, rows in (("p", positives), ("n", negatives))]
        if classes[0].shape[1] != classes[1].shape[1]:
            raise ValueError(
                "positives and negatives must have features of one width, got "
                f"{classes[0].shape[1]} and {classes[1].shape[1]}."
            )
        offset = DensityRatio().offset(len(classes[0]), len(classes[1]))
        rows = np.concatenate(classes)
        center, scale = rows.mean(0), rows.std(0)
        kept = scale > 1e-6 * scale.max()
        if not kept.any():
            raise ValueError("features must have spread, got the same row everywhere.")
        labels = np.concatenate([np.ones(len(classes[0])), np.zeros(len(classes[1]))])
        standardised = jnp.asarray((rows[:, kept] - center[kept]) / scale[kept])
        mcmc = MCMC(
            NUTS(reward_head, target_accept_prob=self.target_accept),
            num_warmup=self.num_warmup,
            num_samples=self.num_samples,
            num_chains=self.num_chains,
            chain_method="vectorized",
            progress_bar=progress_bar,
        )
        mcmc.run(
            rng_key,
            standardised,
            jnp.asarray(labels),
            prior_scale=self.prior_scale,
            extra_fields=("diverging", "potential_energy", "num_steps", "accept_prob"),
        )
        return FittedRewardHead(
            samples=_as_numpy(mcmc.get_samples(group_by_chain=True)),
            statistics=_as_numpy(mcmc.get_extra_fields(group_by_chain=True)),
            center=center[kept],
            scale=scale[kept],
            kept=kept,
            offset=offset,
        )


@dataclass(frozen=True, eq=False)
class FittedRewardHead:
    """Draws of the head; ``samples`` and ``statistics`` have axes ``(chain, draw, …)``."""

    samples: dict[str, np.ndarray]
    statistics: dict[str, np.ndarray]
    center: np.ndarray
    scale: np.ndarray
    kept: np.ndarray
    offset: float

    def reward_draws(self, features: Any) -> np.ndarray:
        """A reward for each draw: ``(chain · draw, …)`` for features ``(…, width)``."""
        rows = np.asarray(features)
        if rows.shape[-1] != len(self.kept):
            raise ValueError(
                f"features must have width {len(self.kept)}, as the head was fitted on, got "
                f"{rows.shape[-1]}."
            )
        standardised = (rows[..., self.kept] - self.center) / self.scale
        weights = self.samples["weights"].reshape(-1, standardised.shape[-1])
        shift = self.samples["intercept"].reshape(-1) - self.offset
        draws = np.tensordot(weights, standardised, axes=([1], [-1]))
        return draws + shift.reshape(-1, *[1] * (rows.ndim - 1))

    def mean_reward(self, features: Any) -> np.ndarray:
        """The posterior mean, ``(…)``."""
        return self.reward_draws(features).mean(0)

    def lower_confidence_bound(self, features: Any, *, level: float = 0.1) -> np.ndarray:
        """The ``level`` quantile over draws, ``(…)``: what the reward is at least, mostly.

        Raises
        ------
        ValueError
            ``level`` outside (0, 1), or features of another width.
        """
        if not 0.0 < level < 1.0:
            raise ValueError(f"level must be in (0, 1), got {level!r}.")
        return np.quantile(self.reward_draws(features), level, axis=0)

    def predictive_calibration(
        self, positives: Any, negatives: Any, *, num_bins: int = 10
    ) -> tuple[np.ndarray, np.ndarray]:
        """Predicted P(positive) and observed share in equally full bins of held-out rows.

        Both ``(num_bins,)``; with equal classes they agree where the head is calibrated.
        """
        if isinstance(num_bins, bool) or not isinstance(num_bins, int) or num_bins < 1:
            raise ValueError(f"num_bins must be a whole number of at least 1, got {num_bins!r}.")
        shares = []
        for rows in (positives, negatives):
            draws = self.reward_draws(rows) + self.offset
            shares.append((0.5 * (1.0 + np.tanh(0.5 * draws))).mean(0))
        predicted = np.concatenate(shares)
        labels = np.concatenate([np.ones(len(shares[0])), np.zeros(len(shares[1]))])
        bins = np.array_split(np.argsort(predicted, kind="stable"), num_bins)
        return (
            np.array([predicted[rows].mean() for rows in bins]),
            np.array([labels[rows].mean() for rows in bins]),
        )

    def to_arviz(self, **attrs: Any) -> Any:
        """An ``InferenceData`` or ``DataTree``: draws of the head and NUTS's statistics."""
        names = {"potential_energy": "lp", "num_steps": "n_steps", "accept_prob": "acceptance_rate"}
        statistics = {names.get(name, name): value for name, value in self.statistics.items()}
        statistics["lp"] = -statistics["lp"]
        groups = {"posterior": dict(self.samples), "sample_stats": statistics}
        return build_container(Groups(groups, {"weights": ["feature"]}, attrs=attrs))


def _checked(name: str, features: Any) -> np.ndarray:
    rows = np.asarray(features, dtype=np.float64)
    label = "positives" if name == "p" else "negatives"
    if rows.ndim != 2 or 0 in rows.shape:
        raise ValueError(
            f"{label} must be features of shape (n, width), none of them 0, got {rows.shape}."
        )
    bad = ~np.isfinite(rows).all(1)
    if bad.any():
        raise ValueError(f"{label} must be finite, got otherwise in row {int(bad.argmax())}.")
    return rows


def _as_numpy(values: dict[str, jax.Array]) -> dict[str, np.ndarray]:
    return {name: np.asarray(value) for name, value in values.items()}
