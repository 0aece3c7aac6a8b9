"""Samples to transport between, and what equal accuracy means; NumPy only."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np


class SinkhornProblem(NamedTuple):
    """Sizes, ε as a share of the mean cost, the L1 error of the marginals and the debiasing."""

    count: int
    dim: int
    relative_epsilon: float
    error: float
    debias: bool

    @property
    def name(self) -> str:
        """As it appears in the table."""
        kind = "debiased" if self.debias else "plain"
        return f"{kind}/{self.count}x{self.dim}/eps {self.relative_epsilon:g}/err {self.error:g}"


class SlicedProblem(NamedTuple):
    """Sizes of both samples, dimension and number of directions."""

    x_count: int
    y_count: int
    dim: int
    directions: int

    @property
    def name(self) -> str:
        """As it appears in the table."""
        return f"{self.x_count}+{self.y_count}x{self.dim}/{self.directions}"


class Attempt(NamedTuple):
    """A solver's setting and the marginal error that it led to."""

    setting: float
    error: float


# In float32 a projection rounds differently in every library: near ties change places, and with
# them single entries of the gradient.
SLICED_TOLERANCE = 1e-3
SCALINGS = (0.5, 0.6, 0.7, 0.8, 0.85, 0.9, 0.925, 0.95, 0.97, 0.98, 0.99, 0.995)


def tolerances(error: float) -> tuple[float, ...]:
    """From loose to tight: libraries stop by different norms, at every tenth iteration."""
    return tuple(error * factor for factor in (30.0, 10.0, 3.0, 1.0, 0.3, 0.1, 0.03, 0.01, 1e-3))


def sinkhorn_problems(*, quick: bool) -> list[SinkhornProblem]:
    """Moderate and small ε, loose and tight, two sizes."""
    if quick:
        return [SinkhornProblem(40, 2, 0.1, 1e-2, debias) for debias in (False, True)]
    return [
        SinkhornProblem(500, 5, 0.05, 1e-2, debias=False),
        SinkhornProblem(500, 5, 0.05, 1e-2, debias=True),
        SinkhornProblem(500, 5, 0.05, 1e-4, debias=True),
        SinkhornProblem(500, 5, 0.005, 1e-2, debias=True),
        SinkhornProblem(2000, 10, 0.05, 1e-3, debias=False),
        SinkhornProblem(2000, 10, 0.05, 1e-3, debias=True),
    ]


def sliced_problems(*, quick: bool) -> list[SlicedProblem]:
    """From a few hundred points on the plane to thousands in 50 dimensions."""
    if quick:
        return [SlicedProblem(20, 20, 2, 8), SlicedProblem(20, 30, 2, 8)]
    return [
        SlicedProblem(256, 256, 2, 64),
        SlicedProblem(1000, 1000, 20, 128),
        SlicedProblem(1000, 1500, 20, 128),
        SlicedProblem(5000, 5000, 50, 256),
    ]


def samples(x_count: int, y_count: int, dim: int) -> tuple[np.ndarray, np.ndarray]:
    """Two Gaussian samples, the second shifted and narrower, in float32."""
    generator = np.random.default_rng(0)
    x = generator.normal(size=(x_count, dim))
    y = 0.7 * generator.normal(size=(y_count, dim)) + 0.5
    return x.astype(np.float32), y.astype(np.float32)


def unit_directions(count: int, dim: int) -> np.ndarray:
    """Directions that every contestant is given where their results are compared."""
    directions = np.random.default_rng(1).normal(size=(count, dim))
    return (directions / np.linalg.norm(directions, axis=1, keepdims=True)).astype(np.float32)


def squared_distances(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """The cost of every contestant, in float64."""
    x, y = x.astype(float), y.astype(float)
    return np.maximum((x**2).sum(1)[:, None] + (y**2).sum(1) - 2.0 * x @ y.T, 0.0)


def marginal_error(log_plan: np.ndarray) -> float:
    """L1 distance of both marginals from uniform, computed alike for every solver."""
    plan = np.exp(log_plan)
    n, m = plan.shape
    return float(np.abs(plan.sum(1) - 1.0 / n).sum() + np.abs(plan.sum(0) - 1.0 / m).sum())


def loosest(
    settings: Sequence[float], error_at: Callable[[float], float], wanted: float
) -> Attempt | None:
    """The first setting, from loose to tight, whose error is within ``wanted``; None if none is."""
    for setting in settings:
        error = error_at(setting)
        if error <= wanted:
            return Attempt(setting, error)
    return None
