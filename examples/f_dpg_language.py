"""Targets over English for the f-DPG example: a small pretrained model, a lexicon, a rare word."""

from __future__ import annotations

from collections.abc import Callable

import torch
from english_problem import Compound, load_english
from f_dpg_problem import Problem

from bayesdiv.models.sequence_targets import PointwiseConstraint, ScalarPreference

PROMPT = "The movie was"
WORD = " amazing"
BETA = 0.1


def contains(tokens: list[int]) -> Callable[[torch.Tensor], torch.Tensor]:
    """Whether the tokens of a word occur one after another."""

    def found(value: torch.Tensor) -> torch.Tensor:
        word = torch.tensor(tokens, device=value.device)
        return (value.unfold(-1, len(tokens), 1) == word).all(-1).any(-1).float()

    return found


def language_problems(
    names: set[str], max_length: int, batch_size: int, device: str
) -> dict[str, Problem]:
    """The targets among ``names`` over continuations of a prompt by SmolLM2-135M."""
    model = load_english(device)
    base = model.continuing(PROMPT, max_length, batch_size=batch_size)
    found: dict[str, Problem] = {}
    if "word" in names:
        has_word = contains(model.tokenizer.encode(WORD))
        found["word"] = Problem(
            PointwiseConstraint(base, has_word), has_word, f"contains{WORD}, after {PROMPT!r}"
        )
    if "sentiment" in names:
        score = Compound(model, before=PROMPT).log_share
        found["sentiment"] = Problem(
            ScalarPreference(base, score, BETA),
            lambda value: score(value).exp(),
            f"VADER sentiment with beta {BETA}, after {PROMPT!r}",
        )
    return found
