"""Networks that see noisy rows and how noisy they are: an MLP, a small U-Net, and critics.

A denoiser's network is called as ``network(x, noise)`` with ``x``, ``(n, *event)``, and ``noise``,
``(n,)``, the level as the preconditioning puts it; it returns the shape of ``x``.
``features(x, noise)`` gives its inner activations, ``(n, num_features)``, for critics. With
``num_classes`` all of them also take labels, ``(n,)``, as a third argument.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.nn.functional import avg_pool2d, interpolate, silu

from bayesdiv.nn.conditions_torch import class_table, given

__all__ = ["DenoisingMLP", "DenoisingUNet", "FeatureCritic", "NoiseCritic"]


class NoiseEmbedding(nn.Module):
    """Sines and cosines of the noise level at geometric frequencies, ``(n,)`` → ``(n, size)``.

    With ``num_classes`` a learnt vector of the row's class is added.
    """

    def __init__(self, size: int, num_classes: int = 0) -> None:
        super().__init__()
        if size < 2 or size % 2:
            raise ValueError(f"embedding_size must be even and at least 2, got {size!r}.")
        frequencies = torch.logspace(math.log10(0.5), math.log10(16.0), size // 2)
        self.register_buffer("frequencies", frequencies, persistent=False)
        self.classes = class_table(num_classes, size)

    def forward(self, noise: torch.Tensor, condition: torch.Tensor | None = None) -> torch.Tensor:
        angles = noise[:, None] * self.get_buffer("frequencies").to(noise.dtype)
        embedded = torch.cat([angles.sin(), angles.cos()], dim=1)
        if self.classes is not None:
            return embedded + self.classes(condition, len(noise))
        if condition is not None:
            raise ValueError(
                "condition must be None for a network without classes, got one; pass num_classes "
                "when the network is made."
            )
        return embedded


class _DenseBlock(nn.Module):
    """x + linear(silu(linear(norm(x)) + embedding))."""

    def __init__(self, width: int, embedding_size: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.first, self.second = nn.Linear(width, width), nn.Linear(width, width)
        self.embedding = nn.Linear(embedding_size, width)

    def forward(self, x: torch.Tensor, embedded: torch.Tensor) -> torch.Tensor:
        inner = self.first(self.norm(x)) + self.embedding(embedded)
        return x + self.second(silu(inner))


class DenoisingMLP(nn.Module):
    """Residual blocks over vectors; its output starts at zero.

    Parameters
    ----------
    dim
        Of the rows.
    width, num_blocks, embedding_size
        Of the hidden layers, and of the noise level's embedding.
    num_classes
        Of labels, for which a learnt vector is added to that embedding; label ``num_classes``
        stands for none. 0 for a network without a condition.

    Raises
    ------
    ValueError
        If a size is not positive, or the embedding's is odd; labels missing, out of range, or given
        to a network without classes.

    Examples
    --------
    >>> DenoisingMLP(2, width=8)(torch.zeros(5, 2), torch.zeros(5)).shape
    torch.Size([5, 2])
    """

    def __init__(
        self,
        dim: int,
        *,
        width: int = 320,
        num_blocks: int = 3,
        embedding_size: int = 16,
        num_classes: int = 0,
    ) -> None:
        super().__init__()
        _check_sizes(dim=dim, width=width, num_blocks=num_blocks)
        self.dim, self.num_features = dim, width
        self.embedding = NoiseEmbedding(embedding_size, num_classes)
        self.enter = nn.Linear(dim, width)
        self.blocks = nn.ModuleList(_DenseBlock(width, embedding_size) for _ in range(num_blocks))
        self.leave = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, dim))
        _start_at_zero(self.leave[1])

    def forward(
        self, x: torch.Tensor, noise: torch.Tensor, condition: torch.Tensor | None = None
    ) -> torch.Tensor:
        embedded, hidden = self.embedding(noise, condition), self.enter(x)
        for block in self.blocks:
            hidden = block(hidden, embedded)
        return self.leave(hidden)

    def features(
        self, x: torch.Tensor, noise: torch.Tensor, condition: torch.Tensor | None = None
    ) -> torch.Tensor:
        """What the middle block leaves, ``(n, width)``."""
        embedded, hidden = self.embedding(noise, condition), self.enter(x)
        for block in list(self.blocks)[: (len(self.blocks) + 1) // 2]:
            hidden = block(hidden, embedded)
        return hidden


class _ConvBlock(nn.Module):
    """Two convolutions with the noise level between them, around a shortcut."""

    def __init__(self, before: int, after: int, embedding_size: int) -> None:
        super().__init__()
        self.first_norm = nn.GroupNorm(math.gcd(8, before), before)
        self.first = nn.Conv2d(before, after, 3, padding=1)
        # Of two channels at least: a group of one would take off all that the embedding adds.
        self.second_norm = nn.GroupNorm(math.gcd(8, max(after // 2, 1)), after)
        self.second = nn.Conv2d(after, after, 3, padding=1)
        self.embedding = nn.Linear(embedding_size, after)
        self.shortcut = nn.Conv2d(before, after, 1) if before != after else nn.Identity()

    def forward(self, x: torch.Tensor, embedded: torch.Tensor) -> torch.Tensor:
        hidden = self.first(silu(self.first_norm(x)))
        hidden = hidden + self.embedding(embedded)[:, :, None, None]
        return self.shortcut(x) + self.second(silu(self.second_norm(hidden)))


class DenoisingUNet(nn.Module):
    """A small U-Net: a block at each resolution down and up, halved by averaging.

    Parameters
    ----------
    image_shape
        (channels, height, width); both sides are multiples of 2^(len(multipliers) − 1).
    width
        Channels at full resolution.
    multipliers
        Of ``width``, from full resolution to the coarsest.
    embedding_size, num_classes
        Of the noise level's embedding, and of the labels that add to it, as in `DenoisingMLP`.

    Raises
    ------
    ValueError
        If a size is not positive, or an image cannot be halved so often; for labels as in
        `DenoisingMLP`.

    Examples
    --------
    >>> network = DenoisingUNet((1, 8, 8), width=8)
    >>> network(torch.zeros(3, 1, 8, 8), torch.zeros(3)).shape
    torch.Size([3, 1, 8, 8])
    """

    def __init__(
        self,
        image_shape: tuple[int, int, int],
        *,
        width: int = 32,
        multipliers: tuple[int, ...] = (1, 2, 2),
        embedding_size: int = 64,
        num_classes: int = 0,
    ) -> None:
        super().__init__()
        channels, height, wide = image_shape
        _check_sizes(channels=channels, height=height, image_width=wide, width=width)
        scale = 2 ** (len(multipliers) - 1)
        if not multipliers or height % scale or wide % scale:
            raise ValueError(
                f"image_shape must have sides that are multiples of {scale} for "
                f"{len(multipliers)} resolutions, got {image_shape!r}."
            )
        counts = [width * multiplier for multiplier in multipliers]
        self.num_features = counts[-1]
        self.embedding = NoiseEmbedding(embedding_size, num_classes)
        self.enter = nn.Conv2d(channels, counts[0], 3, padding=1)
        pairs = list(zip([counts[0], *counts[:-1]], counts, strict=True))
        self.down = nn.ModuleList(_ConvBlock(*pair, embedding_size) for pair in pairs)
        self.middle = _ConvBlock(counts[-1], counts[-1], embedding_size)
        self.up = nn.ModuleList(
            _ConvBlock(2 * after, before, embedding_size) for before, after in reversed(pairs)
        )
        self.leave_norm = nn.GroupNorm(math.gcd(8, counts[0]), counts[0])
        self.leave = nn.Conv2d(counts[0], channels, 3, padding=1)
        _start_at_zero(self.leave)

    def _descend(
        self, x: torch.Tensor, noise: torch.Tensor, condition: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor, list[torch.Tensor]]:
        embedded, hidden, kept = self.embedding(noise, condition), self.enter(x), []
        for index, block in enumerate(self.down):
            hidden = block(avg_pool2d(hidden, 2) if index else hidden, embedded)
            kept.append(hidden)
        return self.middle(hidden, embedded), embedded, kept

    def forward(
        self, x: torch.Tensor, noise: torch.Tensor, condition: torch.Tensor | None = None
    ) -> torch.Tensor:
        hidden, embedded, kept = self._descend(x, noise, condition)
        for index, block in enumerate(self.up):
            hidden = interpolate(hidden, scale_factor=2.0) if index else hidden
            hidden = block(torch.cat([hidden, kept.pop()], dim=1), embedded)
        return self.leave(silu(self.leave_norm(hidden)))

    def features(
        self, x: torch.Tensor, noise: torch.Tensor, condition: torch.Tensor | None = None
    ) -> torch.Tensor:
        """The coarsest activations averaged over the image, ``(n, num_features)``."""
        return self._descend(x, noise, condition)[0].mean(dim=(2, 3))


class FeatureCritic(nn.Module):
    """A head on another network's features, which are left as they are: logits ``(n,)``.

    A condition goes to the features. With ``num_classes`` it also adds v_c · h, a projection of the
    head's last layer h: log p(x, c)/q(x, c) = log p(x)/q(x) + log p(c | x)/q(c | x), and the last
    term depends on c by such a product if classes are log-linear in h. What the features hold of c
    serves denoising, and need not be what tells data from samples.

    Parameters
    ----------
    features
        ``features(x, sigma)``, or with the condition behind, ``(n, num_features)``, such as a
        teacher's. Gradients flow through to ``x``; its parameters are not this module's.
    num_features, width
        What enters the head, and its hidden layer.
    num_classes
        Of labels, as in `DenoisingMLP`; 0 for no projection, and for conditions that are not
        labels.

    Raises
    ------
    ValueError
        Sizes that are not positive, and labels as in `DenoisingMLP`.

    References
    ----------
    Miyato and Koyama (2018), cGANs with projection discriminator, equation 3.
    """

    def __init__(
        self,
        features: Callable[..., torch.Tensor],
        num_features: int,
        width: int,
        *,
        num_classes: int = 0,
    ) -> None:
        super().__init__()
        _check_sizes(num_features=num_features, width=width)
        self._features = (features,)  # In a tuple, so that a module is not registered as a part.
        self.head = nn.Sequential(
            nn.LayerNorm(num_features), nn.Linear(num_features, width), nn.SiLU()
        )
        self.logit = nn.Linear(width, 1)
        _start_at_zero(self.logit)
        self.classes = class_table(num_classes, width, spread=0.0)

    def forward(
        self, x: torch.Tensor, sigma: Any, condition: torch.Tensor | None = None
    ) -> torch.Tensor:
        hidden = self.head(self._features[0](x, sigma, *given(condition, len(x))))
        logit = self.logit(hidden)[:, 0]
        if self.classes is None:
            return logit
        return logit + (hidden * self.classes(condition, len(x))).sum(1)


class NoiseCritic(nn.Module):
    """A network of its own over noisy vectors: logits ``(n,)`` from ``(n, dim)`` and σ, ``(n,)``.

    Rows are scaled by 1/√(σ² + σ_data²), and their squares stand beside them, so that the ratio of
    two Gaussians is within reach of the first layer. With ``num_classes`` a learnt vector of the
    class is added to the noise level's embedding, as in `DenoisingMLP`: it enters every block, so
    that each class may have a ratio of its own shape, not only a plane on shared features.
    """

    def __init__(
        self,
        dim: int,
        *,
        width: int = 128,
        num_blocks: int = 2,
        sigma_data: float = 0.5,
        embedding_size: int = 16,
        num_classes: int = 0,
    ) -> None:
        super().__init__()
        _check_sizes(dim=dim, width=width, num_blocks=num_blocks)
        self.sigma_data = sigma_data
        self.embedding = NoiseEmbedding(embedding_size, num_classes)
        self.enter = nn.Linear(2 * dim, width)
        self.blocks = nn.ModuleList(_DenseBlock(width, embedding_size) for _ in range(num_blocks))
        self.logit = nn.Linear(width, 1)
        _start_at_zero(self.logit)

    def forward(
        self, x: torch.Tensor, sigma: torch.Tensor, condition: torch.Tensor | None = None
    ) -> torch.Tensor:
        scaled = x / (sigma**2 + self.sigma_data**2).sqrt()[:, None]
        embedded = self.embedding(0.25 * sigma.log(), condition)
        hidden = self.enter(torch.cat([scaled, scaled**2], dim=1))
        for block in self.blocks:
            hidden = block(hidden, embedded)
        return self.logit(hidden)[:, 0]


def _start_at_zero(layer: Any) -> None:
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)


def _check_sizes(**sizes: int) -> None:
    for name, size in sizes.items():
        if isinstance(size, bool) or not isinstance(size, int) or size < 1:
            raise ValueError(f"{name} must be a whole number of at least 1, got {size!r}.")
