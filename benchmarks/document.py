"""docs/benchmarks.md, written from the results so that its numbers cannot drift."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks.reasons import reason
from benchmarks.report import duration
from benchmarks.results import Row, failures, rows

_HEAD = """# Benchmarks

```{note}
Written by `python -m benchmarks --write-docs` from `benchmarks/results/`; do not edit.
```

`make bench` times every objective beside its peers. Contestants of a case take turns in one process
for each framework, and what they compute is checked to agree before the clock starts (columns of
losses and gradients in the JSON files). **Ratio** is our time over theirs, the median over rounds
of the ratio within a round; times are medians of one call. A miss by less than 2 % is within noise.
"""
_SECTIONS = {
    "pyro": (
        "Pyro",
        "One `SVI.step`, vectorised particles, validation on as by default. The last part of a "
        "case's name is the number of particles. Reverse KL is measured against `Trace_ELBO`, the "
        "Rényi bound against `RenyiELBO`, every other divergence against our reverse KL.",
    ),
    "numpyro": (
        "NumPyro",
        "Steps of `SVI.update` in one `lax.scan`; `compile` is the time from a new function to "
        "the executable, with empty caches.",
    ),
    "sinkhorn": (
        "Sinkhorn with gradient",
        "Value and gradient in both samples. Libraries stop by different rules, so each is given "
        "its loosest setting whose plan has the marginal error `err` (L1, both sides, computed "
        "alike for all). ε is given as a share of the mean cost.",
    ),
    "sliced": (
        "Sliced Wasserstein with gradient",
        "Value and gradient in both samples, directions drawn anew at every call. Names are sizes, "
        "dimension and number of directions.",
    ),
    "sghmc": (
        "Stochastic-gradient HMC",
        "One gradient step after burn-in, minibatches of 32 of 1,000 rows; names are the model, "
        "its dimension and the number of chains. Everybody in a case has the same gradient. The "
        "bare loop does the recursion and nothing else: no seeds that make a run resumable, no "
        "diagnostics. In JAX a call is a scan of 1,000 steps. The cases `effective` are the time "
        "for a hundred effective draws of the slowest coordinate, by a pilot run; NUTS sees all "
        "rows at every step and SGHMC 32 of them. Where all rows fit the cache and the posterior "
        "is close to normal, NUTS is the sampler to take.",
    ),
    "sequences": (
        "Sequences",
        "Sampling of rows × symbols, and a step of f-DPG with that many sequences. Without a "
        "cache, the whole prefix goes through the network at every symbol. `generate` is that of "
        "transformers on a GPT-2 of random weights. REINFORCE is the loop written out for "
        "KL-penalised reward, with the same draws, baseline and optimiser; its gradient is that "
        "of reverse KL. *pseudo-reward* is the divergence's share of a step.",
    ),
    "distillation": (
        "Score distillation",
        "One update of a one-step student with its five of fake score and critic; names are the "
        "networks and a batch's shape. The bare loop is distribution matching of the same networks "
        "written out, with the same draws and the same parameters afterwards: no weights, no "
        "reports, nothing checked. *weighting* is what a divergence adds: from log-ratios to "
        "weights.",
    ),
    "adversarial": (
        "Adversarial inference",
        "One training step with a critic on codes: rows × samples in a window. The bare loop is "
        "torch without a probabilistic program or checks, with the same networks, optimisers and "
        "draws; outputs are equal after three steps. Pyro's validation is on as by default, off in "
        "*no validation*; sliced Wasserstein has no critic.",
    ),
    "filters": (
        "Particle filters",
        "One filtered series; names are the filter, the model, the number of particles and the "
        "length of the series. Systematic resampling below half of the effective sample size for "
        "everybody. The bare scan is a bootstrap filter written for its model by hand, and returns "
        "what ours returns: evidence increments, effective sample sizes, means and variances; "
        "the formulas given to smcx and cuthbert are the same, and of their results those that are "
        "not used are not computed. `particles` needs NumPy 1 and takes its turn in a process of "
        "its own, in float64 where the others are in float32; guided and auxiliary filters have "
        "the same guide and lookahead there. Agreement is the difference of log-evidences over "
        "some runs, in standard errors. Cases `adaptive` have no target: the settings below say "
        "what a particle and step costs by the number of particles, and where learning a proposal "
        "pays, by the variance of the log-evidence times seconds.",
    ),
    "voice": (
        "Simulated voices",
        "Utterances of speech with their electroglottogram, against a wait of a thirtieth of their "
        "length: a ratio of 1 is thirty times real time. Before the clock starts, the closures "
        "that are given are found in the electroglottogram.",
    ),
    "shards": (
        "Mixtures of experts in shards",
        "The wait for a fit in sixteen shards, one worker each: the longest local EM and the "
        "reduction, against EM of all rows with as many random starts. Before the clock starts, "
        "log-likelihoods of test rows are within 0.005 nats a row.",
    ),
}


def write(reports: dict[str, dict[str, Any]], path: Path) -> None:
    """Write the page for ``reports``.

    Raises
    ------
    ValueError
        If there are no results, or they come from ``--quick``.
    """
    if not reports:
        raise ValueError("there are no results; run `make bench` first.")
    for framework, report in reports.items():
        if report["quick"]:
            raise ValueError(f"the results of {framework} come from --quick; run `make bench`.")
    path.write_text("\n".join(_lines(reports)) + "\n", encoding="utf-8")


def _lines(reports: dict[str, dict[str, Any]]) -> Iterator[str]:
    yield _HEAD
    records = [record for report in reports.values() for record in report["cases"]]
    every = [row for record in records for row in rows(record)]
    yield from _summary(every)
    for key, (title, text) in _SECTIONS.items():
        chosen = [record for record in records if _section(record["name"]) == key]
        if chosen:
            yield f"\n## {title}\n\n{text}\n"
            yield from _table([row for record in chosen for row in rows(record)])
            yield from _explanations([row for record in chosen for row in rows(record)])
            yield from _notes(chosen)
    failed = [record for report in reports.values() for record in failures(report)]
    if failed:
        yield "\n## Did not run\n"
        for record in failed:
            yield f"- `{record['name']}`: {' '.join(record['error'].split())}"
    yield "\n## Where these numbers come from\n"
    for report in reports.values():
        environment = report["environment"]
        versions = ", ".join(f"{name} {v}" for name, v in environment["versions"].items())
        yield (
            f"- {environment['framework']}: {report['rounds']} rounds, "
            f"{environment['threads']} thread(s), {environment['processor']} with "
            f"{environment['cores']} cores, load {environment['load']} at the start, "
            f"Python {environment['python']}; {versions}"
        )


def _section(name: str) -> str:
    first, second = name.split("/")[:2]
    return second if first in ("torch", "jax") else first


def _summary(every: list[Row]) -> Iterator[str]:
    yield "| target | comparisons | met | within noise | missed | worst ratio |"
    yield "| --- | ---: | ---: | ---: | ---: | ---: |"
    for title, chosen in _targets(every):
        if chosen:
            counts = [
                sum(row.verdict == verdict for row in chosen)
                for verdict in ("met", "within noise", "missed")
            ]
            worst = max(row.ratio for row in chosen)
            cells = " | ".join(str(count) for count in counts)
            yield f"| {title} | {len(chosen)} | {cells} | {worst:.2f} |"


def _targets(every: list[Row]) -> Iterator[tuple[str, list[Row]]]:
    def among(
        section: str, theirs: str | None = None, ours: tuple[str, ...] | None = None
    ) -> list[Row]:
        return [
            row
            for row in every
            if _section(row.case) == section
            and row.target is not None
            and theirs in (None, row.theirs)
            and (ours is None or row.ours in ours)
            and not row.case.endswith("/compile")
        ]

    yield "Pyro: reverse KL ≤ 1.00 of `Trace_ELBO`", among("pyro", "Trace_ELBO")
    yield "Pyro: other f-divergences ≤ 1.05 of our reverse KL", among("pyro", "reverse_kl")
    yield "NumPyro: reverse KL ≤ 1.05 of `Trace_ELBO`", among("numpyro", "Trace_ELBO")
    yield "NumPyro: other f-divergences ≤ 1.05 of our reverse KL", among("numpyro", "reverse_kl")
    compiled = [row for row in every if row.case.endswith("/compile")]
    yield "NumPyro: compile time ≤ 1.2 of the host's", compiled
    yield "Sinkhorn: no slower than POT, geomloss and ott", among("sinkhorn")
    yield "Sliced Wasserstein ≤ 0.5 of POT", among("sliced", "POT")
    yield "SGHMC: 16 chains in torch ≤ 1.15 of a bare loop", among("sghmc", "bare loop")
    yield "SGHMC: one chain in torch ≤ 0.25 of `posteriors`", among("sghmc", "posteriors")
    yield "SGHMC: JAX ≤ 1.10 of blackjax", among("sghmc", "blackjax")
    yield "Sampling no slower than without a cache", among("sequences", "no cache")
    yield "Sampling no slower than `generate` of transformers", among("sequences", "generate")
    yield "f-DPG's step ≤ 1.1 of plain REINFORCE", among("sequences", "REINFORCE")
    yield "The divergence ≤ 0.01 of f-DPG's step", among("sequences", "jensen_shannon")
    yield "A student's update ≤ 1.05 of a bare loop", among("distillation", "bare loop")
    yield "Its weighting ≤ 0.01 of it", among("distillation", "jensen_shannon")
    yield "An adversarial step ≤ 1.1 of a bare loop", among("adversarial", ours=("ours",))
    yield "Voices at least 30 times faster than real time", among("voice")
    yield "Bootstrap filter ≤ 1.2 of a bare scan", among("filters", "bare scan")
    yield "Bootstrap filter ≤ 0.5 of smcx, from 10⁴ particles", among("filters", "smcx")
    yield "Bootstrap filter ≤ 0.5 of cuthbert, from 10⁴ particles", among("filters", "cuthbert")
    yield (
        "Bootstrap filter ≤ 0.25 of `particles`, from 10⁴ particles",
        among("filters", "particles", ("bootstrap",)),
    )
    yield (
        "Guided and auxiliary filters ≤ 0.125 of `particles`",
        among("filters", "particles", ("guided", "auxiliary")),
    )
    yield "Longest local fit and reduction ≤ 0.1 of the global EM", among("shards")


def _table(chosen: list[Row]) -> Iterator[str]:
    yield "| case | objective | against | ours | theirs | ratio | target | |"
    yield "| --- | --- | --- | ---: | ---: | ---: | ---: | --- |"
    for row in chosen:
        target = "" if row.target is None else f"{row.target:.2f}"
        ratio = f"**{row.ratio:.2f}**" if row.verdict == "missed" else f"{row.ratio:.2f}"
        yield (
            f"| {row.case} | {row.ours} | {row.theirs} | {duration(row.our_median)} | "
            f"{duration(row.their_median)} | {ratio} | {target} | {row.verdict} |"
        )


def _explanations(chosen: list[Row]) -> Iterator[str]:
    by_reason: dict[str, list[Row]] = {}
    for row in chosen:
        if row.verdict == "missed":
            by_reason.setdefault(reason(row), []).append(row)
    if by_reason:
        yield "\n### Misses\n"
    for text, missed in by_reason.items():
        names = ", ".join(f"{row.case} {row.ours} ({row.ratio:.2f})" for row in missed)
        yield f"- {names}: {text}"


def _notes(records: list[dict[str, Any]]) -> Iterator[str]:
    noted = [record for record in records if record.get("notes")]
    if noted:
        yield "\n### Settings\n"
    for record in noted:
        parts = "; ".join(f"{name}: {text}" for name, text in record["notes"].items())
        yield f"- {record['name']}: {parts}"
