"""Metrics of a policy against enumeration; diversity; runs in ArviZ."""

import math

import arviz
import numpy as np
import pytest
import torch
from sequence_cases import bigram_chain, count_twos, frozen, has_two

from bayesdiv.divergences import get_divergence
from bayesdiv.inference.f_dpg import FDPG
from bayesdiv.inference.sequence_diversity import distinct_ngrams, self_bleu
from bayesdiv.inference.sequence_metrics import (
    draw_from_target,
    evaluate_policy,
    runs_to_arviz,
)
from bayesdiv.models.sequence_targets import (
    PointwiseConstraint,
    ScalarPreference,
    enumerate_target,
)
from bayesdiv.training import train


def drifted():
    policy = bigram_chain()
    with torch.no_grad():
        policy.network.logits.add_(torch.tensor([0.3, -0.2, 0.4]).double())
    return policy


@pytest.mark.parametrize("constrained", [False, True])
def test_metrics_agree_with_enumeration(constrained):
    base, policy = frozen(bigram_chain()), drifted()
    if constrained:
        target = PointwiseConstraint(base, lambda value: has_two(value) > 0)
    else:
        target = ScalarPreference(base, count_twos, 1.0)
    found = enumerate_target(target)
    sample = draw_from_target(target, 40_000, num_proposed=100_000)
    metrics = evaluate_policy(
        target, policy, sample, num_samples=40_000, statistics={"twos": count_twos}
    )
    assert sample.log_normalizer == pytest.approx(found.log_normalizer.item(), abs=0.02)
    assert abs(sample.log_normalizer - found.log_normalizer.item()) < 5 * sample.standard_error
    log_q = policy.log_prob(found.value).detach()
    for name in ("forward_kl", "total_variation", "jensen_shannon", "reverse_kl"):
        member = get_divergence(name)
        if name == "reverse_kl" and constrained:
            assert metrics[name] == math.inf
            continue
        truth = member.between_logits(found.log_prob, log_q).item()
        assert metrics[name] == pytest.approx(truth, abs=0.02), name
    q = log_q.exp()
    assert metrics["entropy"] == pytest.approx(-(q @ log_q).item(), abs=0.02)
    assert metrics["twos"] == pytest.approx((q @ count_twos(found.value)).item(), abs=0.03)
    base_kl = (q @ (log_q - base.log_prob(found.value))).item()
    assert metrics["base_kl"] == pytest.approx(base_kl, abs=0.02)


def test_samples_of_the_target_have_its_frequencies():
    target = ScalarPreference(frozen(bigram_chain()), count_twos, 0.5)
    found = enumerate_target(target)
    sample = draw_from_target(target, 20_000, num_proposed=200_000)
    truth = (found.log_prob.exp() @ count_twos(found.value)).item()
    assert count_twos(sample.value).mean().item() == pytest.approx(truth, abs=0.03)
    torch.testing.assert_close(sample.log_target, target.log_prob(sample.value))


def test_a_target_that_is_not_met_is_an_error():
    target = PointwiseConstraint(frozen(bigram_chain()), lambda value: value[..., 0] > 5)
    with pytest.raises(RuntimeError, match="no mass on any of 50 proposed sequences"):
        draw_from_target(target, num_proposed=50)


def test_self_bleu_is_that_of_the_definition():
    """Two references by hand: 1-grams 3/4, 2-grams 1/3."""
    texts = ["ABCA", "AXBC", "ZZZZ"]

    def one(p1, p2):
        return math.exp(0.5 * (math.log(p1) + math.log(p2)))

    # ABCA: A twice but once in any reference. AXBC: X is nobody's; BC is ABCA's. ZZZZ: nothing.
    expected = [one(3 / 4, 1 / 3), one(3 / 4, 1 / 3), one(0.1 / 4, 0.1 / 3)]
    assert self_bleu(texts, 2) == pytest.approx(sum(expected) / 3)


def test_short_sequences_among_longer_ones_are_penalised():
    assert self_bleu(["AB", "ABAB"], 1) == pytest.approx((math.exp(1 - 4 / 2) * 1 + 0.5) / 2)


def test_collapse_shows_in_diversity():
    varied, same = ["ABC", "DEF", "GHI"], ["ABC", "ABC", "ABC"]
    assert self_bleu(varied) < 0.1 < self_bleu(same)
    assert distinct_ngrams(["AAB"], 2) == 1.0
    assert distinct_ngrams(["AAA", "B"], 2) == 0.5


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: self_bleu(["A"]), "sequences must be at least 2 that are not empty, got 1"),
        (lambda: distinct_ngrams(["A"], 0), "order must be an integer of at least 1, got 0"),
        (lambda: runs_to_arviz([], ["a"]), "histories must hold at least one run"),
        (
            lambda: runs_to_arviz([{"a": np.zeros(3)}, {"a": np.zeros(4)}], ["a"]),
            r"same metrics and numbers of steps, got lengths \[3, 4\]",
        ),
        (
            lambda: runs_to_arviz([{"a": np.zeros(3)}], ["b"]),
            r"moments must be among the metrics \['a'\], at least one, got \['b'\]",
        ),
    ],
)
def test_bad_input_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_runs_are_chains_in_arviz(tmp_path):
    histories = []
    for seed in range(3):
        torch.manual_seed(seed)
        target = ScalarPreference(frozen(bigram_chain()), count_twos, 0.7)
        routine = FDPG(target, bigram_chain(), num_samples=50, statistics={"twos": count_twos})
        histories.append(train(routine, None, num_steps=20, progress_bar=False).history)
    container = runs_to_arviz(histories, ["twos"], thin=2, attrs={"divergence": "jensen_shannon"})
    container.to_netcdf(tmp_path / "runs.nc")
    again = arviz.from_netcdf(tmp_path / "runs.nc")
    assert again.posterior["twos"].shape == (3, 10)
    for name in ("log_normalizer", "ess", "forward_kl", "entropy"):
        assert again.sample_stats[name].shape == (3, 10)
    assert again.posterior.attrs["divergence"] == "jensen_shannon"
    assert np.isfinite(arviz.summary(again)["r_hat"]).all()
