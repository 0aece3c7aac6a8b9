"""A NumPyro model's density in unconstrained coordinates, where a factor in it is random."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from numpyro import handlers
from numpyro.distributions import biject_to
from numpyro.infer.util import compute_log_probs

# Left alone by `handlers.seed`, so that a sample site without a value is an error.
_NOT_SEEDED = ["sample", "plate", "control_flow"]


class Evaluation(NamedTuple):
    """One run of the model.

    Parameters
    ----------
    potential_energy
        −log of the joint density in unconstrained coordinates.
    log_evidence
        The part of observed sites and factors.
    sites
        Constrained latent sites, and deterministic ones as this run found them.
    """

    potential_energy: jax.Array
    log_evidence: jax.Array
    sites: dict[str, jax.Array]


class WithFixedKey:
    """``model`` with a ``numpyro.prng_key()`` that does not change, where a caller gives none."""

    def __init__(self, model: Callable) -> None:
        self.__wrapped__ = model

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        seeded = handlers.seed(self.__wrapped__, jax.random.key(0), hide_types=_NOT_SEEDED)
        return seeded(*args, **kwargs)


def draw_start(
    model: Callable, init_strategy: Callable, key: jax.Array, args: tuple, kwargs: Mapping
) -> dict[str, jax.Array]:
    """Unconstrained values of the latent sites, as the strategy has them."""
    prototype = handlers.substitute(handlers.seed(model, key), substitute_fn=init_strategy)
    trace = handlers.trace(prototype).get_trace(*args, **kwargs)
    _check_sites(trace)
    return {
        name: biject_to(site["fn"].support).inv(site["value"])
        for name, site in trace.items()
        if site["type"] == "sample" and not site["is_observed"]
    }


def evaluate(
    model: Callable, z: Mapping[str, jax.Array], key: jax.Array, args: tuple, kwargs: Mapping
) -> Evaluation:
    """The model at ``z``, unconstrained, with ``key`` for everything random in it."""
    log_jacobian = jnp.zeros(())

    def fill(site: Mapping[str, Any]) -> jax.Array | None:
        nonlocal log_jacobian
        if site["type"] != "sample" or site["is_observed"] or site["name"] not in z:
            return None
        transform = biject_to(site["fn"].support)
        unconstrained = z[site["name"]]
        value = transform(unconstrained)
        log_jacobian += transform.log_abs_det_jacobian(unconstrained, value).sum()
        return value

    seeded = handlers.seed(model, key, hide_types=_NOT_SEEDED)
    filled = handlers.substitute(seeded, substitute_fn=fill)
    log_probs, trace = compute_log_probs(filled, args, dict(kwargs), {})
    observed = [name for name in log_probs if trace[name]["is_observed"]]
    log_evidence = sum((log_probs[name] for name in observed), start=jnp.zeros(()))
    log_prior = sum((log_probs[name] for name in z), start=log_jacobian)
    sites = {name: trace[name]["value"] for name in z} | {
        name: site["value"] for name, site in trace.items() if site["type"] == "deterministic"
    }
    return Evaluation(-log_prior - log_evidence, log_evidence, sites)


def _check_sites(trace: Mapping[str, Any]) -> None:
    latent = {
        name: site
        for name, site in trace.items()
        if site["type"] == "sample" and not site["is_observed"]
    }
    if not latent:
        raise ValueError("model has no latent sites, so there is nothing to sample.")
    for name, site in latent.items():
        if site["fn"].support.is_discrete:
            raise ValueError(
                f"site {name!r} is discrete, and the chain moves by a normal random walk; sum it "
                "out, or let the particle filter carry it."
            )
    for name, site in trace.items():
        if site["type"] == "plate" and site["value"].shape[0] < site["args"][0]:
            raise ValueError(
                f"plate {name!r} is subsampled; the exponential of a minibatch's log-likelihood is "
                "no unbiased estimate of the likelihood. Make the plate whole."
            )
        if site["type"] == "param":
            raise ValueError(f"site {name!r} is a param; give it a prior, with numpyro.sample.")
