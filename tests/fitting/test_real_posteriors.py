"""``fit`` with its defaults on real tables with raw predictors, against NUTS."""

from functools import lru_cache

import pytest

from benchmarks.fit_accuracy import models_numpyro
from benchmarks.fit_accuracy.reference import Reference, nuts_reference
from benchmarks.fit_accuracy.run import measure
from benchmarks.fit_accuracy.tables import TABLES

WITHIN_THE_BAR = [
    "diabetes",
    "house_prices",
    "labour_force",
    "breast_cancer",
    "arrests",
    "sunspots",
]


@lru_cache
def _reference(name: str) -> Reference:
    table = TABLES[name]()
    reference = nuts_reference(getattr(models_numpyro, table.model), table.arguments)
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
