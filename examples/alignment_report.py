"""Tables, figures and files of the example of alignment from demonstrations."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from alignment_experiment import Outcome
from rich.console import Console
from rich.table import Table


def report(
    outcomes: Sequence[Outcome],
    folder: Path,
    settings: dict[str, Any],
    console: Console,
    *,
    model: str,
) -> None:
    """Write metrics.json and the figures to ``folder``; print the tables."""
    summary = summarise(outcomes)
    # They are in the units of the judge of names.
    checks = pass_marks(outcomes) if model == "names" else {}
    content = {**settings, "pass_marks": checks, "rows": summary}
    (folder / "metrics.json").write_text(json.dumps(content, indent=1) + "\n")
    for variant in dict.fromkeys(entry["variant"] for entry in summary):
        chosen = [entry for entry in summary if entry["variant"] == variant]
        console.print(choices_table(variant, chosen))
        tilts = [entry for entry in chosen if entry["row"].startswith("tilt")]
        if tilts:
            console.print(tilt_table(tilts))
    for name, check in checks.items():
        console.print(f"{'holds' if check['holds'] else 'FAILS':6} {name}: {check['found']}")
    draw(summary, folder, _JUDGED[model])
    console.print(f"{settings['seconds']:.0f} s; files in {folder}")


def summarise(outcomes: Sequence[Outcome]) -> list[dict[str, Any]]:
    """Mean and standard deviation over seeds of every metric, by variant and row."""
    found = []
    for variant, row in dict.fromkeys((each.variant, each.row) for each in outcomes):
        same = [each.metrics for each in outcomes if (each.variant, each.row) == (variant, row)]
        entry: dict[str, Any] = {"variant": variant, "row": row, "seeds": len(same)}
        for name in same[0]:
            values = np.array([metrics[name] for metrics in same])
            spread = values.std(ddof=1) if len(values) > 1 else 0.0
            entry[name] = [float(f"{values.mean():.5g}"), float(f"{spread:.2g}")]
        found.append(entry)
    return found


def pass_marks(outcomes: Sequence[Outcome]) -> dict[str, dict[str, Any]]:
    """The quantitative claims, each with what was found: means over seeds, plain variant."""
    plain = [each for each in outcomes if each.variant == "plain"]
    rows: dict[str, dict[str, np.ndarray]] = {}
    for row in dict.fromkeys(each.row for each in plain):
        same = [each.metrics for each in plain if each.row == row]
        rows[row] = {name: np.array([metrics[name] for metrics in same]) for name in same[0]}
    if "init_sft gru" not in rows:
        return {}
    names = [name for name in rows["judge"] if name.startswith("golden_")]
    last = names[-1]

    def gap(row: str, other: str, name: str = last) -> np.ndarray:
        return rows[row][name] - rows[other][name]

    def check(found: np.ndarray, holds: Any) -> dict[str, Any]:
        text = f"{found.mean():.3f} ± {found.std(ddof=1) if len(found) > 1 else 0.0:.3f}"
        return {"holds": bool(holds), "found": text}

    judge = np.stack([rows["judge"][name] for name in names], axis=1)
    random = np.stack([rows["random"][name] for name in names], axis=1)
    drift = np.abs(random - random[:, :1]).max(1)
    demo_only = np.max(
        [rows[f"{row} gru"][last] for row in ("init_sft", "init_demo", "sft_demo")], axis=0
    )
    choices = [found for found in rows.values() if "kl_bound" in found]
    excess = np.max([found["kl"] - found["kl_bound"] for found in choices], axis=0)
    spearman = gap("init_sft gru", "sft_demo gru", "spearman")
    preferred = rows["preference gru"][last] - demo_only
    checks = {
        "the judge's own curve does not fall": check(
            np.diff(judge).min(1), np.diff(judge).min() >= 0
        ),
        "random choice is flat within 0.35": check(drift, drift.max() <= 0.35),
        "Spearman of Init-SFT above SFT-Demo's by 0.2": check(spearman, spearman.mean() >= 0.2),
        "win rate of Init-SFT above 0.6": check(
            rows["init_sft gru"]["win_rate"], rows["init_sft gru"]["win_rate"].mean() > 0.6
        ),
        "preferences above all that see demonstrations only": check(
            preferred, preferred.mean() > 0
        ),
        "KL of the best of N under its bound": check(excess, excess.max() <= 1e-9),
    }
    pairs = [("init_sft gru", "sft_demo gru"), ("init_sft gru", "init_demo gru")]
    pairs += [("init_sft gru long", "init_demo gru long"), ("init_sft gru fresh", "init_demo gru")]
    for one, other in pairs:
        if one in rows and other in rows:
            found = gap(one, other)
            checks[f"{one} above {other} by 0.3"] = check(found, found.mean() >= 0.3)
    return checks


def choices_table(variant: str, summary: Sequence[dict[str, Any]]) -> Table:
    """The judge's log-odds of the best of N, and what else is known of the choice."""
    reference = next(entry for entry in summary if entry["row"] == "reference")
    chosen = [entry for entry in summary if "win_rate" in entry]
    counts = [name for name in chosen[0] if name.startswith("golden_")]
    title = (
        f"{variant}: base {_cell(reference['golden_initial'], 2)}, demonstrations "
        f"{_cell(reference['golden_demonstrations'], 2)}; best of N by each reward"
    )
    table = Table(title=title, title_justify="left")
    table.add_column("reward")
    for name in counts:
        table.add_column(name.replace("golden_", "N="), justify="right", no_wrap=True)
    for heading in ("win rate", "Spearman", "accuracy", "KL", "length"):
        table.add_column(heading, justify="right", no_wrap=True)
    for entry in chosen:
        cells = [_cell(entry[name], 2) for name in counts]
        cells += [_cell(entry.get(name), 2) for name in ("win_rate", "spearman", "accuracy", "kl")]
        table.add_row(entry["row"], *cells, _cell(entry["length"], 1))
    return table


def tilt_table(summary: Sequence[dict[str, Any]]) -> Table:
    """Policies fitted to π_SFT exp(r/β): one draw instead of N."""
    table = Table(title="policies for the tilted law, by divergence", title_justify="left")
    table.add_column("divergence")
    names = ("golden", "reward", "kl", "entropy", "distinct")
    for name in names:
        table.add_column(name, justify="right")
    for entry in summary:
        table.add_row(entry["row"].removeprefix("tilt "), *(_cell(entry[n], 2) for n in names))
    return table


def _cell(value: Sequence[float] | None, decimals: int) -> str:
    if value is None:
        return ""
    mean, spread = (f"{number:.{decimals}f}" for number in value)
    return f"{mean}±{spread}" if value[1] else mean


def draw(summary: Sequence[dict[str, Any]], folder: Path, judged: str) -> None:
    """The curves over N, one panel a variant and critic; accuracy against the choice's worth."""
    from matplotlib.figure import Figure

    variants = list(dict.fromkeys(entry["variant"] for entry in summary))
    critics = [
        critic
        for critic in ("gru", "gru long", "linear")
        if any(entry["row"] == f"init_sft {critic}" for entry in summary)
    ]
    size = (3.6 * len(critics), 3.0 * len(variants))
    figure = Figure(figsize=size, layout="constrained")
    axes = figure.subplots(len(variants), len(critics), squeeze=False, sharex=True, sharey="row")
    for variant, line in zip(variants, axes, strict=True):
        rows = {entry["row"]: entry for entry in summary if entry["variant"] == variant}
        for critic, axis in zip(critics, line, strict=True):
            for row, (label, style) in _lines(critic).items():
                if row in rows:
                    _draw_curve(axis, rows[row], label, style)
            axis.set_xscale("log", base=2)
            axis.set_title(f"{variant}; {critic.replace('gru', 'GRU')}", fontsize=9)
        line[0].set_ylabel(f"judge's {judged} of the best of N", fontsize=8)
    for axis in axes[-1]:
        axis.set_xlabel("N")
    axes[0, 0].legend(fontsize=6, ncols=2)
    figure.savefig(folder / "best_of_n.png", dpi=100)

    figure = Figure(figsize=(4.6, 3.4), layout="constrained")
    axis = figure.subplots()
    markers = {"gru": "o", "gru stopped": "s", "gru long": "D", "gru fresh": "^", "linear": "v"}
    for entry in summary:
        kind, _, critic = entry["row"].partition(" ")
        if "accuracy" not in entry:
            continue
        last = [name for name in entry if name.startswith("golden_")][-1]
        is_plain = entry["variant"] == "plain"
        axis.plot(
            entry["accuracy"][0],
            entry[last][0],
            markers[critic],
            color=_COLOURS[kind],
            fillstyle="full" if is_plain else "none",
            ms=5,
        )
    for kind in ("init_sft", "init_demo", "sft_demo"):
        axis.plot([], [], "o", color=_COLOURS[kind], label=kind.replace("_", "-"))
    for critic, marker in markers.items():
        axis.plot([], [], marker, color="grey", label=critic.replace("gru", "GRU"))
    axis.plot([], [], "o", color="grey", fillstyle="none", label="heterogeneous")
    axis.legend(fontsize=6)
    axis.set_xlabel("held-out accuracy of the reward model")
    axis.set_ylabel(f"judge's {judged} at the largest N", fontsize=8)
    figure.savefig(folder / "accuracy_and_use.png", dpi=100)


_JUDGED = {"names": "log-odds", "smollm2": "score"}
_COLOURS = {
    "init_sft": "C0",
    "init_demo": "C1",
    "sft_demo": "C2",
    "preference": "C3",
    "judge": "black",
    "log_ratio": "C4",
    "longest": "C5",
    "random": "grey",
}


def _lines(critic: str) -> dict[str, tuple[str, str]]:
    """Label and style of each row in a critic's panel."""
    learnt = ("init_sft", "init_demo", "sft_demo", "preference")
    lines = {f"{kind} {critic}": (kind, "-") for kind in learnt}
    return lines | {row: (row, ":") for row in ("judge", "log_ratio", "longest", "random")}


def _draw_curve(axis: Any, entry: dict[str, Any], label: str, style: str) -> None:
    names = [name for name in entry if name.startswith("golden_")]
    counts = [int(name.removeprefix("golden_")) for name in names]
    means, spreads = np.array([entry[name] for name in names]).T
    colour = _COLOURS[label]
    axis.plot(counts, means, style, label=label.replace("_", "-"), lw=1.3, color=colour)
    axis.fill_between(counts, means - spreads, means + spreads, alpha=0.15, color=colour, lw=0)
