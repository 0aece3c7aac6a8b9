"""Tables, figures and files of the example of score distillation."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from distillation_claims import PUBLISHED, check_claims
from distillation_experiment import IMAGE_GROUPS, Outcome
from distillation_figures import draw_curves, draw_images, draw_line, draw_modes, draw_plane
from rich.console import Console
from rich.table import Table

from bayesdiv.inference.score_distillation import reports_to_arviz

# Heading, metric and decimals of each column.
_IMAGE_COLUMNS = (
    ("Fréchet", "frechet", 2),
    ("precision", "precision", 3),
    ("recall", "recall", 3),
    ("px prec", "row_precision", 2),
    ("px rec", "row_recall", 2),
    ("energy", "energy", 3),
    ("class KL", "class_kl", 3),
    ("least", "smallest_share", 3),
    ("max h", "weight_max", 1),
    ("ESS", "weight_ess", 2),
    ("critic", "critic_accuracy", 2),
    ("rows/s", "samples_per_second", 0),
    ("CPU s", "cpu_seconds", 0),
)
_MIXTURE_COLUMNS = {
    "line": (
        ("θ", "parameter_0", 3),
        ("s", "parameter_1", 3),
        ("KL(p‖q)", "forward_kl", 3),
        ("KL(q‖p)", "reverse_kl", 3),
        ("CPU s", "cpu_seconds", 1),
    ),
    "plane": (
        ("KL(p‖q)", "forward_kl", 3),
        ("KL(q‖p)", "reverse_kl", 3),
        ("entropy of q", "entropy", 3),
        ("CPU s", "cpu_seconds", 1),
    ),
    "modes": (
        ("modes of 25", "modes", 1),
        ("largest share", "largest_share", 3),
        ("near a mode", "near_a_mode", 3),
        ("CPU s", "cpu_seconds", 0),
    ),
}
_TITLES = {
    "line": "one normal for two modes, exact scores and ratio",
    "plane": "one normal for three modes, exact scores and ratio",
    "modes": "a network that starts on five of 25 modes",
    "digits": "digits",
    "long_tailed": "digits with classes in the ratio 10 : 8 : 6 : 5 : 4 : 3 : 2 : 1.5 : 1 : 0.7",
    "mnist": "MNIST",
    "fashion_mnist": "Fashion-MNIST",
}
_CURVES = ("frechet", "class_kl")


def report(
    outcomes: Sequence[Outcome],
    divergences: Sequence[str],
    folder: Path,
    settings: dict[str, Any],
    console: Console,
) -> None:
    """Write metrics.json, figures and runs.nc to ``folder``; print the tables."""
    groups = list(dict.fromkeys(outcome.group for outcome in outcomes))
    rows = [row for group in groups for row in summarise(outcomes, group)]
    claims = check_claims(outcomes)
    curves = [_curve(runs) for group in groups for runs in _runs(outcomes, group) if runs[0].steps]
    reports = [_by_noise(runs) for group in groups for runs in _runs(outcomes, group)]
    content = {
        **settings,
        "divergences": list(divergences),
        "rows": rows,
        "claims": claims,
        "curves": curves,
        "weights_by_noise": [each for each in reports if each],
    }
    (folder / "metrics.json").write_text(json.dumps(content, indent=1) + "\n")
    for group in groups:
        console.print(_table(group, [row for row in rows if row["group"] == group]))
        _draw(group, [each for each in outcomes if each.group == group], folder)
    for claim in claims:
        console.print(
            f"{'holds' if claim['holds'] else 'FAILS'}  {claim['claim']}: {claim['found']}"
        )
    _write_arviz(outcomes, folder)
    console.print(f"{settings['seconds']:.0f} s; files in {folder}")


def _runs(outcomes: Sequence[Outcome], group: str) -> list[list[Outcome]]:
    """The seeds of each row."""
    mine = [outcome for outcome in outcomes if outcome.group == group]
    names = dict.fromkeys(outcome.row for outcome in mine)
    return [[outcome for outcome in mine if outcome.row == name] for name in names]


def summarise(outcomes: Sequence[Outcome], group: str) -> list[dict[str, Any]]:
    """Mean and standard deviation over seeds of each metric, a row each."""
    found = []
    for runs in _runs(outcomes, group):
        row: dict[str, Any] = {"group": group, "row": runs[0].row, "seeds": len(runs)}
        for name in runs[0].final:
            column = [run.final[name] for run in runs]
            spread = float(np.std(column, ddof=1)) if len(column) > 1 else 0.0
            row[name] = [float(f"{np.mean(column):.5g}"), float(f"{spread:.2g}")]
        if runs[0].row in PUBLISHED and group in IMAGE_GROUPS:
            row["published_cifar10"] = PUBLISHED[runs[0].row]
        found.append(row)
    return found


def _curve(runs: Sequence[Outcome]) -> dict[str, Any]:
    found: dict[str, Any] = {
        "group": runs[0].group,
        "row": runs[0].row,
        "steps": runs[0].steps,
    }
    for metric in _CURVES:
        means = np.mean([run.curves[metric] for run in runs], axis=0)
        found[metric] = [float(f"{value:.4g}") for value in means]
    return found


def _by_noise(runs: Sequence[Outcome]) -> dict[str, Any]:
    """What the weights were like, level by level, of the first seed."""
    found = runs[0].report
    if found is None:
        return {}
    columns = {name: getattr(found, name).tolist() for name in found._fields}
    rounded = {
        name: [None if np.isnan(value) else float(f"{value:.4g}") for value in values]
        for name, values in columns.items()
    }
    return {"group": runs[0].group, "row": runs[0].row, **rounded}


def _table(group: str, rows: Sequence[dict[str, Any]]) -> Table:
    found = Table(title=_TITLES[group], title_justify="left")
    columns = _MIXTURE_COLUMNS.get(group, _IMAGE_COLUMNS)
    found.add_column("row", no_wrap=True)
    for heading, _, _ in columns:
        found.add_column(heading, justify="right", no_wrap=True)
    if group in IMAGE_GROUPS:
        found.add_column("FID, recall*", no_wrap=True)
    for row in rows:
        cells = [_cell(row, metric, decimals) for _, metric, decimals in columns]
        if group in IMAGE_GROUPS:
            published = row.get("published_cifar10")
            cells.append("" if published is None else "{:.2f}, {:.2f}".format(*published))
        found.add_row(row["row"], *cells)
    return found


def _cell(row: dict[str, Any], metric: str, decimals: int) -> str:
    if metric not in row:
        return ""
    mean, spread = (f"{number:.{decimals}f}" for number in row[metric])
    return f"{mean}±{spread}" if decimals and row["seeds"] > 1 else mean


def _draw(group: str, outcomes: Sequence[Outcome], folder: Path) -> None:
    if group in IMAGE_GROUPS:
        draw_images(outcomes, folder / f"{group}.png")
        draw_curves([each for each in outcomes if each.steps], folder / f"{group}_curves.png")
        return
    draw = {"line": draw_line, "plane": draw_plane, "modes": draw_modes}[group]
    draw(outcomes, folder / f"{group}.png")


def _write_arviz(outcomes: Sequence[Outcome], folder: Path) -> None:
    """The students of one divergence as chains; all would be too large a file."""
    students = [each for each in outcomes if each.report is not None]
    wanted = [each for each in students if each.row == "jensen_shannon"] or students
    if not wanted:
        return
    chosen = [each for each in wanted if (each.group, each.row) == (wanted[0].group, wanted[0].row)]
    container = reports_to_arviz(
        [each.report for each in chosen if each.report is not None],
        [each.samples for each in chosen],
    )
    container.to_netcdf(folder / "runs.nc")
