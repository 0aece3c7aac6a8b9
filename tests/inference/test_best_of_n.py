"""Best of N: its exact law against golden values, enumeration and simulation; its choices."""

import itertools
import math

import jax
import numpy as np
import pytest
import torch
from helpers import make_array, to_numpy
from scipy import stats

from bayesdiv.inference.best_of_n import (
    best_of_n,
    best_of_n_bound,
    best_of_n_curve,
    best_of_n_kl,
    best_of_n_law,
)

POLICY = np.array([0.1, 0.2, 0.3, 0.4])
REWARDS = np.log(np.array([0.5, 0.25, 0.125, 0.125]) / POLICY)
TIED = np.array([0.0, 1.0, 1.0, 2.0, 3.0, 5.0])
TIED_POLICY = np.array([0.15, 0.05, 0.3, 0.2, 0.2, 0.1])

GOLDEN = {
    2: ([0.19, 0.32, 0.33, 0.16], -0.097810, 0.157199),
    4: ([0.3439, 0.416, 0.2145, 0.0256], 0.428749, 0.587114),
    16: (None, 1.348904, 1.676797),
}


def rng(backend, seed=0):
    return seed if backend == "torch" else jax.random.key(seed)


@pytest.mark.parametrize("count", GOLDEN)
def test_golden_values(backend, count):
    log_probs, rewards = make_array(backend, np.log(POLICY)), make_array(backend, REWARDS)
    law = np.exp(to_numpy(best_of_n_law(log_probs, rewards, count)))
    expected, mean, kl = GOLDEN[count]
    if expected is not None:
        np.testing.assert_allclose(law, expected, atol=1e-12)
    assert law.sum() == pytest.approx(1.0, abs=1e-12)
    assert law @ REWARDS == pytest.approx(mean, abs=1e-6)
    assert float(best_of_n_kl(log_probs, rewards, count)) == pytest.approx(kl, abs=1e-6)


def test_bounds_in_nats():
    bounds = [best_of_n_bound(count) for count in (1, 2, 4, 8, 16, 32, 64)]
    expected = [0.0, 0.193, 0.636, 1.204, 1.835, 2.497, 3.175]
    np.testing.assert_allclose(bounds, expected, atol=6e-4)


def law_by_enumeration(policy, rewards, count):
    """Every tuple of draws, with the best ones sharing its probability."""
    law = np.zeros(len(policy))
    for draw in itertools.product(range(len(policy)), repeat=count):
        drawn = np.array(draw)
        best = drawn[rewards[drawn] == rewards[drawn].max()]
        np.add.at(law, best, policy[drawn].prod() / len(best))
    return law


@pytest.mark.parametrize("count", [1, 2, 3, 4])
def test_law_is_that_of_all_tuples_ties_included(backend, count):
    found = best_of_n_law(
        make_array(backend, np.log(TIED_POLICY)), make_array(backend, TIED), count
    )
    expected = law_by_enumeration(TIED_POLICY, TIED, count)
    np.testing.assert_allclose(np.exp(to_numpy(found)), expected, rtol=1e-12)


@pytest.mark.parametrize("count", [2, 5, 64, 1000])
def test_ties_share_as_the_policy_does_and_the_law_sums_to_one(backend, count):
    log_probs = make_array(backend, np.log(TIED_POLICY))
    law = np.exp(to_numpy(best_of_n_law(log_probs, make_array(backend, TIED), count)))
    assert law.sum() == pytest.approx(1.0, abs=1e-12)
    assert law[2] / law[1] == pytest.approx(6.0, rel=1e-9)
    kl = float(best_of_n_kl(log_probs, make_array(backend, TIED), count))
    assert 0.0 < kl < best_of_n_bound(count)


def test_equal_rewards_change_nothing():
    log_probs = torch.tensor(POLICY).log()
    law = best_of_n_law(log_probs, torch.zeros(4, dtype=torch.float64), 7)
    torch.testing.assert_close(law, log_probs, rtol=0, atol=1e-14)


def test_many_outcomes_without_ties_attain_the_bound():
    """The bound is the law of a continuous reward: 20,000 equally likely outcomes come near."""
    count = 20_000
    log_probs = torch.full((count,), -math.log(count), dtype=torch.float64)
    rewards = torch.randperm(count, generator=torch.Generator().manual_seed(0)).double()
    for number in (2, 16, 64):
        kl = float(best_of_n_kl(log_probs, rewards, number))
        assert best_of_n_bound(number) - 1e-2 < kl <= best_of_n_bound(number) + 1e-9


def test_outcomes_without_mass_stay_without():
    probs = torch.tensor([0.0, 0.5, 0.5, 0.0], dtype=torch.float64)
    rewards = torch.tensor([-1.0, 0.0, 1.0, 2.0], dtype=torch.float64)
    law = best_of_n_law(probs.log(), rewards, 2)
    torch.testing.assert_close(law.exp(), torch.tensor([0.0, 0.25, 0.75, 0.0]).double())
    assert math.isfinite(float(best_of_n_kl(probs.log(), rewards, 2)))


def test_mean_reward_does_not_fall_with_the_number():
    log_probs, rewards = torch.tensor(POLICY).log(), torch.tensor(REWARDS)
    means = [float(best_of_n_law(log_probs, rewards, n).exp() @ rewards) for n in range(1, 40)]
    assert (np.diff(means) > 0.0).all()


@pytest.mark.parametrize("count", [2, 5])
def test_choices_follow_the_law(backend, count):
    """χ² of 40,000 choices against the law, ties included: p above that of five sigma."""
    num_prompts = 40_000
    generator = np.random.default_rng(0)
    drawn = generator.choice(len(TIED), size=(num_prompts, count), p=TIED_POLICY)
    picks = best_of_n(make_array(backend, TIED[drawn]), rng=rng(backend))
    found = drawn[np.arange(num_prompts), to_numpy(picks)]
    law = best_of_n_law(torch.tensor(TIED_POLICY).log(), torch.tensor(TIED), count).exp()
    observed = np.bincount(found, minlength=len(TIED))
    test = stats.chisquare(observed, num_prompts * law.numpy())
    assert test.pvalue > 5.7e-7


def test_ties_are_broken_at_random_and_by_seed(backend):
    """An argmax would take the first of equals every time."""
    rewards = make_array(backend, np.ones((3000, 4)))
    picks = to_numpy(best_of_n(rewards, rng=rng(backend, 1)))
    again = to_numpy(best_of_n(rewards, rng=rng(backend, 1)))
    other = to_numpy(best_of_n(rewards, rng=rng(backend, 2)))
    np.testing.assert_array_equal(picks, again)
    assert (picks != other).any()
    counts = np.bincount(picks, minlength=4)
    assert stats.chisquare(counts).pvalue > 5.7e-7
    only = best_of_n(make_array(backend, [[0.0, 1.0, 9.0]]), num_candidates=2, rng=rng(backend))
    assert int(only[0]) == 1


def curve_by_subsets(rewards, scores, count):
    """The mean over every subset of the pool."""
    total = []
    for subset in itertools.combinations(range(len(rewards)), count):
        chosen = np.array(subset)
        best = chosen[rewards[chosen] == rewards[chosen].max()]
        total.append(scores[best].mean())
    return np.mean(total)


def test_curve_is_the_mean_over_all_subsets(backend):
    generator = np.random.default_rng(0)
    rewards = generator.integers(0, 4, size=(3, 6)).astype(float)
    scores = generator.normal(size=(3, 6))
    curve = best_of_n_curve(make_array(backend, rewards), make_array(backend, scores), (1, 2, 4, 6))
    for count, found in curve.items():
        expected = [curve_by_subsets(*rows, count) for rows in zip(rewards, scores, strict=True)]
        np.testing.assert_allclose(to_numpy(found), expected, atol=1e-12)


def test_curve_of_a_large_pool_goes_by_the_law():
    """Candidates without end: the pool's curve is the law's mean within five standard errors."""
    generator = np.random.default_rng(0)
    drawn = generator.choice(4, size=(1500, 64), p=POLICY)
    rewards = torch.tensor(REWARDS[drawn])
    for count, found in best_of_n_curve(rewards, rewards, (4, 16)).items():
        error = float(found.std()) / math.sqrt(len(found))
        assert abs(float(found.mean()) - GOLDEN[count][1]) < 5.0 * error


LAW = torch.tensor(POLICY).log()
REFUSED = {
    "no candidates": (lambda: best_of_n_law(LAW, LAW, 0), "num_candidates must be a whole number"),
    "half a candidate": (lambda: best_of_n_bound(1.5), "of at least 1, got 1.5"),
    "shapes": (lambda: best_of_n_law(LAW, LAW[:2], 2), r"one shape \(outcomes,\), got \(4,\) and"),
    "mass": (lambda: best_of_n_law(LAW + 1.0, LAW, 2), "normalised law, got one whose mass is 2.7"),
    "reward of the law": (
        lambda: best_of_n_law(LAW, LAW + torch.tensor([0.0, 0.0, math.inf, 0.0]), 2),
        "rewards must be finite, got inf of outcome 2",
    ),
    "too many": (
        lambda: best_of_n(torch.zeros(2, 3), num_candidates=4),
        "at most the candidates there are, 3, got 4; draw more",
    ),
    "too many for the curve": (
        lambda: best_of_n_curve(torch.zeros(2, 3), torch.zeros(2, 3), (2, 5)),
        "at most the candidates there are, 3, got 5; draw more",
    ),
    "not a number": (
        lambda: best_of_n(torch.tensor([[0.0, 1.0], [2.0, math.nan]])),
        "got nan for prompt 1, candidate 1; the reward model",
    ),
    "axes": (lambda: best_of_n(torch.zeros(3)), r"shape \(prompts, candidates\).* as rewards\[Non"),
    "scores": (
        lambda: best_of_n_curve(torch.zeros(2, 3), torch.zeros(2, 4), (1,)),
        r"scores must have the shape of rewards, \(2, 3\), got \(2, 4\)",
    ),
}


@pytest.mark.parametrize(("call", "message"), REFUSED.values(), ids=REFUSED)
def test_refusals(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_arrays_are_asked_for():
    with pytest.raises(TypeError, match="rewards must be a torch tensor or a JAX array, got nd"):
        best_of_n(np.zeros((2, 3)))
    with pytest.raises(TypeError, match="log_probs must be a torch tensor or a JAX array, got l"):
        best_of_n_law([0.0], [0.0], 1)
