"""Figures of the example of speech to electroglottograph."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from speech_egg_experiment import Example, Outcome
from speech_egg_problem import RATE

_SECONDS_SHOWN = 0.06
_TWO_SIDED_90 = 1.645


def draw_waveform(example: Example, path: Path) -> None:
    """Speech, true and drawn EGG around the middle of what is voiced, and instants with bands."""
    each, drawn = example.utterance, example.drawn
    middle = _middle(drawn.closures, len(each.speech))
    half = round(0.5 * _SECONDS_SHOWN * RATE)
    start, end = max(middle - half, 0), min(middle + half, len(each.speech))
    time = np.arange(start, end) / RATE * 1000.0
    figure = Figure(figsize=(9.0, 4.5), layout="constrained")
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=(1, 2))
    upper.plot(time, each.speech[start:end], color="0.3", linewidth=0.8)
    upper.set_ylabel("speech")
    lower.plot(time, each.egg[start:end], color="0.6", label="EGG")
    lower.plot(time, drawn.egg[start:end], color="C3", label="drawn from speech")
    _mark_instants(lower, drawn.closures, drawn.deviation, start, end)
    lower.set(xlabel="ms", ylabel="EGG, more contact upward")
    lower.legend(fontsize=8, loc="upper right")
    figure.savefig(path, dpi=90)


def draw_recording(
    speech: np.ndarray,
    egg: np.ndarray,
    closures: np.ndarray,
    deviation: np.ndarray | None,
    path: Path,
) -> None:
    """What was drawn for a recording that has no EGG of its own."""
    middle = _middle(closures, len(speech))
    half = round(0.5 * _SECONDS_SHOWN * RATE)
    start, end = max(middle - half, 0), min(middle + half, len(speech))
    time = np.arange(start, end) / RATE * 1000.0
    figure = Figure(figsize=(9.0, 4.5), layout="constrained")
    whole, upper, lower = figure.subplots(3, 1)
    whole.plot(np.arange(len(speech)) / RATE, speech, color="0.3", linewidth=0.5)
    whole.plot(closures / RATE, np.full(len(closures), 1.05), "|", color="C3", markersize=4)
    whole.set(xlabel="s", ylabel="speech")
    upper.plot(time, speech[start:end], color="0.3", linewidth=0.8)
    upper.set_ylabel("speech")
    lower.plot(time, egg[start:end], color="C3")
    _mark_instants(lower, closures, deviation, start, end)
    lower.set(xlabel="ms", ylabel="drawn EGG")
    figure.savefig(path, dpi=90)


def draw_timing(outcomes: Sequence[Outcome], path: Path) -> None:
    """Histograms of the errors of closures, less their mean, a panel a condition."""
    conditions = list(dict.fromkeys(each.condition for each in outcomes))
    figure = Figure(figsize=(4.0 * len(conditions), 3.0), layout="constrained")
    edges = np.linspace(-1.0, 1.0, 81)
    panels: Any = figure.subplots(1, len(conditions), squeeze=False, sharey=True)[0]
    for axis, condition in zip(panels, conditions, strict=True):
        rows = dict.fromkeys(
            each.row
            for each in outcomes
            if each.condition == condition and each.errors_ms is not None
        )
        for row in rows:
            errors = [
                each.errors_ms - each.errors_ms.mean()
                for each in outcomes
                if (each.condition, each.row) == (condition, row)
                and each.errors_ms is not None
                and len(each.errors_ms)
            ]
            if errors:
                axis.hist(np.concatenate(errors), edges, density=True, histtype="step", label=row)
        axis.set(title=condition, xlabel="error of closures less its mean, ms")
    panels[0].legend(fontsize=6)
    figure.savefig(path, dpi=90)


def _mark_instants(
    axis: Any, closures: np.ndarray, deviation: np.ndarray | None, start: int, end: int
) -> None:
    for index in np.flatnonzero((closures >= start) & (closures < end)):
        place = closures[index] / RATE * 1000.0
        axis.axvline(place, color="C0", linewidth=0.8)
        if deviation is not None and np.isfinite(deviation[index]):
            half = _TWO_SIDED_90 * deviation[index] / RATE * 1000.0
            axis.axvspan(place - half, place + half, color="C0", alpha=0.25, linewidth=0)


def _middle(closures: np.ndarray, num_samples: int) -> int:
    """Where most closures are near."""
    return int(np.median(closures)) if len(closures) else num_samples // 2
