"""The f-DPG example end to end, at its smallest."""

import json

import arviz
import numpy as np
import pytest
from example_scripts import example, options_of

run = example("f_dpg")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """One run of the script as a user starts it."""
    folder = tmp_path_factory.mktemp("results")
    finished = run("--output", str(folder), "--processes", "0", BAYESDIV_DATA=str(folder / "data"))
    assert finished.returncode == 0, finished.stderr
    return folder


def test_policies_have_come_nearer_to_their_targets(folder):
    metrics = json.loads((folder / "metrics.json").read_text())
    assert set(metrics["rows"]) == {"lexical", "preference"}
    for rows in metrics["rows"].values():
        start, *trained = rows
        assert start["row"] == "start"
        for row in trained:
            for metric in ("forward_kl", "jensen_shannon", "total_variation"):
                assert row[metric][0] < start[metric][0], (row["row"], metric)
            assert row["alignment"][0] > start["alignment"][0]
            assert row["base_kl"][0] > 0.0
            assert abs(row["normalizer_error"][0]) < 0.5
    # Names without the letter have mass under every policy.
    assert all(row["reverse_kl"] is None for row in metrics["rows"]["lexical"])
    assert {claim["holds"] for claim in metrics["claims"]} <= {True, False}


def test_runs_go_to_arviz(folder):
    runs = arviz.from_netcdf(folder / "runs.nc")
    assert runs.posterior["alignment"].dims == ("chain", "draw")
    for name in ("log_normalizer", "ess", "forward_kl"):
        assert np.isfinite(runs.sample_stats[name]).all()
    assert (folder / "runs.nc").stat().st_size < 500_000


@pytest.mark.parametrize("figure", ["lexical", "preference", "scatter"])
def test_figures_are_drawn(folder, figure):
    assert (folder / f"{figure}.png").stat().st_size > 1000


def test_unknown_divergence_is_named():
    with pytest.raises(ValueError, match="divergence must be among .*jensen_shannon.*, got .*kull"):
        options_of("f_dpg")(divergence=("kullback",))
