"""``fit`` with its defaults on real tables with raw predictors, against NUTS."""

from functools import lru_cache

import pytest

from benchmarks.fit_accuracy.reference import Reference, reference_of
from benchmarks.fit_accuracy.run import measure
from benchmarks.fit_accuracy.tables import TABLES

WITHIN_THE_BAR = [
    "diabetes",
    "house_prices",
    "labour_force",
    "breast_cancer",
    "arrests",
    "sunspots",
    "violent_crime_centred",
]


@lru_cache
def _reference(name: str) -> Reference:
    reference = reference_of(TABLES[name]())
    assert reference.worst_rhat < 1.01
    assert reference.least_ess > 1000
    return reference


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("host", ["pyro", "numpyro"])
@pytest.mark.parametrize("name", WITHIN_THE_BAR)
def test_full_rank_fit_reaches_the_posterior(name, host, seed):
    row = measure(TABLES[name](), _reference(name), host, seed)
    assert row["converged"]
    assert row["mean_error"] < 0.1
    assert row["least_sd_ratio"] > 0.9
    assert row["largest_sd_ratio"] < 1.1


@pytest.mark.slow
@pytest.mark.parametrize("host", ["pyro", "numpyro"])
def test_no_normal_follows_a_non_centred_hierarchy(host):
    """The sd of the spread is below 1/√2 of the posterior's, as the page derives."""
    row = measure(TABLES["violent_crime"](), _reference("violent_crime"), host, seed=0)
    assert row["least_sd_ratio"] < 2**-0.5
    assert row["resampled"]["least_sd_ratio"] > row["least_sd_ratio"]
