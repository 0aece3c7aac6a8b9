"""Networks over symbols: bad sizes, starting weights, models of others."""

import sys
from types import SimpleNamespace

import pytest
import torch

from bayesdiv.nn.sequences_torch import (
    CausalTransformer,
    CharacterGRU,
    MarkovTable,
    TransformersModel,
)
from bayesdiv.pyro.distributions import AutoregressiveSequence


def test_seed_fixes_the_weights_and_leaves_the_global_generator():
    before = torch.get_rng_state()
    first, second = CharacterGRU(5, seed=3), CharacterGRU(5, seed=3)
    assert torch.equal(torch.get_rng_state(), before)
    for ours, theirs in zip(first.parameters(), second.parameters(), strict=True):
        assert torch.equal(ours, theirs)


def test_transformer_does_not_see_what_follows():
    network = CausalTransformer(5, 6, width=8, num_heads=2, seed=0)
    tokens = torch.tensor([[1, 2, 3, 4]])
    changed = torch.tensor([[1, 2, 4, 0]])
    torch.testing.assert_close(network(tokens)[0][:, :2], network(changed)[0][:, :2])


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: CharacterGRU(0), "num_symbols must be an integer of at least 1, got 0"),
        (lambda: CharacterGRU(3, hidden_size=2.0), "hidden_size must be an integer"),
        (lambda: CausalTransformer(3, 4, width=6, num_heads=4), "num_heads must divide width"),
        (lambda: MarkovTable(torch.zeros(3, 3)), r"logits must have shape .* got \(3, 3\)"),
        (
            lambda: CausalTransformer(3, 2, width=8)(torch.zeros(1, 3, dtype=torch.long)),
            "tokens must fit 2 positions, got 3",
        ),
    ],
)
def test_bad_sizes_are_named(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_wrapped_model_must_have_a_vocabulary():
    with pytest.raises(TypeError, match=r"config.vocab_size, got Linear"):
        TransformersModel(torch.nn.Linear(2, 2))


class Tiny(torch.nn.Module):
    """What `TransformersModel` needs of a model: next logits by the last symbol, and a cache."""

    def __init__(self):
        super().__init__()
        self.config = SimpleNamespace(vocab_size=3)
        self.table = torch.nn.Embedding(3, 3)
        self.drop = torch.nn.Dropout(0.5)
        self.calls = []

    def forward(self, input_ids, past_key_values=None, use_cache=None, **more):
        self.calls.append({"use_cache": use_cache, **more})
        past = (past_key_values or 0) + input_ids.shape[1]
        return SimpleNamespace(
            logits=self.drop(self.table(input_ids)), past_key_values=past if use_cache else None
        )


def test_wrapped_models_are_sampled_with_a_cache_and_scored_without():
    network = TransformersModel(Tiny()).train()
    assert not network.training
    prompts, mask = torch.tensor([[1, 2], [0, 1]]), torch.tensor([[True, True], [False, True]])
    law = AutoregressiveSequence(network, 3, end=0, prompts=prompts, prompt_mask=mask)
    value, sampled = law.sample_with_log_prob((20,))
    first, *later = network.model.calls
    assert first["use_cache"]
    assert first["attention_mask"].tolist()[:2] == [[1, 1], [0, 1]]
    assert first["position_ids"].tolist()[:2] == [[0, 1], [0, 0]]
    assert later[0]["position_ids"].tolist()[:2] == [[2], [1]]
    torch.testing.assert_close(law.log_prob(value), sampled)
    assert not network.model.calls[-1]["use_cache"]


def test_pretrained_models_need_their_package(monkeypatch):
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(ImportError, match=r"pip install 'bayesdiv\[language-models\]'"):
        TransformersModel.from_pretrained("somewhere")
