"""Alignment from demonstrations on a pretrained model of English, a few steps on a CPU."""

import json
import math

import pytest
from example_scripts import example, needs_english

from bayesdiv.data import load_film_reviews


@pytest.mark.slow
@needs_english
def test_a_pretrained_model_is_tuned_on_reviews(tmp_path):
    try:
        load_film_reviews()
    except FileNotFoundError as error:
        pytest.skip(str(error))
    run = example("alignment_from_demonstrations", "quick-gpu")
    finished = run("--processes", "0", "--output", str(tmp_path), "--divergence", "reverse_kl")
    assert finished.returncode == 0, finished.stderr
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    rows = {row["row"]: row for row in metrics["rows"]}
    # People and VADER agree on more reviews than chance, and reviews that people like score so.
    assert rows["reference"]["judge_accuracy"][0] > 0.55
    assert rows["reference"]["golden_demonstrations"][0] > 0.1
    judge = [rows["judge"][f"golden_{count}"][0] for count in (1, 2, 4)]
    assert judge[0] <= judge[1] <= judge[2]
    for row in rows.values():
        if "win_rate" in row:
            assert row["golden_1"][0] == pytest.approx(judge[0], abs=1e-4)
            assert row["golden_4"][0] <= judge[2] + 1e-4
    # Two steps move the policy, and leave it knowing some English: fewer nats than uniform tokens.
    assert rows["tilt reverse_kl"]["kl"][0] != 0.0
    assert 0.0 < rows["tilt reverse_kl"]["entropy"][0] < 0.8 * 8 * math.log(49_152)
