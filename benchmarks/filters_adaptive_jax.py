"""The adaptive particle filter: its cost by the number of particles, and what it buys."""

from __future__ import annotations

import functools
from typing import Any

import jax
import numpy as np

from bayesdiv.inference.adaptive_proposal import AdaptiveProposal
from bayesdiv.inference.proposals import AuxiliaryProposal, BootstrapProposal, GuidedProposal
from benchmarks import filters_problem as problem_
from benchmarks.cases import Case, Comparison, Duel
from benchmarks.filters_jax import ours, timed
from benchmarks.filters_models import formulas
from benchmarks.filters_peers import Run
from benchmarks.filters_problem import Problem
from benchmarks.timing import Step, interleave

# A small fit, which is what pays where a filter costs this little.
FIT = {
    "num_adaptation_particles": 100,
    "num_iterations": 4,
    "kappa": 1e-4,
    "defensive_fraction": 0.02,
}
# Experts and lookahead by model.
KERNELS = {"linear": (1, "exact"), "growth": (2, "lookahead"), "volatility": (1, "lookahead")}


def cases(*, quick: bool) -> list[Case]:
    """One on cost; one a model on variance and cost together."""
    sizes, num_times = ((200, 400), 10) if quick else ((1000, 10_000, 100_000), 100)
    runs = 12 if quick else 100
    cost = functools.partial(prepare_cost, sizes, num_times)
    return [
        Case("jax/filters/adaptive/cost", cost),
        *(
            Case(
                f"jax/filters/adaptive/variance/{problem.name}",
                functools.partial(prepare_variance, problem, runs),
            )
            for problem in (Problem(model, sizes[0], num_times) for model in KERNELS)
        ),
    ]


def prepare_cost(sizes: tuple[int, ...], num_times: int) -> Duel:
    """Batches of a fixed size, and of a size in proportion to the number of particles."""
    problems = {size: Problem("growth", size, num_times) for size in sizes}
    runs: dict[str, Run] = {}
    for size, problem in problems.items():
        fixed, growing = _adaptive("growth"), _adaptive("growth", batch=size // 20)
        runs[f"adaptive {size}"] = ours(problem, fixed)
        runs[f"adaptive {size}, N/20"] = ours(problem, growing)
        runs[f"bootstrap {size}"] = ours(problem, BootstrapProposal())
    steps: dict[str, Step] = {name: timed(run) for name, run in runs.items()}
    pilot = interleave(steps, rounds=3, block_seconds=0.0)
    notes = {}
    for rule, label in (("", "batches of 100"), (", N/20", "batches of N/20")):
        seconds = [min(pilot[f"adaptive {size}{rule}"]) for size in sizes]
        notes[label] = _cost(sizes, num_times, seconds)
    notes["bootstrap"] = _cost(
        sizes, num_times, [min(pilot[f"bootstrap {size}"]) for size in sizes]
    )
    agreement: dict[str, float] = {}
    first = sizes[0]
    logs = {name: _logs(runs[name], problems[first].num_runs) for name in list(runs)[:3]}
    for name in (f"adaptive {first}", f"adaptive {first}, N/20"):
        what = f"{name}: log-evidence, in standard errors"
        agreement |= problem_.evidences_agree(
            what, logs[name], logs[f"bootstrap {first}"], same_law=False
        )
    rivals = [
        Comparison(f"adaptive {size}{rule}", f"bootstrap {size}")
        for size in sizes
        for rule in ("", ", N/20")
    ]
    return Duel(steps, rivals, agreement, notes)


def prepare_variance(problem: Problem, num_runs: int) -> Duel:
    """Variance of the log-evidence times seconds a run, beside filters that do not learn.

    The product is what an answer of a given variance costs, by more runs or more particles.
    """
    given = formulas(problem.model)
    guided = GuidedProposal(given.guided, given.initial_guide)
    lookahead = KERNELS[problem.model][1]
    proposals: dict[str, Any] = {
        "bootstrap": BootstrapProposal(),
        "guided": guided,
        "auxiliary": AuxiliaryProposal(guided, given.lookahead),
        "adaptive": _adaptive(problem.model),
        "adaptive with lookahead": _adaptive(problem.model, lookahead=lookahead),
    }
    runs = {name: ours(problem, proposal) for name, proposal in proposals.items()}
    logs = {name: _logs(run, num_runs) for name, run in runs.items()}
    steps: dict[str, Step] = {name: timed(run) for name, run in runs.items()}
    pilot = interleave(steps, rounds=5, block_seconds=0.02)
    products = {name: np.var(logs[name], ddof=1) * np.median(pilot[name]) for name in runs}
    notes = {
        name: f"sd {np.std(logs[name], ddof=1):.3g}, variance × time "
        f"{products[name] / products['bootstrap']:.2g} of the bootstrap's"
        for name in runs
    }
    notes["runs"] = str(num_runs)
    agreement: dict[str, float] = {}
    for name in runs:
        if name != "bootstrap":
            what = f"{name}: log-evidence, in standard errors"
            agreement |= problem_.evidences_agree(
                what, logs[name], logs["bootstrap"], same_law=False
            )
    rivals = [
        Comparison(name, rival)
        for name, rivals in (
            ("adaptive", ("bootstrap", "guided")),
            ("adaptive with lookahead", ("bootstrap", "auxiliary")),
        )
        for rival in rivals
    ]
    return Duel(steps, rivals, agreement, notes)


def _adaptive(model: str, *, batch: int | None = None, lookahead: str = "none") -> AdaptiveProposal:
    settings: dict[str, Any] = dict(FIT)
    if batch is not None:
        settings["num_adaptation_particles"] = batch
    return AdaptiveProposal(KERNELS[model][0], lookahead=lookahead, **settings)


def _cost(sizes: tuple[int, ...], num_times: int, seconds: list[float]) -> str:
    """Nanoseconds a particle and step, and the slope of their logarithm against that of N."""
    each = np.array(seconds) / np.array(sizes) / num_times
    slope = np.polyfit(np.log(sizes), np.log(each), 1)[0]
    shown = ", ".join(f"{1e9 * value:.3g}" for value in each)
    return f"{shown} ns a particle and step for N = {', '.join(map(str, sizes))}, slope {slope:.2f}"


def _logs(run: Run, count: int) -> list[float]:
    return [float(run(key)[0]) for key in jax.random.split(jax.random.key(0), count)]
