"""The simulator's case at a tiny size."""

import pytest

from benchmarks import voice
from benchmarks.cases import ResultsDiffer, run_case
from benchmarks.results import rows


@pytest.mark.parametrize("case", voice.cases(quick=True), ids=lambda case: case.name)
def test_voices_are_checked_and_timed(case):
    record = run_case(case, rounds=1, block_seconds=0.0)
    assert record["error"] is None, record["traceback"]
    assert record["agreement"]
    (row,) = rows(record)
    assert row.ratio < 1.0


def test_a_voice_without_its_closures_is_not_timed(monkeypatch):
    def silent(seed, count, settings):
        return [each._replace(closures=each.closures + 50.0) for each in simulate(seed, count)]

    simulate = voice.simulate_voices
    monkeypatch.setattr(voice, "simulate_voices", silent)
    with pytest.raises(ResultsDiffer, match="of closures are not in the EGG"):
        voice.prepare_simulator(1)
