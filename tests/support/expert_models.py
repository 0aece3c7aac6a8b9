"""Mixtures of experts drawn at random, permuted and perturbed, for tests of their reduction."""

from __future__ import annotations

import numpy as np

from bayesdiv._mixture_of_experts import MixtureOfExpertsParameters


def random_model(seed: int, num_experts: int = 3, dim: int = 3) -> MixtureOfExpertsParameters:
    """Gates of moderate size, slopes far apart, scales from 0.5 to 1.5."""
    rng = np.random.default_rng(seed)
    gate = 0.7 * rng.normal(size=(num_experts, dim + 1))
    return MixtureOfExpertsParameters(
        gate - gate[-1:],
        3.0 * rng.normal(size=(num_experts, dim + 1)),
        rng.uniform(0.5, 1.5, num_experts),
    )


def permuted(model: MixtureOfExpertsParameters, order: np.ndarray) -> MixtureOfExpertsParameters:
    """The same law with its experts in another order, the last gate row 0 again."""
    gate = np.asarray(model.gate)[order]
    scale = None if model.scale is None else np.asarray(model.scale)[order]
    return MixtureOfExpertsParameters(
        gate - gate[-1:], np.asarray(model.coefficients)[order], scale
    )


def perturbed(
    model: MixtureOfExpertsParameters, num_models: int, size: float, seed: int = 0
) -> list[MixtureOfExpertsParameters]:
    """Noisy copies, each in an order of its own."""
    rng = np.random.default_rng(seed)
    found = []
    for _ in range(num_models):
        gate, coefficients, scale = model
        noisy = MixtureOfExpertsParameters(
            gate + size * rng.normal(size=gate.shape),
            coefficients + size * rng.normal(size=coefficients.shape),
            None if scale is None else scale * np.exp(0.3 * size * rng.normal(size=scale.shape)),
        )
        found.append(permuted(noisy, rng.permutation(len(gate))))
    return found
