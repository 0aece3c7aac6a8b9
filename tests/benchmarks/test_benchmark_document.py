"""The page and the table say what the results say."""

import copy
import io

import pytest
from rich.console import Console

from benchmarks.document import write
from benchmarks.reasons import UNEXPLAINED
from benchmarks.report import duration, show


def timed(seconds):
    return {"median": seconds, "minimum": seconds, "seconds": [seconds] * 5}


REPORT = {
    "environment": {
        "framework": "torch",
        "threads": 1,
        "processor": "a processor",
        "cores": 2,
        "load": 0.1,
        "python": "3.11",
        "versions": {"torch": "2.13.0"},
    },
    "rounds": 5,
    "quick": False,
    "cases": [
        {
            "name": "pyro/some/16",
            "error": None,
            "contestants": {
                "Trace_ELBO": timed(2e-3),
                "reverse_kl": timed(1e-3),
                "forward_kl": timed(3e-3),
            },
            "comparisons": [
                {"ours": "reverse_kl", "theirs": "Trace_ELBO", "target": 1.0},
                {"ours": "forward_kl", "theirs": "reverse_kl", "target": 1.05},
            ],
            "agreement": {},
            "notes": {},
        },
        {"name": "torch/sliced/broken", "error": "ResultsDiffer: value"},
    ],
}


def test_page_has_every_ratio_its_verdict_and_what_failed(tmp_path):
    page = tmp_path / "page.md"
    write({"torch": REPORT}, page)
    text = page.read_text(encoding="utf-8")
    met = "| pyro/some/16 | reverse_kl | Trace_ELBO | 1 ms | 2 ms | 0.50 | 1.00 | met |"
    assert met in text
    assert "| 3 ms | 1 ms | **3.00** | 1.05 | missed |" in text
    assert f"pyro/some/16 forward_kl (3.00): {UNEXPLAINED}" in text
    assert "`torch/sliced/broken`: ResultsDiffer: value" in text
    assert "torch 2.13.0" in text


def test_summary_tells_filters_with_different_targets_apart(tmp_path):
    report = copy.deepcopy(REPORT)
    report["cases"] = [
        {
            "name": f"jax/filters/{kind}/growth/10000x100",
            "error": None,
            "contestants": {kind: timed(seconds), "particles": timed(1.0)},
            "comparisons": [{"ours": kind, "theirs": "particles", "target": target}],
            "agreement": {},
            "notes": {"particles": "0.4"},
        }
        for kind, seconds, target in (("bootstrap", 0.2, 0.25), ("auxiliary", 0.2, 0.125))
    ]
    page = tmp_path / "page.md"
    write({"jax": report}, page)
    text = page.read_text(encoding="utf-8")
    assert "| Bootstrap filter ≤ 0.25 of `particles`, from 10⁴ particles | 1 | 1 | 0 | 0 |" in text
    assert "| Guided and auxiliary filters ≤ 0.125 of `particles` | 1 | 0 | 0 | 1 | 0.20 |" in text
    assert "## Particle filters" in text


def test_page_refuses_trial_results(tmp_path):
    report = copy.deepcopy(REPORT)
    report["quick"] = True
    with pytest.raises(ValueError, match="results of torch come from --quick"):
        write({"torch": report}, tmp_path / "page.md")
    with pytest.raises(ValueError, match="there are no results"):
        write({}, tmp_path / "page.md")


def test_table_shows_ratios_and_failures():
    out = io.StringIO()
    show({"torch": REPORT}, Console(file=out))
    text = out.getvalue()
    assert "pyro/some/16" in text
    assert "0.50" in text
    assert "missed" in text
    assert "torch/sliced/broken: ResultsDiffer: value" in text


@pytest.mark.parametrize(
    ("seconds", "shown"), [(2.5, "2.5 s"), (0.00123, "1.23 ms"), (4.56e-5, "45.6 µs")]
)
def test_duration_has_three_digits(seconds, shown):
    assert duration(seconds) == shown
