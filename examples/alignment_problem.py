"""Base model, judge and demonstrations of alignment from demonstrations, of names or of English."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from english_problem import Compound, agreement, english_base, load_english, positive_reviews
from names_problem import first_names, load_base, train_judge

from bayesdiv.models.character_language_model import CharacterModel
from bayesdiv.pyro.distributions import AutoregressiveSequence

# Longer demonstrations than the base model writes: letters of names, tokens of English.
_LONG_NAME, _LONG_SENTENCE = 8, 30


@dataclass(frozen=True, eq=False)
class Problem:
    """What an experiment starts from.

    Attributes
    ----------
    initial
        π_0.
    judge
        Scores ``(…)`` of rows ``(…, max_length)``.
    judge_accuracy
        On texts that people have labelled.
    preference_scale
        What a gap of the judge's is multiplied by for the log-odds of a preference.
    demonstrations
        All that there are, ``(n, max_length)``.
    last_layers
        Parts of the network that a student of the hard variant trains.
    """

    initial: AutoregressiveSequence
    judge: Callable[[torch.Tensor], torch.Tensor]
    judge_accuracy: float
    preference_scale: float
    demonstrations: torch.Tensor
    last_layers: tuple[str, ...]

    @property
    def end(self) -> int:
        """The symbol that ends a row."""
        assert self.initial.end is not None
        return self.initial.end


def names_problem(base: CharacterModel, *, hard: bool, device: str, folder: Any = None) -> Problem:
    """Surnames, a classifier of first names, women's names."""
    initial = load_base(base, folder=folder, device=device)
    judge = train_judge(base.max_length, device=device)
    rows = first_names("female", base.max_length, least_letters=_LONG_NAME if hard else 1)
    return Problem(initial, judge, judge.accuracy, 1.0, rows, ("readout",))


def english_problem(max_length: int, batch_size: int, *, hard: bool, device: str) -> Problem:
    """SmolLM2, VADER, sentences of film reviews that people rated as positive."""
    model = load_english(device)
    initial = english_base(max_length, batch_size, device)
    judge = Compound(model)
    least = min(_LONG_SENTENCE, max_length) if hard else 1
    rows = positive_reviews(max_length, device, least_tokens=least)
    last = len(model.network.model.model.layers) - 1
    parts = (f"model.model.layers.{last}", "model.model.norm")
    # Scores are from -1 to 1: a gap of 1 is preferred in 98 of 100 comparisons.
    return Problem(initial, judge, agreement(judge), 4.0, rows, parts)
