"""Spreads of instants over draws, and their calibration, on errors whose law is known."""

import numpy as np
import pytest

from bayesdiv.diagnostics._epoch_uncertainty import (
    instant_spread,
    timing_calibration,
    timing_errors,
)

CYCLES = 100.0 * np.arange(1.0, 2001.0)


def test_spread_is_the_standard_deviation_of_the_nearest():
    rng = np.random.default_rng(0)
    scale = np.where(np.arange(2000) % 2, 2.0, 0.5)
    drawn = [CYCLES + scale * rng.normal(size=2000) for _ in range(40)]
    found = instant_spread(CYCLES, drawn, reach=30.0)
    assert (found.found == 1.0).all()
    # The mean of 1000 estimates from 40 draws each, five standard errors.
    for kind in (0.5, 2.0):
        assert (found.standard_deviation[scale == kind] ** 2).mean() == pytest.approx(
            kind**2, rel=5.0 * (2.0 / 39.0 / 1000.0) ** 0.5
        )


def test_a_shift_that_all_draws_share_is_no_spread():
    drawn = [CYCLES + 7.0, CYCLES + 7.5, CYCLES + 8.0]
    found = instant_spread(CYCLES, drawn, reach=30.0)
    np.testing.assert_allclose(found.standard_deviation, 0.5)


def test_instants_that_draws_lack_are_counted():
    drawn = [CYCLES, CYCLES[1:], np.delete(CYCLES, [0, 5]), CYCLES]
    found = instant_spread(CYCLES, drawn, reach=30.0)
    np.testing.assert_allclose(found.found[[0, 1, 5]], [0.5, 1.0, 0.75])
    assert np.isnan(found.standard_deviation[0])
    assert np.isfinite(found.standard_deviation[5])
    nothing = instant_spread(CYCLES, [np.array([])] * 3, reach=30.0)
    assert np.isnan(nothing.standard_deviation).all()


def test_errors_are_to_the_nearest_reference_within_reach():
    reference = CYCLES[[0, 2, 3]]
    found = timing_errors(CYCLES[:4] + [1.0, 2.0, -3.0, 0.5], reference, reach=40.0)
    np.testing.assert_allclose(found, [1.0, np.nan, -3.0, 0.5])
    assert np.isnan(timing_errors(CYCLES[:4], [], reach=40.0)).all()
    with pytest.raises(ValueError, match="reach must be a positive"):
        timing_errors(CYCLES, CYCLES, reach=0.0)


def test_right_deviations_are_calibrated_and_others_are_not():
    rng = np.random.default_rng(1)
    scale = rng.uniform(0.5, 4.0, size=2000)
    estimated = CYCLES + 3.0 + scale * rng.normal(size=2000)
    right = timing_calibration(estimated, scale, CYCLES, reach=40.0)
    assert right.num_instants == 2000
    assert right.coverage_90 == pytest.approx(0.9, abs=5.0 * (0.09 / 2000) ** 0.5)
    assert right.error_ratio == pytest.approx(1.0, abs=5.0 * (1.0 / 4000) ** 0.5)
    assert right.rank_correlation > 0.3
    small = timing_calibration(estimated, 0.5 * scale, CYCLES, reach=40.0)
    assert small.error_ratio == pytest.approx(2.0 * right.error_ratio)
    assert small.coverage_90 < 0.65
    blind = timing_calibration(estimated, np.full(2000, 2.0), CYCLES, reach=40.0)
    assert blind.rank_correlation == 0.0


def test_instants_without_deviation_or_reference_are_left_out():
    scale = np.ones(2000)
    scale[:10] = np.nan
    found = timing_calibration(CYCLES + 1.0, scale, CYCLES[20:], reach=40.0)
    assert found.num_instants == 1980
    with pytest.warns(RuntimeWarning, match="0 instants have"):
        none = timing_calibration(CYCLES + 50.0, np.ones(2000), CYCLES, reach=40.0)
    assert np.isnan(none.coverage_90)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: instant_spread(CYCLES, [CYCLES] * 2, reach=1.0), "at least 3 draws, got 2"),
        (lambda: instant_spread(CYCLES, [CYCLES] * 3, reach=0.0), "reach must be a positive"),
        (lambda: instant_spread(CYCLES[::-1], [CYCLES] * 3, reach=1.0), "strictly ascending"),
        (
            lambda: timing_calibration(CYCLES, np.ones(3), CYCLES, reach=1.0),
            r"one entry an instant, shape \(2000,\), got \(3,\)",
        ),
    ],
    ids=["draws", "reach", "order", "shape"],
)
def test_bad_input_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()
