"""Demonstrations as rows that a policy can score: checked, ended, cut to length."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch

__all__ = ["Demonstrations", "prepare_demonstrations"]


class Demonstrations(NamedTuple):
    """``tokens`` ``(n, max_length)``, and how many rows were cut and how many had no end."""

    tokens: torch.Tensor
    num_truncated: int
    num_without_end: int


def prepare_demonstrations(
    sequences: Sequence[Any] | torch.Tensor, *, num_symbols: int, max_length: int, end: int
) -> Demonstrations:
    """Rows of ``max_length`` tokens, ended and padded with ``end``.

    A row without an end gets one, if there is room, with one warning for all; a row longer than
    ``max_length`` is cut, which makes it the event "longer than that", and counted.

    Parameters
    ----------
    sequences
        Integer sequences of any lengths, or a tensor ``(n, time)`` whose rows stop at their first
        ``end``.
    num_symbols
        Size of the vocabulary.
    max_length
        Tokens of a row, the end included.
    end
        The symbol that ends a sequence.

    Raises
    ------
    ValueError
        No sequences, one without any token before its end or with a token outside the vocabulary,
        naming the row.
    """
    if len(sequences) == 0:
        raise ValueError("demonstrations must hold at least one sequence, got none.")
    tokens = torch.full((len(sequences), max_length), end, dtype=torch.long)
    num_truncated = num_without_end = 0
    for row, sequence in enumerate(sequences):
        values = torch.as_tensor(sequence)
        if values.ndim != 1 or values.is_floating_point() or values.dtype == torch.bool:
            raise ValueError(
                f"demonstrations must be one-dimensional rows of whole numbers, got {values.dtype} "
                f"of shape {tuple(values.shape)} in row {row}."
            )
        outside = (values < 0) | (values >= num_symbols)
        if bool(outside.any()):
            raise ValueError(
                f"demonstrations must hold symbols from 0 to {num_symbols - 1}, got "
                f"{int(values[outside][0])} in row {row}."
            )
        stops = (values == end).nonzero()
        has_end = len(stops) > 0
        length = int(stops[0, 0]) if has_end else len(values)
        if length == 0:
            raise ValueError(
                f"demonstrations must have a symbol before their end, got none in row {row}; leave "
                "empty rows out."
            )
        num_without_end += not has_end and length < max_length
        num_truncated += length >= max_length
        kept = min(length, max_length)
        tokens[row, :kept] = values[:kept]
    if num_without_end:
        warnings.warn(
            f"{num_without_end} of {len(sequences)} demonstrations have no end; the end symbol "
            f"{end} was appended.",
            RuntimeWarning,
            stacklevel=2,
        )
    if num_truncated:
        warnings.warn(
            f"{num_truncated} of {len(sequences)} demonstrations leave no room for their end in "
            f"max_length = {max_length} and were cut; raise max_length to keep them whole.",
            RuntimeWarning,
            stacklevel=2,
        )
    return Demonstrations(tokens, num_truncated, num_without_end)
