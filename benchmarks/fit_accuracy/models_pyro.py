"""The models in Pyro, as a person would write them: raw units, wide priors, no tricks."""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import torch

NUM_LAGS = 3


def _linear_predictor(predictors: torch.Tensor, slope_scale: float) -> torch.Tensor:
    intercept = pyro.sample("intercept", dist.Normal(0.0, 1000.0))
    width = predictors.shape[-1]
    slopes = pyro.sample("slopes", dist.Normal(0.0, slope_scale).expand([width]).to_event(1))
    return intercept + (slopes * predictors).sum(-1)


def linear(predictors: torch.Tensor, outcome: torch.Tensor) -> None:
    """Normal errors."""
    mean = _linear_predictor(predictors, 1000.0)
    noise = pyro.sample("noise", dist.HalfNormal(1000.0))
    with pyro.plate("data", len(predictors)):
        pyro.sample("outcome", dist.Normal(mean, noise), obs=outcome)


def logistic(predictors: torch.Tensor, outcome: torch.Tensor) -> None:
    """Logit link."""
    logits = _linear_predictor(predictors, 10.0)
    with pyro.plate("data", len(predictors)):
        pyro.sample("outcome", dist.Bernoulli(logits=logits), obs=outcome)


def poisson(predictors: torch.Tensor, outcome: torch.Tensor) -> None:
    """Log link."""
    log_rate = _linear_predictor(predictors, 10.0)
    with pyro.plate("data", len(predictors)):
        pyro.sample("outcome", dist.Poisson(log_rate.exp()), obs=outcome)


def autoregressive(series: torch.Tensor) -> None:
    """An autoregression with intercept."""
    length = len(series) - NUM_LAGS
    lags = torch.stack([series[NUM_LAGS - k : NUM_LAGS - k + length] for k in (1, 2, 3)], -1)
    mean = _linear_predictor(lags, 10.0)
    noise = pyro.sample("noise", dist.HalfNormal(1000.0))
    with pyro.plate("data", length):
        pyro.sample("outcome", dist.Normal(mean, noise), obs=series[NUM_LAGS:])


def hierarchical(predictors: torch.Tensor, group: torch.Tensor, outcome: torch.Tensor) -> None:
    """Random intercepts, non-centred, with priors in units of the outcome."""
    unit = outcome.std()
    intercept = pyro.sample("intercept", dist.Normal(outcome.mean(), 10.0 * unit))
    width = predictors.shape[-1]
    slopes = pyro.sample("slopes", dist.Normal(0.0, 1000.0).expand([width]).to_event(1))
    mean = intercept + (slopes * predictors).sum(-1)
    spread = pyro.sample("spread", dist.HalfNormal(unit))
    with pyro.plate("groups", int(group.max()) + 1):
        offset = pyro.sample("offset", dist.Normal(0.0, 1.0))
    noise = pyro.sample("noise", dist.HalfNormal(unit))
    with pyro.plate("data", len(predictors)):
        location = mean + spread * offset[..., group]
        pyro.sample("outcome", dist.Normal(location, noise), obs=outcome)


def hierarchical_centred(
    predictors: torch.Tensor, group: torch.Tensor, outcome: torch.Tensor
) -> None:
    """The same model with the groups' intercepts as sites."""
    unit = outcome.std()
    intercept = pyro.sample("intercept", dist.Normal(outcome.mean(), 10.0 * unit))
    width = predictors.shape[-1]
    slopes = pyro.sample("slopes", dist.Normal(0.0, 1000.0).expand([width]).to_event(1))
    spread = pyro.sample("spread", dist.HalfNormal(unit))
    with pyro.plate("groups", int(group.max()) + 1):
        level = pyro.sample("level", dist.Normal(intercept, spread))
    noise = pyro.sample("noise", dist.HalfNormal(unit))
    with pyro.plate("data", len(predictors)):
        mean = level[..., group] + (slopes * predictors).sum(-1)
        pyro.sample("outcome", dist.Normal(mean, noise), obs=outcome)
