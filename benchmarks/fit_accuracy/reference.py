"""Reference draws: NumPyro's NUTS, in coordinates where it mixes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import arviz
import jax
import jax.numpy as jnp
import numpy as np
import scipy.optimize
from numpyro.infer import MCMC, NUTS
from numpyro.infer.util import initialize_model

from bayesdiv.fitting._start import scale_tril_of
from benchmarks.fit_accuracy import models_numpyro
from benchmarks.fit_accuracy.tables import Table


class Reference(NamedTuple):
    """Draws by site, ``(chain, draw, *shape)``, with the worst R-hat and effective sample size."""

    draws: dict[str, np.ndarray]
    worst_rhat: float
    least_ess: float


def reference_of(table: Table) -> Reference:
    """Draws for a table's model.

    The density of a centred hierarchy has no mode (it grows without bound as the spread goes to
    zero), so its draws are those of the non-centred model, which is the same one, moved.
    """
    if table.model != "hierarchical_centred":
        return nuts_reference(getattr(models_numpyro, table.model), table.arguments)
    found = nuts_reference(models_numpyro.hierarchical, table.arguments)
    sites = dict(found.draws)
    offsets = sites.pop("offset")
    sites["level"] = sites["intercept"][..., None] + sites["spread"][..., None] * offsets
    return found._replace(draws=sites)


def nuts_reference(
    model: Callable,
    arguments: tuple[Any, ...],
    *,
    num_chains: int = 4,
    num_samples: int = 2500,
    seed: int = 0,
) -> Reference:
    """NUTS on z = mode + L w, an exact change of variables: raw predictors would need days.

    L comes from the curvature at a mode found with SciPy; it only preconditions.
    """
    with jax.enable_x64(True):  # noqa: FBT003 - positional in JAX
        arguments = tuple(jnp.asarray(argument) for argument in arguments)
        info = initialize_model(jax.random.key(seed), model, model_args=arguments)
        first, unravel = jax.flatten_util.ravel_pytree(info.param_info.z)
        potential = jax.jit(lambda z: info.potential_fn(unravel(z)))
        slope, curvature = jax.jit(jax.grad(potential)), jax.jit(jax.hessian(potential))
        mode = np.zeros(first.shape)
        for _ in range(5):
            # Rescaling by the local curvature lets a quasi-Newton method finish the job.
            factor = scale_tril_of(np.asarray(curvature(mode)))
            found = scipy.optimize.minimize(
                lambda w, m=mode, f=factor: float(potential(m + f @ w)),
                np.zeros_like(mode),
                jac=lambda w, m=mode, f=factor: f.T @ np.asarray(slope(m + f @ w)),
                method="BFGS",
            )
            mode = mode + factor @ found.x
        factor = jnp.asarray(scale_tril_of(np.asarray(curvature(mode))))
        centre = jnp.asarray(mode)
        kernel = NUTS(potential_fn=lambda w: potential(centre + factor @ w), dense_mass=True)
        mcmc = MCMC(
            kernel,
            num_warmup=500,
            num_samples=num_samples,
            num_chains=num_chains,
            chain_method="vectorized",
            progress_bar=False,
        )
        starts = jax.random.normal(jax.random.key(seed + 1), (num_chains, len(mode)))
        mcmc.run(jax.random.key(seed + 2), init_params=starts)
        whitened = mcmc.get_samples(group_by_chain=True)
        constrain = jax.vmap(jax.vmap(lambda w: info.postprocess_fn(unravel(centre + factor @ w))))
        sites = {name: np.asarray(value) for name, value in constrain(whitened).items()}
    posterior = arviz.from_dict(sites)
    rhat = max(float(value.max()) for value in arviz.rhat(posterior).values())
    ess = min(float(value.min()) for value in arviz.ess(posterior).values())
    return Reference(sites, rhat, ess)
