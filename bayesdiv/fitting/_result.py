"""What the results of both hosts' ``fit`` have in common: stages, verdict, files."""

from __future__ import annotations

import pickle
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import numpy as np

from bayesdiv.fitting._progress import FitProgress
from bayesdiv.fitting._run import WINDOW, FitRun
from bayesdiv.fitting._stages import Stage, name_of, next_schedule
from bayesdiv.fitting._start import Start
from bayesdiv.fitting._verdict import Verdict, judge
from bayesdiv.objectives import pareto_k

_NUM_JUDGED = 10_000


@dataclass
class BaseFitResult(ABC):
    """Restarts of a fit, best first, the stage that they have reached, and a verdict."""

    model: Callable
    args: tuple
    kwargs: dict[str, Any]
    guide_name: str
    stages: list[Stage]
    max_steps: int
    runs: list[Any] = field(default_factory=list)
    starts: list[Start] = field(default_factory=list)
    stage: int = 0
    verdict: Verdict | None = None
    checkpoint: Path | None = None

    @property
    def losses(self) -> list[np.ndarray]:
        """The loss at every step of each restart."""
        return [np.asarray(run.losses) for run in self.runs]

    @property
    def converged(self) -> bool:
        """Whether every restart met the stopping rule of its last stage."""
        return self.stage == len(self.stages) and all(run.schedule.converged for run in self.runs)

    def __str__(self) -> str:
        name = name_of(self.stages[-1][0])
        count = len(self.runs)
        restarts = f"{count} restart{'s' if count > 1 else ''}"
        return f"{self.guide_name} guide, {name}, {restarts}: {self.verdict}"

    @abstractmethod
    def to_arviz(self, *, num_draws: int = 1000, resample: bool = False, **options: Any) -> Any:
        """Draws as an ArviZ object, restarts as chains; :func:`bayesdiv.diagnostics.to_arviz`."""

    def psis_resample(self, *, num_draws: int = 1000, **options: Any) -> Any:
        """Draws corrected by Pareto-smoothed importance resampling, as an ArviZ object.

        Good where the verdict's Pareto k is below 0.7.
        """
        return self.to_arviz(num_draws=num_draws, resample=True, **options)

    def resume(self, max_steps: int | None = None, *, progress_bar: bool = True) -> Self:
        """Go on where the fit stopped, and return the same object.

        A fit that was interrupted takes the steps that it would have taken. One that ran out of
        steps gets ``max_steps`` more for each restart and stage, by default as many as at first.
        """
        interrupted = any(not run.schedule.done for run in self.runs)
        if not self.converged and (max_steps is not None or not interrupted):
            extra = (self.max_steps if max_steps is None else max_steps) // WINDOW
            for run in self.runs:
                run.failures.clear()
                if not run.schedule.converged:
                    reached = run.schedule.windows + extra
                    run.schedule.max_windows = max(run.schedule.max_windows, reached)
        with self._scope():
            self._advance(progress_bar=progress_bar)
        return self

    def save(self, path: str | Path) -> None:
        """Pickle to ``path``, whole or not at all.

        Raises
        ------
        TypeError
            The model, the guide or an argument does not pickle: a lambda, or a function defined
            inside another one.
        """
        path = Path(path)
        try:
            content = pickle.dumps(self)
        except (pickle.PicklingError, AttributeError, TypeError) as error:
            raise TypeError(
                f"the fit does not pickle ({error}); define the model and the guide at the top "
                "level of a module."
            ) from error
        temporary = path.with_suffix(path.suffix + ".part")
        temporary.write_bytes(content)
        temporary.replace(path)

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """What :meth:`save` or ``checkpoint`` wrote. Load only files that you trust.

        Raises
        ------
        TypeError
            The file holds something else.
        """
        loaded = pickle.loads(Path(path).read_bytes())
        if not isinstance(loaded, cls):
            raise TypeError(
                f"{path} holds a {type(loaded).__module__}.{type(loaded).__name__}, expected a "
                f"{cls.__module__}.{cls.__name__}."
            )
        return loaded

    def _advance(self, *, progress_bar: bool) -> None:
        """Every remaining stage, one restart after the other, and then the verdict."""
        with FitProgress(enabled=progress_bar) as progress:
            while self.stage < len(self.stages):
                title = f"{self.guide_name}, {name_of(self.stages[self.stage][0])}"
                problem = self._problem(self.stage)
                for index, run in enumerate(self.runs):
                    self._advance_run(progress, problem, run, f"{title} ({index + 1})")
                if not all(run.schedule.converged for run in self.runs):
                    break
                self.stage += 1
                if self.stage < len(self.stages):
                    for run in self.runs:
                        run.begin_stage(next_schedule(self.max_steps))
        self._judge()
        if self.checkpoint is not None:
            self.save(self.checkpoint)

    def _advance_run(self, progress: FitProgress, problem: Any, run: FitRun, title: str) -> None:
        task = progress.start(title, run.schedule)

        def after_window() -> None:
            progress.update(task, run.schedule, run.losses[-1])
            if self.checkpoint is not None:
                self.save(self.checkpoint)

        run.advance(problem, on_window=after_window)
        progress.finish(task, run.schedule)

    def _judge(self) -> None:
        weights = [np.asarray(self._log_weights(run, _NUM_JUDGED)) for run in self.runs]
        order = sorted(range(len(weights)), key=lambda index: -_mean_or_worst(weights[index]))
        self.runs = [self.runs[index] for index in order]
        best = weights[order[0]]
        usable = bool(np.isfinite(best).any()) and not np.isnan(best).any()
        peak = np.max(best) if usable else 0.0
        mass = np.exp(best - peak)
        self.verdict = judge(
            converged=self.converged,
            pareto_k=float(pareto_k(best)) if usable else np.inf,
            ess_fraction=float(mass.mean() ** 2 / np.mean(mass**2)) if usable else 0.0,
            agreement=self._agreement(),
            log_evidence=float(peak + np.log(mass.mean())) if usable else np.nan,
            guide=self.guide_name,
            objective=name_of(self.stages[-1][0]),
            failures=tuple(dict.fromkeys(line for run in self.runs for line in run.failures)),
        )

    @contextmanager
    def _scope(self) -> Iterator[None]:
        """The precision and random state that everything is computed in."""
        yield

    @abstractmethod
    def _problem(self, stage: int) -> Any:
        """What :meth:`FitRun.advance` needs to take steps of ``stage``."""

    @abstractmethod
    def _log_weights(self, run: Any, num_particles: int) -> Any:
        """log p̃ − log q of draws from ``run``'s guide, ``(num_particles,)``."""

    @abstractmethod
    def _agreement(self) -> float:
        """Largest gap between restarts' means, in posterior standard deviations, or NaN."""


def _mean_or_worst(log_weight: np.ndarray) -> float:
    mean = float(np.mean(log_weight))
    return mean if np.isfinite(mean) else -np.inf
