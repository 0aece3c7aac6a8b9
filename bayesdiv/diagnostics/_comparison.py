"""The result of a comparison: rows, a table, a figure, ArviZ objects."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from bayesdiv.diagnostics._container import build_container
from bayesdiv.diagnostics._fits import Fit, aggregate
from bayesdiv.diagnostics._groups import stack_chains
from bayesdiv.diagnostics._psis import describe_k

_COLUMNS = (
    # statistic, heading, digits, needs a reference
    ("log_evidence", "log evidence", 2, False),
    ("pareto_k", "Pareto k", 2, False),
    ("ess", "ESS", 0, False),
    ("mean_error", "mean error", 2, True),
    ("sd_ratio", "sd ratio", 2, True),
    ("coverage_50", "cover 50 %", 2, True),
    ("coverage_90", "cover 90 %", 2, True),
    ("sliced_wasserstein", "sliced W2", 2, True),
    ("seconds", "seconds", 1, False),
)


@dataclass(frozen=True, eq=False)
class Comparison:
    """Fits of one model by several objectives; ``print(comparison)`` shows the table.

    Attributes
    ----------
    fits
        ``{label: [fit of each seed]}``.
    reference
        Draws ``{variable: (draw, *shape)}``, or None.
    backend
        "pyro" or "numpyro".
    """

    fits: Mapping[str, Sequence[Fit]]
    reference: Mapping[str, np.ndarray] | None
    backend: str

    @property
    def labels(self) -> list[str]:
        """The objectives in order."""
        return list(self.fits)

    @property
    def rows(self) -> list[dict[str, Any]]:
        """One mapping an objective: means over the fits that succeeded.

        Keys: ``objective``, ``fits``, ``failed``, ``error``, ``verdict`` (of the largest Pareto k)
        and the statistics of :func:`compare`, each with its standard deviation over seeds under
        ``<name>_spread``.
        """
        found = []
        for label, fits in self.fits.items():
            row = aggregate(label, fits)
            shapes = [fit.statistics["pareto_k"] for fit in fits if fit.error is None]
            row["verdict"] = describe_k(max(shapes, default=np.nan)) if shapes else "failed"
            found.append(row)
        return found

    def _columns(self) -> list[tuple[str, str, int]]:
        wanted = self.reference is not None
        return [(name, head, digits) for name, head, digits, needs in _COLUMNS if wanted >= needs]

    def _cells(self, row: Mapping[str, Any]) -> list[str]:
        if row["failed"] == row["fits"]:
            return []
        return [
            _number(row[name], row[f"{name}_spread"], digits) for name, _, digits in self._columns()
        ]

    def table(self, *, title: str | None = None) -> Any:
        """A ``rich.table.Table``; print it with ``rich.print``."""
        from rich.table import Table
        from rich.text import Text

        table = Table(title=title, title_justify="left", caption_justify="left")
        table.add_column("objective", no_wrap=True)
        for _, heading, _ in self._columns():
            table.add_column(heading, justify="right", no_wrap=True)
        table.add_column("trust")
        notes = [self._caption()]
        colours = {"good": "green", "ok": "green", "bad": "red", "very bad": "red"}
        for row in self.rows:
            cells = self._cells(row) or ["" for _ in self._columns()]
            verdict = Text(row["verdict"], style=colours.get(row["verdict"], ""))
            if row["error"] is not None:
                verdict = Text("failed", style="red")
                notes.append(f"{row['objective']}: {_shorten(row)}")
            table.add_row(row["objective"], *cells, verdict)
        table.caption = Text("\n".join(notes))
        return table

    def to_markdown(self) -> str:
        """The table as Markdown."""
        headings = ["objective", *(heading for _, heading, _ in self._columns()), "trust"]
        lines = [
            "| " + " | ".join(headings) + " |",
            "|---|" + "---:|" * len(self._columns()) + "---|",
        ]
        for row in self.rows:
            cells = self._cells(row) or ["" for _ in self._columns()]
            last = row["verdict"] if row["error"] is None else _shorten(row)
            lines.append("| " + " | ".join([row["objective"], *cells, last]) + " |")
        return "\n".join(lines)

    def _caption(self) -> str:
        count = max(len(fits) for fits in self.fits.values())
        seeds = "1 seed" if count == 1 else f"mean ± sd over {count} seeds"
        return f"{self.backend}, {seeds}"

    def __str__(self) -> str:
        from rich.console import Console

        console = Console(width=160, no_color=True)
        with console.capture() as captured:
            console.print(self.table())
        return captured.get().rstrip()

    def plot(
        self,
        variables: Sequence[str] | None = None,
        *,
        highlight: Sequence[str] | None = None,
    ) -> Any:
        """A matplotlib figure: marginals above; sd ratios, coverage and Pareto k below.

        Parameters
        ----------
        variables
            Up to four coordinates as ``"name"`` or ``"name[0]"``; by default those where the
            highlighted objectives differ most.
        highlight
            Up to four labels drawn in colour, the others being grey.

        Raises
        ------
        ValueError
            An unknown label or coordinate, too many of them, or no fit that succeeded.
        """
        from bayesdiv.diagnostics._plots import plot_comparison

        return plot_comparison(self, variables=variables, highlight=highlight)

    def to_arviz(self, label: str) -> Any:
        """The fits by objective ``label`` as an ArviZ object, seeds as chains.

        Raises
        ------
        ValueError
            An unknown label, or one whose fits all failed.
        """
        if label not in self.fits:
            raise ValueError(f"label must be one of {self.labels}, got {label!r}.")
        good = [fit for fit in self.fits[label] if fit.groups is not None]
        if not good:
            raise ValueError(
                f"{label!r} has no fit to convert: {self.fits[label][0].error}; see .rows."
            )
        groups = stack_chains([fit.groups for fit in good if fit.groups is not None])
        losses = np.concatenate([np.asarray(fit.losses, dtype=float) for fit in good])
        return build_container(groups.with_attrs(objective=label, loss_history=losses.tolist()))


def _number(value: float, spread: float, digits: int) -> str:
    if np.isnan(value):
        return "–"
    if np.isnan(spread):
        return f"{value:.{digits}f}"
    return f"{value:.{digits}f} ± {spread:.{digits}f}"


def _shorten(row: Mapping[str, Any]) -> str:
    """The failure in a few words; the whole message is in the row."""
    return textwrap.shorten(
        f"{row['failed']} of {row['fits']} failed, {row['error']}", 120, placeholder=" …"
    )
