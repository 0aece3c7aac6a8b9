"""Filtered and smoothed series as ArviZ containers."""

from __future__ import annotations

from typing import Any

import numpy as np

from bayesdiv.diagnostics import psis
from bayesdiv.diagnostics._container import build_container
from bayesdiv.diagnostics._groups import Groups, as_numpy


def filter_to_arviz(
    result: Any,
    *,
    trajectories: Any = None,
    observations: Any = None,
    num_draws: int | None = None,
    seed: int = 0,
    pareto_k: bool = False,
    name: str = "state",
) -> Any:
    """What `FilterResult.to_arviz` documents."""
    increments = as_numpy(result.log_evidence_increments)
    if increments.ndim not in (1, 2):
        raise ValueError(
            "a result becomes an ArviZ object with one axis of runs or none, got "
            f"log_evidence_increments of shape {increments.shape}."
        )
    one_run = increments.ndim == 1

    def by_run(value: Any) -> np.ndarray:
        value = as_numpy(value)
        return value[None] if one_run else value

    posterior, kind = _posterior(result, by_run, trajectories, num_draws, seed)
    stats = {
        field: by_run(getattr(result, field))
        for field in ("ess", "kl", "cv2", "max_weight", "resampled")
    }
    stats |= {key: by_run(value) for key, value in result.adaptation.items()}
    if pareto_k:
        if result.log_weights is None:
            raise ValueError(
                "pareto_k needs the weights of every step; run with store='particles'."
            )
        stats["pareto_k"] = _pareto_k(by_run(result.log_weights))
    variables = {
        "posterior": {name: posterior},
        # Steps belong to a run, not to a draw of it.
        "sample_stats": {key: value[:, None] for key, value in stats.items()},
        "log_likelihood": {"observation": by_run(increments)[:, None]},
    }
    dims: dict[str, list[str | None]] = {key: ["time"] for key in (name, "observation", *stats)}
    if observations is not None:
        variables["observed_data"] = {"observation": as_numpy(observations)}
    groups = Groups(variables, dims)
    return build_container(
        groups.with_attrs(
            inference_library="bayesdiv",
            draws=kind,
            log_evidence=np.atleast_1d(as_numpy(result.log_evidence)).astype(float).tolist(),
            num_particles=int(result.state.log_weights.shape[-1]),
        )
    )


def _posterior(
    result: Any, by_run: Any, trajectories: Any, num_draws: int | None, seed: int
) -> tuple[np.ndarray, str]:
    """``(chain, draw, time, *event)``, and what the draws are."""
    increments = by_run(result.log_evidence_increments)
    if trajectories is not None:
        paths = by_run(trajectories)
        if paths.ndim < 3 or (paths.shape[0], paths.shape[2]) != increments.shape:
            raise ValueError(
                "trajectories must have shape (num_trajectories, num_times, *event), after an axis "
                f"of runs where the result has one, for {increments.shape[0]} run(s) and "
                f"{increments.shape[1]} times; got {as_numpy(trajectories).shape}."
            )
        return paths, "smoothed trajectories"
    if result.particles is None:
        raise ValueError(
            "draws of the states need particles or trajectories, got neither; run the filter with "
            "store='particles', or pass trajectories."
        )
    particles, log_weights = by_run(result.particles), by_run(result.log_weights)
    count = particles.shape[2] if num_draws is None else num_draws
    if isinstance(count, bool) or not isinstance(count, int) or count < 1:
        raise ValueError(f"num_draws must be an integer of at least 1, got {num_draws!r}.")
    rng = np.random.default_rng(seed)
    draws = np.empty((particles.shape[0], count, *particles.shape[1:2], *particles.shape[3:]))
    for run, time in np.ndindex(*log_weights.shape[:2]):
        cumulative = np.cumsum(np.exp(log_weights[run, time].astype(np.float64)))
        teeth = (rng.uniform() + np.arange(count)) / count * cumulative[-1]
        chosen = np.minimum(np.searchsorted(cumulative, teeth, side="right"), len(cumulative) - 1)
        # Shuffled, so that the draws of two times are independent.
        draws[run, :, time] = particles[run, time][rng.permutation(chosen)]
    return draws, "filtering marginals, independent over time"


def _pareto_k(log_weights: np.ndarray) -> np.ndarray:
    """``(run, time)``: tail index of each set of weights."""
    shape = np.empty(log_weights.shape[:2])
    for run, time in np.ndindex(*log_weights.shape[:2]):
        shape[run, time] = psis(log_weights[run, time]).k
    return shape
