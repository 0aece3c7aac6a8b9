"""f-DPG on bad settings, targets and policies: what is wrong is named, and nothing moves."""

import math

import pytest
import torch
from sequence_cases import (
    POLICY_A,
    GivenTarget,
    bigram_chain,
    categorical,
    count_twos,
    fixture_a,
    frozen,
)

from bayesdiv.inference.f_dpg import FDPG
from bayesdiv.models.sequence_targets import PointwiseConstraint, ScalarPreference
from bayesdiv.pyro.distributions import AutoregressiveSequence


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"divergence": "kullback"}, ValueError, "divergence must be one of reverse_kl, forw"),
        ({"divergence": "sinkhorn"}, TypeError, "divergence must be an f-divergence"),
        ({"baseline": "best"}, ValueError, "baseline must be one of auto, .* got 'best'"),
        ({"num_samples": 0}, ValueError, "num_samples must be an integer of at least 1, got 0"),
        ({"num_samples": 1, "baseline": "mean"}, ValueError, "at least 2 for baseline='mean'"),
        ({"proposal": "beam"}, ValueError, "proposal must be 'policy', 'adaptive' or a distr"),
        ({"proposal": object()}, TypeError, r"proposal must have sample\(\), .* got object"),
        ({"zero_floor": 1.0}, ValueError, r"zero_floor must be in \(0, 1\) or None, got 1.0"),
        ({"max_log_ratio": math.nan}, ValueError, "max_log_ratio must be finite or None, got nan"),
        ({"max_gradient_norm": 0.0}, ValueError, "max_gradient_norm must be positive"),
        ({"adapt_every": 0}, ValueError, "adapt_every must be an integer of at least 1"),
    ],
)
def test_bad_settings_are_named(settings, error, message):
    with pytest.raises(error, match=message):
        FDPG(fixture_a(), categorical(POLICY_A), **settings)


def test_order_of_alpha_is_checked():
    with pytest.raises(ValueError, match="order must be neither 0 nor 1"):
        FDPG(fixture_a(), categorical(POLICY_A), "alpha", parameters={"order": 1.0})


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_log_targets_that_are_no_numbers_are_named(value):
    policy = categorical(POLICY_A)
    before = policy.network.logits.detach().clone()
    with pytest.raises(ValueError, match=rf"log P must be .* got {value} for the sequence \[2\]"):
        FDPG(GivenTarget([0.0, 0.0, value, 0.0]), policy).step()
    assert torch.equal(policy.network.logits, before)


def test_log_targets_of_another_shape_are_named():
    class Wide:
        def log_prob(self, value):
            return torch.zeros(value.shape)

    with pytest.raises(ValueError, match=r"log P must have one number .* \(512,\), got \(512, 1\)"):
        FDPG(Wide(), categorical(POLICY_A)).step()


def test_policy_must_have_a_gradient():
    with pytest.raises(ValueError, match=r"with a gradient, got none; call network.requires_grad"):
        FDPG(fixture_a(), frozen(categorical(POLICY_A))).step()


def test_policy_must_be_normalised():
    class Unnormalised(AutoregressiveSequence):
        def log_prob(self, value):
            return super().log_prob(value) + 5.0

    policy = Unnormalised(categorical(POLICY_A).network, 1, end=None)
    with pytest.raises(ValueError, match="policy must have log-probabilities of at most 0"):
        FDPG(fixture_a(), policy).step()


def test_policy_must_not_be_the_base():
    target = ScalarPreference(bigram_chain(), count_twos, 1.0)
    with pytest.raises(ValueError, match=r"network of its own, .* base.trainable_copy"):
        FDPG(target, target.base)


def test_a_target_out_of_reach_is_an_error():
    target = PointwiseConstraint(frozen(bigram_chain()), lambda value: value[..., 0] > 7)
    routine = FDPG(target, bigram_chain(), num_samples=10, num_attempts=3)
    with pytest.raises(RuntimeError, match="no mass on any of the first 30 samples"):
        routine.step()


def test_overflow_is_an_error_that_says_where():
    class Elsewhere:
        """A proposal that nearly never draws what the policy prefers, but did."""

        sample = staticmethod(lambda shape: torch.zeros(*shape, 1, dtype=torch.long))
        log_prob = staticmethod(lambda value: torch.full(value.shape[:-1], -800.0).double())

    routine = FDPG(
        fixture_a(), categorical(POLICY_A), "pearson_chi2", proposal=Elsewhere(), num_samples=4
    )
    with pytest.raises(FloatingPointError, match="gradient of PearsonChi2 is not finite at log"):
        routine.step()


def test_truncated_ratios_are_reported_and_warned_of():
    routine = FDPG(
        fixture_a(), categorical(POLICY_A), "forward_kl", max_log_ratio=0.5, num_samples=1000
    )
    with pytest.warns(RuntimeWarning, match=r"\d+% of the ratios are truncated"):
        metrics = routine.step()
    assert metrics["truncated"].item() == pytest.approx(0.1, abs=0.05)
    routine.step()


def test_few_effective_samples_are_warned_of():
    target = GivenTarget([0.0, -30.0, -30.0, -30.0])
    policy = categorical([0.002, 0.3, 0.3, 0.398])
    with pytest.warns(RuntimeWarning, match="the effective sample size is 0.00"):
        FDPG(target, policy, num_samples=4000).step()


def test_batches_are_numbers_of_contexts():
    with pytest.raises(TypeError, match="batch must be None or the numbers of contexts"):
        FDPG(fixture_a(), categorical(POLICY_A)).step(torch.zeros(2))
