"""What a fit says about itself."""

import math

import pytest

from bayesdiv.fitting import judge

GOOD = {
    "converged": True,
    "pareto_k": 0.2,
    "ess_fraction": 0.9,
    "agreement": 0.01,
    "log_evidence": -3.0,
    "guide": "full_rank",
    "objective": "reverse_kl",
}


def test_a_good_fit_needs_no_advice():
    verdict = judge(**GOOD)
    assert verdict.trustworthy
    assert verdict.advice == ()
    text = str(verdict)
    assert text == (
        "converged; restarts agree to 0.010 sd; Pareto k 0.20, ESS 90 %; log evidence -3.00 nats."
    )


@pytest.mark.parametrize(
    ("changes", "advice"),
    [
        ({"converged": False}, "Not converged: call resume(), or raise max_steps."),
        ({"agreement": 0.3}, "Restarts disagree"),
        ({"pareto_k": 0.6}, "use psis_resample()"),
        ({"pareto_k": 0.9}, "guide='flow', objective='jensen_shannon'"),
        ({"pareto_k": 0.9, "guide": "mean_field"}, "guide='full_rank'"),
        ({"pareto_k": 0.9, "objective": "forward_kl"}, "Try guide='flow', a reparameterised"),
        ({"pareto_k": 0.9, "guide": "flow", "objective": "forward_kl"}, "Try a reparameterised"),
    ],
)
def test_advice(changes, advice):
    verdict = judge(**{**GOOD, **changes})
    assert any(advice in line for line in verdict.advice)
    assert advice in str(verdict)


@pytest.mark.parametrize("changes", [{"converged": False}, {"agreement": 0.3}, {"pareto_k": 0.71}])
def test_trust_needs_all_three(changes):
    assert not judge(**{**GOOD, **changes}).trustworthy


def test_one_restart_cannot_disagree():
    verdict = judge(**{**GOOD, "agreement": math.nan})
    assert verdict.trustworthy
    assert "one restart" in str(verdict)


def test_failures_are_told_where_the_fit_did_not_converge():
    told = judge(**{**GOOD, "converged": False}, failures=("the loss became NaN",))
    assert "Steps were taken back: the loss became NaN" in told.advice
    assert judge(**GOOD, failures=("the loss became NaN",)).advice == ()
