"""From a pair of Pyro traces to log-probabilities by site."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch
from pyro.distributions.util import scale_and_mask
from pyro.poutine.util import site_is_subsample

from bayesdiv.objectives._plates import Plate, SiteTerm

PARTICLE_PLATE = "num_particles_vectorized"


def sample_sites(trace: Any) -> Iterator[dict[str, Any]]:
    """Sample sites of a trace, subsample indices left out."""
    for site in trace.nodes.values():
        if site["type"] == "sample" and not site_is_subsample(site):
            yield site


def unscaled_log_prob(site: dict[str, Any], distribution: Any = None) -> Any:
    """The site's log-probability, batch-shaped, under its own distribution or another one."""
    distribution = site["fn"] if distribution is None else distribution
    try:
        return distribution.log_prob(site["value"], *site["args"], **site["kwargs"])
    except ValueError as error:
        raise ValueError(f"log-probability at site {site['name']!r}: {error}") from error


def scaled(site: dict[str, Any], log_prob: Any) -> torch.Tensor:
    """``log_prob`` with the site's scale (plates, ``poutine.scale``) and mask applied."""
    return scale_and_mask(log_prob, site["scale"], site["mask"])


def masked(site: dict[str, Any], log_prob: Any) -> torch.Tensor:
    """``log_prob`` with the site's mask only: the density that the site was sampled from."""
    return scale_and_mask(log_prob, 1.0, site["mask"])


def plates_of(site: dict[str, Any]) -> frozenset[Plate]:
    """Vectorised plates around a site, the particles' own left out."""
    return frozenset(
        Plate(frame.name, frame.dim, frame.size, frame.full_size or frame.size)
        for frame in site["cond_indep_stack"]
        if frame.vectorized and frame.name != PARTICLE_PLATE
    )


def as_term(site: dict[str, Any], log_prob: Any) -> SiteTerm:
    """A log-probability with its plates; a plain number (a Delta's 0.0) becomes a tensor."""
    if not isinstance(log_prob, torch.Tensor):
        log_prob = torch.as_tensor(float(log_prob))
    return SiteTerm(site["name"], log_prob, plates_of(site))


def check_sequential_plates(sites: list[dict[str, Any]], *, linear: bool) -> None:
    """Raise if a plate that is a Python loop is subsampled under a non-linear objective."""
    if linear:
        return
    for site in sites:
        for frame in site["cond_indep_stack"]:
            full_size = frame.full_size or frame.size
            if not frame.vectorized and frame.size < full_size:
                raise ValueError(
                    f"plate {frame.name!r} is subsampled ({frame.size} of {full_size}) and "
                    "sequential, which biases a non-linear objective: use 'reverse_kl', or a "
                    "vectorised plate around every site."
                )


def check_match(model_trace: Any, guide_trace: Any) -> None:
    """Raise unless model and guide have the same latent sites and none is enumerated."""
    latent = set()
    for site in sample_sites(model_trace):
        if not site["is_observed"]:
            latent.add(site["name"])
    guide_names, auxiliary = set(), set()
    for site in sample_sites(guide_trace):
        guide_names.add(site["name"])
        if site["infer"].get("is_auxiliary"):
            auxiliary.add(site["name"])
    for trace in (guide_trace, model_trace):
        for site in sample_sites(trace):
            if site["infer"].get("enumerate") and not site["is_observed"]:
                raise ValueError(
                    f"site {site['name']!r} is configured for enumeration, which this objective "
                    "does not do; use pyro.infer.TraceEnum_ELBO, or remove config_enumerate to "
                    "sample the site with score-function gradients."
                )
    missing = sorted(latent - guide_names)
    if missing:
        raise ValueError(
            f"the guide lacks the latent sites {missing} of the model, so they have no "
            "approximation; sample them in the guide, or observe them."
        )
    extra = sorted(guide_names - latent - auxiliary)
    if extra:
        raise ValueError(
            f"the guide has sites {extra} that the model lacks; remove them, or mark them with "
            "infer={'is_auxiliary': True} if only other guide sites use them."
        )


def describe_non_finite(terms: list[SiteTerm], num_particles: int, *, vectorized: bool) -> str:
    """Which site and particle first has a NaN or infinite log-probability, in words."""
    for term in terms:
        bad = ~torch.isfinite(term.log_prob.detach())
        if not bool(bad.any()):
            continue
        index = bad.nonzero()[0]
        value = term.log_prob.detach()[tuple(index)].item()
        particle = int(index[0]) if vectorized and num_particles > 1 and len(index) else 0
        kind = "NaN" if math.isnan(value) else str(value)
        return f"site {term.name!r} has log-probability {kind} at particle {particle}"
    return "every site is finite, so the weights overflow only in their sum"
