"""Mixtures of experts fitted on shards, and made one by a transport-based reduction.

Every shard is fitted by EM where it lies, on Dask's workers, and sends its parameters. They are
reduced to one model by minimising an expected transportation divergence, whose cost between experts
is any of the layer's. Beside it: all rows at once, and simpler ways to average models.

    python examples/distributed_mixture_of_experts.py --preset laptop
    python examples/distributed_mixture_of_experts.py --divergence reverse_kl wasserstein2
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import jax
import numpy as np
import tyro
from distributed_experts_bootstrap import bootstrap
from distributed_experts_experiment import PRESETS, Preset, diamonds_rows, simulated_rows
from distributed_experts_report import report
from rich.console import Console
from rich.progress import Progress

from bayesdiv.inference.moe_reduction import (
    Experts,
    GaussianForwardKL,
    TransportPlan,
    list_ground_costs,
)

RESULTS = Path(__file__).parent.parent / "results" / "distributed_mixture_of_experts"


@dataclass(frozen=True)
class WithoutSpread(GaussianForwardKL):
    """Forward KL whose variances forget the spread between experts, as the first code had it."""

    def update(
        self, features: jax.Array, plan: TransportPlan, local: Experts, current: Experts
    ) -> Experts:
        found = super().update(features, plan, local, current)
        within = plan.received(local.scale[plan.local] ** 2).sum(axis=0)
        return found._replace(scale=(within / plan.received().sum(axis=0)) ** 0.5)


@dataclass(frozen=True)
class Options:
    """Fit mixtures of experts on shards, reduce them by divergences, and score them."""

    divergence: tuple[str, ...] = (
        "forward_kl",
        "reverse_kl",
        "wasserstein2",
        "jensen_shannon",
        "renyi",
        "squared_hellinger",
    )
    """Costs between experts. The first is run for every number of shards, the others for one."""
    preset: Literal["quick", "laptop", "gpu"] = "laptop"
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """With cuda all shards are one vmapped EM in this process."""
    seed: int = 0
    sizes: tuple[int, ...] = ()
    """Numbers of shards; those of the preset by default."""
    num_seeds: int | None = None
    """Seeds from ``seed`` on; the preset's number by default."""
    backend: Literal["auto", "dask", "vmap"] = "auto"
    """Where shards are fitted: dask, but vmap on a GPU and in the quick preset."""
    scheduler: str | None = None
    """Address of a Dask scheduler; a cluster on this machine by default."""
    workers: int = 2
    """Of the cluster on this machine."""
    output: Path | None = None
    """Where results go; results/distributed_mixture_of_experts/<preset> by default."""

    def __post_init__(self) -> None:
        unknown = sorted(set(self.divergence) - set(list_ground_costs()))
        if unknown or not self.divergence:
            raise ValueError(
                f"divergence must be among {list_ground_costs()}, got {unknown or 'none'}."
            )

    @property
    def work(self) -> Preset:
        """The preset, with the sizes and seeds asked for."""
        preset = PRESETS[self.preset]
        num_seeds = preset.num_seeds if self.num_seeds is None else self.num_seeds
        return replace(preset, sizes=self.sizes or preset.sizes, num_seeds=num_seeds)

    @property
    def folder(self) -> Path:
        """Where results go."""
        return RESULTS / self.preset if self.output is None else self.output


@contextmanager
def shard_backend(options: Options) -> Iterator[Any]:
    """ "vmap", or a Dask client whose workers have one thread each."""
    on_gpu = options.device != "cpu" and jax.default_backend() == "gpu"
    wanted = options.backend
    if wanted == "auto":
        wanted = "vmap" if on_gpu or options.preset == "quick" else "dask"
    if wanted == "vmap":
        yield "vmap"
        return
    from distributed import Client, LocalCluster

    from bayesdiv.inference.moe_shards import ONE_THREAD

    if options.scheduler is not None:
        with Client(options.scheduler) as client:
            yield client
        return
    with (
        LocalCluster(
            n_workers=options.workers,
            threads_per_worker=1,
            dashboard_address=None,
            env=ONE_THREAD,
        ) as cluster,
        Client(cluster) as client,
    ):
        yield client


def main(options: Options) -> None:
    """Every row of every seed, then tables, figures and files."""
    if options.device == "cpu":
        jax.config.update("jax_platforms", "cpu")
    console = Console(width=max(Console().width, 170))
    start, work = time.perf_counter(), options.work
    options.folder.mkdir(parents=True, exist_ok=True)
    seeds = range(options.seed, options.seed + work.num_seeds)
    outcomes = []
    with shard_backend(options) as backend, Progress(console=console) as progress:
        tasks = [("simulated", seed) for seed in seeds]
        tasks += [("diamonds", seed) for seed in seeds if work.diamonds_sizes]
        bar = progress.add_task("data sets and seeds", total=len(tasks) + 1)
        for data, seed in tasks:
            if data == "simulated":
                found = simulated_rows(work, backend, seed, options.divergence, WithoutSpread())
            else:
                found = diamonds_rows(work, backend, seed, options.divergence)
            outcomes += list(found)
            progress.advance(bar)
        draws = bootstrap(work, options.seed, size=work.sizes[min(1, len(work.sizes) - 1)])
        progress.advance(bar)
    report(
        outcomes,
        draws,
        options.folder,
        {
            "preset": options.preset,
            "divergence": list(options.divergence),
            "seeds": len(seeds),
            "versions": {"jax": jax.__version__, "numpy": np.__version__},
            "seconds": round(time.perf_counter() - start, 1),
        },
        console,
    )


if __name__ == "__main__":
    main(tyro.cli(Options))
