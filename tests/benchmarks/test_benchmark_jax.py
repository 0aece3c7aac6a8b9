"""JAX cases at a tiny size: contestants agree and are timed."""

import pytest

pytest.importorskip("ott")
pytest.importorskip("blackjax")
pytest.importorskip("cuthbert")
pytest.importorskip("smcx")

from benchmarks import (
    filters_adaptive_jax,
    filters_jax,
    numpyro_cases,
    particles_client,
    sghmc_effective,
    sghmc_jax,
    shards_jax,
    transport_jax,
)
from benchmarks.cases import ResultsDiffer, run_case
from benchmarks.results import rows

# What is slow is XLA, a few seconds a contestant.
FAST = (
    "numpyro/small/1",
    "jax/sliced/20+20x2/8",
    "jax/sghmc/logistic/5x1",
    "jax/filters/bootstrap/growth/200x10",
    "jax/filters/auxiliary/volatility/200x10",
)
MODULES = (
    numpyro_cases,
    transport_jax,
    sghmc_jax,
    sghmc_effective,
    filters_jax,
    filters_adaptive_jax,
    shards_jax,
)
CASES = [
    pytest.param(case, id=case.name, marks=() if case.name in FAST else pytest.mark.slow)
    for module in MODULES
    for case in module.cases(quick=True)
]


@pytest.fixture(autouse=True)
def _without_particles(monkeypatch):
    # It would be installed into an environment of its own.
    absent = particles_client.PeerAbsent("not in tests")
    monkeypatch.setattr(particles_client, "_opened", lambda: absent)


@pytest.mark.parametrize("case", CASES)
def test_contestants_agree_and_are_timed(case):
    record = run_case(case, rounds=1, block_seconds=0.0)
    assert record["error"] is None, record["traceback"]
    assert record["agreement"]
    assert len(rows(record)) == len(record["comparisons"]) > 0


def test_a_reduction_that_predicts_worse_is_refused():
    agreement = shards_jax.likelihoods_agree(-2.871, -2.874)
    assert agreement == {"test log-likelihood, nats a row": pytest.approx(0.003)}
    for found in (-2.88, float("nan")):
        with pytest.raises(ResultsDiffer, match="test log-likelihood: .* tolerance 0.005"):
            shards_jax.likelihoods_agree(found, -2.874)
