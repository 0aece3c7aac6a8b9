"""The example of supervised fine-tuning as imitation end to end, at its smallest."""

import json

import arviz
import numpy as np
import pytest
from example_scripts import example, options_of

run = example("sft_as_inverse_rl")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """One run of the script as a user starts it."""
    folder = tmp_path_factory.mktemp("results")
    divergences = ("--divergence", "reverse_kl", "jensen_shannon")
    finished = run("--output", str(folder), "--processes", "0", *divergences)
    assert finished.returncode == 0, finished.stderr
    return folder


@pytest.fixture(scope="module")
def metrics(folder):
    return json.loads((folder / "metrics.json").read_text())


def test_every_objective_has_its_row(metrics):
    found = {(row["group"], row["row"]) for row in metrics["rows"]}
    adversarial = {f"adversarial {name}" for name in ("reverse_kl", "jensen_shannon")}
    expected = {("start", "student")}
    expected |= {("many", row) for row in adversarial | {"sft", "occupancy_sft"}}
    expected |= {("few", row) for row in adversarial | {"sft"}}
    expected |= {("oracle", f"oracle {name}") for name in ("reverse_kl", "jensen_shannon")}
    assert found == expected


def test_students_come_nearer_to_the_expert(metrics):
    start = next(row for row in metrics["rows"] if row["group"] == "start")
    for row in metrics["rows"]:
        assert 0.0 <= row["total_variation"][0] <= 1.0
        assert row["jensen_shannon"][0] <= np.log(2.0)
        if row["group"] in ("many", "oracle"):
            assert row["reverse_kl"][0] < start["reverse_kl"][0], row["row"]
            assert row["alignment"][0] > start["alignment"][0], row["row"]
    assert metrics["expert_entropy"][0] > 10.0


def test_curves_begin_at_the_warm_start(metrics):
    curves = {(each["group"], each["row"]): each for each in metrics["curves"]}
    first = {
        curves["many", f"adversarial {name}"]["forward_kl"][0][0]
        for name in ("reverse_kl", "jensen_shannon")
    }
    assert len(first) == 1
    assert curves["many", "adversarial reverse_kl"]["steps"] == [0, 20]


def test_runs_go_to_arviz(folder):
    runs = arviz.from_netcdf(folder / "runs.nc")
    assert runs.posterior["log_ratio"].dims == ("chain", "draw")
    assert {"critic_loss", "saturated", "divergence"} <= set(runs.sample_stats)
    assert (folder / "runs.nc").stat().st_size < 500_000


@pytest.mark.parametrize("figure", ["curves", "alignment_and_entropy"])
def test_figures_are_drawn(folder, figure):
    assert (folder / f"{figure}.png").stat().st_size > 1000


def test_unknown_group_is_named():
    with pytest.raises(ValueError, match=r"groups must be among .*oracle.*, got \['some'\]"):
        options_of("sft_as_inverse_rl")(groups=("some",))
