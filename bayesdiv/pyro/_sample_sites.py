"""From Pyro traces to the rows that two-sample divergences compare, and what they refuse."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch

from bayesdiv.objectives._sample_spaces import (
    Codes,
    check_guide_site,
    check_likelihood,
    check_outside_codes,
    check_predicted_rows,
    check_whole_plates,
    find_codes,
)
from bayesdiv.objectives._samples import row_weights
from bayesdiv.pyro._sites import (
    as_term,
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
        check_guide_site(site["name"], site["fn"], space)


def refuse_log_weights(traces: list[Any], depth: int | None) -> None:
    """Raise naming the site and the particle whose log-probability is not finite.

    ``depth`` is the number of dims of a term that has the particles' among them, None for a loop.
    """
    where = "every site is finite, but their sum is not"
    sites = [(n, site) for n, pair in enumerate(traces) for t in pair for site in sample_sites(t)]
    for number, site in sites:
        log_prob = as_term(site, scaled(site, unscaled_log_prob(site))).log_prob.detach()
        bad = ~torch.isfinite(log_prob)
        if bool(bad.any()):
            index = bad.nonzero()[0]
            particle = int(index[0]) if len(index) == depth else number
            value = log_prob[tuple(index)].item()
            where = f"site {site['name']!r} has log-probability {value} at particle {particle}"
            break
    raise ValueError(
        f"the importance weights of space='latent' are not finite: {where}. Start closer "
        "(warmup=, a smaller init_scale), or constrain the model so that log-probabilities stay "
        "finite."
    )


def predictive_rows(
    traces: list[Any], name: str, num_particles: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
    """Observed rows ``(n, event)``, predicted ones ``(num_particles · n, event)``, row weights."""
    site = traces[0][0].nodes[name]
    check_likelihood(name, site["fn"])
    value = site["infer"]["obs"]
    batch = value.shape[: value.ndim - site["fn"].event_dim]
    rows = value.reshape(batch.numel(), -1)
    values = [model_trace.nodes[name]["value"] for model_trace, _ in traces]
    predicted = torch.cat([drawn.reshape(-1, rows.shape[1]) for drawn in values])
    check_predicted_rows(
        name,
        tuple(value.shape),
        tuple(values[0].shape),
        predicted.shape[0],
        num_particles * rows.shape[0],
    )
    factors = [
        factor.expand(batch).reshape(-1) if getattr(factor, "ndim", 0) else factor
        for factor in (site["mask"], site["scale"])
    ]
    return rows, predicted, row_weights(*factors, rows=rows.shape[0])


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


def check_whole_latents(trace: Any) -> None:
    """Raise where a latent site stands in a subsampled plate."""
    check_whole_plates({site["name"]: plates_of(site) for site in latent_sites(trace)})


def codes_of(model_trace: Any) -> Codes:
    """The latent sites of the data plate."""
    return find_codes(
        {site["name"]: plates_of(site) for site in latent_sites(model_trace)},
        [plates_of(site) for site in sample_sites(model_trace) if site["is_observed"]],
    )


def outside_codes(model_trace: Any, guide_trace: Any, codes: Codes) -> list[dict[str, Any]]:
    """Guide sites outside the data plate, none of which may cover a code."""
    found = [
        site
        for site in sample_sites(guide_trace)
        if not {plate.name for plate in plates_of(site)} & codes.plates
    ]
    global_sites = {site["name"] for site in latent_sites(model_trace)} - set(codes.names)
    for site in found:
        check_outside_codes(site["name"], codes.names, global_sites)
    return found
