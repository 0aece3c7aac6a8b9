"""Tables, figures, checks of published claims and files of the f-DPG example."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from f_dpg_experiment import Outcome
from rich.console import Console
from rich.table import Table

from bayesdiv.inference.sequence_metrics import TargetSample, runs_to_arviz

# Heading, metric and decimals of each column.
COLUMNS = (
    ("alignment", "alignment", 3),
    ("KL(p‖π)", "forward_kl", 3),
    ("KL(π‖p)", "reverse_kl", 3),
    ("TV", "total_variation", 3),
    ("JS", "jensen_shannon", 3),
    ("entropy", "entropy", 2),
    ("KL(π‖a)", "base_kl", 2),
    ("distinct-1", "distinct_1", 3),
    ("distinct-2", "distinct_2", 3),
    ("self-BLEU", "self_bleu_5", 3),
    ("unique", "unique", 3),
    ("Ẑ/Z − 1", "normalizer_error", 3),
    ("CPU s", "cpu_seconds", 0),
)
PANELS = (
    ("alignment", "alignment"),
    ("forward_kl", "KL(p‖π), nats"),
    ("jensen_shannon", "Jensen–Shannon, nats"),
    ("entropy", "entropy of π, nats"),
)


def report(
    outcomes: Sequence[Outcome],
    descriptions: Mapping[str, str],
    samples: Mapping[str, TargetSample],
    folder: Path,
    settings: dict[str, Any],
    console: Console,
) -> None:
    """Write metrics.json, figures and the ArviZ file to ``folder``; print the tables."""
    summary = {name: summarise(outcomes, name, samples[name]) for name in descriptions}
    claims = check_claims(outcomes)
    targets = {
        name: {
            "description": descriptions[name],
            "log_normalizer": samples[name].log_normalizer,
            "standard_error": samples[name].standard_error,
        }
        for name in descriptions
    }
    curves = [curves_of(runs) for runs in _kinds(outcomes)]
    content = {
        **settings, "targets": targets, "rows": summary, "claims": claims, "curves": curves
    }  # fmt: skip
    (folder / "metrics.json").write_text(json.dumps(content, indent=1) + "\n")
    for name, rows in summary.items():
        console.print(table(f"{name}: {descriptions[name]}", rows))
        draw_curves([found for found in outcomes if found.problem == name], folder / f"{name}.png")
    draw_scatter(outcomes, folder / "scatter.png")
    for claim in claims:
        console.print(
            f"{'holds' if claim['holds'] else 'FAILS'}  {claim['claim']}: {claim['found']}"
        )
    first = outcomes[0].problem if outcomes else ""
    kept = _of(outcomes, first, "jensen_shannon") or _of(outcomes, first, outcomes[0].divergence)
    container = runs_to_arviz(
        [{key: np.float32(values) for key, values in found.history.items()} for found in kept],
        ["alignment"],
        thin=max(1, len(kept[0].history["alignment"]) // 300),
        attrs={"target": first, "divergence": kept[0].divergence},
    )
    container.to_netcdf(folder / "runs.nc")
    console.print(f"{settings['seconds']:.0f} s; files in {folder}")


def _of(outcomes: Sequence[Outcome], problem: str, divergence: str) -> list[Outcome]:
    """Runs of one kind, by seed."""
    found = [o for o in outcomes if o.problem == problem and o.divergence == divergence]
    return sorted(found, key=lambda outcome: outcome.seed)


def _normalizer_error(outcome: Outcome) -> float:
    """Of the running estimate, against fresh sequences of the trained policy."""
    final = outcome.final
    return math.exp(final["log_normalizer"] - final["log_normalizer_of_policy"]) - 1.0


def summarise(
    outcomes: Sequence[Outcome], problem: str, sample: TargetSample
) -> list[dict[str, Any]]:
    """Mean and standard deviation over seeds of each metric, for the start and every divergence."""
    mine = [found for found in outcomes if found.problem == problem]
    rows = [_row("start", mine, 0, {})]
    for divergence in dict.fromkeys(found.divergence for found in mine):
        runs = _of(mine, problem, divergence)
        more = {
            "normalizer_error": [_normalizer_error(found) for found in runs],
            "cpu_seconds": [found.final["cpu_seconds"] for found in runs],
        }
        rows.append(_row(divergence, runs, -1, more))
    return rows


def _row(
    label: str, runs: Sequence[Outcome], index: int, more: Mapping[str, list[float]]
) -> dict[str, Any]:
    values = {name: [found.curves[name][index] for found in runs] for name in runs[0].curves}
    row: dict[str, Any] = {"row": label, "seeds": len({found.seed for found in runs})}
    for name, column in {**values, **more}.items():
        if not np.isfinite(column).all():
            # JSON has no infinity: a policy with mass where the target has none.
            row[name] = None
            continue
        spread = float(np.std(column, ddof=1)) if len(column) > 1 else 0.0
        row[name] = [float(f"{np.mean(column):.5g}"), float(f"{spread:.2g}")]
    return row


def curves_of(runs: Sequence[Outcome]) -> dict[str, Any]:
    """What the panels show, by step: means over the seeds."""
    found: dict[str, Any] = {
        "target": runs[0].problem,
        "divergence": runs[0].divergence,
        "steps": runs[0].steps,
    }
    for metric, _ in PANELS:
        means = np.mean([run.curves[metric] for run in runs], axis=0)
        found[metric] = [float(f"{value:.4g}") for value in means]
    return found


def table(title: str, rows: Sequence[dict[str, Any]]) -> Table:
    """One line a divergence; ± is the standard deviation over seeds."""
    found = Table(title=title, title_justify="left")
    found.add_column("divergence", no_wrap=True)
    for heading, _, _ in COLUMNS:
        found.add_column(heading, justify="right", no_wrap=True)
    for row in rows:
        cells = [_cell(row, metric, decimals) for _, metric, decimals in COLUMNS]
        found.add_row(row["row"], *cells)
    return found


def _cell(row: dict[str, Any], metric: str, decimals: int) -> str:
    if metric not in row:
        return ""
    if row[metric] is None:
        return "∞"
    mean, spread = (f"{number:.{decimals}f}" for number in row[metric])
    return f"{mean}±{spread}" if decimals and row["seeds"] > 1 else mean


# Claims


def check_claims(outcomes: Sequence[Outcome]) -> list[dict[str, Any]]:
    """What the paper says, and the marks set beforehand, against these runs."""
    found: list[dict[str, Any]] = []

    def final(problem: str, divergence: str, metric: str) -> np.ndarray | None:
        runs = _of(outcomes, problem, divergence)
        return np.array([run.curves[metric][-1] for run in runs]) if runs else None

    def order(claim: str, problem: str, metric: str, more: str, less: str) -> None:
        high, low = final(problem, more, metric), final(problem, less, metric)
        if high is None or low is None:
            return
        gap = high - low
        found.append(
            {
                "claim": claim,
                "holds": bool(gap.mean() > 0.0),
                "every_seed": bool((gap > 0.0).all()),
                "found": f"{high.mean():.3f} against {low.mean():.3f}, by seed "
                + ", ".join(f"{value:+.3f}" for value in gap),
            }
        )

    js, kl, rkl = "jensen_shannon", "forward_kl", "reverse_kl"
    for problem in ("rare", "lexical"):
        order(f"{problem}: JS aligns better than forward KL", problem, "alignment", js, kl)
        order(f"{problem}: JS has the lower KL(p‖π), too", problem, "forward_kl", kl, js)
        order(f"{problem}: forward KL keeps more entropy", problem, "entropy", kl, js)
        _add_lead(found, _of(outcomes, problem, js), _of(outcomes, problem, kl), problem)
    _add_recovery(found, _of(outcomes, "preference", rkl))
    for other in ("forward_kl", js, "total_variation", "squared_hellinger"):
        order(f"preference: reverse KL above {other}", "preference", "alignment", rkl, other)
        order(f"preference: its entropy below {other}", "preference", "entropy", other, rkl)
        order(f"preference: its KL(π‖p) below {other}", "preference", "reverse_kl", other, rkl)
    marks = {"jensen_shannon": 0.75, "forward_kl": 0.75, "total_variation": 0.6}
    for problem in ("rare", "lexical", "preference"):
        for divergence in (kl, js, "total_variation"):
            for metric, least in marks.items():
                _add_fall(found, _of(outcomes, problem, divergence), problem, metric, least)
    for metric, least in {"reverse_kl": 0.9, "forward_kl": 0.4}.items():
        _add_fall(found, _of(outcomes, "preference", rkl), "preference", metric, least)
    for outcome_set in _kinds(outcomes):
        errors = [_normalizer_error(run) for run in outcome_set]
        worst = max(abs(error) for error in errors)
        found.append(
            {
                "claim": f"{outcome_set[0].problem}, {outcome_set[0].divergence}: Ẑ within 2 %",
                "holds": worst < 0.02,
                "found": ", ".join(f"{error:+.3f}" for error in errors),
            }
        )
    for divergence in (kl, js):
        reached = final("moment", divergence, "alignment")
        if reached is not None:
            found.append(
                {
                    "claim": f"moment, {divergence}: within 0.03 of a half",
                    "holds": bool((np.abs(reached - 0.5) < 0.03).all()),
                    "found": ", ".join(f"{value:.3f}" for value in reached),
                }
            )
    return found


def _kinds(outcomes: Sequence[Outcome]) -> list[list[Outcome]]:
    kinds = dict.fromkeys((found.problem, found.divergence) for found in outcomes)
    return [_of(outcomes, *kind) for kind in kinds]


def _add_lead(
    found: list[dict[str, Any]], ahead: Sequence[Outcome], behind: Sequence[Outcome], problem: str
) -> None:
    if not ahead or not behind:
        return
    gaps = np.array(
        [
            np.subtract(one.curves["alignment"], other.curves["alignment"])[1:].min()
            for one, other in zip(ahead, behind, strict=True)
        ]
    )
    found.append(
        {
            "claim": f"{problem}: JS aligns better than forward KL at every evaluation",
            "holds": bool((gaps >= 0.0).all()),
            "found": "least lead by seed " + ", ".join(f"{gap:+.3f}" for gap in gaps),
        }
    )


def _add_recovery(found: list[dict[str, Any]], runs: Sequence[Outcome]) -> None:
    if not runs:
        return
    rises = [run.curves["entropy"][-1] - min(run.curves["entropy"]) for run in runs]
    found.append(
        {
            "claim": "preference: reverse KL's entropy recovers from its lowest",
            "holds": bool(np.mean(rises) > 0.1),
            "found": "rise in nats by seed " + ", ".join(f"{rise:.2f}" for rise in rises),
        }
    )


def _add_fall(
    found: list[dict[str, Any]], runs: Sequence[Outcome], problem: str, metric: str, least: float
) -> None:
    if not runs:
        return
    falls = [1.0 - run.curves[metric][-1] / run.curves[metric][0] for run in runs]
    found.append(
        {
            "claim": f"{problem}, {runs[0].divergence}: {metric} falls by at least {least:.0%}",
            "holds": float(np.mean(falls)) >= least,
            "found": ", ".join(f"{fall:.0%}" for fall in falls),
        }
    )


# Figures


def draw_curves(outcomes: Sequence[Outcome], path: Path) -> None:
    """Four panels by step: alignment, KL(p‖π), Jensen–Shannon, entropy; mean and spread."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9.0, 6.0), layout="constrained")
    for axis, (metric, label) in zip(figure.subplots(2, 2).ravel(), PANELS, strict=True):
        for divergence in dict.fromkeys(found.divergence for found in outcomes):
            runs = [found for found in outcomes if found.divergence == divergence]
            rows = np.array([found.curves[metric] for found in runs])
            mean, spread = rows.mean(0), rows.std(0)
            (line,) = axis.plot(runs[0].steps, mean, label=divergence.replace("_", " "))
            axis.fill_between(
                runs[0].steps, mean - spread, mean + spread, alpha=0.2, color=line.get_color()
            )
        axis.set_ylabel(label)
        axis.set_xlabel("step")
    figure.axes[0].legend(fontsize=8)
    figure.savefig(path, dpi=90)


def draw_scatter(outcomes: Sequence[Outcome], path: Path) -> None:
    """Alignment against entropy where each run ends, one panel a target."""
    from matplotlib.figure import Figure

    problems = list(dict.fromkeys(found.problem for found in outcomes))
    figure = Figure(figsize=(4.0 * len(problems), 3.6), layout="constrained")
    axes = figure.subplots(1, len(problems), squeeze=False)[0]
    names = list(dict.fromkeys(found.divergence for found in outcomes))
    for axis, problem in zip(axes, problems, strict=True):
        for index, divergence in enumerate(names):
            runs = _of(outcomes, problem, divergence)
            axis.scatter(
                [found.curves["entropy"][-1] for found in runs],
                [found.curves["alignment"][-1] for found in runs],
                color=f"C{index}",
                label=divergence.replace("_", " "),
            )
        axis.set_title(problem)
        axis.set_xlabel("entropy, nats")
        axis.set_ylabel("alignment")
    axes[-1].legend(fontsize=7)
    figure.savefig(path, dpi=90)
