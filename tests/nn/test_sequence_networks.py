"""Networks over symbols: bad sizes and starting weights."""

import pytest
import torch

from bayesdiv.nn.sequences_torch import (
    CausalTransformer,
    CharacterGRU,
    MarkovTable,
    TransformersModel,
)


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
