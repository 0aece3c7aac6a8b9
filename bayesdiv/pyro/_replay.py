"""Many draws through a Pyro guide and model: all at once where they broadcast, else one by one."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import pyro
import torch
from pyro import poutine
from pyro.poutine.util import site_is_subsample

from bayesdiv.pyro._sites import base_distribution, is_delta

_DRAWS_PLATE = "_bayesdiv_draws"
# What a guide or model that was not written for one more plate may raise under it.
_DOES_NOT_BROADCAST = (RuntimeError, ValueError, IndexError, TypeError, NotImplementedError)

Values = dict[str, torch.Tensor]


@dataclass(frozen=True)
class Site:
    """What one run of the model says about a site."""

    kind: str
    shape: torch.Size
    batch_shape: torch.Size
    event_dim: int
    plates: list[str | None]


@dataclass(frozen=True)
class Layout:
    """The model's sites, how many dims plates take, and the subsample that every draw shares."""

    sites: dict[str, Site]
    nesting: int
    subsamples: Values = field(default_factory=dict)
    observed: Values = field(default_factory=dict)

    def names(self, kind: str) -> list[str]:
        """Sites that are "latent", "deterministic" or "observed"."""
        return [name for name, site in self.sites.items() if site.kind == kind]

    def dims(self) -> dict[str, list[str | None]]:
        """Plate names along the leading axes of each site's value."""
        return {name: site.plates for name, site in self.sites.items() if any(site.plates)}


@dataclass(frozen=True)
class Evaluation:
    """What a model gives at its draws, each array with the draws in front."""

    latent: Values
    deterministic: Values
    log_likelihood: Values
    predictive: Values
    log_p: torch.Tensor


# Pyro types the entries of a trace's sites by what they may be before a site has run.
Trace = Any


def run(function: Callable, args: tuple, kwargs: Mapping, pinned: Values) -> Trace:
    """The trace of ``function`` with the latent sites named in ``pinned`` at those values."""
    trace = poutine.Trace()
    for name, value in pinned.items():
        trace.add_node(name, name=name, type="sample", value=value, is_observed=False, infer={})
    return poutine.trace(poutine.replay(function, trace=trace)).get_trace(*args, **kwargs)


def sample_sites(trace: Trace) -> dict[str, Any]:
    """Its sample sites, without the index sets of plates."""
    return {
        name: site
        for name, site in trace.nodes.items()
        if site["type"] == "sample" and not site_is_subsample(site)
    }


def read_layout(model: Callable, args: tuple, kwargs: Mapping, guide_trace: Trace) -> Layout:
    """Run the model once at the guide's values and note its sites."""
    replayed = poutine.replay(model, trace=guide_trace)
    model_trace: Trace = poutine.trace(replayed).get_trace(*args, **kwargs)
    nesting, subsamples = 0, {}
    for trace in (model_trace, guide_trace):
        for name, site in trace.nodes.items():
            if site["type"] != "sample" or "fn" not in site:
                continue
            if site_is_subsample(site):
                if len(site["value"]) < site["fn"].size:
                    subsamples[name] = site["value"]
                continue
            frames = [frame for frame in site["cond_indep_stack"] if frame.vectorized]
            nesting = max(nesting, *(-frame.dim for frame in frames), len(site["fn"].batch_shape))
    sites, observed = {}, {}
    for name, site in sample_sites(model_trace).items():
        fn, value = site["fn"], site["value"]
        plates = {frame.dim: frame for frame in site["cond_indep_stack"] if frame.vectorized}
        is_deterministic = bool(site["infer"].get("_deterministic"))
        if site["is_observed"] and not is_deterministic:
            if isinstance(base_distribution(fn), pyro.distributions.Unit):
                continue
            observed[name] = value
        # A deterministic value counts as one event; plates name its axes where the sizes agree.
        batch = value.shape if is_deterministic else fn.batch_shape
        fits = all(-dim <= len(batch) and batch[dim] == f.size for dim, f in plates.items())
        names = [plates[dim].name if dim in plates else None for dim in range(-len(batch), 0)]
        kind = "latent"
        if site["is_observed"]:
            kind = "deterministic" if is_deterministic else "observed"
        named = names if fits or not is_deterministic else []
        sites[name] = Site(kind, value.shape, fn.batch_shape, fn.event_dim, named)
    return Layout(sites, nesting, subsamples, observed)


def draw_guide(
    guide: Callable, args: tuple, kwargs: Mapping, layout: Layout, count: int
) -> tuple[Values, torch.Tensor]:
    """Draws of the guide's sites, ``(count, *shape)``, and log q at each, ``(count,)``."""
    single = run(guide, args, kwargs, layout.subsamples)
    shapes = {name: site["value"].shape for name, site in sample_sites(single).items()}
    try:
        trace = run(_widen(guide, layout, count), args, kwargs, layout.subsamples)
        found = sample_sites(trace)
        found.pop(_DRAWS_PLATE, None)
        values = {name: _rows(site["value"], count, shapes[name]) for name, site in found.items()}
        log_q = _density_rows(trace, layout, count)
        # A Delta is computed from other sites and would not be the same to the last bit.
        free = [name for name, site in found.items() if not is_delta(site["fn"])]
        for index in (0, count - 1):
            pinned = layout.subsamples | {name: values[name][index] for name in free}
            if not _close(_log_density(run(guide, args, kwargs, pinned)), log_q[index]):
                break
        else:
            return values, log_q
    except _DOES_NOT_BROADCAST:
        pass
    traces = [run(guide, args, kwargs, layout.subsamples) for _ in range(count)]
    values = {
        name: torch.stack([trace.nodes[name]["value"] for trace in traces]) for name in shapes
    }
    return values, torch.stack([_log_density(trace) for trace in traces])


def evaluate_model(
    model: Callable,
    args: tuple,
    kwargs: Mapping,
    layout: Layout,
    values: Values,
    count: int,
    *,
    predictive: bool,
) -> Evaluation:
    """The model at draws ``{site: (count, *shape)}``; sites that are not given follow the prior.

    The first and the last draw are run alone as well: a model that broadcasts wrongly under the
    plate of draws, without an error, is run one by one.
    """
    given = {name: value for name, value in values.items() if name in layout.sites}
    try:
        padded = {name: _pad(value, layout, name) for name, value in given.items()}
        wide = _widen(model, layout, count)
        trace = run(wide, args, kwargs, layout.subsamples | padded)
        found = _read(trace, layout, count)
        for index in (0, count - 1):
            pinned = {name: value[index] for name, value in found.latent.items()}
            alone = _read(run(model, args, kwargs, layout.subsamples | pinned), layout)
            if not _agree(alone, found, index):
                break
        else:
            if predictive:
                latent = {name: trace.nodes[name]["value"] for name in layout.names("latent")}
                drawn = _predict(wide, args, kwargs, layout, latent)
                shapes = {name: layout.sites[name].shape for name in drawn}
                rows = {name: _rows(value, count, shapes[name]) for name, value in drawn.items()}
                found.predictive.update(rows)
            return found
    except _DOES_NOT_BROADCAST:
        pass
    singles = []
    for index in range(count):
        pinned = layout.subsamples | {name: value[index] for name, value in given.items()}
        single = _read(run(model, args, kwargs, pinned), layout)
        if predictive:
            single.predictive.update(_predict(model, args, kwargs, layout, single.latent))
        singles.append(single)
    return _stack(singles)


def _predict(
    model: Callable, args: tuple, kwargs: Mapping, layout: Layout, latent: Values
) -> Values:
    """Observed sites drawn anew."""
    trace = run(poutine.uncondition(model), args, kwargs, layout.subsamples | latent)
    return {name: trace.nodes[name]["value"] for name in layout.names("observed")}


def _read(trace: Trace, layout: Layout, count: int | None = None) -> Evaluation:
    """The parts of a model's trace: of one run, or of ``count`` draws under their plate."""
    trace.compute_log_prob()

    def values(kind: str) -> Values:
        found = {name: trace.nodes[name]["value"] for name in layout.names(kind)}
        if count is None:
            return found
        return {
            name: _rows(value, count, layout.sites[name].shape) for name, value in found.items()
        }

    likelihood = {n: trace.nodes[n]["unscaled_log_prob"] for n in layout.names("observed")}
    if count is not None:
        likelihood = {
            name: _rows(value, count, layout.sites[name].batch_shape)
            for name, value in likelihood.items()
        }
    log_p = _log_density(trace) if count is None else _density_rows(trace, layout, count)
    return Evaluation(values("latent"), values("deterministic"), likelihood, {}, log_p)


def _stack(singles: list[Evaluation]) -> Evaluation:
    def stack(part: str) -> Values:
        parts = [getattr(single, part) for single in singles]
        return {name: torch.stack([p[name] for p in parts]) for name in parts[0]}

    parts = ("latent", "deterministic", "log_likelihood", "predictive")
    log_p = torch.stack([single.log_p for single in singles])
    return Evaluation(**{part: stack(part) for part in parts}, log_p=log_p)


def _agree(alone: Evaluation, found: Evaluation, index: int) -> bool:
    parts = ("deterministic", "log_likelihood")
    return _close(alone.log_p, found.log_p[index]) and all(
        _close(value, getattr(found, part)[name][index])
        for part in parts
        for name, value in getattr(alone, part).items()
    )


def _close(left: torch.Tensor, right: torch.Tensor) -> bool:
    """Equal up to the rounding of another order of summation."""
    return torch.allclose(left, right, rtol=1e-3, atol=1e-3, equal_nan=True)


def _widen(function: Callable, layout: Layout, count: int) -> Callable:
    return pyro.plate(_DRAWS_PLATE, count, dim=-layout.nesting - 1)(function)


def _pad(value: torch.Tensor, layout: Layout, name: str) -> torch.Tensor:
    """``(count, 1, ..., *shape)``: draws lie on the dim of their plate."""
    batch = value.ndim - 1 - layout.sites[name].event_dim
    return value.reshape(value.shape[:1] + (1,) * (layout.nesting - batch) + value.shape[1:])


def _rows(value: torch.Tensor, count: int, shape: torch.Size) -> torch.Tensor:
    """``(count, *shape)`` from a value under the plate of draws, or from one that is constant."""
    if value.numel() == shape.numel() and count > 1:
        return value.reshape(shape).expand(count, *shape)
    return value.reshape(count, *shape)


def _log_density(trace: Trace) -> torch.Tensor:
    return torch.as_tensor(trace.log_prob_sum())


def _density_rows(trace: Trace, layout: Layout, count: int) -> torch.Tensor:
    """log-density of each draw, ``(count,)``."""
    trace.compute_log_prob()
    total: Any = 0.0
    for site in sample_sites(trace).values():
        term = site["log_prob"]
        is_wide = term.ndim > layout.nesting and term.shape[0] == count
        total = total + (term.reshape(count, -1).sum(-1) if is_wide else term.sum())
    return torch.as_tensor(total).expand(count)
