"""Conditions of rows, class labels or embeddings: handed on, dropped for guidance, embedded.

A condition is a tensor with an entry for each row: labels ``(n,)``, or embeddings ``(n, …)`` for a
network that takes them. Where there is none, a part is called without the argument, so that parts
which know of no condition need none in their signature.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

__all__ = ["ClassTable", "class_table", "drop_condition", "given", "null_rows", "split_pair"]


def given(condition: Any, count: int) -> tuple[torch.Tensor, ...]:
    """What follows the other arguments of a call on ``count`` rows: nothing, or the condition.

    Raises
    ------
    ValueError
        Anything but None or a tensor of ``count`` rows.

    Examples
    --------
    >>> given(None, 2), given(torch.tensor([3, 1]), 2)
    ((), (tensor([3, 1]),))
    """
    if condition is None:
        return ()
    if not torch.is_tensor(condition) or condition.shape[:1] != (count,):
        got = tuple(condition.shape) if torch.is_tensor(condition) else type(condition).__name__
        raise ValueError(
            f"condition must be a tensor of shape ({count}, ...), one entry a row, got {got}."
        )
    return (condition,)


def split_pair(batch: Any) -> tuple[Any, torch.Tensor | None]:
    """Rows and condition of a batch, which is rows, or a pair of rows and condition.

    Either of a pair may be None.

    Raises
    ------
    ValueError
        A tuple or list of another length, a condition that is not a tensor, or not as long as rows.
    """
    if not isinstance(batch, tuple | list):
        return batch, None
    if len(batch) != 2:
        raise ValueError(f"batch must be rows or a pair (rows, condition), got {len(batch)} parts.")
    rows, condition = batch
    if condition is None:
        return rows, None
    if not torch.is_tensor(condition) or condition.ndim == 0:
        got = "a single number" if torch.is_tensor(condition) else type(condition).__name__
        raise ValueError(
            f"condition must be a tensor of labels (n,) or embeddings (n, ...), got {got}."
        )
    if torch.is_tensor(rows) and len(rows) != len(condition):
        raise ValueError(
            "rows and condition of a batch must be equally long, got lengths "
            f"{len(rows)} and {len(condition)}."
        )
    return rows, condition


def null_rows(null_condition: Any, condition: torch.Tensor) -> torch.Tensor:
    """``null_condition``, what a model sees for no condition, once for each row of ``condition``.

    Raises
    ------
    ValueError
        Unless it has the shape of one row's condition, and is whole where that is a label.
    """
    one = torch.as_tensor(null_condition)
    whole = one.is_floating_point() and not condition.is_floating_point()
    if whole or one.shape != condition.shape[1:]:
        raise ValueError(
            f"null_condition must be like the condition of one row, {condition.dtype} of shape "
            f"{tuple(condition.shape[1:])}, got {one.dtype} of shape {tuple(one.shape)}."
        )
    return one.to(condition).expand_as(condition)


def drop_condition(condition: torch.Tensor, share: float, null_condition: Any) -> torch.Tensor:
    """The condition with about ``share`` of its rows, drawn independently, made the null one.

    A denoiser that is trained so learns E[x | x_σ, c] and E[x | x_σ] at once: Ho and Salimans
    (2022), algorithm 1.
    """
    dropped = torch.rand(len(condition), device=condition.device) < share
    wide = dropped.reshape(-1, *(1,) * (condition.ndim - 1))
    return torch.where(wide, null_rows(null_condition, condition), condition)


class ClassTable(nn.Module):
    """A learnt vector for each class and one for none: ``(n,)`` → ``(n, size)``.

    That of none is zero at first, so that a network given it starts as one that knows no classes.
    The others are normal draws of a generator of their own: a network has the weights that it would
    have without them.

    Parameters
    ----------
    num_classes
        Labels are 0 to ``num_classes − 1``; ``num_classes`` itself stands for no class.
    size
        Of a vector.
    spread
        Standard deviation of the draws.
    """

    def __init__(self, num_classes: int, size: int, spread: float = 1.0) -> None:
        super().__init__()
        self.num_classes = num_classes
        draws = torch.randn(num_classes, size, generator=torch.Generator().manual_seed(0))
        self.vectors = nn.Parameter(torch.cat([spread * draws, torch.zeros(1, size)]))

    def forward(self, condition: torch.Tensor | None, count: int) -> torch.Tensor:
        """The vectors of ``count`` labels.

        Raises
        ------
        ValueError
            No condition, one that is not ``count`` whole numbers, or labels out of range, which are
            not looked at on an accelerator.
        """
        expected = f"condition must be whole labels of shape ({count},)"
        null = f"label {self.num_classes} stands for no class"
        if condition is None:
            raise ValueError(f"{expected}, got None; {null}.")
        kind = condition.dtype
        # A tensor of booleans would pick rows rather than name them.
        fits = not (kind.is_floating_point or kind.is_complex or kind == torch.bool)
        if not fits or tuple(condition.shape) != (count,):
            raise ValueError(f"{expected}, got {kind} of shape {tuple(condition.shape)}; {null}.")
        if condition.device.type == "cpu" and count:
            least, most = int(condition.min()), int(condition.max())
            if least < 0 or most > self.num_classes:
                raise ValueError(
                    f"condition must be labels from 0 to {self.num_classes}, got labels from "
                    f"{least} to {most}; {null}."
                )
        return self.vectors[condition.long()]


def class_table(num_classes: int, size: int, spread: float = 1.0) -> ClassTable | None:
    """A table, or None for no classes.

    Raises
    ------
    ValueError
        Unless ``num_classes`` is a whole number of at least 0.
    """
    if isinstance(num_classes, bool) or not isinstance(num_classes, int) or num_classes < 0:
        raise ValueError(
            f"num_classes must be a whole number of at least 0, got {num_classes!r}; 0 is a "
            "network without a condition."
        )
    return ClassTable(num_classes, size, spread) if num_classes else None
