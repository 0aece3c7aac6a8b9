"""Accuracy against reference draws: closed forms on Gaussians, NaN for constants, bad input."""

import numpy as np
import pytest
from scipy.stats import norm

from bayesdiv.diagnostics import compare_posteriors, to_arviz

# Quantiles in the middle of equal shares: moments and coverages are exact up to the grid.
GRID = norm.ppf((np.arange(20_000) + 0.5) / 20_000)


@pytest.mark.parametrize(("shift", "scale"), [(0.0, 1.0), (0.7, 0.5), (-1.2, 2.0)])
def test_one_gaussian_against_another(shift, scale):
    reference = 3.0 + 2.0 * GRID
    found = compare_posteriors({"z": 3.0 + 2.0 * (shift + scale * GRID)}, {"z": reference})
    assert np.isclose(found.mean_error["z"], shift, atol=1e-3)
    assert np.isclose(found.sd_ratio["z"], scale, rtol=1e-9)
    for level, coverage in ((0.5, found.coverage_50["z"]), (0.9, found.coverage_90["z"])):
        half = scale * norm.ppf(0.5 + level / 2)
        exact = norm.cdf(shift + half) - norm.cdf(shift - half)
        assert abs(coverage - exact) < 2e-4
    assert np.isclose(found.sliced_wasserstein, np.hypot(shift, scale - 1.0), atol=1e-3)


def test_sliced_distance_of_isotropic_gaussians():
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(2, 5_000, 3))
    found = compare_posteriors({"z": 0.8 * x + [1.0, 0.0, 0.0]}, {"z": y}, num_projections=500)
    exact = 1.0 / 3.0 + 0.2**2
    # θ₁² of a random direction in three dimensions has variance 4/45.
    directions = np.sqrt(4 / 45 / 500)
    assert abs(found.sliced_wasserstein**2 - exact) < 5 * (directions + 1 / np.sqrt(5_000))
    assert abs(found.typical_sd_ratio - 0.8) < 5 * 0.8 / np.sqrt(5_000)


def test_units_of_a_coordinate_do_not_matter():
    rng = np.random.default_rng(1)
    x, y = rng.normal(size=(2, 500, 2))
    units = np.array([1e-3, 1e4])
    plain = compare_posteriors({"z": x}, {"z": y})
    scaled = compare_posteriors({"z": x * units}, {"z": y * units})
    np.testing.assert_allclose(
        list(scaled.summary().values()), list(plain.summary().values()), rtol=1e-9
    )


def test_constant_coordinates_are_left_out():
    x, y = np.random.default_rng(2).normal(size=(2, 400, 2))
    with_zero = compare_posteriors({"z": x * [1.0, 0.0]}, {"z": y * [1.0, 0.0]})
    without = compare_posteriors({"z": x[:, :1]}, {"z": y[:, :1]})
    assert np.isnan(with_zero.sd_ratio["z"][1])
    assert np.isclose(with_zero.typical_sd_ratio, without.typical_sd_ratio, rtol=1e-12)
    assert np.isclose(with_zero.sliced_wasserstein, without.sliced_wasserstein, rtol=1e-9)


def test_arviz_objects_and_mappings_give_the_same():
    x, y = np.random.default_rng(3).normal(size=(2, 300, 2))
    from_mappings = compare_posteriors({"z": x}, {"z": y, "other": y})
    from_arviz = compare_posteriors(to_arviz({"z": x}), to_arviz({"z": y}).posterior)
    assert from_mappings.summary() == pytest.approx(from_arviz.summary(), rel=1e-12)
    dataset = from_arviz.to_dataset()
    np.testing.assert_array_equal(dataset["z"].sel(statistic="sd_ratio"), from_arviz.sd_ratio["z"])
    assert dataset.attrs["sliced_wasserstein"] == from_arviz.sliced_wasserstein


Z = np.arange(20.0)


@pytest.mark.parametrize(
    ("draws", "reference", "message"),
    [
        ({"a": Z}, {"b": Z}, r"must share a variable, got \['a'\] and \['b'\]"),
        ({"z": Z}, {"z": Z[:, None]}, r"'z' must have the same shape in both, got \(\)"),
        (
            {"z": np.where(Z > 5, np.nan, Z)},
            {"z": Z},
            "'z' must be finite, got NaN or infinity in draws",
        ),
        ({"z": Z}, {"z": 0.0 * Z}, "reference must vary in some coordinate"),
        ({"z": Z, "w": Z[1:]}, {"z": Z}, "draws must map variables to arrays with one common"),
    ],
)
def test_what_cannot_be_compared_is_refused(draws, reference, message):
    with pytest.raises(ValueError, match=message):
        compare_posteriors(draws, reference)


def test_unknown_variables_and_types_are_refused():
    with pytest.raises(ValueError, match="variables must be in draws and reference, got 'w'"):
        compare_posteriors({"z": Z}, {"z": Z}, variables=["w"])
    with pytest.raises(TypeError, match="reference must be an ArviZ container .* got list"):
        compare_posteriors({"z": Z}, [Z])
    with pytest.raises(ValueError, match="draws must have a posterior group"):
        compare_posteriors(_without_posterior(), {"z": Z})


def _without_posterior():
    import xarray

    return xarray.DataTree.from_dict({"/prior": xarray.Dataset()})
