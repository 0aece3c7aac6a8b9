"""Series, models, filters and measurements of the adaptive particle filter's example."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from bayesdiv.inference.adaptive_proposal import AdaptiveProposal
from bayesdiv.inference.proposals import AuxiliaryProposal, BootstrapProposal
from bayesdiv.inference.smc import ParticleFilter
from bayesdiv.models.kalman import kalman_filter
from bayesdiv.models.state_space_examples import (
    LinearGaussianParameters,
    growth,
    linear_gaussian,
    norm_observed_walk,
    stochastic_volatility,
    tobit,
)


@dataclass(frozen=True)
class Preset:
    """How much work; None of a length takes that of the case."""

    cases: tuple[str, ...]
    num_runs: int
    num_times: int | None = None
    num_unbiased_runs: int = 0
    cost_sizes: tuple[int, ...] = ()
    # Multiplies every number of particles.
    scale: int = 1
    # Rows of the table; None is all of them.
    rows: tuple[str, ...] | None = None


PRESETS = {
    "quick": Preset(("linear 0.1",), 4, 15, rows=("bootstrap", "K=1 ψ")),
    "laptop": Preset(
        cases=(
            "linear 0.1",
            "linear 0.5",
            "growth 1",
            "growth 0.1",
            "tobit 0.3",
            "tobit 0.03",
            "ring",
            "S&P 500",
        ),
        num_runs=20,
        num_unbiased_runs=4000,
        cost_sizes=(1_000, 10_000, 100_000),
    ),
    "gpu": Preset(
        cases=("linear 0.1", "growth 1", "growth 0.1", "tobit 0.03", "ring", "S&P 500"),
        num_runs=32,
        num_times=1000,
        num_unbiased_runs=20_000,
        cost_sizes=(10_000, 100_000, 1_000_000, 10_000_000),
        scale=100,
    ),
}


@dataclass(frozen=True)
class Row:
    """One filter on one case: what a process measures at a time.

    ``settings`` are those of `AdaptiveProposal`; None of them is the bootstrap, or with
    ``lookahead`` the auxiliary filter that moves particles by the transition.
    """

    case: str
    name: str
    settings: dict[str, Any] | None = None
    lookahead: bool = False
    num_particles: int = 1000
    ess_threshold: float = 1.0
    divergence: str = ""

    @property
    def proposal(self) -> Any:
        if self.settings is not None:
            return AdaptiveProposal(**self.settings)
        return AuxiliaryProposal() if self.lookahead else BootstrapProposal()


@dataclass(frozen=True, eq=False)
class Outcome:
    """Numbers of each run by name, and what is shown over time."""

    row: Row
    runs: dict[str, np.ndarray]
    over_time: dict[str, np.ndarray] = field(default_factory=dict)


@dataclass(frozen=True)
class Case:
    """A model, the observations of one series, and the exact log-evidence if it is known."""

    model: Any
    observations: np.ndarray
    log_evidence: float | None = None


def make_case(name: str, num_times: int | None) -> Case:
    """The case of that name; simulated series have the same seed whatever the filter's."""
    kind, _, number = name.partition(" ")
    if kind == "S&P":
        # Needed by this case only.
        from bayesdiv.data import load_sp500

        returns = load_sp500().between("2007-01-03", "2008-12-26").returns
        return Case(stochastic_volatility(0.2, 0.98, 0.2), returns[:num_times])
    if kind == "ring":
        states, noise = _plane(1.0, num_times or 50)
        return Case(norm_observed_walk(0.1), np.linalg.norm(states, axis=1) + 0.1 * noise)
    scale = float(number)
    if kind == "linear":
        parameters = LinearGaussianParameters(0.9, 1.0, 1.0, scale)
        observations = _linear(scale, num_times or 100)
        exact = float(kalman_filter(parameters, jnp.asarray(observations)).log_evidence)
        return Case(linear_gaussian(parameters), observations, exact)
    if kind == "growth":
        return Case(growth(scale), _growth(scale, num_times or 50))
    states, noise = _plane(0.8, num_times or 50)
    return Case(tobit(scale), np.maximum(states @ [1.0, 0.5] + scale * noise, 0.0))


def _linear(scale: float, num_times: int) -> np.ndarray:
    rng = np.random.default_rng(0)
    states = np.empty(num_times)
    states[0] = rng.normal()
    for t in range(1, num_times):
        states[t] = 0.9 * states[t - 1] + rng.normal()
    return states + scale * rng.normal(size=num_times)


def _growth(scale: float, num_times: int) -> np.ndarray:
    rng = np.random.default_rng(3)
    states = np.empty(num_times)
    states[0] = 2.0 * rng.normal()
    for t in range(1, num_times):
        mean = states[t - 1] / 2 + 25 * states[t - 1] / (1 + states[t - 1] ** 2)
        states[t] = mean + 8 * np.cos(1.2 * (t - 1)) + np.sqrt(10.0) * rng.normal()
    return states**2 / 20 + scale * rng.normal(size=num_times)


def _plane(persistence: float, num_times: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(3)
    states = np.empty((num_times, 2))
    states[0] = rng.normal(size=2)
    for t in range(1, num_times):
        states[t] = persistence * states[t - 1] + rng.normal(size=2)
    return states, rng.normal(size=num_times)


def _adaptive(lookahead: str = "none", **settings: Any) -> dict[str, Any]:
    usual = {"kappa": 1e-4, "defensive_fraction": 0.02, "num_adaptation_particles": 500}
    return usual | {"lookahead": lookahead} | settings


def rows_of(case: str, divergences: tuple[str, ...]) -> list[Row]:
    """The filters that a case compares; objectives beside the first where they are told apart."""
    first = divergences[0]
    kind = case.split(" ")[0]
    exact = "exact" if kind in ("linear", "tobit", "ring") else "lookahead"

    def row(name: str, settings: dict[str, Any] | None, **more: Any) -> Row:
        if settings is not None:
            settings = {"divergence": first} | settings
            more = {"divergence": settings["divergence"]} | more
        return Row(case, name, settings, **more)

    def kernels(*counts: int, psi: str = "none", label: str = "", **settings: Any) -> list[Row]:
        return [
            row(f"K={count}{label}", _adaptive(psi, num_experts=count, **settings))
            for count in counts
        ]

    plain = [row("bootstrap", None), row("auxiliary", None, lookahead=True)]
    small = {"num_adaptation_particles": 100, "num_iterations": 4}
    if kind == "linear":
        bare = {"kappa": 1e-5, "defensive_fraction": 0.0}
        return [
            *plain,
            # A thousand particles leave a step's fixed costs in the lead.
            row("bootstrap 10N", None, num_particles=10_000),
            row("bootstrap 100N", None, num_particles=100_000),
            *kernels(1, **bare),
            *kernels(1, 2, 4, psi=exact, label=" ψ", **bare),
            *kernels(1, psi=exact, label=" ψ ε=.05", kappa=1e-5, defensive_fraction=0.05),
            *kernels(1, psi=exact, label=" ψ small fit", **bare | small),
        ]
    if case == "growth 1":
        return [
            *plain,
            row("bootstrap 10N", None, num_particles=10_000),
            *kernels(1, 2, 4),
            *kernels(1, 2, 4, psi=exact, label=" ψ"),
            *kernels(1, psi=exact, label=" ψ small fit", **small),
            *kernels(2, label=" Student", experts="student_t"),
            *_objectives(case, divergences, exact, (1, 2)),
        ]
    if case == "growth 0.1":
        guards = {"kappa": 1e-3, "defensive_fraction": 0.05, "num_adaptation_particles": 1000}
        return [
            *plain,
            row("bootstrap 10N", None, num_particles=10_000),
            row("bootstrap 100N", None, num_particles=100_000),
            *kernels(2, 4, psi=exact, label=" ψ guarded", **guards),
        ]
    if case == "tobit 0.3":
        return [
            *plain,
            row("bootstrap 10N", None, num_particles=10_000),
            row("bootstrap 100N", None, num_particles=100_000),
            *kernels(1, 2, 4),
            *kernels(1, 2, 4, psi=exact, label=" ψ"),
            *kernels(1, psi=exact, label=" ψ small fit", **small),
            *_objectives(case, divergences, exact, (1,)),
        ]
    if case == "tobit 0.03":
        settings = _adaptive(num_experts=1, num_adaptation_particles=2000)
        return [
            row("bootstrap", None, num_particles=20_000),
            row("bootstrap 10N", None, num_particles=200_000),
            row("auxiliary", None, lookahead=True, num_particles=20_000),
            row("K=1", settings, num_particles=20_000),
            row("K=1 ψ", settings | {"lookahead": exact}, num_particles=20_000),
        ]
    if kind == "ring":
        guards = {"kappa": 1e-2, "defensive_fraction": 0.1}
        bare = {"kappa": 1e-6, "defensive_fraction": 0.0, "num_adaptation_particles": 200}
        return [
            *plain,
            row("bootstrap 10N", None, num_particles=10_000),
            *kernels(1, 2, 4, 8),
            *kernels(8, psi=exact, label=" ψ guarded", gate_strength=2.0, **guards),
            *kernels(8, psi=exact, label=" ψ over-fitted", gate_strength=2.0, **bare),
        ]
    return [
        row("bootstrap", None),
        row("auxiliary", None, lookahead=True),
        row("bootstrap, ESS<N/2", None, ess_threshold=0.5),
        row("bootstrap 10N, ESS<N/2", None, num_particles=10_000, ess_threshold=0.5),
        *kernels(1),
        *kernels(1, psi=exact, label=" ψ"),
        row("K=1 ψ, ESS<N/2", _adaptive(exact, num_experts=1), ess_threshold=0.5),
        row(
            "K=1 ψ small fit, ESS<N/2",
            _adaptive(exact, num_experts=1, **small),
            ess_threshold=0.5,
        ),
        row(
            "K=1, KL>.2, ESS<N/2",
            _adaptive(num_experts=1, adapt_when="kl"),
            ess_threshold=0.5,
        ),
    ]


def _objectives(
    case: str, divergences: tuple[str, ...], psi: str, counts: tuple[int, ...]
) -> list[Row]:
    """The same filter for every divergence."""
    return [
        Row(
            case,
            f"K={count} ψ 2N {divergence}",
            _adaptive(psi, num_experts=count, divergence=divergence, num_adaptation_particles=1000),
            num_particles=2000,
            divergence=divergence,
        )
        for count in counts
        for divergence in divergences
    ]


def measure(row: Row, preset: Preset, seed: int) -> Outcome:
    """Independent runs of one filter, one after the other, timed without their compilation."""
    case = make_case(row.case, preset.num_times)
    count = row.num_particles * preset.scale
    particle_filter = ParticleFilter(
        case.model, row.proposal, num_particles=count, ess_threshold=row.ess_threshold
    )
    observations = jnp.asarray(case.observations)
    keys = jax.random.split(jax.random.key(seed), preset.num_runs)
    start = time.perf_counter()
    _numbers(particle_filter.run(keys[0], observations), count)
    compile_seconds = time.perf_counter() - start
    found, shown = [], []
    start = time.process_time()
    for key in keys:
        numbers, series = _numbers(particle_filter.run(key, observations), count)
        found.append(numbers)
        shown.append(series)
    seconds = (time.process_time() - start) / len(keys)
    runs = {name: np.array([numbers[name] for numbers in found]) for name in found[0]}
    runs |= {"cpu_ms": np.array([1e3 * seconds]), "compile_s": np.array([compile_seconds])}
    if case.log_evidence is not None:
        runs["error"] = runs["log_evidence"] - case.log_evidence
    over_time = {name: np.mean([series[name] for series in shown], axis=0) for name in shown[0]}
    over_time |= {name: shown[0][name] for name in ("mean", "variance")}
    # No row is run twice; what was compiled for all of them would fill the memory.
    jax.clear_caches()
    return Outcome(row, runs, over_time | {"observations": case.observations})


def _numbers(result: Any, count: int) -> tuple[dict[str, float], dict[str, np.ndarray]]:
    ess, kl = np.asarray(result.ess) / count, np.asarray(result.kl)
    numbers = {
        "log_evidence": float(result.log_evidence),
        "ess": float(ess.mean()),
        "min_ess": float(ess.min()),
        "kl": float(kl.mean()),
        "csd": float(np.asarray(result.cv2).mean()),
    }
    series = {
        "ess": ess,
        "csd": np.asarray(result.cv2),
        "mean": np.asarray(result.mean),
        "variance": np.asarray(result.variance),
    }
    if result.adaptation:
        numbers["adapted"] = float(np.asarray(result.adaptation["adapted"]).mean())
        trace = np.asarray(result.adaptation["kl_trace"])
        series["kl_trace"] = np.nanmean(trace, axis=0) if np.isfinite(trace).any() else trace[0]
    return numbers, series


def evidence_ratio(num_runs: int, seed: int) -> tuple[float, float]:
    """Mean of Ẑ/Z over runs of a small adaptive filter, and its standard error."""
    case = make_case("linear 0.1", 10)
    settings = _adaptive(
        "exact",
        num_experts=2,
        num_adaptation_particles=32,
        num_iterations=3,
        kappa=0.01,
        defensive_fraction=0.1,
    )
    small = ParticleFilter(
        case.model, AdaptiveProposal(**settings), num_particles=64, ess_threshold=1.0
    )
    observations = jnp.asarray(case.observations)
    keys = jax.random.split(jax.random.key(seed), num_runs)
    found = jax.vmap(lambda key: small.run(key, observations).log_evidence)(keys)
    ratios = np.exp(np.asarray(found, float) - case.log_evidence)
    return float(ratios.mean()), float(ratios.std(ddof=1) / len(ratios) ** 0.5)


def cost(sizes: tuple[int, ...], seed: int) -> dict[str, Any]:
    """CPU nanoseconds a particle and step, and their slope against the number of particles."""
    case = make_case("growth 1", 50)
    observations = jnp.asarray(case.observations)
    rules: dict[str, Callable[[int], Any]] = {
        "bootstrap": lambda count: BootstrapProposal(),
        "K=2, N₀ = 100": lambda count: AdaptiveProposal(2, num_adaptation_particles=100),
        "K=2, N₀ = N/20": lambda count: AdaptiveProposal(2, num_adaptation_particles=count // 20),
    }
    found: dict[str, Any] = {"sizes": list(sizes)}
    for name, make in rules.items():
        times = []
        for count in sizes:
            particle_filter = ParticleFilter(case.model, make(count), num_particles=count)
            particle_filter.run(jax.random.key(seed), observations)
            repeats = max(3, 200_000 // count)
            start = time.process_time()
            for key in jax.random.split(jax.random.key(seed), repeats):
                jax.block_until_ready(particle_filter.run(key, observations).log_evidence)
            seconds = (time.process_time() - start) / repeats
            times.append(round(1e9 * seconds / count / len(observations), 1))
        slope = np.polyfit(np.log(sizes), np.log(times), 1)[0]
        found[name] = {"ns_per_particle": times, "slope": round(float(slope), 3)}
    return found
