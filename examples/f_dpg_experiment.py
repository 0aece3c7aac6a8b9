"""Presets, base models, targets and one run of the f-DPG example."""

from __future__ import annotations

import time
import warnings
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from f_dpg_language import language_problems
from f_dpg_names import names_problems
from f_dpg_problem import Problem

from bayesdiv.inference.f_dpg import FDPG
from bayesdiv.inference.sequence_metrics import TargetSample, draw_from_target, evaluate_policy
from bayesdiv.models.character_language_model import CharacterModel
from bayesdiv.training import train

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
    model
        "names", or "smollm2" for English.
    base
        The base model of names.
    max_length, batch_size
        Tokens of a continuation of English, and rows at a time.
    """

    num_seeds: int
    steps: dict[str, int]
    divergences: dict[str, tuple[str, ...]]
    num_samples: int = 512
    learning_rate: float = 1e-3
    evaluate_every: int = 50
    num_proposed: int = 200_000
    num_evaluated: int = 4000
    model: str = "names"
    base: CharacterModel = field(default_factory=CharacterModel)
    max_length: int = 40
    batch_size: int = 256


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
    "gpu": Preset(
        num_seeds=3,
        steps={"word": 1000, "sentiment": 1000},
        divergences={"word": BOUNDED, "sentiment": (*BOUNDED, "reverse_kl")},
        learning_rate=1.4e-5,
        evaluate_every=100,
        num_proposed=100_000,
        model="smollm2",
    ),
    # What the gpu preset runs, small enough for a CPU.
    "quick-gpu": Preset(
        num_seeds=1,
        steps={"sentiment": 2},
        divergences={"sentiment": ("jensen_shannon",)},
        num_samples=8,
        learning_rate=1e-4,
        evaluate_every=1,
        num_proposed=32,
        num_evaluated=16,
        model="smollm2",
        max_length=10,
        batch_size=16,
    ),
}


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


@lru_cache(maxsize=2)
def _problems(key: str, device: str) -> dict[str, Problem]:
    preset = _PRESETS_BY_KEY[key]
    names = set(preset.steps)
    if preset.model == "names":
        return names_problems(names, preset.base, device)
    return language_problems(names, preset.max_length, preset.batch_size, device)


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
