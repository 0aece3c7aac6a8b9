"""From pairs of Pyro traces to log-weights with the independent plates kept apart."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from pyro.poutine.messenger import Messenger

from bayesdiv.objectives._plates import Plate, PlateLayout, SiteTerm, find_layout
from bayesdiv.pyro._sites import (
    NoInverse,
    as_term,
    is_delta,
    log_prob_afresh,
    masked,
    sample_sites,
    scaled,
    unscaled_log_prob,
)

# Up to this many elements, terms of one shape are stacked and summed in one operation: less
# overhead where sites are many and small. Larger ones are not worth the copy.
_STACKED_ELEMENTS = 4096
_WORTH_STACKING = 4


@dataclass
class TraceTerms:
    """One pair of traces as log-probabilities: log p̃ = Σ plus, log q = Σ minus.

    ``score`` holds log q of the sites without reparameterisation, unscaled, with its whole graph;
    ``has_path`` says whether parameters are held fixed in ``minus``.
    """

    plus: list[SiteTerm]
    minus: list[SiteTerm]
    score: list[SiteTerm]
    has_path: bool

    @property
    def inside(self) -> list[SiteTerm]:
        """All that the log-weight consists of."""
        return [*self.plus, *self.minus]


def model_terms(trace: Any) -> list[SiteTerm]:
    """log p̃ by site, scaled and masked."""
    return [as_term(site, scaled(site, unscaled_log_prob(site))) for site in sample_sites(trace)]


def _needs_score(site: dict[str, Any], gradient: str) -> bool:
    if is_delta(site["fn"]):
        # A point estimate: its parameter is trained like one of the model's.
        return False
    if site["is_observed"]:  # pyro.factor, which is a term of the loss and not a density.
        return not site["fn"].has_rsample
    return gradient == "score" or not getattr(site["fn"], "has_rsample", False)


def check_reparameterized(trace: Any, gradient: str) -> None:
    """Raise if a guide site cannot be differentiated through its samples."""
    for site in sample_sites(trace):
        if _needs_score(site, gradient):
            raise ValueError(
                f"guide site {site['name']!r} ({type(site['fn']).__name__}) is not "
                f"reparameterised, so gradient={gradient!r} does not exist for it; use "
                "gradient='auto' or 'score'."
            )


def check_scored(trace: Any) -> None:
    """Raise if a guide site's density depends on parameters in a way that the score cannot see."""
    for site in sample_sites(trace):
        if is_delta(site["fn"]) and _has_gradient(unscaled_log_prob(site)):
            raise ValueError(
                f"guide site {site['name']!r} is a function of parameters and noise, which has no "
                "score function; use a guide that samples the site from its own distribution, or "
                "an objective with path gradients."
            )


def _has_gradient(log_prob: Any) -> bool:
    return isinstance(log_prob, torch.Tensor) and log_prob.requires_grad


def guide_terms(
    trace: Any, gradient: str, frozen: dict[str, Any] | None, *, linear: bool
) -> tuple[list[SiteTerm], list[SiteTerm]]:
    """log q by site as it stands in the log-weight, and log q of the sites that need the score.

    ``frozen`` holds log-probabilities with the parameters held fixed, for path gradients.
    """
    # With equal weights the score of these sites would only add noise of mean zero.
    is_fixed = gradient == "score" or linear
    minus, score = [], []
    for site in sample_sites(trace):
        needs = _needs_score(site, gradient)
        own = None
        if needs:
            own = _score_log_prob(site)
        elif frozen is None:
            own = unscaled_log_prob(site)
        if needs and isinstance(own, torch.Tensor):
            score.append(as_term(site, masked(site, own)))
        if frozen is not None:
            log_prob = frozen[site["name"]]
        elif needs and is_fixed and isinstance(own, torch.Tensor):
            log_prob = own.detach()
        else:
            log_prob = own
        minus.append(as_term(site, scaled(site, log_prob)))
    return minus, score


def _score_log_prob(site: dict[str, Any]) -> Any:
    try:
        return log_prob_afresh(site)
    except NoInverse as error:
        raise ValueError(
            f"gradient='score' does not exist here: {error}; use a guide with a density, or an "
            "objective with path gradients."
        ) from error


def common_plates(terms: Iterable[SiteTerm], *, linear: bool) -> PlateLayout:
    """The plates around every site; raises for subsampling that biases a non-linear objective."""
    return _find_layout(tuple((term.name, term.plates) for term in terms), linear)


@lru_cache(maxsize=256)
def _find_layout(sites: tuple[tuple[str, frozenset[Plate]], ...], linear: bool) -> PlateLayout:  # noqa: FBT001
    return find_layout((SiteTerm(name, None, plates) for name, plates in sites), linear=linear)


def sum_to_layout(
    plus: Sequence[SiteTerm],
    minus: Sequence[SiteTerm],
    layout: PlateLayout,
    particle_dim: int | None,
    shape: tuple[int, ...],
) -> torch.Tensor:
    """Σ plus − Σ minus by particle and common plate, of the given shape."""
    kept = [plate.dim for plate in layout.common]
    kept = kept if particle_dim is None else [particle_dim, *kept]
    total: Any = None
    for term in _sum_by_shape(plus):
        part = _sum_all_but(term, kept)
        total = part if total is None else total + part
    for term in _sum_by_shape(minus):
        part = _sum_all_but(term, kept)
        total = -part if total is None else total - part
    if total is None:
        return torch.zeros(shape)
    return total if total.shape == shape else total.expand(shape)


def _sum_all_but(term: torch.Tensor, kept: Sequence[int]) -> torch.Tensor:
    """The sum over all axes but ``kept``, which are negative; missing ones have size 1."""
    if not kept:
        return term.sum()
    depth = -min(kept)
    if term.ndim < depth:
        term = term.reshape((1,) * (depth - term.ndim) + term.shape)
    drop = [axis for axis in range(-term.ndim, 0) if axis not in kept]
    return term.sum(drop) if drop else term


def sum_everything(gathered: Sequence[TraceTerms]) -> torch.Tensor:
    """Σ plus − Σ minus over sites, particles and plates."""
    plus = [part.sum() for part in _sum_by_shape(x for one in gathered for x in one.plus)]
    minus = [part.sum() for part in _sum_by_shape(x for one in gathered for x in one.minus)]
    total: Any = plus[0] if plus else 0.0
    for part in plus[1:]:
        total = total + part
    for part in minus:
        total = total - part
    return torch.as_tensor(total)


def _sum_by_shape(terms: Iterable[SiteTerm]) -> list[torch.Tensor]:
    """Log-probabilities of equal shape added up, as the array's shape says where its plates are."""
    groups: dict[Any, list[torch.Tensor]] = {}
    for number, term in enumerate(terms):
        log_prob = term.log_prob
        small = log_prob.numel() <= _STACKED_ELEMENTS
        key = (log_prob.shape, log_prob.dtype, log_prob.device) if small else number
        groups.setdefault(key, []).append(log_prob)
    sums: list[torch.Tensor] = []
    for group in groups.values():
        sums.extend(group if len(group) < _WORTH_STACKING else [torch.stack(group).sum(0)])
    return sums


class Unreparameterized(Messenger):
    """Samples latent sites without a path for gradients, for the score function."""

    def _pyro_sample(self, msg: Any) -> None:
        if msg["is_observed"] or msg["value"] is not None or msg["done"]:
            return
        if getattr(msg["fn"], "has_rsample", False) and not is_delta(msg["fn"]):
            with torch.no_grad():
                msg["value"] = msg["fn"].sample(*msg["args"], **msg["kwargs"])
