"""The main job end to end, at its smallest."""

import json

import arviz
import pytest
from example_scripts import example

run = example("compare_objectives")
OBJECTIVES = ["le_cam (our own)", "forward_kl"]


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """One run of the script as a user starts it."""
    folder = tmp_path_factory.mktemp("results")
    finished = run("--output", str(folder), "--divergence", *OBJECTIVES)
    assert finished.returncode == 0, finished.stderr
    return folder, finished.stdout


def test_both_hosts_have_a_row_of_every_objective(results):
    folder, printed = results
    metrics = json.loads((folder / "metrics.json").read_text())
    for host in ("pyro", "numpyro"):
        rows = metrics["rows"][host]
        assert [row["objective"] for row in rows] == OBJECTIVES
        assert all(row["failed"] == 0 for row in rows)
        assert all(0.0 < row["sd_ratio"] < 2.0 for row in rows)
    assert "le_cam (our own)" in printed


def test_the_figure_and_the_draws_are_written(results):
    folder, _ = results
    assert (folder / "posteriors.png").stat().st_size > 20_000
    posterior = arviz.from_netcdf(folder / "posterior.nc")
    assert posterior.posterior["slopes"].shape[-1] == 6


def test_an_unknown_objective_reaches_the_terminal():
    """The other examples' settings are refused in this process; one has to end a process."""
    finished = run("--divergence", "nothing")
    assert finished.returncode != 0
    assert "divergence must be among" in finished.stderr
