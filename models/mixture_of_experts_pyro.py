"""A mixture of experts with softmax gates in Pyro, its labels summed out."""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import torch

from bayesdiv._mixture_of_experts import MixtureOfExpertsParameters, assembled
from bayesdiv.pyro.distributions import MixtureOfExperts

__all__ = ["mixture_of_experts"]


def mixture_of_experts(
    predictors: torch.Tensor,
    outcome: torch.Tensor | None = None,
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
        As in `bayesdiv.pyro.distributions.MixtureOfExperts`.
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
    >>> from functools import partial
    >>> from pyro.infer import SVI
    >>> from pyro.infer.autoguide import AutoNormal
    >>> from bayesdiv.pyro import objective
    >>> model = partial(mixture_of_experts, num_experts=3)
    >>> optimiser = pyro.optim.Adam({"lr": 0.01})
    >>> svi = SVI(model, AutoNormal(model), optimiser, objective("reverse_kl"))
    >>> x = torch.linspace(-1.0, 1.0, 40)[:, None]
    >>> len([svi.step(x, x[:, 0].abs()) for _ in range(5)])
    5
    """
    if predictors.ndim != 2:
        raise ValueError(f"predictors must be (n, dim), got shape {tuple(predictors.shape)}.")
    if num_experts < 1:
        raise ValueError(f"num_experts must be at least 1, got {num_experts}.")
    width = predictors.shape[-1] + 1
    # Of the rows' type and device, which the priors' draws then have.
    zero = torch.zeros((), dtype=predictors.dtype, device=predictors.device)
    free_gate = None
    if num_experts > 1:
        gate_prior = dist.Normal(zero, 5.0).expand([num_experts - 1, width]).to_event(2)
        free_gate = pyro.sample("gate", gate_prior)
    coefficient_prior = dist.Normal(zero, 10.0).expand([num_experts, width]).to_event(2)
    coefficients = pyro.sample("coefficients", coefficient_prior)
    scale = None
    if experts != "bernoulli":
        scale_prior = dist.HalfNormal(zero + 1.0).expand([num_experts]).to_event(1)
        scale = pyro.sample("scale", scale_prior)
    parameters = assembled(free_gate, coefficients, scale)
    with pyro.plate("data", len(predictors), subsample_size=subsample_size):
        rows = pyro.subsample(predictors, event_dim=1)
        features = torch.cat([torch.ones_like(rows[..., :1]), rows], dim=-1)
        law = MixtureOfExperts(
            features, parameters, experts=experts, degrees_of_freedom=degrees_of_freedom
        )
        observed = None if outcome is None else pyro.subsample(outcome, event_dim=0)
        pyro.sample("outcome", law, obs=observed)
    return parameters
