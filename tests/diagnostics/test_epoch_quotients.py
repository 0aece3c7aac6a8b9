"""Quotients of pulses with known ones, and the harmonics-to-noise ratio's ceiling."""

import math

import numpy as np
import pytest

from bayesdiv.diagnostics import glottal_quotients, harmonics_to_noise_ratio
from bayesdiv.diagnostics._epoch_quotients import _periodicity

RATE = 16_000
CLOSURES = 200.0 + 100.0 * np.arange(40)


def triangle(contact=0.3, lowest=0.8, count=4500):
    """Contact 1 in the first part of each cycle, then down to 0 and up again in straight lines."""
    share = ((np.arange(count) - CLOSURES[0]) / 100.0) % 1.0
    return np.interp(share, [0.0, contact, lowest, 1.0], [1.0, 1.0, 0.0, 1.0])


@pytest.mark.parametrize("contact", [0.3, 0.55])
def test_contact_is_from_closure_to_opening(contact):
    found = glottal_quotients(triangle(contact), CLOSURES, CLOSURES + 100 * contact, RATE)
    assert len(found.contact) == len(CLOSURES) - 1
    np.testing.assert_allclose(found.contact, contact)
    np.testing.assert_allclose(found.open, 1.0 - contact)


def test_speed_is_the_rise_of_the_open_pulse_over_its_fall():
    found = glottal_quotients(triangle(0.3, 0.8), CLOSURES, CLOSURES + 30.0, RATE)
    np.testing.assert_allclose(found.speed, 0.5 / 0.2, rtol=0.05)


def test_cycles_without_one_opening_do_not_count():
    openings = np.sort(np.append(np.delete(CLOSURES + 30.0, 5), CLOSURES[9] + 60.0))
    found = glottal_quotients(triangle(), CLOSURES, openings, RATE)
    assert len(found.contact) == len(CLOSURES) - 3
    np.testing.assert_allclose(found.contact, 0.3)


@pytest.mark.parametrize("closures", [CLOSURES[:1], CLOSURES[[0, 20]], CLOSURES[:0]])
def test_no_cycle_gives_nan_and_a_warning(closures):
    with pytest.warns(UserWarning, match="no larynx cycle of 2 to 50 ms with one opening"):
        found = glottal_quotients(triangle(), closures, CLOSURES[:1] + 30.0, RATE)
    assert all(np.isnan(values).all() and values.shape == (1,) for values in found)


def test_instants_outside_the_signal_are_refused():
    with pytest.raises(ValueError, match=r"closures must lie within the EGG, from 0 to 4499.*4500"):
        glottal_quotients(triangle(), np.append(CLOSURES, 4500.0), CLOSURES + 30.0, RATE)
    with pytest.raises(ValueError, match=r"openings must lie within the EGG"):
        glottal_quotients(triangle(), CLOSURES, CLOSURES - 300.0, RATE)
    with pytest.raises(ValueError, match="egg must be one channel"):
        glottal_quotients(np.ones((9, 2)), CLOSURES, CLOSURES, RATE)


def test_the_taper_alone_is_a_ceiling():
    tau = 0.25
    left = (1 - tau) * (2 / 3 + math.cos(2 * math.pi * tau) / 3)
    left += math.sin(2 * math.pi * tau) / (2 * math.pi)
    assert left == pytest.approx(0.65916, abs=1e-5)
    ceiling = 10 * math.log10(left / (1 - left))
    assert ceiling == pytest.approx(2.86, abs=0.01)
    found = harmonics_to_noise_ratio(triangle(), CLOSURES, RATE, compensation="none")
    assert abs(found - ceiling) < 0.1


@pytest.mark.parametrize(("snr", "tapered"), [(20.0, 2.84), (10.0, 1.89), (0.0, -2.44)])
def test_compensated_it_is_the_ratio_that_was_mixed(snr, tapered):
    train = np.tile(triangle()[200:300], 1000)
    noise = np.random.default_rng(0).standard_normal(len(train))
    mixed = train + noise * train.std() * 10 ** (-snr / 20)
    closures = 100.0 * np.arange(1, 999)
    found = {
        name: harmonics_to_noise_ratio(mixed, closures, RATE, compensation=name)
        for name in ("window", "energy", "none")
    }
    # The largest of many lags is above the ratio where noise is as strong as the signal.
    assert abs(found["energy"] - snr) < 1.0
    assert abs(found["window"] - snr) < 2.0
    assert abs(found["none"] - tapered) < 0.05


@pytest.mark.parametrize("offset", [0.0, 37.0])
def test_a_periodic_signal_has_no_noise_wherever_its_cycles_begin(offset):
    found = {
        name: harmonics_to_noise_ratio(triangle(), CLOSURES + offset, RATE, compensation=name)
        for name in ("window", "energy")
    }
    assert found["energy"] > 80.0
    assert found["window"] > 20.0


@pytest.mark.parametrize("compensation", ["window", "energy", "none"])
def test_periodicity_by_brute_force(compensation):
    count = 400
    stretch = triangle()[200:600] + np.random.default_rng(0).standard_normal(count)
    values = stretch - stretch.mean()
    window = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(count) / count)
    ratios = []
    for lag in range(50, 151):
        weight = window[:-lag] * window[lag:]
        before, after = values[:-lag], values[lag:]
        scale = ((window * values) ** 2).sum()
        if compensation == "window":
            scale *= weight.sum() / (window**2).sum()
        elif compensation == "energy":
            scale = math.sqrt((weight * before**2).sum() * (weight * after**2).sum())
        ratios.append((weight * before * after).sum() / scale)
    top = int(np.argmax(ratios))
    assert 0 < top < 100
    # The top of the parabola through three points.
    curve = np.polyfit([-1.0, 0.0, 1.0], ratios[top - 1 : top + 2], 2)
    highest = curve[2] - curve[1] ** 2 / (4 * curve[0])
    assert _periodicity(stretch, compensation) == pytest.approx(highest, rel=1e-9)


def pulse_train():
    """Periodic, with every harmonic, and no mean."""
    train = np.exp(-((np.arange(4500) - CLOSURES[0]) % 100.0) / 20.0)
    return train - train.mean()


def test_an_unknown_compensation_is_refused():
    with pytest.raises(ValueError, match="must be window, energy or none; got 'praat'"):
        harmonics_to_noise_ratio(triangle(), CLOSURES, RATE, compensation="praat")


def test_every_voiced_stretch_counts_and_not_the_first_alone():
    clean = pulse_train()
    noisy = clean.copy()
    noisy[2200:] += 0.5 * np.random.default_rng(0).standard_normal(len(noisy) - 2200)
    closures = np.delete(CLOSURES, 19)
    first = harmonics_to_noise_ratio(noisy, closures[:19], RATE)
    assert harmonics_to_noise_ratio(noisy, closures, RATE) < first - 10.0


@pytest.mark.parametrize("closures", [CLOSURES[:4], CLOSURES[::10], CLOSURES[:0]])
def test_too_few_cycles_give_nan_and_a_warning(closures):
    with pytest.warns(UserWarning, match="no four larynx cycles of 2 to 50 ms on end"):
        assert math.isnan(harmonics_to_noise_ratio(pulse_train(), closures, RATE))
