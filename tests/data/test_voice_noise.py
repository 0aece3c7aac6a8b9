"""Noise at a ratio: its power, and that a recording of noise keeps its order."""

import numpy as np
import pytest

from bayesdiv.data import add_noise


def tone(count):
    return np.sin(0.05 * np.arange(count))


@pytest.mark.parametrize("snr", [0.0, 10.0, -5.0])
@pytest.mark.parametrize("recorded", [False, True])
def test_the_ratio_is_the_one_asked_for(snr, recorded):
    noise = np.random.default_rng(1).standard_normal(9000) + 3.0 if recorded else None
    speech = tone(5000)
    added = add_noise(speech, snr, noise, rng=0) - speech
    assert 20 * np.log10(speech.std() / added.std()) == pytest.approx(snr, abs=1e-9)


def test_recorded_noise_keeps_its_order():
    noise = np.cumsum(np.random.default_rng(1).standard_normal(3000))
    speech = tone(500)
    added = add_noise(speech, 6.0, noise, rng=3) - speech
    # One stretch of the recording, up to scale and mean: shuffled samples have no such place.
    stretches = np.lib.stride_tricks.sliding_window_view(noise, 500)
    stretches = stretches - stretches.mean(axis=1, keepdims=True)
    stretches = stretches / np.linalg.norm(stretches, axis=1, keepdims=True)
    assert (stretches @ added / np.linalg.norm(added)).max() == pytest.approx(1.0)


def test_short_noise_is_repeated():
    noise = np.random.default_rng(1).standard_normal(40)
    added = add_noise(tone(100), 0.0, noise, rng=0) - tone(100)
    np.testing.assert_allclose(added[:40], added[40:80])


def test_seeds_and_generators_draw_alike():
    speech = tone(300)
    first = add_noise(speech, 0.0, rng=5)
    np.testing.assert_array_equal(first, add_noise(speech, 0.0, rng=np.random.default_rng(5)))
    assert not np.array_equal(first, add_noise(speech, 0.0, rng=6))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"speech": np.ones(50)}, "speech is constant, so that no signal-to-noise ratio exists"),
        ({"noise": np.ones(50)}, "noise is constant"),
        ({"noise": np.ones((50, 2))}, r"noise must be one channel, shape \(n,\), got \(50, 2\)"),
        ({"noise": np.array([])}, r"noise must have shape \(n,\) with n at least 1"),
        ({"speech": np.array([1.0, np.inf])}, "speech must be finite, got NaN or infinity"),
        ({"snr": np.inf}, "snr must be a finite number of dB, got inf"),
    ],
)
def test_bad_noise_is_refused(change, message):
    given = {"speech": tone(50), "snr": 0.0, "noise": None, **change}
    with pytest.raises(ValueError, match=message):
        add_noise(**given, rng=0)
