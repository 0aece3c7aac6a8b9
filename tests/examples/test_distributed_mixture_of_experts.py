"""The example of distributed mixtures of experts end to end, at its smallest."""

import json

import arviz
import numpy as np
import pytest
from example_scripts import example, options_of

run = example("distributed_mixture_of_experts")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """One run of the script as a user starts it."""
    folder = tmp_path_factory.mktemp("results")
    finished = run("--output", str(folder), "--divergence", "forward_kl", "wasserstein2")
    assert finished.returncode == 0, finished.stderr
    return folder


def test_reduction_comes_near_all_rows_and_naive_averages_do_not(folder):
    metrics = json.loads((folder / "metrics.json").read_text())
    rows = {row["row"]: row for row in metrics["rows"]}
    assert {"truth", "global", "forward_kl", "wasserstein2", "trimmed", "pooled"} <= set(rows)
    loss = {
        name: rows["truth"]["log_likelihood"][0] - row["log_likelihood"][0]
        for name, row in rows.items()
    }
    for name in ("forward_kl", "wasserstein2", "greedy_merge"):
        assert rows[name]["divergence"][0] < 0.01
        assert loss[name] < loss["global"] + 0.01
    assert rows["naive_average"]["divergence"][0] > 1.0
    assert loss["naive_average"] > 1.0


def test_claims_say_what_was_found(folder):
    claims = json.loads((folder / "metrics.json").read_text())["claims"]
    assert {claim["claim"].split()[0] for claim in claims} >= {"(i)", "(ii)", "(iii)", "(vii)"}
    never_rises = [claim["met"] for claim in claims if claim["claim"].startswith("(vii)")]
    assert never_rises == ["1 of 1"]


# Eight draws are too few to tell Pareto tails from.
@pytest.mark.filterwarnings("ignore:Estimated shape parameter of Pareto distribution")
def test_draws_go_to_arviz(folder):
    posterior = arviz.from_netcdf(folder / "posterior.nc")
    assert posterior.posterior["prediction"].dims[:3] == ("chain", "draw", "probe")
    assert np.isfinite(arviz.loo(posterior, var_name="observation").elpd_loo)


@pytest.mark.parametrize("figure", ["error", "time", "shard_costs"])
def test_figures_are_drawn(folder, figure):
    assert (folder / f"{figure}.png").stat().st_size > 1000


def test_unknown_divergence_is_named():
    with pytest.raises(
        ValueError, match="divergence must be among .*wasserstein2.*, got .*kullback"
    ):
        options_of("distributed_mixture_of_experts")(divergence=("kullback",))
