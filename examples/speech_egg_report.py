"""Tables, figures, checks and files of the example of speech to electroglottograph."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table
from scipy.io import wavfile
from speech_egg_experiment import Outcome
from speech_egg_figures import draw_timing, draw_waveform
from speech_egg_presets import DEAD, PUBLISHED, REGRESSION, STOCHASTIC, ZERO_FREQUENCY
from speech_egg_problem import CONDITIONS, RATE

from bayesdiv.diagnostics._container import build_container
from bayesdiv.diagnostics._groups import Groups

# Heading, metric and decimals of each column.
_COLUMNS = (
    ("IDR", "identification_rate", 4),
    ("MR", "miss_rate", 4),
    ("FAR", "false_alarm_rate", 4),
    ("IDA ms", "accuracy_ms", 3),
    ("bias ms", "bias_ms", 2),
    ("GOI IDR", "opening_identification_rate", 3),
    ("corr.", "correlation", 3),
    ("ΔCQ", "quotient_error", 3),
    ("CQ corr.", "quotient_correlation", 2),
    ("KL(q‖p*)", "probe_reverse_kl", 1),
    ("JS", "probe_jensen_shannon", 3),
    ("probe", "probe_accuracy", 3),
    ("critic", "critic_loss", 3),
    ("× real time", "times_real_time", 0),
    ("CPU s", "cpu_seconds", 0),
)
_TIMING_COLUMNS = (
    ("sd ms", "timing_deviation_ms", 3),
    ("within 90 %", "timing_coverage_90", 2),
    ("error/sd", "timing_error_ratio", 2),
    ("rank corr.", "timing_rank_correlation", 2),
    ("sd ms, rescaled", "rescaled_deviation_ms", 3),
    ("within 90 %, rescaled", "rescaled_coverage_90", 2),
    ("error/sd, rescaled", "rescaled_error_ratio", 2),
)
# Means over files of the authors' result logs, CMU ARCTIC: IDR, MR, FAR in %, IDA in ms.
PUBLISHED_LOGS = {
    "clean": (99.08, 0.64, 0.28, 0.396),
    "noise": (96.70, 2.66, 0.64, 0.373),
}
_CHANCE = 2.0 * float(np.log(2.0))


def report(
    outcomes: Sequence[Outcome],
    autoencoders: Sequence[dict[str, Any]],
    folder: Path,
    settings: dict[str, Any],
    console: Console,
) -> None:
    """Write metrics.json, figures, the drawn EGG as WAV and egg.nc; print the tables."""
    conditions = list(dict.fromkeys(each.condition for each in outcomes))
    rows = [row for condition in conditions for row in summarise(outcomes, condition)]
    marks = pass_marks(outcomes, autoencoders)
    content = {
        **settings,
        "autoencoders": list(autoencoders),
        "rows": rows,
        "pass_marks": marks,
        "published_logs": PUBLISHED_LOGS,
    }
    (folder / "metrics.json").write_text(json.dumps(content, indent=1) + "\n")
    for condition in conditions:
        mine = [row for row in rows if row["condition"] == condition]
        title = f"{condition}: {CONDITIONS[condition].description}"
        console.print(_table(title, mine, _COLUMNS))
        timed = [row for row in mine if "timing_coverage_90" in row]
        if timed:
            console.print(_table(f"{condition}: timing of closures", timed, _TIMING_COLUMNS))
    for mark in marks:
        console.print(f"{'holds' if mark['holds'] else 'FAILS'}  {mark['mark']}: {mark['found']}")
    _write_signals(outcomes, folder)
    console.print(f"{settings['seconds']:.0f} s; files in {folder}")


def _runs(outcomes: Sequence[Outcome], condition: str) -> list[list[Outcome]]:
    """The seeds of each row, in the order of seeds."""
    mine = [each for each in outcomes if each.condition == condition]
    names = dict.fromkeys(each.row for each in mine)
    return [
        sorted((each for each in mine if each.row == name), key=lambda each: each.seed)
        for name in names
    ]


def summarise(outcomes: Sequence[Outcome], condition: str) -> list[dict[str, Any]]:
    """Mean and standard deviation over seeds of each metric, a row each."""
    found = []
    for runs in _runs(outcomes, condition):
        row: dict[str, Any] = {"condition": condition, "row": runs[0].row, "seeds": len(runs)}
        for name in runs[0].final:
            column = np.array([run.final[name] for run in runs], dtype=float)
            column = column[np.isfinite(column)]
            if not len(column):
                row[name] = None
                continue
            spread = float(column.std(ddof=1)) if len(column) > 1 else 0.0
            row[name] = [float(f"{column.mean():.5g}"), float(f"{spread:.2g}")]
        found.append(row)
    return found


def _table(title: str, rows: Sequence[dict[str, Any]], columns: Any) -> Table:
    found = Table(title=title, title_justify="left")
    found.add_column("row", no_wrap=True)
    shown = [column for column in columns if any(column[1] in row for row in rows)]
    for heading, _, _ in shown:
        found.add_column(heading, justify="right")
    for row in rows:
        found.add_row(row["row"], *(_cell(row, metric, places) for _, metric, places in shown))
    return found


def _cell(row: dict[str, Any], metric: str, decimals: int) -> str:
    if row.get(metric) is None:
        return ""
    mean, spread = (f"{number:.{decimals}f}" for number in row[metric])
    return f"{mean}±{spread}" if decimals and row["seeds"] > 1 else mean


def pass_marks(
    outcomes: Sequence[Outcome], autoencoders: Sequence[dict[str, Any]]
) -> list[dict[str, Any]]:
    """Marks that were set beforehand, with what was found; of the rows that are there."""
    found: list[dict[str, Any]] = []

    def values(condition: str, row: str, metric: str) -> np.ndarray:
        for runs in _runs(outcomes, condition):
            if runs[0].row == row:
                return np.array([run.final.get(metric, np.nan) for run in runs])
        return np.empty(0)

    def mark(name: str, numbers: np.ndarray, low: float, high: float) -> None:
        if len(numbers):
            found.append(
                {
                    "mark": name,
                    "holds": bool((numbers >= low).all() and (numbers <= high).all()),
                    "found": ", ".join(f"{value:.4g}" for value in numbers) + " by seed",
                }
            )

    if autoencoders:
        cosine = np.array([each["cosine"] for each in autoencoders])
        mark("autoencoder: cosine above 0.9", cosine, 0.9, 1.0)
    adversarial = [runs[0].row for runs in _runs(outcomes, "clean") if _is_adversarial(runs[0].row)]
    for row in (REGRESSION, *adversarial):
        mark(f"clean, {row}: IDR", values("clean", row, "identification_rate"), 0.995, 1.0)
        mark(f"clean, {row}: IDA in ms", values("clean", row, "accuracy_ms"), 0.0, 0.2)
        mark(f"clean, {row}: correlation", values("clean", row, "correlation"), 0.95, 1.0)
    for row in (REGRESSION, PUBLISHED):
        mark(f"noise, {row}: IDR", values("noise", row, "identification_rate"), 0.88, 0.95)
    for condition in ("clean", "noise", "shift"):
        names = [runs[0].row for runs in _runs(outcomes, condition) if _is_adversarial(runs[0].row)]
        for row in names:
            for metric, least in (("probe_jensen_shannon", 0.08), ("probe_reverse_kl", 2.0)):
                low, high = values(condition, row, metric), values(condition, REGRESSION, metric)
                if len(low) and len(high):
                    mark(
                        f"{condition}, {row}: {metric} below regression's by {least}",
                        high - low,
                        least,
                        np.inf,
                    )
            gap = values(condition, row, "identification_rate")
            base = values(condition, REGRESSION, "identification_rate")
            if len(gap) and len(base):
                mark(f"{condition}, {row}: change of IDR", gap - base, -0.01, 0.01)
    dead = values("clean", DEAD, "critic_loss")
    mark("clean, dead critic: loss at 2 log 2", dead - _CHANCE, -0.002, 0.002)
    mark("clean, dead critic: caught", values("clean", DEAD, "is_dead"), 1.0, 1.0)
    mark(
        "clean: times real time of drawing EGG",
        values("clean", REGRESSION, "times_real_time"),
        20.0,
        np.inf,
    )
    return found


def _is_adversarial(row: str) -> bool:
    """Rows that are named after their divergence."""
    return row not in (REGRESSION, DEAD, STOCHASTIC, ZERO_FREQUENCY) and "ELBO" not in row


def _write_signals(outcomes: Sequence[Outcome], folder: Path) -> None:
    shown = [each for each in outcomes if each.example is not None]
    conditions = list(dict.fromkeys(each.condition for each in shown))
    for condition in conditions:
        mine = {each.row: each for each in shown if each.condition == condition}
        best = mine.get(STOCHASTIC) or next(iter(mine.values()))
        assert best.example is not None
        draw_waveform(best.example, folder / f"{condition}_waveform.png")
        write_wav(folder / f"{condition}_egg.wav", best.example.drawn.egg)
    draw_timing(outcomes, folder / "timing.png")
    chosen = [each for each in outcomes if each.windows is not None]
    if chosen:
        drawn, observed = chosen[0].windows or (np.empty(0), np.empty(0))
        groups = Groups(
            {
                "posterior_predictive": {"egg": drawn[None]},
                "observed_data": {"egg": observed},
                "sample_stats": {
                    name: values[None]
                    for name, values in chosen[0].history.items()
                    if name in ("critic_loss", "divergence", "reconstruction")
                },
            },
            {"egg": ["window", "sample"]},
        )
        container = build_container(
            groups.with_attrs(inference_library="bayesdiv", row=chosen[0].row, rate=RATE)
        )
        container.to_netcdf(folder / "egg.nc")


def write_wav(path: Path, egg: np.ndarray) -> None:
    """As 16-bit samples, the largest at full scale."""
    largest = max(float(np.abs(egg).max()), 1e-12)
    wavfile.write(path, RATE, np.round(egg / largest * 32_767.0).astype(np.int16))
