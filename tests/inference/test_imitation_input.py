"""What imitation refuses and warns of."""

import math

import pytest
import torch
from imitation_cases import CategoricalPolicy, Scored, random_chain

from bayesdiv.inference.imitation import (
    AdversarialImitation,
    OracleImitation,
    SupervisedFineTuning,
    get_imitation,
    position_weights,
    prepare_demonstrations,
)
from bayesdiv.objectives import DensityRatio, RatioCritic
from bayesdiv.training import train

COUNTS = [6, 3, 20, 11, 9, 11]


def make_policy():
    policy = CategoricalPolicy(COUNTS)
    return policy, torch.optim.SGD([policy.logits], lr=0.1)


def make_critic(bias=0.0, **settings):
    table = torch.nn.Embedding(6, 1).double()
    torch.nn.init.constant_(table.weight, bias)
    return RatioCritic(
        lambda rows: table(rows[:, 0])[:, 0],
        torch.optim.SGD(table.parameters(), lr=0.0),
        parameters=table,
        **settings,
    )


SETTINGS = {
    "objective": (
        lambda p, o: get_imitation("bc", p, o),
        "must be one of 'sft', 'occupancy_sft', ",
    ),
    "weights": (
        lambda p, o: SupervisedFineTuning(p, o, weights="token"),
        "weights must be one of 'uniform', 'occupancy', got 'token'",
    ),
    "discount": (
        lambda p, o: SupervisedFineTuning(p, o, weights="occupancy", discount=0.0),
        r"discount must be in \(0, 1\], got 0.0",
    ),
    "discount of uniform weights": (
        lambda p, o: SupervisedFineTuning(p, o, discount=0.5),
        "discount belongs to weights='occupancy', got 0.5",
    ),
    "length": (lambda p, o: position_weights(0), "max_length must be a whole number of at least 1"),
    "critic steps": (
        lambda p, o: AdversarialImitation(p, o, make_critic(), num_critic_steps=0),
        "num_critic_steps must be a whole number of at least 1, got 0",
    ),
    "critic-only steps": (
        lambda p, o: AdversarialImitation(p, o, make_critic(), num_critic_only=-1),
        "num_critic_only must be a whole number of at least 0, got -1",
    ),
    "samples": (
        lambda p, o: AdversarialImitation(p, o, make_critic(), num_samples=1),
        "num_samples must be a whole number of at least 2, for the leave-one-out baseline, got 1",
    ),
    "anchor": (
        lambda p, o: AdversarialImitation(p, o, make_critic(), anchor_weight=0.1),
        "needs an anchor where it is positive, got 0.1 with anchor=None",
    ),
    "divergence": (
        lambda p, o: OracleImitation(p, o, p, divergence="kl"),
        "divergence must be one of reverse_kl, forward_kl",
    ),
    "floor": (lambda p, o: OracleImitation(p, o, p, floor=1.0), r"floor must be in \(0, 1\) or No"),
}


@pytest.mark.parametrize(("make", "message"), SETTINGS.values(), ids=SETTINGS)
def test_refused_settings(make, message):
    with pytest.raises(ValueError, match=message):
        make(*make_policy())


class OnlyScores:
    def log_prob(self, tokens):
        return tokens[:, 0].double()


def test_kinds_that_do_not_fit_are_type_errors():
    policy, optimizer = make_policy()
    with pytest.raises(TypeError, match="expert has no log_prob, got list; use an adversarial obj"):
        OracleImitation(policy, optimizer, [1, 2])
    with pytest.raises(TypeError, match="policy must have sample and log_prob.*without sample; wr"):
        AdversarialImitation(OnlyScores(), optimizer, make_critic())
    with pytest.raises(TypeError, match="policy must have token_log_probs and mask, got OnlySco"):
        SupervisedFineTuning(OnlyScores(), optimizer)
    with pytest.raises(TypeError, match="critic must be a RatioCritic, got Linear"):
        AdversarialImitation(policy, optimizer, torch.nn.Linear(1, 1))
    with pytest.raises(TypeError, match="must be an f-divergence, got Sinkhorn"):
        OracleImitation(policy, optimizer, policy, divergence="sinkhorn")


ZEROS = torch.tensor([0.5, 0.0, 0.2, 0.1, 0.1, 0.1], dtype=torch.float64).log()


@pytest.mark.parametrize("name", ["reverse_kl", "neyman_chi2", "jeffreys"])
def test_an_expert_without_mass_somewhere(name):
    """Divergences that are infinite there refuse; with a floor the reward is that of the floor."""
    policy, optimizer = make_policy()
    size = policy.size
    routine = OracleImitation(policy, optimizer, Scored(ZEROS), divergence=name, num_samples=size)
    with pytest.raises(ValueError, match=r"infinite where the expert has no mass.*\[1\]; pass fl"):
        routine.step()
    floored = OracleImitation(
        policy, optimizer, Scored(ZEROS), divergence=name, num_samples=size, floor=1e-3
    )
    metrics = floored.step()
    assert all(math.isfinite(float(value)) for value in metrics.values())


def test_bounded_divergences_take_an_expert_without_mass_somewhere():
    policy, optimizer = make_policy()
    routine = OracleImitation(
        policy, optimizer, Scored(ZEROS), divergence="jensen_shannon", num_samples=policy.size
    )
    before = float(policy.log_prob(torch.tensor([[1]])).detach())
    metrics = routine.step()
    assert all(math.isfinite(float(value)) for value in metrics.values())
    assert float(policy.log_prob(torch.tensor([[1]])).detach()) < before


def test_a_critic_at_its_clamp_warns_once():
    policy, optimizer = make_policy()
    critic = make_critic(bias=30.0, ratio=DensityRatio(max_log_ratio=8.0))
    routine = AdversarialImitation(policy, optimizer, critic, num_samples=policy.size)
    rows = policy.sample((policy.size,))
    for _ in range(19):
        metrics = routine.step(rows)
    assert float(metrics["saturated"]) == 1.0
    with pytest.warns(RuntimeWarning, match="the discriminator separates: more than half"):
        routine.step(rows)
    for _ in range(25):
        routine.step(rows)


def test_mode_collapse_warns():
    """A reward for one outcome alone, and a learning rate that runs after it."""
    policy = random_chain(0)
    expert = random_chain(1)
    optimizer = torch.optim.Adam(policy.network.parameters(), lr=1.0)
    expert.network.logits.data *= 20.0
    routine = OracleImitation(policy, optimizer, expert, divergence="reverse_kl", num_samples=50)
    with pytest.warns(RuntimeWarning, match="mode collapse: the policy's entropy fell from"):
        train(routine, None, num_steps=60, progress_bar=False)


def test_a_reward_that_is_no_number_is_an_error():
    policy, optimizer = make_policy()
    log_probs = torch.zeros(6).double()
    log_probs[3] = math.nan
    routine = OracleImitation(
        policy, optimizer, Scored(log_probs), divergence="reverse_kl", num_samples=policy.size
    )
    with pytest.raises(FloatingPointError, match="loss became nan at step 1 with log-ratios from"):
        routine.step()
    policy.logits.data.fill_(math.nan)
    supervised = SupervisedFineTuning(policy, optimizer)
    with pytest.raises(FloatingPointError, match="the loss became nan at step 1; lower the learn"):
        supervised.step(torch.zeros(2, 1).long())


# Demonstrations

VOCABULARY = dict(num_symbols=4, max_length=4, end=0)


def test_demonstrations_become_rows():
    found = prepare_demonstrations([[1, 2, 0], [3, 0], torch.tensor([2, 2, 2, 0])], **VOCABULARY)
    assert found.tokens.tolist() == [[1, 2, 0, 0], [3, 0, 0, 0], [2, 2, 2, 0]]
    assert (found.num_truncated, found.num_without_end) == (0, 0)
    again = prepare_demonstrations(found.tokens, **VOCABULARY)
    assert again.tokens.equal(found.tokens)


def test_missing_ends_are_appended_with_one_warning():
    with pytest.warns(RuntimeWarning, match="2 of 3 demonstrations have no end; .* 0 was appended"):
        found = prepare_demonstrations([[1, 2], [3], [1, 0]], **VOCABULARY)
    assert found.tokens.tolist() == [[1, 2, 0, 0], [3, 0, 0, 0], [1, 0, 0, 0]]
    assert found.num_without_end == 2


def test_long_demonstrations_are_cut_and_counted():
    with pytest.warns(RuntimeWarning, match="2 of 3 demonstrations leave no room for their end"):
        found = prepare_demonstrations([[1, 2, 3, 1, 2, 0], [1, 2, 3, 1], [1, 0]], **VOCABULARY)
    assert found.tokens.tolist() == [[1, 2, 3, 1], [1, 2, 3, 1], [1, 0, 0, 0]]
    assert (found.num_truncated, found.num_without_end) == (2, 0)


BAD = {
    "none": ([], "at least one sequence, got none"),
    "outside": ([[1, 0], [2, 7, 0]], "symbols from 0 to 3, got 7 in row 1"),
    "negative": ([[-1, 0]], "symbols from 0 to 3, got -1 in row 0"),
    "empty": ([[1, 0], [0, 0]], "a symbol before their end, got none in row 1"),
    "fractions": ([[0.5]], r"rows of whole numbers, got torch.float32 of shape \(1,\) in row 0"),
}


@pytest.mark.parametrize(("rows", "message"), BAD.values(), ids=BAD)
def test_refused_demonstrations(rows, message):
    with pytest.raises(ValueError, match=message):
        prepare_demonstrations(rows, **VOCABULARY)
