"""What max-sliced and distributional sliced distances share: inner steps on detached samples."""

from dataclasses import dataclass
from typing import Any

from bayesdiv._array import Array, stop_gradient
from bayesdiv._control import is_traced, run_compiled
from bayesdiv._random import split_rng
from bayesdiv.divergences._sliced import SlicedDivergence
from bayesdiv.divergences._two_sample import InnerInfo, Samples, check_count, check_samples


@dataclass(frozen=True)
class LearnedSlices(SlicedDivergence):
    """A sliced divergence whose lines are learnt; `step` runs ``num_steps`` of Adam.

    Attributes
    ----------
    num_steps : int
        Adam updates of one `step`.
    learning_rate : float
        Adam's step size.
    order, root, reduction
        See `SlicedDivergence`.
    """

    num_steps: int = 30
    learning_rate: float = 0.05

    def __post_init__(self) -> None:
        super().__post_init__()
        check_count("num_steps", self.num_steps)
        if not is_traced(self.learning_rate) and not self.learning_rate > 0:
            raise ValueError(f"learning_rate must be positive, got {self.learning_rate!r}.")

    def step(
        self,
        state: Any,
        x: Array,
        y: Array,
        *,
        x_weights: Array | None = None,
        y_weights: Array | None = None,
        rng: Any = None,
    ) -> tuple[Any, InnerInfo]:
        """``num_steps`` of Adam up the inner objective on detached samples: ``(state, info)``."""
        samples = check_samples(x, y, x_weights, y_weights)
        detached = Samples(*(None if array is None else stop_gradient(array) for array in samples))
        state = self._before_steps(state, detached, rng)
        state, objective = run_compiled(_maximise, self, detached.x, detached, state)
        return state, InnerInfo(objective)

    def _before_steps(self, state: Any, samples: Samples, rng: Any) -> Any:
        """What is drawn once for all updates of a step."""
        return state

    def _climb(self, state: Any, samples: Samples) -> tuple[Any, Array]:
        raise NotImplementedError(f"{type(self).__name__} must implement _climb.")

    def __call__(
        self,
        x: Array,
        y: Array,
        *,
        x_weights: Array | None = None,
        y_weights: Array | None = None,
        rng: Any = None,
    ) -> Array:
        """The divergence after one `step` from a fresh state."""
        check_samples(x, y, x_weights, y_weights)
        first, second, third = split_rng(rng, x, 3)
        weights = {"x_weights": x_weights, "y_weights": y_weights}
        state = self.init(x, y, rng=first)
        state, _ = self.step(state, x, y, **weights, rng=second)
        return self.evaluate(state, x, y, **weights, rng=third)


def _maximise(
    divergence: LearnedSlices, like: Array, samples: Samples, state: Any
) -> tuple[Any, Array]:
    return divergence._climb(state, samples)
