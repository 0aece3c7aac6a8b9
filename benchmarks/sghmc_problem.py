"""What the samplers are timed on: data, sizes and settings, in NumPy."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

STEP_SIZE, FRICTION = 0.01, 0.05
# Enough for scales to be frozen when the clock starts.
BURN_IN = 20
TOLERANCE = 1e-4


@dataclass(frozen=True)
class Problem:
    """Inputs ``(num_data, dim)``, outputs ``(num_data,)`` in {0, 1}, and the minibatch's size."""

    inputs: np.ndarray
    outputs: np.ndarray
    batch_size: int

    @property
    def num_data(self) -> int:
        return len(self.inputs)

    @property
    def dim(self) -> int:
        return self.inputs.shape[1]

    @property
    def scale(self) -> float:
        """What a minibatch's sum is multiplied by."""
        return self.num_data / self.batch_size


def classification(num_data: int, dim: int, batch_size: int = 32) -> Problem:
    """Two classes from a logistic model; float32."""
    rng = np.random.default_rng(0)
    inputs = rng.normal(size=(num_data, dim))
    logits = inputs @ rng.normal(size=dim) * (2.0 / np.sqrt(dim))
    outputs = rng.uniform(size=num_data) < 1.0 / (1.0 + np.exp(-logits))
    return Problem(inputs.astype("float32"), outputs.astype("float32"), batch_size)


@dataclass(frozen=True)
class Layers:
    """A network ``inputs → hidden → hidden → 1`` with tanh, its weights in one row."""

    inputs: int
    hidden: int

    @property
    def shapes(self) -> list[tuple[int, int]]:
        """Of the weights with the bias as last row."""
        return [
            (self.inputs + 1, self.hidden),
            (self.hidden + 1, self.hidden),
            (self.hidden + 1, 1),
        ]

    @property
    def dim(self) -> int:
        return sum(rows * columns for rows, columns in self.shapes)
