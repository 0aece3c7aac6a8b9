"""Targets over English for the f-DPG example: a small pretrained model, a lexicon, a rare word."""

from __future__ import annotations

import os
from collections.abc import Callable

import torch
from f_dpg_problem import Problem

from bayesdiv.models.pretrained_language_model import PretrainedModel, load_smollm2
from bayesdiv.models.sequence_targets import PointwiseConstraint, ScalarPreference

PROMPT = "The movie was"
WORD = " amazing"
BETA = 0.1
_LEAST = 1e-3


class Sentiment:
    """log φ, φ = (1 + VADER's compound score)/2 of the prompt and its continuation, at least 1e-3.

    Scores are worked out on the host, text by text.
    """

    def __init__(self, model: PretrainedModel) -> None:
        try:
            from vaderSentiment.vaderSentiment import SentimentIntensityAnalyzer
        except ImportError as error:
            raise ImportError(
                "the target 'sentiment' needs vaderSentiment; pip install vaderSentiment."
            ) from error
        self._analyser = SentimentIntensityAnalyzer()
        self._model = model

    def __call__(self, value: torch.Tensor) -> torch.Tensor:
        scores = [
            self._analyser.polarity_scores(PROMPT + text)["compound"]
            for text in self._model.texts(value.reshape(-1, value.shape[-1]))
        ]
        shares = (1.0 + torch.tensor(scores, device=value.device)) / 2.0
        return shares.clamp(min=_LEAST).log().reshape(value.shape[:-1])


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
    # Everything is on the disk; without this, transformers looks for it elsewhere first.
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    model = load_smollm2(device=device)
    base = model.continuing(PROMPT, max_length, batch_size=batch_size)
    found: dict[str, Problem] = {}
    if "word" in names:
        has_word = contains(model.tokenizer.encode(WORD))
        found["word"] = Problem(
            PointwiseConstraint(base, has_word), has_word, f"contains{WORD}, after {PROMPT!r}"
        )
    if "sentiment" in names:
        score = Sentiment(model)
        found["sentiment"] = Problem(
            ScalarPreference(base, score, BETA),
            lambda value: score(value).exp(),
            f"VADER sentiment with beta {BETA}, after {PROMPT!r}",
        )
    return found
