"""Transforms of a small normalising flow that runs both ways in one pass."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from numpyro.distributions import constraints
from numpyro.distributions.transforms import PermuteTransform, Transform

NUM_COUPLINGS = 4
_LARGEST_LOG_SCALE = 3.0


class AffineCoupling(Transform):
    r"""One half of a vector shifted and scaled by a network of the other (Dinh et al. 2017, eq. 7).

    With x = (a, b), y = (a, b exp(s(a)) + t(a)), where s is bounded smoothly by ±3, and the network
    has one hidden layer of tanh.

    Parameters
    ----------
    hidden, hidden_bias
        First layer, ``(dim // 2, width)`` and ``(width,)``.
    output, output_bias
        Second layer, ``(width, 2 (dim − dim // 2))`` and its bias; s first, then t.
    """

    domain = constraints.real_vector
    codomain = constraints.real_vector

    def __init__(
        self, hidden: jax.Array, hidden_bias: jax.Array, output: jax.Array, output_bias: jax.Array
    ) -> None:
        self.hidden, self.hidden_bias = hidden, hidden_bias
        self.output, self.output_bias = output, output_bias

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.call_with_intermediates(x)[0]

    def call_with_intermediates(self, x: jax.Array) -> tuple[jax.Array, Any]:
        kept, moved = self._split(x)
        log_scale, shift = self._network(kept)
        return jnp.concatenate([kept, moved * jnp.exp(log_scale) + shift], axis=-1), log_scale

    def _inverse(self, y: jax.Array) -> jax.Array:
        kept, moved = self._split(y)
        log_scale, shift = self._network(kept)
        return jnp.concatenate([kept, (moved - shift) * jnp.exp(-log_scale)], axis=-1)

    def log_abs_det_jacobian(
        self, x: jax.Array, y: jax.Array, intermediates: Any = None
    ) -> jax.Array:
        log_scale = self._network(self._split(x)[0])[0] if intermediates is None else intermediates
        return jnp.sum(log_scale, axis=-1)

    def tree_flatten(self) -> Any:
        names = ("hidden", "hidden_bias", "output", "output_bias")
        return tuple(getattr(self, name) for name in names), (names, {})

    def _split(self, x: jax.Array) -> tuple[jax.Array, jax.Array]:
        size = self.hidden.shape[-2]
        return x[..., :size], x[..., size:]

    def _network(self, kept: jax.Array) -> tuple[jax.Array, jax.Array]:
        values = jnp.tanh(kept @ self.hidden + self.hidden_bias) @ self.output + self.output_bias
        log_scale, shift = jnp.split(values, 2, axis=-1)
        return _LARGEST_LOG_SCALE * jnp.tanh(log_scale / _LARGEST_LOG_SCALE), shift


class SinhArcsinh(Transform):
    r"""y = sinh(exp(tail) (arcsinh x + skew)), elementwise: skewness and the weight of tails.

    (Jones and Pewsey 2009, eq. 1, with the normal on the inside.)

    Parameters
    ----------
    skew, tail
        ``(dim,)``; zeros give the identity.
    """

    domain = constraints.real_vector
    codomain = constraints.real_vector

    def __init__(self, skew: jax.Array, tail: jax.Array) -> None:
        self.skew, self.tail = skew, tail

    def __call__(self, x: jax.Array) -> jax.Array:
        return jnp.sinh(jnp.exp(self.tail) * (jnp.arcsinh(x) + self.skew))

    def _inverse(self, y: jax.Array) -> jax.Array:
        return jnp.sinh(jnp.exp(-self.tail) * jnp.arcsinh(y) - self.skew)

    def log_abs_det_jacobian(
        self, x: jax.Array, y: jax.Array, intermediates: Any = None
    ) -> jax.Array:
        # cosh of the inner argument is √(1 + y²).
        terms = self.tail + 0.5 * jnp.log1p(y**2) - 0.5 * jnp.log1p(x**2)
        return jnp.sum(terms, axis=-1)

    def tree_flatten(self) -> Any:
        return (self.skew, self.tail), (("skew", "tail"), {})


def initial_parameters(dim: int, rng: np.random.Generator) -> dict[str, np.ndarray]:
    """Parameters by name of a flow that is the identity to 1e-3; of few couplings in few dims.

    One dimension has no halves to couple and gets the elementwise layers alone.
    """
    found: dict[str, np.ndarray] = {}
    size, width = dim // 2, max(16, 2 * dim)
    for layer in range(NUM_COUPLINGS if dim > 1 else 0):
        moved = 2 * (dim - size)
        found[f"hidden_{layer}"] = rng.standard_normal((size, width)) / np.sqrt(size)
        found[f"hidden_bias_{layer}"] = 0.1 * rng.standard_normal(width)
        found[f"output_{layer}"] = 1e-3 * rng.standard_normal((width, moved)) / np.sqrt(width)
        found[f"output_bias_{layer}"] = np.zeros(moved)
    for name in ("skew", "tail", "log_scale"):
        found[name] = np.zeros(dim)
    return found


def build_layers(parameters: dict[str, Any]) -> list[Transform]:
    """The transforms that ``parameters`` stand for, in order of application.

    Skewness and tails come first, coordinate by coordinate, then the couplings, with the order of
    coordinates turned round between them so that each half moves in turn.
    """
    layers: list[Transform] = [SinhArcsinh(parameters["skew"], parameters["tail"])]
    dim = parameters["skew"].shape[-1]
    backwards = jnp.arange(dim - 1, -1, -1)
    for layer in range(NUM_COUPLINGS if dim > 1 else 0):
        names = ("hidden", "hidden_bias", "output", "output_bias")
        layers.append(AffineCoupling(*(parameters[f"{name}_{layer}"] for name in names)))
        layers.append(PermuteTransform(backwards))
    return layers
