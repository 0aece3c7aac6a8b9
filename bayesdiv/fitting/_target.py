"""What the start of a fit needs from a model."""

from __future__ import annotations

from typing import Protocol

import numpy as np


class Target(Protocol):
    """Minus the log-density of the unconstrained latent vector z, in float64 NumPy.

    A target may have ``gradients``, (batch, dim) → (batch, dim), where a batch is faster than a
    loop.
    """

    dim: int

    def value_and_gradient(self, z: np.ndarray) -> tuple[float, np.ndarray]:
        """Potential and gradient at ``z``, shapes () and (dim,)."""

    def hessian(self, z: np.ndarray) -> np.ndarray:
        """Second derivatives at ``z``, shape (dim, dim)."""

    def values(self, z: np.ndarray) -> np.ndarray:
        """Potentials of a batch, shape (batch, dim) → (batch,)."""


def gradients(target: Target, z: np.ndarray) -> np.ndarray:
    """Gradients of a batch, ``(batch, dim)``."""
    batched = getattr(target, "gradients", None)
    if batched is not None:
        return batched(z)
    return np.stack([target.value_and_gradient(row)[1] for row in z])
