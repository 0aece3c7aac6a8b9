"""JAX cases at a tiny size: contestants agree and are timed."""

import pytest

pytest.importorskip("ott")
pytest.importorskip("blackjax")

from benchmarks import numpyro_cases, sghmc_effective, sghmc_jax, transport_jax
from benchmarks.cases import run_case
from benchmarks.results import rows

# What is slow is XLA, a few seconds a contestant.
FAST = (
    "numpyro/small/1",
    "jax/sliced/20+20x2/8",
    "jax/sghmc/logistic/5x1",
)
MODULES = (numpyro_cases, transport_jax, sghmc_jax, sghmc_effective)
CASES = [
    pytest.param(case, id=case.name, marks=() if case.name in FAST else pytest.mark.slow)
    for module in MODULES
    for case in module.cases(quick=True)
]


@pytest.mark.parametrize("case", CASES)
def test_contestants_agree_and_are_timed(case):
    record = run_case(case, rounds=1, block_seconds=0.0)
    assert record["error"] is None, record["traceback"]
    assert record["agreement"]
    assert len(rows(record)) == len(record["comparisons"]) > 0
