"""What a benchmark is made of: contestants, what must agree before the clock starts, targets."""

from __future__ import annotations

import dataclasses
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from benchmarks.timing import Step, interleave


class ResultsDiffer(Exception):
    """Two contestants do not compute the same number, so their times cannot be compared."""


@dataclass(frozen=True)
class Comparison:
    """``ours`` against ``theirs``; ``target`` is the largest ratio wanted, None where none is."""

    ours: str
    theirs: str
    target: float | None = None


@dataclass
class Duel:
    """Contestants by name, comparisons between them, and the differences found beforehand."""

    steps: dict[str, Step]
    comparisons: list[Comparison]
    agreement: dict[str, float] = field(default_factory=dict)
    notes: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Case:
    """A name such as ``pyro/vae/16`` and the function that prepares its duel."""

    name: str
    prepare: Callable[[], Duel]
    # Compilation is timed call by call: a block of several would take minutes.
    single_calls: bool = False


def difference(found: Any, wanted: Any) -> float:
    """Largest absolute difference of two arrays over the largest entry wanted."""
    found, wanted = np.asarray(found, dtype=float), np.asarray(wanted, dtype=float)
    if found.shape != wanted.shape:
        raise ResultsDiffer(f"shapes {found.shape} and {wanted.shape}")
    scale = max(float(np.max(np.abs(wanted))), np.finfo(np.float32).tiny)
    return float(np.max(np.abs(found - wanted))) / scale


def agree(what: str, found: Any, wanted: Any, tolerance: float) -> dict[str, float]:
    """``{what: relative difference}``.

    Raises
    ------
    ResultsDiffer
        If the difference is above ``tolerance`` or not a number.
    """
    gap = difference(found, wanted)
    if not gap <= tolerance:
        raise ResultsDiffer(f"{what}: relative difference {gap:.2e}, tolerance {tolerance:.0e}")
    return {what: gap}


def run_case(case: Case, *, rounds: int, block_seconds: float) -> dict[str, Any]:
    """The case's record; a failure is a record with ``error``, not an exception."""
    record: dict[str, Any] = {"name": case.name, "error": None}
    try:
        duel = case.prepare()
        block = 0.0 if case.single_calls else block_seconds
        seconds = interleave(duel.steps, rounds=rounds, block_seconds=block)
    except Exception as error:
        record["error"] = f"{type(error).__name__}: {error}"
        record["traceback"] = traceback.format_exc(limit=-3)
        return record
    record["contestants"] = {
        name: {
            "median": _rounded(float(np.median(times))),
            "minimum": _rounded(min(times)),
            "seconds": [_rounded(value) for value in times],
        }
        for name, times in seconds.items()
    }
    record["comparisons"] = [dataclasses.asdict(comparison) for comparison in duel.comparisons]
    record["agreement"] = {name: float(f"{gap:.1e}") for name, gap in duel.agreement.items()}
    record["notes"] = duel.notes
    return record


def _rounded(seconds: float) -> float:
    return float(f"{seconds:.4g}")
