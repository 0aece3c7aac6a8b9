"""Zero-frequency filtering against its published form, and on simulated voices."""

import math

import numpy as np
import pytest
from scipy.ndimage import uniform_filter1d

from bayesdiv.data import simulate_voices
from bayesdiv.diagnostics import (
    average_epoch_metrics,
    epoch_metrics,
    mean_pitch_period,
    zero_frequency_epochs,
)
from bayesdiv.diagnostics._epoch_zero_frequency import _zero_frequency

RATE = 16_000


@pytest.fixture(scope="module")
def voices():
    return simulate_voices(1, 12)


def true_period(voice):
    return float(np.median(1.0 / voice.f0[voice.voicing > 0.5]))


def score(voice, **settings):
    found = zero_frequency_epochs(voice.speech, RATE, **settings)
    return epoch_metrics(found.closures, voice.closures, RATE)


def test_one_finite_filter_is_four_sums_less_three_means():
    signal = np.random.default_rng(0).standard_normal(6000)
    half = 60
    sums = np.gradient(signal)
    for _ in range(4):
        sums = np.cumsum(sums)
    for _ in range(3):
        sums = sums - uniform_filter1d(sums, 2 * half + 1, mode="nearest")
    found = _zero_frequency(signal, half)
    # Four causal sums run two samples ahead of the centred filter.
    inside = slice(1000, 5000)
    gap = found[2:][inside] - sums[:-2][inside]
    assert np.abs(gap).max() < 1e-5 * np.abs(found[inside]).max()


def test_impulses_are_found_where_they_are():
    speech = np.zeros(8000)
    speech[200::131] = -1.0
    found = zero_frequency_epochs(speech, RATE, mean_period=131 / RATE)
    inner = found.closures[5:-5]
    assert not found.inverted
    assert np.abs((inner - 200 + 65) % 131 - 65).max() < 0.5
    np.testing.assert_allclose(found.strengths[5:-5], found.strengths[5:-5].mean(), rtol=1e-3)
    over = zero_frequency_epochs(-speech, RATE, mean_period=131 / RATE)
    assert over.inverted
    np.testing.assert_allclose(over.closures, found.closures)


def test_half_as_strong_an_impulse_has_half_the_slope():
    speech = np.zeros(16_000)
    speech[200::100] = -1.0
    speech[8000:] *= 0.5
    found = zero_frequency_epochs(speech, RATE, mean_period=100 / RATE)
    strong = found.strengths[(found.closures > 2000) & (found.closures < 6000)].mean()
    weak = found.strengths[(found.closures > 10_000) & (found.closures < 14_000)].mean()
    assert weak / strong == pytest.approx(0.5, rel=1e-3)


def test_any_length_of_recording_has_the_same_precision():
    signal = np.tile(np.random.default_rng(0).standard_normal(4000), 60)
    filtered = _zero_frequency(signal, 60)
    np.testing.assert_allclose(filtered[8000:12_000], filtered[-12_000:-8000], atol=1e-8
                               * np.abs(filtered).max())  # fmt: skip


def test_closures_of_simulated_speech(voices):
    found = average_epoch_metrics([score(each, mean_period=true_period(each)) for each in voices])
    assert found.identification_rate > 0.96
    assert found.accuracy < 0.25


def test_the_polarity_chosen_is_the_more_accurate_one(voices):
    chosen = [zero_frequency_epochs(each.speech, RATE).inverted for each in voices]
    assert not any(chosen)
    both = [
        average_epoch_metrics([score(each, polarity=polarity) for each in voices])
        for polarity in ("upright", "inverted")
    ]
    assert both[1].accuracy > 1.5 * both[0].accuracy
    over = [zero_frequency_epochs(-each.speech, RATE).inverted for each in voices]
    assert all(over)


# Of the worst voice every cycle has two.
@pytest.mark.filterwarnings("ignore:none of .* larynx cycles has exactly one estimate")
def test_an_octave_too_high_is_false_alarms(voices):
    wrong, right = (
        average_epoch_metrics([score(each, mean_period=true_period(each) / k) for each in voices])
        for k in (2, 1)
    )
    assert right.false_alarm_rate < 0.04
    assert wrong.false_alarm_rate > 0.4


def test_a_mean_period_needs_no_egg(voices):
    ratios = [mean_pitch_period(each.speech, RATE) / true_period(each) for each in voices]
    assert 0.75 < min(ratios) <= max(ratios) < 1.25


def test_the_period_of_a_pulse_train_is_no_multiple_of_it():
    speech = np.zeros(8000)
    speech[::64] = 1.0
    assert mean_pitch_period(speech, RATE) == pytest.approx(64 / RATE)


def test_a_mask_of_ones_own_is_kept_to(voices):
    voice = voices[0]
    voiced = np.arange(len(voice.speech)) < 10_000
    found = zero_frequency_epochs(voice.speech, RATE, voiced=voiced)
    assert len(found.closures)
    assert found.closures[-1] < 10_000


def test_noise_has_no_period():
    noise = np.random.default_rng(0).standard_normal(8000)
    with pytest.warns(UserWarning, match="no frame of the speech is periodic: no mean period"):
        assert math.isnan(mean_pitch_period(noise, RATE))
    with pytest.warns(UserWarning, match="no frame of the speech is periodic"):
        assert not len(zero_frequency_epochs(noise, RATE).closures)


def test_nothing_voiced_gives_nothing_and_a_warning(voices):
    speech = voices[0].speech
    with pytest.warns(UserWarning, match="no voiced zero crossing: no closure"):
        found = zero_frequency_epochs(speech, RATE, voiced=np.zeros(len(speech), bool))
    assert len(found.closures) == len(found.strengths) == 0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"mean_period": 128},
            "mean_period must be from 0.002 to 0.05 seconds, got 128; it is not",
        ),
        ({"mean_period": math.nan}, "mean_period must be from 0.002 to 0.05 seconds, got nan"),
        ({"mean_period": 0.05}, "speech must be ten mean periods long, 0.500 s, got 0.250 s"),
        ({"polarity": "down"}, "polarity must be auto, upright or inverted; got 'down'"),
        ({"voiced": np.ones(9, bool)}, r"voiced must have the speech's shape, \(4000,\)"),
        ({"speech": np.zeros(4000)}, "speech is zero all through"),
        ({"speech": np.ones((4000, 2))}, "speech must be one channel"),
    ],
    ids=["samples", "nan", "short", "polarity", "mask", "silence", "stereo"],
)
def test_what_does_not_fit_is_refused(change, message):
    given = {"speech": np.sin(np.arange(4000.0)), "mean_period": 0.01, **change}
    with pytest.raises(ValueError, match=message):
        zero_frequency_epochs(rate=RATE, **given)


def test_limits_of_the_period_have_to_ascend():
    with pytest.raises(ValueError, match="must be ascending, above 0 and at most 0.025 seconds"):
        mean_pitch_period(np.ones(4000), RATE, shortest=0.01, longest=0.005)
