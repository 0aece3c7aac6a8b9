"""A fully connected autoencoder, for torch and JAX."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from bayesdiv._array import Array, array_namespace, is_torch_array, leaky_relu
from bayesdiv.nn._weights import AutoencoderNetwork, Weights


@dataclass(frozen=True)
class MLPAutoencoder(AutoencoderNetwork):
    """data_dim – hidden – latent_dim – hidden reversed – data_dim, with leaky ReLU between.

    The code and the output have no activation; the output is a logit. Weights are
    ``encoder_0_weight`` of shape ``(inputs, outputs)``, ``encoder_0_bias`` and so on, the same in
    torch and JAX, so that weights go from one to the other as arrays.

    Attributes
    ----------
    data_dim, latent_dim : int
        Widths of a flat image and of its code.
    hidden : tuple of int
        Widths between them; may be empty, which gives a linear autoencoder.
    slope : float
        Of the leaky ReLU below 0, in [0, 1].

    Raises
    ------
    ValueError
        If a width is not a positive integer, or the slope is outside its interval.

    Examples
    --------
    >>> import torch
    >>> network = MLPAutoencoder(data_dim=64, hidden=(32,), latent_dim=4)
    >>> weights = network.init_weights(0, like=torch.zeros(()), batch=(3,))
    >>> network(weights, torch.zeros(10, 64)).shape
    torch.Size([3, 10, 64])
    """

    data_dim: int = 64
    hidden: tuple[int, ...] = (256, 256)
    latent_dim: int = 16
    slope: float = 0.01

    def __post_init__(self) -> None:
        object.__setattr__(self, "hidden", tuple(self.hidden))
        for name, widths in (
            ("data_dim", (self.data_dim,)),
            ("hidden", self.hidden),
            ("latent_dim", (self.latent_dim,)),
        ):
            for width in widths:
                if isinstance(width, bool) or not isinstance(width, int) or width < 1:
                    raise ValueError(f"{name} must be positive whole numbers, got {width!r}.")
        if not 0.0 <= self.slope <= 1.0:
            raise ValueError(f"slope must be in [0, 1], got {self.slope!r}.")

    def _widths(self) -> dict[str, tuple[int, ...]]:
        return {
            "encoder": (self.data_dim, *self.hidden, self.latent_dim),
            "decoder": (self.latent_dim, *reversed(self.hidden), self.data_dim),
        }

    def weight_shapes(self) -> dict[str, tuple[int, ...]]:
        shapes: dict[str, tuple[int, ...]] = {}
        for part, widths in self._widths().items():
            for layer, pair in enumerate(zip(widths[:-1], widths[1:], strict=True)):
                shapes[f"{part}_{layer}_weight"] = pair
                shapes[f"{part}_{layer}_bias"] = pair[1:]
        return shapes

    def fan_in(self) -> dict[str, float]:
        shapes = self.weight_shapes()
        return {name: shapes[_weight_beside(name)][0] for name in shapes}

    def encode(self, weights: Weights, images: Array) -> Array:
        return self._layers("encoder", weights, images)

    def decode(self, weights: Weights, codes: Array) -> Array:
        return self._layers("decoder", weights, codes)

    def _layers(self, part: str, weights: Mapping[str, Array], rows: Array) -> Array:
        last = len(self.hidden)
        for layer in range(last + 1):
            weight, bias = weights[f"{part}_{layer}_weight"], weights[f"{part}_{layer}_bias"]
            rows = _affine(rows, weight, bias)
            if layer < last:
                rows = leaky_relu(rows, self.slope)
        return rows


def _weight_beside(name: str) -> str:
    return name.rsplit("_", 1)[0] + "_weight"


def _affine(rows: Array, weight: Array, bias: Array) -> Array:
    """rows · weight + bias; ``(..., n, in)``, ``(..., in, out)`` and ``(..., out)``."""
    bias = bias[..., None, :]
    if is_torch_array(rows) and rows.ndim == weight.ndim == 3:
        # One kernel for the product and the sum, and one pass less over the result.
        return bias.baddbmm(rows, weight)
    return array_namespace(rows).matmul(rows, weight) + bias
