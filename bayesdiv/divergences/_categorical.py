"""f-divergences between categorical distributions, exactly, from logits."""

from __future__ import annotations

import math
from typing import Any

from bayesdiv._array import Array, array_namespace, logsumexp
from bayesdiv.divergences._base import FDivergence
from bayesdiv.divergences._checks import is_concrete_number
from bayesdiv.divergences._numeric import largest_exponent
from bayesdiv.divergences._registry import get_divergence


def between_logits(
    divergence: str | FDivergence,
    p_logits: Array,
    q_logits: Array,
    *,
    mask: Array | None = None,
    axis: int = -1,
) -> Array:
    r"""D(p‖q) of two categorical distributions, in nats, summed exactly over the classes.

    .. math:: D_f(p\|q) = \sum_k q_k f(p_k/q_k)

    A logit of −∞ takes a class out of that distribution: where p has no mass the term is q_k f(0),
    where q has none p_k f'(∞), where neither has any 0. A divergence that is infinite is +∞, and
    the gradient is then that of its finite terms.

    Parameters
    ----------
    divergence
        Name or object. ``p`` is the target, ``q`` the approximation.
    p_logits, q_logits
        Shape ``(..., classes)``, broadcast against each other; any constant may be added along the
        classes.
    mask
        Boolean, broadcast against the logits: False removes a class from both distributions, before
        they are normalised. A row without classes gives 0.
    axis
        Where the classes are.

    Returns
    -------
    Array
        Shape ``(...)``, the classes summed out.

    Raises
    ------
    TypeError
        ``divergence`` is a two-sample divergence, or ``mask`` is not boolean.
    ValueError
        The logits are scalars, or do not broadcast.

    References
    ----------
    The terms at zero mass: Liese and Vajda (2006), On divergences and informations in statistics
    and information theory, eq. 10.

    Examples
    --------
    >>> import torch
    >>> from bayesdiv.divergences import between_logits
    >>> p, q = torch.tensor([0.5, 0.5, 0.0]).log(), torch.tensor([0.2, 0.5, 0.3]).log()
    >>> round(float(between_logits("total_variation", p, q)), 4)
    0.3
    """
    divergence = require_f_divergence(divergence)
    _check_shapes(p_logits, q_logits, axis)
    xp = array_namespace(p_logits, q_logits)
    p_logits, q_logits = xp.broadcast_arrays(p_logits, q_logits)
    if mask is not None:
        if "bool" not in str(mask.dtype):
            raise TypeError(f"mask must be boolean, got {mask.dtype}; pass mask > 0.")
        p_logits = xp.where(mask, p_logits, xp.full_like(p_logits, -math.inf))
        q_logits = xp.where(mask, q_logits, xp.full_like(q_logits, -math.inf))
    terms = _terms(
        divergence, _log_softmax(p_logits, mask, axis), _log_softmax(q_logits, mask, axis)
    )
    return xp.sum(terms, axis=axis)


def require_f_divergence(divergence: Any) -> FDivergence:
    found = get_divergence(divergence)
    if not isinstance(found, FDivergence):
        raise TypeError(
            f"divergence must be an f-divergence to be computed from densities, got {found!r}; "
            "call a two-sample divergence on samples of p and q."
        )
    return found


def _check_shapes(p_logits: Array, q_logits: Array, axis: int) -> None:
    p_shape, q_shape = tuple(p_logits.shape), tuple(q_logits.shape)
    if not p_shape or not q_shape:
        raise ValueError(
            f"p_logits and q_logits must have an axis of classes, got shapes {p_shape} and "
            f"{q_shape}; for two classes stack 0 and the log-odds."
        )
    if p_shape[axis] != q_shape[axis]:
        raise ValueError(
            f"p_logits and q_logits must have the same classes along axis {axis}, got shapes "
            f"{p_shape} and {q_shape}."
        )


def _log_softmax(logits: Array, mask: Array | None, axis: int) -> Array:
    if mask is None:
        return logits - logsumexp(logits, axis, keepdims=True)
    xp = array_namespace(logits)
    # A row without classes keeps its −∞ throughout: zeros stand in for it, so that the gradient of
    # its normaliser is finite.
    present = xp.any(xp.broadcast_to(mask, logits.shape), axis=axis, keepdims=True)
    shifted = xp.where(present, logits, xp.zeros_like(logits))
    normalised = shifted - logsumexp(shifted, axis, keepdims=True)
    return xp.where(present, normalised, xp.full_like(logits, -math.inf))


def _terms(divergence: FDivergence, log_p: Array, log_q: Array) -> Array:
    """q f(p/q) for each class, whichever of the two masses is zero."""
    xp = array_namespace(log_p)
    zeros = xp.zeros_like(log_p)
    no_p, no_q = log_p == -math.inf, log_q == -math.inf
    both = ~(no_p | no_q)
    safe_p, safe_q = xp.where(both, log_p, zeros), xp.where(both, log_q, zeros)
    log_ratio = safe_p - safe_q
    # With u > 1 the term is p f̃(q/p), f̃ the generator of D(q‖p): no argument above 1 in either.
    heavier_p = log_ratio > 0.0
    low = xp.where(heavier_p, -log_ratio, log_ratio)
    term = xp.where(
        heavier_p,
        _scaled_generator(divergence.reversed(), safe_p, low),
        _scaled_generator(divergence, safe_q, low),
    )
    term = xp.where(both, term, zeros)
    term = term + _mass_times(divergence.value_at_zero, log_q, no_p & ~no_q)
    return term + _mass_times(divergence.slope_at_infinity, log_p, no_q & ~no_p)


def _scaled_generator(divergence: FDivergence, log_scale: Array, log_ratio: Array) -> Array:
    """e^log_scale f(u) for u ≤ 1, where one factor may overflow and the other vanish.

    Only f that grow like a power u^a, a < 0, overflow. Past u^a = e^(0.9 · largest) they follow
    that power to rounding, and the product is taken in logarithms.
    """
    xp = array_namespace(log_ratio)
    tails = divergence.tail_exponents
    exponent = 0.0 if tails is None else tails[0]
    if is_concrete_number(exponent):
        if exponent >= 0.0:
            # Tails that are not known may overflow too, which only matters if there is mass.
            scale = xp.exp(log_scale)
            safe = xp.where(scale > 0.0, log_ratio, xp.zeros_like(log_ratio))
            return scale * divergence.generator(safe)
    else:
        exponent = xp.minimum(exponent, -xp.finfo(log_ratio.dtype).eps * xp.ones_like(exponent))
    edge = 0.9 * largest_exponent(log_ratio) / exponent
    beyond = log_ratio < edge
    inside = xp.where(beyond, xp.zeros_like(log_ratio) + edge, log_ratio)
    value = divergence.generator(inside)
    excess = xp.where(beyond, exponent * (log_ratio - inside), xp.zeros_like(log_ratio))
    # log f(u) would be −∞ at u = 1; it is needed far from there only.
    positive = xp.where(beyond, value, xp.ones_like(value))
    power = xp.exp(xp.where(beyond, log_scale + excess, xp.zeros_like(excess)) + xp.log(positive))
    return xp.where(beyond, power, xp.exp(log_scale) * value)


def _mass_times(cost: Any, log_mass: Array, where: Array) -> Array:
    """``cost · mass`` at the entries ``where``, without a gradient if the cost is infinite."""
    xp = array_namespace(log_mass)
    zeros = xp.zeros_like(log_mass)
    mass = xp.exp(xp.where(where, log_mass, zeros))
    if is_concrete_number(cost):
        priced = xp.full_like(mass, math.inf) if math.isinf(cost) else cost * mass
    else:
        infinite = xp.isinf(cost)
        finite_cost = xp.where(infinite, xp.zeros_like(cost), cost)
        priced = xp.where(infinite, xp.full_like(mass, math.inf), finite_cost * mass)
    return xp.where(where, priced, zeros)
