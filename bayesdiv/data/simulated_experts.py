"""Regressions drawn from a known mixture of experts."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from bayesdiv._mixture_of_experts import MixtureOfExpertsParameters

__all__ = ["SimulatedExperts", "simulate_experts"]


class SimulatedExperts(NamedTuple):
    """``predictors`` ``(n, dim)``, ``outcome`` and ``labels`` ``(n,)``, the model they are of."""

    predictors: np.ndarray
    outcome: np.ndarray
    labels: np.ndarray
    parameters: MixtureOfExpertsParameters


def simulate_experts(
    seed: int,
    num_rows: int = 100_000,
    *,
    dim: int = 20,
    num_experts: int = 5,
    variance: float = 3.0,
    gate_scale: float = 0.45,
) -> SimulatedExperts:
    """The simulator of the published experiments on distributed mixtures of experts.

    Predictors come from ``num_experts`` Gaussian clusters with whole-numbered means in [−4, 4] and
    covariance 4^(−|i − j|), standardised. Slopes of experts are whole numbers in [−10, 10], all
    intercepts 0, gates' slopes N(0, gate_scale²).

    Raises
    ------
    ValueError
        If a size or a scale is not positive.

    References
    ----------
    Chamroukhi and Pham (2023), "Distributed learning of mixtures of experts", and its code.
    """
    for name, value in (
        ("num_rows", num_rows),
        ("dim", dim),
        ("num_experts", num_experts),
        ("variance", variance),
        ("gate_scale", gate_scale),
    ):
        if not value > 0:
            raise ValueError(f"{name} must be positive, got {value!r}.")
    rng = np.random.default_rng(seed)
    distance = np.abs(np.subtract.outer(np.arange(dim), np.arange(dim)))
    factor = np.linalg.cholesky(4.0**-distance)
    centres = rng.integers(-4, 5, (num_experts, dim))
    clusters = rng.integers(num_experts, size=num_rows)
    predictors = centres[clusters] + rng.standard_normal((num_rows, dim)) @ factor.T
    predictors = (predictors - predictors.mean(axis=0)) / predictors.std(axis=0)
    gate = np.zeros((num_experts, dim + 1))
    gate[:-1, 1:] = gate_scale * rng.standard_normal((num_experts - 1, dim))
    coefficients = np.zeros((num_experts, dim + 1))
    coefficients[:, 1:] = rng.integers(-10, 11, (num_experts, dim))
    features = np.concatenate([np.ones((num_rows, 1)), predictors], axis=1)
    logits = features @ gate.T
    # The largest of logits plus Gumbel noise is a draw from their softmax.
    labels = np.argmax(logits + rng.gumbel(size=logits.shape), axis=1)
    noise = np.sqrt(variance) * rng.standard_normal(num_rows)
    outcome = np.einsum("nf,nf->n", features, coefficients[labels]) + noise
    scale = np.full(num_experts, np.sqrt(variance))
    return SimulatedExperts(
        predictors, outcome, labels, MixtureOfExpertsParameters(gate, coefficients, scale)
    )
