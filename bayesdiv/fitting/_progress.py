"""Progress of a fit in the terminal."""

from __future__ import annotations

from typing import Any

from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from bayesdiv.fitting._schedule import StageSchedule


class FitProgress:
    """A bar for each restart and stage; silent when not enabled.

    The bar fills as the step size falls towards the last one, since the number of steps is not
    known beforehand.
    """

    def __init__(self, *, enabled: bool) -> None:
        self._bars = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.fields[loss]}"),
            TimeElapsedColumn(),
            disable=not enabled,
        )

    def __enter__(self) -> FitProgress:
        self._bars.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._bars.stop()

    def start(self, title: str, schedule: StageSchedule) -> Any:
        """A new bar."""
        return self._bars.add_task(title, total=schedule.max_windows, loss="")

    def update(self, task: Any, schedule: StageSchedule, loss: float) -> None:
        """After a window."""
        text = f"loss {loss:.3f}, step size {schedule.step_size:.4f}"
        self._bars.update(task, completed=schedule.windows, loss=text)

    def finish(self, task: Any, schedule: StageSchedule) -> None:
        """After a run; a run that converged early is complete."""
        total = max(schedule.windows, 1) if schedule.converged else schedule.max_windows
        self._bars.update(task, total=total, completed=schedule.windows)
