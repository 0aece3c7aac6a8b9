"""Particle filters whose proposal learns at every step, and what that is worth at equal CPU.

Where the observation is sharp, particles that move by the transition mostly miss. The adaptive
filter fits a mixture of experts to where they should have gone, by any f-divergence, before it
moves them. It is compared with bootstrap and auxiliary filters on simulated series with known
answers and on two years of the S&P 500: weights, spread of the log-evidence, and CPU time.

    python examples/adaptive_particle_filter.py --preset laptop
    python examples/adaptive_particle_filter.py --divergence jensen_shannon --cases "growth 1"
"""

from __future__ import annotations

import os
import time
from concurrent.futures import as_completed
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from example_options import check_names

# Read when JAX starts: one thread each, so that CPU seconds are comparable.
os.environ.setdefault("XLA_FLAGS", "--xla_cpu_multi_thread_eigen=false")

import jax
import jax.numpy as jnp
import tyro
from adaptive_filter_experiment import (
    PRESETS,
    Outcome,
    Preset,
    Row,
    cost,
    evidence_ratio,
    make_case,
    measure,
    rows_of,
)
from adaptive_filter_report import report
from processes import executor
from rich.console import Console
from rich.progress import Progress

from bayesdiv.inference.adaptive_proposal import AdaptiveProposal
from bayesdiv.inference.smc import ParticleFilter

RESULTS = Path(__file__).parent.parent / "results" / "adaptive_particle_filter"
DIVERGENCES = (
    "forward_kl",
    "pearson_chi2",
    "squared_hellinger",
    "jensen_shannon",
    "total_variation",
)


@dataclass(frozen=True)
class Options:
    """Compare particle filters with and without a proposal that learns."""

    divergence: tuple[str, ...] = DIVERGENCES
    """Objectives of the proposal. The first is used everywhere, the others where they compete."""
    preset: Literal["quick", "laptop", "gpu"] = "laptop"
    device: Literal["auto", "cpu", "cuda"] = "auto"
    seed: int = 0
    cases: tuple[str, ...] = ()
    """Cases; those of the preset by default."""
    num_runs: int | None = None
    """Independent runs of each filter; the preset's number by default."""
    processes: int = 2
    """0 runs everything in this one."""
    output: Path | None = None
    """Where results go; results/adaptive_particle_filter/<preset> by default."""

    def __post_init__(self) -> None:
        if not self.divergence:
            raise ValueError("divergence must name at least one f-divergence.")
        for name in self.divergence:
            AdaptiveProposal(divergence=name)
        check_names("cases", self.cases, PRESETS["laptop"].cases)

    @property
    def work(self) -> Preset:
        """The preset, with the cases and runs asked for."""
        preset = PRESETS[self.preset]
        num_runs = preset.num_runs if self.num_runs is None else self.num_runs
        return replace(preset, cases=self.cases or preset.cases, num_runs=num_runs)

    @property
    def folder(self) -> Path:
        """Where results go."""
        return RESULTS / self.preset if self.output is None else self.output

    @property
    def rows(self) -> list[Row]:
        """Every filter of every case."""
        found = [row for case in self.work.cases for row in rows_of(case, self.divergence)]
        wanted = self.work.rows
        return [row for row in found if wanted is None or row.name in wanted]


def start(options: Options) -> None:
    """What every process does first."""
    if options.device != "auto":
        jax.config.update("jax_platforms", options.device)
    # Evidence over hundreds of steps and times of microseconds: float64 on the processor.
    jax.config.update("jax_enable_x64", options.preset != "gpu")


def run_row(options: Options, row: Row) -> Outcome:
    """One filter of the table: what a process does at a time."""
    start(options)
    return measure(row, options.work, options.seed)


def save_container(options: Options) -> None:
    """An ArviZ file of the first case that has an adaptive filter with lookahead."""
    rows = [row for row in options.rows if row.settings and "ψ" in row.name]
    if not rows:
        return
    row = next((row for row in rows if row.case == "S&P 500"), rows[0])
    case = make_case(row.case, options.work.num_times)
    particle_filter = ParticleFilter(
        case.model, row.proposal, num_particles=1000, ess_threshold=row.ess_threshold
    )
    keys = jax.random.split(jax.random.key(options.seed), 4)
    observations = jnp.asarray(case.observations)

    def run(key: jax.Array) -> Any:
        return particle_filter.run(key, observations, store="particles")

    container = jax.vmap(run)(keys).to_arviz(
        observations=case.observations, num_draws=50, seed=options.seed, pareto_k=True
    )
    container.to_netcdf(options.folder / "posterior.nc")


def main(options: Options) -> None:
    """Every filter of every case, then tables, figures and files."""
    console = Console(width=max(Console().width, 150))
    begin = time.perf_counter()
    options.folder.mkdir(parents=True, exist_ok=True)
    rows = options.rows
    outcomes: dict[int, Outcome] = {}
    with executor(options.processes) as pool, Progress(console=console) as progress:
        bar = progress.add_task("filters", total=len(rows))
        # The largest first, so that no process is left with one at the end.
        order = sorted(range(len(rows)), key=lambda index: -rows[index].num_particles)
        running = {pool.submit(run_row, options, rows[index]): index for index in order}
        for finished in as_completed(running):
            outcomes[running[finished]] = finished.result()
            progress.advance(bar)
    start(options)
    work = options.work
    ratio = evidence_ratio(work.num_unbiased_runs, options.seed) if work.num_unbiased_runs else None
    costs = cost(work.cost_sizes, options.seed) if work.cost_sizes else {}
    save_container(options)
    report(
        [outcomes[index] for index in range(len(rows))],
        ratio,
        costs,
        options.folder,
        {
            "preset": options.preset,
            "divergences": list(options.divergence),
            "device": jax.devices()[0].device_kind,
            "seconds": round(time.perf_counter() - begin, 1),
        },
        console,
    )


if __name__ == "__main__":
    main(tyro.cli(Options))
