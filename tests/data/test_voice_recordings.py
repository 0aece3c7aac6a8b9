"""Recordings written to a folder and read again: rates, channels, polarity, delay, speakers."""

from types import SimpleNamespace

import numpy as np
import pytest
from scipy import signal
from scipy.io import wavfile

from bayesdiv.data import (
    VoiceSettings,
    load_speech_egg,
    polarity_skewness,
    prepare_speech_egg,
    read_speech,
    simulate_voices,
    split_by_speaker,
)
from bayesdiv.data._voice_recordings import high_pass, read_wav

RATE = 16_000


@pytest.fixture(scope="module")
def voice():
    """One whose closures are as sharp as recorded ones, so that its polarity is clear."""
    settings = VoiceSettings(seconds=1.0, quality="pressed")
    return max(simulate_voices(4, 20, settings), key=lambda each: polarity_skewness(each.egg))


def whole_numbers(values):
    return np.round(30_000 * values / np.abs(values).max()).astype(np.int16)


def write_both(path, voice, egg=None, rate=RATE):
    path.parent.mkdir(parents=True, exist_ok=True)
    channels = [voice.speech, voice.egg if egg is None else egg]
    wavfile.write(path, rate, np.stack([whole_numbers(each) for each in channels], axis=1))


def likeness(one, other):
    count = min(len(one), len(other))
    return np.corrcoef(one[:count], other[:count])[0, 1]


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_two_channels_come_back_upright(tmp_path, voice, sign):
    write_both(tmp_path / "anna_01.wav", voice, sign * voice.egg)
    (found,) = load_speech_egg(tmp_path)
    assert (found.name, found.speaker, found.rate) == ("anna_01", "anna", RATE)
    assert likeness(found.egg, voice.egg) > 0.999
    np.testing.assert_allclose(found.speech, voice.speech, atol=1e-4)
    assert np.abs(found.speech).max() == np.abs(found.egg).max() == 1.0


def test_a_pair_at_another_rate_is_resampled(tmp_path, voice):
    for ending, values in (("AUD", voice.speech), ("EGG", voice.egg)):
        faster = signal.resample_poly(values.astype(float), 441, 160)
        wavfile.write(tmp_path / f"M1_frame_{ending}.wav", 44_100, whole_numbers(faster))
    (found,) = load_speech_egg(tmp_path)
    assert (found.name, found.speaker, found.rate) == ("M1_frame", "M1", RATE)
    assert abs(len(found.egg) - len(voice.egg)) <= 1
    assert likeness(found.egg, voice.egg) > 0.995
    assert likeness(found.speech, voice.speech) > 0.995


def test_channels_can_be_the_other_way_round(tmp_path, voice):
    swapped = SimpleNamespace(speech=voice.egg, egg=None)
    write_both(tmp_path / "a.wav", swapped, voice.speech)
    (found,) = load_speech_egg(tmp_path, channels=(1, 0))
    assert likeness(found.egg, voice.egg) > 0.999


def test_folders_are_speakers_and_a_function_may_say_otherwise(tmp_path, voice):
    write_both(tmp_path / "S1" / "a.wav", voice)
    write_both(tmp_path / "S2" / "a.wav", voice)
    assert [each.speaker for each in load_speech_egg(tmp_path)] == ["S1", "S2"]
    found = load_speech_egg(tmp_path, speaker=lambda name: name.upper())
    assert [each.speaker for each in found] == ["S1/A", "S2/A"]


def test_a_known_delay_is_taken_out(voice):
    late = np.concatenate([np.zeros(13), voice.speech[:-13]])
    found = prepare_speech_egg(late, voice.egg, RATE, delay=13 / RATE)
    assert found.speech.shape == found.egg.shape == (RATE - 13,)
    np.testing.assert_allclose(
        found.speech, voice.speech[:-13] / np.abs(voice.speech[:-13]).max(), atol=1e-6
    )


def test_drift_below_fifty_hertz_goes_without_moving_the_rest():
    times = np.arange(RATE) / RATE
    tone = np.sin(2 * np.pi * 200 * times)
    found = high_pass(tone + 5.0 * np.sin(2 * np.pi * 8 * times) + 3.0, RATE)
    np.testing.assert_allclose(found[2000:-2000], tone[2000:-2000], atol=0.02)


def test_skewness_is_odd_and_positive_for_sharp_closures(voice):
    assert polarity_skewness(voice.egg) > 1.0
    assert polarity_skewness(-voice.egg) == pytest.approx(-polarity_skewness(voice.egg))


def test_a_symmetric_egg_has_no_clear_polarity(voice):
    sine = np.sin(2 * np.pi * 120 * np.arange(RATE) / RATE)
    with pytest.warns(UserWarning, match=r"polarity of take 3's EGG is a guess.*pass polarity"):
        prepare_speech_egg(voice.speech, sine, RATE, name="take 3")


@pytest.mark.parametrize(("polarity", "sign"), [("upright", -1.0), ("inverted", 1.0)])
def test_a_polarity_that_contradicts_the_egg_warns(voice, polarity, sign):
    with pytest.warns(UserWarning, match="closures and openings may be swapped"):
        found = prepare_speech_egg(voice.speech, sign * voice.egg, RATE, polarity=polarity)
    assert likeness(found.egg, voice.egg) < -0.99


def test_a_polarity_that_fits_says_nothing(voice):
    found = prepare_speech_egg(voice.speech, -voice.egg, RATE, polarity="inverted")
    assert likeness(found.egg, voice.egg) > 0.999


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"egg": np.ones(100)}, "equally long, got 16000 and 100 samples"),
        ({"egg": np.zeros(RATE)}, "egg of recording is zero all through; check the channel"),
        ({"egg": np.ones(RATE)}, "egg of recording is constant; check the channel"),
        ({"speech": np.zeros(RATE)}, "speech of recording is zero all through"),
        ({"speech": np.full(RATE, np.nan)}, "speech of recording must be finite, got NaN"),
        ({"speech": np.empty(0)}, r"speech of recording must have shape \(n,\) with n at least 1"),
        ({"egg": np.ones((RATE, 2))}, r"egg of recording must be one channel.*choose the channel"),
        ({"polarity": "up"}, "polarity must be one of auto, upright, inverted; got 'up'"),
        ({"rate": 0}, "rate must be a whole number above 100 a second, got 0"),
        ({"new_rate": 16_000.5}, "new_rate must be a whole number above 100 a second"),
        ({"delay": -0.1}, "delay must be at least 0 and leave 16 samples of recording, got -0.1"),
        ({"delay": 1.0}, "got 1.0 seconds of 1.000"),
    ],
)
def test_bad_recordings_are_refused(voice, change, message):
    given = {"speech": voice.speech, "egg": voice.egg, "rate": RATE, **change}
    with pytest.raises(ValueError, match=message):
        prepare_speech_egg(**given)


def test_a_constant_has_no_polarity():
    with pytest.raises(ValueError, match="has no polarity"):
        polarity_skewness(np.ones(50))


def test_folders_without_pairs_are_refused(tmp_path, voice):
    with pytest.raises(FileNotFoundError, match="holds no WAV file; give a folder"):
        load_speech_egg(tmp_path)
    wavfile.write(tmp_path / "x_EGG.wav", RATE, whole_numbers(voice.egg))
    with pytest.raises(FileNotFoundError, match="x_EGG.wav has no partner x_AUD.wav"):
        load_speech_egg(tmp_path)
    wavfile.write(tmp_path / "x_AUD.wav", 8000, whole_numbers(voice.speech))
    with pytest.raises(ValueError, match="must have one rate, got 8000 and 16000 Hz"):
        load_speech_egg(tmp_path)


def test_partners_of_two_channels_or_lengths_are_refused(tmp_path, voice):
    wavfile.write(tmp_path / "x_EGG.wav", RATE, whole_numbers(voice.egg[:-9]))
    wavfile.write(tmp_path / "x_AUD.wav", RATE, whole_numbers(voice.speech))
    with pytest.raises(ValueError, match="speech and egg of x must be equally long"):
        load_speech_egg(tmp_path)
    write_both(tmp_path / "x_AUD.wav", voice)
    with pytest.raises(ValueError, match=r"speech of x must be one channel.*choose the channel"):
        load_speech_egg(tmp_path)


def test_one_channel_alone_is_refused(tmp_path, voice):
    wavfile.write(tmp_path / "x.wav", RATE, whole_numbers(voice.egg))
    with pytest.raises(ValueError, match=r"got 1 channel; pass channels=\(speech, EGG\), or name"):
        load_speech_egg(tmp_path)


@pytest.mark.parametrize("kind", [np.uint8, np.int16, np.int32, np.float32])
def test_samples_of_every_kind_have_one_scale(tmp_path, kind):
    wanted = np.array([-1.0, -0.5, 0.0, 0.5])
    if kind is np.uint8:
        values = (128 * (wanted + 1)).astype(kind)
    elif kind is np.float32:
        values = wanted.astype(kind)
    else:
        values = (wanted * (float(np.iinfo(kind).max) + 1)).astype(kind)
    wavfile.write(tmp_path / "x.wav", 8000, values)
    found, rate = read_wav(tmp_path / "x.wav")
    assert rate == 8000
    np.testing.assert_allclose(found, wanted, atol=1e-9)


def recordings(*speakers):
    return [
        SimpleNamespace(speaker=speaker, name=f"{speaker}{k}") for speaker in speakers
        for k in range(3)
    ]  # fmt: skip


def test_no_speaker_is_in_two_parts():
    every = recordings(*"abcdefghij")
    parts = split_by_speaker(every, 0)
    speakers = [{each.speaker for each in part} for part in parts]
    assert [len(each) for each in speakers] == [7, 1, 2]
    assert set.union(*speakers) == set("abcdefghij")
    assert sum(len(part) for part in parts) == len(every)
    assert split_by_speaker(every, 0) == parts
    assert split_by_speaker(every, 1) != parts


@pytest.mark.parametrize("count", [3, 4, 17])
def test_every_part_has_a_speaker(count):
    parts = split_by_speaker(recordings(*(f"s{k}" for k in range(count))), 0)
    assert all(parts)


def test_splits_that_cannot_be_are_refused():
    with pytest.raises(ValueError, match="3 parts need as many speakers at least, got 2"):
        split_by_speaker(recordings("a", "b"), 0)
    with pytest.raises(ValueError, match="shares must be positive and sum to 1"):
        split_by_speaker(recordings("a", "b"), 0, shares=(0.5, 0.4))


def test_speech_of_a_file_is_one_channel_at_the_wanted_rate(tmp_path):
    time = np.arange(44_100) / 44_100.0
    tone = np.sin(2.0 * np.pi * 200.0 * time)
    wavfile.write(tmp_path / "one.wav", 44_100, (0.3 * tone).astype(np.float32))
    found = read_speech(tmp_path / "one.wav")
    assert found.dtype == np.float32
    assert len(found) == RATE
    assert np.abs(found).max() == 1.0
    expected = np.sin(2.0 * np.pi * 200.0 * np.arange(RATE) / RATE)
    np.testing.assert_allclose(found[200:-200], expected[200:-200], atol=0.01)
    both = np.stack([np.zeros_like(tone), tone], axis=1).astype(np.float32)
    wavfile.write(tmp_path / "two.wav", 44_100, both)
    np.testing.assert_allclose(read_speech(tmp_path / "two.wav", channel=1), found, atol=1e-5)


@pytest.mark.parametrize(
    ("channels", "channel", "message"),
    [
        (2, None, "has 2 channels; choose one"),
        (2, 2, "channel must be from 0 to 1"),
        (1, 1, "channel must be 0 or None"),
        (1, None, "finite sound, got NaN, infinity or silence"),
    ],
)
def test_speech_that_cannot_be_read_is_named(tmp_path, channels, channel, message):
    wavfile.write(tmp_path / "speech.wav", RATE, np.zeros((500, channels), np.int16).squeeze())
    with pytest.raises(ValueError, match=message):
        read_speech(tmp_path / "speech.wav", channel=channel)
    with pytest.raises(FileNotFoundError):
        read_speech(tmp_path / "nothing.wav")
