"""The Bayesian autoencoder's example end to end, at its smallest."""

import json

import arviz
import numpy as np
import pytest
from example_scripts import example, options_of

run = example("bayesian_autoencoder")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """One run of the script as a user starts it."""
    folder = tmp_path_factory.mktemp("results")
    finished = run(
        *("--output", str(folder), "--processes", "1"),
        *("--divergence", "sliced_wasserstein", "--rows", "autoencoder", "N(0, 1/fan-in)"),
    )
    assert finished.returncode == 0, finished.stderr
    return folder


def test_rows_have_their_metrics(folder):
    metrics = json.loads((folder / "metrics.json").read_text())
    rows = {row["row"]: row for row in metrics["rows"]}
    assert set(rows) == {"autoencoder", "N(0, 1/fan-in)", "sliced_wasserstein"}
    for row in rows.values():
        assert all(np.isfinite(row[name][0]) for name in ("proper", "plug_in", "frechet"))
        assert 0.0 < row["squared_error"][0] < 0.25
    ordinary = rows["autoencoder"]
    assert ordinary["proper"] == pytest.approx(ordinary["plug_in"])
    tuned = rows["sliced_wasserstein"]
    assert tuned["distance_after"][0] < tuned["distance_before"][0]
    # Centred on weights that reconstruct other digits, it predicts them before it is fitted.
    assert tuned["distance_before"][0] < 0.7 * rows["N(0, 1/fan-in)"]["distance_before"][0]


# Twenty draws are too few to tell Pareto tails from.
@pytest.mark.filterwarnings("ignore:Estimated shape parameter of Pareto distribution")
def test_posterior_goes_to_arviz(folder):
    posterior = arviz.from_netcdf(folder / "posterior.nc")
    assert posterior.posterior["prediction"].dims[:3] == ("chain", "draw", "probe")
    assert (
        posterior.sample_stats["kinetic_temperature"].shape
        == posterior.log_likelihood["observation"].shape[:2]
    )
    assert "prior_predictive" in posterior.groups()
    assert np.isfinite(arviz.loo(posterior, var_name="observation").elpd_loo)


@pytest.mark.parametrize("figure", ["prior_predictive", "reconstructions", "generated"])
def test_figures_are_drawn(folder, figure):
    assert (folder / f"{figure}.png").stat().st_size > 1000


def test_unknown_divergence_is_named():
    with pytest.raises(ValueError, match="divergence must be among .*sinkhorn.*, got .*kullback"):
        options_of("bayesian_autoencoder")(divergence=("kullback",))
