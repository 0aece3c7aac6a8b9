"""Networks as pure functions of named weights, and Gaussian priors over those weights."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

from bayesdiv._array import Array, array_namespace, as_array_like, is_jax_array, is_torch_array
from bayesdiv._control import is_traced
from bayesdiv._random import split_rng, standard_normal

Weights = Mapping[str, Array]
"""Arrays by name, each ``(*batch, *shape)`` with one common batch: chains, draws or neither."""

_LOG_TWO_PI = math.log(2.0 * math.pi)


class AutoencoderNetwork(ABC):
    """An encoder and a decoder that own no weights.

    ``weights`` may stand in a batch, ``(*batch, *shape)`` each; every function then answers for
    each member of the batch. Images are flat rows in and out.
    """

    latent_dim: int
    data_dim: int

    @abstractmethod
    def weight_shapes(self) -> dict[str, tuple[int, ...]]:
        """Shape of every weight, by name, in the order in which they are used."""

    @abstractmethod
    def fan_in(self) -> dict[str, float]:
        """How many inputs a unit of the weight's layer sums, by the weight's name."""

    @abstractmethod
    def encode(self, weights: Weights, images: Array) -> Array:
        """Codes ``(*batch, n, latent_dim)`` of ``images``, ``(n, data_dim)``; no activation."""

    @abstractmethod
    def decode(self, weights: Weights, codes: Array) -> Array:
        """Logits ``(*batch, n, data_dim)`` of ``codes``, ``(n, latent_dim)`` or batched alike."""

    def __call__(self, weights: Weights, images: Array) -> Array:
        """Logits of the reconstructions of ``images``."""
        return self.decode(weights, self.encode(weights, images))

    def num_weights(self) -> int:
        return sum(math.prod(shape) for shape in self.weight_shapes().values())

    def init_weights(self, rng: Any, *, like: Array, batch: tuple[int, ...] = ()) -> dict:
        """Fresh weights N(0, 2 / fan-in) and biases 0, which keep the signal's size under ReLU.

        Parameters
        ----------
        rng
            JAX key, or torch generator or seed.
        like
            An array that decides library, dtype and device, for example the images.
        batch
            Leading shape of independent sets of weights, such as ``(num_chains,)``.

        References
        ----------
        He, Zhang, Ren and Sun (2015), equation 10.
        """
        shapes, fan_in = self.weight_shapes(), self.fan_in()
        keys = split_rng(rng, like, len(shapes))
        return {
            name: standard_normal(key, (*batch, *shape), like)
            * (math.sqrt(2.0 / fan_in[name]) if name.endswith("weight") else 0.0)
            for key, (name, shape) in zip(keys, shapes.items(), strict=True)
        }

    def flatten(self, weights: Weights) -> Array:
        """All weights as rows ``(*batch, num_weights)``."""
        xp = array_namespace(next(iter(weights.values())))
        rows = []
        for name, shape in self.weight_shapes().items():
            batch = weights[name].shape[: weights[name].ndim - len(shape)]
            rows.append(xp.reshape(weights[name], (*batch, math.prod(shape))))
        return xp.concat(rows, axis=-1)

    def unflatten(self, rows: Array) -> dict[str, Array]:
        """The inverse of `flatten`."""
        if rows.shape[-1] != self.num_weights():
            raise ValueError(
                f"rows must have {self.num_weights()} entries on the last axis, one a weight, got "
                f"shape {tuple(rows.shape)}."
            )
        shapes = self.weight_shapes()
        sizes = [math.prod(shape) for shape in shapes.values()]
        xp = array_namespace(rows)
        # One split, not slices: torch pads the gradient of every slice to all of the rows.
        parts = (
            rows.split(sizes, dim=-1)
            if is_torch_array(rows)
            else xp.split(rows, list(accumulate(sizes))[:-1], axis=-1)
        )
        return {
            name: xp.reshape(part, (*rows.shape[:-1], *shape))
            for part, (name, shape) in zip(parts, shapes.items(), strict=True)
        }


@dataclass(frozen=True, eq=False)
class WeightPrior:
    """Independent Gaussians over named weights: w ~ N(mean, exp(log_variance)).

    Attributes
    ----------
    shapes
        Shape of every weight by name.
    mean, log_variance
        By name, each of a shape that broadcasts against the weight's: full, or ``()`` for one
        number a tensor.

    Raises
    ------
    ValueError
        If names differ, or a shape does not broadcast.
    """

    shapes: Mapping[str, tuple[int, ...]]
    mean: Weights
    log_variance: Weights

    def __post_init__(self) -> None:
        for part, values in (("mean", self.mean), ("log_variance", self.log_variance)):
            if set(values) != set(self.shapes):
                raise ValueError(
                    f"{part} must name the weights {list(self.shapes)}, got {list(values)}."
                )
            for name, shape in self.shapes.items():
                if not _broadcasts(tuple(values[name].shape), tuple(shape)):
                    raise ValueError(
                        f"{part}[{name!r}] must broadcast against shape {tuple(shape)}, got "
                        f"{tuple(values[name].shape)}."
                    )

    @classmethod
    def standard(cls, network: AutoencoderNetwork, *, like: Array) -> WeightPrior:
        """N(0, 1) on every weight and bias."""
        shapes = network.weight_shapes()
        zero = as_array_like(0.0, like)
        return cls(shapes, dict.fromkeys(shapes, zero), dict.fromkeys(shapes, zero))

    @classmethod
    def fan_in(cls, network: AutoencoderNetwork, *, like: Array) -> WeightPrior:
        """N(0, 1 / fan-in) on every weight and bias: outputs stay of order 1 at any width."""
        shapes = network.weight_shapes()
        log_variance = {
            name: as_array_like(-math.log(count), like) for name, count in network.fan_in().items()
        }
        return cls(shapes, dict.fromkeys(shapes, as_array_like(0.0, like)), log_variance)

    @classmethod
    def centred(
        cls, weights: Weights, log_variance: float = -6.0, *, per: str = "weight"
    ) -> WeightPrior:
        """N(weights, exp(log_variance)): centred on weights found otherwise.

        ``per`` says how many log-variances there are to tune: one a ``"weight"`` or one a
        ``"layer"``, which is one for each weight matrix and one for each bias.
        """
        if per not in ("weight", "layer"):
            raise ValueError(f"per must be 'weight' or 'layer', got {per!r}.")
        if not (is_traced(log_variance) or math.isfinite(log_variance)):
            raise ValueError(f"log_variance must be finite, got {log_variance!r}.")
        shapes = {name: tuple(weight.shape) for name, weight in weights.items()}
        spread = {}
        for name, weight in weights.items():
            if not (is_torch_array(weight) or is_jax_array(weight)):
                raise TypeError(
                    f"weights[{name!r}] must be a torch tensor or a JAX array, got "
                    f"{type(weight).__name__}."
                )
            value = as_array_like(log_variance, weight)
            spread[name] = value + 0.0 * weight if per == "weight" else value
        return cls(shapes, dict(weights), spread)

    def scale(self, name: str) -> Array:
        """Standard deviation of the weight ``name``."""
        half = 0.5 * self.log_variance[name]
        return array_namespace(half).exp(half)

    def log_prob(self, weights: Weights) -> Array:
        """log density of ``weights``, ``(*batch,)``, in nats."""
        total: Any = 0.0
        for name, shape in self.shapes.items():
            log_variance, count = self.log_variance[name], math.prod(shape)
            xp = array_namespace(log_variance)
            axes = tuple(range(-len(shape), 0))
            gap = weights[name] - self.mean[name]
            precision = xp.exp(-log_variance)
            # One number for the tensor multiplies the sum; passes over all weights are what costs.
            squares = (
                precision * xp.sum(gap * gap, axis=axes)
                if log_variance.ndim == 0
                else xp.sum(gap * gap * precision, axis=axes)
            )
            # Whatever broadcasts repeats each log-variance equally often, so the mean is enough.
            total = total - 0.5 * (squares + count * (xp.mean(log_variance) + _LOG_TWO_PI))
        return total

    def sample(self, rng: Any, num_draws: int) -> dict[str, Array]:
        """Independent draws ``(num_draws, *shape)`` by name, differentiable in the prior."""
        like = next(iter(self.mean.values()))
        keys = split_rng(rng, like, len(self.shapes))
        return {
            name: self.mean[name]
            + self.scale(name) * standard_normal(key, (num_draws, *shape), like)
            for key, (name, shape) in zip(keys, self.shapes.items(), strict=True)
        }


def _broadcasts(shape: tuple[int, ...], against: tuple[int, ...]) -> bool:
    if len(shape) > len(against):
        return False
    tail = against[len(against) - len(shape) :]
    return all(own in (1, other) for own, other in zip(shape, tail, strict=True))
