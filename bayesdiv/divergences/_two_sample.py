"""The contract of divergences between two samples, and what every member checks first."""

import math
from dataclasses import dataclass
from typing import Any, NamedTuple

from bayesdiv._array import (
    Array,
    array_namespace,
    is_jax_array,
    is_torch_array,
    stop_gradient,
)
from bayesdiv._control import is_traced

WEIGHT_TOLERANCE = 1e-4


class InnerInfo(NamedTuple):
    """What one inner maximisation reports: the objective it has reached."""

    objective: Array


class Samples(NamedTuple):
    """Checked samples in the dtype of the computation; weights are ``None`` where uniform."""

    x: Array
    y: Array
    x_weights: Array | None
    y_weights: Array | None


@dataclass(frozen=True)
class TwoSampleDivergence:
    r"""A divergence between weighted samples ``x``, shape ``(n, dim)``, and ``y``, ``(m, dim)``.

    ``x_weights``, shape ``(n,)``, and ``y_weights``, ``(m,)``, are non-negative and sum to one;
    ``None`` is uniform. ``rng`` is a ``torch.Generator`` or a seed for torch arrays (``None``:
    torch's global generator), and a JAX key for JAX arrays; members without randomness ignore it.
    Members with inner parameters (a learnt projection) keep them in ``state``: ``init`` makes it,
    ``step`` maximises over it on detached samples, ``evaluate`` uses it with gradients into the
    samples. Calling the object does all three.

    A member implements ``_value``; the samples reach it checked, and half precision as float32.

    Raises
    ------
    TypeError
        If a sample is no torch or JAX array, or the two belong to different libraries.
    ValueError
        If shapes, dtypes or weights do not fit, or a sample has NaN or infinity (looked at outside
        JAX transformations only).
    """

    def init(self, x: Array, y: Array, *, rng: Any = None) -> Any:
        """Inner state before any step; ``None`` where there is nothing to learn."""
        return None

    def step(
        self,
        state: Any,
        x: Array,
        y: Array,
        *,
        x_weights: Array | None = None,
        y_weights: Array | None = None,
        rng: Any = None,
    ) -> tuple[Any, InnerInfo | None]:
        """One inner maximisation on detached samples: ``(state, info)``."""
        return state, None

    def evaluate(
        self,
        state: Any,
        x: Array,
        y: Array,
        *,
        x_weights: Array | None = None,
        y_weights: Array | None = None,
        rng: Any = None,
    ) -> Array:
        """The divergence, a scalar differentiable in ``x`` and ``y``, with ``state`` held fixed."""
        samples = check_samples(x, y, x_weights, y_weights)
        value = self._value(state, samples, rng)
        return value if value.dtype == x.dtype else array_namespace(x).astype(value, x.dtype)

    def _value(self, state: Any, samples: Samples, rng: Any) -> Array:
        raise NotImplementedError(f"{type(self).__name__} must implement _value or evaluate.")

    def __call__(
        self,
        x: Array,
        y: Array,
        *,
        x_weights: Array | None = None,
        y_weights: Array | None = None,
        rng: Any = None,
    ) -> Array:
        """The divergence from a fresh inner state."""
        state = self.init(x, y, rng=rng)
        return self.evaluate(state, x, y, x_weights=x_weights, y_weights=y_weights, rng=rng)


def check_samples(
    x: Array, y: Array, x_weights: Array | None = None, y_weights: Array | None = None
) -> Samples:
    """Check what every member needs of its samples; raises as `TwoSampleDivergence` says."""
    for name, sample in (("x", x), ("y", y)):
        if not (is_torch_array(sample) or is_jax_array(sample)):
            raise TypeError(
                f"{name} must be a torch tensor or a JAX array, got {type(sample).__name__}; "
                "convert it with torch.as_tensor or jax.numpy.asarray."
            )
        if sample.ndim != 2 or sample.shape[0] == 0 or sample.shape[1] == 0:
            raise ValueError(
                f"{name} must have shape (number of samples, dim), got {tuple(sample.shape)}; "
                "reshape a one-dimensional sample to (number of samples, 1)."
            )
        if not array_namespace(sample).isdtype(sample.dtype, "real floating"):
            raise ValueError(f"{name} must have a floating dtype, got {sample.dtype}.")
    if is_torch_array(x) != is_torch_array(y):
        raise TypeError(
            f"x and y must belong to one library, got {type(x).__module__}.{type(x).__name__} and "
            f"{type(y).__module__}.{type(y).__name__}; convert one of them."
        )
    if x.shape[1] != y.shape[1]:
        raise ValueError(
            f"x and y must have the same dim, got shapes {tuple(x.shape)} and {tuple(y.shape)}."
        )
    if x.dtype != y.dtype:
        raise ValueError(
            f"x and y must have the same dtype, got {x.dtype} and {y.dtype}; cast one."
        )
    x, y = _full_precision(x), _full_precision(y)
    for name, sample in (("x", x), ("y", y)):
        _check_finite(name, sample)
    return Samples(
        x, y, check_weights("x_weights", x_weights, x), check_weights("y_weights", y_weights, y)
    )


def _full_precision(sample: Array) -> Array:
    xp = array_namespace(sample)
    return xp.astype(sample, xp.float32) if xp.finfo(sample.dtype).bits < 32 else sample


def _check_finite(name: str, sample: Array) -> None:
    xp = array_namespace(sample)
    # A finite sum proves finite entries in one reduction; an infinite one may be mere overflow.
    # Under a transformation it is traced even where the sample is a constant.
    total = xp.sum(sample)
    if is_traced(total) or bool(xp.isfinite(total)) or bool(xp.all(xp.isfinite(sample))):
        return
    row = int(xp.argmax(xp.astype(xp.any(~xp.isfinite(sample), axis=1), xp.int32)))
    raise ValueError(f"{name} must be finite, got NaN or infinity first in row {row}.")


def check_weights(name: str, weights: Array | None, sample: Array) -> Array | None:
    if weights is None:
        return None
    same_library = is_torch_array(weights) if is_torch_array(sample) else is_jax_array(weights)
    if not same_library:
        raise TypeError(
            f"{name} must be an array of its sample's library, got {type(weights).__name__}."
        )
    if tuple(weights.shape) != (sample.shape[0],):
        raise ValueError(
            f"{name} must have shape ({sample.shape[0]},), one weight a row of its sample, "
            f"got {tuple(weights.shape)}."
        )
    xp = array_namespace(sample)
    weights = xp.astype(weights, sample.dtype)
    lowest, total = stop_gradient(xp.min(weights)), stop_gradient(xp.sum(weights))
    if is_traced(total):
        return weights
    lowest, total = float(lowest), float(total)
    if not lowest >= 0:
        raise ValueError(f"{name} must not be negative or NaN, got minimum {lowest}.")
    if not abs(total - 1.0) <= WEIGHT_TOLERANCE:
        raise ValueError(f"{name} must sum to 1, got {total}; divide them by their sum.")
    return weights


def uniform_weights(weights: Array | None, sample: Array) -> Array:
    """``weights``, or 1/n each where they are ``None``."""
    if weights is not None:
        return weights
    column = sample[:, 0]
    return array_namespace(sample).full_like(column, 1.0 / column.shape[0])


def safe_root(value: Array, order: float) -> Array:
    """``value ** (1 / order)`` for ``value >= 0``, with slope 0 instead of infinity at 0."""
    if order == 1:
        return value
    xp = array_namespace(value)
    positive = value > 0
    filled = xp.where(positive, value, xp.ones_like(value))
    return xp.where(positive, filled ** (1.0 / order), xp.zeros_like(value))


def sample_count(samples: Samples) -> int:
    """The factor of ``reduction="sum"``: n, which both samples share, unweighted."""
    counts = samples.x.shape[0], samples.y.shape[0]
    if counts[0] != counts[1] or samples.x_weights is not None or samples.y_weights is not None:
        raise ValueError(
            "reduction='sum' needs unweighted samples of equal size, got sizes "
            f"{counts[0]} and {counts[1]}; use reduction='mean'."
        )
    return counts[0]


def check_choice(name: str, value: Any, known: tuple[str, ...]) -> None:
    """Refuse a name outside ``known``, listing them."""
    if value not in known:
        choices = ", ".join(repr(choice) for choice in known)
        raise ValueError(f"{name} must be one of {choices}, got {value!r}.")


def check_positive(name: str, value: Any, *, allow_infinity: bool = False) -> None:
    """Refuse a number that is not positive (and finite); traced values are taken on trust."""
    if is_traced(value):
        return
    number = float(value)
    if not number > 0 or (math.isinf(number) and not allow_infinity):
        kind = "positive" if allow_infinity else "positive and finite"
        raise ValueError(f"{name} must be {kind}, got {value!r}.")


def check_count(name: str, value: Any) -> None:
    """Refuse anything but a whole number of at least one."""
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ValueError(f"{name} must be an integer of at least 1, got {value!r}.")


def check_order(order: Any) -> None:
    """Refuse a Wasserstein order below 1, where the cost is not convex."""
    if not (math.isfinite(order) and order >= 1):
        raise ValueError(f"order must be finite and at least 1, got {order!r}; 1 and 2 are usual.")
