"""What a row of the example on distributed mixtures of experts says, and how it is scored."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from scipy.optimize import linear_sum_assignment
from scipy.special import logsumexp
from sklearn.metrics import adjusted_rand_score

from bayesdiv.inference.moe_reduction import expected_divergence
from bayesdiv.numpyro.distributions import MixtureOfExperts, MixtureOfExpertsParameters

__all__ = ["Outcome", "Scores"]


@dataclass(frozen=True, eq=False)
class Outcome:
    """One row of one data set, number of shards and seed: metrics by name, arrays to plot."""

    data: str
    row: str
    size: int
    seed: int
    metrics: dict[str, float]
    arrays: dict[str, np.ndarray] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class Scores:
    """Test rows, and what is known of where they come from."""

    predictors: np.ndarray
    outcome: np.ndarray
    reference: Any = None
    labels: np.ndarray | None = None

    @property
    def features(self) -> jax.Array:
        """(1, predictors)."""
        ones = np.ones((len(self.predictors), 1))
        return jnp.asarray(np.concatenate([ones, self.predictors], axis=1))

    def of(self, model: MixtureOfExpertsParameters) -> dict[str, float]:
        """Divergence from the reference, log-likelihood a row and errors of the mean."""
        law = MixtureOfExperts(self.features, model)
        error = np.asarray(law.mean, float) - self.outcome
        found = {
            "log_likelihood": float(jnp.mean(law.log_prob(self.outcome))),
            "rmse": float(np.sqrt(np.mean(error**2))),
            "rpe": float(np.sum(error**2) / np.sum(self.outcome**2)),
        }
        if self.reference is not None:
            found["divergence"] = expected_divergence(self.reference, model, self.predictors)
        if self.labels is not None:
            truth = MixtureOfExperts(self.features, self.reference).log_prob(self.outcome)
            # Seeds differ in how hard they are; what a fit loses against the truth hardly does.
            found["loss"] = float(jnp.mean(truth)) - found["log_likelihood"]
            guessed = np.argmax(np.asarray(law.responsibilities(self.outcome)), axis=1)
            found["rand_index"] = float(adjusted_rand_score(self.labels, guessed))
            found["parameter_error"] = parameter_error(model, self.reference)
        return found

    def of_pool(
        self, models: Sequence[MixtureOfExpertsParameters], weights: np.ndarray
    ) -> dict[str, float]:
        """The same of Σ λ_m f_m, which is no mixture of K experts."""
        laws = [MixtureOfExperts(self.features, model) for model in models]
        logs = np.stack([np.asarray(law.log_prob(self.outcome), float) for law in laws])
        error = weights @ np.stack([np.asarray(law.mean) for law in laws]) - self.outcome
        pooled = logsumexp(logs + np.log(weights)[:, None], axis=0)
        return {
            "log_likelihood": float(pooled.mean()),
            "rmse": float(np.sqrt(np.mean(error**2))),
            "rpe": float(np.sum(error**2) / np.sum(self.outcome**2)),
        }


def parameter_error(model: MixtureOfExpertsParameters, truth: MixtureOfExpertsParameters) -> float:
    """Σ of squared errors of gates, coefficients and variances, over the free entries.

    Experts are matched by the squared gap of their coefficients.
    """
    gate, coefficients, scale = (np.asarray(part, float) for part in model)
    gap = np.sum((coefficients[:, None] - truth.coefficients) ** 2, axis=-1)
    _, order = linear_sum_assignment(gap.T)
    gate = gate[order] - gate[order][-1:]
    pairs = (
        (gate, truth.gate),
        (coefficients[order], truth.coefficients),
        (scale[order] ** 2, truth.scale**2),
    )
    total = sum(np.sum((found - wanted) ** 2) for found, wanted in pairs)
    return float(total / (sum(found.size for found, _ in pairs) - gate.shape[1]))
