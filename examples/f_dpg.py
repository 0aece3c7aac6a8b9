"""f-DPG: a language model moved onto targets over sequences, by which divergence.

The base model writes surnames. Targets ask it for a letter (rarely written, or not so rarely), for
a moment, or for what a classifier prefers. Every f-divergence is one policy gradient with another
pseudo-reward; the tables say how near each comes to the target, and what it costs in diversity.

    python examples/f_dpg.py --preset laptop
    python examples/f_dpg.py --targets preference --divergence alpha jeffreys
"""

from __future__ import annotations

import time
from concurrent.futures import as_completed
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import tyro
from example_options import check_names, choose_device
from f_dpg_experiment import (
    PRESETS,
    Outcome,
    Preset,
    only,
    problems_of,
    run,
    sample_target,
)
from f_dpg_report import report
from processes import executor
from rich.console import Console
from rich.progress import Progress

from bayesdiv.divergences import list_divergences

RESULTS = Path(__file__).parent.parent / "results" / "f_dpg"


@dataclass(frozen=True)
class Options:
    """Move a language model onto targets by divergences, and measure where it ends."""

    divergence: tuple[str, ...] = ()
    """Divergences, for every target; those of the preset by default."""
    targets: tuple[str, ...] = ()
    """Targets; those of the preset by default."""
    preset: Literal["quick", "laptop", "gpu", "quick-gpu"] = "laptop"
    """gpu is SmolLM2-135M on English; quick-gpu a few steps of the same."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    seed: int = 0
    num_seeds: int | None = None
    """Seeds from ``seed`` on; the preset's number by default."""
    processes: int = 2
    """0 runs everything in this one."""
    output: Path | None = None
    """Where results go; results/f_dpg/<preset> by default."""

    def __post_init__(self) -> None:
        known = {"divergence": list_divergences("f"), "targets": list(PRESETS[self.preset].steps)}
        for name, allowed in known.items():
            check_names(name, getattr(self, name), allowed)

    @property
    def work(self) -> Preset:
        """The preset, with the targets, divergences and seeds asked for."""
        preset = only(PRESETS[self.preset], self.targets, self.divergence)
        num_seeds = preset.num_seeds if self.num_seeds is None else self.num_seeds
        return replace(preset, num_seeds=num_seeds)

    @property
    def place(self) -> str:
        """The device."""
        return choose_device(self.device)

    @property
    def folder(self) -> Path:
        """Where results go."""
        return RESULTS / self.preset if self.output is None else self.output


def main(options: Options) -> None:
    """Every target, divergence and seed, then tables, figures and files."""
    console = Console(width=max(Console().width, 220))
    begin = time.perf_counter()
    work, place = options.work, options.place
    options.folder.mkdir(parents=True, exist_ok=True)
    # Fits the base model where no earlier run has left it.
    descriptions = {name: found.description for name, found in problems_of(work, place).items()}
    # The longest first, so that no process is left with one at the end.
    tasks = [
        (name, divergence, seed)
        for name in sorted(work.steps, key=lambda name: -work.steps[name])
        for divergence in work.divergences[name]
        for seed in range(options.seed, options.seed + work.num_seeds)
    ]
    outcomes: list[Outcome] = []
    with executor(options.processes) as pool, Progress(console=console) as progress:
        waiting = {
            name: pool.submit(sample_target, work, place, name, options.seed) for name in work.steps
        }
        samples = {name: found.result() for name, found in waiting.items()}
        bar = progress.add_task("targets, divergences and seeds", total=len(tasks))
        running = [
            pool.submit(run, work, place, name, divergence, seed, samples[name])
            for name, divergence, seed in tasks
        ]
        for finished in as_completed(running):
            outcomes.append(finished.result())
            progress.advance(bar)
    # As they were asked for, not as they happened to end.
    outcomes.sort(key=lambda found: tasks.index((found.problem, found.divergence, found.seed)))
    report(
        outcomes,
        descriptions,
        samples,
        options.folder,
        {
            "preset": options.preset,
            "device": place,
            "seeds": work.num_seeds,
            "seconds": round(time.perf_counter() - begin, 1),
            "cpu_seconds": round(sum(found.final["cpu_seconds"] for found in outcomes), 1),
        },
        console,
    )


if __name__ == "__main__":
    main(tyro.cli(Options))
