"""From the seconds of a run to ratios and verdicts, without timing anything."""

from __future__ import annotations

import json
import statistics
from pathlib import Path
from typing import Any, NamedTuple

FRAMEWORKS = ("torch", "jax")
RESULTS = Path(__file__).parent / "results"
# Two runs of one program differ by this much even on a quiet machine.
NOISE = 0.02


class Row(NamedTuple):
    """One comparison: seconds a call, ratios of ours to theirs, and the target."""

    case: str
    ours: str
    theirs: str
    our_median: float
    their_median: float
    ratio: float
    ratio_of_minima: float
    target: float | None

    @property
    def verdict(self) -> str:
        """``"met"``, ``"within noise"``, ``"missed"``, or nothing where there is no target."""
        if self.target is None:
            return ""
        if self.ratio <= self.target:
            return "met"
        return "within noise" if self.ratio <= self.target * (1 + NOISE) else "missed"


def ratio(ours: list[float], theirs: list[float]) -> float:
    """Median over rounds of the ratio within a round, which load on the machine leaves alone."""
    return statistics.median(a / b for a, b in zip(ours, theirs, strict=True))


def rows(record: dict[str, Any]) -> list[Row]:
    """The comparisons of one case; none where it failed."""
    if record["error"] is not None:
        return []
    timed = record["contestants"]
    found = []
    for comparison in record["comparisons"]:
        ours, theirs = timed[comparison["ours"]], timed[comparison["theirs"]]
        found.append(
            Row(
                record["name"],
                comparison["ours"],
                comparison["theirs"],
                ours["median"],
                theirs["median"],
                ratio(ours["seconds"], theirs["seconds"]),
                ours["minimum"] / theirs["minimum"],
                comparison["target"],
            )
        )
    return found


def failures(report: dict[str, Any]) -> list[dict[str, Any]]:
    """The cases that did not run, or whose contestants disagree."""
    return [record for record in report["cases"] if record["error"] is not None]


def path_of(folder: Path, framework: str) -> Path:
    """Where the results of a framework's process lie."""
    return folder / f"{framework}.json"


def load(folder: Path) -> dict[str, dict[str, Any]]:
    """The reports in ``folder`` by framework."""
    paths = {framework: path_of(folder, framework) for framework in FRAMEWORKS}
    return {
        framework: json.loads(path.read_text(encoding="utf-8"))
        for framework, path in paths.items()
        if path.exists()
    }
