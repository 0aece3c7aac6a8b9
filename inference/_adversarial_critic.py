"""Networks from codes to one logit: the critic to use, and one that cannot learn."""

from __future__ import annotations

import itertools
from typing import Any

import torch
from torch import nn
from torch.nn.utils.parametrizations import spectral_norm

_SLOPE = 0.2
CRITICS = ("spectral_norm", "batch_norm_logit")


class CodeCritic(nn.Module):
    """A perceptron with leaky units and spectrally normalised hidden layers, of logit log p*/q.

    The hidden layers have Lipschitz constant 1 at most, which keeps slopes alive where codes lie
    apart. The output layer is free: with all of them bound, codes that lie close could not have the
    log-ratio that they have. There is no batch normalisation: a logit must depend on its own row
    only.

    Parameters
    ----------
    dim
        Of the rows, context included.
    hidden
        Widths of the hidden layers.
    seed
        Of the starting weights.

    Raises
    ------
    ValueError
        If a size is not positive.

    References
    ----------
    Miyato et al. (2018), Spectral normalization for generative adversarial networks.

    Examples
    --------
    >>> critic = CodeCritic(3)
    >>> critic(torch.zeros(5, 3)).shape
    torch.Size([5])
    """

    def __init__(self, dim: int, hidden: tuple[int, ...] = (64, 64), *, seed: int = 0) -> None:
        super().__init__()
        for name, value in (("dim", dim), *(("hidden", width) for width in hidden)):
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise ValueError(f"{name} must be an integer of at least 1, got {value!r}.")
        widths = (dim, *hidden)
        layers: list[nn.Module] = []
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            for inputs, outputs in itertools.pairwise(widths):
                layers += [spectral_norm(nn.Linear(inputs, outputs)), nn.LeakyReLU(_SLOPE)]
            self.layers = nn.Sequential(*layers, nn.Linear(widths[-1], 1))

    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        """Logits ``(n,)`` of ``rows``, ``(n, dim)``."""
        return self.layers(rows)[:, 0]


class BatchNormLogitCritic(nn.Module):
    """The critic of the method's first code, kept to show a failure: it learns nothing.

    Batch normalisation of the logit, with the two classes normalised apart, gives both of them
    logits of the same mean, whatever separates them: the loss stays at 2 log 2. In training mode
    the first half of the rows is normalised apart from the second, as the two classes of one
    `bayesdiv.objectives.RatioCritic` step are.

    Parameters
    ----------
    dim
        Of the rows.
    seed
        Of the starting weights.
    """

    def __init__(self, dim: int, *, seed: int = 0) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.layers = nn.Sequential(
                nn.Linear(dim, 50),
                nn.BatchNorm1d(50),
                nn.ReLU(),
                nn.Linear(50, 25),
                nn.BatchNorm1d(25),
                nn.ReLU(),
                nn.Linear(25, 1),
                nn.BatchNorm1d(1),
            )

    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        """Logits ``(n,)``."""
        parts = rows.chunk(2) if self.training and len(rows) >= 4 else (rows,)
        return torch.cat([self.layers(part)[:, 0] for part in parts])


def make_critic(critic: Any, like: torch.Tensor, seed: int) -> Any:
    """The critic called ``critic``, for rows like ``like``, ``(n, dim)``; a module as it is."""
    if isinstance(critic, str):
        made = CodeCritic if critic == "spectral_norm" else BatchNormLogitCritic
        return made(like.shape[1], seed=seed).to(like)
    return critic.to(like)


def check_critic(critic: Any) -> None:
    """Refuse what is neither a name nor a module."""
    if isinstance(critic, str):
        if critic not in CRITICS:
            raise ValueError(
                f"critic must be one of {', '.join(map(repr, CRITICS))}, or a torch module from "
                f"rows (n, dim) to logits (n,); got {critic!r}."
            )
    elif not isinstance(critic, nn.Module):
        raise TypeError(
            "critic must be a name or a torch module from rows (n, dim) to logits (n,), got "
            f"{type(critic).__name__}."
        )
