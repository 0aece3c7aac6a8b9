"""Supervised fine-tuning is one divergence: students of one expert under the others.

The expert is a language model of names tilted towards women's, so that its density and entropy are
known. A smaller student learns from many demonstrations or few: by maximum likelihood, which is the
forward KL, weighted by position, or adversarially under any divergence; and with the expert's
density known, to see what the divergence does when no critic errs.

    python examples/sft_as_inverse_rl.py --preset laptop
    python examples/sft_as_inverse_rl.py --divergence squared_hellinger --groups oracle
"""

from __future__ import annotations

import time
from concurrent.futures import as_completed
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import torch
import tyro
from example_options import check_names, choose_device
from imitation_experiment import GROUPS, PRESETS, Experiment, Outcome, Preset, rows_of
from imitation_report import report
from names_problem import load_base
from processes import cpu_seconds, executor
from rich.console import Console
from rich.progress import Progress

from bayesdiv.divergences import list_divergences

RESULTS = Path(__file__).parent.parent / "results" / "sft_as_inverse_rl"


@dataclass(frozen=True)
class Options:
    """Imitate an expert under several divergences, and measure every divergence from it."""

    divergence: tuple[str, ...] = (
        "reverse_kl",
        "jensen_shannon",
        "forward_kl",
        "total_variation",
    )
    """Of adversarial and oracle runs; total variation, whose reward has only a sign, of oracles."""
    preset: Literal["quick", "laptop", "gpu", "quick-gpu"] = "laptop"
    """gpu is SmolLM2-135M on film reviews; quick-gpu a few steps of the same."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    seed: int = 0
    num_seeds: int | None = None
    """Seeds from ``seed`` on; the preset's number by default."""
    groups: tuple[str, ...] = ()
    """many or few demonstrations, or the expert's density; the preset's by default."""
    processes: int = 2
    """0 runs everything in this one."""
    output: Path | None = None
    """Where results go; results/sft_as_inverse_rl/<preset> by default."""

    def __post_init__(self) -> None:
        for name, allowed in (("divergence", list_divergences("f")), ("groups", GROUPS)):
            check_names(name, getattr(self, name), allowed)

    @property
    def work(self) -> Preset:
        """The preset, with the seeds and groups asked for."""
        preset = PRESETS[self.preset]
        num_seeds = preset.num_seeds if self.num_seeds is None else self.num_seeds
        return replace(preset, num_seeds=num_seeds, groups=self.groups or preset.groups)

    @property
    def folder(self) -> Path:
        """Where results go."""
        return RESULTS / self.preset if self.output is None else self.output

    @property
    def base_folder(self) -> Path | None:
        """Where the base model is kept: with the results of a quick run, or the user's cache."""
        return self.folder if self.preset == "quick" else None

    def experiment(self, seed: int) -> Experiment:
        """Expert, demonstrations and student of one seed."""
        device = choose_device(self.device)
        return Experiment(self.work, seed, device=device, base_folder=self.base_folder)


def run_group(options: Options, seed: int, group: str) -> tuple[list[Outcome], float]:
    """All runs of a group for one seed, and the expert's entropy: a process's work at a time."""
    torch.set_num_threads(1)
    experiment = options.experiment(seed)
    outcomes = [experiment.start()] if group == options.work.groups[0] else []
    outcomes += [experiment.run(group, row) for row in rows_of(group, options.divergence)]
    return outcomes, experiment.entropy


def main(options: Options) -> None:
    """Every seed and group, then tables, figures and files."""
    console = Console(width=max(Console().width, 190))
    start = time.perf_counter()
    # Small arrays gain nothing from more, and lose where cores are shared.
    torch.set_num_threads(1)
    options.folder.mkdir(parents=True, exist_ok=True)
    # Fitted once, before two processes would both do it.
    if options.work.model == "names":
        load_base(options.work.base, folder=options.base_folder)
    seeds = range(options.seed, options.seed + options.work.num_seeds)
    tasks = [(seed, group) for group in options.work.groups for seed in seeds]
    outcomes: list[Outcome] = []
    entropies: dict[int, float] = {}
    with executor(options.processes) as pool, Progress(console=console) as progress:
        bar = progress.add_task("seeds and groups", total=len(tasks))
        running = {pool.submit(run_group, options, *task): task for task in tasks}
        for finished in as_completed(running):
            found, entropy = finished.result()
            outcomes += found
            entropies[running[finished][0]] = entropy
            progress.advance(bar)
    order = {group: index for index, group in enumerate(("start", *options.work.groups))}
    outcomes.sort(key=lambda outcome: (order[outcome.group], outcome.seed))
    settings = {
        "preset": options.preset,
        "seeds": len(seeds),
        "seconds": round(time.perf_counter() - start, 1),
        "cpu_seconds": cpu_seconds(),
    }
    report(
        outcomes,
        options.folder,
        settings,
        [entropies[seed] for seed in seeds],
        console,
        model=options.work.model,
    )


if __name__ == "__main__":
    main(tyro.cli(Options))
