"""NumPyro models with subsampled plates, and their potentials."""

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from numpyro import handlers

from bayesdiv.numpyro._minibatch import MinibatchPotential

X = np.linspace(-1.0, 2.0, 12)
Y = np.sin(3.0 * X)


def regression(x: Any, y: Any, batch: int | None = None) -> None:
    """Constrained sites, an event, a whole plate, a deterministic site in either kind of plate."""
    scale = numpyro.sample("scale", dist.HalfNormal(1.0))
    weight = numpyro.sample("weight", dist.Normal(0.0, 1.0).expand([2]).to_event(1))
    simplex = numpyro.sample("simplex", dist.Dirichlet(jnp.ones(3)))
    with numpyro.plate("groups", 2):
        shift = numpyro.sample("shift", dist.Normal(0.0, scale))
    numpyro.deterministic("total", weight.sum() + simplex[0])
    with numpyro.plate("data", len(x), subsample_size=batch) as rows:
        mean = weight[0] + weight[1] * x[rows] + shift[rows % 2] * simplex[0]
        numpyro.deterministic("mean", mean)
        numpyro.sample("y", dist.Normal(mean, scale), obs=y[rows])


def crossed(table: Any, batch: tuple[int, int] | None = None) -> None:
    """Two plates, both subsampled."""
    level = numpyro.sample("level", dist.Normal(0.0, 1.0))
    columns = numpyro.plate("columns", table.shape[1], None if batch is None else batch[1], dim=-1)
    rows = numpyro.plate("rows", table.shape[0], None if batch is None else batch[0], dim=-2)
    with rows as i, columns as j:
        numpyro.sample("y", dist.Normal(level, 0.5), obs=table[i[:, None], j[None, :]])


def potential_of(model: Callable, *args: Any) -> MinibatchPotential:
    """The minibatch potential of ``model``, whose sites are read off a run on ``args``."""
    trace = handlers.trace(handlers.seed(model, 0)).get_trace(*args)
    return MinibatchPotential(model, trace)
