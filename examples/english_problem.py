"""What examples share where they are about English.

SmolLM2-135M continues a prompt; VADER's compound score says how positive a continuation is;
sentences of film reviews that people rated as positive are demonstrations from elsewhere.
"""

from __future__ import annotations

import copy
import os
from functools import lru_cache

import torch

from bayesdiv.data import load_film_reviews
from bayesdiv.models.pretrained_language_model import PretrainedModel, load_smollm2
from bayesdiv.pyro.distributions import AutoregressiveSequence

PROMPT = "A sentence from a film review:"
# Of people's mean ratings, from -4 to 4.
LEAST_RATING = 0.5
_LEAST_SHARE = 1e-3


class Compound:
    """VADER's compound score, in [-1, 1], of rows of tokens, worked out text by text.

    ``before`` stands in front of every text that is scored.
    """

    def __init__(self, model: PretrainedModel, before: str = "") -> None:
        try:
            from vaderSentiment.vaderSentiment import SentimentIntensityAnalyzer
        except ImportError as error:
            raise ImportError(
                "scores of English need vaderSentiment; pip install vaderSentiment."
            ) from error
        self._analyser = SentimentIntensityAnalyzer()
        self._model, self._before = model, before

    def of_text(self, text: str) -> float:
        """The score of one text."""
        return float(self._analyser.polarity_scores(text)["compound"])

    def __call__(self, tokens: torch.Tensor) -> torch.Tensor:
        """Scores ``(…)`` of rows ``(…, max_length)``."""
        texts = self._model.texts(tokens.reshape(-1, tokens.shape[-1]))
        scores = torch.tensor(
            [self.of_text(self._before + text) for text in texts], device=tokens.device
        )
        return scores.reshape(tokens.shape[:-1])

    def log_share(self, tokens: torch.Tensor) -> torch.Tensor:
        """log φ, φ = (1 + score)/2 and at least 1e-3, ``(…)``."""
        return ((1.0 + self(tokens)) / 2.0).clamp(min=_LEAST_SHARE).log()


@lru_cache(maxsize=2)
def load_english(device: str) -> PretrainedModel:
    """SmolLM2-135M, once a process."""
    # Everything is on the disk; without this, transformers looks for it elsewhere first.
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    return load_smollm2(device=device)


def english_base(max_length: int, batch_size: int, device: str) -> AutoregressiveSequence:
    """What SmolLM2 writes after the prompt."""
    return load_english(device).continuing(PROMPT, max_length, batch_size=batch_size)


def positive_reviews(max_length: int, device: str, *, least_tokens: int = 1) -> torch.Tensor:
    """Sentences that people rated above ``LEAST_RATING``, cut to ``(n, max_length)`` tokens."""
    reviews, tokenizer = load_film_reviews(), load_english(device).tokenizer
    end = int(tokenizer.eos_token_id)
    chosen = reviews.sentences[reviews.ratings > LEAST_RATING]
    # As they would follow the prompt: after a space.
    rows = [tokenizer.encode(f" {sentence}") for sentence in chosen.tolist()]
    padded = [(row + [end] * max_length)[:max_length] for row in rows if len(row) >= least_tokens]
    return torch.tensor(padded, device=device)


def agreement(judge: Compound) -> float:
    """Share of rated sentences, the classes balanced, of which people think as the judge does."""
    reviews = load_film_reviews()
    shares = []
    for sign in (1.0, -1.0):
        chosen = reviews.sentences[sign * reviews.ratings > LEAST_RATING].tolist()[:1000]
        shares.append(sum(sign * judge.of_text(text) > 0.0 for text in chosen) / len(chosen))
    return sum(shares) / 2.0


def shortened(base: AutoregressiveSequence, num_layers: int) -> AutoregressiveSequence:
    """The law by the lowest ``num_layers`` of the base's layers, which take gradients."""
    network = copy.deepcopy(base.network)
    layers = network.model.model.layers
    if not 1 <= num_layers <= len(layers):
        raise ValueError(f"num_layers must be from 1 to {len(layers)}, got {num_layers!r}.")
    network.model.model.layers = layers[:num_layers]
    network.model.config.num_hidden_layers = num_layers
    return base.with_network(network.requires_grad_())
