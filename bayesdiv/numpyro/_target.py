"""A NumPyro model's log-density over one unconstrained vector, for the start of a fit."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from numpyro import handlers

from bayesdiv.numpyro._whitened import WhitenedGuide

# Evaluated at once; more would only take memory.
_BATCH = 100


class NumPyroTarget:
    """Potential −log p(x, z) − log|dθ/dz| of the unconstrained latent vector z, in NumPy.

    ``guide`` supplies the order of z and learns the model's sites on the way.

    Raises
    ------
    ValueError
        A latent site is discrete, a plate is subsampled, there is nothing to infer, or the density
        is not finite wherever it was tried.
    """

    def __init__(
        self,
        guide: WhitenedGuide,
        rng_key: jax.Array,
        args: tuple,
        kwargs: Mapping[str, Any],
    ) -> None:
        check_model(guide.model, rng_key, args, kwargs)
        try:
            guide.set_up(rng_key, *args, **kwargs)
        except RuntimeError as error:
            if "initial parameters" not in str(error):
                raise
            raise ValueError(
                "no starting point has a finite log-density and gradient. Check the model's "
                "arguments for NaN and for values outside the support."
            ) from error
        self.dim = int(guide.latent_dim)
        self._first = np.asarray(guide._init_latent, dtype=np.float64)

        def potential(z: jax.Array) -> jax.Array:
            return guide._potential_fn(guide._unpack_latent(z))

        def values(z: jax.Array) -> jax.Array:
            return jax.lax.map(potential, z, batch_size=min(_BATCH, z.shape[0]))

        def hessian(z: jax.Array) -> jax.Array:
            def row(direction: jax.Array) -> jax.Array:
                return jax.jvp(jax.grad(potential), (z,), (direction,))[1]

            return jax.lax.map(row, jnp.eye(self.dim), batch_size=min(_BATCH, self.dim))

        self._value_and_gradient = jax.jit(jax.value_and_grad(potential))
        self._values = jax.jit(values)
        self._gradients = jax.jit(jax.grad(lambda z: values(z).sum()))
        self._hessian = jax.jit(hessian)

    def initial_point(self) -> np.ndarray:
        """A feasible point, zero for unconstrained sites."""
        return self._first

    def value_and_gradient(self, z: np.ndarray) -> tuple[float, np.ndarray]:
        """Potential and its gradient."""
        value, gradient = self._value_and_gradient(jnp.asarray(z))
        return float(value), np.asarray(gradient, dtype=np.float64)

    def hessian(self, z: np.ndarray) -> np.ndarray:
        """Second derivatives, ``(dim, dim)``."""
        return np.asarray(self._hessian(jnp.asarray(z)), dtype=np.float64)

    def values(self, z: np.ndarray) -> np.ndarray:
        """Potentials of a batch, ``(batch, dim)`` → ``(batch,)``."""
        return np.asarray(self._values(jnp.asarray(z)), dtype=np.float64)

    def gradients(self, z: np.ndarray) -> np.ndarray:
        """Gradients of a batch, ``(batch, dim)``."""
        return np.asarray(self._gradients(jnp.asarray(z)), dtype=np.float64)


def check_model(
    model: Callable, rng_key: jax.Array, args: tuple, kwargs: Mapping[str, Any]
) -> None:
    """Raise unless the model has continuous latent sites on its full data."""
    trace = handlers.trace(handlers.seed(model, rng_key)).get_trace(*args, **kwargs)
    samples = [site for site in trace.values() if site["type"] == "sample"]
    latent = [site for site in samples if not site["is_observed"]]
    if not latent:
        raise ValueError("model has no latent sites, so there is nothing to fit.")
    for site in latent:
        if site["fn"].support.is_discrete:
            raise ValueError(
                f"site {site['name']!r} is discrete, which the built-in guides do not approximate; "
                "marginalise it, or pass a guide of your own."
            )
    for name, site in trace.items():
        if site["type"] == "plate" and np.shape(site["value"])[0] < site["args"][0]:
            raise ValueError(
                f"plate {name!r} is subsampled ({np.shape(site['value'])[0]} of "
                f"{site['args'][0]}); fit starts from the curvature of the full data. Drop the "
                "subsampling, or run numpyro.infer.SVI with bayesdiv.numpyro.objective."
            )
