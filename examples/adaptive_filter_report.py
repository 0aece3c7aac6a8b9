"""Table, pass marks, figures and files of the adaptive particle filter's example."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from adaptive_filter_experiment import Outcome
from rich.console import Console
from rich.table import Table


def summarise(outcomes: Sequence[Outcome]) -> list[dict[str, Any]]:
    """One entry a row: means over runs, and the spread of the log-evidence with its own error."""
    found = []
    for outcome in outcomes:
        runs = outcome.runs
        evidence, count = runs["log_evidence"], len(runs["log_evidence"])
        sd = float(evidence.std(ddof=1))
        cpu = float(runs["cpu_ms"][0])
        entry: dict[str, Any] = {
            "case": outcome.row.case,
            "row": outcome.row.name,
            "divergence": outcome.row.divergence,
            "particles": outcome.row.num_particles,
            "runs": count,
            **{name: _round(runs[name].mean()) for name in ("ess", "min_ess", "kl", "csd")},
            "log_evidence": _round(evidence.mean(), 7),
            "sd": _round(sd),
            # Of normal draws; heavy tails make it worse.
            "sd_error": _round(sd / math.sqrt(2 * (count - 1)), 2),
            "cpu_ms": _round(cpu),
            "compile_s": _round(runs["compile_s"][0], 2),
            "variance_times_cpu": _round(sd**2 * cpu / 1e3),
        }
        for name in ("error", "adapted"):
            if name in runs:
                entry[name] = _round(runs[name].mean())
        found.append(entry)
    for entry in found:
        plain = [o for o in found if o["case"] == entry["case"] and "bootstrap" in o["row"]]
        # The best that plain filters do, of any number of particles: at equal CPU they compete.
        best = min((o["variance_times_cpu"] for o in plain), default=math.nan)
        entry["gain"] = _round(best / entry["variance_times_cpu"], 3)
    return found


def claims(
    entries: Sequence[dict[str, Any]], ratio: tuple[float, float] | None, costs: dict[str, Any]
) -> list[dict[str, Any]]:
    """What should hold, what was measured, and whether it does; only of rows that were run."""
    by_row = {(entry["case"], entry["row"]): entry for entry in entries}
    found: list[dict[str, Any]] = []

    def claim(text: str, case: str, row: str, metric: str, holds: Any) -> None:
        entry = by_row.get((case, row))
        if entry is not None and metric in entry:
            found.append({"claim": text, "measured": entry[metric], "holds": holds(entry[metric])})

    sharp = ("linear 0.1", "K=1 ψ")
    claim("linear σ=.1, K=1 ψ: ESS ≥ .98", *sharp, "ess", lambda x: x >= 0.98)
    claim(
        "linear σ=.1, K=1 ψ: |mean log Ẑ − Kalman| < .05", *sharp, "error", lambda x: abs(x) < 0.05
    )
    claim("growth, K=2: KL ≤ .45", "growth 1", "K=2", "kl", lambda x: x <= 0.45)
    claim("growth, K=2 ψ: KL ≤ .16", "growth 1", "K=2 ψ", "kl", lambda x: x <= 0.16)
    claim("tobit σ=.3, K=1: ESS ≥ .86", "tobit 0.3", "K=1", "ess", lambda x: x >= 0.86)
    claim("ring, K=8 guarded: sd ≤ .6", "ring", "K=8 ψ guarded", "sd", lambda x: x <= 0.6)
    claim("ring, bootstrap: sd ≥ 3", "ring", "bootstrap", "sd", lambda x: x >= 3)
    claim("S&P 500, K=1 ψ: smallest ESS ≥ .6", "S&P 500", "K=1 ψ", "min_ess", lambda x: x >= 0.6)
    for case, count in (("growth 1", 1), ("growth 1", 2), ("tobit 0.3", 1)):
        rows = [
            by_row.get((case, f"K={count} ψ 2N {name}"))
            for name in ("squared_hellinger", "forward_kl", "pearson_chi2")
        ]
        if None in rows:
            continue
        for metric, best, text in (
            ("kl", min, "KL lowest at α = 1"),
            ("ess", max, "ESS highest at α = 2"),
            ("min_ess", max, "smallest ESS highest at α = 2"),
        ):
            values = [entry[metric] for entry in rows if entry]
            wanted = 1 if metric == "kl" else 2
            found.append(
                {
                    "claim": f"{case}, K={count} ψ, α = ½, 1, 2: {text}",
                    "measured": values,
                    "holds": values[wanted] == best(values),
                }
            )
    if ratio is not None:
        mean, error = ratio
        found.append(
            {
                "claim": "Ẑ is unbiased: |mean Ẑ/Z − 1| < 4 standard errors",
                "measured": [_round(mean, 5), _round(error, 2)],
                "holds": abs(mean - 1) < 4 * error,
            }
        )
    for name, entry in costs.items():
        if name.startswith("K"):
            found.append(
                {
                    "claim": f"cost a particle does not grow with N ({name}): slope ≤ .1",
                    "measured": entry["slope"],
                    "holds": entry["slope"] <= 0.1,
                }
            )
    return found


def tables(entries: Sequence[dict[str, Any]], claimed: Sequence[dict[str, Any]]) -> list[Table]:
    """Filters by case, then the claims."""
    filters = Table(
        title="Means over runs; gain: variance × CPU of the best bootstrap over a row's"
    )
    columns = ("case", "filter", "N", "ESS/N", "min ESS/N", "KL", "log Ẑ", "sd", "CPU ms")
    for name in (*columns, "sd² × CPU s", "gain"):
        filters.add_column(name, justify="left" if name in ("case", "filter") else "right")
    for index, entry in enumerate(entries):
        last = index + 1 == len(entries) or entries[index + 1]["case"] != entry["case"]
        numbers = (
            f"{entry['ess']:.3f}",
            f"{entry['min_ess']:.3f}",
            f"{entry['kl']:.3f}",
            f"{entry['log_evidence']:.2f}",
            f"{entry['sd']:.3f}±{entry['sd_error']:.3f}",
            f"{entry['cpu_ms']:.0f}",
            f"{entry['variance_times_cpu']:.3g}",
            f"{entry['gain']:.2g}",
        )
        name = entry["row"].replace("[", r"\[")
        filters.add_row(entry["case"], name, str(entry["particles"]), *numbers, end_section=last)
    marks = Table(title="What should hold")
    for name in ("claim", "measured", "holds"):
        marks.add_column(name)
    for entry in claimed:
        marks.add_row(entry["claim"], str(entry["measured"]), "yes" if entry["holds"] else "NO")
    return [filters, marks]


def report(
    outcomes: Sequence[Outcome],
    ratio: tuple[float, float] | None,
    costs: dict[str, Any],
    folder: Path,
    settings: dict[str, Any],
    console: Console,
) -> None:
    """Write metrics.json and the figures to ``folder``; print the tables."""
    entries = summarise(outcomes)
    claimed = claims(entries, ratio, costs)
    content = {**settings, "rows": entries, "claims": claimed, "cost": costs}
    (folder / "metrics.json").write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n")
    for table in tables(entries, claimed):
        console.print(table)
    for case in dict.fromkeys(outcome.row.case for outcome in outcomes):
        of_case = [outcome for outcome in outcomes if outcome.row.case == case]
        draw_series(case, of_case, folder / f"{_file_name(case)}.png")
    draw_traces(outcomes, folder / "kl_traces.png")
    console.print(f"{settings['seconds']:.0f} s; files in {folder}")


def draw_series(case: str, outcomes: Sequence[Outcome], path: Path) -> None:
    """The filtering band of the best filter; ESS and CSD over time of each proposal."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 7), layout="constrained")
    band, ess, csd = figure.subplots(3, 1, sharex=True)
    best = max(outcomes, key=lambda outcome: outcome.runs["ess"].mean())
    mean, variance = best.over_time["mean"], best.over_time["variance"]
    if mean.ndim == 1:
        mean, variance = mean[:, None], variance[:, None]
    times = np.arange(len(mean))
    for index in range(mean.shape[1]):
        spread = 2.0 * np.sqrt(variance[:, index])
        label = "x" if mean.shape[1] == 1 else f"x[{index}]"
        band.fill_between(
            times, mean[:, index] - spread, mean[:, index] + spread, alpha=0.3, linewidth=0
        )
        band.plot(times, mean[:, index], linewidth=1, label=f"{label}, mean ± 2 sd")
    band.plot(times, best.over_time["observations"], "k.", markersize=2, label="y")
    band.set_title(f"{case}: filtered by {best.row.name}", fontsize=10)
    band.legend(fontsize=7, ncols=3)
    for outcome in outcomes:
        if "2N" in outcome.row.name:
            continue
        ess.plot(times, outcome.over_time["ess"], linewidth=0.9, label=outcome.row.name)
        csd.plot(times, outcome.over_time["csd"], linewidth=0.9)
    ess.set_ylabel("ESS / N")
    ess.set_ylim(0, 1)
    ess.legend(fontsize=6, ncols=4)
    csd.set_ylabel("CSD")
    csd.set_yscale("symlog", linthresh=0.01)
    csd.set_xlabel("time")
    figure.savefig(path, dpi=110)


def draw_traces(outcomes: Sequence[Outcome], path: Path) -> None:
    """KL of the batches over the iterations of online EM, mean over times and runs."""
    from matplotlib.figure import Figure

    fitted = [outcome for outcome in outcomes if "kl_trace" in outcome.over_time]
    cases = list(dict.fromkeys(outcome.row.case for outcome in fitted))
    width = min(4, len(cases))
    height = math.ceil(len(cases) / width)
    figure = Figure(figsize=(3 * width, 2.6 * height), layout="constrained")
    axes = figure.subplots(height, width, squeeze=False).ravel()
    for case, axis in zip(cases, axes, strict=False):
        for outcome in fitted:
            if outcome.row.case == case and "2N" not in outcome.row.name:
                axis.plot(outcome.over_time["kl_trace"], ".-", label=outcome.row.name)
        axis.set_title(case, fontsize=9)
        axis.set_yscale("log")
        axis.set_xlabel("batch")
        axis.legend(fontsize=5)
    axes[0].set_ylabel("KL")
    for axis in axes[len(cases) :]:
        axis.set_axis_off()
    figure.savefig(path, dpi=110)


def _file_name(case: str) -> str:
    return case.lower().replace("&", "").replace(" ", "_").replace(".", "")


def _round(value: float, digits: int = 4) -> float:
    return float(f"{float(value):.{digits}g}")
