"""The base model of names: fitted once, found again, resumed."""

import numpy as np
import pytest
import torch

from bayesdiv.data import encode_names, load_names
from bayesdiv.models.character_language_model import (
    CharacterModel,
    MaximumLikelihood,
    character_language_model,
)
from bayesdiv.nn.sequences_torch import CharacterGRU
from bayesdiv.pyro.distributions import AutoregressiveSequence
from bayesdiv.training import TensorBatches, train

SMALL = CharacterModel(hidden_size=16, num_steps=40, batch_size=64, learning_rate=0.02)


@pytest.fixture(scope="module")
def law(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    return character_language_model(SMALL, folder=folder, progress_bar=False), folder


def surnames():
    names = load_names().surnames
    return torch.from_numpy(encode_names(names[np.char.str_len(names) < 11][:500], 11))


def test_it_has_learnt_that_names_are_not_noise(law):
    # Uniform symbols would take 27 for each of about 7.5.
    uniform = 7.5 * np.log(27.0)
    assert -law[0].log_prob(surnames()).mean().item() < uniform - 2.0
    assert not any(parameter.requires_grad for parameter in law[0].network.parameters())


def test_it_is_read_from_its_checkpoint(law):
    first, folder = law
    (file,) = folder.iterdir()
    written = file.stat().st_mtime_ns
    again = character_language_model(SMALL, folder=folder, progress_bar=False)
    assert file.stat().st_mtime_ns == written
    for ours, theirs in zip(first.network.parameters(), again.network.parameters(), strict=True):
        assert torch.equal(ours, theirs)


def test_an_interrupted_fit_goes_on_to_the_same_numbers(tmp_path):
    def fit(num_steps, checkpoint):
        network = CharacterGRU(27, 4, 8, seed=0)
        routine = MaximumLikelihood(
            AutoregressiveSequence(network, 11, end=0), learning_rate=0.01, num_steps=8
        )
        batches = TensorBatches(surnames(), batch_size=32, seed=0)
        train(routine, batches, num_steps=num_steps, checkpoint=checkpoint, progress_bar=False)
        return network.readout.weight.detach()

    whole = fit(8, tmp_path / "whole")
    fit(3, tmp_path / "parts")
    assert torch.equal(fit(8, tmp_path / "parts"), whole)


def test_learning_rate_is_checked():
    law = AutoregressiveSequence(CharacterGRU(3, seed=0), 4, end=0)
    with pytest.raises(ValueError, match="learning_rate must be positive and finite, got 0"):
        MaximumLikelihood(law, learning_rate=0, num_steps=3)
