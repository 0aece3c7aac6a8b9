"""What the two examples of imitation share: the base model of surnames, first names, a judge."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from sklearn.linear_model import LogisticRegression

from bayesdiv.data import ALPHABET, encode_names, load_names
from bayesdiv.inference.imitation import SupervisedFineTuning
from bayesdiv.inference.sequence_critics import bigram_features, last_position
from bayesdiv.models.character_language_model import CharacterModel, character_language_model
from bayesdiv.pyro.distributions import AutoregressiveSequence
from bayesdiv.training import TensorBatches, train

END = 0
NUM_SYMBOLS = len(ALPHABET)
# Steps of fine-tuning between looks at the held-out demonstrations.
_BETWEEN_LOOKS = 25
_ROWS_AT_ONCE = 20_000


@dataclass(frozen=True, eq=False)
class Judge:
    """Log-odds that a name is a woman's, by logistic regression on bigrams and the last letter.

    ``accuracy`` is on first names that were held out, the classes balanced.
    """

    weights: torch.Tensor
    bias: float
    accuracy: float

    def __call__(self, tokens: torch.Tensor) -> torch.Tensor:
        """Log-odds ``(…)`` of rows ``(…, max_length)``."""
        rows = tokens.reshape(-1, tokens.shape[-1])
        scores = [self._score(part) for part in rows.split(_ROWS_AT_ONCE)]
        return torch.cat(scores).reshape(tokens.shape[:-1])

    def _score(self, rows: torch.Tensor) -> torch.Tensor:
        ends = last_position(rows, END)
        before = torch.cat([torch.full_like(rows[:, :1], END), rows[:, :-1]], dim=1)
        pairs = self.weights[before * NUM_SYMBOLS + rows]
        counted = torch.arange(rows.shape[1], device=rows.device) <= ends[:, None]
        each = torch.arange(len(rows), device=rows.device)
        last = rows[each, ends]
        final = torch.where(last == END, before[each, ends], last)
        return (pairs * counted).sum(1) + self.weights[NUM_SYMBOLS**2 + final] + self.bias


def train_judge(max_length: int, *, seed: int = 0, device: str | torch.device = "cpu") -> Judge:
    """Fitted to four fifths of the first names, men's and women's, and scored on the rest."""
    female, male = (first_names(sex, max_length) for sex in ("female", "male"))
    rows = torch.cat([female, male])
    labels = np.concatenate([np.ones(len(female)), np.zeros(len(male))])
    features = bigram_features(rows, NUM_SYMBOLS, end=END).numpy()
    order = np.random.default_rng(seed).permutation(len(rows))
    held_out, kept = np.split(order, [len(rows) // 5])
    model = LogisticRegression(class_weight="balanced", max_iter=2000)
    model.fit(features[kept], labels[kept])
    correct = model.predict(features[held_out]) == labels[held_out]
    sexes = [correct[labels[held_out] == label].mean() for label in (0, 1)]
    weights = torch.tensor(model.coef_[0], dtype=torch.float32, device=device)
    return Judge(weights, float(model.intercept_[0]), float(np.mean(sexes)))


def first_names(sex: str, max_length: int, *, least_letters: int = 1) -> torch.Tensor:
    """Rows of first names that fit, ``(n, max_length)``."""
    names = getattr(load_names(), sex)
    fitting = [name for name in names if least_letters <= len(name) < max_length]
    return torch.from_numpy(encode_names(np.array(fitting), max_length))


def load_base(
    settings: CharacterModel, *, folder: Any = None, device: str = "cpu"
) -> AutoregressiveSequence:
    """The base model of surnames, fitted on first use; rows are not validated again."""
    return character_language_model(settings, folder=folder, device=device, progress_bar=False)


def fine_tune(
    base: AutoregressiveSequence,
    demonstrations: torch.Tensor,
    held_out: torch.Tensor,
    *,
    num_steps: int,
    learning_rate: float,
    batch_size: int,
    seed: int,
    parts: Sequence[str] = (),
) -> AutoregressiveSequence:
    """A copy of ``base`` fine-tuned on demonstrations: its best state on the held-out ones.

    ``parts`` of the network are trained, all by default.
    """
    student = base.trainable_copy()
    network = student.network
    modules = [network.get_submodule(part) for part in parts] if parts else [network]
    parameters = [each for module in modules for each in module.parameters()]
    optimizer = torch.optim.Adam(parameters, lr=learning_rate)
    routine = SupervisedFineTuning(student, optimizer)
    batches = TensorBatches(demonstrations, batch_size=batch_size, seed=seed)
    best = (held_out_loss(student, held_out), routine.state_dict())
    for done in range(0, num_steps, _BETWEEN_LOOKS):
        stretch = min(_BETWEEN_LOOKS, num_steps - done)
        train(routine, batches, num_steps=stretch, progress_bar=False)
        loss = held_out_loss(student, held_out)
        if loss < best[0]:
            best = (loss, routine.state_dict())
    routine.load_state_dict(best[1])
    network.requires_grad_(requires_grad=False)
    return student


@torch.no_grad()
def held_out_loss(policy: AutoregressiveSequence, rows: torch.Tensor) -> float:
    """Nats a name."""
    return -float(policy.log_prob(rows).mean())
