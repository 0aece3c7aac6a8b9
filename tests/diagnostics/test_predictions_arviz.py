"""Predictions as a posterior in ArviZ."""

import arviz
import numpy as np
import pytest
import torch

from bayesdiv.diagnostics import predictions_to_arviz

CHAINS, DRAWS, PROBES, ROWS = 2, 50, 3, 7


@pytest.fixture
def parts():
    """Independent draws of what a regression predicts at three probes."""
    rng = np.random.default_rng(0)
    return {
        "predictions": torch.tensor(rng.normal(size=(CHAINS, DRAWS, PROBES))),
        "log_likelihood": rng.normal(-1.0, 0.1, size=(CHAINS, DRAWS, ROWS)),
        "prior_predictive": rng.normal(size=(1, 10, ROWS)),
        "sample_stats": {"kinetic_temperature": rng.gamma(100.0, 0.01, size=(CHAINS, DRAWS))},
        "observed_data": rng.normal(size=ROWS),
        "attrs": {"row": "tuned"},
    }


def test_groups_hold_what_was_given(parts):
    found = predictions_to_arviz(**parts)
    assert found.posterior["prediction"].dims == ("chain", "draw", "probe")
    np.testing.assert_array_equal(found.posterior["prediction"], parts["predictions"].numpy())
    np.testing.assert_array_equal(found.observed_data["observation"], parts["observed_data"])
    assert found.prior_predictive["observation"].shape == (1, 10, ROWS)
    temperature = parts["sample_stats"]["kinetic_temperature"]
    np.testing.assert_array_equal(found.sample_stats["kinetic_temperature"], temperature)
    assert found.posterior.attrs["row"] == "tuned"


def test_summary_and_loo_run(parts):
    found = predictions_to_arviz(**parts)
    summary = arviz.summary(found)
    assert len(summary) == PROBES
    assert (summary["r_hat"].astype(float) < 1.1).all()
    # Nearly equal draws: leaving one out changes little.
    expected = parts["log_likelihood"].mean(axis=(0, 1)).sum()
    assert float(arviz.loo(found).elpd_loo) == pytest.approx(expected, abs=0.2)


def test_only_predictions_are_needed(parts):
    found = predictions_to_arviz(parts["predictions"])
    assert "log_likelihood" not in found.groups()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"predictions": np.zeros((2, 50))}, r"predictions must have shape \(chain, draw, probe"),
        ({"log_likelihood": np.zeros((50, 2, 7))}, r"log_likelihood must start with the axes"),
        ({"sample_stats": {"lp": np.zeros(50)}}, "lp must start with the axes"),
        ({"prior_predictive": np.zeros(5)}, r"prior_predictive must have shape \(chain, draw"),
    ],
)
def test_wrong_shapes_are_named(parts, changes, message):
    with pytest.raises(ValueError, match=message):
        predictions_to_arviz(**{**parts, **changes})
