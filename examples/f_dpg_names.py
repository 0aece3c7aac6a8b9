"""Targets over names for the f-DPG example: letters, a moment, a classifier's preference."""

from __future__ import annotations

import numpy as np
import torch
from f_dpg_problem import Problem
from sklearn.linear_model import LogisticRegression

from bayesdiv.data import ALPHABET, encode_names, load_names
from bayesdiv.models.character_language_model import CharacterModel, character_language_model
from bayesdiv.models.sequence_targets import ExponentialTilt, PointwiseConstraint, ScalarPreference

BETA = 0.1


class FemaleScore:
    """log P(female | name) from the name's pairs of letters and its last letter.

    A class-balanced logistic regression on the census's first names; a table of logits for pairs
    makes it a sum over the symbols of a sequence.
    """

    def __init__(self, max_length: int, device: str) -> None:
        names = load_names()
        words = np.concatenate([names.female, names.male])
        words = words[np.char.str_len(words) < max_length]
        labels = np.isin(words, names.female).astype(int)
        codes = torch.from_numpy(encode_names(words, max_length))
        size = len(ALPHABET)
        counts = torch.zeros(len(words), size * size)
        before, after, real = self._pairs(codes)
        counts.scatter_add_(1, before * size + after, real.float())
        model = LogisticRegression(class_weight="balanced", max_iter=500)
        model.fit(counts.numpy(), labels)
        self.accuracy = float(model.score(counts.numpy(), labels))
        table = torch.from_numpy(model.coef_[0].astype(np.float32)).reshape(size, size)
        self.table, self.intercept = table.to(device), float(model.intercept_[0])

    @staticmethod
    def _pairs(value: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Each symbol's predecessor, the symbol, and whether the pair counts.

        The end is a symbol of its own, so that a pair says what the last letter is.
        """
        before = torch.cat([torch.zeros_like(value[..., :1]), value[..., :-1]], dim=-1)
        ended = (value == 0).long().cumsum(-1)
        return before, value, (ended == 0) | ((ended == 1) & (value == 0))

    def __call__(self, value: torch.Tensor) -> torch.Tensor:
        """log φ, ``(...)``."""
        before, after, real = self._pairs(value)
        logits = torch.where(real, self.table[before, after], 0.0).sum(-1) + self.intercept
        return torch.nn.functional.logsigmoid(logits)


def letters(text: str) -> list[int]:
    """Their numbers."""
    return [ALPHABET.index(symbol) for symbol in text]


def names_problems(names: set[str], settings: CharacterModel, device: str) -> dict[str, Problem]:
    """The targets among ``names``; processes find the base model that was fitted once."""
    base = character_language_model(settings, device=device, progress_bar=False)
    x, z = letters("XZ")
    vowels = torch.tensor(letters("AEIOU"), device=device)

    def contains_x(value: torch.Tensor) -> torch.Tensor:
        return (value == x).any(-1).float()

    def contains_z(value: torch.Tensor) -> torch.Tensor:
        return (value == z).any(-1).float()

    def starts_with_vowel(value: torch.Tensor) -> torch.Tensor:
        return torch.isin(value[..., 0], vowels).float()

    found: dict[str, Problem] = {}
    if "rare" in names:
        found["rare"] = Problem(PointwiseConstraint(base, contains_x), contains_x, "contains X")
    if "lexical" in names:
        found["lexical"] = Problem(PointwiseConstraint(base, contains_z), contains_z, "contains Z")
    if "preference" in names:
        score = FemaleScore(settings.max_length, device)
        found["preference"] = Problem(
            ScalarPreference(base, score, BETA),
            lambda value: score(value).exp(),
            f"P(female) with beta {BETA}",
        )
    if "moment" in names:
        torch.manual_seed(0)
        tilt = ExponentialTilt.fit(base, [starts_with_vowel], [0.5], num_samples=100_000)
        found["moment"] = Problem(tilt, starts_with_vowel, "half start with a vowel")
    return found
