"""Networks between windows of signals and codes."""

from __future__ import annotations

import math

import torch
from torch import nn

__all__ = ["ConvolutionalSpeechEncoder", "DenseEncoder", "dense_network"]


def dense_network(sizes: tuple[int, ...]) -> nn.Sequential:
    """Linear layers with batch normalisation and ReLU between them, ``(n, in)`` → ``(n, out)``.

    Weights start as N(0, 1/fan-in).
    """
    layers: list[nn.Module] = []
    for index, (before, after) in enumerate(zip(sizes[:-1], sizes[1:], strict=True)):
        linear = nn.Linear(before, after)
        nn.init.normal_(linear.weight, std=before**-0.5)
        nn.init.zeros_(linear.bias)
        layers.append(linear)
        if index < len(sizes) - 2:
            layers += [nn.BatchNorm1d(after), nn.ReLU()]
    return nn.Sequential(*layers)


class DenseEncoder(nn.Module):
    """A window to ``num_outputs`` numbers; the last batch normalisation keeps a tanh alive.

    Parameters
    ----------
    window
        Samples, ``(n, window)``.
    num_outputs
        What comes out, ``(n, num_outputs)``.
    hidden
        Widths of the layers between.
    """

    def __init__(
        self, window: int, num_outputs: int, *, hidden: tuple[int, ...] = (175, 125)
    ) -> None:
        super().__init__()
        self.layers = dense_network((window, *hidden, num_outputs))
        self.normalise = nn.BatchNorm1d(num_outputs)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.normalise(self.layers(x))


class ConvolutionalSpeechEncoder(nn.Module):
    """A window with its surroundings to ``num_outputs`` numbers, by strided convolutions.

    Surroundings are what resolves low voices: a window of 12.5 ms is shorter than their period.

    Parameters
    ----------
    window
        Samples, those of the surroundings included, at least 64.
    num_outputs
        What comes out, ``(n, num_outputs)``.
    channels
        Of the first convolution; they double at every halving of the resolution.
    """

    def __init__(self, window: int, num_outputs: int, *, channels: int = 32) -> None:
        super().__init__()
        if window < 64:
            raise ValueError(f"window must be at least 64 samples, got {window!r}.")
        layers: list[nn.Module] = []
        before, after, length = 1, channels, window
        while length > 16:
            layers += [
                nn.Conv1d(before, after, 9, stride=2, padding=4),
                nn.BatchNorm1d(after),
                nn.ReLU(),
            ]
            before, after, length = after, min(2 * after, 8 * channels), math.ceil(length / 2)
        self.layers = nn.Sequential(*layers, nn.Flatten(), nn.Linear(before * length, num_outputs))
        self.normalise = nn.BatchNorm1d(num_outputs)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.normalise(self.layers(x[:, None, :]))
