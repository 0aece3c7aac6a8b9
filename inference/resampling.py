r"""Resampling of weighted particles, right in float32 at millions of them.

A prefix sum of floating-point weights is computed as a tree, so that two neighbouring partial sums
may differ although the weight between them is zero, and a particle of weight zero gets offspring.
Its importance weight divides by that zero, or nearly, and one such ancestor ruins an evidence. Here
the weights are rounded to whole units first, whose sums are exact in any order:

.. math::
    Q_i = ⌊W_i N 2^b + d_i⌋, \quad d_i = (u + i φ) \bmod 1, \quad C_i = Q_1 + … + Q_i,

with u uniform and φ the golden ratio. The dither d makes the rounding unbiased, E[Q_i] = W_i N 2^b,
and spreads its errors evenly; a weight of zero stays zero. C is then stretched to the total N 2^b,
so that each of the N offspring owns 2^b units and everything after is integer arithmetic.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

__all__ = [
    "get_resampling",
    "multinomial",
    "residual",
    "stratified",
    "systematic",
]

Resampling = Callable[[jax.Array, jax.Array], jax.Array]

# The golden ratio's fractional part in units of 2⁻³²: multiples of it wrap around as integers.
_GOLDEN = np.uint32(2654435769)
# Fewest units that an offspring may own; a coarser grid would distort the weights.
_LEAST_BITS = 4
# Entries whose prefix sums are computed one after the other, for all blocks of as many at once.
_BLOCK = 64


def systematic(key: jax.Array, weights: jax.Array) -> jax.Array:
    r"""Ancestors by one comb of N teeth with a common random offset.

    Particle i has ⌊N W_i⌋ or ⌈N W_i⌉ offspring (up to the rounding of the module), N W_i in
    expectation. O(N) with fixed shapes.

    Parameters
    ----------
    key
        A JAX key.
    weights
        ``(num_particles,)``, not negative, not all zero; they need not sum to 1.

    Returns
    -------
    ancestors
        ``(num_particles,)`` int32, sorted; never the index of a weight of zero.

    Raises
    ------
    ValueError
        If ``weights`` have another shape or type, or are too many for their precision.

    References
    ----------
    Kitagawa (1996), Monte Carlo filter and smoother, appendix.
    """
    _check_weights(weights)
    width = _width(weights)
    phase, offset = jax.random.bits(key, (2,), width)
    cumulative, units = _cumulative_units(phase, weights)
    offset = offset.astype(cumulative.dtype) & (2**units - 1)
    return _ancestors((cumulative - offset + (2**units - 1)) >> units)


def stratified(key: jax.Array, weights: jax.Array) -> jax.Array:
    """Ancestors by N teeth, each with a random offset of its own in its N-th of the unit interval.

    Parameters, shapes, errors and cost as in `systematic`.

    References
    ----------
    Kitagawa (1996), Monte Carlo filter and smoother, appendix.
    """
    _check_weights(weights)
    count = weights.shape[0]
    teeth = jax.random.bits(key, (count + 1,), _width(weights))
    cumulative, units = _cumulative_units(teeth[0], weights)
    teeth = teeth[1:].astype(cumulative.dtype) & (2**units - 1)
    full, rest = cumulative >> units, cumulative & (2**units - 1)
    # In the stratum that C_i ends in, one tooth may still lie below it.
    own = teeth[jnp.minimum(full, count - 1)]
    return _ancestors(full + (own < rest))


def multinomial(key: jax.Array, weights: jax.Array, *, num_draws: int | None = None) -> jax.Array:
    """Independent ancestors, each i with probability W_i.

    The noisiest scheme, for reference; O(N log N). Parameters, shapes and errors as in
    `systematic`, but the ancestors are not sorted, and there may be ``num_draws`` of them instead
    of ``num_particles``.

    References
    ----------
    Gordon, Salmond and Smith (1993).
    """
    _check_weights(weights)
    phase_key, draw_key = jax.random.split(key)
    cumulative, units = _cumulative_units(jax.random.bits(phase_key), weights)
    shape = weights.shape if num_draws is None else (num_draws,)
    return _search(cumulative, _uniform_units(draw_key, shape, weights.shape[0], units, cumulative))


def residual(key: jax.Array, weights: jax.Array) -> jax.Array:
    """⌊N W_i⌋ certain offspring each; the rest are drawn independently from what is left over.

    O(N log N). Parameters, shapes and errors as in `systematic`.

    References
    ----------
    Liu and Chen (1998), section 3.2.
    """
    _check_weights(weights)
    phase_key, draw_key = jax.random.split(key)
    cumulative, units = _cumulative_units(jax.random.bits(phase_key), weights)
    count = weights.shape[0]
    steps = jnp.diff(cumulative, prepend=jnp.zeros((1,), cumulative.dtype))
    certain, left = steps >> units, _prefix_sums(steps & (2**units - 1))
    # Whole offspring are left over, because the total is whole.
    num_left = left[-1] >> units
    draws = _uniform_units(draw_key, weights.shape, num_left, units, cumulative)
    is_drawn = jnp.arange(count) < num_left
    offspring = certain.at[_search(left, draws)].add(is_drawn.astype(certain.dtype))
    return _ancestors(_prefix_sums(offspring))


_SCHEMES: dict[str, Resampling] = {
    "systematic": systematic,
    "stratified": stratified,
    "residual": residual,
    "multinomial": multinomial,
}


def get_resampling(resampling: str | Resampling) -> Resampling:
    """The scheme called ``resampling``; a function ``(key, weights) -> ancestors`` stays itself.

    Raises
    ------
    ValueError
        If there is no scheme of that name.
    TypeError
        If it is neither a name nor a function.
    """
    if callable(resampling):
        return resampling
    if not isinstance(resampling, str):
        raise TypeError(
            "resampling must be a name or a function (key, weights) -> ancestors, got "
            f"{type(resampling).__name__}."
        )
    if resampling not in _SCHEMES:
        raise ValueError(
            f"resampling must be one of {', '.join(_SCHEMES)}, or a function (key, weights) -> "
            f"ancestors; got {resampling!r}."
        )
    return _SCHEMES[resampling]


def _check_weights(weights: Any) -> None:
    if not isinstance(weights, jax.Array) or weights.ndim != 1 or weights.shape[0] == 0:
        raise ValueError(
            "weights must be a JAX array of shape (num_particles,), got "
            f"{type(weights).__name__} of shape {np.shape(weights)}."
        )
    if not jnp.issubdtype(weights.dtype, jnp.floating):
        raise ValueError(f"weights must have a floating dtype, got {weights.dtype}.")


def _width(weights: jax.Array) -> Any:
    """Of random bits: as wide as the units of the weights."""
    return jnp.uint64 if weights.dtype == jnp.float64 else jnp.uint32


def _unit_bits(count: int, dtype: Any) -> int:
    """b, such that N 2^b fits into the integers and, with float64, into its mantissa."""
    total = 52 if dtype == jnp.float64 else 30
    bits = total - math.ceil(math.log2(count))
    if bits < _LEAST_BITS:
        raise ValueError(
            f"weights of dtype {dtype} resolve at most {2 ** (total - _LEAST_BITS)} particles, "
            f"got {count}; pass float64 weights."
        )
    return bits


def _cumulative_units(phase: jax.Array, weights: jax.Array) -> tuple[jax.Array, int]:
    """C, ``(num_particles,)``, nondecreasing integers that end at N 2^b; and b.

    ``phase``, ``()``, is random bits: u in units of 2⁻³².
    """
    count = weights.shape[0]
    wide = weights.dtype == jnp.float64
    real, whole = (jnp.float64, jnp.int64) if wide else (jnp.float32, jnp.int32)
    weights = jax.lax.stop_gradient(weights).astype(real)
    bits = _unit_bits(count, weights.dtype)
    total = count * 2**bits
    # 24 bits, so that float32 cannot round the dither of a weight of zero up to a whole unit.
    dither = (
        (jnp.arange(count, dtype=jnp.uint32) * _GOLDEN + phase.astype(jnp.uint32)) >> 8
    ).astype(real) * 2**-24
    # Divided first: the total over a sum of tiny weights would overflow.
    units = (weights / jnp.sum(weights) * total + dither).astype(whole)
    cumulative = _prefix_sums(units)
    # Rounding left the total off by a few thousand units at most. The share of C_i / C_N in the
    # difference changes by at most one unit where C_i changes, so that C stays nondecreasing.
    reached = cumulative[-1]
    missing = (total - reached).astype(real)
    share = cumulative.astype(real) / reached.astype(real)
    return cumulative + jnp.round(missing * share).astype(whole), bits


def _uniform_units(
    key: jax.Array, shape: tuple[int, ...], count: Any, units: int, like: jax.Array
) -> jax.Array:
    """Uniform on 0, …, count · 2^units − 1, in the dtype of ``like``; ``count`` may be traced.

    With r of 32 or 64 random bits, the leading part of the product r · count, which is computed by
    halves. Taking r modulo the range, as JAX does, would favour its lower part by some per cent.
    """
    whole, width = (jnp.uint64, 64) if like.dtype == jnp.int64 else (jnp.uint32, 32)
    half, mask = width // 2, 2 ** (width // 2) - 1
    draws, count = jax.random.bits(key, shape, whole), jnp.asarray(count, whole)
    high, low, count_high, count_low = draws >> half, draws & mask, count >> half, count & mask
    inner, outer, lowest = high * count_low, low * count_high, low * count_low
    middle = (lowest >> half) + (inner & mask) + (outer & mask)
    offspring = high * count_high + (inner >> half) + (outer >> half) + (middle >> half)
    rest = (middle << half) | (lowest & mask)
    return ((offspring << units) | (rest >> (width - units))).astype(like.dtype)


def _search(cumulative: jax.Array, draws: jax.Array) -> jax.Array:
    # The binary search; the sorting variant takes ten times as long and more.
    found = jnp.searchsorted(cumulative, draws, side="right")
    return jnp.minimum(found, cumulative.shape[0] - 1).astype(jnp.int32)


def _ancestors(cumulative_offspring: jax.Array) -> jax.Array:
    """Who owns each of the N places, from how many places are taken up to each particle.

    Place k belongs to as many-th a particle as there are particles whose places all lie below k.
    """
    count = cumulative_offspring.shape[0]
    ends = jnp.zeros((count,), jnp.int32)
    ends = ends.at[cumulative_offspring].add(1, mode="drop", indices_are_sorted=True)
    # The clip is for weights that are not numbers: no index is ever out of range.
    return jnp.minimum(_prefix_sums(ends), count - 1)


def _prefix_sums(values: jax.Array) -> jax.Array:
    """``cumsum`` of integers ``(num_particles,)`` in their dtype.

    Where there are many, in half of the time on a CPU, where JAX computes it as a tree.
    """
    if values.shape[0] < 8 * _BLOCK:
        return jnp.cumsum(values, dtype=values.dtype)
    return jax.lax.platform_dependent(
        values, cpu=_blocked_sums, default=lambda entries: jnp.cumsum(entries, dtype=entries.dtype)
    )


def _blocked_sums(values: jax.Array) -> jax.Array:
    """The sums within all blocks at once, one place after another; then what lies before each."""
    count, dtype = values.shape[0], values.dtype
    num_blocks = -(-count // _BLOCK)
    blocks = jnp.pad(values, (0, num_blocks * _BLOCK - count)).reshape(num_blocks, _BLOCK)

    def add(sums: jax.Array, place: jax.Array) -> tuple[jax.Array, jax.Array]:
        return sums + place, sums + place

    totals, within = jax.lax.scan(add, jnp.zeros((num_blocks,), dtype), blocks.T)
    before = jnp.cumsum(totals, dtype=dtype) - totals
    return (within + before).T.reshape(-1)[:count]
