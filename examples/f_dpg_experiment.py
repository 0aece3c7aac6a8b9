"""Presets, base models, targets and one run of the f-DPG example."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from sklearn.linear_model import LogisticRegression

from bayesdiv.data import ALPHABET, encode_names, load_names
from bayesdiv.inference.f_dpg import FDPG
from bayesdiv.inference.sequence_metrics import TargetSample, draw_from_target, evaluate_policy
from bayesdiv.models.character_language_model import CharacterModel, character_language_model
from bayesdiv.models.sequence_targets import (
    ExponentialTilt,
    PointwiseConstraint,
    ScalarPreference,
    SequenceTarget,
)
from bayesdiv.training import train

BETA = 0.1
BOUNDED = ("forward_kl", "jensen_shannon", "total_variation", "squared_hellinger")


@dataclass(frozen=True)
class Preset:
    """How much work.

    Attributes
    ----------
    num_seeds
        Runs of everything.
    steps
        Of each target, by name: the targets that are run.
    divergences
        Of each target; reverse KL cannot be asked for where the target has zeros.
    num_samples
        Sequences a step.
    learning_rate
        Of Adam.
    evaluate_every
        Steps between evaluations.
    num_proposed, num_evaluated
        Sequences of the base that samples of the target are drawn from, and of each evaluation.
    base
        The base model of names.
    """

    num_seeds: int
    steps: dict[str, int]
    divergences: dict[str, tuple[str, ...]]
    num_samples: int = 512
    learning_rate: float = 1e-3
    evaluate_every: int = 50
    num_proposed: int = 200_000
    num_evaluated: int = 4000
    base: CharacterModel = field(default_factory=CharacterModel)


PRESETS = {
    "quick": Preset(
        num_seeds=1,
        steps={"lexical": 12, "preference": 12},
        divergences={
            "lexical": ("jensen_shannon",),
            "preference": ("jensen_shannon", "reverse_kl"),
        },
        num_samples=64,
        learning_rate=3e-3,
        evaluate_every=6,
        num_proposed=4000,
        num_evaluated=400,
        base=CharacterModel(hidden_size=32, num_steps=150, learning_rate=0.02),
    ),
    "laptop": Preset(
        num_seeds=3,
        steps={"rare": 600, "preference": 600, "lexical": 600, "moment": 200},
        divergences={
            "rare": BOUNDED,
            "preference": (*BOUNDED, "reverse_kl"),
            "lexical": ("forward_kl", "jensen_shannon"),
            "moment": ("forward_kl", "jensen_shannon"),
        },
    ),
}


@dataclass(frozen=True)
class Problem:
    """A target, what counts as aligned with it, and how its sequences read."""

    target: SequenceTarget
    alignment: Callable[[torch.Tensor], torch.Tensor]
    description: str


@dataclass(frozen=True, eq=False)
class Outcome:
    """One run: metrics at each evaluation, every step's history, and what it ended with."""

    problem: str
    divergence: str
    seed: int
    steps: list[int]
    curves: dict[str, list[float]]
    history: dict[str, np.ndarray]
    final: dict[str, float]


class FemaleScore:
    """log P(female | name) from the name's pairs of letters and its last letter.

    A class-balanced logistic regression on the census's first names; a table of logits for pairs
    makes it a sum over the symbols of a sequence.
    """

    def __init__(self, max_length: int, device: str) -> None:
        names = load_names()
        words = np.concatenate([names.female, names.male])
        words = words[np.char.str_len(words) < max_length]
        labels = np.isin(words, names.female).astype(int)
        codes = torch.from_numpy(encode_names(words, max_length))
        size = len(ALPHABET)
        counts = torch.zeros(len(words), size * size)
        before, after, real = self._pairs(codes)
        counts.scatter_add_(1, before * size + after, real.float())
        model = LogisticRegression(class_weight="balanced", max_iter=500)
        model.fit(counts.numpy(), labels)
        self.accuracy = float(model.score(counts.numpy(), labels))
        table = torch.from_numpy(model.coef_[0].astype(np.float32)).reshape(size, size)
        self.table, self.intercept = table.to(device), float(model.intercept_[0])

    @staticmethod
    def _pairs(value: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Each symbol's predecessor, the symbol, and whether the pair counts.

        The end is a symbol of its own, so that a pair says what the last letter is.
        """
        before = torch.cat([torch.zeros_like(value[..., :1]), value[..., :-1]], dim=-1)
        ended = (value == 0).long().cumsum(-1)
        return before, value, (ended == 0) | ((ended == 1) & (value == 0))

    def __call__(self, value: torch.Tensor) -> torch.Tensor:
        """log φ, ``(...)``."""
        before, after, real = self._pairs(value)
        logits = torch.where(real, self.table[before, after], 0.0).sum(-1) + self.intercept
        return torch.nn.functional.logsigmoid(logits)


def letters(text: str) -> list[int]:
    """Their numbers."""
    return [ALPHABET.index(symbol) for symbol in text]


def names_problems(preset: Preset, device: str) -> dict[str, Problem]:
    """Targets over names; base and classifier are fitted once, and found again by processes."""
    base = character_language_model(preset.base, device=device, progress_bar=False)
    x, z = letters("XZ")
    vowels = torch.tensor(letters("AEIOU"), device=device)

    def contains_x(value: torch.Tensor) -> torch.Tensor:
        return (value == x).any(-1).float()

    def contains_z(value: torch.Tensor) -> torch.Tensor:
        return (value == z).any(-1).float()

    def starts_with_vowel(value: torch.Tensor) -> torch.Tensor:
        return torch.isin(value[..., 0], vowels).float()

    found: dict[str, Problem] = {}
    if "rare" in preset.steps:
        found["rare"] = Problem(PointwiseConstraint(base, contains_x), contains_x, "contains X")
    if "lexical" in preset.steps:
        found["lexical"] = Problem(PointwiseConstraint(base, contains_z), contains_z, "contains Z")
    if "preference" in preset.steps:
        score = FemaleScore(preset.base.max_length, device)
        found["preference"] = Problem(
            ScalarPreference(base, score, BETA),
            lambda value: score(value).exp(),
            f"P(female) with beta {BETA}",
        )
    if "moment" in preset.steps:
        torch.manual_seed(0)
        tilt = ExponentialTilt.fit(base, [starts_with_vowel], [0.5], num_samples=100_000)
        found["moment"] = Problem(tilt, starts_with_vowel, "half start with a vowel")
    return found


@lru_cache(maxsize=2)
def _problems(key: str, device: str) -> dict[str, Problem]:
    return names_problems(_PRESETS_BY_KEY[key], device)


_PRESETS_BY_KEY: dict[str, Preset] = {}


def problems_of(preset: Preset, device: str) -> dict[str, Problem]:
    """The targets of a preset, made once a process."""
    key = repr(preset)
    _PRESETS_BY_KEY[key] = preset
    return _problems(key, device)


def sample_target(preset: Preset, device: str, name: str, seed: int) -> TargetSample:
    """Sequences from a target, that all its runs are measured with."""
    torch.set_num_threads(1)
    torch.manual_seed(seed)
    target = problems_of(preset, device)[name].target
    return draw_from_target(target, preset.num_evaluated, num_proposed=preset.num_proposed)


def run(
    preset: Preset, device: str, name: str, divergence: str, seed: int, sample: TargetSample
) -> Outcome:
    """One target, divergence and seed: training in stretches with an evaluation after each."""
    torch.set_num_threads(1)
    # The rare word starts with an effective sample size of its base rate.
    warnings.filterwarnings("ignore", "the effective sample size")
    begin, cpu = time.perf_counter(), time.process_time()
    problem = problems_of(preset, device)[name]
    torch.manual_seed(1000 * seed + 1)
    policy = problem.target.base.trainable_copy()
    statistics = {"alignment": problem.alignment}
    routine = FDPG(
        problem.target,
        policy,
        divergence,
        num_samples=preset.num_samples,
        learning_rate=preset.learning_rate,
        statistics=statistics,
    )
    steps, rows, parts = [0], [_evaluate(preset, problem, policy, sample)], []
    total = preset.steps[name]
    while steps[-1] < total:
        stretch = min(preset.evaluate_every, total - steps[-1])
        parts.append(train(routine, None, num_steps=stretch, progress_bar=False).history)
        steps.append(steps[-1] + stretch)
        rows.append(_evaluate(preset, problem, policy, sample))
    history = {key: np.concatenate([part[key] for part in parts]) for key in parts[0]}
    # Nearer to the target than its base, the policy itself gives the best estimate of Z.
    own = draw_from_target(
        problem.target, 10, proposal=policy, num_proposed=preset.num_proposed // 10
    )
    final = {
        "log_normalizer": float(history["log_normalizer"][-1]),
        "log_normalizer_of_policy": own.log_normalizer,
        "log_normalizer_error": own.standard_error,
        "seconds": time.perf_counter() - begin,
        "cpu_seconds": time.process_time() - cpu,
    }
    curves = {key: [row[key] for row in rows] for key in rows[0]}
    return Outcome(name, divergence, seed, steps, curves, history, final)


def _evaluate(
    preset: Preset, problem: Problem, policy: Any, sample: TargetSample
) -> dict[str, float]:
    return evaluate_policy(
        problem.target,
        policy,
        sample,
        num_samples=preset.num_evaluated,
        statistics={"alignment": problem.alignment},
    )


def only(preset: Preset, targets: tuple[str, ...], divergences: tuple[str, ...]) -> Preset:
    """The preset with some of its targets, or with other divergences for all of them."""
    steps = {name: count for name, count in preset.steps.items() if name in targets or not targets}
    chosen = {name: divergences or preset.divergences[name] for name in steps}
    return replace(preset, steps=steps, divergences=chosen)
