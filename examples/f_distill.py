"""One-step generators distilled from diffusions under any f-divergence.

A teacher needs 35 passes for a sample, its student one. Which divergence the student minimises says
what it gives up: under reverse KL, whose weights are constant, that is distribution matching
distillation; the others weigh by how likely the teacher finds a sample, and cover more.

    python examples/f_distill.py --preset laptop
    python examples/f_distill.py --divergence jeffreys pearson_chi2 --groups plane digits
"""

from __future__ import annotations

import time
from concurrent.futures import Executor, as_completed
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import torch
import tyro
from distillation_experiment import IMAGE_GROUPS, PRESETS, Images, Outcome, Preset
from distillation_mixtures import MIXTURE_GROUPS, run_mixture
from distillation_report import report
from example_options import check_names, choose_device
from processes import cpu_seconds, executor
from rich.console import Console
from rich.progress import Progress

from bayesdiv.divergences import list_divergences

RESULTS = Path(__file__).parent.parent / "results" / "f_distill"
BASELINES = "baselines"
GROUPS = (*MIXTURE_GROUPS, *IMAGE_GROUPS)


@dataclass(frozen=True)
class Options:
    """Distil mixtures and images under several divergences, and score what comes out."""

    divergence: tuple[str, ...] = (
        "reverse_kl",
        "softened_reverse_kl",
        "jensen_shannon",
        "squared_hellinger",
        "forward_kl",
    )
    """f-divergences of teacher and student that have a path gradient."""
    preset: Literal["quick", "laptop", "gpu", "quick-gpu"] = "laptop"
    """gpu is MNIST and Fashion-MNIST by a U-Net; quick-gpu a few steps of the same on digits."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    seed: int = 0
    num_seeds: int | None = None
    """Seeds from ``seed`` on; the preset's number by default."""
    groups: tuple[str, ...] = ()
    """Mixtures line, plane, modes; images digits, long_tailed, mnist, fashion_mnist."""
    gan_weight: float = 0.0
    """Of the GAN term in the student's loss; the critic learns in any case."""
    processes: int = 2
    """0 runs everything in this one; where the preset's networks need a GPU that is best."""
    output: Path | None = None
    """Where results go; results/f_distill/<preset> by default."""

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
    def hardware(self) -> str:
        """cpu or cuda."""
        return choose_device(self.device)

    def images(self, group: str) -> Images:
        """A data set and its teacher."""
        return Images(self.work, group, self.folder, self.hardware)


def train_teacher(options: Options, group: str) -> list[Outcome]:
    """A process's work before any of `run` on the same images."""
    torch.set_num_threads(1)
    options.images(group).train_teacher()
    return []


def run(options: Options, group: str, row: str, seed: int) -> list[Outcome]:
    """A process's work at a time: one divergence, or what it stands beside."""
    torch.set_num_threads(1)
    if group in MIXTURE_GROUPS:
        return run_mixture(options.work, group, row, seed, options.hardware)
    images = options.images(group)
    if row == BASELINES:
        return images.baselines(seed)
    return [images.distil(row, seed, gan_weight=options.gan_weight)]


def run_all(options: Options, pool: Executor, progress: Progress) -> list[Outcome]:
    """Teachers first, then everything that needs them beside the mixtures."""
    work = options.work
    pictures = [group for group in work.groups if group in IMAGE_GROUPS]
    seeds = range(options.seed, options.seed + work.num_seeds)
    tasks = [
        (group, row, seed)
        for group in work.groups
        for row in (*((BASELINES,) if group in IMAGE_GROUPS else ()), *options.divergence)
        for seed in seeds
    ]
    bar = progress.add_task("teachers, then students", total=len(pictures) + len(tasks))
    found: list[Outcome] = []
    waves = (
        [pool.submit(train_teacher, options, group) for group in pictures],
        [pool.submit(run, options, *task) for task in tasks if task[0] in MIXTURE_GROUPS],
    )
    for wave in waves:
        for finished in as_completed(wave):
            found += finished.result()
            progress.advance(bar)
    students = [pool.submit(run, options, *task) for task in tasks if task[0] in IMAGE_GROUPS]
    for finished in as_completed(students):
        found += finished.result()
        progress.advance(bar)
    return found


def main(options: Options) -> None:
    """Every group, divergence and seed, then tables, figures and files."""
    console = Console(width=max(Console().width, 230))
    start = time.perf_counter()
    # Small arrays gain nothing from more, and lose where cores are shared.
    torch.set_num_threads(1)
    options.folder.mkdir(parents=True, exist_ok=True)
    with executor(options.processes) as pool, Progress(console=console) as progress:
        outcomes = run_all(options, pool, progress)
    order = {group: index for index, group in enumerate(GROUPS)}
    outcomes.sort(key=lambda outcome: (order[outcome.group], outcome.seed))
    device = options.hardware
    settings = {
        "preset": options.preset,
        "seeds": options.work.num_seeds,
        "gan_weight": options.gan_weight,
        "device": torch.cuda.get_device_name() if device == "cuda" else "cpu",
        "seconds": round(time.perf_counter() - start, 1),
        "cpu_seconds": cpu_seconds(),
    }
    report(outcomes, options.divergence, options.folder, settings, console)


if __name__ == "__main__":
    main(tyro.cli(Options))
