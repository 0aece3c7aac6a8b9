"""Tables, figures and files of the example of supervised fine-tuning as imitation."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from imitation_experiment import GROUPS, Outcome
from rich.console import Console
from rich.table import Table

from bayesdiv.inference.sequence_metrics import runs_to_arviz

COLUMNS = (
    ("KL(E‖π)", "forward_kl", 2),
    ("KL(π‖E)", "reverse_kl", 2),
    ("JS", "jensen_shannon", 3),
    ("TV", "total_variation", 3),
    ("entropy", "entropy", 2),
    ("E φ", "alignment", 3),
    ("occupancy", "occupancy_loss", 2),
    ("NLL seen", "demonstration_loss", 2),
    ("distinct-2", "distinct_2", 3),
    ("unique", "unique", 3),
    ("Pareto k", "pareto_k", 2),
    ("clamped", "saturated", 2),
)
TITLES = {
    "many": "many demonstrations",
    "few": "few demonstrations",
    "oracle": "the expert's density known",
    "start": "before",
}


def report(
    outcomes: Sequence[Outcome],
    folder: Path,
    settings: dict[str, Any],
    entropies: Sequence[float],
    console: Console,
    *,
    model: str,
) -> None:
    """Write metrics.json, runs.nc and the figures to ``folder``; print the tables."""
    summary = summarise(outcomes)
    # They are numbers of nats that were set for names.
    checks = pass_marks(outcomes, float(np.mean(entropies))) if model == "names" else {}
    content = {
        **settings,
        "expert_entropy": [float(f"{value:.5g}") for value in entropies],
        "pass_marks": checks,
        "rows": summary,
        "curves": _curves(outcomes),
    }
    (folder / "metrics.json").write_text(json.dumps(content, indent=1) + "\n")
    for group in ("start", *GROUPS):
        entries = [entry for entry in summary if entry["group"] == group]
        if entries:
            console.print(_table(group, entries))
    console.print(f"entropy of the expert {np.mean(entropies):.2f} nats")
    for name, check in checks.items():
        console.print(f"{'holds' if check['holds'] else 'FAILS':6} {name}: {check['found']}")
    draw(content, folder, _ALIGNMENT[model])
    shown = [each for each in outcomes if each.row == "adversarial jensen_shannon"]
    shown = [each for each in shown if each.group == shown[0].group]
    if shown:
        runs = runs_to_arviz(
            [each.history for each in shown],
            ("log_ratio", "entropy"),
            attrs={"row": shown[0].row, "group": shown[0].group},
        )
        runs.to_netcdf(folder / "runs.nc")
    console.print(f"{settings['seconds']:.0f} s; files in {folder}")


def summarise(outcomes: Sequence[Outcome]) -> list[dict[str, Any]]:
    """Mean and standard deviation over seeds of what each run ended with."""
    found = []
    for group, row in dict.fromkeys((each.group, each.row) for each in outcomes):
        same = [each for each in outcomes if (each.group, each.row) == (group, row)]
        entry: dict[str, Any] = {
            "group": group,
            "row": row,
            "steps": same[0].steps[-1],
            "seeds": len(same),
        }
        for name in same[0].final:
            values = np.array([each.final[name] for each in same])
            spread = values.std(ddof=1) if len(values) > 1 else 0.0
            entry[name] = [float(f"{values.mean():.5g}"), float(f"{spread:.2g}")]
        found.append(entry)
    return found


def _curves(outcomes: Sequence[Outcome]) -> list[dict[str, Any]]:
    """Mean, least and largest over seeds by step of evaluation."""
    names = ("forward_kl", "reverse_kl", "jensen_shannon", "entropy", "alignment")
    found = []
    for group, row in dict.fromkeys((each.group, each.row) for each in outcomes):
        same = [each for each in outcomes if (each.group, each.row) == (group, row)]
        entry: dict[str, Any] = {"group": group, "row": row, "steps": same[0].steps}
        for name in names:
            values = np.array([each.curves[name] for each in same])
            lines = values.mean(0), values.min(0), values.max(0)
            entry[name] = [[float(f"{value:.4g}") for value in line] for line in lines]
        found.append(entry)
    return found


def pass_marks(outcomes: Sequence[Outcome], entropy: float) -> dict[str, dict[str, Any]]:
    """The quantitative claims, each with what was found: means over seeds."""

    def get(group: str, row: str, name: str, *, first: bool = False) -> np.ndarray | None:
        same = [each for each in outcomes if (each.group, each.row) == (group, row)]
        if not same:
            return None
        return np.array([each.curves[name][0] if first else each.curves[name][-1] for each in same])

    checks: dict[str, dict[str, Any]] = {}

    def check(name: str, found: Any, holds: Any) -> None:
        if found is None:
            return
        spread = found.std(ddof=1) if len(found) > 1 else 0.0
        text = f"{found.mean():.3f} ± {spread:.3f}"
        checks[name] = {"holds": bool(holds(found.mean())), "found": text}

    def less(one: np.ndarray | None, other: np.ndarray | None) -> np.ndarray | None:
        return None if one is None or other is None else one - other

    adversarial = "adversarial reverse_kl"
    check("many: KL(E‖π) of SFT at most 1.3", get("many", "sft", "forward_kl"), lambda x: x <= 1.3)
    check(
        "many: entropy of SFT above the expert's by 0.5",
        less(get("many", "sft", "entropy"), np.array(entropy)),
        lambda x: x > 0.5,
    )
    check(
        "many: adversarial reverse KL lowers KL(π‖E) by 0.3",
        less(
            get("many", adversarial, "reverse_kl", first=True),
            get("many", adversarial, "reverse_kl"),
        ),
        lambda x: x >= 0.3,
    )
    check(
        "many: adversarial reverse KL raises KL(E‖π) by 0.1",
        less(
            get("many", adversarial, "forward_kl"),
            get("many", adversarial, "forward_kl", first=True),
        ),
        lambda x: x >= 0.1,
    )
    check(
        "many: occupancy loss of position-weighted SFT below plain SFT's + 0.1",
        less(get("many", "occupancy_sft", "occupancy_loss"), get("many", "sft", "occupancy_loss")),
        lambda x: x <= 0.1,
    )
    check("few: KL(E‖π) of SFT above 5", get("few", "sft", "forward_kl"), lambda x: x > 5)
    stable = "adversarial jensen_shannon"
    check(
        "few: KL(E‖π) of Jensen–Shannon below 4", get("few", stable, "forward_kl"), lambda x: x < 4
    )
    check(
        "few: entropy of Jensen–Shannon above 10", get("few", stable, "entropy"), lambda x: x > 10
    )
    check(
        "few: entropy of reverse KL below Jensen–Shannon's by 2",
        less(get("few", stable, "entropy"), get("few", adversarial, "entropy")),
        lambda x: x >= 2,
    )
    for name in ("forward_kl", "reverse_kl", "jensen_shannon", "total_variation"):
        own = get("oracle", f"oracle {name}", name)
        rivals = [
            get("oracle", row, name)
            for group, row in dict.fromkeys((each.group, each.row) for each in outcomes)
            if group == "oracle" and row != f"oracle {name}"
        ]
        if own is not None and rivals:
            best = np.min([each for each in rivals if each is not None], axis=0)
            check(
                f"oracle: {name} is least under itself (own − best other)",
                own - best,
                lambda x: x <= 0,
            )
    check(
        "oracle: entropy of forward KL above reverse KL's by 1",
        less(
            get("oracle", "oracle forward_kl", "entropy"),
            get("oracle", "oracle reverse_kl", "entropy"),
        ),
        lambda x: x > 1,
    )
    return checks


def _table(group: str, entries: Sequence[dict[str, Any]]) -> Table:
    table = Table(title=f"{TITLES[group]}: mean ± sd over seeds", title_justify="left")
    table.add_column("run")
    table.add_column("steps", justify="right")
    for heading, _, _ in COLUMNS:
        table.add_column(heading, justify="right", no_wrap=True)
    for entry in entries:
        cells = [_cell(entry.get(metric), decimals) for _, metric, decimals in COLUMNS]
        table.add_row(entry["row"], str(entry["steps"]), *cells)
    return table


def _cell(value: Sequence[float] | None, decimals: int) -> str:
    if value is None:
        return ""
    mean, spread = (f"{number:.{decimals}f}" for number in value)
    return f"{mean}±{spread}" if value[1] else mean


_ALIGNMENT = {"names": "mean P(female)", "smollm2": "mean (1 + VADER's score)/2"}
_COLOURS = {
    "sft": "black",
    "occupancy_sft": "grey",
    "reverse_kl": "C0",
    "jensen_shannon": "C1",
    "forward_kl": "C2",
    "total_variation": "C3",
    "student": "C5",
}


def _colour(row: str) -> str:
    return _COLOURS.get(row.split(" ")[-1], "C4")


def draw(content: dict[str, Any], folder: Path, alignment: str) -> None:
    """From what metrics.json holds: divergences and entropy by step; alignment against entropy."""
    from matplotlib.figure import Figure

    curves, entropy = content["curves"], float(np.mean(content["expert_entropy"]))
    groups = [group for group in GROUPS if any(each["group"] == group for each in curves)]
    panels = (
        ("forward_kl", "KL(expert‖policy)"),
        ("reverse_kl", "KL(policy‖expert)"),
        ("entropy", "entropy of the policy"),
    )
    size = (3.3 * len(panels), 2.4 * len(groups))
    figure = Figure(figsize=size, layout="constrained")
    axes = figure.subplots(len(groups), len(panels), squeeze=False)
    for group, line in zip(groups, axes, strict=True):
        for (metric, label), axis in zip(panels, line, strict=True):
            for curve in (each for each in curves if each["group"] == group):
                row, colour = curve["row"], _colour(curve["row"])
                mean, low, high = curve[metric]
                axis.plot(curve["steps"], mean, label=row.replace("_", " "), lw=1.2, color=colour)
                axis.fill_between(curve["steps"], low, high, alpha=0.15, color=colour, lw=0)
            if metric == "entropy":
                axis.axhline(entropy, color="grey", lw=0.8, ls=":")
            axis.set_title(f"{TITLES[group]}: {label}", fontsize=7)
        line[0].legend(fontsize=5)
    for axis in axes[-1]:
        axis.set_xlabel("step", fontsize=8)
    figure.savefig(folder / "curves.png", dpi=100)

    figure = Figure(figsize=(4.6, 3.4), layout="constrained")
    axis = figure.subplots()
    markers = dict(zip(("start", *GROUPS), "xosD", strict=True))
    for entry in content["rows"]:
        axis.plot(
            entry["entropy"][0],
            entry["alignment"][0],
            markers[entry["group"]],
            color=_colour(entry["row"]),
            ms=5,
        )
    for row in dict.fromkeys(entry["row"].split(" ")[-1] for entry in content["rows"]):
        axis.plot([], [], "o", color=_colour(row), label=row.replace("_", " "))
    for group, marker in markers.items():
        axis.plot([], [], marker, color="grey", label=TITLES[group])
    axis.axvline(entropy, color="grey", lw=0.8, ls=":")
    axis.legend(fontsize=6, loc="lower left")
    axis.set_xlabel("entropy, nats")
    axis.set_ylabel(alignment, fontsize=8)
    figure.savefig(folder / "alignment_and_entropy.png", dpi=100)
