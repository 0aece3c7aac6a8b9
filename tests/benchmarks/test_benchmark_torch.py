"""Every torch case at a tiny size: contestants agree and are timed."""

import functools

import pytest

pytest.importorskip("geomloss")
pytest.importorskip("tensordict")
pytest.importorskip("transformers")

from benchmarks import (
    adversarial_torch,
    distillation_torch,
    pyro_cases,
    sequences_torch,
    sghmc_torch,
    transport_torch,
)
from benchmarks.cases import ResultsDiffer, run_case
from benchmarks.pyro_models import small
from benchmarks.results import rows

CASES = [
    *pyro_cases.cases(quick=True),
    *transport_torch.cases(quick=True),
    *sghmc_torch.cases(quick=True),
    *sequences_torch.cases(quick=True),
    *distillation_torch.cases(quick=True),
    *adversarial_torch.cases(quick=True),
]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_contestants_agree_and_are_timed(case):
    record = run_case(case, rounds=1, block_seconds=0.0)
    assert record["error"] is None, record["traceback"]
    assert record["agreement"]
    assert len(rows(record)) == len(record["comparisons"]) > 0


def test_another_objective_is_not_timed(monkeypatch):
    wrong = functools.partial(pyro_cases.RenyiELBO, pyro_cases.RENYI_ORDER)
    monkeypatch.setattr(pyro_cases, "Trace_ELBO", wrong)
    with pytest.raises(ResultsDiffer, match="reverse_kl: loss"):
        pyro_cases.prepare(small, 16)


def test_another_divergence_is_no_reinforce(monkeypatch):
    other = functools.partial(_other_divergence, sequences_torch.FDPG)
    monkeypatch.setattr(sequences_torch, "FDPG", other)
    with pytest.raises(ResultsDiffer, match="gradient"):
        sequences_torch.prepare_step(16)


def test_another_gradient_is_no_bare_loop(monkeypatch):
    """Forward KL's weights are not constant."""
    other = functools.partial(_renamed, distillation_torch.make_routine)
    monkeypatch.setattr(distillation_torch, "make_routine", other)
    with pytest.raises(ResultsDiffer, match="change of student"):
        distillation_torch.prepare((4,), 8, 16)


def _renamed(make, divergence, *parts):
    return make("forward_kl", *parts)


def _other_divergence(make, target, policy, divergence, **settings):
    return make(target, policy, "squared_hellinger", **settings)
