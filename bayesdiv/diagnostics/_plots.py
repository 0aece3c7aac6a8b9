"""The figure of a comparison: which objective is too narrow, and which to trust."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from bayesdiv.diagnostics._psis import RELIABLE

if TYPE_CHECKING:
    from bayesdiv.diagnostics._comparison import Comparison

# Okabe and Ito's colours without yellow, apart under every common colour blindness.
_COLOURS = ("#D55E00", "#0072B2", "#009E73", "#CC79A7")
_GREY = "#6F6F6F"
_REFERENCE = "#D0D0D0"
_LINES = ("-", "--", "-.", ":")
_PREFERRED = ("reverse_kl", "jensen_shannon", "forward_kl", "sliced_wasserstein")
_MAX_PANELS = 4


def plot_comparison(
    comparison: Comparison,
    *,
    variables: Sequence[str] | None = None,
    highlight: Sequence[str] | None = None,
) -> Any:
    """See :meth:`Comparison.plot`."""
    import matplotlib.pyplot as plt

    working = [name for name in comparison.labels if _draws(comparison, name) is not None]
    if not working:
        raise ValueError("there is nothing to plot: every fit failed; see .rows for the errors.")
    chosen = _check_highlight(comparison, working, highlight)
    coordinates = _coordinates(comparison, chosen)
    shown = _check_variables(coordinates, variables)
    panels = _panels(comparison)
    height = 0.27 * len(comparison.labels) + 1.2
    figure = plt.figure(figsize=(10.0, 2.7 + height), layout="constrained")
    upper, lower = figure.subfigures(2, 1, height_ratios=[2.6, height])
    styles = {
        name: (colour, line) for name, colour, line in zip(chosen, _COLOURS, _LINES, strict=False)
    }
    axes = np.atleast_1d(upper.subplots(1, len(shown)))
    for axis, name in zip(axes, shown, strict=True):
        _draw_marginal(axis, name, coordinates[name], styles)
    axes[0].set_ylabel("density")
    handles, labels = axes[0].get_legend_handles_labels()
    upper.legend(
        handles, labels, loc="outside upper center", ncols=len(labels), frameon=False, fontsize=9
    )
    lower_axes = np.atleast_1d(lower.subplots(1, len(panels), sharey=True))
    for axis, draw in zip(lower_axes, panels, strict=True):
        draw(axis, comparison, styles)
        axis.spines[["top", "right"]].set_visible(False)
        axis.grid(visible=True, axis="y", color="#E8E8E8", linewidth=0.7)
        axis.set_axisbelow(True)
        axis.tick_params(axis="y", length=0)
    lower_axes[0].set_yticks(range(len(comparison.labels)), comparison.labels, fontsize=9)
    lower_axes[0].set_ylim(len(comparison.labels) - 0.5, -0.5)
    for label in lower_axes[0].get_yticklabels():
        label.set_color(styles.get(label.get_text(), ("#222222", ""))[0])
    return figure


def _draws(comparison: Comparison, label: str) -> dict[str, np.ndarray] | None:
    """Draws of all seeds of one objective together."""
    good = [fit.draws for fit in comparison.fits[label] if fit.error is None]
    if not good:
        return None
    return {name: np.concatenate([draws[name] for draws in good]) for name in good[0]}


def _check_highlight(
    comparison: Comparison, working: list[str], highlight: Sequence[str] | None
) -> list[str]:
    if highlight is None:
        first = [name for name in _PREFERRED if name in working]
        return [*first, *(name for name in working if name not in first)][: len(_COLOURS)]
    unknown = [name for name in highlight if name not in working]
    if unknown or not 1 <= len(highlight) <= len(_COLOURS):
        raise ValueError(
            f"highlight must name one to {len(_COLOURS)} of {working}, got {list(highlight)}."
        )
    return list(highlight)


def _coordinates(comparison: Comparison, chosen: list[str]) -> dict[str, dict[str, np.ndarray]]:
    """``{"name[0]": {label: draws}}`` the reference's label being empty."""
    sources: dict[str, Mapping[str, np.ndarray]] = {}
    if comparison.reference is not None:
        sources[""] = comparison.reference
    sources |= {label: _draws(comparison, label) or {} for label in chosen}
    fits = comparison.fits[chosen[0]]
    derived = next(fit.groups.deterministic for fit in fits if fit.groups is not None)
    found: dict[str, dict[str, np.ndarray]] = {}
    for name, values in sources[chosen[0]].items():
        if name in derived or any(name not in source for source in sources.values()):
            continue
        for index in np.ndindex(values.shape[1:]):
            title = f"{name}[{', '.join(map(str, index))}]" if index else name
            found[title] = {key: source[name][:, *index] for key, source in sources.items()}
    return found


def _check_variables(
    coordinates: Mapping[str, Mapping[str, np.ndarray]], variables: Sequence[str] | None
) -> list[str]:
    if variables is not None:
        unknown = [name for name in variables if name not in coordinates]
        if unknown or not 1 <= len(variables) <= _MAX_PANELS:
            known = ", ".join(list(coordinates)[:12])
            raise ValueError(
                f"variables must name one to {_MAX_PANELS} coordinates out of {known}, …; got "
                f"{list(variables)}."
            )
        return list(variables)
    if not coordinates:
        raise ValueError("there is no latent variable that all fits and the reference share.")

    def disagreement(name: str) -> float:
        """How far apart the marginals are, in sds and in log sds."""
        values = [draws.astype(np.float64) for draws in coordinates[name].values()]
        sds = np.array([v.std() for v in values]) + 1e-12
        means = np.array([v.mean() for v in values])
        return float(np.ptp(means) / sds.max() + np.ptp(np.log(sds)))

    ranked = sorted(coordinates, key=disagreement, reverse=True)[:_MAX_PANELS]
    return [name for name in coordinates if name in ranked]


def _draw_marginal(
    axis: Any, name: str, draws: Mapping[str, np.ndarray], styles: Mapping[str, tuple[str, str]]
) -> None:
    everything = list(draws.values())
    low = min(np.quantile(v, 0.002) for v in everything)
    high = max(np.quantile(v, 0.998) for v in everything)
    # Heavy tails would squeeze the bulk into a few pixels.
    centre = everything[0]
    width = 8.0 * max(np.subtract(*np.quantile(v, [0.75, 0.25])) for v in everything)
    if width > 0:
        middle = np.median(centre)
        low, high = max(low, middle - width / 2), min(high, middle + width / 2)
    grid = np.linspace(low, high, 200)
    for label, values in draws.items():
        density = _density(values, grid)
        if label == "":
            axis.fill_between(grid, density, color=_REFERENCE, linewidth=0, label="reference")
        else:
            colour, line = styles[label]
            axis.plot(grid, density, color=colour, linestyle=line, linewidth=1.8, label=label)
    axis.set_title(name, fontsize=10)
    axis.set_xlim(low, high)
    axis.set_ylim(bottom=0)
    axis.set_yticks([])
    axis.locator_params(axis="x", nbins=4)
    axis.spines[["top", "right", "left"]].set_visible(False)


def _density(values: np.ndarray, grid: np.ndarray) -> np.ndarray:
    """A Gaussian kernel density; a narrow spike where the draws do not vary."""
    values = values.astype(np.float64)
    spread = np.subtract(*np.quantile(values, [0.75, 0.25])) / 1.349
    spread = min(spread, values.std()) if spread > 0 else values.std()
    width = max(0.9 * spread * len(values) ** -0.2, (grid[-1] - grid[0]) / 400)
    if len(values) > 3000:
        values = values[:: len(values) // 3000 + 1]
    scaled = (grid[:, None] - values) / width
    return np.exp(-0.5 * scaled**2).mean(axis=1) / (width * np.sqrt(2.0 * np.pi))


def _panels(comparison: Comparison) -> list[Callable]:
    if comparison.reference is None:
        return [_draw_ess, _draw_pareto]
    return [_draw_sd_ratios, _draw_coverage, _draw_pareto]


def _points(
    axis: Any,
    comparison: Comparison,
    styles: Mapping[str, tuple[str, str]],
    statistic: str,
    *,
    marker: str = "o",
    filled: bool = True,
) -> np.ndarray:
    """A point an objective at the mean over seeds, a bar of one sd; returns the points."""
    rows = comparison.rows
    for height, row in enumerate(rows):
        colour = styles.get(row["objective"], (_GREY, ""))[0]
        if row["failed"] == row["fits"]:
            where = axis.get_yaxis_transform()
            axis.text(0.02, height, "failed", va="center", transform=where, fontsize=8, color=_GREY)
        if not np.isfinite(row[statistic]):
            continue
        spread = row[f"{statistic}_spread"]
        axis.errorbar(
            row[statistic],
            height,
            xerr=None if np.isnan(spread) else spread,
            marker=marker,
            markersize=6,
            color=colour,
            markerfacecolor=colour if filled else "white",
            elinewidth=1.2,
        )
    return np.array([row[statistic] for row in rows])


def _draw_sd_ratios(
    axis: Any, comparison: Comparison, styles: Mapping[str, tuple[str, str]]
) -> None:
    import matplotlib.ticker as ticker

    axis.axvline(1.0, color="#222222", linewidth=1.0)
    _points(axis, comparison, styles, "sd_ratio")
    axis.set_xscale("log", base=2)
    low, high = axis.get_xlim()
    low, high = min(low, 0.7), max(high, 1.6)
    axis.set_xlim(low, high)
    step = 0.5 if high / low < 16 else 1.0
    first, last = np.ceil(np.log2(low) / step), np.floor(np.log2(high) / step)
    axis.set_xticks([2.0 ** (step * k) for k in np.arange(first, last + 1)])
    axis.xaxis.set_major_formatter(ticker.FuncFormatter(lambda value, _: f"{value:.2g}"))
    axis.xaxis.set_minor_locator(ticker.NullLocator())
    axis.set_xlabel("sd / reference sd")
    # Beside the line at 1, wherever it lies.
    where = axis.get_xaxis_transform()
    for text, side in (("← too narrow  ", "right"), ("  too wide →", "left")):
        axis.text(1.0, 1.02, text, ha=side, transform=where, fontsize=9, color="#444444")


def _draw_coverage(
    axis: Any, comparison: Comparison, styles: Mapping[str, tuple[str, str]]
) -> None:
    for level in (0.5, 0.9):
        axis.axvline(level, color="#222222", linewidth=1.0)
    _points(axis, comparison, styles, "coverage_50", marker="o", filled=False)
    _points(axis, comparison, styles, "coverage_90", marker="o")
    axis.set_xlim(0.0, 1.0)
    axis.set_xticks([0.0, 0.5, 0.9], ["0 %", "50 %", "90 %"])
    axis.set_xlabel("reference draws covered")
    axis.set_title("○ 50 % intervals   ● 90 % intervals", fontsize=9, color="#444444")


def _draw_pareto(axis: Any, comparison: Comparison, styles: Mapping[str, tuple[str, str]]) -> None:
    found = _points(axis, comparison, styles, "pareto_k")
    low, high = axis.get_xlim()
    low = min(low, 0.0) if np.isfinite(found).any() else 0.0
    high = max(high, 1.1)
    axis.axvspan(RELIABLE, high, color="#F3E3DC", zorder=0, linewidth=0)
    axis.axvline(RELIABLE, color="#222222", linewidth=1.0)
    axis.set_xlim(low, high)
    axis.set_xlabel("Pareto k")
    axis.set_title("trust below 0.7", fontsize=9, color="#444444")


def _draw_ess(axis: Any, comparison: Comparison, styles: Mapping[str, tuple[str, str]]) -> None:
    _points(axis, comparison, styles, "ess")
    axis.set_xlim(left=0)
    axis.set_xlabel("effective sample size")
