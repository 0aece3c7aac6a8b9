"""Presets, data, rows and scores of the example on distributed mixtures of experts."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
from distributed_experts_scores import Outcome, Scores

from bayesdiv.data import load_diamonds, simulate_experts
from bayesdiv.inference.moe_reduction import (
    Reduction,
    TransportReduction,
    baseline,
    expected_divergence,
)
from bayesdiv.inference.moe_shards import DistributedFit, fit_distributed
from bayesdiv.numpyro.distributions import MixtureOfExpertsParameters

__all__ = ["PRESETS", "Preset", "cut", "diamonds_rows", "simulated_rows"]

# Other costs take steps with a search, by quadrature some of them: fewer rows of the support.
CLOSED = ("forward_kl", "reverse_kl", "wasserstein2")


@dataclass(frozen=True)
class Preset:
    """How much work. The last fifth of the rows are for tests."""

    num_rows: int
    dim: int
    num_experts: int
    sizes: tuple[int, ...]
    num_seeds: int
    support_size: int
    diamonds_sizes: tuple[int, ...]
    diamonds_experts: int
    num_draws: int
    num_starts: int = 5
    small_support_size: int = 500
    # Whether draws of all rows at once are made beside those from shards.
    compares_draws: bool = True


PRESETS = {
    "quick": Preset(
        4_000,
        4,
        3,
        (4,),
        1,
        300,
        (),
        4,
        4,
        num_starts=3,
        small_support_size=200,
        compares_draws=False,
    ),
    "laptop": Preset(100_000, 20, 5, (4, 16, 64, 128), 3, 2000, (8, 16), 4, 20, num_starts=10),
    "gpu": Preset(1_000_000, 20, 5, (16, 128, 1024), 10, 5000, (8, 16, 32), 4, 100, num_starts=10),
}


def cut(predictors: np.ndarray, outcome: np.ndarray, size: int) -> list[tuple]:
    """``size`` shards of equal length."""
    length = len(outcome) // size
    return [
        (predictors[place : place + length], outcome[place : place + length])
        for place in range(0, size * length, length)
    ]


def timed(
    reduction: TransportReduction, fit: DistributedFit, num_experts: int, **more: Any
) -> tuple[Reduction, dict[str, float]]:
    """A reduction of the shards' models, and the time of a second one, compiled already."""
    arguments = {
        "models": fit.models,
        "support": fit.support,
        "weights": fit.weights,
        "num_experts": num_experts,
        **more,
    }
    reduction.run(jax.random.key(0), **arguments)
    start, cpu = time.perf_counter(), time.process_time()
    found = reduction.run(jax.random.key(0), **arguments)
    seconds = {
        "reduction_seconds": time.perf_counter() - start,
        "reduction_cpu": time.process_time() - cpu,
    }
    return found, seconds


def simulated_rows(
    work: Preset, backend: Any, seed: int, divergences: Sequence[str], ablation: Any
) -> Iterator[Outcome]:
    """Every row of the simulated comparison, for one seed; ``ablation`` is a ground cost."""
    data = simulate_experts(seed, work.num_rows, dim=work.dim, num_experts=work.num_experts)
    num_train = work.num_rows * 4 // 5
    predictors, outcome = data.predictors[:num_train], data.outcome[:num_train]
    scores = Scores(
        data.predictors[num_train:],
        data.outcome[num_train:],
        data.parameters,
        data.labels[num_train:],
    )
    settings = {"backend": backend, "num_starts": work.num_starts}
    everything = fit_distributed(
        jax.random.key(seed), [(predictors, outcome)], work.num_experts, **settings
    )
    whole = everything.local_fits[0]
    whole_time = {"local_seconds": whole.seconds, "local_cpu": whole.cpu_seconds}
    yield Outcome("simulated", "truth", 1, seed, scores.of(data.parameters))
    yield Outcome("simulated", "global", 1, seed, {**scores.of(whole.parameters), **whole_time})
    chosen = np.random.default_rng(seed).choice(num_train, work.support_size, replace=False)
    middle = work.sizes[min(1, len(work.sizes) - 1)]
    for size in work.sizes:
        fit = fit_distributed(
            jax.random.key(seed),
            cut(predictors, outcome, size),
            work.num_experts,
            support_size=work.support_size,
            **settings,
        )
        local = {
            "local_seconds": fit.seconds["local_max"],
            "local_cpu": fit.seconds["local_cpu_max"],
            "local_sum": fit.seconds["local_sum"],
        }
        reductions: dict[str, tuple[TransportReduction, dict]] = {
            divergences[0]: (TransportReduction(divergences[0]), {}),
            "trimmed": (TransportReduction(divergences[0], trim=True), {}),
        }
        if ablation is not None:
            reductions["no spread term"] = (TransportReduction(ablation, trim=True), {})
        if size == middle:
            posterior = TransportReduction(divergences[0], gate_target="posterior")
            labelled = {"support": predictors[chosen], "outcome": outcome[chosen]}
            reductions["gate from posterior"] = (posterior, labelled)
            for name in divergences[1:]:
                few = {} if name in CLOSED else {"support": fit.support[: work.small_support_size]}
                reductions[name] = (TransportReduction(name), few)
        for row, (reduction, more) in reductions.items():
            found, spent = timed(reduction, fit, work.num_experts, **more)
            metrics = {
                **scores.of(found.parameters),
                **local,
                **spent,
                "flagged": float(found.distances.flags.sum()),
                "rises": float(np.sum(np.diff(found.trace) > 1e-6 * np.abs(found.trace[1:]))),
                "steps": float(len(found.trace) - 1),
                "speed_up": whole.cpu_seconds / (local["local_cpu"] + spent["reduction_cpu"]),
                "speed_up_wall": whole.seconds
                / (local["local_seconds"] + spent["reduction_seconds"]),
            }
            arrays = {}
            if row == divergences[0]:
                arrays = {
                    "distances": found.distances.distances,
                    "threshold": np.asarray(found.distances.threshold),
                }
            yield Outcome("simulated", row, size, seed, metrics, arrays)
        if fit.reduction.distances.flags.any():
            more = {"support_size": work.support_size, **settings}
            trimmed = TransportReduction(divergences[0], trim=True)
            for row, options in (
                ("trimmed, refitted", {"reduction": trimmed, "refit": True}),
                # Fifteen iterations tell good starts from bad ones only where rows are many.
                ("longer short runs", {"reduction": trimmed, "short_iterations": 40}),
            ):
                again = fit_distributed(
                    jax.random.key(seed),
                    cut(predictors, outcome, size),
                    work.num_experts,
                    **{**more, **options},
                )
                flagged = float(again.reduction.distances.flags.sum())
                metrics = {
                    **scores.of(again.parameters),
                    "flagged": flagged,
                    "local_cpu": again.seconds["local_cpu_max"],
                }
                yield Outcome("simulated", row, size, seed, metrics)
        yield from _baseline_rows("simulated", fit, scores, size, seed)


def _baseline_rows(
    data: str, fit: DistributedFit, scores: Scores, size: int, seed: int
) -> Iterator[Outcome]:
    for name in ("aligned_average", "naive_average", "coordinate_median", "middle", "greedy_merge"):
        model = baseline(name, fit.models, fit.support, weights=fit.weights)
        yield Outcome(data, name, size, seed, scores.of(model))
    yield Outcome(data, "pooled", size, seed, scores.of_pool(fit.models, fit.weights))


def diamonds_rows(
    work: Preset, backend: Any, seed: int, divergences: Sequence[str]
) -> Iterator[Outcome]:
    """Log-prices of diamonds: random shards, then one shard a colour."""
    table = load_diamonds()
    order = np.random.default_rng(seed).permutation(len(table.log_price))
    test, train = order[:10_000], order[10_000:]
    scores = Scores(table.predictors[test], table.log_price[test])
    predictors, outcome = table.predictors[train], table.log_price[train]
    num_experts = work.diamonds_experts
    settings = {"num_starts": work.num_starts, "support_size": work.support_size}
    key = jax.random.key(seed)
    everything = fit_distributed(
        key, [(predictors, outcome)], num_experts, backend=backend, **settings
    )
    yield Outcome("diamonds", "least squares", 1, seed, _least_squares(table, train, scores))
    yield Outcome("diamonds", "global", 1, seed, scores.of(everything.parameters))
    for size in work.diamonds_sizes:
        fit = fit_distributed(
            key, cut(predictors, outcome, size), num_experts, backend=backend, **settings
        )
        yield from _real_rows("diamonds", fit, scores, size, seed, work, divergences)
    colours = table.color[train]
    shards = [
        (predictors[colours == colour], outcome[colours == colour]) for colour in np.unique(colours)
    ]
    # Their lengths differ: one vmapped EM pads them, where workers would compile for each.
    fit = fit_distributed(key, shards, num_experts, backend="vmap", **settings)
    yield from _real_rows("by colour", fit, scores, len(shards), seed, work, divergences[:1])
    local = fit_distributed(
        key, shards, num_experts, backend="vmap", weighting="density", **settings
    )
    yield Outcome("by colour", "weights by density", len(shards), seed, scores.of(local.parameters))


def _real_rows(
    data: str,
    fit: DistributedFit,
    scores: Scores,
    size: int,
    seed: int,
    work: Preset,
    divergences: Sequence[str],
) -> Iterator[Outcome]:
    pool = fit.models, fit.weights
    for name in divergences:
        support = fit.support if name in CLOSED else fit.support[: work.small_support_size]
        found = TransportReduction(name).run(
            jax.random.key(seed), fit.models, support, weights=fit.weights
        )
        metrics = {
            **scores.of(found.parameters),
            "to_pool": expected_divergence(
                pool[0], found.parameters, scores.predictors[:2000], weights=pool[1]
            ),
            "flagged": float(found.distances.flags.sum()),
        }
        yield Outcome(data, name, size, seed, metrics)
    trimmed = TransportReduction(divergences[0], trim=True).run(
        jax.random.key(seed), fit.models, fit.support, weights=fit.weights
    )
    metrics = {**scores.of(trimmed.parameters), "flagged": float((~trimmed.used).sum())}
    yield Outcome(data, "trimmed", size, seed, metrics)
    yield from _baseline_rows(data, fit, scores, size, seed)


def _least_squares(table: Any, train: np.ndarray, scores: Scores) -> dict[str, float]:
    features = np.concatenate([np.ones((len(train), 1)), table.predictors[train]], axis=1)
    weights, *_ = np.linalg.lstsq(features, table.log_price[train], rcond=None)
    spread = np.std(table.log_price[train] - features @ weights)
    return scores.of(
        MixtureOfExpertsParameters(np.zeros((1, len(weights))), weights[None], np.array([spread]))
    )
