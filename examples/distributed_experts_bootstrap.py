"""Approximate posterior draws of a mixture of experts whose rows stay in shards."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from distributed_experts_experiment import Preset, cut
from distributed_experts_scores import Scores

from bayesdiv.data import simulate_experts
from bayesdiv.inference.moe_em import fit_experts
from bayesdiv.inference.moe_reduction import TransportReduction
from bayesdiv.inference.moe_shards import DistributedFit, fit_distributed
from bayesdiv.numpyro.distributions import MixtureOfExperts, MixtureOfExpertsParameters

__all__ = ["bootstrap"]


def bootstrap(
    work: Preset, seed: int, *, size: int, num_probes: int = 40, num_tests: int = 500
) -> dict[str, Any]:
    """Approximate posterior draws by the weighted likelihood bootstrap (Newton, Raftery 1994).

    A draw weighs every row by an Exp(1) number, fits each shard anew from its own estimate, and
    reduces: rows stay in their shards here too. For comparison the same of all rows at once.
    """
    data = simulate_experts(seed, work.num_rows, dim=work.dim, num_experts=work.num_experts)
    num_train = work.num_rows * 4 // 5
    test = slice(num_train, num_train + num_tests)
    scores = Scores(data.predictors[test], data.outcome[test])
    shards = cut(data.predictors[:num_train], data.outcome[:num_train], size)
    options = {"backend": "vmap", "num_starts": work.num_starts, "support_size": work.support_size}
    found: dict[str, Any] = {"observed": data.outcome[test]}
    parts = {"reduction": shards}
    if work.compares_draws:
        parts["global"] = [(data.predictors[:num_train], data.outcome[:num_train])]
    for name, rows in parts.items():
        fit = fit_distributed(jax.random.key(seed), rows, work.num_experts, **options)
        draws = _weighted_draws(jax.random.key(seed + 1), fit, rows, work)
        for part, value in _predictions(draws, scores, num_probes).items():
            found[f"{name}_{part}"] = value
    return found


def _weighted_draws(
    key: jax.Array, fit: DistributedFit, shards: Sequence[tuple], work: Preset
) -> list[MixtureOfExpertsParameters]:
    predictors, outcome = (jnp.asarray(np.stack(part)) for part in zip(*shards, strict=True))
    starts = jax.tree.map(lambda *parts: jnp.asarray(np.stack(parts)), *fit.models)

    @jax.jit
    @jax.vmap
    def refit(key: Any, predictors: Any, outcome: Any, start: Any) -> Any:
        weights = jax.random.exponential(key, outcome.shape, outcome.dtype)
        return fit_experts(
            key, predictors, outcome, work.num_experts, weights=weights, start=start
        ).parameters

    draws = []
    for draw_key in jax.random.split(key, 2 * work.num_draws):
        keys = jax.random.split(draw_key, len(shards))
        models = jax.tree.map(np.asarray, refit(keys, predictors, outcome, starts))
        reduced = TransportReduction(trim=True).run(
            draw_key,
            [jax.tree.map(lambda part, at=index: part[at], models) for index in range(len(shards))],
            fit.support,
            weights=fit.weights,
            start=fit.parameters,
        )
        draws.append(reduced.parameters)
    return draws


def _predictions(
    draws: Sequence[MixtureOfExpertsParameters], scores: Scores, num_probes: int
) -> dict[str, np.ndarray]:
    """Means at probes and log-likelihoods, ``(2, draws, …)``: two halves serve as chains."""
    laws = [MixtureOfExperts(scores.features, draw) for draw in draws]
    means = np.stack([np.asarray(law.mean)[:num_probes] for law in laws])
    logs = np.stack([np.asarray(law.log_prob(scores.outcome)) for law in laws])
    return {
        "prediction": means.reshape(2, -1, num_probes),
        "log_likelihood": logs.reshape(2, -1, len(scores.outcome)),
    }
