"""Reward models where responses have prompts."""

import pytest
import torch

from bayesdiv.inference.reward_models import RewardSettings, fit_reward_model
from bayesdiv.inference.sequence_critics import GRUCritic
from bayesdiv.nn.sequences_torch import CharacterGRU
from bayesdiv.pyro.distributions import AutoregressiveSequence

FAST = RewardSettings(num_steps=150, learning_rate=0.02, weight_decay=0.0)


class Prompted:
    """Repeats its prompt's only symbol, shifted, as often as there is room for."""

    max_length = 3

    def __init__(self, prompts, shift):
        self.prompts, self.shift = torch.tensor(prompts), shift

    def sample(self, shape):
        symbol = (self.prompts[:, :1] + self.shift - 1) % 3 + 1
        return symbol.expand(*shape, len(self.prompts), 3).clone()


@pytest.mark.filterwarnings("ignore:the critic is dead")
def test_one_prompt_before_all_rows_is_not_read():
    """A prompt of three symbols is one prompt, not three."""
    torch.manual_seed(0)
    prompt = torch.tensor([1, 2, 1])
    initial, student = (
        AutoregressiveSequence(CharacterGRU(4, seed=seed), 4, end=0, prompts=prompt)
        for seed in (0, 1)
    )
    reward = fit_reward_model(
        "init_sft",
        GRUCritic(4, end=0, hidden_size=8, embedding_size=4),
        initial=initial,
        student=student,
        num_samples=400,
        settings=RewardSettings(num_steps=20, keep="last"),
    )
    rows = student.sample((2, 5))
    assert reward(rows).shape == (2, 5)
    torch.testing.assert_close(reward(rows)[0], reward(rows[0]))


@pytest.mark.filterwarnings("ignore:the classes are separable")
def test_responses_are_judged_with_their_prompts_and_leakage_warns():
    """Neither class differs in its symbols, only in which prompt they answer."""
    prompts = [[1], [2], [3]]
    reward = fit_reward_model(
        "init_sft",
        GRUCritic(4, end=0, hidden_size=16),
        initial=Prompted(prompts, 0),
        student=Prompted(prompts, 1),
        num_samples=180,
        settings=RewardSettings(num_steps=200, learning_rate=0.02),
    )
    fresh = torch.tensor([[1], [3]])
    responses = torch.tensor([[2, 2, 2], [3, 3, 3]])
    with pytest.warns(RuntimeWarning, match="2 of 2 prompts were in the reward model's training"):
        found = reward(responses, prompts=fresh)
    assert found[0].item() > 1.0
    assert found[1].item() < -1.0
    assert reward.features(responses, prompts=fresh).shape == (2, 16)
    with pytest.raises(ValueError, match=r"shape \(..., 2, max_length\), one response to each"):
        reward(responses[:1], prompts=fresh)
