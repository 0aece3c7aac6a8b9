"""Larynx-cycle scores on instants with known errors, and the detector on made-up pulses."""

import math

import numpy as np
import pytest
from scipy.special import expit

from bayesdiv.data import VoiceSettings, simulate_voices
from bayesdiv.diagnostics import (
    EpochMetrics,
    average_epoch_metrics,
    detect_glottal_instants,
    epoch_metrics,
    voiced_mask,
)

RATE = 16_000
# Eighty closures, of which the first and the last have no cycle of their own.
REFERENCE = 1000.0 + 100.0 * np.arange(80)


def test_a_constant_error_is_bias_and_not_accuracy():
    found = epoch_metrics(REFERENCE + 8.0, REFERENCE, RATE)
    assert found.num_cycles == 78
    assert found.identification_rate == 1.0
    assert found.miss_rate == found.false_alarm_rate == 0.0
    assert found.accuracy == pytest.approx(0.0, abs=1e-12)
    assert found.bias == pytest.approx(0.5)
    assert found.share_near == 1.0


def test_three_missing_are_misses():
    found = epoch_metrics(np.delete(REFERENCE, [10, 30, 50]), REFERENCE, RATE)
    assert found.identification_rate == pytest.approx(75 / 78)
    assert found.miss_rate == pytest.approx(3 / 78)
    assert found.false_alarm_rate == 0.0


def test_two_more_are_false_alarms():
    extra = np.sort(np.concatenate([REFERENCE, REFERENCE[[20, 40]] + 30.0]))
    found = epoch_metrics(extra, REFERENCE, RATE)
    assert found.false_alarm_rate == pytest.approx(2 / 78)
    assert found.identification_rate == pytest.approx(76 / 78)
    assert found.miss_rate == 0.0


def test_accuracy_is_the_standard_deviation_of_the_error():
    reference = 100.0 * np.arange(10_002)
    errors = 8.0 * np.random.default_rng(0).standard_normal(len(reference))
    found = epoch_metrics(np.sort(reference + errors), reference, RATE)
    # Five standard errors of a standard deviation of 10⁴ draws.
    assert abs(found.accuracy - 0.5) < 5 * 0.5 / math.sqrt(2 * 10_000)
    assert abs(found.bias) < 5 * 0.5 / 100
    # |N(0, 1)| ≤ ½, since 0.25 ms are half a standard deviation.
    expected = math.erf(0.5 / math.sqrt(2))
    assert abs(found.share_near - expected) < 5 * math.sqrt(expected * (1 - expected) / 10_000)


def test_rates_sum_to_one_on_any_instants():
    rng = np.random.default_rng(0)
    found = epoch_metrics(np.sort(rng.uniform(900, 9000, 90)), REFERENCE, RATE)
    rates = found.identification_rate, found.miss_rate, found.false_alarm_rate
    assert sum(rates) == pytest.approx(1.0)
    assert min(rates) > 0.05


@pytest.mark.filterwarnings("ignore:none of 78 larynx cycles")
def test_a_cycle_is_an_open_interval():
    # Every estimate lies on the edge of two cycles, and so in neither.
    assert epoch_metrics(REFERENCE + 50.0, REFERENCE, RATE).miss_rate == 1.0


def test_cycles_across_a_pause_do_not_count():
    split = np.concatenate([REFERENCE[:40], REFERENCE[40:] + 2000.0])
    assert epoch_metrics(split, split, RATE).num_cycles == 76


def test_intervals_have_to_be_those_of_a_voice():
    for spacing, count in ((31.0, 0), (32.0, 78), (800.0, 78), (801.0, 0)):
        reference = spacing * np.arange(80)
        if count:
            assert epoch_metrics(reference, reference, RATE).num_cycles == count
        else:
            with pytest.warns(UserWarning, match="reference has no larynx cycle"):
                assert epoch_metrics(reference, reference, RATE).num_cycles == 0


@pytest.mark.parametrize("reference", [[], [5.0], [5.0, 100.0], [0.0, 5000.0, 10_000.0]])
def test_no_cycle_gives_nan_and_a_warning(reference):
    with pytest.warns(UserWarning, match="the scores are NaN"):
        found = epoch_metrics([50.0], reference, RATE)
    assert found.num_cycles == 0
    assert all(math.isnan(value) for value in list(found.as_dict().values())[:-1])


def test_no_hit_gives_rates_and_no_accuracy():
    with pytest.warns(UserWarning, match="none of 78 larynx cycles has exactly one estimate"):
        found = epoch_metrics([], REFERENCE, RATE)
    assert found.miss_rate == 1.0
    assert all(math.isnan(value) for value in (found.accuracy, found.bias, found.share_near))


@pytest.mark.parametrize(
    ("estimated", "reference", "rate", "message"),
    [
        ([2.0, 1.0], REFERENCE, RATE, "estimated must be strictly ascending, in samples; sort"),
        (REFERENCE, REFERENCE[::-1], RATE, "reference must be strictly ascending"),
        ([1.0, np.nan], REFERENCE, RATE, "estimated must be finite, got NaN or infinity"),
        (REFERENCE[None], REFERENCE, RATE, r"estimated must have shape \(n,\), got \(1, 80\)"),
        (REFERENCE, REFERENCE, 0, "rate must be a positive number of samples a second, got 0"),
    ],
    ids=["estimated", "reference", "nan", "shape", "rate"],
)
def test_bad_instants_are_refused(estimated, reference, rate, message):
    with pytest.raises(ValueError, match=message):
        epoch_metrics(estimated, reference, rate)


def test_each_file_counts_once():
    nan = math.nan
    files = [
        EpochMetrics(1.0, 0.0, 0.0, 0.2, 0.1, 1.0, 100),
        EpochMetrics(0.5, 0.5, 0.0, 0.4, 0.3, 0.5, 10),
        EpochMetrics(0.0, 1.0, 0.0, nan, nan, nan, 10),
        EpochMetrics(nan, nan, nan, nan, nan, nan, 0),
    ]
    found = average_epoch_metrics(files)
    assert found.identification_rate == pytest.approx(0.5)
    assert found.accuracy == pytest.approx(0.3)
    assert found.num_cycles == 120
    with pytest.raises(ValueError, match="at least one file with larynx cycles, got 1 without"):
        average_epoch_metrics(files[-1:])


def pulses(closures, openings, count, sharpness=0.8):
    """Contact that rises at closures and falls, half as fast, at openings."""
    times = np.arange(count)[:, None]
    rise = expit(sharpness * (times - np.asarray(closures)))
    fall = expit(0.5 * sharpness * (times - np.asarray(openings)))
    return rise.sum(axis=1) - fall.sum(axis=1)


CLOSURES = 400.0 + 100.3 * np.arange(30)
OPENINGS = CLOSURES + 41.7


def test_instants_of_pulses_are_found_between_samples():
    egg = pulses(CLOSURES, OPENINGS, 4000)
    found = detect_glottal_instants(egg - egg.mean(), RATE)
    np.testing.assert_allclose(found.closures, CLOSURES, atol=0.05)
    np.testing.assert_allclose(found.openings, OPENINGS[:-1], atol=0.05)


def test_upside_down_closures_and_openings_change_places():
    egg = pulses(CLOSURES, OPENINGS, 4000)
    found = detect_glottal_instants(egg.mean() - egg, RATE)
    np.testing.assert_allclose(found.closures, OPENINGS, atol=0.05)


def test_unvoiced_stretches_are_masked_where_they_are():
    gap = 6000.0
    closures = np.concatenate([CLOSURES, CLOSURES + gap])
    egg = pulses(closures, closures + 41.7, 12_000)
    egg += 1e-3 * np.random.default_rng(0).standard_normal(len(egg))
    found = detect_glottal_instants(egg - egg.mean(), RATE)
    # Voiced samples joined end to end would shift the second half, and make a pulse of the seam.
    np.testing.assert_allclose(found.closures, closures, atol=0.3)
    assert len(found.openings) == len(closures) - 2


def test_a_mask_of_ones_own_is_kept_to():
    egg = pulses(CLOSURES, OPENINGS, 4000)
    voiced = np.arange(4000) < 2000
    found = detect_glottal_instants(egg - egg.mean(), RATE, voiced=voiced)
    np.testing.assert_allclose(found.closures, CLOSURES[CLOSURES < 2000], atol=0.05)


def test_weak_pulses_count_where_all_are_weak():
    egg = pulses(CLOSURES, OPENINGS, 4000)
    fading = egg * np.linspace(1.0, 0.25, 4000)
    found = detect_glottal_instants(fading - fading.mean(), RATE, voiced=np.ones(4000, bool))
    assert len(found.closures) == len(CLOSURES)
    # The same weakness in one pulse among strong ones is a ripple.
    one = pulses(CLOSURES, OPENINGS, 4000) + 0.25 * pulses(
        [CLOSURES[9] + 70], [CLOSURES[9] + 80], 4000
    )
    found = detect_glottal_instants(one - one.mean(), RATE, voiced=np.ones(4000, bool))
    assert len(found.closures) == len(CLOSURES)


def test_a_flat_top_is_one_closure():
    # Contact that rises at one rate for 3 ms, in noise: no place of it is steepest by much.
    egg = np.interp(np.arange(4000) % 190, [0, 48, 110, 158, 190], [0, 1, 1, 0, 0])
    egg += 2e-3 * np.random.default_rng(0).standard_normal(4000)
    found = detect_glottal_instants(egg - egg.mean(), RATE, voiced=np.ones(4000, bool))
    # The first and the last cycle are cut by the ends.
    np.testing.assert_array_equal(found.closures // 190, np.arange(1, 21))
    assert (found.closures % 190 < 50).all()


def test_smoothing_moves_instants_of_uneven_pulses_only_together():
    (voice,) = simulate_voices(0, settings=VoiceSettings(seconds=1.0, quality="modal"))
    narrow, wide = (detect_glottal_instants(voice.egg, RATE, smoothing=n) for n in (5, 49))
    apart = epoch_metrics(wide.closures, narrow.closures, RATE)
    assert abs(apart.bias) > 0.05
    assert epoch_metrics(wide.closures, wide.closures, RATE).bias == 0.0


def test_the_mask_follows_the_voice():
    (voice,) = simulate_voices(2, settings=VoiceSettings(seconds=2.0))
    mask = voiced_mask(voice.egg, RATE)
    assert mask[voice.voicing > 0.9].mean() > 0.99
    assert mask[voice.voicing < 0.01].mean() < 0.2


def test_silence_has_no_closure():
    noise = 1e-3 * np.random.default_rng(0).standard_normal(4000)
    with pytest.warns(UserWarning, match="no voiced peak of its derivative: no closure"):
        found = detect_glottal_instants(noise, RATE, voiced=np.zeros(4000, bool))
    assert len(found.closures) == len(found.openings) == 0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"egg": np.zeros(100)}, "egg is zero all through; check the channel"),
        ({"egg": np.ones((100, 2))}, r"egg must be one channel.*\(100, 2\); choose the channel"),
        ({"egg": np.full(100, np.inf)}, "egg must be finite, got NaN or infinity"),
        ({"egg": np.ones(2)}, r"egg must have shape \(n,\) with n at least 3, got \(2,\)"),
        ({"smoothing": 0}, "smoothing must be a whole number of points, got 0"),
        ({"smoothing": 4}, "smoothing must be odd, or instants move, got 4"),
        ({"voiced": np.ones(5, bool)}, r"voiced must have the EGG's shape, \(100,\), got \(5,\)"),
    ],
)
def test_bad_signals_are_refused(change, message):
    given = {"egg": np.sin(np.arange(100.0)), "rate": RATE, **change}
    with pytest.raises(ValueError, match=message):
        detect_glottal_instants(**given)
