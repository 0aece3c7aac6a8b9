"""The contract of divergences between two samples."""

from dataclasses import dataclass
from typing import Any, NamedTuple

from bayesdiv._array import Array


class InnerInfo(NamedTuple):
    """What one inner maximisation step reports."""

    objective: Array


@dataclass(frozen=True)
class TwoSampleDivergence:
    r"""A divergence between two weighted samples ``x``, shape ``(n, dim)``, and ``y``, ``(m, dim)``.

    ``rng`` is a ``torch.Generator`` or a seed for torch arrays (``None``: torch's global generator),
    and a JAX key for JAX arrays; members without randomness ignore it. Members with inner parameters
    (a learnt projection) keep them in ``state``: ``init`` makes it, ``step`` improves it on detached
    samples, ``evaluate`` uses it with gradients into the samples. Calling the object does all three.
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
        raise NotImplementedError

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
