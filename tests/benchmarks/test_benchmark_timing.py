"""The harness: turns, ratios within a round, and the refusal to time what disagrees."""

import json
import math

import pytest

from benchmarks import worker
from benchmarks.__main__ import parse
from benchmarks.cases import Case, Comparison, Duel, ResultsDiffer, agree, run_case
from benchmarks.results import RESULTS, ratio, rows
from benchmarks.timing import interleave
from benchmarks.transport_problem import loosest, marginal_error


def test_every_contestant_has_its_turn_in_every_round():
    turns = []
    steps = {"a": lambda: turns.append("a"), "b": lambda: turns.append("b")}
    seconds = interleave(steps, rounds=3, block_seconds=0.0)
    assert {name: len(times) for name, times in seconds.items()} == {"a": 3, "b": 3}
    # After one call each to warm up, the order turns around.
    assert "".join(turns) == "ab" + "abbaab"


def test_rounds_must_be_positive():
    with pytest.raises(ValueError, match="rounds must be at least 1, got 0"):
        interleave({}, rounds=0, block_seconds=0.0)


def test_ratio_is_taken_within_a_round():
    # The machine became ten times slower in the last two of three rounds.
    assert ratio([1.0, 10.0, 10.0], [2.0, 20.0, 20.0]) == 0.5


def test_agreement_is_relative_to_the_largest_entry():
    assert agree("loss", [100.0, 0.001], [100.0, 0.0], 1e-4)["loss"] == pytest.approx(1e-5)
    for found in ([100.0, 1.0], [100.0, math.nan]):
        with pytest.raises(ResultsDiffer, match="loss: relative difference"):
            agree("loss", found, [100.0, 0.0], 1e-4)
    with pytest.raises(ResultsDiffer, match="shapes"):
        agree("loss", [1.0], [1.0, 2.0], 1.0)


def test_a_failed_case_is_a_record_without_rows():
    def prepare():
        return Duel({}, [], agree("loss", 1.0, 2.0, 1e-4))

    record = run_case(Case("some/case", prepare), rounds=1, block_seconds=0.0)
    assert record["error"].startswith("ResultsDiffer: loss: relative difference")
    assert rows(record) == []
    json.dumps(record)


def test_a_record_holds_median_minimum_and_verdict():
    def prepare():
        steps = {"ours": lambda: None, "theirs": lambda: sum(range(20_000))}
        return Duel(steps, [Comparison("ours", "theirs", 0.5), Comparison("theirs", "ours", 0.5)])

    record = run_case(Case("some/case", prepare), rounds=5, block_seconds=0.001)
    fast = record["contestants"]["ours"]
    assert len(fast["seconds"]) == 5
    assert fast["minimum"] == min(fast["seconds"]) <= fast["median"]
    assert [row.verdict for row in rows(record)] == ["met", "missed"]


def test_loosest_setting_within_the_error():
    assert loosest([0.3, 0.1, 0.01], lambda s: s / 2, 0.06) == (0.1, 0.05)
    assert loosest([0.3, 0.1], lambda s: s, 0.01) is None


def test_marginal_error_counts_both_sides():
    import numpy as np

    plan = np.array([[0.3, 0.3], [0.2, 0.2]])
    assert marginal_error(np.log(plan)) == pytest.approx(0.2)
    assert marginal_error(np.log(plan.T)) == pytest.approx(0.2)


def test_trial_runs_leave_the_committed_results_alone():
    assert parse([]).output == str(RESULTS)
    assert parse([]).rounds >= 5
    for trial in (["--quick"], ["--only", "pyro"], ["--quick", "--update"]):
        assert parse(trial).output != str(RESULTS)
    assert parse(["--only", "pyro", "--update"]).output == str(RESULTS)


def test_update_replaces_the_cases_that_are_run_and_keeps_the_others(tmp_path, monkeypatch):
    def prepare():
        return Duel({"a": lambda: None, "b": lambda: None}, [Comparison("a", "b", 1.0)])

    monkeypatch.setattr(worker, "cases_of", lambda *_, quick: [Case("new", prepare)])
    monkeypatch.setattr(worker, "_keep_quiet", lambda *_: None)
    old = [{"name": "kept", "error": "an error"}, {"name": "new", "error": "an error"}]
    (tmp_path / "torch.json").write_text(json.dumps({"cases": old}))
    arguments = ["--worker", "torch", "--rounds", "1", "--output", str(tmp_path)]
    worker.run(parse([*arguments, "--update"]))
    cases = json.loads((tmp_path / "torch.json").read_text())["cases"]
    assert [(case["name"], case["error"]) for case in cases] == [
        ("kept", "an error"),
        ("new", None),
    ]
    worker.run(parse(arguments))
    cases = json.loads((tmp_path / "torch.json").read_text())["cases"]
    assert [case["name"] for case in cases] == ["new"]
