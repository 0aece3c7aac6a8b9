"""JAX cases at a tiny size: contestants agree and are timed."""

import pytest

pytest.importorskip("ott")

from benchmarks import numpyro_cases, transport_jax
from benchmarks.cases import run_case
from benchmarks.results import rows

# What is slow is XLA, a few seconds a contestant.
FAST = ("numpyro/small/1", "numpyro/vae/16", "jax/sliced/20+20x2/8")
CASES = [
    pytest.param(case, id=case.name, marks=() if case.name in FAST else pytest.mark.slow)
    for case in [*numpyro_cases.cases(quick=True), *transport_jax.cases(quick=True)]
]


@pytest.mark.parametrize("case", CASES)
def test_contestants_agree_and_are_timed(case):
    record = run_case(case, rounds=1, block_seconds=0.0)
    assert record["error"] is None, record["traceback"]
    assert record["agreement"]
    assert len(rows(record)) == len(record["comparisons"]) > 0
