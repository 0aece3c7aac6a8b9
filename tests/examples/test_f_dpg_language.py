"""The f-DPG example on a pretrained model of English, a few steps on a CPU."""

import json
import math

import pytest
from example_scripts import example, needs_english


@pytest.mark.slow
@needs_english
def test_a_pretrained_model_takes_steps(tmp_path):
    run = example("f_dpg", "quick-gpu")
    finished = run("--processes", "0", "--output", str(tmp_path))
    assert finished.returncode == 0, finished.stderr
    start, trained = json.loads((tmp_path / "metrics.json").read_text())["rows"]["sentiment"]
    # A model of this size knows some English: fewer nats than uniform tokens would take.
    assert 0.0 < start["entropy"][0] < 0.8 * 10 * math.log(49_152)
    assert trained["base_kl"][0] != start["base_kl"][0]
    assert 0.0 <= trained["alignment"][0] <= 1.0
