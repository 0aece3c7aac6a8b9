"""log q with the guide's parameters held fixed, as path gradients need it.

A guide whose sites do not depend on one another needs no second run: the tensors of its
distributions are detached. Any other guide is run again on the same values with its parameters
frozen, so that gradients still flow from one site into the distribution of the next.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from pyro import distributions as dist
from pyro import poutine
from torch.distributions import Distribution, TransformedDistribution
from torch.distributions.transforms import Transform

from bayesdiv.pyro._sites import sample_sites, unscaled_log_prob


class NoPathGradient(Exception):
    """A site whose log-density has no usable gradient in its value."""


class FrozenGuide:
    """Frozen log-densities of guides, remembering how each guide is put together."""

    def __init__(self) -> None:
        self._independent: weakref.WeakKeyDictionary[Any, dict[tuple[str, ...], bool]] = (
            weakref.WeakKeyDictionary()
        )

    def __getstate__(self) -> dict[str, Any]:
        return {}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__()  # type: ignore[misc]

    def log_probs(
        self, guide: Any, guide_trace: Any, args: tuple[Any, ...], kwargs: dict[str, Any], key: Any
    ) -> dict[str, Any]:
        """Unscaled log-probability of each site, differentiable through the values only.

        ``guide`` is what was run for ``guide_trace``; ``key`` is the user's guide, by which its
        structure is remembered.
        """
        sites = list(sample_sites(guide_trace))
        names = tuple(site["name"] for site in sites)
        known = self._structures(key)
        if names not in known:
            with _frozen_parameters(guide_trace, key):
                known[names] = self._is_independent(guide, guide_trace, args, kwargs)
        if known[names]:
            return {
                site["name"]: unscaled_log_prob(site, detach_distribution(site["fn"]))
                for site in sites
            }
        # A learnt transform uses its parameters when it is inverted: still frozen then.
        with _frozen_parameters(guide_trace, key):
            rerun = _run_again(guide, guide_trace, args, kwargs)
            return {site["name"]: _inverted_log_prob(rerun.nodes[site["name"]]) for site in sites}

    def _structures(self, key: Any) -> dict[tuple[str, ...], bool]:
        owner = getattr(key, "__self__", key)
        try:
            return self._independent.setdefault(owner, {})
        except TypeError:
            return {}

    def _is_independent(
        self, guide: Any, guide_trace: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> bool:
        """Whether no random site's distribution depends on another site's value."""
        sites = list(sample_sites(guide_trace))
        random = [site for site in sites if not _is_delta(site["fn"])]
        if any(_has_learnt_transform(site["fn"]) for site in sites):
            return False
        if len(random) <= 1:
            return True
        # With the parameters frozen, whatever still requires a gradient got it from a value.
        probe = guide_trace.copy()
        for site in random:
            value = site["value"].detach()
            if value.is_floating_point():
                probe.nodes[site["name"]] = {**site, "value": value.requires_grad_()}
            else:
                return False
        rerun = _run_again(guide, probe, args, kwargs)
        return not any(_requires_grad(rerun.nodes[site["name"]]["fn"]) for site in random)


def _run_again(guide: Any, guide_trace: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    replayed = poutine.replay(guide, trace=guide_trace)
    return poutine.trace(replayed).get_trace(*args, **kwargs)


@contextmanager
def _frozen_parameters(guide_trace: Any, guide: Any) -> Iterator[None]:
    """The parameter sites of a run held fixed, and those of modules that are not sites."""
    owner = getattr(guide, "__self__", guide)
    leaves = list(owner.parameters()) if isinstance(owner, torch.nn.Module) else []
    leaves = [leaf for leaf in leaves if leaf.requires_grad]
    for site in guide_trace.nodes.values():
        if site["type"] == "param" and site["value"] is not None:
            leaf = site["value"]
            leaf = leaf.unconstrained() if hasattr(leaf, "unconstrained") else leaf
            if leaf.is_leaf and leaf.requires_grad:
                leaves.append(leaf)
    try:
        for leaf in leaves:
            leaf.requires_grad = False
        yield
    finally:
        for leaf in leaves:
            leaf.requires_grad = True


def _is_delta(fn: Any) -> bool:
    while hasattr(fn, "base_dist") and not isinstance(fn, TransformedDistribution):
        fn = fn.base_dist
    return isinstance(fn, dist.Delta)


def _has_learnt_transform(fn: Any) -> bool:
    if isinstance(fn, TransformedDistribution):
        return any(_is_learnt(transform) for transform in fn.transforms) or _has_learnt_transform(
            fn.base_dist
        )
    return hasattr(fn, "base_dist") and _has_learnt_transform(fn.base_dist)


def _is_learnt(transform: Any) -> bool:
    if isinstance(transform, torch.nn.Module):
        return True
    parts = getattr(transform, "parts", None) or []
    inverse = getattr(transform, "_inv", None)
    inner = getattr(transform, "base_transform", None)
    nested = [*parts, *([inner] if inner is not None else [])]
    if inverse is not None and not callable(getattr(inverse, "__call__", None)):  # noqa: B004
        nested.append(inverse)
    return any(_is_learnt(part) for part in nested)


def _requires_grad(value: Any) -> bool:
    if isinstance(value, torch.Tensor):
        return value.requires_grad
    if isinstance(value, Distribution | Transform):
        return any(_requires_grad(entry) for entry in vars(value).values())
    if isinstance(value, list | tuple):
        return any(_requires_grad(entry) for entry in value)
    return False


def detach_distribution(fn: Any) -> Any:
    """``fn`` with every tensor detached; a Delta as it is, since its tensors are the value."""
    if _is_delta(fn):
        return fn
    return _detached(fn)


def _detached(value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        return value.detach()
    if isinstance(value, Distribution | Transform):
        clone = object.__new__(type(value))
        clone.__dict__ = {name: _detached(entry) for name, entry in vars(value).items()}
        if isinstance(value, Transform):
            clone.__dict__["_inv"] = None
            clone.__dict__["_cached_x_y"] = (None, None)
        return clone
    if isinstance(value, list):
        return [_detached(entry) for entry in value]
    if isinstance(value, tuple) and any(isinstance(entry, torch.Tensor) for entry in value):
        return tuple(_detached(entry) for entry in value)
    return value


def _inverted_log_prob(site: dict[str, Any]) -> Any:
    """The log-density with flows inverted afresh: a cached inverse would be a constant."""
    fn = site["fn"]
    while hasattr(fn, "base_dist") and not isinstance(fn, TransformedDistribution):
        fn = fn.base_dist
    if hasattr(fn, "clear_cache"):
        fn.clear_cache()
    if isinstance(fn, TransformedDistribution):
        for transform in fn.transforms:
            if hasattr(transform, "_cached_x_y"):
                transform._cached_x_y = (None, None)
    try:
        return unscaled_log_prob(site)
    except (NotImplementedError, KeyError) as error:
        raise NoPathGradient(site["name"]) from error
