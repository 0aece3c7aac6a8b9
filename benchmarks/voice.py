"""Simulated voices beside the clock."""

from __future__ import annotations

import functools
import time

from bayesdiv.data import VoiceSettings, simulate_voices
from bayesdiv.diagnostics import (
    average_epoch_metrics,
    detect_glottal_instants,
    epoch_metrics,
)
from benchmarks.cases import Case, Comparison, Duel, ResultsDiffer

_TIMES_REAL = 30.0


def cases(*, quick: bool) -> list[Case]:
    """Utterances of 2.5 seconds at 16 kHz."""
    count = 1 if quick else 8
    prepare = functools.partial(prepare_simulator, count)
    return [Case(f"torch/voice/simulate/{count}x2.5s", prepare)]


def prepare_simulator(count: int) -> Duel:
    """Utterances, and a wait of a thirtieth of their length."""
    settings = VoiceSettings()
    start = time.process_time()
    voices = simulate_voices(0, count, settings)
    processor = time.process_time() - start
    scores = []
    for voice in voices:
        found = detect_glottal_instants(voice.egg, voice.rate)
        scores.append(epoch_metrics(found.closures, voice.closures, voice.rate))
    missed = 1.0 - average_epoch_metrics(scores).identification_rate
    if missed > 0.05:
        raise ResultsDiffer(f"{missed:.1%} of closures are not in the EGG")
    seconds = count * settings.seconds
    contestants = {
        "simulator": lambda: simulate_voices(0, count, settings),
        "real time / 30": lambda: time.sleep(seconds / _TIMES_REAL),
    }
    notes = {"audio": f"{seconds:g} s, {seconds / processor:.0f} times real time on one core"}
    agreement = {"share of closures not found in the EGG": missed}
    return Duel(contestants, [Comparison("simulator", "real time / 30", 1.0)], agreement, notes)
