"""The example of speech to electroglottograph end to end, at its smallest."""

import json

import arviz
import numpy as np
import pytest
from example_scripts import example, options_of
from scipy.io import wavfile

from bayesdiv.data import VoiceSettings, simulate_voices
from bayesdiv.diagnostics import epoch_metrics

run = example("speech_to_egg")
DIVERGENCES = ("softened_reverse_kl", "sliced_wasserstein")
ROWS = (
    "regression",
    *DIVERGENCES,
    "dead critic",
    "normal prior, ELBO",
    "stochastic guide",
    "zero-frequency filter",
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """One run of the script as a user starts it."""
    folder = tmp_path_factory.mktemp("results")
    finished = run("--output", str(folder), "--processes", "0", "--divergence", *DIVERGENCES)
    assert finished.returncode == 0, finished.stderr
    return folder


@pytest.fixture(scope="module")
def rows(folder):
    found = json.loads((folder / "metrics.json").read_text())["rows"]
    return {row["row"]: row for row in found}


def test_every_variant_has_its_row(rows):
    assert tuple(rows) == ROWS


def test_rates_are_shares_of_cycles(rows):
    for name, row in rows.items():
        rates = [row[f"{kind}_rate"][0] for kind in ("identification", "miss", "false_alarm")]
        assert sum(rates) == pytest.approx(1.0, abs=1e-3), name
        assert row["num_cycles"][0] > 50


def test_a_hundred_steps_draw_something_like_egg(rows):
    assert rows["regression"]["correlation"][0] > 0.5
    assert rows["regression"]["identification_rate"][0] > 0.5
    assert rows["zero-frequency filter"]["identification_rate"][0] > 0.8


def test_critics_are_there_where_there_is_a_ratio(rows):
    assert "critic_loss" in rows["softened_reverse_kl"]
    assert "critic_loss" not in rows["sliced_wasserstein"]
    chance = 2.0 * np.log(2.0)
    assert (
        rows["softened_reverse_kl"]["critic_loss"][0]
        < chance
        < rows["dead critic"]["critic_loss"][0]
    )
    for name in ROWS[:-1]:
        assert 0.0 < rows[name]["probe_jensen_shannon"][0] < np.log(2.0) + 0.05


def test_closures_have_deviations(rows):
    timed = {name for name, row in rows.items() if "timing_deviation_ms" in row}
    assert timed == {"regression", "softened_reverse_kl", "normal prior, ELBO", "stochastic guide"}
    for name in timed:
        assert rows[name]["timing_deviation_ms"][0] > 0.0
        assert 0.0 <= rows[name]["timing_coverage_90"][0] <= 1.0


def test_drawn_windows_go_to_arviz(folder):
    found = arviz.from_netcdf(folder / "egg.nc")
    assert found.posterior_predictive["egg"].dims == ("chain", "draw", "window", "sample")
    assert found.posterior_predictive["egg"].shape[1:] == (3, 24, 200)
    assert found.observed_data["egg"].shape == (24, 200)


def test_egg_is_written_as_sound(folder):
    rate, egg = wavfile.read(folder / "clean_egg.wav")
    assert rate == 16_000
    assert len(egg) == round(1.2 * rate)
    assert np.abs(egg).max() == 32_767


@pytest.mark.parametrize("figure", ["clean_waveform", "timing"])
def test_figures_are_drawn(folder, figure):
    assert (folder / f"{figure}.png").stat().st_size > 1000


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"conditions": ("loud",)}, "conditions must be among .*shift.*, got .*loud"),
        # It has no path gradient, and no critic could serve it.
        ({"divergence": ("total_variation",)}, "divergence must be among .*mmd.*, got .*total"),
    ],
)
def test_unknown_names_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        options_of("speech_to_egg")(**settings)


@pytest.mark.slow
def test_speech_of_a_file_gets_its_egg(tmp_path):
    (voice,) = simulate_voices(5, settings=VoiceSettings(seconds=1.0, plan="sustained", f0=120.0))
    wavfile.write(tmp_path / "speech.wav", 16_000, voice.speech)
    whole = example("speech_to_egg", "laptop")
    finished = whole("--wav", str(tmp_path / "speech.wav"), "--output", str(tmp_path))
    assert finished.returncode == 0, finished.stderr
    rate, egg = wavfile.read(tmp_path / "speech_egg.wav")
    assert (rate, len(egg)) == (16_000, 16_000)
    table = np.genfromtxt(tmp_path / "speech_instants.csv", delimiter=",", names=True)
    found = epoch_metrics(16_000 * table["closure_seconds"], voice.closures, 16_000)
    assert found.identification_rate > 0.95
    assert np.nanmedian(table["standard_deviation_ms"]) > 0.0
    assert (tmp_path / "speech_egg.png").stat().st_size > 1000
