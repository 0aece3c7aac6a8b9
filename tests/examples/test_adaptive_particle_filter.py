"""The example of the adaptive particle filter end to end, at its smallest."""

import json

import arviz
import numpy as np
import pytest
from example_scripts import example, options_of

run = example("adaptive_particle_filter")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """One run of the script as a user starts it."""
    folder = tmp_path_factory.mktemp("results")
    finished = run("--output", str(folder), "--divergence", "jensen_shannon", "--processes", "0")
    assert finished.returncode == 0, finished.stderr
    return folder


@pytest.fixture(scope="module")
def metrics(folder):
    return json.loads((folder / "metrics.json").read_text())


def test_learnt_proposal_weighs_evenly_where_the_bootstrap_does_not(metrics):
    rows = {row["row"]: row for row in metrics["rows"]}
    learnt, bootstrap = rows["K=1 ψ"], rows["bootstrap"]
    assert learnt["divergence"] == "jensen_shannon"
    assert learnt["ess"] > 0.9 > 0.3 > bootstrap["ess"]
    assert learnt["kl"] < bootstrap["kl"]
    # Against the Kalman filter's.
    assert abs(learnt["error"]) < 0.2


def test_claims_say_what_was_found(metrics):
    claims = {claim["claim"]: claim["holds"] for claim in metrics["claims"]}
    assert claims["linear σ=.1, K=1 ψ: ESS ≥ .98"]
    assert not any("S&P" in claim for claim in claims)


# Pareto tails of so few draws are wide.
@pytest.mark.filterwarnings("ignore:Estimated shape parameter of Pareto distribution")
def test_draws_go_to_arviz(folder):
    container = arviz.from_netcdf(folder / "posterior.nc")
    states = next(iter(container.posterior.data_vars.values()))
    assert states.dims[:2] == ("chain", "draw")
    assert states.sizes["chain"] == 4
    assert np.isfinite(arviz.summary(container)["mean"]).all()


@pytest.mark.parametrize("figure", ["linear_01", "kl_traces"])
def test_figures_are_drawn(folder, figure):
    assert (folder / f"{figure}.png").stat().st_size > 1000


@pytest.mark.parametrize(
    ("name", "wrong", "message"),
    [
        ("divergence", "kullback", "divergence.*kullback"),
        ("cases", "lorenz", r"cases must be among .*S&P 500.*, got \['lorenz'\]"),
    ],
)
def test_bad_input_is_named(name, wrong, message):
    with pytest.raises(ValueError, match=message):
        options_of("adaptive_particle_filter")(**{name: (wrong,)})
