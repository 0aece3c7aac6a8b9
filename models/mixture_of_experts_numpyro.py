"""A mixture of experts with softmax gates in NumPyro, its labels summed out."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpyro
import numpyro.distributions as dist

from bayesdiv._mixture_of_experts import MixtureOfExpertsParameters, assembled
from bayesdiv.numpyro.distributions import MixtureOfExperts

__all__ = ["mixture_of_experts"]


def mixture_of_experts(
    predictors: jax.Array,
    outcome: jax.Array | None = None,
    *,
    num_experts: int = 2,
    experts: str = "normal",
    degrees_of_freedom: float | None = None,
    subsample_size: int | None = None,
) -> MixtureOfExpertsParameters:
    r"""Priors on all parameters, and outcomes whose expert is not sampled.

    a_k ~ N(0, 5²) for k < K and a_K = 0, B_k ~ N(0, 10²), σ_k ~ HalfNormal(1),
    y_i ~ Σ_k π_k(x_i) p_k(y_i | x_i), with intercepts in a and B.

    Labels can be permuted: summarise what no permutation changes, such as the predictive density.

    Parameters
    ----------
    predictors
        ``(n, dim)``, standardised, without intercept.
    outcome
        ``(n,)``, standardised; 0 or 1 for Bernoulli experts; None for predictive draws.
    num_experts
        K.
    experts, degrees_of_freedom
        As in `bayesdiv.numpyro.distributions.MixtureOfExperts`.
    subsample_size
        Rows of each evaluation; all if None.

    Returns
    -------
    MixtureOfExpertsParameters
        Gate and coefficients ``(K, 1 + dim)``, scale ``(K,)`` or None.

    Raises
    ------
    ValueError
        If ``predictors`` has not two dimensions, or ``num_experts`` is below 1.

    Examples
    --------
    Draws of the prior; ``SVI`` and ``MCMC`` take the model as they take any.

    >>> from functools import partial
    >>> from numpyro.infer import Predictive
    >>> prior = Predictive(partial(mixture_of_experts, num_experts=3), num_samples=5)
    >>> x = jnp.linspace(-1.0, 1.0, 40)[:, None]
    >>> prior(jax.random.key(0), x)["outcome"].shape
    (5, 40)
    """
    if predictors.ndim != 2:
        raise ValueError(f"predictors must be (n, dim), got shape {tuple(predictors.shape)}.")
    if num_experts < 1:
        raise ValueError(f"num_experts must be at least 1, got {num_experts}.")
    width = predictors.shape[-1] + 1
    free_gate = None
    if num_experts > 1:
        gate_prior = dist.Normal(0.0, 5.0).expand([num_experts - 1, width]).to_event(2)
        free_gate = numpyro.sample("gate", gate_prior)
    coefficient_prior = dist.Normal(0.0, 10.0).expand([num_experts, width]).to_event(2)
    coefficients = numpyro.sample("coefficients", coefficient_prior)
    scale = None
    if experts != "bernoulli":
        scale_prior = dist.HalfNormal(1.0).expand([num_experts]).to_event(1)
        scale = numpyro.sample("scale", scale_prior)
    parameters = assembled(free_gate, coefficients, scale)
    with numpyro.plate("data", len(predictors), subsample_size=subsample_size):
        rows = numpyro.subsample(predictors, event_dim=1)
        features = jnp.concatenate([jnp.ones_like(rows[..., :1]), rows], axis=-1)
        law = MixtureOfExperts(
            features, parameters, experts=experts, degrees_of_freedom=degrees_of_freedom
        )
        observed = None if outcome is None else numpyro.subsample(outcome, event_dim=0)
        numpyro.sample("outcome", law, obs=observed)
    return parameters
