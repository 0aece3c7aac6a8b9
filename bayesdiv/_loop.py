"""What training loops share in either library: results, early stopping, progress, safe files."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn


@dataclass(frozen=True)
class TrainingResult:
    """How a run went.

    Attributes
    ----------
    history
        Metrics by name, one number a step, ``(num_steps,)``, those before an interruption included.
    num_steps
        Steps behind the state that the routine is left in.
    stopped
        "completed", "early_stopping" or "not_finite".
    seconds
        Wall clock of this call; a run that was resumed took longer.
    """

    history: dict[str, np.ndarray]
    num_steps: int
    stopped: str
    seconds: float


@dataclass(frozen=True)
class EarlyStopping:
    """Stop when the mean of a metric over a window of steps no longer falls.

    The run stops once the best window of the last ``patience`` steps is not below the best window
    before them by more than ``minimum_improvement``. A window is the ``log_every`` steps of the
    loop. The rule looks at the history only, so that a resumed run stops where an uninterrupted
    one does.

    Attributes
    ----------
    metric : str
        Which metric, lower is better.
    patience : int
        Steps without improvement, rounded up to whole windows.
    minimum_improvement : float
        What counts as improvement, in units of the metric, at least 0.

    Raises
    ------
    ValueError
        If a setting is outside its domain, or the routine reports no such metric.
    """

    metric: str = "loss"
    patience: int = 200
    minimum_improvement: float = 0.0

    def __post_init__(self) -> None:
        check_step_count("patience", self.patience)
        if not 0.0 <= self.minimum_improvement < math.inf:
            raise ValueError(
                "minimum_improvement must be finite and at least 0, got "
                f"{self.minimum_improvement!r}; metrics are minimised."
            )

    def should_stop(self, history: Mapping[str, np.ndarray], log_every: int) -> bool:
        """Whether to stop after the steps of ``history``."""
        if self.metric not in history:
            raise ValueError(
                f"metric must be one that the routine reports, {', '.join(sorted(history))}; got "
                f"{self.metric!r}."
            )
        values = np.asarray(history[self.metric])
        num_windows, patience = len(values) // log_every, -(-self.patience // log_every)
        if num_windows <= patience:
            return False
        means = values[: num_windows * log_every].reshape(num_windows, log_every).mean(1)
        return bool(means[-patience:].min() >= means[:-patience].min() - self.minimum_improvement)


class LoopProgress:
    """One bar for a run, with the latest metrics beside it; silent when not enabled."""

    def __init__(self, title: str, total: int, *, enabled: bool) -> None:
        self._bars = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[metrics]}"),
            TimeElapsedColumn(),
            disable=not enabled,
        )
        self._task = self._bars.add_task(title, total=total, metrics="")

    def __enter__(self) -> LoopProgress:
        self._bars.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._bars.stop()

    def update(self, step: int, history: Mapping[str, np.ndarray]) -> None:
        """After ``step`` steps; shows the last value of each metric."""
        text = ", ".join(f"{name} {values[-1]:.4g}" for name, values in history.items())
        self._bars.update(self._task, completed=step, metrics=text)


def write_atomically(path: str | os.PathLike[str], write: Callable[[BinaryIO], Any]) -> None:
    """Let ``write`` fill a file that appears at ``path`` whole or not at all."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with unfinished.open("wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)


def check_step_count(name: str, value: Any, least: int = 1) -> None:
    """Refuse anything but a whole number of at least ``least``."""
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise ValueError(f"{name} must be an integer of at least {least}, got {value!r}.")
