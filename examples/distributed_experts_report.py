"""Claims, table, figures and files of the example on distributed mixtures of experts."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from distributed_experts_scores import Outcome
from rich.console import Console
from rich.table import Table

__all__ = ["report"]

# Heading, metric and decimals of each column.
COLUMNS = (
    ("T to truth", "divergence", 4),
    ("T from pool", "to_pool", 3),
    ("log-lik.", "log_likelihood", 4),
    ("loss", "loss", 4),
    ("RMSE", "rmse", 4),
    ("ARI", "rand_index", 3),
    ("par. MSE", "parameter_error", 4),
    ("flagged", "flagged", 0),
    ("local s", "local_cpu", 2),
    ("reduce s", "reduction_cpu", 3),
    ("speed-up", "speed_up", 1),
)
_COLOURS = {
    "reduction": "#0072B2",
    "trimmed": "#009E73",
    "aligned_average": "#E69F00",
    "middle": "#CC79A7",
    "greedy_merge": "#56B4E9",
    "naive_average": "#D55E00",
}


def report(
    outcomes: Sequence[Outcome],
    draws: dict[str, Any] | None,
    folder: Path,
    settings: dict[str, Any],
    console: Console,
) -> None:
    """Write metrics.json and the figures to ``folder``; print the tables."""
    summary, claims = summarise(outcomes), check_claims(outcomes, settings["divergence"][0])
    if draws is not None:
        settings = {**settings, **write_arviz(draws, folder)}
    text = json.dumps({**settings, "claims": claims, "rows": summary}, indent=1)
    (folder / "metrics.json").write_text(text + "\n")
    for data in dict.fromkeys(entry["data"] for entry in summary):
        console.print(table([entry for entry in summary if entry["data"] == data], data))
    if claims:
        console.print(claims_table(claims))
    draw(outcomes, folder, settings["divergence"][0])
    console.print(f"{settings['seconds']:.0f} s; files in {folder}")


def summarise(outcomes: Sequence[Outcome]) -> list[dict[str, Any]]:
    """Mean and standard deviation over seeds of every metric, by data set, shards and row."""
    groups: dict[tuple, list[dict[str, float]]] = {}
    for outcome in outcomes:
        groups.setdefault((outcome.data, outcome.size, outcome.row), []).append(outcome.metrics)
    found = []
    for (data, size, row), metrics in groups.items():
        entry: dict[str, Any] = {"data": data, "size": size, "row": row, "seeds": len(metrics)}
        for name in metrics[0]:
            values = np.array([one[name] for one in metrics])
            spread = values.std(ddof=1) if len(values) > 1 else 0.0
            entry[name] = [float(f"{values.mean():.5g}"), float(f"{spread:.2g}")]
        found.append(entry)
    return found


def check_claims(outcomes: Sequence[Outcome], first: str) -> list[dict[str, Any]]:
    """The marks of the simulated experiment: what was asked, and what came, seed by seed."""
    metrics = {(o.row, o.size, o.seed): o.metrics for o in outcomes if o.data == "simulated"}
    seeds = sorted({seed for _, _, seed in metrics})
    sizes = sorted({size for row, size, _ in metrics if row == first})
    claims: list[dict[str, Any]] = []

    def values(row: str, size: int, name: str) -> np.ndarray:
        return np.array(
            [metrics[row, size, s][name] for s in seeds if name in metrics.get((row, size, s), {})]
        )

    def claim(asked: str, size: int, found: np.ndarray, passes: np.ndarray) -> None:
        if len(found):
            claims.append(
                {
                    "claim": asked,
                    "shards": size,
                    "found": [float(f"{value:.4g}") for value in found],
                    "met": f"{int(passes.sum())} of {len(passes)}",
                }
            )

    whole = {name: values("global", 1, name) for name in ("divergence", "log_likelihood")}
    for size in sizes:
        # Shards that are flagged sit in bad optima: the marks for good shards are without them.
        gaps = {name: np.abs(values("trimmed", size, name) - whole[name]) for name in whole}
        if size <= 64:
            claim(
                "(i) |T − T of all rows| < 0.0005",
                size,
                gaps["divergence"],
                gaps["divergence"] < 5e-4,
            )
            claim(
                "(i) |log-lik. − that of all rows| < 0.005",
                size,
                gaps["log_likelihood"],
                gaps["log_likelihood"] < 5e-3,
            )
        naive = values("naive_average", size, "divergence")
        claim("(ii) T of naive average > 5", size, naive, naive > 5.0)
        ratio = values("middle", size, "divergence") / values("trimmed", size, "divergence")
        for shards, least in ((4, 3.0), (64, 20.0)):
            if size == shards:
                claim(f"(iii) T of middle / T > {least:.0f}", size, ratio, ratio > least)
        fast = values(first, size, "speed_up")
        for shards, least in ((4, 5.0), (16, 10.0)):
            if size == shards:
                claim(f"(iv) speed-up ≥ {least:.0f}", size, fast, fast >= least)
        if size == 128:
            trimmed, kept = (values(row, size, "divergence") for row in ("trimmed", first))
            claim("(v) T trimmed < 0.01", size, trimmed, trimmed < 0.01)
            claim("(v) T untrimmed > 0.5", size, kept, kept > 0.5)
        without = values("no spread term", size, "divergence")
        if size == 64 and len(without):
            ratio = without / values("trimmed", size, "divergence")
            claim("(vi) T without the spread term / T > 3", size, ratio, ratio > 3.0)
        rises = values(first, size, "rises")
        claim("(vii) objective never rises", size, rises, rises == 0)
        labelled = values("gate from posterior", size, "parameter_error")
        if len(labelled):
            ratio = labelled / values(first, size, "parameter_error")
            claim("(viii) MSE, posterior's gate / plan's > 1", size, ratio, ratio > 1.0)
            gap = values(first, size, "log_likelihood") - values(
                "gate from posterior", size, "log_likelihood"
            )
            claim("(viii) log-lik., plan's gate − posterior's > 0", size, gap, gap > 0.0)
    return claims


def claims_table(claims: Sequence[dict[str, Any]]) -> Table:
    """One line a claim and number of shards."""
    found = Table(title="What was expected, and what came, by seed", title_justify="left")
    for heading in ("claim", "shards", "found", "met"):
        found.add_column(heading)
    for entry in claims:
        numbers = ", ".join(f"{value:.4g}" for value in entry["found"])
        found.add_row(entry["claim"], str(entry["shards"]), numbers, entry["met"])
    return found


def table(summary: Sequence[dict[str, Any]], data: str) -> Table:
    """One line a number of shards and row.

    T in nats; loss, log-likelihood a row of the truth less that of the row; processor seconds.
    """
    found = Table(title=f"{data}: mean ± sd over seeds", title_justify="left")
    columns = [column for column in COLUMNS if any(column[1] in entry for entry in summary)]
    for heading in ("shards", "row", *(heading for heading, _, _ in columns)):
        found.add_column(heading, justify="left" if heading == "row" else "right", no_wrap=True)
    for index, entry in enumerate(summary):
        cells = [_cell(entry.get(metric), decimals) for _, metric, decimals in columns]
        ends = index + 1 < len(summary) and summary[index + 1]["size"] != entry["size"]
        found.add_row(str(entry["size"]), entry["row"], *cells, end_section=ends)
    return found


def _cell(value: Sequence[float] | None, decimals: int) -> str:
    if value is None:
        return ""
    mean, spread = (f"{number:.{decimals}f}" for number in value)
    return f"{mean}±{spread}" if decimals and value[1] else mean


def draw(outcomes: Sequence[Outcome], folder: Path, first: str) -> None:
    """Error and time against the number of shards, and the costs of the shards."""
    simulated = [o for o in outcomes if o.data == "simulated"]
    if not simulated:
        return
    _draw_errors(simulated, folder / "error.png", first)
    _draw_times(simulated, folder / "time.png", first)
    _draw_costs(simulated, folder / "shard_costs.png", first)


def _by_size(outcomes: Sequence[Outcome], row: str, name: str) -> tuple[list[int], np.ndarray]:
    """Sizes, and values ``(sizes, seeds)``."""
    sizes = sorted({o.size for o in outcomes if o.row == row})
    values = [
        [o.metrics[name] for o in outcomes if o.row == row and o.size == size] for size in sizes
    ]
    return sizes, np.array(values)


def _draw_errors(outcomes: Sequence[Outcome], path: Path, first: str) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 4.2), layout="constrained")
    panels = figure.subplots(1, 2)
    names = (("divergence", "T(truth, fit), nats"), ("loss", "loss against the truth, nats a row"))
    rows = {"reduction": first, **{row: row for row in list(_COLOURS)[1:]}}
    for axis, (name, label) in zip(panels, names, strict=True):
        whole = np.array([o.metrics[name] for o in outcomes if o.row == "global"])
        axis.axhspan(whole.min(), whole.max(), color="0.8", label="all rows at once")
        axis.axhline(whole.mean(), color="0.5", linewidth=1)
        for title, row in rows.items():
            sizes, values = _by_size(outcomes, row, name)
            if not sizes:
                continue
            middle = values.mean(axis=1)
            spread = np.abs(np.stack([middle - values.min(axis=1), values.max(axis=1) - middle]))
            axis.errorbar(
                sizes,
                middle,
                yerr=spread,
                marker="o",
                markersize=4,
                capsize=2,
                linewidth=1.2,
                color=_COLOURS[title],
                label=title.replace("_", " "),
            )
        axis.set(xscale="log", yscale="log", xlabel="shards", ylabel=label)
        axis.set_xticks(sizes, [str(size) for size in sizes])
        axis.minorticks_off()
        axis.spines[["top", "right"]].set_visible(False)
    panels[0].legend(fontsize=8, frameon=False)
    figure.savefig(path, dpi=110)


def _draw_times(outcomes: Sequence[Outcome], path: Path, first: str) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 4), layout="constrained")
    axis = figure.subplots()
    sizes, local = _by_size(outcomes, first, "local_cpu")
    _, reduction = _by_size(outcomes, first, "reduction_cpu")
    whole = np.mean([o.metrics["local_cpu"] for o in outcomes if o.row == "global"])
    labels = ["1", *(str(size) for size in sizes)]
    fits = [whole, *local.mean(axis=1)]
    axis.bar(labels, fits, color="#0072B2", label="longest local fit")
    axis.bar(
        labels, [0.0, *reduction.mean(axis=1)], bottom=fits, color="#E69F00", label="reduction"
    )
    for place, total in enumerate(np.add(fits, [0.0, *reduction.mean(axis=1)])):
        axis.annotate(f"{total:.2f}", (place, total), ha="center", va="bottom", fontsize=8)
    axis.set(xlabel="shards", ylabel="processor seconds, compilation apart")
    axis.margins(y=0.08)
    axis.spines[["top", "right"]].set_visible(False)
    axis.legend(frameon=False)
    figure.savefig(path, dpi=110)


def _draw_costs(outcomes: Sequence[Outcome], path: Path, first: str) -> None:
    from matplotlib.figure import Figure

    shown = [o for o in outcomes if o.row == first and o.arrays]
    if not shown:
        return
    largest = max(o.size for o in shown)
    found = next(o for o in shown if o.size == largest)
    figure = Figure(figsize=(6, 4), layout="constrained")
    axis = figure.subplots()
    # The medoid's own distance is 0.
    costs = found.arrays["distances"][found.arrays["distances"] > 0.0]
    bins = np.geomspace(costs.min(), costs.max() * 1.01, 40)
    axis.hist(costs, bins=bins, color="#0072B2")
    threshold = float(found.arrays["threshold"])
    axis.axvline(threshold, color="#D55E00", label=f"threshold, {threshold:.2g}")
    axis.set(xscale="log", xlabel="T(shard, medoid), nats", ylabel=f"shards, of {largest}")
    axis.yaxis.get_major_locator().set_params(integer=True)
    axis.spines[["top", "right"]].set_visible(False)
    axis.legend(frameon=False)
    figure.savefig(path, dpi=110)


def write_arviz(draws: dict[str, Any], folder: Path) -> dict[str, float]:
    """Draws of the reduced model: predictions at probes, pointwise log-likelihood of test rows.

    Returns how their spread compares with that of draws from all rows at once.
    """
    from bayesdiv.diagnostics import predictions_to_arviz

    attrs = {}
    if "global_prediction" in draws:
        spreads = [draws[f"{name}_prediction"].std(axis=(0, 1)) for name in ("reduction", "global")]
        attrs["spread_over_that_of_all_rows"] = float(np.median(spreads[0] / spreads[1]))
    container = predictions_to_arviz(
        draws["reduction_prediction"],
        log_likelihood=draws["reduction_log_likelihood"],
        observed_data=draws["observed"],
        attrs=attrs,
    )
    container.to_netcdf(folder / "posterior.nc")
    return attrs
