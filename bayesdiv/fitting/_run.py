"""One restart of a fit: windows of steps until its schedule says stop."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from bayesdiv.fitting._schedule import StageSchedule, WindowSummary

WINDOW = 100
"""Steps between two decisions of the schedule."""

_MAX_FAILURES = 5


@dataclass
class FitRun(ABC):
    """History and schedule of one restart; the host's subclass holds the parameters and steps them.

    ``failures`` are the messages of windows that were taken back.
    """

    schedule: StageSchedule
    losses: list[float] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)

    def advance(self, problem: Any, *, on_window: Callable[[], None]) -> None:
        """Run windows until the schedule is done; one that fails is taken back.

        The step size then falls, and after five failures the run ends as it is. At the end the
        parameters are the averages of the last windows.
        """
        self.prepare(problem)
        while not self.schedule.done:
            try:
                window = self.take_window(problem)
            except ValueError as error:
                self.failures.append(str(error))
                if len(self.failures) >= _MAX_FAILURES:
                    return
                self.schedule.step_size *= 0.3
                continue
            self.losses.extend(window.losses.tolist())
            self.schedule.update(window)
            on_window()
        if self.schedule.average is not None and self.schedule.average.size:
            self.load_average(problem, self.schedule.average)

    @abstractmethod
    def prepare(self, problem: Any) -> None:
        """Find the parameters, if this is the start of a stage."""

    @abstractmethod
    def take_window(self, problem: Any) -> WindowSummary:
        """Take ``WINDOW`` steps, or raise ValueError and leave the parameters as they were."""

    @abstractmethod
    def load_average(self, problem: Any, average: np.ndarray) -> None:
        """Set the parameters, ``(parameters,)`` in the order of the windows' averages."""

    @abstractmethod
    def begin_stage(self, schedule: StageSchedule) -> None:
        """Go on under another objective from where the last one ended."""
