"""Networks from token sequences to one logit: critics of a density ratio, or reward models."""

from __future__ import annotations

import torch
from torch import nn

__all__ = ["GRUCritic", "LinearCritic", "bigram_features"]


class GRUCritic(nn.Module):
    """A GRU that reads a row up to its first end; the last state goes through a linear head.

    Parameters
    ----------
    num_symbols
        Tokens are below it.
    end
        The symbol that ends a row; what follows is padding and is not read. None for rows that are
        read whole.
    embedding_size, hidden_size
        Of the network.
    seed
        Of the starting weights; the head starts at 0, so that the first logits are.

    Raises
    ------
    ValueError
        If a size is not positive.

    Examples
    --------
    >>> critic = GRUCritic(27, end=0)
    >>> critic(torch.tensor([[3, 5, 0, 0], [3, 5, 0, 7]])).tolist()
    [0.0, 0.0]
    """

    def __init__(
        self,
        num_symbols: int,
        *,
        end: int | None,
        embedding_size: int = 16,
        hidden_size: int = 32,
        seed: int = 0,
    ) -> None:
        super().__init__()
        _check_sizes(
            num_symbols=num_symbols, embedding_size=embedding_size, hidden_size=hidden_size
        )
        self.end = end
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.embedding = nn.Embedding(num_symbols, embedding_size)
            self.recurrent = nn.GRU(embedding_size, hidden_size, batch_first=True)
            self.head = nn.Linear(hidden_size, 1)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)

    def features(self, tokens: torch.Tensor) -> torch.Tensor:
        """The state after the first end, ``(n, hidden_size)``, for ``tokens`` ``(n, time)``."""
        states = self.recurrent(self.embedding(tokens))[0]
        last = last_position(tokens, self.end)
        return states[torch.arange(len(tokens), device=tokens.device), last]

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """Logits ``(n,)``."""
        return self.head(self.features(tokens))[:, 0]


class LinearCritic(nn.Module):
    """Linear in the counts of pairs of neighbours and in the last symbol; see `bigram_features`.

    Parameters and errors as in `GRUCritic`; the weights start at 0.
    """

    def __init__(self, num_symbols: int, *, end: int) -> None:
        super().__init__()
        _check_sizes(num_symbols=num_symbols)
        self.num_symbols, self.end = num_symbols, end
        self.head = nn.Linear(num_symbols**2 + num_symbols, 1)
        nn.init.zeros_(self.head.weight)
        nn.init.zeros_(self.head.bias)

    def features(self, tokens: torch.Tensor) -> torch.Tensor:
        """Counts, ``(n, num_symbols² + num_symbols)``."""
        return bigram_features(tokens, self.num_symbols, end=self.end).to(self.head.weight.dtype)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """Logits ``(n,)``."""
        return self.head(self.features(tokens))[:, 0]


def bigram_features(tokens: torch.Tensor, num_symbols: int, *, end: int) -> torch.Tensor:
    """Counts of neighbours, ends of the row included, and which symbol is the last before the end.

    Parameters
    ----------
    tokens
        ``(n, time)``, ended and padded with ``end``.
    num_symbols
        Tokens are below it.
    end
        Stands before the first symbol as well.

    Returns
    -------
    torch.Tensor
        ``(n, num_symbols² + num_symbols)``; an empty row's last symbol is ``end``.
    """
    rows = len(tokens)
    before = torch.cat([torch.full_like(tokens[:, :1], end), tokens[:, :-1]], dim=1)
    counted = (
        torch.arange(tokens.shape[1], device=tokens.device) <= last_position(tokens, end)[:, None]
    )
    width = num_symbols**2 + num_symbols
    found = torch.zeros(rows, width, device=tokens.device)
    found.scatter_add_(1, before * num_symbols + tokens, counted.to(found.dtype))
    ends = last_position(tokens, end)
    each = torch.arange(rows, device=tokens.device)
    final = torch.where(tokens[each, ends] == end, before[each, ends], tokens[each, ends])
    found[each, num_symbols**2 + final] = 1.0
    return found


def last_position(tokens: torch.Tensor, end: int | None) -> torch.Tensor:
    """Where the first end is, ``(n,)``, or the last position of rows without one."""
    time = tokens.shape[1]
    if end is None:
        return torch.full_like(tokens[:, 0], time - 1)
    is_end = tokens == end
    return torch.where(is_end.any(1), is_end.long().argmax(1), time - 1)


def _check_sizes(**sizes: int) -> None:
    for name, value in sizes.items():
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise ValueError(f"{name} must be an integer of at least 1, got {value!r}.")
