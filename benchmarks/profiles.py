"""Where a contestant's time goes, function by function."""

from __future__ import annotations

import cProfile
import pstats
import time

from benchmarks.results import FRAMEWORKS
from benchmarks.timing import Step
from benchmarks.worker import cases_of


def profile(name: str, *, quick: bool = False, seconds: float = 2.0, lines: int = 18) -> None:
    """Print a profile of each contestant of the case called ``name``.

    Raises
    ------
    ValueError
        If no case has that name; the message lists those that exist.
    """
    framework = FRAMEWORKS[0] if name.startswith(("pyro/", "torch/")) else FRAMEWORKS[1]
    cases = {case.name: case for case in cases_of(framework, quick=quick)}
    if name not in cases:
        raise ValueError(f"no case is called {name!r}; known: {', '.join(cases)}.")
    for contestant, step in cases[name].prepare().steps.items():
        print(f"\n=== {name}: {contestant}")
        _profile(step, seconds, lines)


def _profile(step: Step, seconds: float, lines: int) -> None:
    step()
    profiler = cProfile.Profile()
    calls, start = 0, time.perf_counter()
    profiler.enable()
    while time.perf_counter() - start < seconds:
        step()
        calls += 1
    profiler.disable()
    print(f"{calls} calls")
    pstats.Stats(profiler).sort_stats("cumulative").print_stats(lines)
