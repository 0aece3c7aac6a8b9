"""The answer of EM for mixtures of experts."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from bayesdiv import _mixture_of_experts as formulas
from bayesdiv._mixture_of_experts import MixtureOfExpertsParameters

__all__ = ["MixtureOfExpertsFit"]


class MixtureOfExpertsFit(NamedTuple):
    """What `fit_experts` found, in the units of the data; a pytree.

    Parameters
    ----------
    parameters : MixtureOfExpertsParameters
        For features (1, predictors): gate and coefficients are ``(experts, 1 + dim)``.
    log_likelihood
        Σ w log p(y | x), ``()``, in nats.
    trace
        Log-likelihood less ridge penalties, ``(max_iterations + 1,)``, from the winning start's
        hand-over; NaN after the last iteration.
    num_iterations
        Of the winning start after the hand-over.
    converged
        Whether EM met its tolerance, at finite numbers.
    counts
        Weight of each expert, Σ w τ_k.
    at_floor
        Which experts' variances are at their floor, ``(experts,)``: such an expert has fitted a
        handful of rows exactly.
    start_objectives
        ``(num_starts,)``, where the best was chosen.
    """

    parameters: MixtureOfExpertsParameters
    log_likelihood: jax.Array
    trace: jax.Array
    num_iterations: jax.Array
    converged: jax.Array
    counts: jax.Array
    at_floor: jax.Array
    start_objectives: jax.Array

    @property
    def experts(self) -> str:
        """``"normal"`` or ``"bernoulli"``."""
        return "bernoulli" if self.parameters.scale is None else "normal"

    def predict(self, predictors: Any) -> jax.Array:
        """E[y | x] for ``predictors`` ``(n, dim)``, ``(n,)``."""
        return formulas.mean(self._features(predictors), self.parameters, experts=self.experts)

    def log_prob(self, predictors: Any, outcome: Any) -> jax.Array:
        """log p(y | x), ``(n,)``."""
        features = self._features(predictors)
        outcome = jnp.asarray(outcome, features.dtype)
        return formulas.log_prob(outcome, features, self.parameters, experts=self.experts)

    def responsibilities(self, predictors: Any, outcome: Any) -> jax.Array:
        """P(expert = k | x, y), ``(n, experts)``."""
        features = self._features(predictors)
        outcome = jnp.asarray(outcome, features.dtype)
        return formulas.responsibilities(outcome, features, self.parameters, experts=self.experts)

    def _features(self, predictors: Any) -> jax.Array:
        predictors = jnp.asarray(predictors, self.parameters.gate.dtype)
        width = self.parameters.gate.shape[-1] - 1
        if predictors.ndim < 1 or predictors.shape[-1] != width:
            raise ValueError(
                f"predictors must be (n, {width}), without intercept, got {predictors.shape}."
            )
        return jnp.concatenate([jnp.ones_like(predictors[..., :1]), predictors], axis=-1)
