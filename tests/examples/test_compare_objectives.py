"""The main job end to end, at its smallest."""

import json
import subprocess
import sys
from pathlib import Path

import arviz
import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """One run of the script as a user starts it."""
    folder = tmp_path_factory.mktemp("results")
    command = [
        sys.executable,
        "examples/compare_objectives.py",
        *("--preset", "quick", "--output", str(folder)),
        *("--divergence", "reverse_kl", "le_cam (our own)", "forward_kl"),
    ]
    finished = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert finished.returncode == 0, finished.stderr
    return folder, finished.stdout


def test_both_hosts_have_a_row_of_every_objective(results):
    folder, printed = results
    metrics = json.loads((folder / "metrics.json").read_text())
    for host in ("pyro", "numpyro"):
        rows = metrics["rows"][host]
        assert [row["objective"] for row in rows] == [
            "reverse_kl",
            "le_cam (our own)",
            "forward_kl",
        ]
        assert all(row["failed"] == 0 for row in rows)
        assert all(0.0 < row["sd_ratio"] < 2.0 for row in rows)
    assert "le_cam (our own)" in printed


def test_the_figure_and_the_draws_are_written(results):
    folder, _ = results
    assert (folder / "posteriors.png").stat().st_size > 20_000
    posterior = arviz.from_netcdf(folder / "posterior.nc")
    assert posterior.posterior["slopes"].shape[-1] == 6


def test_an_unknown_objective_is_named(tmp_path):
    command = [sys.executable, "examples/compare_objectives.py", "--divergence", "nothing"]
    finished = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert finished.returncode != 0
    assert "divergence must be among" in finished.stderr
