"""Hierarchical logistic regression in NumPyro."""

from __future__ import annotations

import jax
import numpyro
import numpyro.distributions as dist


def hierarchical_logistic(predictors: jax.Array, outcome: jax.Array | None = None) -> None:
    r"""Slopes share a scale that is learnt: β_j ~ N(0, τ²), τ ~ HalfNormal(2), intercept N(0, 5²).

    ``predictors`` is ``(data, width)``, standardised; ``outcome`` is ``(data,)``, 0 or 1, or None
    for predictive draws.
    """
    scale = numpyro.sample("scale", dist.HalfNormal(2.0))
    intercept = numpyro.sample("intercept", dist.Normal(0.0, 5.0))
    with numpyro.plate("predictors", predictors.shape[-1]):
        slopes = numpyro.sample("slopes", dist.Normal(0.0, scale))
    logits = intercept + predictors @ slopes
    with numpyro.plate("data", len(predictors)):
        numpyro.sample("malignant", dist.Bernoulli(logits=logits), obs=outcome)
