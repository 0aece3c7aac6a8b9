"""Simulated speakers, windows of them, and what scores an EGG that was drawn from speech."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch

from bayesdiv.data.voice import Utterance, VoiceSettings, simulate_voices
from bayesdiv.data.windows import overlap_add, pad_for_windows, strided_windows
from bayesdiv.diagnostics.epochs import (
    average_epoch_metrics,
    detect_glottal_instants,
    epoch_metrics,
    glottal_quotients,
    instant_spread,
    timing_calibration,
    zero_frequency_epochs,
)

RATE, WINDOW = 16_000, 200
# Half of the shortest period that counts, in samples: nearer instants are of one closure.
REACH = 0.5 * RATE / 500.0
# Of the windows of one draw: each sample is in three of them.
_DRAWN_STRIDE = WINDOW // 3
# Seeds of the parts of a corpus, apart from each other whatever the seed of the run.
_TRAINING, _VALIDATION, _TEST, _PRIOR = 0, 1, 2, 3


@dataclass(frozen=True)
class Condition:
    """Who speaks in training and in the test, and how noisy; the speech's delay in seconds."""

    description: str
    training: tuple[str, ...]
    test: tuple[str, ...]
    snr: tuple[float, ...]
    share: float = 1.0
    other_prior: bool = False
    delay: tuple[float, float] = (0.00075, 0.00075)


CONDITIONS = {
    "clean": Condition("all qualities, 40 dB", ("any",), ("any",), (40.0,)),
    "noise": Condition("all qualities, white noise at 0 dB", ("any",), ("any",), (0.0,)),
    "shift": Condition(
        "few modal voices in training, breathy and pressed in the test, 10 dB; the prior has seen "
        "EGG of other voices of all qualities",
        ("modal",),
        ("breathy", "pressed"),
        (10.0,),
        share=0.4,
        other_prior=True,
    ),
    "recordings": Condition(
        "all qualities, 15 to 40 dB: for speech of which nothing is known",
        ("any",),
        ("any",),
        (15.0, 20.0, 30.0, 40.0),
        delay=(0.0005, 0.001),
    ),
}


class Corpus(NamedTuple):
    """Utterances of each part; the prior's are those of training unless they are others."""

    training: tuple[Utterance, ...]
    validation: tuple[Utterance, ...]
    test: tuple[Utterance, ...]
    prior: tuple[Utterance, ...]


def simulate_corpus(
    condition: Condition, seed: int, *, num_training: int, num_test: int, seconds: float
) -> Corpus:
    """All speakers of one seed."""

    def part(which: int, count: int, qualities: Sequence[str]) -> tuple[Utterance, ...]:
        kinds = [(quality, snr) for quality in qualities for snr in condition.snr]
        found: list[Utterance] = []
        for index, (quality, snr) in enumerate(kinds):
            share = (count + index) // len(kinds)
            settings = VoiceSettings(
                seconds=seconds, quality=quality, snr=snr, delay=condition.delay, rate=RATE
            )
            if share:
                found += simulate_voices(1000 * seed + 10 * which + index, share, settings)
        return tuple(found)

    training = part(_TRAINING, max(2, round(condition.share * num_training)), condition.training)
    validation = part(_VALIDATION, max(2, num_test // 2), condition.training)
    test = part(_TEST, num_test, condition.test)
    prior = part(_PRIOR, num_training, ("any",)) if condition.other_prior else training
    return Corpus(training, validation, test, prior)


class WindowBatches:
    """Batches ``(speech, egg)`` of windows, of all utterances in a new order every pass.

    Windows are cut when they are wanted: at a small stride they overlap many times.
    """

    def __init__(
        self,
        utterances: Sequence[Utterance],
        *,
        stride: int,
        batch_size: int,
        context: int = 0,
        seed: int = 0,
        device: str = "cpu",
    ) -> None:
        self.batch_size, self.context = batch_size, context
        self.generator = torch.Generator().manual_seed(seed)
        length = WINDOW + 2 * context
        speech, egg, starts, offset = [], [], [], 0
        for each in utterances:
            padded = np.pad(each.speech, context)
            speech.append(padded)
            egg.append(np.pad(each.egg, context))
            starts.append(offset + np.arange(0, len(padded) - length + 1, stride))
            offset += len(padded)
        self.starts = torch.as_tensor(np.concatenate(starts))
        self.speech = torch.as_tensor(np.concatenate(speech), device=device).unfold(0, length, 1)
        self.egg = torch.as_tensor(np.concatenate(egg), device=device).unfold(0, WINDOW, 1)

    def __len__(self) -> int:
        return len(self.starts) // self.batch_size

    def __iter__(self) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        order = self.starts[torch.randperm(len(self.starts), generator=self.generator)]
        for rows in order[: len(self) * self.batch_size].split(self.batch_size):
            yield self.at(rows)

    def at(self, rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The windows that start there; the EGG's is the middle of the speech's."""
        rows = rows.to(self.speech.device)
        return self.speech[rows], self.egg[rows + self.context]

    def egg_windows(self) -> torch.Tensor:
        """All of the EGG's, ``(n, window)``."""
        return self.egg[(self.starts + self.context).to(self.egg.device)]

    def some(self, count: int) -> tuple[torch.Tensor, torch.Tensor]:
        """A batch of so many windows, evenly spread."""
        chosen = torch.linspace(0, len(self.starts) - 1, min(count, len(self.starts))).long()
        return self.at(self.starts[chosen])


Draw = Callable[[torch.Tensor, torch.Tensor | None], torch.Tensor]


def draw_egg(
    draw: Draw,
    speech: np.ndarray,
    *,
    stride: int,
    context: int = 0,
    noise: torch.Tensor | None = None,
    device: str = "cpu",
) -> np.ndarray:
    """The EGG of a whole signal, from that of its windows."""
    padded = np.pad(pad_for_windows(speech, WINDOW, stride), context)
    windows = strided_windows(padded.astype(np.float32), WINDOW + 2 * context, stride)
    # A copy, as torch takes no read-only views.
    drawn = draw(torch.as_tensor(windows.copy(), device=device), noise)
    return overlap_add(drawn.cpu().numpy(), stride, num_samples=len(speech))


@dataclass(frozen=True, eq=False)
class Scored:
    """Of one EGG: its metrics' ingredients, and instants with their standard deviations."""

    egg: np.ndarray
    closures: np.ndarray
    deviation: np.ndarray | None


def closures_of(egg: np.ndarray) -> np.ndarray:
    """Instants of closure, none where nothing swings."""
    with warnings.catch_warnings():
        # An untrained network draws EGG without closures, and is scored for it.
        warnings.simplefilter("ignore")
        return detect_glottal_instants(egg, RATE).closures


def draw_with_spread(
    draw: Draw,
    speech: np.ndarray,
    *,
    stride: int,
    noises: Sequence[torch.Tensor | None],
    context: int = 0,
    device: str = "cpu",
) -> Scored:
    """The middle EGG, its closures, and their spread over draws.

    A draw has its own noise in the guide, and its own few windows: the mean over all windows that
    cover a closure would hide how much they disagree about it. With a point mass for a guide there
    is no noise, and that disagreement is all there is.
    """
    settings: dict[str, Any] = {"context": context, "device": device}
    egg = draw_egg(draw, speech, stride=stride, **settings)
    closures = closures_of(egg)
    if not noises:
        return Scored(egg, closures, None)
    drawn = []
    for index, noise in enumerate(noises):
        offset = index * _DRAWN_STRIDE // len(noises)
        shifted = np.pad(speech, (offset, 0))
        found = draw_egg(draw, shifted, stride=_DRAWN_STRIDE, noise=noise, **settings)
        drawn.append(closures_of(found[offset:]))
    return Scored(egg, closures, instant_spread(closures, drawn, reach=REACH).standard_deviation)


def score(scored: Sequence[Scored], utterances: Sequence[Utterance]) -> dict[str, float]:
    """Larynx-cycle metrics, instants of opening, waveforms and quotients, over utterances."""
    closing, opening, correlations, quotients = [], [], [], []
    with warnings.catch_warnings():
        # Files without larynx cycles are left out of means, and counted by their number.
        warnings.simplefilter("ignore")
        for found, each in zip(scored, utterances, strict=True):
            own = detect_glottal_instants(found.egg, RATE)
            reference = detect_glottal_instants(each.egg, RATE)
            closing.append(epoch_metrics(own.closures, reference.closures, RATE))
            opening.append(epoch_metrics(own.openings, reference.openings, RATE))
            correlations.append(float(np.corrcoef(found.egg, each.egg)[0, 1]))
            quotients.append(
                [
                    _contact_quotient(signal, instants)
                    for signal, instants in ((found.egg, own), (each.egg, reference))
                ]
            )
    mean, other = average_epoch_metrics(closing), average_epoch_metrics(opening)
    pairs = np.array(quotients)
    pairs = pairs[np.isfinite(pairs).all(1)]
    return {
        "identification_rate": mean.identification_rate,
        "miss_rate": mean.miss_rate,
        "false_alarm_rate": mean.false_alarm_rate,
        "accuracy_ms": mean.accuracy,
        "bias_ms": mean.bias,
        "share_near": mean.share_near,
        "opening_identification_rate": other.identification_rate,
        "opening_accuracy_ms": other.accuracy,
        "correlation": float(np.nanmean(correlations)),
        "quotient_error": float(np.abs(pairs[:, 0] - pairs[:, 1]).mean()) if len(pairs) else np.nan,
        "quotient_correlation": (float(np.corrcoef(pairs.T)[0, 1]) if len(pairs) > 2 else np.nan),
        "num_cycles": float(mean.num_cycles),
    }


def calibrate(
    scored: Sequence[Scored], utterances: Sequence[Utterance], scale: float = 1.0
) -> dict[str, float]:
    """Whether standard deviations of closures, times ``scale``, are right, over all utterances."""
    instants, deviations, references, offset = [], [], [], 0.0
    for found, each in zip(scored, utterances, strict=True):
        assert found.deviation is not None
        reference = closures_of(each.egg)
        instants.append(found.closures + offset)
        deviations.append(scale * found.deviation)
        references.append(reference + offset)
        offset += len(each.egg) + 10.0 * REACH
    joined = [np.concatenate(part) for part in (instants, deviations, references)]
    found_calibration = timing_calibration(*joined, reach=REACH)
    return {
        "timing_deviation_ms": float(np.nanmedian(joined[1])) / RATE * 1000.0,
        "timing_coverage_90": found_calibration.coverage_90,
        "timing_error_ratio": found_calibration.error_ratio,
        "timing_rank_correlation": found_calibration.rank_correlation,
    }


def score_zero_frequency(utterances: Sequence[Utterance]) -> dict[str, float]:
    """The baseline without learning: zero-frequency filtering of the speech."""
    found, began = [], time.process_time()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for each in utterances:
            estimate = zero_frequency_epochs(each.speech, RATE)
            reference = detect_glottal_instants(each.egg, RATE)
            found.append(epoch_metrics(estimate.closures, reference.closures, RATE))
    mean = average_epoch_metrics(found)
    seconds = sum(len(each.speech) for each in utterances) / RATE
    return {
        "identification_rate": mean.identification_rate,
        "miss_rate": mean.miss_rate,
        "false_alarm_rate": mean.false_alarm_rate,
        "accuracy_ms": mean.accuracy,
        "bias_ms": mean.bias,
        "share_near": mean.share_near,
        "num_cycles": float(mean.num_cycles),
        "times_real_time": seconds / max(time.process_time() - began, 1e-6),
    }


def _contact_quotient(egg: np.ndarray, instants: Any) -> float:
    if len(instants.closures) < 2:
        return float("nan")
    found = glottal_quotients(egg, instants.closures, instants.openings, RATE)
    return float(np.mean(found.contact))
