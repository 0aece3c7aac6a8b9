"""From a pair of Pyro traces to log-probabilities by site."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import Any

import torch
from pyro import distributions as dist
from pyro.distributions.util import scale_and_mask
from pyro.poutine.util import site_is_subsample
from torch.distributions import TransformedDistribution

from bayesdiv.objectives._plates import Plate, SiteTerm
from bayesdiv.pyro._graph import forget_cached_inverses

PARTICLE_PLATE = "num_particles_vectorized"


def sample_sites(trace: Any) -> Iterator[dict[str, Any]]:
    """Sample sites of a trace that have a density: no subsample indices, no ``deterministic``."""
    for site in trace.nodes.values():
        if (
            site["type"] == "sample"
            and not site_is_subsample(site)
            and not site["infer"].get("_deterministic")
        ):
            yield site


def unscaled_log_prob(site: dict[str, Any], distribution: Any = None) -> Any:
    """The site's log-probability, batch-shaped, under its own distribution or another one."""
    distribution = site["fn"] if distribution is None else distribution
    value = site["value"]
    if type(distribution) is dist.Delta and _is_same_memory(value, distribution.v):
        # A Delta sampled from itself: comparing the value with itself would cost five operations.
        return distribution.log_density
    try:
        return distribution.log_prob(value, *site["args"], **site["kwargs"])
    except ValueError as error:
        raise ValueError(f"log-probability at site {site['name']!r}: {error}") from error


class NoInverse(ValueError):
    """A flow whose density at a given value cannot be had."""


def log_prob_afresh(site: dict[str, Any]) -> Any:
    """As :func:`unscaled_log_prob`, a flow inverted anew and not taken from its cache.

    What the cache holds depends on the parameters as the sample did, not as the density does.
    """
    forget_cached_inverses(site["fn"])
    try:
        return unscaled_log_prob(site)
    except (NotImplementedError, KeyError) as error:
        raise NoInverse(f"the flow of guide site {site['name']!r} has no inverse") from error


def _is_same_memory(value: Any, other: torch.Tensor) -> bool:
    return (
        value.shape == other.shape
        and value.data_ptr() == other.data_ptr()
        and value.stride() == other.stride()
    )


def is_delta(fn: Any) -> bool:
    """Whether a distribution is a point mass, masked or reshaped though it may be."""
    return isinstance(base_distribution(fn), dist.Delta)


def base_distribution(fn: Any) -> Any:
    """The distribution inside wrappers that mask, expand or reinterpret it."""
    while hasattr(fn, "base_dist") and not isinstance(fn, TransformedDistribution):
        fn = fn.base_dist
    return fn


def scaled(site: dict[str, Any], log_prob: Any) -> Any:
    """``log_prob`` with the site's scale (plates, ``poutine.scale``) and mask applied."""
    return scale_and_mask(log_prob, site["scale"], site["mask"])


def masked(site: dict[str, Any], log_prob: Any) -> Any:
    """``log_prob`` with the site's mask only: the density that the site was sampled from."""
    return scale_and_mask(log_prob, 1.0, site["mask"])


def as_term(site: dict[str, Any], log_prob: Any) -> SiteTerm:
    """A log-probability with its plates; a plain number (a masked site's 0.0) becomes a tensor."""
    if not isinstance(log_prob, torch.Tensor):
        log_prob = torch.as_tensor(float(log_prob))
    return SiteTerm(site["name"], log_prob, plates_of(site))


def plates_of(site: dict[str, Any]) -> frozenset[Plate]:
    """Vectorised plates around a site, the particles' own left out."""
    stack = site["cond_indep_stack"]
    return _plates(tuple((f.name, f.dim, f.size, f.full_size, f.vectorized) for f in stack))


@lru_cache(maxsize=4096)
def _plates(frames: tuple[tuple[str, int, int, int | None, bool], ...]) -> frozenset[Plate]:
    return frozenset(
        Plate(name, dim, size, full_size or size)
        for name, dim, size, full_size, vectorized in frames
        if vectorized and name != PARTICLE_PLATE
    )


def check_sequential_plates(sites: Sequence[dict[str, Any]]) -> None:
    """Raise if a plate that is a Python loop is subsampled: only for non-linear objectives."""
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
    model_sites = {site["name"]: site for site in sample_sites(model_trace)}
    guide_sites = {site["name"]: site for site in sample_sites(guide_trace)}
    for site in (*guide_sites.values(), *model_sites.values()):
        if site["infer"].get("enumerate") and not site["is_observed"]:
            raise ValueError(
                f"site {site['name']!r} is configured for enumeration, which this objective does "
                "not do; use pyro.infer.TraceEnum_ELBO, or remove config_enumerate to sample the "
                "site with score-function gradients."
            )
    latent = {name for name, site in model_sites.items() if not site["is_observed"]}
    missing = sorted(latent - set(guide_sites))
    if missing:
        raise ValueError(
            f"the guide lacks the latent sites {missing} of the model, so they have no "
            "approximation; sample them in the guide, or observe them."
        )
    extra = sorted(
        name
        for name, site in guide_sites.items()
        if name not in latent and not site["is_observed"] and not site["infer"].get("is_auxiliary")
    )
    if extra:
        raise ValueError(
            f"the guide has sites {extra} that the model lacks; remove them, or mark them with "
            "infer={'is_auxiliary': True} if only other guide sites use them."
        )
    for name in latent:
        ours, theirs = guide_sites[name]["fn"], model_sites[name]["fn"]
        if ours.event_shape != theirs.event_shape:
            raise ValueError(
                f"site {name!r} has event shape {tuple(ours.event_shape)} in the guide but "
                f"{tuple(theirs.event_shape)} in the model; use .to_event(...) alike in both."
            )


def describe_non_finite(particles: Sequence[Sequence[SiteTerm]], depth: int | None) -> str:
    """Which site and particle first has a NaN or infinite log-probability, in words.

    ``particles`` holds the terms of each trace; of all particles at once if ``depth``, the number
    of dims of a term that has the particles' among them, is not None.
    """
    for number, terms in enumerate(particles):
        for term in terms:
            log_prob = term.log_prob.detach()
            bad = ~torch.isfinite(log_prob)
            if not bool(bad.any()):
                continue
            index = bad.nonzero()[0]
            value = log_prob[tuple(index)].item()
            particle = int(index[0]) if len(index) == depth else number
            kind = "NaN" if math.isnan(value) else str(value)
            return f"site {term.name!r} has log-probability {kind} at particle {particle}"
    return "every site is finite, so the weights overflow only in their sum"
