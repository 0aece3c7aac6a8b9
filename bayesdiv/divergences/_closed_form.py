"""Closed forms between two distribution objects of torch, Pyro or NumPyro."""

from __future__ import annotations

import math
import sys
from typing import Any, NamedTuple

from bayesdiv._array import Array, array_namespace, as_array_like, is_jax_array, is_torch_array
from bayesdiv.divergences._base import FDivergence
from bayesdiv.divergences._categorical import between_logits, require_f_divergence
from bayesdiv.divergences._gaussian import alpha_terms, between_gaussians

_CATEGORICAL = {"Categorical", "CategoricalLogits", "CategoricalProbs", "OneHotCategorical"}
_BERNOULLI = {"Bernoulli", "BernoulliLogits", "BernoulliProbs"}


def closed_form(divergence: str | FDivergence, p: Any, q: Any) -> Array:
    """D(p‖q) of two distribution objects, in nats, without sampling.

    Parameters
    ----------
    divergence
        Name or object. ``p`` is the target, ``q`` the approximation.
    p, q
        Distributions of one host: ``torch.distributions``, ``pyro.distributions`` or
        ``numpyro.distributions``.

    Returns
    -------
    Array
        Of the batch shape of ``p`` and ``q``, event dimensions summed out.

    Raises
    ------
    NotImplementedError
        The pair has no closed form here; the message lists those that have.
    TypeError
        ``p`` or ``q`` is not a distribution, or they are of different hosts.

    Notes
    -----
    Categorical and Bernoulli pairs serve every f-divergence, Gaussian pairs (Normal,
    MultivariateNormal, also ``Independent``) those of :func:`between_gaussians`. For the KL
    divergences and weighted sums of them every other pair is looked up in the host's own registry
    of ``kl_divergence``, where you may register more.

    Examples
    --------
    >>> from torch.distributions import Gamma
    >>> from bayesdiv.divergences import closed_form
    >>> round(float(closed_form("reverse_kl", Gamma(2.0, 1.0), Gamma(3.0, 1.0))), 4)
    0.2296
    """
    divergence = require_f_divergence(divergence)
    for name, distribution in (("p", p), ("q", q)):
        if not hasattr(distribution, "log_prob") or not hasattr(distribution, "batch_shape"):
            raise TypeError(
                f"{name} must be a distribution of torch, Pyro or NumPyro, got {distribution!r}; "
                "between_logits and between_gaussians take arrays."
            )
    logits = _logits(p), _logits(q)
    if all(found is not None for found in logits):
        return between_logits(divergence, *logits)
    first, second = _gaussian(p), _gaussian(q)
    terms = alpha_terms(divergence)
    same_event = tuple(p.event_shape) == tuple(q.event_shape)
    if first is not None and second is not None and terms is not None and same_event:
        return between_gaussians(
            divergence,
            first.mean,
            second.mean,
            p_scale=first.scale,
            q_scale=second.scale,
            p_scale_tril=first.scale_tril,
            q_scale_tril=second.scale_tril,
        )
    if terms is not None and all(order in (0.0, 1.0) for _, order in terms):
        kl = _host_kl(p, q)
        total = 0.0
        for weight, order in terms:
            try:
                value = kl(p, q) if order == 1.0 else kl(q, p)
            except NotImplementedError as error:
                raise _unsupported(divergence, p, q) from error
            total = total + weight * value
        return total
    raise _unsupported(divergence, p, q)


class _Gaussian(NamedTuple):
    """A Gaussian whose last axis is its event; one of the two scales is None."""

    mean: Array
    scale: Array | None
    scale_tril: Array | None
    event_rank: int


def _class_names(distribution: Any) -> set[str]:
    return {cls.__name__ for cls in type(distribution).__mro__}


def _array(value: Any, like: Array) -> Array:
    """A parameter as a floating array: NumPyro keeps numbers and NumPy arrays as they came."""
    is_array = is_torch_array(value) or is_jax_array(value)
    if is_array and array_namespace(value).isdtype(value.dtype, "real floating"):
        return value
    return as_array_like(value, like)


def _broadcast(value: Array, shape: tuple[int, ...]) -> Array:
    return array_namespace(value).broadcast_to(value, shape)


def _logits(distribution: Any) -> Array | None:
    """Logits of the classes along the last axis; None unless there are classes."""
    names = _class_names(distribution)
    batch = tuple(distribution.batch_shape)
    if "ExpandedDistribution" in names:
        logits = _logits(distribution.base_dist)
    elif names & _CATEGORICAL:
        logits = _array(distribution.logits, distribution.probs)
    elif names & _BERNOULLI:
        odds = _array(distribution.logits, distribution.probs)
        xp = array_namespace(odds)
        logits = xp.stack([xp.zeros_like(odds), odds], axis=-1)
    else:
        return None
    return None if logits is None else _broadcast(logits, (*batch, logits.shape[-1]))


def _gaussian(distribution: Any) -> _Gaussian | None:
    """Mean and scale with the event along the last axis; None unless it is a Gaussian."""
    names = _class_names(distribution)
    batch = tuple(distribution.batch_shape)
    if "Normal" in names:
        like = distribution.log_prob(distribution.loc)
        mean, scale = (
            _broadcast(_array(parameter, like), batch)[..., None]
            for parameter in (distribution.loc, distribution.scale)
        )
        return _Gaussian(mean, scale, None, 0)
    if names & {"MultivariateNormal", "LowRankMultivariateNormal"}:
        (size,) = tuple(distribution.event_shape)
        mean = _broadcast(distribution.loc, (*batch, size))
        tril = _broadcast(distribution.scale_tril, (*batch, size, size))
        return _Gaussian(mean, None, tril, 1)
    if not names & {"Independent", "ExpandedDistribution"}:
        return None
    base = _gaussian(distribution.base_dist)
    if base is None:
        return None
    if "ExpandedDistribution" in names:
        size = base.mean.shape[-1]
        mean = _broadcast(base.mean, (*batch, size))
        if base.scale is None:
            return base._replace(
                mean=mean, scale_tril=_broadcast(base.scale_tril, (*batch, size, size))
            )
        return base._replace(mean=mean, scale=_broadcast(base.scale, (*batch, size)))
    count = distribution.reinterpreted_batch_ndims
    if base.event_rank and count:
        return None
    # The reinterpreted axes become one event axis, in which coordinates are independent.
    size = math.prod(base.mean.shape[len(batch) :])
    xp = array_namespace(base.mean)
    if base.scale is None:
        return base
    mean, scale = (xp.reshape(part, (*batch, size)) for part in (base.mean, base.scale))
    return _Gaussian(mean, scale, None, base.event_rank + count)


def _host_kl(p: Any, q: Any) -> Any:
    """``kl_divergence`` of the package that both distributions come from.

    The package is read off their classes, as it must be loaded already: this layer knows no host.
    """
    packages = [set(_host_packages(distribution)) for distribution in (p, q)]
    for package in _host_packages(p):
        if package in packages[1] and hasattr(sys.modules[package], "kl_divergence"):
            return sys.modules[package].kl_divergence
    raise TypeError(
        f"p and q must be distributions of one host with a kl_divergence, got {type(p)} and "
        f"{type(q)}."
    )


def _host_packages(distribution: Any) -> list[str]:
    """Names of the loaded packages called ``distributions`` that its classes live in."""
    found = []
    for cls in type(distribution).__mro__:
        head, separator, _ = f"{cls.__module__}.".partition("distributions.")
        package = f"{head}distributions"
        if separator and package in sys.modules and package not in found:
            found.append(package)
    return found


def _unsupported(divergence: FDivergence, p: Any, q: Any) -> NotImplementedError:
    return NotImplementedError(
        f"{divergence!r} has no closed form between {type(p).__name__} and {type(q).__name__}. "
        "There is one between Categorical or Bernoulli distributions for every f-divergence; "
        "between Normal, MultivariateNormal and their Independent for reverse_kl, forward_kl, "
        "jeffreys, squared_hellinger, pearson_chi2, neyman_chi2 and alpha; and for the KL "
        "divergences where the host registers one. objective(...) estimates any other by sampling."
    )
