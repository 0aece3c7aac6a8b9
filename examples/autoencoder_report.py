"""Table, figures and files of the Bayesian autoencoder's example."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

# Heading, metric and decimals of each column.
COLUMNS = (
    ("proper LL", "proper", 1),
    ("plug-in LL", "plug_in", 1),
    ("error²", "squared_error", 4),
    ("SW before", "distance_before", 3),
    ("SW after", "distance_after", 3),
    ("SW others", "distance_held_out", 3),
    ("own before", "own_before", 3),
    ("own after", "own_after", 3),
    ("Fréchet", "frechet", 1),
    ("T", "kinetic_temperature", 2),
    ("clamped", "clamped_fraction", 3),
    ("R-hat", "rhat", 2),
    ("tuning s", "tuning_seconds", 0),
    ("s", "seconds", 0),
)


@dataclass(frozen=True, eq=False)
class Outcome:
    """One row of one seed and size: metrics by name, and images to show."""

    row: str
    seed: int
    size: int
    metrics: dict[str, float]
    images: dict[str, np.ndarray] = field(default_factory=dict)


def report(
    outcomes: Sequence[Outcome],
    rows: Sequence[str],
    folder: Path,
    settings: dict[str, Any],
    console: Console,
) -> None:
    """Write metrics.json and the figures to ``folder``; print the table."""
    summary = summarise(outcomes, rows)
    text = json.dumps({**settings, "rows": summary}, indent=1)
    (folder / "metrics.json").write_text(text + "\n")
    console.print(table(summary))
    shown = [found for found in outcomes if found.images]
    if shown:
        first = min(found.seed for found in shown)
        sizes = sorted({found.size for found in shown})
        middle = sizes[len(sizes) // 2]
        chosen = [found for found in shown if found.seed == first and found.size == middle]
        chosen.sort(key=lambda found: rows.index(found.row))
        draw(chosen, folder)
    console.print(f"{settings['seconds']:.0f} s; files in {folder}")


def summarise(outcomes: Sequence[Outcome], rows: Sequence[str]) -> list[dict[str, Any]]:
    """Mean and standard deviation over seeds of every metric, by row and size."""
    found = []
    for size in sorted({outcome.size for outcome in outcomes}):
        for row in rows:
            same = [o.metrics for o in outcomes if o.row == row and o.size == size]
            if not same:
                continue
            entry: dict[str, Any] = {"row": row, "size": size, "seeds": len(same)}
            for name in same[0]:
                values = np.array([metrics[name] for metrics in same])
                spread = values.std(ddof=1) if len(values) > 1 else 0.0
                entry[name] = [float(f"{values.mean():.5g}"), float(f"{spread:.2g}")]
            found.append(entry)
    return found


def table(summary: Sequence[dict[str, Any]]) -> Table:
    """One line a row and size.

    LL in nats an image; SW, the sliced Wasserstein distance of the prior predictive to tuning and
    to other images; own, the tuned divergence; T, the kinetic temperature: 1 in a run that counts.
    """
    found = Table(title="Test images: mean ± sd over seeds", title_justify="left")
    for heading in ("images", "row", *(heading for heading, _, _ in COLUMNS)):
        is_row = heading == "row"
        found.add_column(heading, justify="left" if is_row else "right", no_wrap=True)
    for index, entry in enumerate(summary):
        cells = [_cell(entry.get(metric), decimals) for _, metric, decimals in COLUMNS]
        ends = index + 1 < len(summary) and summary[index + 1]["size"] != entry["size"]
        found.add_row(str(entry["size"]), entry["row"], *cells, end_section=ends)
    return found


def _cell(value: Sequence[float] | None, decimals: int) -> str:
    if value is None:
        return ""
    mean, spread = (f"{number:.{decimals}f}" for number in value)
    return f"{mean}±{spread}" if decimals and value[1] else mean


def draw(outcomes: Sequence[Outcome], folder: Path) -> None:
    """Three figures: what priors predict, reconstructions of the first rows, generated images."""
    labels = [found.row for found in outcomes]
    prior = [found.images["prior_predictive"] for found in outcomes]
    _grid(labels, prior, folder / "prior_predictive.png")
    _grid(labels, [found.images["generated"] for found in outcomes], folder / "generated.png")
    lines, names = [outcomes[0].images["test"]], ["test image"]
    for found in outcomes[:4]:
        lines += [found.images["reconstruction"], found.images["uncertainty"]]
        names += [found.row, "its sd"]
    _grid(names, lines, folder / "reconstructions.png")


def _grid(labels: Sequence[str], lines: Sequence[np.ndarray], path: Path) -> None:
    """One line of images a label."""
    from matplotlib.figure import Figure

    width = max(len(line) for line in lines)
    figure = Figure(figsize=(0.55 * width + 2.4, 0.6 * len(lines)), layout="constrained")
    axes = figure.subplots(len(lines), 1, squeeze=False)[:, 0]
    for label, line, axis in zip(labels, lines, axes, strict=True):
        side = round(line.shape[1] ** 0.5)
        pictures = line.reshape(len(line), side, side)
        framed = np.pad(pictures, ((0, 0), (0, 0), (0, 1)), constant_values=np.nan)
        top = 0.3 if label == "its sd" else 1.0
        axis.imshow(np.concatenate(list(framed), axis=1), cmap="gray_r", vmin=0.0, vmax=top)
        name = textwrap.fill(label.replace("_", " "), 20)
        axis.set_ylabel(name, rotation=0, ha="right", va="center", fontsize=8)
        axis.set_xticks([])
        axis.set_yticks([])
        for side_ in axis.spines.values():
            side_.set_visible(False)
    figure.savefig(path, dpi=110)
