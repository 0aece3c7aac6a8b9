"""Convolutional autoencoders in torch, with the shapes of Tran et al. (2021)."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch.nn.functional import conv2d, conv_transpose2d, leaky_relu

from bayesdiv.nn._weights import AutoencoderNetwork, Weights


class ConvLayer(NamedTuple):
    """``channels`` that leave the layer; ``kernel``, ``stride`` and ``padding`` on both axes."""

    channels: int
    kernel: int
    stride: int = 1
    padding: int = 0


@dataclass(frozen=True)
class ConvAutoencoder(AutoencoderNetwork):
    """Convolutions and one dense layer to the code; a dense layer and transposed ones back.

    Leaky ReLU after every layer but the code and the output, which is a logit; no normalisation.
    Images are flat rows in channel, row, column order. Weights are named as in `MLPAutoencoder`:
    convolutions ``(out, in, kernel, kernel)``, transposed ones ``(in, out, kernel, kernel)``, dense
    ones ``(in, out)``.

    Attributes
    ----------
    image_shape
        (channels, height, width), height equal to width.
    encoder, decoder
        The layers.
    start_shape
        (channels, height, width) in which the decoder's dense layer enters its convolutions.
    latent_dim : int
        Width of the code.
    slope : float
        Of the leaky ReLU below 0.

    Raises
    ------
    ValueError
        If a layer leaves no pixels, or the decoder does not end in ``image_shape``.
    """

    image_shape: tuple[int, int, int]
    encoder: tuple[ConvLayer, ...]
    start_shape: tuple[int, int, int]
    decoder: tuple[ConvLayer, ...]
    latent_dim: int = 50
    slope: float = 0.01

    def __post_init__(self) -> None:
        if len(self.image_shape) != 3 or self.image_shape[1] != self.image_shape[2]:
            raise ValueError(
                f"image_shape must be (channels, size, size), got {self.image_shape!r}."
            )
        size = self._encoded_size()
        if size < 1:
            raise ValueError(
                f"encoder must leave at least one pixel, got a size of {size} for images of "
                f"shape {self.image_shape}."
            )
        size = self.start_shape[1]
        for layer in self.decoder:
            size = (size - 1) * layer.stride - 2 * layer.padding + layer.kernel
        ends = (self.decoder[-1].channels, size, size) if self.decoder else self.start_shape
        if ends != tuple(self.image_shape):
            raise ValueError(
                f"decoder must end in image_shape {tuple(self.image_shape)}, got {ends}."
            )

    @classmethod
    def digits(cls, *, latent_dim: int = 50) -> ConvAutoencoder:
        """For 1×28×28 digits: 32, 64, 64, 128 channels to a pixel, 128×7×7 back."""
        return cls._of_28((32, 64, 64, 128), (64, 64), latent_dim)

    @classmethod
    def faces(cls, *, latent_dim: int = 50) -> ConvAutoencoder:
        """For 1×28×28 faces: 64, 128, 128, 256 channels to a pixel, 256×7×7 back."""
        return cls._of_28((64, 128, 128, 256), (128, 128), latent_dim)

    @classmethod
    def large(cls, *, channels: int = 3, latent_dim: int = 50) -> ConvAutoencoder:
        """For 64×64 images: 64, 128, 256, 512 channels to a pixel, 512×8×8 back."""
        encoder = tuple(ConvLayer(count, 5, 2) for count in (64, 128, 256, 512))
        decoder = (ConvLayer(256, 5, 2, 2), ConvLayer(128, 5, 2, 1), ConvLayer(channels, 4, 2))
        return cls((channels, 64, 64), encoder, (512, 8, 8), decoder, latent_dim)

    @classmethod
    def _of_28(
        cls, counts: tuple[int, ...], back: tuple[int, ...], latent_dim: int
    ) -> ConvAutoencoder:
        encoder = tuple(ConvLayer(count, 4, 2, 1) for count in counts)
        decoder = (*(ConvLayer(count, 4) for count in back), ConvLayer(1, 4, 2))
        return cls((1, 28, 28), encoder, (counts[-1], 7, 7), decoder, latent_dim)

    @property
    def data_dim(self) -> int:  # type: ignore[override]
        return math.prod(self.image_shape)

    def _encoded_size(self) -> int:
        size = self.image_shape[1]
        for layer in self.encoder:
            size = (size + 2 * layer.padding - layer.kernel) // layer.stride + 1
        return size

    def _layers(self) -> dict[str, tuple[tuple[int, ...], int, float]]:
        """By layer's name: shape of its weight, width of its bias, inputs that a unit sums."""
        layers: dict[str, tuple[tuple[int, ...], int, float]] = {}
        channels = self.image_shape[0]
        for index, (count, kernel, _, _) in enumerate(self.encoder):
            shape = (count, channels, kernel, kernel)
            layers[f"encoder_{index}"] = (shape, count, channels * kernel**2)
            channels = count
        width = channels * self._encoded_size() ** 2
        layers[f"encoder_{len(self.encoder)}"] = ((width, self.latent_dim), self.latent_dim, width)
        width, channels = math.prod(self.start_shape), self.start_shape[0]
        layers["decoder_0"] = ((self.latent_dim, width), width, self.latent_dim)
        for index, (count, kernel, stride, _) in enumerate(self.decoder, start=1):
            # With stride s a pixel is reached from every s-th of the kernel's rows and columns.
            inputs = channels * kernel**2 / stride**2
            layers[f"decoder_{index}"] = ((channels, count, kernel, kernel), count, inputs)
            channels = count
        return layers

    def weight_shapes(self) -> dict[str, tuple[int, ...]]:
        shapes: dict[str, tuple[int, ...]] = {}
        for name, (shape, width, _) in self._layers().items():
            shapes[f"{name}_weight"], shapes[f"{name}_bias"] = shape, (width,)
        return shapes

    def fan_in(self) -> dict[str, float]:
        return {
            f"{name}_{part}": inputs
            for name, (_, _, inputs) in self._layers().items()
            for part in ("weight", "bias")
        }

    def encode(self, weights: Weights, images: torch.Tensor) -> torch.Tensor:
        return self._for_each(self._encode_one, weights, images)

    def decode(self, weights: Weights, codes: torch.Tensor) -> torch.Tensor:
        return self._for_each(self._decode_one, weights, codes)

    def _for_each(self, function: Callable, weights: Weights, rows: torch.Tensor) -> torch.Tensor:
        """``function`` for every member of the weights' batch."""
        bias = (
            weights["encoder_0_bias"] if "encoder_0_bias" in weights else weights["decoder_0_bias"]
        )
        depth = bias.ndim - 1
        for level in range(depth):
            # Codes come batched as the weights are; images are shared unless they are batched too.
            batched_rows = 0 if rows.ndim - 2 >= depth - level else None
            function = torch.func.vmap(function, in_dims=(0, batched_rows))
        if depth or rows.ndim == 2:
            return function(dict(weights), rows)
        outputs = function(dict(weights), rows.reshape(-1, rows.shape[-1]))
        return outputs.reshape(*rows.shape[:-1], -1)

    def _encode_one(self, weights: dict[str, torch.Tensor], images: torch.Tensor) -> torch.Tensor:
        rows = images.reshape(-1, *self.image_shape)
        for index, layer in enumerate(self.encoder):
            kernel, bias = weights[f"encoder_{index}_weight"], weights[f"encoder_{index}_bias"]
            rows = conv2d(rows, kernel, bias, stride=layer.stride, padding=layer.padding)
            rows = leaky_relu(rows, self.slope)
        last = f"encoder_{len(self.encoder)}"
        return torch.addmm(weights[f"{last}_bias"], rows.flatten(1), weights[f"{last}_weight"])

    def _decode_one(self, weights: dict[str, torch.Tensor], codes: torch.Tensor) -> torch.Tensor:
        rows = torch.addmm(weights["decoder_0_bias"], codes, weights["decoder_0_weight"])
        rows = leaky_relu(rows, self.slope).reshape(-1, *self.start_shape)
        for index, layer in enumerate(self.decoder, start=1):
            kernel, bias = weights[f"decoder_{index}_weight"], weights[f"decoder_{index}_bias"]
            rows = conv_transpose2d(rows, kernel, bias, stride=layer.stride, padding=layer.padding)
            if index < len(self.decoder):
                rows = leaky_relu(rows, self.slope)
        return rows.flatten(1)
