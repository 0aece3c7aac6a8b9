"""One fit against the reference: error of means and ratio of sds, parameter by parameter."""

from __future__ import annotations

import time
from typing import Any

import numpy as np

from benchmarks.fit_accuracy.reference import Reference
from benchmarks.fit_accuracy.tables import Table


def fit_table(table: Table, host: str, seed: int, **options: Any) -> tuple[Any, float]:
    """``fit`` of the table's model with its defaults, and seconds of processor time."""
    start = time.process_time()
    if host == "pyro":
        import torch

        from bayesdiv.pyro import fit
        from benchmarks.fit_accuracy import models_pyro as models

        arguments = tuple(torch.tensor(argument) for argument in table.arguments)
    else:
        from bayesdiv.numpyro import fit
        from benchmarks.fit_accuracy import models_numpyro as models

        arguments = table.arguments
    model = getattr(models, table.model)
    result = fit(model, *arguments, seed=seed, progress_bar=False, **options)
    return result, time.process_time() - start


def accuracy(posterior: Any, reference: Reference) -> dict[str, float]:
    """Largest error of a mean, in reference sds, and extremes of the ratio of sds."""
    errors, ratios = [], []
    for name, draws in reference.draws.items():
        found = posterior[name].values
        mean, sd = draws.mean(axis=(0, 1)), draws.std(axis=(0, 1))
        errors.append(np.ravel(np.abs(found.mean(axis=(0, 1)) - mean) / sd))
        ratios.append(np.ravel(found.std(axis=(0, 1)) / sd))
    return {
        "mean_error": float(np.concatenate(errors).max()),
        "least_sd_ratio": float(np.concatenate(ratios).min()),
        "largest_sd_ratio": float(np.concatenate(ratios).max()),
    }


def measure(table: Table, reference: Reference, host: str, seed: int) -> dict[str, Any]:
    """A row of results: the guide's own draws, and those repaired by importance resampling."""
    result, seconds = fit_table(table, host, seed)
    raw = accuracy(result.to_arviz(num_draws=10_000).posterior, reference)
    repaired = accuracy(result.psis_resample(num_draws=10_000).posterior, reference)
    return {
        **raw,
        "resampled": repaired,
        "pareto_k": result.verdict.pareto_k,
        "converged": result.verdict.converged,
        "agreement": result.verdict.agreement,
        "steps": [len(losses) for losses in result.losses],
        "seconds": round(seconds, 1),
    }
