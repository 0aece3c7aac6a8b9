"""log q with the guide's parameters held fixed, as path gradients need it.

Sites that do not depend on one another need no second run of the guide: their distributions are
taken with all tensors detached. Otherwise the guide is run again on the same values with its
parameters frozen, so that gradients still flow from one site into the distribution of the next.
Which of the two is right is read off autograd's graph at every step. Guides that allow neither are
recognised on their first step: those whose sites are functions of parameters and noise, whose
density at a fixed value is unknown; flows without an inverse; guides with randomness of their own.
"""

from __future__ import annotations

import warnings
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from pyro import poutine
from pyro.poutine.messenger import Messenger

from bayesdiv.pyro._graph import (
    detached,
    graph_nodes,
    reaches,
    reaches_parameters,
    tensors_of,
)
from bayesdiv.pyro._sites import (
    NoInverse,
    is_delta,
    log_prob_afresh,
    sample_sites,
    unscaled_log_prob,
)


class NoPathGradient(Exception):
    """Why a guide has no density that can be differentiated in the values alone.

    ``is_news`` says that this was found out just now, by inverting flows: what they keep for the
    density of their last sample is gone, and the guide has to be run anew.
    """

    is_news = False


class _FoundNoPathGradient(NoPathGradient):
    is_news = True


@dataclass
class _Structure:
    """What earlier steps found out about a guide."""

    obstacle: str | None
    can_detach: bool
    can_run_again: bool = False


class FrozenGuide:
    """Frozen log-densities of guides, remembering how each guide is put together."""

    def __init__(self) -> None:
        self._structures: weakref.WeakKeyDictionary[Any, dict[Any, _Structure]] = (
            weakref.WeakKeyDictionary()
        )

    def __getstate__(self) -> dict[str, Any]:
        return {}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__()  # type: ignore[misc]

    def log_probs(
        self, run: Any, guide_trace: Any, args: tuple[Any, ...], kwargs: dict[str, Any], guide: Any
    ) -> dict[str, Any]:
        """Unscaled log-probability of each site, differentiable through the values only.

        ``run`` is what was traced, ``guide`` the user's own, whose structure is remembered.

        Raises
        ------
        NoPathGradient
            Saying why there is none.
        """
        sites = list(sample_sites(guide_trace))
        # A bound method is a new object at each access; its owner and its function are not.
        known = self._structures.setdefault(getattr(guide, "__self__", guide), {})
        key = (getattr(guide, "__func__", None), *(site["name"] for site in sites))
        if key not in known:
            known[key] = _Structure(_obstacle(sites), _can_detach(sites))
            if known[key].obstacle:
                raise _FoundNoPathGradient(known[key].obstacle)
        structure = known[key]
        if structure.obstacle:
            raise NoPathGradient(structure.obstacle)
        if structure.can_detach and not _depend_on_one_another(sites):
            return {site["name"]: _detached_log_prob(site) for site in sites}
        try:
            if not structure.can_run_again:
                _check_second_run(run, guide_trace, sites, args, kwargs, guide)
                structure.can_run_again = True
            with _frozen_parameters(guide_trace, guide):
                return _log_probs_again(run, guide_trace, sites, args, kwargs)
        except NoPathGradient as error:
            structure.obstacle = str(error)
            raise _FoundNoPathGradient(structure.obstacle) from error


def _random(sites: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [site for site in sites if not is_delta(site["fn"])]


def _obstacle(sites: list[dict[str, Any]]) -> str | None:
    """A Delta whose density moves with the parameters while the noise in it is fixed."""
    noise = graph_nodes(site["value"] for site in _random(sites))
    for site in sites:
        if not is_delta(site["fn"]):
            continue
        tensors = list(tensors_of(site["fn"]))
        densities = [_delta_density(site["fn"])]
        mixes = reaches(tensors, noise) and reaches_parameters(tensors, noise)
        if mixes or reaches_parameters(densities, noise):
            return (
                f"guide site {site['name']!r} is a function of parameters and of other sites, so "
                "its density at a fixed value is not known"
            )
    return None


def _delta_density(fn: Any) -> torch.Tensor:
    while hasattr(fn, "base_dist"):
        fn = fn.base_dist
    return fn.log_density


def _can_detach(sites: list[dict[str, Any]]) -> bool:
    """Whether no parameter hides from :func:`detached`, in a closure or a module."""
    for site in _random(sites):
        fixed = {**site, "value": site["value"].detach()}
        try:
            log_prob = unscaled_log_prob(fixed, detached(site["fn"]))
        except (NotImplementedError, KeyError):  # A flow without an inverse.
            return False
        if isinstance(log_prob, torch.Tensor) and log_prob.requires_grad:
            return False
    return True


def _depend_on_one_another(sites: list[dict[str, Any]]) -> bool:
    """Whether the distribution of a random site was computed from the value of another."""
    random = _random(sites)
    if len(random) < 2:
        return False
    values: set[Any] = set()
    visited: set[Any] = set()
    for site in random:
        if values and reaches(tensors_of(site["fn"]), values, visited):
            return True
        values |= graph_nodes([site["value"]])
    return False


def _detached_log_prob(site: dict[str, Any]) -> Any:
    # A Delta's tensors are the value itself.
    fn = site["fn"]
    return unscaled_log_prob(site, fn if is_delta(fn) else detached(fn))


def _log_probs_again(
    run: Any,
    guide_trace: Any,
    sites: list[dict[str, Any]],
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
) -> dict[str, Any]:
    """Log-probabilities of a second run at the values of the first."""
    if isinstance(poutine.unwrap(run), Messenger):
        raise NoPathGradient("a guide messenger whose sites depend on one another runs only once")
    noise = graph_nodes(site["value"] for site in _random(sites))
    fixed = guide_trace.copy()
    for site in sites:
        # A point estimate is a parameter, to be held fixed in the density of other sites.
        if is_delta(site["fn"]) and not reaches([site["value"]], noise):
            fixed.nodes[site["name"]] = {**site, "value": site["value"].detach()}
    again = poutine.trace(poutine.replay(run, trace=fixed)).get_trace(*args, **kwargs)
    try:
        return {site["name"]: log_prob_afresh(again.nodes[site["name"]]) for site in sites}
    except NoInverse as error:
        raise NoPathGradient(str(error)) from error


def _check_second_run(
    run: Any,
    guide_trace: Any,
    sites: list[dict[str, Any]],
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    guide: Any,
) -> None:
    """Raise unless a second run gives the density of the first, with every parameter frozen."""
    constant = guide_trace.copy()
    for site in sites:
        constant.nodes[site["name"]] = {**site, "value": site["value"].detach()}
    with _frozen_parameters(guide_trace, guide):
        again = _log_probs_again(run, constant, sites, args, kwargs)
    for site in sites:
        if is_delta(site["fn"]):
            continue
        log_prob, own = again[site["name"]], unscaled_log_prob(site)
        if log_prob.requires_grad:
            raise NoPathGradient(
                f"guide site {site['name']!r} uses parameters that are neither pyro.param nor "
                "those of the guide's module, and cannot be held fixed"
            )
        if not torch.allclose(log_prob, own.detach(), rtol=1e-2, atol=1e-2, equal_nan=True):
            raise NoPathGradient(
                f"the density of guide site {site['name']!r} differs between two runs of the guide "
                "at the same values, as with dropout"
            )


@contextmanager
def _frozen_parameters(guide_trace: Any, guide: Any) -> Iterator[None]:
    """The parameter sites of a run held fixed, and those of modules that are not sites."""
    owner = poutine.unwrap(guide)
    owner = getattr(owner, "__self__", owner)
    leaves = list(owner.parameters()) if isinstance(owner, torch.nn.Module) else []
    for site in guide_trace.nodes.values():
        if site["type"] == "param" and site["value"] is not None:
            leaf = site["value"]
            leaves.append(leaf.unconstrained() if hasattr(leaf, "unconstrained") else leaf)
    leaves = [leaf for leaf in leaves if leaf.is_leaf and leaf.requires_grad]
    try:
        for leaf in leaves:
            leaf.requires_grad = False
        with warnings.catch_warnings():
            # What pyro.module has to say about a parameter that is frozen on purpose.
            warnings.filterwarnings("ignore", ".*was not registered in the param store")
            yield
    finally:
        for leaf in leaves:
            leaf.requires_grad = True
