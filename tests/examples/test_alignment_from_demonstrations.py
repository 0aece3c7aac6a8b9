"""The example of alignment from demonstrations end to end, at its smallest."""

import json

import arviz
import numpy as np
import pytest
from example_scripts import example, options_of

run = example("alignment_from_demonstrations")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """One run of the script as a user starts it."""
    folder = tmp_path_factory.mktemp("results")
    finished = run("--output", str(folder), "--processes", "0", "--divergence", "reverse_kl")
    assert finished.returncode == 0, finished.stderr
    return folder


@pytest.fixture(scope="module")
def rows(folder):
    metrics = json.loads((folder / "metrics.json").read_text())
    return {row["row"]: row for row in metrics["rows"]}


def test_every_kind_of_reward_has_its_row(rows):
    kinds = {f"{kind} gru" for kind in ("init_sft", "init_demo", "sft_demo", "preference")}
    anchors = {"judge", "log_ratio", "likelihood", "longest", "random"}
    heads = {"init_sft posterior mean", "init_sft lower bound"}
    assert set(rows) == kinds | anchors | heads | {"reference", "tilt reverse_kl"}


def test_what_must_hold_at_any_size(rows):
    """The judge's own choice is best and rises with N; random choice does not; KL has a bound."""
    names = [name for name in rows["judge"] if name.startswith("golden_")]
    judge = [rows["judge"][name][0] for name in names]
    assert (np.diff(judge) > 0.0).all()
    for row in rows.values():
        if "win_rate" not in row:
            continue
        assert row[names[0]][0] == pytest.approx(judge[0], abs=1e-4)
        assert row[names[-1]][0] <= judge[-1] + 1e-4
        assert row["kl"][0] <= row["kl_bound"][0] + 1e-6
    assert abs(rows["random"][names[-1]][0] - judge[0]) < 0.6
    assert rows["preference gru"][names[-1]][0] > judge[0] + 1.0
    assert rows["longest"]["length"][0] > rows["random"]["length"][0] + 1.0


def test_the_student_is_between_base_and_demonstrations(rows):
    reference = rows["reference"]
    assert reference["golden_initial"][0] + 1.0 < reference["golden_student"][0]
    assert 0.7 < reference["judge_accuracy"][0] < 0.95
    assert rows["tilt reverse_kl"]["golden"][0] > reference["golden_student"][0]


def test_the_reward_head_goes_to_arviz(folder):
    container = arviz.from_netcdf(folder / "reward_head.nc")
    assert container.posterior["weights"].dims == ("chain", "draw", "feature")
    assert container.sample_stats["diverging"].shape == container.posterior["intercept"].shape
    assert (folder / "reward_head.nc").stat().st_size < 500_000


@pytest.mark.parametrize("figure", ["best_of_n", "accuracy_and_use"])
def test_figures_are_drawn(folder, figure):
    assert (folder / f"{figure}.png").stat().st_size > 1000


def test_unknown_divergence_is_named():
    with pytest.raises(
        ValueError, match="divergence must be among .*jensen_shannon.*, got .*kullback"
    ):
        options_of("alignment_from_demonstrations")(divergence=("kullback",))
