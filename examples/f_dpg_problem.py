"""A target of the f-DPG example, and what counts as aligned with it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from bayesdiv.models.sequence_targets import SequenceTarget


@dataclass(frozen=True)
class Problem:
    """A target, a score of alignment for sequences ``(n, max_length)``, and words for the table."""

    target: SequenceTarget
    alignment: Callable[[torch.Tensor], torch.Tensor]
    description: str
