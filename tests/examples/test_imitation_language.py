"""Imitation of an expert of English by a shortened pretrained model, a few steps on a CPU."""

import json
import math

import pytest
from example_scripts import example, needs_english


@pytest.mark.slow
@needs_english
def test_a_shortened_model_imitates_a_tilted_one(tmp_path):
    run = example("sft_as_inverse_rl", "quick-gpu")
    finished = run("--processes", "0", "--output", str(tmp_path), "--divergence", "jensen_shannon")
    assert finished.returncode == 0, finished.stderr
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    found = {(row["group"], row["row"]): row for row in metrics["rows"]}
    expected = {
        ("start", "student"),
        ("many", "occupancy_sft"),
        ("oracle", "oracle jensen_shannon"),
    }
    expected |= {(g, row) for g in ("many", "few") for row in ("sft", "adversarial jensen_shannon")}
    assert set(found) == expected
    uniform = 8 * math.log(49_152)
    # The expert knows English; six layers of thirty have yet to find what they can do without.
    assert 0.0 < metrics["expert_entropy"][0] < 0.8 * uniform
    for row in found.values():
        assert row["forward_kl"][0] > 0.0
        assert 0.0 <= row["alignment"][0] <= 1.0
    start = found["start", "student"]["forward_kl"][0]
    assert found["many", "sft"]["forward_kl"][0] < start
