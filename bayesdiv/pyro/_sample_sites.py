"""From Pyro traces to the rows that two-sample divergences compare, and what they refuse."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from pyro import distributions as dist

from bayesdiv.objectives._samples import row_weights
from bayesdiv.pyro._sites import (
    as_term,
    describe_non_finite,
    plates_of,
    sample_sites,
    scaled,
    unscaled_log_prob,
)


class Nodes:
    """A trace reduced to its nodes."""

    def __init__(self, nodes: dict[str, Any]) -> None:
        self.nodes = nodes


def latent_sites(trace: Any) -> Iterator[dict[str, Any]]:
    for site in sample_sites(trace):
        if not site["is_observed"] and not site["infer"].get("was_observed"):
            yield site


def latent_part(trace: Any) -> Any:
    return Nodes({site["name"]: site for site in latent_sites(trace)})


def detached(trace: Any) -> Any:
    copy = trace.copy()
    for name, site in copy.nodes.items():
        if site["type"] == "sample":
            copy.nodes[name] = {**site, "value": site["value"].detach()}
    return copy


def check_reparameterized(guide_trace: Any, space: str) -> None:
    for site in sample_sites(guide_trace):
        if not getattr(site["fn"], "has_rsample", False):
            raise ValueError(
                f"guide site {site['name']!r} ({type(site['fn']).__name__}) is not "
                f"reparameterised, so that a divergence of samples (space={space!r}) has no "
                "gradient through it; use a reparameterised site or an f-divergence."
            )


def check_whole_plates(sites: list[dict[str, Any]]) -> None:
    for site in sites:
        for plate in plates_of(site):
            if plate.size < plate.full_size:
                raise ValueError(
                    f"latent site {site['name']!r} stands in plate {plate.name!r}, of which "
                    f"{plate.size} of {plate.full_size} are subsampled; space='latent' compares "
                    "all latent sites jointly, so use the whole plate, space='codes' or an "
                    "f-divergence."
                )


def refuse_log_weights(traces: list[Any], num_particles: int, *, vectorized: bool) -> None:
    """Raise naming the site and the particle whose log-probability is not finite."""
    for number, pair in enumerate(traces):
        for trace in pair:
            terms = [
                as_term(site, scaled(site, unscaled_log_prob(site))) for site in sample_sites(trace)
            ]
            if all(bool(torch.isfinite(term.log_prob).all()) for term in terms):
                continue
            where = describe_non_finite(terms, num_particles, vectorized=vectorized)
            if not vectorized:
                where += f" of run {number}"
            raise ValueError(
                f"the importance weights of space='latent' are not finite: {where}. Start closer "
                "(warmup=, a smaller init_scale), or constrain the model so that "
                "log-probabilities stay finite."
            )


def predictive_rows(
    traces: list[Any], name: str, num_particles: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
    """Observed rows ``(n, event)``, predicted ones ``(num_particles · n, event)``, row weights."""
    site = traces[0][0].nodes[name]
    if not getattr(site["fn"], "has_rsample", False):
        raise ValueError(
            f"likelihood {name!r} ({type(site['fn']).__name__}) is not reparameterised, so "
            "space='data' has no gradient through it; use space='latent', an f-divergence, or a "
            "reparameterised likelihood."
        )
    value = site["infer"]["obs"]
    batch = value.shape[: value.ndim - site["fn"].event_dim]
    rows = value.reshape(batch.numel(), -1)
    values = [model_trace.nodes[name]["value"] for model_trace, _ in traces]
    predicted = torch.cat([drawn.reshape(-1, rows.shape[1]) for drawn in values])
    if predicted.shape[0] != num_particles * rows.shape[0]:
        raise ValueError(
            f"observed site {name!r} has observations of shape {tuple(value.shape)} but predicts "
            f"shape {tuple(values[0].shape)} for {num_particles} particles; put its rows in a "
            "plate and its columns in the event shape with .to_event(1)."
        )
    factors = [
        factor.expand(batch).reshape(-1) if getattr(factor, "ndim", 0) else factor
        for factor in (site["mask"], site["scale"])
    ]
    return rows, predicted, row_weights(*factors, rows=rows.shape[0])


def find_codes(trace: Any) -> tuple[list[str], set[str], int]:
    """Latent sites that share a plate with an observed one, those plates, and their full size."""
    observed: set[str] = set()
    for site in sample_sites(trace):
        if site["is_observed"]:
            observed |= {plate.name for plate in plates_of(site)}
    codes = {
        site["name"]: plates_of(site)
        for site in latent_sites(trace)
        if observed & {plate.name for plate in plates_of(site)}
    }
    if not codes:
        raise ValueError(
            "space='codes' needs a latent site and an observed site in one vectorised plate, the "
            "data plate; put both into pyro.plate('data', n), or use space='latent'."
        )
    stacks = set(codes.values())
    if len(stacks) > 1:
        described = {name: sorted(p.name for p in plates) for name, plates in codes.items()}
        raise ValueError(
            f"the code sites must stand in the same plates, got {described}; move inner plates "
            "into the event shape with .to_event(1)."
        )
    plates = next(iter(stacks))
    full_size = 1
    for plate in plates:
        full_size *= plate.full_size
    return list(codes), {plate.name for plate in plates} & observed, full_size


def side_by_side(trace: Any, names: list[str]) -> torch.Tensor:
    """Values of sites as rows, one a batch element, their events laid side by side."""
    columns = []
    for name in names:
        site = trace.nodes[name]
        event_dim = site["fn"].event_dim
        value = site["value"]
        batch = torch.broadcast_shapes(
            value.shape[: value.ndim - event_dim], site["fn"].batch_shape
        )
        value = value.expand(batch + value.shape[value.ndim - event_dim :])
        columns.append(value.reshape(batch.numel(), -1))
    return torch.cat(columns, dim=1)


def check_no_joint_site(outside: list[dict[str, Any]], names: list[str], model_trace: Any) -> None:
    for site in outside:
        own = site["name"].removesuffix("_unconstrained")
        is_delta = isinstance(site["fn"], dist.Delta)
        if site["name"] in names or (own not in model_trace.nodes and not is_delta):
            raise ValueError(
                f"guide site {site['name']!r} stands outside the data plate, so its density covers "
                f"codes ({names}) and other sites together; for space='codes' write an encoder "
                "that samples the codes inside the plate."
            )
