"""A mixture of experts of data in shards: longest local fit and reduction against EM of all rows.

Shards are fitted side by side, each where it lies, so that the longest of them is what one waits
for. Every fit has the same number of random starts, from the same noise.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from bayesdiv.data import simulate_experts
from bayesdiv.inference.moe_em import fit_experts
from bayesdiv.inference.moe_reduction import TransportReduction
from bayesdiv.numpyro.distributions import MixtureOfExperts
from benchmarks.cases import Case, Comparison, Duel, ResultsDiffer

TARGET = 0.1
# Of the mean test log-likelihood, in nats a row.
TOLERANCE = 0.005
Rows = tuple[jax.Array, jax.Array]


def cases(*, quick: bool) -> list[Case]:
    """The published simulation: 80,000 rows of 20 predictors, five experts, sixteen shards."""
    sizes = {"num_rows": 5000, "dim": 3, "num_experts": 2, "num_shards": 4, "num_starts": 2}
    if not quick:
        sizes = {"num_rows": 100_000, "dim": 20, "num_experts": 5, "num_shards": 16}
        sizes["num_starts"] = 10
    name = f"jax/shards/simulated/{sizes['num_shards']}"
    return [Case(name, functools.partial(prepare, **sizes))]


def prepare(*, num_rows: int, dim: int, num_experts: int, num_shards: int, num_starts: int) -> Duel:
    """Fit everything once, find the longest local fit, and compare on the last fifth of rows."""
    data = simulate_experts(0, num_rows, dim=dim, num_experts=num_experts)
    predictors = jnp.asarray(data.predictors, jnp.float32)
    outcome = jnp.asarray(data.outcome, jnp.float32)
    num_train = num_rows * 4 // 5
    length = num_train // num_shards
    everything = predictors[:num_train], outcome[:num_train]
    shards: list[Rows] = [
        (predictors[place : place + length], outcome[place : place + length])
        for place in range(0, num_shards * length, length)
    ]
    key, reduction = jax.random.key(0), TransportReduction()
    support = np.asarray(everything[0])[:: max(1, num_train // 2000)]

    @jax.jit
    def fit(predictors: jax.Array, outcome: jax.Array) -> Any:
        return fit_experts(key, predictors, outcome, num_experts, num_starts=num_starts)

    def reduced(fits: list[Any]) -> Any:
        models = [jax.tree.map(np.asarray, local.parameters) for local in fits]
        return reduction.run(key, models, support, num_experts=num_experts).parameters

    # Once for each shape to compile.
    compilation = {"all rows": _timed(fit, *everything)[1], "a shard": _timed(fit, *shards[0])[1]}
    whole, whole_seconds = _timed(fit, *everything)
    fits, seconds = zip(*(_timed(fit, *shard) for shard in shards), strict=True)
    longest = int(np.argmax(seconds))
    reduced(list(fits))
    model, reduction_seconds = _timed(reduced, list(fits))

    def distributed() -> Any:
        local = jax.block_until_ready(fit(*shards[longest]))
        return reduced([*fits[:longest], local, *fits[longest + 1 :]])

    test = predictors[num_train:], outcome[num_train:]
    notes = {
        "compilation": ", ".join(f"{name} {value:.2g} s" for name, value in compilation.items()),
        "EM iterations": f"all rows {int(whole.num_iterations)}, longest shard "
        f"{int(fits[longest].num_iterations)}",
        "seconds": f"all rows {whole_seconds:.2g}, shards {min(seconds):.2g} to "
        f"{max(seconds):.2g}, reduction {reduction_seconds:.2g}",
        "rows": f"{num_train} of {dim} predictors, {num_experts} experts, {num_starts} starts",
    }
    return Duel(
        {
            "global EM": lambda: jax.block_until_ready(fit(*everything)),
            "shard and reduction": distributed,
        },
        [Comparison("shard and reduction", "global EM", TARGET)],
        likelihoods_agree(log_likelihood(model, *test), log_likelihood(whole.parameters, *test)),
        notes,
    )


def log_likelihood(model: Any, predictors: jax.Array, outcome: jax.Array) -> float:
    """Mean over rows, in nats."""
    features = jnp.concatenate([jnp.ones_like(predictors[:, :1]), predictors], axis=1)
    return float(jnp.mean(MixtureOfExperts(features, model).log_prob(outcome)))


def likelihoods_agree(found: float, wanted: float) -> dict[str, float]:
    """The difference in nats a row.

    Raises
    ------
    ResultsDiffer
        If it is above `TOLERANCE`, or not a number.
    """
    gap = abs(found - wanted)
    if not gap <= TOLERANCE:
        raise ResultsDiffer(
            f"test log-likelihood: {found:.4f} and {wanted:.4f} nats a row, tolerance {TOLERANCE}"
        )
    return {"test log-likelihood, nats a row": gap}


def _timed(function: Callable[..., Any], *arguments: Any) -> tuple[Any, float]:
    start = time.perf_counter()
    found = jax.block_until_ready(function(*arguments))
    return found, time.perf_counter() - start
