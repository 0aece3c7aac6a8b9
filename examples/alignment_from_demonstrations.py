"""Alignment from demonstrations: which two classes should a reward model tell apart?

A language model of surnames is fine-tuned on women's first names. Critics learn to tell apart the
base model from the tuned one (Init-SFT), the base model from demonstrations (Init-Demo), or the
tuned one from demonstrations (SFT-Demo); their logit is the reward by which the best of N samples
is chosen. A judge that none of them has seen says what the choice is worth, beside preferences, the
closed-form log-ratio, a posterior over the reward's last layer, and controls. Policies for the
tilted law, under any divergence, do in one draw what the best of N does in N.

    python examples/alignment_from_demonstrations.py --preset laptop
    python examples/alignment_from_demonstrations.py --divergence squared_hellinger --variants plain
"""

from __future__ import annotations

import time
from concurrent.futures import as_completed
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import jax
import numpy as np
import torch
import tyro
from alignment_experiment import (
    ANCHORS,
    PRESETS,
    VARIANTS,
    Experiment,
    Outcome,
    Preset,
)
from alignment_report import report
from example_options import check_names, choose_device
from names_problem import load_base
from processes import cpu_seconds, executor
from rich.console import Console
from rich.progress import Progress

from bayesdiv.divergences import list_divergences
from bayesdiv.inference.bayesian_reward_head import BayesianRewardHead
from bayesdiv.inference.reward_models import RewardModel

RESULTS = Path(__file__).parent.parent / "results" / "alignment_from_demonstrations"


@dataclass(frozen=True)
class Options:
    """Learn rewards from demonstrations, and choose by them."""

    divergence: tuple[str, ...] = ("reverse_kl", "jensen_shannon", "forward_kl")
    """Divergences for the policies of the tilted law."""
    preset: Literal["quick", "laptop", "gpu", "quick-gpu"] = "laptop"
    """gpu is SmolLM2-135M on film reviews; quick-gpu a few steps of the same."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    seed: int = 0
    num_seeds: int | None = None
    """Seeds from ``seed`` on; the preset's number by default."""
    variants: tuple[str, ...] = ()
    """plain: any demonstrations; heterogeneous: long ones, and a student that trains its last layer
    only. The preset's by default."""
    processes: int = 2
    """0 runs everything in this one."""
    output: Path | None = None
    """Where results go; results/alignment_from_demonstrations/<preset> by default."""

    def __post_init__(self) -> None:
        for name, allowed in (("divergence", list_divergences("f")), ("variants", VARIANTS)):
            check_names(name, getattr(self, name), allowed)

    @property
    def work(self) -> Preset:
        """The preset, with the seeds and variants asked for."""
        preset = PRESETS[self.preset]
        num_seeds = preset.num_seeds if self.num_seeds is None else self.num_seeds
        return replace(preset, num_seeds=num_seeds, variants=self.variants or preset.variants)

    @property
    def folder(self) -> Path:
        """Where results go."""
        return RESULTS / self.preset if self.output is None else self.output

    @property
    def torch_device(self) -> str:
        """The device, chosen."""
        return choose_device(self.device)

    @property
    def base_folder(self) -> Path | None:
        """Where the base model is kept: with the results of a quick run, or the user's cache."""
        return self.folder if self.preset == "quick" else None


def bayesian(
    experiment: Experiment, kind: str, reward: RewardModel, file: Path | None
) -> list[Outcome]:
    """Choices by the posterior mean of a reward's last layer and by its lower bound."""
    work = experiment.work
    torch.manual_seed(70_000 + experiment.seed)
    negatives = experiment.initial.sample((work.num_samples,))
    positives = (
        experiment.demonstrations
        if kind == "init_demo"
        else experiment.student.sample((work.num_samples,))
    )
    head = BayesianRewardHead(num_warmup=work.num_head_draws, num_samples=work.num_head_draws)
    found = head.fit(
        reward.features(positives).cpu(),
        reward.features(negatives).cpu(),
        rng_key=jax.random.key(experiment.seed),
    )
    if file is not None:
        found.to_arviz(kind=kind, seed=experiment.seed).to_netcdf(file)
    features = reward.features(experiment.candidates).cpu().numpy()
    means, bounds = [], []
    for part in np.array_split(features, max(1, len(features) // 100)):
        draws = found.reward_draws(part)
        means.append(draws.mean(0))
        bounds.append(np.quantile(draws, 0.1, axis=0))
    rows = {"posterior mean": np.concatenate(means), "lower bound": np.concatenate(bounds)}
    return [
        experiment.score(f"{kind} {name}", torch.as_tensor(values, device=experiment.device))
        for name, values in rows.items()
    ]


def run_task(options: Options, seed: int, variant: str) -> list[Outcome]:
    """All rows of one seed and variant: what a process does at a time."""
    torch.set_num_threads(1)
    work = options.work
    experiment = Experiment(
        work, seed, variant, device=options.torch_device, base_folder=options.base_folder
    )
    outcomes = [experiment.references()]
    outcomes += [experiment.score(row, experiment.anchor(row)) for row in ANCHORS]
    for kind, critic in experiment.rows():
        reward = experiment.fit(kind, critic)
        more: dict[str, Any] = {}
        if reward.probe is not None:
            more = {
                "accuracy": reward.probe.accuracy,
                "implied_jensen_shannon": reward.probe.implied_jensen_shannon,
                "calibration_slope": reward.probe.calibration.slope,
            }
        rewards = reward(experiment.candidates)
        outcomes.append(experiment.score(f"{kind} {critic}", rewards, **more))
        if critic != "gru" or variant != "plain":
            continue
        if kind in work.bayesian_kinds:
            is_first = seed == options.seed and kind == "init_sft"
            file = options.folder / "reward_head.nc" if is_first else None
            outcomes += bayesian(experiment, kind, reward, file)
        if kind == "init_sft":
            outcomes += [experiment.tilt(reward, each) for each in options.divergence]
    return outcomes


def main(options: Options) -> None:
    """Every seed and variant, then tables, figures and files."""
    console = Console(width=max(Console().width, 170))
    start = time.perf_counter()
    # Small arrays gain nothing from more, and lose where cores are shared.
    torch.set_num_threads(1)
    options.folder.mkdir(parents=True, exist_ok=True)
    # Fitted once, before two processes would both do it.
    if options.work.model == "names":
        load_base(options.work.base, folder=options.base_folder, device="cpu")
    seeds = range(options.seed, options.seed + options.work.num_seeds)
    tasks = [(seed, variant) for variant in options.work.variants for seed in seeds]
    outcomes: list[Outcome] = []
    with executor(options.processes) as pool, Progress(console=console) as progress:
        bar = progress.add_task("seeds and variants", total=len(tasks))
        running = [pool.submit(run_task, options, *task) for task in tasks]
        for finished in as_completed(running):
            outcomes += finished.result()
            progress.advance(bar)
    order = {variant: index for index, variant in enumerate(options.work.variants)}
    outcomes.sort(key=lambda outcome: (order[outcome.variant], outcome.seed))
    settings = {
        "preset": options.preset,
        "seeds": len(seeds),
        "seconds": round(time.perf_counter() - start, 1),
        "cpu_seconds": cpu_seconds(),
    }
    report(outcomes, options.folder, settings, console, model=options.work.model)


if __name__ == "__main__":
    main(tyro.cli(Options))
