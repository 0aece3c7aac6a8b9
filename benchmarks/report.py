"""The table at the end of a run."""

from __future__ import annotations

from typing import Any

from rich.console import Console
from rich.table import Table

from benchmarks.results import failures, rows

_STYLES = {"met": "green", "within noise": "yellow", "missed": "red", "": ""}


def show(reports: dict[str, dict[str, Any]], console: Console | None = None) -> None:
    """Print every comparison of every framework, and what failed."""
    console = console or Console()
    if not console.is_terminal:
        console = Console(width=120, file=console.file)
    for framework, report in reports.items():
        environment = report["environment"]
        versions = ", ".join(f"{name} {v}" for name, v in environment["versions"].items())
        table = Table(
            title=f"{framework}: {report['rounds']} rounds, {environment['threads']} thread(s)",
            caption=f"{environment['processor']}; {versions}",
        )
        table.add_column("objective", overflow="fold")
        table.add_column("against", min_width=10)
        for heading in ("ours", "theirs", "ratio", "of minima", "target", ""):
            width = max(len(heading), 7) if heading else 12
            table.add_column(heading, justify="right", no_wrap=True, min_width=width)
        last = None
        for row in (row for record in report["cases"] for row in rows(record)):
            if last != row.case:
                table.add_section()
                table.add_row(row.case, style="bold")
            last = row.case
            table.add_row(
                f"  {row.ours}",
                row.theirs,
                duration(row.our_median),
                duration(row.their_median),
                f"{row.ratio:.2f}",
                f"{row.ratio_of_minima:.2f}",
                "" if row.target is None else f"{row.target:.2f}",
                row.verdict,
                style=_STYLES[row.verdict],
            )
        console.print(table)
        for record in failures(report):
            console.print(f"[red]{record['name']}[/red]: {record['error']}", highlight=False)


def duration(seconds: float) -> str:
    """``0.00123`` as ``1.23 ms``: three digits in a readable unit."""
    for unit, size in (("s", 1.0), ("ms", 1e-3)):
        if seconds >= size:
            return f"{seconds / size:.3g} {unit}"
    return f"{seconds / 1e-6:.3g} µs"
