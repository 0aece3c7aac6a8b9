"""The example of score distillation end to end, at its smallest."""

import json

import arviz
import numpy as np
import pytest
from example_scripts import example, options_of

run = example("f_distill")
DIVERGENCES = ("reverse_kl", "forward_kl")
STARTS = ("between", "minor")


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
    return {(row["group"], row["row"]): row for row in found}


def test_every_row_is_there(rows):
    expected = {("line", f"{name} from {start}") for name in DIVERGENCES for start in STARTS}
    expected |= {("plane", name) for name in DIVERGENCES}
    baselines = ("training images", "teacher, 18 steps", "teacher, 1 step")
    expected |= {("digits", name) for name in (*baselines, *DIVERGENCES)}
    assert set(rows) == expected


def test_reverse_kl_keeps_to_the_mode_it_starts_on(rows):
    """And forward KL covers both: even so few steps tell them apart."""
    seeking, covering = (rows["line", f"{name} from minor"] for name in DIVERGENCES)
    assert seeking["parameter_0"][0] == pytest.approx(-1.966, abs=0.1)
    assert covering["parameter_1"][0] > 1.2
    seeking, covering = (rows["plane", name] for name in DIVERGENCES)
    assert seeking["entropy"][0] < covering["entropy"][0] - 0.5
    assert seeking["reverse_kl"][0] < covering["reverse_kl"][0]
    assert seeking["forward_kl"][0] > covering["forward_kl"][0]


def test_images_are_scored(rows):
    real, teacher = rows["digits", "training images"], rows["digits", "teacher, 18 steps"]
    assert (
        real["frechet"][0] < teacher["frechet"][0] < rows["digits", "teacher, 1 step"]["frechet"][0]
    )
    assert real["class_kl"][0] < 0.05
    for name in DIVERGENCES:
        row = rows["digits", name]
        assert row["samples_per_second"][0] > teacher["samples_per_second"][0]
        assert 0.0 < row["weight_ess"][0] <= 1.0
    assert rows["digits", "reverse_kl"]["weight_max"][0] == 1.0
    assert rows["digits", "forward_kl"]["weight_max"][0] > 1.0
    assert rows["digits", "forward_kl"]["published_cifar10"] == [1.92, 0.62]


def test_claims_are_checked_with_what_was_found(folder):
    claims = json.loads((folder / "metrics.json").read_text())["claims"]
    found = {claim["claim"]: claim for claim in claims}
    name = "line: reverse_kl from minor ends at (-1.966, 0.562), within 0.08"
    assert found[name]["holds"]
    assert "digits, paper: recall of forward_kl above reverse_kl" in found


def test_a_student_goes_to_arviz(folder):
    runs = arviz.from_netcdf(folder / "runs.nc")
    assert runs.posterior["x"].dims[:2] == ("chain", "draw")
    assert runs.posterior["x"].shape[2:] == (64,)
    assert runs.sample_stats["ess_share"].shape == (1, 1, 10)
    assert np.isfinite(runs.sample_stats["critic_accuracy"]).all()


@pytest.mark.parametrize("figure", ["line", "plane", "digits", "digits_curves"])
def test_figures_are_drawn(folder, figure):
    assert (folder / f"{figure}.png").stat().st_size > 1000


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"groups": ("cats",)}, "groups must be among .*long_tailed.*, got .*cats"),
        ({"divergence": ("kullback",)}, "divergence must be among .*jensen_shannon.*, got .*kull"),
    ],
)
def test_unknown_names_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        options_of("f_distill")(**settings)


@pytest.mark.slow
def test_what_the_gpu_preset_runs(tmp_path):
    """A U-Net of images, and a network among 25 modes."""
    gpu = example("f_distill", "quick-gpu")
    finished = gpu("--output", str(tmp_path), "--processes", "0", "--divergence", *DIVERGENCES)
    assert finished.returncode == 0, finished.stderr
    found = json.loads((tmp_path / "metrics.json").read_text())["rows"]
    assert {row["group"] for row in found} == {"modes", "digits"}
    assert (tmp_path / "modes.png").stat().st_size > 1000
