"""From Pyro traces to rows of codes, draws of the prior, and what of the loss has densities."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection
from typing import Any, NamedTuple

import torch
from pyro import poutine
from pyro.poutine.guide import GuideMessenger

from bayesdiv.pyro._empirical_prior import EmpiricalPrior
from bayesdiv.pyro._frozen import FrozenGuide, NoPathGradient
from bayesdiv.pyro._sample_sites import (
    Nodes,
    check_reparameterized,
    latent_part,
    latent_sites,
    side_by_side,
)
from bayesdiv.pyro._sites import (
    as_term,
    base_distribution,
    check_match,
    is_delta,
    plates_of,
    sample_sites,
    scaled,
    unscaled_log_prob,
)


class Call(NamedTuple):
    """A batch as the arguments of model and guide."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]


def call_of(batch: Any) -> Call:
    """A tuple or list is spread out, a mapping gives keywords, None nothing, all else is one."""
    if batch is None:
        return Call((), {})
    if isinstance(batch, dict):
        return Call((), batch)
    return Call(tuple(batch) if isinstance(batch, list | tuple) else (batch,), {})


class Layout(NamedTuple):
    """Sites ``matched`` to the prior's, all ``codes``, and whether every one has densities.

    ``full_size`` is the number of rows of all data, ``size`` that of a batch.
    """

    matched: tuple[str, ...]
    codes: tuple[str, ...]
    explicit: bool
    size: int = 0
    full_size: int = 0


def trace_pair(model: Any, guide: Any, call: Call) -> tuple[Any, Any]:
    """Traces of the guide, and of the model at the guide's values."""
    unwrapped: Any = poutine.unwrap(guide)
    if isinstance(unwrapped, GuideMessenger):
        guide(*call.args, **call.kwargs)
        return unwrapped.get_traces()
    guide_trace = poutine.trace(guide).get_trace(*call.args, **call.kwargs)
    run = poutine.replay(model, trace=guide_trace)
    return poutine.trace(run).get_trace(*call.args, **call.kwargs), guide_trace


def find_sites(model_trace: Any, guide_trace: Any, sites: Collection[str] | None) -> Layout:
    """Which latent sites are codes, and which of them are compared with the prior by samples.

    Raises
    ------
    ValueError
        Model and guide do not match, no latent site stands in a plate with the data, codes stand
        in different plates, a guide site is not reparameterised, or ``sites`` are none of them.
    """
    check_match(latent_part(model_trace), guide_trace)
    check_reparameterized(guide_trace, "codes")
    latent = {site["name"]: plates_of(site) for site in latent_sites(model_trace)}
    observed = [plates_of(site) for site in sample_sites(model_trace) if site["is_observed"]]
    rows = {plate.name for plates in observed or latent.values() for plate in plates}
    codes = {
        name: plates for name, plates in latent.items() if rows & {plate.name for plate in plates}
    }
    if not codes or len(set(codes.values())) > 1:
        described = {
            name: sorted(plate.name for plate in plates) for name, plates in latent.items()
        }
        raise ValueError(
            "the codes must be latent sites in the vectorised plate of the data, all of them in "
            f"the same plates, got latent sites in plates {described}; put codes and observations "
            "into one pyro.plate, and inner plates into the event shape with .to_event(1)."
        )
    implicit = tuple(
        name
        for name in codes
        if not (_has_density(model_trace.nodes[name]) and _has_density(guide_trace.nodes[name]))
    )
    matched = implicit or tuple(codes)
    if sites is not None:
        unknown = sorted(set(sites) - set(codes))
        if unknown or not sites:
            raise ValueError(
                f"sites must be among the codes {sorted(codes)}, at least one, got {sorted(sites)}."
            )
        missing = sorted(set(implicit) - set(sites))
        if missing:
            raise ValueError(
                f"sites must have every code without a density in model or guide, got "
                f"{sorted(sites)} without {missing}."
            )
        matched = tuple(name for name in codes if name in sites)
    return sized(Layout(matched, tuple(codes), not implicit), guide_trace)


def sized(layout: Layout, guide_trace: Any) -> Layout:
    """The layout with the sizes of this batch's plates."""
    plates = plates_of(guide_trace.nodes[layout.matched[0]])
    return layout._replace(
        size=math.prod(plate.size for plate in plates),
        full_size=math.prod(plate.full_size for plate in plates),
    )


def _has_density(site: dict[str, Any]) -> bool:
    if is_delta(site["fn"]):
        return False
    try:
        with torch.no_grad():
            unscaled_log_prob(site)
    except NotImplementedError:
        return False
    return True


def is_pooled(trace: Any, name: str) -> bool:
    """Whether a site is drawn from a pool, whatever its row."""
    return isinstance(base_distribution(trace.nodes[name]["fn"]), EmpiricalPrior)


class Batch:
    """One batch's traces, as rows of codes and of the prior; rows that are masked are left out.

    With a context, a function of the batch's arguments, `beside` puts it before each row.
    """

    def __init__(
        self,
        model: Any,
        call: Call,
        traces: tuple[Any, Any],
        layout: Layout,
        context: Callable[..., torch.Tensor] | None,
    ) -> None:
        self.model_trace, self.guide_trace = traces
        self.call, self.layout = call, sized(layout, self.guide_trace)
        self._model, self._context = model, context
        self._keep = self._kept_rows()
        self.codes = self.kept(side_by_side(self.guide_trace, list(layout.matched)))

    def kept(self, rows: torch.Tensor) -> torch.Tensor:
        """Those of all rows that are not masked."""
        return rows if self._keep is None else rows[self._keep]

    def _kept_rows(self) -> torch.Tensor | None:
        masks = [self.guide_trace.nodes[name]["mask"] for name in self.layout.matched]
        found = [mask for mask in masks if torch.is_tensor(mask)]
        if not found:
            return None
        keep = torch.stack([mask.expand(found[0].shape) for mask in found]).all(0).reshape(-1)
        return keep.expand(self.layout.size) if keep.numel() == 1 else keep

    @torch.no_grad()
    def draw_prior(self) -> torch.Tensor:
        """A fresh draw of the prior for each row, ``(rows, dim)``, without history.

        Codes that may depend on one another are drawn together, in a run of the model.
        """
        names = self.layout.codes
        if len(names) == 1:
            site = self.model_trace.nodes[names[0]]
            drawn: Any = Nodes({names[0]: {**site, "value": site["fn"]()}})
        else:
            partial = self.model_trace.copy()
            for name in names:
                partial.remove_node(name)
            with poutine.block():
                run = poutine.uncondition(poutine.replay(self._model, trace=partial))
                drawn = poutine.trace(run).get_trace(*self.call.args, **self.call.kwargs)
        return self.kept(side_by_side(drawn, list(self.layout.matched))).to(self.codes)

    def beside(self, rows: torch.Tensor) -> torch.Tensor:
        """``rows`` with the context before them, ``(rows, k + dim)``."""
        if self._context is None:
            return rows
        found = self._context(*self.call.args, **self.call.kwargs)
        if not torch.is_tensor(found) or found.ndim == 0 or len(found) != self.layout.size:
            shape = tuple(found.shape) if torch.is_tensor(found) else type(found).__name__
            raise ValueError(
                f"context must return one row for each of the {self.layout.size} rows of codes, "
                f"shape ({self.layout.size}, ...), got {shape}."
            )
        context = self.kept(found.detach().reshape(len(found), -1)).to(rows)
        return torch.cat([context, rows], dim=1)

    def reconstruction(self) -> torch.Tensor:
        """−log p(x|z) a row, plus log q − log p of every latent site not matched, a scalar."""
        total: Any = 0.0
        for trace, sign in ((self.model_trace, -1.0), (self.guide_trace, 1.0)):
            for site in sample_sites(trace):
                if site["name"] not in self.layout.matched and site["mask"] is not False:
                    term = as_term(site, scaled(site, unscaled_log_prob(site)))
                    total = total + sign * term.log_prob.sum()
        if not torch.is_tensor(total):
            total = self.codes.new_tensor(total)
        return total / self.layout.full_size

    def exact_log_ratio(self, guide: Any, frozen: FrozenGuide | None) -> tuple[torch.Tensor, str]:
        """log p(z) − log q(z|x), ``(rows,)``, and the gradient that its graph is for.

        With ``frozen`` the guide's parameters are held fixed inside log q, for path gradients,
        where the guide allows that.
        """
        log_q, gradient = None, "reparam"
        if frozen is not None:
            try:
                log_q = frozen.log_probs(guide, self.guide_trace, *self.call, guide)
                gradient = "path"
            except NoPathGradient as reason:
                if reason.is_news:
                    raise
        total: Any = 0.0
        for name in self.layout.matched:
            own = self.guide_trace.nodes[name]
            minus = unscaled_log_prob(own) if log_q is None else log_q[name]
            total = total + unscaled_log_prob(self.model_trace.nodes[name]) - minus
            shape = own["value"].shape[: own["value"].ndim - own["fn"].event_dim]
        rows = total.expand(torch.broadcast_shapes(total.shape, shape)).reshape(-1)
        return self.kept(rows), gradient


def parameters_of(trace: Any) -> dict[str, torch.Tensor]:
    """Unconstrained leaves of the ``pyro.param`` sites of a trace that require gradients."""
    found = {}
    for name, node in trace.nodes.items():
        if node["type"] == "param":
            value = node["value"]
            leaf = value.unconstrained() if hasattr(value, "unconstrained") else value
            if leaf.requires_grad:
                found[name] = leaf
    return found
