"""When to lower the step size and when to stop, without tuning.

Steps come in windows. While the mean loss of a window is below that of the one before by more than
its standard error allows, the step size stays; otherwise it falls. The parameters of a window are
averaged. In whitened coordinates they are measured in posterior standard deviations, so that the
change of the average between two step sizes tells how far the fit still is from its end. Parameters
without such a meaning (a network's weights) are not looked at: then the step size goes all the way
down.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np


class WindowSummary(NamedTuple):
    """A window's losses, ``(steps,)``, and the averages of its parameters, ``(parameters,)``.

    ``whitened`` says whether these are in posterior standard deviations.
    """

    losses: np.ndarray
    average: np.ndarray
    whitened: bool


@dataclass
class StageSchedule:
    """Step sizes from ``initial`` down by ``factor`` at each plateau, until averages agree.

    Parameters
    ----------
    initial, factor, smallest
        Step sizes of the optimiser, in posterior standard deviations.
    tolerance
        Largest change of an averaged parameter between step sizes at convergence.
    max_windows
        Where to give up.
    """

    initial: float = 0.05
    factor: float = 0.3
    smallest: float = 1e-3
    tolerance: float = 0.02
    max_windows: int = 100
    step_size: float = field(init=False)
    windows: int = field(default=0, init=False)
    converged: bool = field(default=False, init=False)
    change: float = field(default=float("inf"), init=False)
    average: np.ndarray | None = field(default=None, init=False)
    _previous: WindowSummary | None = field(default=None, init=False)
    _stage_average: np.ndarray | None = field(default=None, init=False)

    def __post_init__(self) -> None:
        self.step_size = self.initial

    @property
    def done(self) -> bool:
        """Whether to stop, converged or not."""
        return self.converged or self.windows >= self.max_windows

    def update(self, window: WindowSummary) -> None:
        """Take in a finished window and set ``step_size`` for the next one."""
        self.windows += 1
        self.average = window.average
        previous, self._previous = self._previous, window
        if previous is None or _still_falling(previous.losses, window.losses):
            return
        settled = 0.5 * (previous.average + window.average)
        if self._stage_average is not None:
            self.change = float(np.max(np.abs(settled - self._stage_average), initial=0.0))
        self._stage_average = settled
        self.average = settled
        small = self.initial * self.factor if window.whitened else self.smallest
        if self.step_size <= small and (self.change < self.tolerance or not window.whitened):
            self.converged = True
            return
        if self.step_size > self.smallest:
            self.step_size = max(self.step_size * self.factor, self.smallest)
        self._previous = None


def _still_falling(before: np.ndarray, after: np.ndarray) -> bool:
    """Whether the mean loss fell by more than two standard errors of the difference.

    Losses of neighbouring steps are correlated; means of ten blocks are nearly not.
    """
    fall = np.mean(before) - np.mean(after)
    return bool(fall > 2.0 * np.hypot(_standard_error(before), _standard_error(after)))


def _standard_error(losses: np.ndarray) -> float:
    blocks = np.array([np.mean(block) for block in np.array_split(losses, 10)])
    return float(np.std(blocks, ddof=1) / np.sqrt(len(blocks)))
