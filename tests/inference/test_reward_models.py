"""Reward models: what each kind learns from, at its optimum, and what it refuses."""

import warnings

import numpy as np
import pytest
import torch
from imitation_cases import random_chain

from bayesdiv.divergences import between_logits
from bayesdiv.inference.best_of_n import best_of_n_curve, best_of_n_law
from bayesdiv.inference.reward_models import (
    KINDS,
    BradleyTerry,
    RewardSettings,
    fit_reward_model,
    log_ratio_reward,
    shaped_token_rewards,
)
from bayesdiv.inference.sequence_critics import GRUCritic, LinearCritic, bigram_features
from bayesdiv.objectives import DensityRatio
from bayesdiv.training import train

FAST = RewardSettings(num_steps=150, learning_rate=0.02, weight_decay=0.0)


class Always:
    """A policy that knows one sequence, or several in turn."""

    max_length = 4

    def __init__(self, *rows):
        self.rows = torch.tensor(rows)

    def sample(self, shape):
        return self.rows[torch.arange(shape[0]) % len(self.rows)]


def critic(**settings):
    return GRUCritic(4, end=0, hidden_size=8, embedding_size=4, **settings)


@pytest.mark.filterwarnings("ignore:the classes are separable")
@pytest.mark.parametrize(
    ("kind", "best", "worst"),
    [
        ("init_sft", [2, 2, 0, 0], [1, 1, 0, 0]),
        ("init_demo", [3, 3, 0, 0], [1, 1, 0, 0]),
        ("sft_demo", [3, 3, 0, 0], [2, 2, 0, 0]),
    ],
)
def test_which_class_is_which(kind, best, worst):
    found = fit_reward_model(
        kind,
        critic(),
        initial=Always([1, 1, 0, 0]),
        student=Always([2, 2, 0, 0]),
        demonstrations=torch.tensor([[3, 3, 0, 0]] * 60),
        num_samples=60,
        settings=FAST,
    )
    high, low = found(torch.tensor([best, worst])).tolist()
    assert high > 2.0
    assert low < -2.0
    assert found.kind == kind


def test_init_sft_learns_the_closed_form_log_ratio():
    """On chains of 3 symbols, every sequence's reward is near log π_SFT − log π_0."""
    initial, student = random_chain(1, scale=0.7), random_chain(2, scale=0.7)
    reward = fit_reward_model(
        "init_sft",
        GRUCritic(3, end=0, hidden_size=16, embedding_size=4),
        initial=initial,
        student=student,
        num_samples=20_000,
        settings=RewardSettings(num_steps=400, batch_size=1000, learning_rate=0.02),
    )
    rows = initial.enumerate_support()
    exact = log_ratio_reward(initial=initial, student=student)(rows).detach()
    weights = 0.5 * (initial.log_prob(rows).exp() + student.log_prob(rows).exp()).detach()
    error = (weights * (reward(rows) - exact) ** 2).sum().sqrt().item()
    spread = (weights * exact**2).sum().sqrt().item()
    assert error < 0.15 * spread
    closed = fit_reward_model("log_ratio", initial=initial, student=student)
    torch.testing.assert_close(closed(rows), exact)
    # The probe sees the divergence that there is.
    truth = between_logits("jensen_shannon", student.log_prob(rows), initial.log_prob(rows))
    assert reward.probe.implied_jensen_shannon == pytest.approx(truth.item(), abs=0.02)


def test_policies_that_are_alike_give_no_signal():
    """π_SFT = π_0: accuracy ½ within 3 standard errors, a warning, and hardly a reward."""
    policy = random_chain(1)
    settings = RewardSettings(num_steps=50, held_out=0.5)
    with pytest.warns(RuntimeWarning, match="the critic is dead"):
        reward = fit_reward_model(
            "init_sft",
            critic(),
            initial=policy,
            student=policy,
            num_samples=4000,
            settings=settings,
        )
    assert abs(reward.probe.accuracy - 0.5) < 3.0 * reward.probe.accuracy_error
    rows = policy.enumerate_support()
    assert reward(rows).abs().max().item() < 0.5
    # In closed form all are tied, and the best of N is any of them.
    closed = fit_reward_model("log_ratio", initial=policy, student=policy)
    torch.manual_seed(1)
    candidates = policy.sample((50, 16))
    golden = candidates.double().sum(-1)
    curve = best_of_n_curve(closed(candidates), golden, (1, 16))
    torch.testing.assert_close(curve[16], curve[1])


def test_best_of_n_by_the_log_ratio_moves_mass_as_its_law_says():
    initial, student = random_chain(1), random_chain(2)
    rows = student.enumerate_support()
    rewards = fit_reward_model("log_ratio", initial=initial, student=student)(rows)
    log_probs = student.log_prob(rows).detach()
    law = best_of_n_law(log_probs, rewards, 8)
    assert law.exp().sum().item() == pytest.approx(1.0, abs=1e-12)
    order = rewards.argsort()
    tilt = (law - log_probs)[order]
    assert (tilt.diff() > 0.0).all()


def test_preferences_recover_reward_differences():
    """Bradley–Terry on a table of three: r up to a constant."""
    truth = torch.tensor([0.0, 1.0, -0.8])
    generator = torch.Generator().manual_seed(0)
    first, second = torch.randint(0, 3, (2, 40_000), generator=generator)
    wins = torch.rand(40_000, generator=generator) < (truth[first] - truth[second]).sigmoid()
    preferred, dispreferred = torch.where(wins, first, second), torch.where(wins, second, first)

    class Table(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.rewards = torch.nn.Parameter(torch.zeros(3))

        def forward(self, rows):
            return self.rewards[rows[:, 0]]

    table = Table()
    routine = BradleyTerry(table, torch.optim.Adam(table.parameters(), lr=0.05))
    pairs = preferred[:, None], dispreferred[:, None]
    train(routine, [pairs], num_steps=150, progress_bar=False)
    found = (table.rewards - table.rewards[0]).detach()
    torch.testing.assert_close(found, truth, rtol=0, atol=0.08)
    state = routine.state_dict()
    table.rewards.data.zero_()
    routine.load_state_dict(state)
    torch.testing.assert_close((table.rewards - table.rewards[0]).detach(), found)

    fitted = fit_reward_model("preference", Table(), pairs=pairs, settings=FAST)
    assert fitted(torch.tensor([[1], [0], [2]])).diff().max().item() < 0.0


def test_token_rewards_telescope():
    """Σ_t r_t = log π(y) + V(s_0) − V(s_T), and the dense log-ratio sums to the sequences'."""
    generator = torch.Generator().manual_seed(0)
    policy = random_chain(1)
    rows = policy.enumerate_support()
    token_log_probs = policy.token_log_probs(rows).detach()
    values = torch.randn(len(rows), 4, generator=generator, dtype=torch.float64)
    found = shaped_token_rewards(token_log_probs, values).sum(-1)
    expected = policy.log_prob(rows).detach() + values[:, 0] - values[:, -1]
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    with pytest.raises(ValueError, match=r"one state more .* shape \(15, 4\), got \(15, 3\)"):
        shaped_token_rewards(token_log_probs, values[:, 1:])


def test_critics_do_not_read_padding():
    rows = torch.tensor([[1, 2, 0, 0], [1, 2, 0, 3], [1, 2, 3, 3]])
    gru = critic(seed=1)
    torch.nn.init.normal_(gru.head.weight)
    linear = LinearCritic(4, end=0)
    torch.nn.init.normal_(linear.head.weight)
    for network in (gru, linear):
        found = network(rows)
        assert found[0].item() == found[1].item() != found[2].item()


def test_bigram_features_count_neighbours_and_the_last_symbol():
    rows = torch.tensor([[1, 2, 1, 2, 0], [3, 0, 0, 0, 0], [2, 2, 2, 2, 2], [0, 0, 0, 0, 0]])
    found = bigram_features(rows, 4, end=0).long()
    for row, expected in zip(
        found,
        (
            ({(0, 1): 1, (1, 2): 2, (2, 1): 1, (2, 0): 1}, 2),
            ({(0, 3): 1, (3, 0): 1}, 3),
            ({(0, 2): 1, (2, 2): 4}, 2),
            ({(0, 0): 1}, 0),
        ),
        strict=True,
    ):
        counts = {(k // 4, k % 4): int(row[k]) for k in range(16) if row[k]}
        assert counts == expected[0]
        assert row[16:].tolist() == np.eye(4)[expected[1]].tolist()


def test_same_seed_same_reward_and_the_global_generator_stays():
    def fit(seed):
        torch.manual_seed(3)
        fitted = fit_reward_model(
            "init_sft",
            critic(),
            initial=random_chain(1),
            student=random_chain(2),
            num_samples=200,
            settings=RewardSettings(num_steps=20),
            seed=seed,
        )
        return fitted(rows), torch.rand(1).item()

    rows = random_chain(1).enumerate_support()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        (one, left), (same, _), (other, _) = fit(0), fit(0), fit(1)
    torch.testing.assert_close(one, same, rtol=0, atol=0)
    assert not torch.equal(one, other)
    torch.manual_seed(3)
    assert left == torch.rand(1).item()


def test_best_step_or_last():
    """Thirty rows a class are learnt by heart: the last critic is sure, and worse held out."""
    probes = {}
    for keep in ("best", "last"):
        settings = RewardSettings(
            num_steps=200, batch_size=30, learning_rate=0.03, held_out=0.5, keep=keep
        )
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            fitted = fit_reward_model(
                "init_sft",
                GRUCritic(3, end=0),
                initial=random_chain(1, max_length=6),
                student=random_chain(2, max_length=6, scale=0.3),
                num_samples=60,
                settings=settings,
            )
        probes[keep] = fitted.probe
    assert probes["best"].loss < probes["last"].loss - 0.2
    assert probes["best"].calibration.slope > probes["last"].calibration.slope


# Prompts


# Refusals

ONE, OTHER = Always([1, 0, 0, 0]), Always([2, 0, 0, 0])
ROWS = torch.tensor([[3, 0, 0, 0]] * 20)


def warm(**attributes):
    policy = Always([2, 0, 0, 0])
    for name, value in attributes.items():
        setattr(policy, name, value)
    return policy


REFUSED = {
    "kind": (dict(kind="demo"), "kind must be one of 'init_sft', .*, got 'demo'"),
    "critic": (
        dict(kind="init_sft", critic=None, initial=ONE, student=OTHER),
        "critic is needed for kind='init_sft', got None",
    ),
    "student": (dict(kind="init_sft", initial=ONE), "student is needed for kind='init_sft'"),
    "demonstrations": (
        dict(kind="init_demo", initial=ONE),
        "demonstrations is needed for kind='init_demo', got None",
    ),
    "pairs": (dict(kind="preference"), "pairs are needed for kind='preference', got None"),
    "pair shapes": (
        dict(kind="preference", pairs=(ROWS, ROWS[:3])),
        r"pairs must have one shape, \(n, max_length\), got \(20, 4\) and \(3, 4\)",
    ),
    "initial": (
        dict(kind="log_ratio", student=random_chain(0)),
        "initial is needed for the log-ratio, got None",
    ),
    "temperature": (
        dict(kind="init_sft", initial=ONE, student=warm(temperature=0.7)),
        "student must be sampled alike.*got temperature = None and 0.7",
    ),
    "length cap": (
        dict(kind="init_sft", initial=ONE, student=warm(max_length=9)),
        "sampled alike.* got max_length = 4 and 9",
    ),
    "prompts": (
        dict(kind="init_sft", initial=ONE, student=warm(prompts=torch.tensor([[1]]))),
        "initial and student must have the same prompts",
    ),
    "no demonstrations": (
        dict(kind="init_demo", initial=ONE, demonstrations=ROWS[:0]),
        r"demonstrations must have shape \(n, max_length\), n at least 1, got \(0, 4\)",
    ),
    "long demonstrations": (
        dict(kind="sft_demo", student=ONE, demonstrations=torch.ones(5, 6).long()),
        "demonstrations must have the policy's max_length, 4, got 6; see prepare",
    ),
    "few rows": (
        dict(kind="sft_demo", student=ONE, demonstrations=ROWS[:3]),
        "enough rows to train on 2 and hold out 2, got 3",
    ),
}


@pytest.mark.parametrize(("settings", "message"), REFUSED.values(), ids=REFUSED)
def test_refusals(settings, message):
    with pytest.raises(ValueError, match=message):
        fit_reward_model(**{"critic": critic(), **settings})


def test_a_policy_without_methods_is_a_type_error():
    with pytest.raises(TypeError, match="student must have log_prob, got Always without log_prob"):
        fit_reward_model("log_ratio", initial=ONE, student=OTHER)
    with pytest.raises(TypeError, match="initial must have sample, got list without sample"):
        fit_reward_model("init_demo", critic(), initial=[], demonstrations=ROWS)
    closed = fit_reward_model("log_ratio", initial=random_chain(0), student=random_chain(1))
    with pytest.raises(TypeError, match="kind 'log_ratio' with critic NoneType has no features"):
        closed.features(ROWS)


BAD_SETTINGS = {
    "num_steps": (dict(num_steps=0), "num_steps must be a whole number of at least 1, got 0"),
    "learning_rate": (dict(learning_rate=0.0), "learning_rate must be positive and finite, got 0"),
    "weight_decay": (dict(weight_decay=-1.0), "weight_decay must be finite and at least 0, got -1"),
    "held_out": (dict(held_out=1.0), r"held_out must be in \(0, 1\), got 1.0"),
    "keep": (dict(keep="first"), "keep must be 'best' or 'last', got 'first'"),
}


@pytest.mark.parametrize(("settings", "message"), BAD_SETTINGS.values(), ids=BAD_SETTINGS)
def test_refused_settings(settings, message):
    with pytest.raises(ValueError, match=message):
        RewardSettings(**settings)


def test_refused_networks():
    with pytest.raises(ValueError, match="hidden_size must be an integer of at least 1, got 0"):
        GRUCritic(4, end=0, hidden_size=0)
    with pytest.raises(ValueError, match="num_symbols must be an integer of at least 1, got -2"):
        LinearCritic(-2, end=0)


def test_separable_classes_warn():
    """Two policies without a sequence in common: the reward is whatever training made of it."""
    with pytest.warns(RuntimeWarning, match="classes are separable"):
        fit_reward_model("init_sft", critic(), initial=ONE, student=OTHER, settings=FAST)
    assert KINDS[0] == "init_sft"
    assert RewardSettings().ratio == DensityRatio()
