"""What particle filters are timed on: series, sizes, and when evidences agree; in NumPy."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from benchmarks.cases import ResultsDiffer

MODELS = ("growth", "volatility")
# Mean, persistence and scale of the log-variance: Pitt and Shephard (1999).
VOLATILITY = (-1.02, 0.9702, 0.178)
# Persistence, scales of x_0 and of the transition, and of the emission, which is sharp.
LINEAR = (0.9, 1.0, 1.0, 0.1)
ESS_THRESHOLD = 0.5
# Of the difference of two mean log-evidences.
STANDARD_ERRORS = 4.0


@dataclass(frozen=True)
class Problem:
    """A model by name, a number of particles and the length of the series."""

    model: str
    num_particles: int
    num_times: int

    @property
    def name(self) -> str:
        return f"{self.model}/{self.num_particles}x{self.num_times}"

    @property
    def observations(self) -> np.ndarray:
        """``(num_times,)``, float32; the same whatever the number of particles."""
        return SERIES[self.model](self.num_times).astype("float32")

    @property
    def num_runs(self) -> int:
        """Runs whose evidences are compared: fewer where one takes longer and varies less."""
        return 8 if self.num_particles * self.num_times >= 5_000_000 else 24


def bootstrap_problems(*, quick: bool) -> list[Problem]:
    """Of the bootstrap filter."""
    sizes = [(200, 10)] if quick else [(n, 100) for n in (1000, 10_000, 100_000)]
    sizes += [] if quick else [(1000, 1000), (10_000, 1000)]
    return [Problem(model, *size) for model in MODELS for size in sizes]


def guided_problems(*, quick: bool) -> list[Problem]:
    """Of guided and auxiliary filters."""
    sizes = (200,) if quick else (1000, 10_000, 100_000)
    return [Problem(model, size, 10 if quick else 100) for model in MODELS for size in sizes]


def growth_series(num_times: int) -> np.ndarray:
    """x_t = x/2 + 25 x / (1 + x²) + 8 cos(1.2 (t − 1)) + √10 ε, y_t = x_t² / 20 + η."""
    rng = np.random.default_rng(3)
    noise, errors = rng.normal(size=num_times), rng.normal(size=num_times)
    states = np.empty(num_times)
    states[0] = 2.0 * noise[0]
    for t in range(1, num_times):
        before = states[t - 1]
        mean = before / 2 + 25 * before / (1 + before**2) + 8 * math.cos(1.2 * (t - 1))
        states[t] = mean + math.sqrt(10.0) * noise[t]
    return states**2 / 20 + errors


def volatility_series(num_times: int) -> np.ndarray:
    """x_t − μ = ρ (x_{t−1} − μ) + s ε, y_t = exp(x_t / 2) η."""
    mean, persistence, scale = VOLATILITY
    rng = np.random.default_rng(4)
    noise, errors = rng.normal(size=num_times), rng.normal(size=num_times)
    states = np.empty(num_times)
    states[0] = mean + scale / math.sqrt(1.0 - persistence**2) * noise[0]
    for t in range(1, num_times):
        states[t] = mean + persistence * (states[t - 1] - mean) + scale * noise[t]
    return np.exp(0.5 * states) * errors


def linear_series(num_times: int) -> np.ndarray:
    """x_t = ρ x_{t−1} + s ε, y_t = x_t + r η."""
    persistence, initial_scale, scale, noise_scale = LINEAR
    rng = np.random.default_rng(5)
    noise, errors = rng.normal(size=num_times), rng.normal(size=num_times)
    states = np.empty(num_times)
    states[0] = initial_scale * noise[0]
    for t in range(1, num_times):
        states[t] = persistence * states[t - 1] + scale * noise[t]
    return states + noise_scale * errors


SERIES = {"growth": growth_series, "volatility": volatility_series, "linear": linear_series}


def evidences_agree(
    what: str, found: Sequence[float], wanted: Sequence[float], *, same_law: bool
) -> dict[str, float]:
    """``{what: difference of log-evidences in standard errors}``.

    Filters that do the same have estimates of one law, and their mean logarithms are compared. Of
    filters that differ only the evidence itself has one mean; its estimates are nearly log-normal
    where a filter works, so that half of their variance is added to their mean logarithm.

    Raises
    ------
    ResultsDiffer
        If the difference is above `STANDARD_ERRORS`, or not a number.
    """
    (mean, error), (their_mean, their_error) = (
        _mean_log(logs, same_law=same_law) for logs in (found, wanted)
    )
    gap = abs(mean - their_mean) / max(math.hypot(error, their_error), 1e-6)
    if not gap <= STANDARD_ERRORS:
        raise ResultsDiffer(
            f"{what}: log-evidence {mean:.3f} ± {error:.3f} and {their_mean:.3f} ± "
            f"{their_error:.3f}, {gap:.1f} standard errors apart, tolerance {STANDARD_ERRORS:g}"
        )
    return {what: gap}


def _mean_log(logs: Sequence[float], *, same_law: bool) -> tuple[float, float]:
    """What is compared, and its standard error."""
    values = np.asarray(logs, dtype=float)
    mean, variance, count = float(values.mean()), float(values.var(ddof=1)), len(values)
    if same_law:
        return mean, math.sqrt(variance / count)
    error = math.sqrt(variance / count + variance**2 / (2 * (count - 1)))
    return mean + 0.5 * variance, error
