"""Simulated voices: instants and quotients against closed forms, and what was asked for."""

import math
import time

import numpy as np
import pytest
from scipy import signal

from bayesdiv.data import VoiceSettings, polarity_skewness, simulate_babble, simulate_voices
from bayesdiv.data._voice_glottis import glottal_cycle
from bayesdiv.data._voice_timing import crossings
from bayesdiv.data._voice_tract import VOWELS, resonate
from bayesdiv.diagnostics import detect_glottal_instants, epoch_metrics, glottal_quotients

STEADY = VoiceSettings(
    seconds=1.0, plan="sustained", f0=97.3, wander=0.0, jitter=0.0, shimmer=0.0, snr=math.inf
)
INSTANTS = ("closures", "openings", "excitations")


@pytest.mark.parametrize("name", INSTANTS)
def test_instants_of_a_steady_voice_are_a_period_apart(name):
    (voice,) = simulate_voices(3, settings=STEADY)
    gaps = np.diff(getattr(voice, name))
    np.testing.assert_allclose(gaps, 16_000 / 97.3, rtol=1e-6)
    assert len(gaps) >= 95


def test_a_steady_voice_repeats_itself():
    (voice,) = simulate_voices(3, settings=VoiceSettings(**{**vars(STEADY), "f0": 100.0}))
    egg = voice.egg[4000:12_000].astype(float)
    # A cycle is 160 samples; drift and noise of the EGG are what is left.
    assert np.corrcoef(egg[:-160], egg[160:])[0, 1] > 0.99


@pytest.mark.parametrize(("rest", "quotient"), [(-0.15, 0.585), (0.15, 0.415), (0.4, 0.31)])
def test_pressed_folds_touch_longer_than_breathy_ones(rest, quotient):
    cycle = glottal_cycle(rest, convergence=0.25, lag=1.2, skew=0.62)
    assert abs(cycle.contact_quotient - quotient) < 0.01


def test_a_finer_surface_has_the_same_instants(monkeypatch):
    rng = np.random.default_rng(0)
    drawn = [
        (rng.uniform(-0.25, 0.5), rng.uniform(0.1, 0.4), rng.uniform(0.8, 1.6)) for _ in range(10)
    ]
    coarse = [glottal_cycle(*values, skew=0.6) for values in drawn]
    monkeypatch.setattr("bayesdiv.data._voice_glottis._NUM_UPWARD", 99)
    for one, values in zip(coarse, drawn, strict=True):
        fine = glottal_cycle(*values, skew=0.6)
        for name in ("closure", "opening", "excitation"):
            gap = (getattr(one, name) - getattr(fine, name) + 0.5) % 1.0 - 0.5
            assert abs(gap) < 0.01, (name, values)
        # Rows of a grid that part one after the other would show as ripples.
        slope = np.roll(one.contact, -1) - np.roll(one.contact, 1)
        slope = np.roll(slope, 360 - slope.argmax())
        assert len(signal.find_peaks(slope, prominence=0.02 * slope.max())[0]) == 1


def test_contact_is_the_formula_by_brute_force():
    rest, convergence, lag = 0.1, 0.3, 1.1
    cycle = glottal_cycle(rest, convergence, lag, skew=0.6)
    for index in (0, 200, 431):
        touching = [
            1.0 / (1.0 + math.exp(gap / 0.02))
            for y in (np.arange(33) + 0.5) / 33
            for v in (np.arange(33) + 0.5) / 33
            for gap in [
                (rest + convergence * (0.5 - v)) * (0.35 + 0.65 * y)
                + math.sin(math.pi * y) * math.sin(2 * math.pi * index / 720 - lag * (v - 0.5))
            ]
        ]
        assert abs(cycle.contact[index] - np.mean(touching)) < 1e-5


def test_flow_rises_slowly_and_is_largest_late():
    sharp, even = (glottal_cycle(0.15, 0.25, 1.2, skew=skew).flow for skew in (0.68, 0.501))
    assert sharp.argmax() > even.argmax()
    for flow in (sharp, even):
        assert flow.max() == 1.0
    assert -np.diff(sharp).min() > 1.3 * np.diff(sharp).max()
    assert abs(-np.diff(even).min() / np.diff(even).max() - 1.0) < 0.2


def test_folds_that_never_touch_are_refused():
    with pytest.raises(ValueError, match=r"must touch and part.*rest=5.0.*bring rest closer"):
        glottal_cycle(5.0, 0.2, 1.0, 0.6)


def test_crossings_invert_a_phase():
    time_of = np.arange(1000.0)
    phase = 0.01 * time_of + 1e-6 * time_of**2
    found = crossings(phase, 0.3)
    exact = (-0.01 + np.sqrt(1e-4 + 4e-6 * (np.arange(len(found)) + 0.3))) / 2e-6
    np.testing.assert_allclose(found, exact, atol=1e-4)


def test_quotient_of_the_pulse_is_that_of_the_table():
    voices = simulate_voices(5, 9, VoiceSettings(seconds=1.0))
    for voice in voices:
        instants = detect_glottal_instants(voice.egg, voice.rate)
        found = np.median(glottal_quotients(voice.egg, *instants, voice.rate).contact)
        assert abs(found - voice.contact_quotient) < 0.06, voice.quality


def test_excitation_comes_before_closure():
    for voice in simulate_voices(2, 8, VoiceSettings(seconds=0.6, quality="modal")):
        after = np.searchsorted(voice.closures, voice.excitations[1:-1])
        lead = (voice.closures[after] - voice.excitations[1:-1]) / voice.rate
        share = np.median(lead * np.median(voice.f0))
        assert 0.03 < share < 0.22


def test_truth_is_consistent():
    for voice in simulate_voices(0, 6):
        count = len(voice.speech)
        assert voice.speech.shape == voice.egg.shape == voice.f0.shape == voice.voicing.shape
        assert voice.speech.dtype == voice.egg.dtype == np.float32
        assert np.abs(voice.speech).max() == np.abs(voice.egg).max() == 1.0
        assert polarity_skewness(voice.egg) > 0.1
        for name in INSTANTS:
            instants = getattr(voice, name)
            assert (np.diff(instants) > 0).all()
            assert 0 <= instants[0] <= instants[-1] <= count - 1
            assert (voice.voicing[np.rint(instants).astype(int)] >= 0.25).all()
        # F0 as given is F0 as the closures have it.
        cycles = np.diff(voice.closures)
        inside = cycles < 1.5 * np.median(cycles)
        middle = (voice.closures[:-1] + 0.5 * cycles)[inside].astype(int)
        assert abs(np.median(voice.f0[middle] * cycles[inside] / voice.rate) - 1.0) < 0.005


def test_utterances_do_not_depend_on_how_many_are_asked_for():
    short = VoiceSettings(seconds=0.3)
    first, again = simulate_voices(7, 3, short), simulate_voices(7, 2, short)
    for one, other in zip(first, again, strict=False):
        for found, wanted in zip(one, other, strict=True):
            np.testing.assert_array_equal(found, wanted)
    assert not np.array_equal(first[0].egg, first[1].egg)
    assert not np.array_equal(first[0].egg, simulate_voices(8, 1, short)[0].egg)


def test_delay_moves_speech_only():
    near, far = (
        simulate_voices(1, 1, VoiceSettings(seconds=0.5, snr=math.inf, delay=(lag, lag)))[0]
        for lag in (0.0, 0.001)
    )
    assert (near.delay, far.delay) == (0, 16)
    np.testing.assert_array_equal(near.egg, far.egg)
    np.testing.assert_array_equal(near.closures, far.closures)
    np.testing.assert_allclose(far.speech[16:] / near.speech[:-16].max(), near.speech[:-16]
                               / near.speech[:-16].max(), atol=1e-6)  # fmt: skip


def test_registers_and_qualities_are_those_asked_for():
    low, high = (
        simulate_voices(0, 6, VoiceSettings(0.3, quality, register, wander=0.0))
        for quality, register in (("breathy", "low"), ("pressed", "high"))
    )
    assert {voice.quality for voice in low} == {"breathy"}
    assert max(voice.f0.mean() for voice in low) < min(voice.f0.mean() for voice in high)
    assert max(v.contact_quotient for v in low) < min(v.contact_quotient for v in high)
    drawn = {voice.quality for voice in simulate_voices(0, 20, VoiceSettings(seconds=0.1))}
    assert drawn == {"modal", "breathy", "pressed"}


def test_jitter_is_the_spread_of_neighbouring_cycles():
    settings = VoiceSettings(seconds=20.0, plan="sustained", f0=200.0, wander=0.0, jitter=0.01)
    (voice,) = simulate_voices(0, settings=settings)
    cycles = np.diff(voice.closures)
    # Closures fall inside cycles of the smooth phase, so that each has a share of two draws.
    spread = (cycles / cycles.mean()).std()
    assert 0.006 < spread < 0.0115


def test_resonators_have_the_published_response():
    rate, frame = 16_000, 80
    impulse = np.zeros(4000)
    impulse[0] = 1.0
    heard = resonate(impulse, np.tile(VOWELS[4], (50, 1)), rate, frame)
    response = np.abs(np.fft.rfft(heard))
    assert abs(response[0] - 1.0) < 1e-6
    peaks, _ = signal.find_peaks(response)
    hertz = peaks * rate / len(impulse)
    for formant in VOWELS[4]:
        assert np.abs(hertz - formant).min() < 0.05 * formant


def test_state_of_the_resonators_goes_on_from_frame_to_frame():
    source = np.random.default_rng(0).standard_normal(1000)
    formants = np.tile(VOWELS[0], (13, 1))
    whole = resonate(source, formants, 16_000, 80)
    # Different enough that each frame is a call of its own, and no more.
    nudged = formants * (1.0 + 1e-9 * np.arange(13)[:, None])
    np.testing.assert_allclose(resonate(source, nudged, 16_000, 80), whole, rtol=1e-5, atol=1e-4)


def test_peak_picking_finds_the_closures():
    scores = []
    for voice in simulate_voices(1, 12):
        found = detect_glottal_instants(voice.egg, voice.rate)
        scores.append(epoch_metrics(found.closures, voice.closures, voice.rate))
    assert np.mean([score.identification_rate for score in scores]) > 0.997
    assert np.mean([score.accuracy for score in scores]) < 0.11
    assert abs(np.mean([score.bias for score in scores])) < 0.2


def test_babble_is_no_white_noise():
    babble = simulate_babble(0, 2.0)
    assert babble.shape == (32_000,)
    assert abs(babble.std() - 1.0) < 1e-6
    assert np.corrcoef(babble[1:], babble[:-1])[0, 1] > 0.5


def test_it_is_thirty_times_faster_than_real_time():
    simulate_voices(0)
    start = time.process_time()
    simulate_voices(0, 8)
    assert 8 * 2.5 / (time.process_time() - start) > 30.0


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"quality": "creaky"}, "quality must be one of modal, breathy, pressed, any; got 'creaky"),
        ({"register": "child"}, "register must be one of low, high, any; got 'child'"),
        ({"plan": "song"}, "plan must be one of phrase, sustained; got 'song'"),
        ({"seconds": 0.01}, "seconds must be at least 0.1 and finite, got 0.01"),
        ({"seconds": math.nan}, "seconds must be at least 0.1 and finite, got nan"),
        ({"f0": 20.0}, "f0 must be None or from 40 to 500 Hz, got 20.0"),
        ({"wander": -0.1}, "wander must be a share from 0 to 0.5, got -0.1"),
        ({"jitter": 0.2}, "jitter must be a share from 0 to 0.1, got 0.2"),
        ({"shimmer": 1.0}, "shimmer must be a share from 0 to 0.2, got 1.0"),
        ({"snr": math.nan}, "snr must be in dB, or infinity for no noise, got nan"),
        ({"delay": (0.002, 0.001)}, r"smallest and the largest, in seconds.*\(0.002, 0.001\)"),
        ({"rate": 8000}, "rate must be a whole number of at least 16,000.*got 8000; resample"),
    ],
)
def test_settings_out_of_their_domain_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        VoiceSettings(**settings)


def test_numbers_out_of_their_domain_are_refused():
    with pytest.raises(ValueError, match="num_utterances must be at least 1, got 0"):
        simulate_voices(0, 0)
    with pytest.raises(ValueError, match="seed must be a whole number of at least 0, got -1"):
        simulate_voices(-1)
    with pytest.raises(ValueError, match="num_talkers must be at least 1, got 0"):
        simulate_babble(0, 1.0, num_talkers=0)
