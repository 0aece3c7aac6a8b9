r"""The max-sliced Wasserstein distance: transport along the worst line."""

from dataclasses import dataclass
from typing import Any, NamedTuple

from bayesdiv._array import Array, array_namespace, stop_gradient
from bayesdiv._random import unit_directions
from bayesdiv.divergences._inner import Ascent, ascend, start_ascent
from bayesdiv.divergences._learned_slices import LearnedSlices
from bayesdiv.divergences._two_sample import Samples, check_count, check_samples


class MaxSlicedState(NamedTuple):
    """The candidate lines, of any length, on their way up."""

    ascent: Ascent


@dataclass(frozen=True)
class MaxSlicedWasserstein(LearnedSlices):
    r"""Wasserstein distance of order p along the line where it is largest.

    .. math:: \max_{\theta \in S^{d-1}} W_p(\theta_\#\mu, \theta_\#\nu)

    The maximum is not concave in the direction, so ``num_starts`` lines climb side by side; the
    first starts along the difference of means, the rest at random. The value is that of the best
    line and is at most the true maximum; its gradient holds the line fixed (envelope theorem).
    ``x`` has shape ``(n, dim)``, ``y`` ``(m, dim)``; symmetric in them.

    Attributes
    ----------
    num_starts : int
        Lines that climb.
    num_steps, learning_rate
        See `LearnedSlices`.
    order, root, reduction
        See `SlicedDivergence`.

    Raises
    ------
    ValueError
        If a setting is outside its domain, and as `TwoSampleDivergence` says of the samples.

    References
    ----------
    Deshpande et al. (2019), Max-sliced Wasserstein distance and its use for GANs, eq. 6.
    """

    num_starts: int = 8

    def __post_init__(self) -> None:
        super().__post_init__()
        check_count("num_starts", self.num_starts)

    def init(self, x: Array, y: Array, *, rng: Any = None) -> MaxSlicedState:
        """Lines to start from: the difference of means, then random ones."""
        samples = check_samples(x, y)
        xp = array_namespace(samples.x)
        lines = unit_directions(rng, self.num_starts, samples.x.shape[1], samples.x)
        shift = stop_gradient(xp.mean(samples.x, axis=0) - xp.mean(samples.y, axis=0))
        length = xp.sqrt(xp.sum(shift * shift))
        shifted = length > 0
        first = xp.where(shifted, shift / xp.where(shifted, length, xp.ones_like(length)), lines[0])
        return MaxSlicedState(start_ascent((xp.concat([first[None, :], lines[1:]], axis=0),)))

    def directions(self, state: MaxSlicedState) -> Array:
        """The candidate lines, unit vectors of shape ``(num_starts, dim)``."""
        return _unit(state.ascent.parameters[0])

    def _climb(self, state: MaxSlicedState, samples: Samples) -> tuple[MaxSlicedState, Array]:
        xp = array_namespace(samples.x)

        def total(parameters: tuple[Array, ...]) -> Array:
            # Lines do not share parameters, so that their sum climbs each one by itself.
            return xp.sum(self._powers(samples, _unit(parameters[0])))

        ascent, _ = ascend(
            total, state.ascent, num_steps=self.num_steps, learning_rate=self.learning_rate
        )
        state = MaxSlicedState(ascent)
        return state, self._value(state, samples, None)

    def _value(self, state: MaxSlicedState, samples: Samples, rng: Any) -> Array:
        powers = self._powers(samples, self.directions(state))
        return self._report(array_namespace(powers).max(powers))


def _unit(lines: Array) -> Array:
    xp = array_namespace(lines)
    return lines / xp.sqrt(xp.sum(lines * lines, axis=1, keepdims=True))
