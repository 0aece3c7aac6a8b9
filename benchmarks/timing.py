"""Seconds a call, contestants taking turns."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

Step = Callable[[], Any]


def interleave(
    steps: Mapping[str, Step], *, rounds: int, block_seconds: float
) -> dict[str, list[float]]:
    """Seconds a call of each step, one number a round.

    A round runs each step for about ``block_seconds``, at least once (once if 0). Whoever begins a
    round ends the next, so that neither load nor temperature favours one of them; a ratio of two
    steps is therefore taken within a round, see :func:`benchmarks.results.ratio`.
    """
    if rounds < 1:
        raise ValueError(f"rounds must be at least 1, got {rounds!r}.")
    calls = {name: _calls_in(step, block_seconds) for name, step in steps.items()}
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    order = list(steps)
    for turn in range(rounds):
        for name in order if turn % 2 == 0 else reversed(order):
            seconds[name].append(_seconds(steps[name], calls[name]))
    return seconds


def _seconds(step: Step, calls: int) -> float:
    start = time.perf_counter()
    for _ in range(calls):
        step()
    return (time.perf_counter() - start) / calls


def _calls_in(step: Step, block_seconds: float) -> int:
    # The first calls allocate, guess plates and compile.
    if block_seconds == 0.0:
        step()
        return 1
    _seconds(step, 2)
    return max(1, min(2000, int(block_seconds / max(_seconds(step, 1), 1e-7))))
