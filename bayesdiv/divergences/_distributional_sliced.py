r"""The distributional sliced Wasserstein distance: transport along a learnt law of lines."""

from dataclasses import dataclass
from typing import Any, NamedTuple

from bayesdiv._array import Array, array_namespace, identity_like
from bayesdiv._control import is_traced
from bayesdiv._random import split_rng, unit_directions
from bayesdiv.divergences._inner import Ascent, ascend, start_ascent
from bayesdiv.divergences._learned_slices import LearnedSlices
from bayesdiv.divergences._two_sample import Samples, check_count, check_samples, safe_root

SMALLEST_LENGTH = 1e-12


class DistributionalSlicedState(NamedTuple):
    """The map A u + b with Adam's moments, and the base directions u that are in use."""

    ascent: Ascent
    base: Array


@dataclass(frozen=True)
class DistributionalSlicedWasserstein(LearnedSlices):
    r"""Sliced Wasserstein distance over the law of lines that tells the samples apart best.

    .. math:: \max_{A, b} \Big(E_\theta W_p^p(\theta_\#\mu, \theta_\#\nu)\Big)^{1/p}
              - \lambda\, E_{\theta, \theta'} |\theta^T \theta'|,
              \qquad \theta = \frac{A u + b}{\|A u + b\|},\quad u \sim U(S^{d-1})

    The penalty, whose mean over ``num_projections`` squared pairs includes a line with itself,
    keeps the law spread: λ → ∞ gives the sliced distance (the start, A = I and b = 0), λ → 0
    collapses to the max-sliced one. The value reported is the distance without the penalty. A
    `step` draws the base directions once and keeps them in the state, so that `evaluate` uses the
    same ones. ``x`` has shape ``(n, dim)``, ``y`` ``(m, dim)``; symmetric in them.

    Attributes
    ----------
    num_projections : int
        Lines per step.
    regularization : float
        λ, at least 0, in the units of the reported distance: with ``reduction="sum"`` the distance
        is ``n ** (1 / order)`` times larger, and so must λ be for the same law.
    num_steps, learning_rate
        See `LearnedSlices`.
    order, root, reduction
        See `SlicedDivergence`; the inner objective takes the root always.

    Raises
    ------
    ValueError
        If a setting is outside its domain, and as `TwoSampleDivergence` says of the samples.

    References
    ----------
    Nguyen, Ho, Pham, Bui (2021), Distributional sliced-Wasserstein, definition 2 and eq. 4.
    """

    num_projections: int = 64
    regularization: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_count("num_projections", self.num_projections)
        if not is_traced(self.regularization) and not self.regularization >= 0:
            raise ValueError(f"regularization must be at least 0, got {self.regularization!r}.")

    def init(self, x: Array, y: Array, *, rng: Any = None) -> DistributionalSlicedState:
        """The identity map: uniform lines."""
        samples = check_samples(x, y)
        dim = samples.x.shape[1]
        base = unit_directions(rng, self.num_projections, dim, samples.x)
        shift = array_namespace(base).zeros_like(base[0])
        return DistributionalSlicedState(start_ascent((identity_like(shift), shift)), base)

    def directions(self, state: DistributionalSlicedState) -> Array:
        """The lines in use, unit vectors of shape ``(num_projections, dim)``."""
        return _lines(state.ascent.parameters, state.base)

    def _before_steps(
        self, state: DistributionalSlicedState, samples: Samples, rng: Any
    ) -> DistributionalSlicedState:
        (source,) = split_rng(rng, samples.x, 1)
        dim = samples.x.shape[1]
        return state._replace(base=unit_directions(source, self.num_projections, dim, samples.x))

    def _climb(
        self, state: DistributionalSlicedState, samples: Samples
    ) -> tuple[DistributionalSlicedState, Array]:
        xp = array_namespace(samples.x)

        def penalised(parameters: tuple[Array, ...]) -> Array:
            lines = _lines(parameters, state.base)
            distance = safe_root(xp.mean(self._powers(samples, lines)), self.order)
            return distance - self.regularization * mean_absolute_cosine(lines)

        ascent, objective = ascend(
            penalised, state.ascent, num_steps=self.num_steps, learning_rate=self.learning_rate
        )
        return state._replace(ascent=ascent), objective

    def _value(self, state: DistributionalSlicedState, samples: Samples, rng: Any) -> Array:
        powers = self._powers(samples, self.directions(state))
        return self._report(array_namespace(powers).mean(powers))


def mean_absolute_cosine(lines: Array) -> Array:
    """Mean of |θ·θ'| over pairs of ``lines``, shape ``(lines, dim)``, each with itself too."""
    xp = array_namespace(lines)
    return xp.mean(xp.abs(lines @ lines.T))


def _lines(parameters: tuple[Array, ...], base: Array) -> Array:
    matrix, shift = parameters
    xp = array_namespace(base)
    image = base @ matrix.T + shift
    squared = xp.sum(image * image, axis=1, keepdims=True)
    return image / xp.sqrt(xp.clip(squared, SMALLEST_LENGTH**2, None))
