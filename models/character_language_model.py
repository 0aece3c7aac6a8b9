"""A language model of names, letter by letter: the base that sequence targets start from."""

from __future__ import annotations

import math
import os
from copy import deepcopy
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import Any
from zlib import crc32

import torch

from bayesdiv.data import ALPHABET, encode_names, load_names
from bayesdiv.data._folder import data_folder
from bayesdiv.nn.sequences_torch import CharacterGRU
from bayesdiv.pyro.distributions import AutoregressiveSequence
from bayesdiv.training import TensorBatches, train

__all__ = ["CharacterModel", "MaximumLikelihood", "character_language_model"]


class MaximumLikelihood:
    """Fits a sequence distribution to sequences, by Adam with one cycle of the learning rate.

    A routine for `bayesdiv.training.train`; each batch is ``(n, max_length)`` tokens.

    Parameters
    ----------
    law
        `bayesdiv.pyro.distributions.AutoregressiveSequence`, whose network is trained.
    learning_rate
        The highest of the cycle.
    num_steps
        The cycle's length.

    Raises
    ------
    ValueError
        If the learning rate is not positive and finite.
    """

    def __init__(
        self, law: AutoregressiveSequence, *, learning_rate: float, num_steps: int
    ) -> None:
        if not 0.0 < learning_rate < math.inf:
            raise ValueError(f"learning_rate must be positive and finite, got {learning_rate!r}.")
        self.law = law
        self.optimiser = torch.optim.Adam(law.network.parameters(), lr=learning_rate)
        # One more than is used: the schedule refuses to be asked after its end.
        self.schedule = torch.optim.lr_scheduler.OneCycleLR(
            self.optimiser, max_lr=learning_rate, total_steps=num_steps + 1
        )

    def step(self, batch: torch.Tensor) -> dict[str, torch.Tensor]:
        """One step of Adam; ``loss`` is in nats a sequence."""
        self.optimiser.zero_grad()
        loss = -self.law.log_prob(batch).mean()
        loss.backward()
        self.optimiser.step()
        self.schedule.step()
        return {"loss": loss.detach()}

    def state_dict(self) -> dict[str, Any]:
        """A copy of all that the next step depends on."""
        parts = {
            "network": self.law.network.state_dict(),
            "optimiser": self.optimiser.state_dict(),
            "schedule": self.schedule.state_dict(),
        }
        # The schedule keeps a bound method, which is no part of its state.
        parts["schedule"].pop("anneal_func", None)
        return deepcopy(parts)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from what `state_dict` gave."""
        self.law.network.load_state_dict(state["network"])
        self.optimiser.load_state_dict(deepcopy(state["optimiser"]))
        self.schedule.load_state_dict(deepcopy(state["schedule"]))


@dataclass(frozen=True)
class CharacterModel:
    """What the base model is: a GRU over 27 symbols, fitted to the shorter surnames.

    Attributes
    ----------
    max_length
        Symbols of a row, the end included: names of up to 10 letters.
    embedding_size, hidden_size
        Of the GRU.
    num_steps, batch_size, learning_rate, seed
        Of the fit.
    """

    max_length: int = 11
    embedding_size: int = 16
    hidden_size: int = 64
    num_steps: int = 2500
    batch_size: int = 256
    learning_rate: float = 5e-3
    seed: int = 0

    @property
    def file_name(self) -> str:
        """Of the checkpoint; other settings have another."""
        return f"character_model_{crc32(repr(astuple(self)).encode()):08x}.pt"


def character_language_model(
    settings: CharacterModel | None = None,
    *,
    folder: str | os.PathLike[str] | None = None,
    device: str | torch.device = "cpu",
    progress_bar: bool = True,
) -> AutoregressiveSequence:
    """The base model, fitted on first use and read from its checkpoint afterwards.

    Parameters
    ----------
    settings
        See `CharacterModel`, whose defaults take half a minute of one core.
    folder
        Where the checkpoint lies; ``$BAYESDIV_DATA``, or ``~/.cache/bayesdiv``, if None. An
        interrupted fit goes on from there.
    device
        Where the model is put.
    progress_bar
        Whether the fit shows one.

    Raises
    ------
    ImportError
        If the package ``names`` is not installed.
    """
    settings = CharacterModel() if settings is None else settings
    surnames = load_names().surnames
    short = surnames[[len(name) < settings.max_length for name in surnames]]
    rows = torch.from_numpy(encode_names(short, settings.max_length))
    network = CharacterGRU(
        len(ALPHABET), settings.embedding_size, settings.hidden_size, seed=settings.seed
    )
    # Rows of the data are right by construction; looking at them again would cost every step.
    law = AutoregressiveSequence(network, settings.max_length, end=0, validate_args=False)
    train(
        MaximumLikelihood(law, learning_rate=settings.learning_rate, num_steps=settings.num_steps),
        TensorBatches(rows, batch_size=settings.batch_size, seed=settings.seed),
        num_steps=settings.num_steps,
        checkpoint=(data_folder() if folder is None else Path(folder)) / settings.file_name,
        checkpoint_every=min(500, settings.num_steps),
        progress_bar=progress_bar,
        title="base model of names",
    )
    network.requires_grad_(requires_grad=False).to(device)
    return law
