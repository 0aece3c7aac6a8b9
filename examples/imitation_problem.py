"""Base model, preference and smaller students for imitation, of names or of English."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from english_problem import Compound, english_base, load_english, shortened
from names_problem import END, NUM_SYMBOLS, load_base, train_judge
from torch.nn.functional import logsigmoid

from bayesdiv.models.character_language_model import CharacterModel
from bayesdiv.nn.sequences_torch import CharacterGRU
from bayesdiv.pyro.distributions import AutoregressiveSequence


class Law(NamedTuple):
    """The expert, base · φ^(1/β); ``log_share`` is log φ ≤ 0 of rows ``(…, max_length)``."""

    base: AutoregressiveSequence
    log_share: Callable[[torch.Tensor], torch.Tensor]
    beta: float


def names_law(base: CharacterModel, device: str, folder: Any = None) -> Law:
    """Surnames, φ = P(female) to the tenth power."""
    judge = train_judge(base.max_length, device=device)
    law = load_base(base, folder=folder, device=device)
    return Law(law, lambda rows: logsigmoid(judge(rows)), 0.1)


def english_law(max_length: int, batch_size: int, device: str) -> Law:
    """SmolLM2 after a prompt, φ = (1 + VADER's compound score)/2 to the fourth power."""
    judge = Compound(load_english(device))
    return Law(english_base(max_length, batch_size, device), judge.log_share, 0.25)


def names_student(
    base: AutoregressiveSequence, hidden_size: int, seed: int, device: str
) -> AutoregressiveSequence:
    """A smaller GRU, untrained."""
    network = CharacterGRU(NUM_SYMBOLS, hidden_size=hidden_size, seed=seed).to(device)
    return AutoregressiveSequence(network, base.max_length, end=END, validate_args=False)


def english_student(base: AutoregressiveSequence, num_layers: int) -> AutoregressiveSequence:
    """The base's lowest layers, which have yet to be trained to do without the others."""
    return shortened(base, num_layers)
