"""The same models in NumPyro."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist

NUM_LAGS = 3


def _linear_predictor(predictors: jax.Array, slope_scale: float) -> jax.Array:
    intercept = numpyro.sample("intercept", dist.Normal(0.0, 1000.0))
    width = predictors.shape[-1]
    slopes = numpyro.sample("slopes", dist.Normal(0.0, slope_scale).expand([width]).to_event(1))
    return intercept + predictors @ slopes


def linear(predictors: jax.Array, outcome: jax.Array) -> None:
    """Normal errors."""
    mean = _linear_predictor(predictors, 1000.0)
    noise = numpyro.sample("noise", dist.HalfNormal(1000.0))
    with numpyro.plate("data", len(predictors)):
        numpyro.sample("outcome", dist.Normal(mean, noise), obs=outcome)


def logistic(predictors: jax.Array, outcome: jax.Array) -> None:
    """Logit link."""
    logits = _linear_predictor(predictors, 10.0)
    with numpyro.plate("data", len(predictors)):
        numpyro.sample("outcome", dist.Bernoulli(logits=logits), obs=outcome)


def poisson(predictors: jax.Array, outcome: jax.Array) -> None:
    """Log link."""
    log_rate = _linear_predictor(predictors, 10.0)
    with numpyro.plate("data", len(predictors)):
        numpyro.sample("outcome", dist.Poisson(jnp.exp(log_rate)), obs=outcome)


def autoregressive(series: jax.Array) -> None:
    """An autoregression with intercept."""
    length = len(series) - NUM_LAGS
    lags = jnp.stack([series[NUM_LAGS - k : NUM_LAGS - k + length] for k in (1, 2, 3)], -1)
    mean = _linear_predictor(lags, 10.0)
    noise = numpyro.sample("noise", dist.HalfNormal(1000.0))
    with numpyro.plate("data", length):
        numpyro.sample("outcome", dist.Normal(mean, noise), obs=series[NUM_LAGS:])


def hierarchical(predictors: jax.Array, group: jax.Array, outcome: jax.Array) -> None:
    """Random intercepts, non-centred, with priors in units of the outcome."""
    num_groups = int(np.asarray(group).max()) + 1
    unit = jnp.std(outcome, ddof=1)
    intercept = numpyro.sample("intercept", dist.Normal(jnp.mean(outcome), 10.0 * unit))
    width = predictors.shape[-1]
    slopes = numpyro.sample("slopes", dist.Normal(0.0, 1000.0).expand([width]).to_event(1))
    mean = intercept + predictors @ slopes
    spread = numpyro.sample("spread", dist.HalfNormal(unit))
    with numpyro.plate("groups", num_groups):
        offset = numpyro.sample("offset", dist.Normal(0.0, 1.0))
    noise = numpyro.sample("noise", dist.HalfNormal(unit))
    with numpyro.plate("data", len(predictors)):
        numpyro.sample("outcome", dist.Normal(mean + spread * offset[group], noise), obs=outcome)


def hierarchical_centred(predictors: jax.Array, group: jax.Array, outcome: jax.Array) -> None:
    """The same model with the groups' intercepts as sites."""
    num_groups = int(np.asarray(group).max()) + 1
    unit = jnp.std(outcome, ddof=1)
    intercept = numpyro.sample("intercept", dist.Normal(jnp.mean(outcome), 10.0 * unit))
    width = predictors.shape[-1]
    slopes = numpyro.sample("slopes", dist.Normal(0.0, 1000.0).expand([width]).to_event(1))
    spread = numpyro.sample("spread", dist.HalfNormal(unit))
    with numpyro.plate("groups", num_groups):
        level = numpyro.sample("level", dist.Normal(intercept, spread))
    noise = numpyro.sample("noise", dist.HalfNormal(unit))
    with numpyro.plate("data", len(predictors)):
        mean = level[group] + predictors @ slopes
        numpyro.sample("outcome", dist.Normal(mean, noise), obs=outcome)
