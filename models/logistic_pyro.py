"""Hierarchical logistic regression in Pyro."""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import torch


def hierarchical_logistic(predictors: torch.Tensor, outcome: torch.Tensor | None = None) -> None:
    r"""Slopes share a scale that is learnt: β_j ~ N(0, τ²), τ ~ HalfNormal(2), intercept N(0, 5²).

    ``predictors`` is ``(data, width)``, standardised; ``outcome`` is ``(data,)``, 0 or 1, or None
    for predictive draws.
    """
    scale = pyro.sample("scale", dist.HalfNormal(2.0))
    intercept = pyro.sample("intercept", dist.Normal(0.0, 5.0))
    with pyro.plate("predictors", predictors.shape[-1]):
        slopes = pyro.sample("slopes", dist.Normal(0.0, scale))
    # Particles stand on the left: (particles, 1) + (particles, width) · (data, width).
    logits = intercept + torch.einsum("...j,ij->...i", slopes, predictors)
    with pyro.plate("data", len(predictors)):
        pyro.sample("malignant", dist.Bernoulli(logits=logits), obs=outcome)
