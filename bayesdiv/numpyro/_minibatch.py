"""A NumPyro model's potential on a new minibatch at every call."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from numpyro import handlers
from numpyro.infer.util import constrain_fn, potential_energy

# What `handlers.seed` leaves alone, so that only `numpyro.prng_key` draws from it: a sample site
# without a value is a mistake that has to surface.
_NOT_SEEDED = ["sample", "plate", "control_flow"]


def draw_indices(key: jax.Array, size: int, count: int) -> jax.Array:
    """``count`` of the indices 0 to ``size`` − 1 in increasing order, one from each equal stretch.

    The line of length ``size`` is cut into ``count`` equal pieces and a uniform point drawn in
    each, so that every index comes ``count / size`` times in expectation, exactly. Sums over the
    draw have at most the variance of a simple random sample, up to O(``count / size``), and less
    where neighbours resemble each other. Where ``count`` does not divide ``size``, an index on a
    cut can come twice. The work is O(``count``); NumPyro's own draw shuffles all indices.
    """
    starts = np.arange(count, dtype=np.int64) * size
    # Integers all the way: floats could not tell the indices of large data apart.
    whole, rest = (starts // count).astype(np.int32), (starts % count).astype(np.int32)
    points = jax.random.randint(key, (count,), 0, size, dtype=jnp.int32)
    return jnp.asarray(whole) + (jnp.asarray(rest) + points) // count


class WithJaxArrays:
    """``model``, with the NumPy arrays among its arguments as JAX arrays.

    A minibatch's indices are traced, and NumPy arrays do not take traced indices.
    """

    def __init__(self, model: Callable) -> None:
        self.__wrapped__ = model

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        def convert(leaf: Any) -> Any:
            if isinstance(leaf, np.ndarray) and leaf.dtype.kind in "biufc":
                return jnp.asarray(leaf)
            return leaf

        # Concrete inside compiled code too: a model may look at the values of an argument.
        with jax.ensure_compile_time_eval():
            args, kwargs = jax.tree.map(convert, (args, kwargs))
        return self.__wrapped__(*args, **kwargs)


class MinibatchPotential:
    r"""−log p̃ of a model in unconstrained coordinates z, estimated on a minibatch.

    .. math:: \hat U(z) = -\sum_s \frac{N_s}{B_s} \log p_s(x(z)) - \log |\det ∂x/∂z|,

    where the plates around site s supply N_s/B_s. Plates without ``subsample_size`` are whole.

    Parameters
    ----------
    model
        A NumPyro model.
    trace
        Of one seeded run, with its arguments.

    Raises
    ------
    ValueError
        If the model has no latent site, a latent site is discrete, or one lies in a subsampled
        plate.
    """

    def __init__(self, model: Callable, trace: Mapping[str, Any]) -> None:
        self.model = model
        self.plates = {
            name: (site["args"][0], site["value"].shape[0])
            for name, site in trace.items()
            if site["type"] == "plate" and site["value"].shape[0] < site["args"][0]
        }
        # Not sampled, but initialised at random: every call has to see the same values.
        self.fixed = {
            name: site["value"]
            for name, site in trace.items()
            if site["type"] in ("param", "mutable")
        }
        self._check_latent_sites(trace)
        self._local = {name for name, site in trace.items() if self._plates_around(site)}

    def __call__(
        self, z: Mapping[str, Any], key: jax.Array, args: tuple, kwargs: Mapping[str, Any]
    ) -> jax.Array:
        """Estimate at ``z``, a scalar; ``key`` draws the minibatch and the model's ``prng_key``."""
        keys = [jax.random.fold_in(key, place) for place in range(len(self.plates) + 1)]
        indices = {
            name: draw_indices(plate_key, size, count)
            for plate_key, (name, (size, count)) in zip(keys[1:], self.plates.items(), strict=True)
        }
        seeded = handlers.seed(self.model, keys[0], hide_types=_NOT_SEEDED)
        return potential_energy(seeded, args, kwargs, {**z, **indices, **self.fixed})

    def constrain(
        self, z: Mapping[str, Any], args: tuple, kwargs: Mapping[str, Any]
    ) -> dict[str, Any]:
        """Constrained values of the latent sites, and the deterministic sites.

        Deterministic sites in a subsampled plate are left out: they belong to a minibatch.
        """
        indices = {name: jnp.arange(count) for name, (_, count) in self.plates.items()}
        model = handlers.seed(self.model, jax.random.key(0), hide_types=_NOT_SEEDED)
        model = handlers.substitute(model, data={**indices, **self.fixed})
        values = constrain_fn(model, args, dict(kwargs), dict(z), return_deterministic=True)
        return {name: value for name, value in values.items() if name not in self._local}

    def _plates_around(self, site: Mapping[str, Any]) -> list[str]:
        frames = site.get("cond_indep_stack", [])
        return [frame.name for frame in frames if frame.name in self.plates]

    def _check_latent_sites(self, trace: Mapping[str, Any]) -> None:
        latent = {
            name: site
            for name, site in trace.items()
            if site["type"] == "sample" and not site["is_observed"]
        }
        if not latent:
            raise ValueError("model has no latent sites, so there is nothing to sample.")
        for name, site in latent.items():
            if site["fn"].support.is_discrete:
                raise ValueError(
                    f"site {name!r} is discrete ({type(_base(site['fn'])).__name__}), and its "
                    "potential has no gradient; sum the site out of the model."
                )
            around = self._plates_around(site)
            if around:
                raise ValueError(
                    f"latent site {name!r} lies in the subsampled plate {around[0]!r}, where its "
                    "entries would belong to other data at every step; make the plate whole, or "
                    "integrate the site out."
                )


def _base(fn: Any) -> Any:
    while isinstance(fn, dist.Independent | dist.ExpandedDistribution | dist.MaskedDistribution):
        fn = fn.base_dist
    return fn
