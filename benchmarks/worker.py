"""One framework's process: runs its cases and writes their records."""

from __future__ import annotations

import argparse
import json
import logging
import time
import warnings
from pathlib import Path
from typing import Any

from benchmarks.cases import Case, run_case
from benchmarks.environment import describe
from benchmarks.results import path_of, rows

BLOCK_SECONDS = {False: 0.2, True: 0.01}


def cases_of(framework: str, *, quick: bool) -> list[Case]:
    """Every case of a framework."""
    if framework == "torch":
        from benchmarks import (
            adversarial_torch,
            distillation_torch,
            pyro_cases,
            sequences_torch,
            sghmc_torch,
            transport_torch,
            voice,
        )

        modules = (
            pyro_cases,
            transport_torch,
            sghmc_torch,
            sequences_torch,
            distillation_torch,
            adversarial_torch,
            voice,
        )
    else:
        from benchmarks import (
            filters_adaptive_jax,
            filters_jax,
            numpyro_cases,
            sghmc_effective,
            sghmc_jax,
            shards_jax,
            transport_jax,
        )

        modules = (
            numpyro_cases,
            transport_jax,
            sghmc_jax,
            sghmc_effective,
            filters_jax,
            filters_adaptive_jax,
            shards_jax,
        )
    return [case for module in modules for case in module.cases(quick=quick)]


def run(settings: argparse.Namespace) -> dict[str, Any]:
    """The report of ``settings.worker``, written below ``settings.output``."""
    _keep_quiet(settings.worker, settings.threads)
    environment = describe(settings.worker, settings.threads)
    chosen = [
        case
        for case in cases_of(settings.worker, quick=settings.quick)
        if not settings.only or any(part in case.name for part in settings.only)
    ]
    path = path_of(Path(settings.output), settings.worker)
    report = {
        "environment": environment,
        "rounds": settings.rounds,
        "quick": settings.quick,
        "cases": _kept(path) if settings.update else [],
    }
    Path(settings.output).mkdir(parents=True, exist_ok=True)
    for index, case in enumerate(chosen, 1):
        start = time.perf_counter()
        record = run_case(case, rounds=settings.rounds, block_seconds=BLOCK_SECONDS[settings.quick])
        _replace(report["cases"], record)
        # After every case, so that an interrupted run leaves what it has found.
        path.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
        _announce(f"{index}/{len(chosen)}", record, time.perf_counter() - start)
    return report


def _kept(path: Path) -> list[dict[str, Any]]:
    return json.loads(path.read_text(encoding="utf-8"))["cases"] if path.exists() else []


def _replace(records: list[dict[str, Any]], record: dict[str, Any]) -> None:
    """Put ``record`` in the place of the one with its name, or at the end."""
    names = [known["name"] for known in records]
    if record["name"] in names:
        records[names.index(record["name"])] = record
    else:
        records.append(record)


def _announce(position: str, record: dict[str, Any], seconds: float) -> None:
    outcome = record["error"] or ", ".join(
        f"{row.ours} {row.ratio:.2f}" for row in rows(record) if row.target is not None
    )
    print(f"{position}  {record['name']}  ({seconds:.0f} s)  {outcome}", flush=True)


def _keep_quiet(framework: str, threads: int) -> None:
    # ott-jax imports the unmaintained JAXopt; Pyro logs each depth of plates that it guesses.
    warnings.filterwarnings("ignore", category=DeprecationWarning)
    logging.disable(logging.INFO)
    if framework == "torch":
        import torch

        torch.set_num_threads(threads)
