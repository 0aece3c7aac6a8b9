"""Weighted draws as ArviZ objects of both generations; what is refused."""

import numpy as np
import pytest
import torch
import xarray

from bayesdiv.diagnostics import _container, psis, to_arviz
from bayesdiv.diagnostics._container import posterior_draws, uses_inference_data
from bayesdiv.diagnostics._groups import Groups, stack_chains


@pytest.fixture(params=["installed", "DataTree"])
def generation(request, monkeypatch):
    """What is installed, and the DataTree of 1.x, which needs xarray alone."""
    if request.param == "DataTree":
        monkeypatch.setattr(_container, "uses_inference_data", lambda: False)
    return "InferenceData" if _container.uses_inference_data() else "DataTree"


def weighted(num_chains=2):
    rng = np.random.default_rng(0)
    shape = (num_chains, 40)
    return {"z": rng.normal(size=(*shape, 3)), "s": rng.normal(size=shape)}, rng.normal(size=shape)


def test_groups_dims_and_attributes(generation):
    draws, log_weights = weighted()
    found = to_arviz(
        draws,
        log_weights=log_weights,
        objective="jensen_shannon",
        losses=[torch.tensor(3.0), 2.0],
        dims={"z": ["city"]},
        coords={"city": ["a", "b", "c"]},
    )
    assert type(found).__name__ == generation
    assert found.posterior["z"].dims == ("chain", "draw", "city")
    assert list(found.posterior["city"].values) == ["a", "b", "c"]
    assert found.posterior["draw"].dtype == np.int64
    np.testing.assert_array_equal(found.posterior["z"], draws["z"])
    np.testing.assert_array_equal(found["sample_stats"]["log_weight"], log_weights)
    for attrs in (found.attrs, found.posterior.attrs):
        assert attrs == {"objective": "jensen_shannon", "loss_history": [3.0, 2.0]}
    np.testing.assert_array_equal(posterior_draws(found)["s"], draws["s"].ravel())


def test_netcdf_round_trip(generation, tmp_path):
    draws, log_weights = weighted()
    found = to_arviz(draws, log_weights=log_weights, losses=np.arange(4.0))
    path = tmp_path / "draws.nc"
    found.to_netcdf(path)
    read = xarray.open_dataset(path, group="posterior")
    np.testing.assert_array_equal(read["z"], draws["z"])
    np.testing.assert_array_equal(read.attrs["loss_history"], np.arange(4.0))


def test_one_chain_may_leave_its_axis_out():
    draws, log_weights = weighted(1)
    flat = {name: value[0] for name, value in draws.items()}
    found = to_arviz(flat, log_weights=log_weights[0])
    np.testing.assert_array_equal(found.posterior["z"], draws["z"])
    unweighted = to_arviz(flat)
    assert unweighted.posterior.sizes["chain"] == 1
    assert not hasattr(unweighted, "sample_stats")


def test_resampling_works_chain_by_chain():
    draws, log_weights = weighted()
    draws["row"] = np.arange(80).reshape(2, 40)
    found = to_arviz(draws, log_weights=log_weights, resample=True, seed=0)
    rows = found.posterior["row"].values
    assert rows[0].max() < 40 <= rows[1].min()
    expected = [psis(chain) for chain in log_weights]
    counts = np.stack([np.bincount(rows[c] - 40 * c, minlength=40) for c in range(2)])
    assert np.all(np.abs(counts - 40 * np.stack([e.weights for e in expected])) < 1.0)
    np.testing.assert_array_equal(found.posterior["z"].values, draws["z"].reshape(80, 3)[rows])
    assert found.attrs["pareto_k"] == [e.k for e in expected]
    assert not hasattr(found, "sample_stats")


def test_plate_names_give_way_where_they_clash():
    values = {"a": np.zeros((1, 5, 2)), "b": np.zeros((1, 5, 3)), "c": np.zeros((1, 5, 4))}
    dims = {"a": ["plate"], "b": ["plate"], "c": ["a"]}
    found = _container.build_container(Groups({"posterior": values}, dims))
    assert [found.posterior[name].dims[-1] for name in "abc"] == ["a_dim_0", "b_dim_0", "c_dim_0"]


def test_generation_follows_the_installed_release(monkeypatch):
    for release, old in (("0.23.4", True), ("1.3.0", False)):
        monkeypatch.setattr(_container.metadata, "version", lambda _, release=release: release)
        assert uses_inference_data() is old

    def missing(name):
        raise _container.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(_container.metadata, "version", missing)
    assert uses_inference_data() is False


@pytest.mark.parametrize(
    ("draws", "log_weights", "message"),
    [
        ({}, None, "at least one variable"),
        (
            {"z": np.zeros(30)},
            np.zeros((1, 2, 3)),
            r"\(draw,\) or \(chain, draw\), got \(1, 2, 3\)",
        ),
        ({"z": np.zeros(30)}, np.zeros(29), r"draws\['z'\] must have leading shape \(29,\)"),
        ({"z": np.zeros(())}, None, r"leading shape \(draw,\), got \(\)"),
    ],
)
def test_draws_that_do_not_fit_are_refused(draws, log_weights, message):
    with pytest.raises(ValueError, match=message):
        to_arviz(draws, log_weights=log_weights)


def test_names_and_labels_that_do_not_fit_are_refused():
    draws, _ = weighted()
    flat = {name: value[0] for name, value in draws.items()}
    with pytest.raises(ValueError, match=r"dims\['s'\] must name at most 0 axes"):
        to_arviz(flat, dims={"s": ["city"]})
    with pytest.raises(ValueError, match=r"coords\['city'\] must have 3 labels"):
        to_arviz(flat, dims={"z": ["city"]}, coords={"city": [1, 2]})
    with pytest.raises(ValueError, match="resample=True needs log_weights"):
        to_arviz(flat, resample=True)


def test_runs_of_different_length_are_no_chains():
    short, long = (Groups({"posterior": {"z": np.zeros((1, n))}}) for n in (3, 4))
    with pytest.raises(ValueError, match=r"posterior\['z'\] has shapes \[\(3,\), \(4,\)\]"):
        stack_chains([short, long])


def test_what_is_no_source_is_refused():
    with pytest.raises(TypeError, match="source must be a guide, .* got float"):
        to_arviz(3.0, print)
    with pytest.raises(TypeError, match="source must be a guide"):
        to_arviz([], print)
    with pytest.raises(ValueError, match=r"model must be the callable .* got None"):
        to_arviz(print)
    with pytest.raises(ValueError, match="num_draws must be an integer of at least 1, got 0"):
        to_arviz(print, print, num_draws=0)
    with pytest.raises(ValueError, match="backend must be 'pyro' or 'numpyro', got 'stan'"):
        to_arviz(print, print, backend="stan")

    class Sampler:
        def get_samples(self):
            return {}

        def run(self):
            return None

    with pytest.raises(TypeError, match=r"MCMC of Pyro or NumPyro, got .*Sampler"):
        to_arviz(Sampler())
