"""Pareto-smoothed weights: the shape of known tails, resampling, verdicts, bad input."""

import sys
import types

import arviz
import numpy as np
import pytest
import torch
from helpers import assert_within_standard_errors

from bayesdiv.diagnostics import describe_k, psis, psis_resample
from bayesdiv.objectives import pareto_k


@pytest.mark.parametrize("shape", [0.2, 0.5, 0.9])
def test_shape_of_a_pareto_tail_is_found(shape):
    uniform = np.random.default_rng(0).uniform(size=40_000)
    log_weights = -shape * np.log(uniform)
    tail = 3 * np.sqrt(len(uniform))
    # The estimator's standard error for the shape of a generalised Pareto tail of that length.
    assert abs(psis(log_weights).k - shape) < 5 * (1 + shape) / np.sqrt(tail)


def test_smoothing_keeps_the_order_and_bounds_the_largest():
    log_weights = 1.2 * np.random.default_rng(1).standard_exponential(2_000)
    found = psis(torch.tensor(log_weights) + 1e4)
    order = np.argsort(log_weights)
    assert np.all(np.diff(found.log_weights[order]) >= -1e-12)
    assert np.isclose(found.weights.sum(), 1.0, rtol=1e-12)
    raw = np.exp(log_weights - log_weights.max())
    assert found.weights.max() <= raw.max() / raw.sum() * (1 + 1e-9)
    assert found.ess > raw.sum() ** 2 / np.sum(raw**2)


def test_equal_weights_need_no_correction():
    found = psis(np.full(50, -3.0))
    assert found.k == -np.inf
    assert found.verdict == "good"
    assert np.isclose(found.ess, 50.0)
    np.testing.assert_allclose(found.weights, 1 / 50)


def test_pareto_k_by_plate_is_that_of_each_column():
    log_weights = np.random.default_rng(2).normal(size=(300, 2, 3)) * [0.3, 1.0, 2.0]
    found = pareto_k(log_weights)
    assert found.shape == (2, 3)
    assert found[1, 2] == psis(log_weights[:, 1, 2]).k
    assert np.isnan(pareto_k(log_weights[:24])).all()


def test_either_sign_convention_of_arviz_is_understood(monkeypatch):
    log_weights = np.random.default_rng(5).normal(size=500)
    expected = psis(log_weights)

    def negated(values):
        return arviz.psislw(-values)

    base = types.SimpleNamespace(array_stats=types.SimpleNamespace(psislw=negated))
    monkeypatch.setitem(sys.modules, "arviz_stats", types.SimpleNamespace(base=base))
    monkeypatch.setitem(sys.modules, "arviz_stats.base", base)
    found = psis(log_weights)
    assert found.k == pytest.approx(expected.k, abs=0.2)
    np.testing.assert_array_equal(np.argsort(found.log_weights), np.argsort(expected.log_weights))


def test_no_shape_without_numbers():
    assert np.isnan(pareto_k(np.r_[np.zeros(30), np.nan]))
    assert np.isnan(pareto_k(np.full(30, -np.inf)))


def test_verdicts_change_at_the_thresholds():
    named = {0.49: "good", 0.5: "ok", 0.69: "ok", 0.7: "bad", 0.99: "bad", 1.0: "very bad"}
    assert {k: describe_k(k) for k in named} == named
    assert describe_k(np.nan) == "unknown"


def test_resampling_turns_a_wide_normal_into_the_target():
    rng = np.random.default_rng(3)
    draws = 1.5 * rng.normal(size=20_000)
    log_weights = -0.5 * (draws - 0.5) ** 2 + 0.5 * (draws / 1.5) ** 2
    moved = psis_resample({"z": draws, "pair": np.stack([draws, -draws], 1)}, log_weights, seed=0)
    # Weights cost draws: as many as their effective sample size count.
    kept = moved["z"][: int(psis(log_weights).ess / 2)]
    assert_within_standard_errors(kept, 0.5)
    assert_within_standard_errors((kept - 0.5) ** 2, 1.0)
    np.testing.assert_array_equal(moved["pair"], np.stack([moved["z"], -moved["z"]], 1))


def test_each_draw_comes_as_often_as_its_weight_says():
    log_weights = np.random.default_rng(4).normal(size=200) * 0.5
    moved = psis_resample({"index": np.arange(200)}, log_weights, num_draws=1_000, seed=0)
    expected = 1_000 * psis(log_weights).weights
    counts = np.bincount(moved["index"], minlength=200)
    assert np.all(np.abs(counts - expected) < 1.0)


def test_without_replacement_no_draw_comes_twice_and_none_of_weight_zero():
    log_weights = np.where(np.arange(100) < 50, 0.0, -np.inf)
    moved = psis_resample(
        {"index": np.arange(100)}, log_weights, num_draws=40, replace=False, seed=0
    )
    assert len(set(moved["index"])) == 40
    assert moved["index"].max() < 50


@pytest.mark.parametrize(
    ("log_weights", "message"),
    [
        (np.zeros((30, 2)), r"log_weights must have shape \(draw,\) .* got \(30, 2\)"),
        (np.zeros(24), "at least 25 draws"),
        (np.r_[np.zeros(30), np.nan], "finite or -inf, got nan first at draw 30"),
        (np.r_[np.zeros(30), np.inf], "got inf first at draw 30"),
        (np.full(30, -np.inf), "got -inf everywhere"),
    ],
)
def test_weights_that_cannot_be_smoothed_are_refused(log_weights, message):
    with pytest.raises(ValueError, match=message):
        psis(log_weights)


def test_resampling_refuses_what_does_not_fit():
    weights = np.zeros(30)
    with pytest.raises(ValueError, match=r"draws\['z'\] must have 30 draws in front"):
        psis_resample({"z": np.zeros(29)}, weights)
    with pytest.raises(ValueError, match="num_draws must be an integer of at least 1, got 0"):
        psis_resample({"z": weights}, weights, num_draws=0)
    with pytest.raises(ValueError, match="below the 30 draws there are with replace=False"):
        psis_resample({"z": weights}, weights, replace=False)
