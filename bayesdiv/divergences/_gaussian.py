"""Divergences between Gaussians, in closed form."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np

from bayesdiv._array import (
    Array,
    array_namespace,
    as_array_like,
    solve_lower_triangular,
    stop_gradient,
)
from bayesdiv.divergences import _members
from bayesdiv.divergences._algebra import Reversed, WeightedSum
from bayesdiv.divergences._base import FDivergence
from bayesdiv.divergences._categorical import require_f_divergence
from bayesdiv.divergences._checks import is_concrete_number


def alpha_terms(divergence: FDivergence) -> tuple[tuple[Any, Any], ...] | None:
    """``divergence`` as a weighted sum of Amari's α: ``((weight, order), …)``, None if it is none.

    Order 0 stands for KL(q‖p) and order 1 for KL(p‖q), its limits.
    """
    if isinstance(divergence, _members.Alpha):
        return ((1.0, divergence.order),)
    if isinstance(divergence, Reversed):
        terms = alpha_terms(divergence.base)
        return None if terms is None else tuple((weight, 1.0 - order) for weight, order in terms)
    if isinstance(divergence, WeightedSum):
        parts = [(outer, alpha_terms(member)) for outer, member in divergence.terms]
        if any(terms is None for _, terms in parts):
            return None
        return tuple((outer * w, order) for outer, terms in parts for w, order in terms or ())
    return _ALPHA_TERMS.get(type(divergence))


_ALPHA_TERMS: dict[type, tuple[tuple[float, float], ...]] = {
    _members.ReverseKL: ((1.0, 0.0),),
    _members.ForwardKL: ((1.0, 1.0),),
    _members.Jeffreys: ((1.0, 0.0), (1.0, 1.0)),
    _members.SquaredHellinger: ((0.5, 0.5),),
    _members.PearsonChi2: ((2.0, 2.0),),
    _members.NeymanChi2: ((2.0, -1.0),),
}


def between_gaussians(
    divergence: str | FDivergence,
    p_mean: Array,
    q_mean: Array,
    *,
    p_scale: Array | None = None,
    q_scale: Array | None = None,
    p_scale_tril: Array | None = None,
    q_scale_tril: Array | None = None,
) -> Array:
    r"""D(p‖q) of two Gaussians in closed form, in nats.

    With :math:`\Delta = \mu_p - \mu_q` and :math:`V = (1 - a) \Sigma_p + a \Sigma_q`,

    .. math::

        \int p^a q^{1-a} = \sqrt{\frac{|\Sigma_p|^{1-a} |\Sigma_q|^a}{|V|}}
        \exp\!\Big(-\tfrac{a(1-a)}{2} \Delta^\top V^{-1} \Delta\Big),

    which gives the α of every order, both χ² and the squared Hellinger distance; both KL
    divergences are its limits. Where V is not positive definite the divergence is +∞, without a
    gradient.

    Parameters
    ----------
    divergence
        One of ``reverse_kl``, ``forward_kl``, ``jeffreys``, ``squared_hellinger``,
        ``pearson_chi2``, ``neyman_chi2``, ``alpha``, a reversal or a weighted sum of them.
    p_mean, q_mean
        Shape ``(..., dim)``.
    p_scale, q_scale
        Standard deviations of independent coordinates, shape ``(..., dim)``.
    p_scale_tril, q_scale_tril
        Instead of them, lower Cholesky factors of the covariance, shape ``(..., dim, dim)``.

    Returns
    -------
    Array
        Shape ``(...)``.

    Raises
    ------
    NotImplementedError
        The divergence has no closed form between Gaussians (Jensen–Shannon, total variation, a
        divergence of your own).
    ValueError
        Not exactly one of the two scales of p, or of q, is given.

    References
    ----------
    Gil, Alajaji and Linder (2013), Rényi divergence measures for commonly used univariate
    continuous distributions, table 2; Liese and Vajda (1987), Convex statistical distances, p. 44.

    Examples
    --------
    >>> import torch
    >>> from bayesdiv.divergences import between_gaussians
    >>> zero, one = torch.zeros(1), torch.ones(1)
    >>> round(float(between_gaussians("jeffreys", zero, one, p_scale=one, q_scale=2 * one)), 4)
    1.75
    """
    divergence = require_f_divergence(divergence)
    terms = alpha_terms(divergence)
    if terms is None:
        raise NotImplementedError(
            f"{divergence!r} has no closed form between Gaussians; estimate it from samples of q "
            "with log_ratio = log p − log q, as the mean of its generator, or choose one of "
            "reverse_kl, forward_kl, jeffreys, squared_hellinger, pearson_chi2, neyman_chi2, alpha."
        )
    pair = _pair(p_mean, q_mean, p_scale, q_scale, p_scale_tril, q_scale_tril)
    total = terms[0][0] * _of_order(pair, terms[0][1])
    for weight, order in terms[1:]:
        total = total + weight * _of_order(pair, order)
    return total


class _Pair(NamedTuple):
    """Two Gaussians; each scale holds standard deviations, or Cholesky factors if ``full``."""

    difference: Array
    p_scale: Array
    q_scale: Array
    full: bool

    def swapped(self) -> _Pair:
        return _Pair(self.difference, self.q_scale, self.p_scale, self.full)


def _pair(
    p_mean: Array,
    q_mean: Array,
    p_scale: Array | None,
    q_scale: Array | None,
    p_scale_tril: Array | None,
    q_scale_tril: Array | None,
) -> _Pair:
    for name, scale, scale_tril, mean in (
        ("p", p_scale, p_scale_tril, p_mean),
        ("q", q_scale, q_scale_tril, q_mean),
    ):
        if (scale is None) == (scale_tril is None):
            raise ValueError(
                f"give exactly one of {name}_scale, shape (..., dim), and {name}_scale_tril, shape "
                f"(..., dim, dim), got {'neither' if scale is None else 'both'}."
            )
        dimension = mean.shape[-1] if mean.ndim else None
        given: Array = scale if scale_tril is None else scale_tril
        shape = tuple(given.shape)
        needed = (dimension,) if scale_tril is None else (dimension, dimension)
        if dimension is None or shape[-len(needed) :] != needed:
            kind = "scale" if scale_tril is None else "scale_tril"
            raise ValueError(
                f"{name}_mean must have shape (..., dim) and {name}_{kind} must end in "
                f"{'(dim,)' if scale_tril is None else '(dim, dim)'}, got {tuple(mean.shape)} and "
                f"{shape}."
            )
    if p_mean.shape[-1] != q_mean.shape[-1]:
        raise ValueError(
            "p_mean and q_mean must have the same last axis, got shapes "
            f"{tuple(p_mean.shape)} and {tuple(q_mean.shape)}."
        )
    full = p_scale is None or q_scale is None
    scales = [
        scale_tril if scale is None else (_diagonal(scale) if full else scale)
        for scale, scale_tril in ((p_scale, p_scale_tril), (q_scale, q_scale_tril))
    ]
    return _Pair(p_mean - q_mean, scales[0], scales[1], full)


def _diagonal(scale: Array) -> Array:
    """Diagonal matrices, shape (..., dim, dim), of vectors of shape (..., dim)."""
    return scale[..., None] * _identity(scale)


def _identity(like: Array) -> Array:
    """The identity of the size of the last axis of ``like``."""
    return as_array_like(np.eye(like.shape[-1]), like)


def _of_order(pair: _Pair, order: Any) -> Array:
    """Amari's α of the pair; its limits at the orders 0 and 1."""
    if is_concrete_number(order):
        if order == 1.0:
            return _forward_kl(pair)
        if order == 0.0:
            return _forward_kl(pair.swapped())
    log_integral = _log_integral_full(pair, order) if pair.full else _log_integral(pair, order)
    xp = array_namespace(log_integral)
    exists = log_integral < math.inf
    finite = xp.where(exists, log_integral, xp.zeros_like(log_integral))
    value = xp.expm1(finite) / (order * (order - 1.0))
    return xp.where(exists, value, xp.full_like(value, math.inf))


def _forward_kl(pair: _Pair) -> Array:
    """KL(p‖q) from r = log(s_q/s_p): Σ ½(e^(−2r) − 1 + 2r) + ½ |Σ_q^(−½) Δ|²."""
    if pair.full:
        return _forward_kl_full(pair)
    xp = array_namespace(pair.difference)
    log_ratio = xp.log(pair.q_scale) - xp.log(pair.p_scale)
    shift = pair.difference / pair.q_scale
    terms = xp.expm1(-2.0 * log_ratio) + 2.0 * log_ratio + shift**2
    return 0.5 * xp.sum(terms, axis=-1)


def _forward_kl_full(pair: _Pair) -> Array:
    xp = array_namespace(pair.difference)
    whitened = solve_lower_triangular(pair.q_scale, pair.p_scale)
    shift = solve_lower_triangular(pair.q_scale, pair.difference[..., None])[..., 0]
    size = pair.difference.shape[-1]
    trace = xp.sum(whitened**2, axis=(-2, -1)) - size
    log_determinant = 2.0 * (_log_diagonal(pair.p_scale) - _log_diagonal(pair.q_scale))
    return 0.5 * (trace - log_determinant + xp.sum(shift**2, axis=-1))


def _log_integral(pair: _Pair, order: Any) -> Array:
    """log ∫ p^a q^(1−a) for independent coordinates; +∞ where it diverges."""
    xp = array_namespace(pair.difference)
    log_ratio = xp.log(pair.q_scale) - xp.log(pair.p_scale)
    # V/Σ_p − 1; the product over coordinates exists if each factor does.
    excess = order * xp.expm1(2.0 * log_ratio)
    exists = xp.all(excess > -1.0, axis=-1)
    safe = xp.where(excess > -1.0, excess, xp.zeros_like(excess))
    shift = pair.difference / pair.p_scale
    terms = (
        order * log_ratio
        - 0.5 * xp.log1p(safe)
        - 0.5 * order * (1.0 - order) * shift**2 / (1.0 + safe)
    )
    total = xp.sum(terms, axis=-1)
    return xp.where(exists, total, xp.full_like(total, math.inf))


def _log_integral_full(pair: _Pair, order: Any) -> Array:
    """log ∫ p^a q^(1−a); +∞ where it diverges."""
    xp = array_namespace(pair.difference)
    whitened = solve_lower_triangular(pair.p_scale, pair.q_scale)
    identity = _identity(pair.difference)
    # V in the coordinates where Σ_p = I.
    mixed = (1.0 - order) * identity + order * (whitened @ xp.matrix_transpose(whitened))
    smallest = xp.min(xp.linalg.eigvalsh(stop_gradient(mixed)), axis=-1)
    exists = smallest > 0.0
    factor = xp.linalg.cholesky(xp.where(exists[..., None, None], mixed, identity))
    shift = solve_lower_triangular(
        factor, solve_lower_triangular(pair.p_scale, pair.difference[..., None])
    )[..., 0]
    log_ratio = _log_diagonal(pair.q_scale) - _log_diagonal(pair.p_scale)
    total = (
        order * log_ratio
        - _log_diagonal(factor)
        - 0.5 * order * (1.0 - order) * xp.sum(shift**2, axis=-1)
    )
    return xp.where(exists, total, xp.full_like(total, math.inf))


def _log_diagonal(triangular: Array) -> Array:
    """Σ log of the diagonal: half the log-determinant of the covariance."""
    xp = array_namespace(triangular)
    return xp.sum(xp.log(xp.linalg.diagonal(triangular)), axis=-1)


def gaussian_wasserstein2(
    p_mean: Array,
    q_mean: Array,
    *,
    p_scale: Array | None = None,
    q_scale: Array | None = None,
    p_scale_tril: Array | None = None,
    q_scale_tril: Array | None = None,
    squared: bool = False,
) -> Array:
    r"""The 2-Wasserstein distance of two Gaussians, in the units of the coordinates.

    .. math::

        W_2^2 = |\mu_p - \mu_q|^2 + \operatorname{tr}\Sigma_p + \operatorname{tr}\Sigma_q
                - 2 \|L_p^\top L_q\|_*,

    where :math:`\Sigma = L L^\top` and the nuclear norm is the sum of the singular values: with
    independent coordinates the rest is :math:`\sum (s_p - s_q)^2`. Symmetric in p and q; arguments
    as in :func:`between_gaussians`. ``squared=True`` gives W₂², whose gradient exists at p = q.

    References
    ----------
    Dowson and Landau (1982), The Fréchet distance between multivariate normal distributions, eq. 4.
    """
    pair = _pair(p_mean, q_mean, p_scale, q_scale, p_scale_tril, q_scale_tril)
    xp = array_namespace(pair.difference)
    square = xp.sum(pair.difference**2, axis=-1)
    if pair.full:
        singular = xp.linalg.svdvals(xp.matrix_transpose(pair.p_scale) @ pair.q_scale)
        traces = xp.sum(pair.p_scale**2, axis=(-2, -1)) + xp.sum(pair.q_scale**2, axis=(-2, -1))
        # Rounding may leave the difference just below zero.
        spread = traces - 2.0 * xp.sum(singular, axis=-1)
        square = square + xp.where(spread > 0.0, spread, xp.zeros_like(spread))
    else:
        square = square + xp.sum((pair.p_scale - pair.q_scale) ** 2, axis=-1)
    return square if squared else xp.sqrt(square)
