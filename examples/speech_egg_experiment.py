"""One condition and seed of speech to EGG: the prior's autoencoder, then every variant on it."""

from __future__ import annotations

import time
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import torch
from accelerate import Accelerator
from speech_egg_presets import (
    DEAD,
    NORMAL,
    PUBLISHED,
    REGRESSION,
    STOCHASTIC,
    TIMED,
    ZERO_FREQUENCY,
    Preset,
)
from speech_egg_problem import (
    CONDITIONS,
    RATE,
    REACH,
    WINDOW,
    Corpus,
    Scored,
    WindowBatches,
    calibrate,
    closures_of,
    draw_with_spread,
    score,
    score_zero_frequency,
    simulate_corpus,
)

from bayesdiv.data.voice import Utterance
from bayesdiv.diagnostics.epochs import timing_errors
from bayesdiv.divergences import SlicedWasserstein
from bayesdiv.inference.adversarial import (
    AdversarialInference,
    AdversarialSettings,
    CodeProbe,
    probe_codes,
)
from bayesdiv.models.speech_egg import EGGAutoencoder, SpeechToEGG
from bayesdiv.training import train


@dataclass(frozen=True, eq=False)
class Example:
    """A stretch of one utterance, to look at and to listen to."""

    utterance: Utterance
    drawn: Scored


@dataclass(frozen=True, eq=False)
class Outcome:
    """A variant of one condition and seed; what is shown of it is of the first seed only."""

    condition: str
    row: str
    seed: int
    final: dict[str, float]
    history: dict[str, np.ndarray] = field(default_factory=dict)
    errors_ms: np.ndarray | None = None
    example: Example | None = None
    windows: tuple[np.ndarray, np.ndarray] | None = None
    state: dict[str, Any] | None = None


class Experiment:
    """Speakers and the prior that all variants of one condition and seed share."""

    def __init__(self, work: Preset, condition: str, seed: int, device: str) -> None:
        self.work, self.condition, self.seed, self.device = work, condition, seed, device
        self.corpus: Corpus = simulate_corpus(
            CONDITIONS[condition],
            seed,
            num_training=work.num_training,
            num_test=work.num_test,
            seconds=work.seconds,
        )
        self.autoencoder = self._train_autoencoder()
        windows = self._batches(self.corpus.prior, stride=4 * work.stride).egg_windows()
        self.prior = self.autoencoder.prior(windows)

    def accelerator(self) -> Accelerator:
        """The device that networks are on."""
        cpu = self.device == "cpu"
        return Accelerator(cpu=cpu, mixed_precision="no" if cpu else self.work.mixed_precision)

    def _batches(
        self, utterances: Sequence[Utterance], *, stride: int, context: int = 0
    ) -> WindowBatches:
        return WindowBatches(
            utterances,
            stride=stride,
            batch_size=self.work.batch_size,
            context=context,
            seed=self.seed,
            device=self.device,
        )

    def _train_autoencoder(self) -> EGGAutoencoder:
        pyro.clear_param_store()
        torch.manual_seed(self.seed)
        network = EGGAutoencoder(WINDOW, self.work.code_size).to(self.device)
        # Nothing pulls at the codes; a few directions are the cheapest thing to watch them by.
        routine = AdversarialInference(
            network.model,
            network.guide,
            divergence=SlicedWasserstein(num_projections=4),
            weight=0.0,
            modules=[network],
            settings=AdversarialSettings(num_decay_steps=self.work.num_autoencoder_steps),
        )
        pairs = self._batches(self.corpus.prior, stride=self.work.stride)
        train(
            routine,
            _EggOnly(pairs),
            num_steps=self.work.num_autoencoder_steps,
            progress_bar=False,
            accelerator=self.accelerator(),
        )
        return network.eval().requires_grad_(requires_grad=False)

    def autoencoder_scores(self) -> dict[str, float]:
        """How well windows of the test's EGG survive their codes."""
        _, egg = self._batches(self.corpus.test, stride=self.work.stride).some(4096)
        with torch.no_grad():
            found = self.autoencoder(egg)
            cosine = torch.cosine_similarity(found, egg, dim=1)[egg.norm(dim=1) > 0.5]
            error = ((found - egg) ** 2).mean()
        return {"squared_error": float(error), "cosine": float(cosine.mean())}

    def run(self, row: str) -> Outcome:
        """Train a variant and score it on the test's speakers."""
        if row == ZERO_FREQUENCY:
            final = score_zero_frequency(self.corpus.test)
            return Outcome(self.condition, row, self.seed, final)
        network, routine = self.variant(row)
        began = time.process_time()
        batches = self._batches(
            self.corpus.training, stride=self.work.stride, context=self.work.context
        )
        with warnings.catch_warnings():
            # The dead critic's row is there to be warned of; the table says so.
            warnings.filterwarnings("ignore", message=".*critic.*", category=RuntimeWarning)
            history = train(
                routine,
                batches,
                num_steps=self.work.num_steps,
                progress_bar=False,
                accelerator=self.accelerator(),
            ).history
        seconds = time.process_time() - began
        network.eval()
        return self._scored(row, network, routine, history, seconds)

    def variant(self, row: str) -> tuple[SpeechToEGG, AdversarialInference]:
        """The network and routine of a row."""
        # Otherwise Pyro gives each network the parameters of the one before.
        pyro.clear_param_store()
        torch.manual_seed(self.seed)
        normal, stochastic = row == NORMAL, row in (NORMAL, STOCHASTIC)
        prior: Any = self.prior
        if normal:
            zeros = torch.zeros(self.work.code_size, device=self.device)
            prior = dist.Normal(zeros, 1.0).to_event(1)
        network = SpeechToEGG(
            prior,
            WINDOW,
            context=self.work.context,
            stochastic=stochastic,
            bounded=not normal,
            convolutional=self.work.convolutional,
        ).to(self.device)
        divergence = {NORMAL: "reverse_kl"}.get(row, row)
        if row in (REGRESSION, DEAD, STOCHASTIC):
            divergence = PUBLISHED
        routine = AdversarialInference(
            network.model,
            network.guide,
            divergence=divergence,
            match=None if normal else "aggregate",
            weight=0.0 if row == REGRESSION else 1.0,
            critic="batch_norm_logit" if row == DEAD else "spectral_norm",
            modules=[network],
            settings=AdversarialSettings(
                num_decay_steps=self.work.num_steps,
                # Nobody asks a critic in a regression.
                num_critic_steps=0 if row == REGRESSION else 1,
                encoder_rate=self.work.encoder_rate,
                seed=self.seed,
            ),
        )
        return network, routine

    def _scored(
        self,
        row: str,
        network: SpeechToEGG,
        routine: AdversarialInference,
        history: dict[str, np.ndarray],
        seconds: float,
    ) -> Outcome:
        noises = self.noises(network)
        began = time.process_time()
        plain = [self._draw(network, each, []) for each in self.corpus.test]
        speed = self._seconds(self.corpus.test) / max(time.process_time() - began, 1e-6)
        drawn, final = plain, {**score(plain, self.corpus.test), "times_real_time": speed}
        if row in TIMED:
            drawn = [self._draw(network, each, noises) for each in self.corpus.test]
            final |= self._calibration(network, drawn, noises)
        probe = self._probe(routine)
        final |= {
            "probe_reverse_kl": probe.reverse_kl,
            "probe_jensen_shannon": probe.jensen_shannon,
            "probe_accuracy": probe.accuracy,
            "cpu_seconds": seconds,
        }
        if "critic_loss" in history:
            final["critic_loss"] = float(np.mean(history["critic_loss"][-100:]))
            final["is_dead"] = float(routine.report().is_dead)
        first = self.seed == 0
        return Outcome(
            self.condition,
            row,
            self.seed,
            final,
            history={name: np.asarray(values) for name, values in history.items()},
            errors_ms=self._errors(drawn),
            example=Example(self.corpus.test[0], drawn[0]) if first else None,
            windows=self._windows(network, noises) if first and network.stochastic else None,
            state=network.state_dict() if row == STOCHASTIC else None,
        )

    def noises(self, network: SpeechToEGG) -> list[torch.Tensor | None]:
        """Of each draw from the guide; None where it is a point mass."""
        if not network.stochastic:
            return [None] * self.work.num_draws
        generator = torch.Generator().manual_seed(self.seed)
        return [
            torch.randn(network.code_size, generator=generator).to(self.device)
            for _ in range(self.work.num_draws)
        ]

    def _draw(
        self, network: SpeechToEGG, each: Utterance, noises: Sequence[torch.Tensor | None]
    ) -> Scored:
        return draw_with_spread(
            network.draw,
            each.speech,
            stride=self.work.test_stride,
            noises=noises,
            context=self.work.context,
            device=self.device,
        )

    def _calibration(
        self, network: SpeechToEGG, drawn: Sequence[Scored], noises: Sequence[torch.Tensor | None]
    ) -> dict[str, float]:
        """As drawn, and rescaled by one number from speakers that are in no other part."""
        found = calibrate(drawn, self.corpus.test)
        held = [self._draw(network, each, noises) for each in self.corpus.validation]
        scale = calibrate(held, self.corpus.validation)["timing_error_ratio"]
        rescaled = calibrate(drawn, self.corpus.test, scale)
        return {
            **found,
            "timing_scale": scale,
            "rescaled_deviation_ms": rescaled["timing_deviation_ms"],
            "rescaled_coverage_90": rescaled["timing_coverage_90"],
            "rescaled_error_ratio": rescaled["timing_error_ratio"],
        }

    def _probe(self, routine: AdversarialInference) -> CodeProbe:
        """A fresh critic on windows of the test: their codes against the prior of the model."""
        batches = self._batches(
            self.corpus.test, stride=self.work.stride, context=self.work.context
        )
        prior, codes = routine.draw(batches.some(self.work.num_probed))
        return probe_codes(prior, codes, routine.settings.probe)

    def _errors(self, drawn: Sequence[Scored]) -> np.ndarray:
        """Of each closure that has a reference within half a short period, in milliseconds."""
        errors = np.concatenate(
            [
                timing_errors(own.closures, closures_of(each.egg), reach=REACH)
                for each, own in zip(self.corpus.test, drawn, strict=True)
            ]
        )
        return errors[np.isfinite(errors)] * 1000.0 / RATE

    def _windows(
        self, network: SpeechToEGG, noises: Sequence[torch.Tensor | None]
    ) -> tuple[np.ndarray, np.ndarray]:
        """Draws of some windows, ``(draws, windows, window)``, and what was observed."""
        batches = self._batches(
            self.corpus.test, stride=self.work.stride, context=self.work.context
        )
        speech, egg = batches.some(24)
        drawn = torch.stack([network.draw(speech, noise) for noise in noises])
        return drawn.cpu().numpy(), egg.cpu().numpy()

    @staticmethod
    def _seconds(utterances: Sequence[Utterance]) -> float:
        return sum(len(each.speech) for each in utterances) / RATE


class _EggOnly:
    """Batches of pairs without the speech."""

    def __init__(self, pairs: WindowBatches) -> None:
        self.pairs = pairs

    def __len__(self) -> int:
        return len(self.pairs)

    def __iter__(self) -> Any:
        return (egg for _, egg in self.pairs)
