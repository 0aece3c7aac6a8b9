"""Guides in coordinates where the posterior is nearly standard normal."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from numpyro import handlers
from numpyro.distributions.transforms import (
    AffineTransform,
    ComposeTransform,
    IndependentTransform,
    LowerCholeskyAffine,
)
from numpyro.infer import init_to_feasible
from numpyro.infer.autoguide import AutoContinuous

from bayesdiv.fitting import Start
from bayesdiv.numpyro._flow import build_layers, initial_parameters

_REBUILT = ("_potential_fn_gen", "_potential_fn", "_postprocess_fn", "_unpack_latent")


class WhitenedGuide(AutoContinuous):
    r"""q(z) of the unconstrained latent vector, parameterised around a :class:`Start` (m, L).

    ==============  =============================================================
    ``mean_field``  z = m + L a + diag(s₀) exp(r) ε, one scale a coordinate
    ``full_rank``   z = m + L (a + S ε), S lower triangular
    ``flow``        z = m + L (a + diag(exp(r)) T(ε)), T close to the identity
    ==============  =============================================================

    with ε standard normal. The parameters are of order one whatever the units of the model, and the
    means move along the principal axes even where the scales may not. ``start`` has to be set
    before the guide is called.
    """

    def __init__(self, model: Callable, family: str, *, prefix: str = "auto") -> None:
        # Medians of wide priors can be far out, where a count model already overflows.
        super().__init__(model, prefix=prefix, init_loc_fn=init_to_feasible)
        self.family = family
        self.start: Start | None = None
        self._sign: Any = None

    def __getstate__(self) -> dict[str, Any]:
        state = super().__getstate__()
        # Closures do not pickle; a call of the guide makes them again.
        for name in _REBUILT:
            state.pop(name, None)
        return {**state, "prototype_trace": None, "_prototype_frames": {}, "_sign": None}

    @property
    def is_whitened(self) -> bool:
        """Whether every parameter is in posterior standard deviations."""
        return self.family != "flow"

    def set_up(self, rng_key: jax.Array, *args: Any, **kwargs: Any) -> None:
        """Learn the model's latent sites, once."""
        if self.prototype_trace is None:
            with handlers.seed(rng_seed=rng_key):
                self._setup_prototype(*args, **kwargs)

    def initial_parameters(self, rng: np.random.Generator) -> dict[str, np.ndarray]:
        """Values about half a posterior standard deviation from the start, for one restart."""
        values = self._defaults(rng)
        noise = {"shift": 0.5, "log_scale": 0.2} if self.family != "flow" else {"shift": 0.5}
        for name, size in noise.items():
            values[name] = values[name] + size * rng.standard_normal(values[name].shape)
        return {f"{self.prefix}_{name}": value for name, value in values.items()}

    def _defaults(self, rng: np.random.Generator) -> dict[str, np.ndarray]:
        dim = self._fitted_start.location.size
        values = {"shift": np.zeros(dim)}
        if self.family == "flow":
            return values | initial_parameters(dim, rng)
        values["log_scale"] = np.zeros(dim)
        if self.family == "full_rank":
            values["lower"] = np.zeros(dim * (dim - 1) // 2)
        return values

    @property
    def _fitted_start(self) -> Start:
        if self.start is None:
            raise ValueError("the guide has no start yet; bayesdiv.numpyro.fit sets it.")
        return self.start

    def _parameters(self) -> dict[str, Any]:
        defaults = self._defaults(np.random.default_rng(0))
        return {
            name: _in_precision(numpyro.param(f"{self.prefix}_{name}", jnp.asarray(value)))
            for name, value in defaults.items()
        }

    def _get_posterior(self) -> Any:
        return self._distribution(self._parameters())

    def _distribution(self, values: dict[str, Any]) -> Any:
        sign = 1.0 if self._sign is None else self._sign
        loc = self._location(values)
        if self.family == "mean_field":
            return MirroredNormal(loc, self._scale(values), sign=sign).to_event(1)
        if self.family == "full_rank":
            return MirroredMultivariateNormal(loc, self._scale_tril(values), sign=sign)
        noise = MirroredNormal(jnp.zeros_like(loc), 1.0, sign=sign).to_event(1)
        return dist.TransformedDistribution(noise, self._transforms(values))

    def _location(self, values: dict[str, Any]) -> jax.Array:
        start = self._fitted_start
        return _in_precision(start.location) + _in_precision(start.scale_tril) @ values["shift"]

    def _scale(self, values: dict[str, Any]) -> jax.Array:
        # Of all diagonal normals the reverse-KL optimum has the conditional scales.
        inverse = np.linalg.inv(self._fitted_start.scale_tril)
        return _in_precision((inverse**2).sum(0) ** -0.5) * jnp.exp(values["log_scale"])

    def _scale_tril(self, values: dict[str, Any]) -> jax.Array:
        dim = values["shift"].shape[-1]
        inner = jnp.diag(jnp.exp(values["log_scale"]))
        inner = inner.at[jnp.tril_indices(dim, -1)].set(values["lower"])
        return _in_precision(self._fitted_start.scale_tril) @ inner

    def _transforms(self, values: dict[str, Any]) -> list[Any]:
        outer = _in_precision(self._fitted_start.scale_tril) * jnp.exp(values["log_scale"])
        return [*build_layers(values), LowerCholeskyAffine(self._location(values), outer)]

    def _by_name(self, params: dict[str, Any]) -> dict[str, Any]:
        names = self._defaults(np.random.default_rng(0))
        return {name: _in_precision(params[f"{self.prefix}_{name}"]) for name in names}

    def get_base_dist(self) -> Any:
        """A standard normal of as many dimensions as the latent vector has."""
        return dist.Normal(jnp.zeros(self._fitted_start.location.size), 1.0).to_event(1)

    def get_transform(self, params: dict[str, Any]) -> Any:
        """From :meth:`get_base_dist` to the unconstrained latent vector."""
        values = self._by_name(params)
        if self.family == "flow":
            return ComposeTransform(self._transforms(values))
        if self.family == "mean_field":
            affine = AffineTransform(self._location(values), self._scale(values))
            return IndependentTransform(affine, 1)
        return LowerCholeskyAffine(self._location(values), self._scale_tril(values))

    def get_posterior(self, params: dict[str, Any]) -> Any:
        """The distribution of the unconstrained latent vector, event shape ``(dim,)``."""
        return self._distribution(self._by_name(params))

    def loc_and_scale(self, params: dict[str, Any]) -> tuple[jax.Array, jax.Array]:
        """Means and standard deviations of the latent vector; a flow's from 4000 draws."""
        posterior = self.get_posterior(params)
        if self.family == "flow":
            draws = posterior.sample(jax.random.PRNGKey(0), (4000,))
            return draws.mean(0), draws.std(0)
        return posterior.mean, jnp.sqrt(posterior.variance)

    def median(self, params: dict[str, Any]) -> dict[str, Any]:
        """Medians of the latent sites; a flow's from 4000 draws."""
        return self._unpack_and_constrain(self._latent_quantiles(params, [0.5])[0], params)

    def quantiles(self, params: dict[str, Any], quantiles: Any) -> dict[str, Any]:
        """Quantiles of the latent sites, one an entry of ``quantiles``; a flow's from draws."""
        return self._unpack_and_constrain(self._latent_quantiles(params, quantiles), params)

    def _latent_quantiles(self, params: dict[str, Any], quantiles: Any) -> jax.Array:
        levels = jnp.asarray(quantiles)
        if self.family == "flow":
            draws = self.get_posterior(params).sample(jax.random.PRNGKey(0), (4000,))
            return jnp.quantile(draws, levels, axis=0)
        loc, scale = self.loc_and_scale(params)
        return dist.Normal(loc, scale).icdf(levels[..., None])

    @contextmanager
    def _signed(self, sign: Any) -> Iterator[None]:
        self._sign = sign
        try:
            yield
        finally:
            self._sign = None


def mirrored_particles(guide: WhitenedGuide) -> Callable[[Callable, jax.Array], Any]:
    """A map over particles that draws them in pairs ±ε, for ``vectorize_particles``.

    Noise that is linear in ε then cancels from the gradients of a step.
    """

    def mapped(function: Callable, keys: jax.Array) -> Any:
        count = keys.shape[0]
        half = keys[: (count + 1) // 2]
        signs = jnp.where(jnp.arange(2 * half.shape[0]) < half.shape[0], 1.0, -1.0)

        def one(key: jax.Array, sign: jax.Array) -> Any:
            with guide._signed(sign):
                return function(key)

        return jax.vmap(one)(jnp.concatenate([half, half])[:count], signs[:count])

    return mapped


class MirroredNormal(dist.Normal):
    """A normal whose draws are loc + sign · scale · ε, with the density of the normal."""

    pytree_data_fields = ("sign",)

    def __init__(self, loc: Any = 0.0, scale: Any = 1.0, *, sign: Any = 1.0) -> None:
        self.sign = sign
        super().__init__(loc, scale)

    def sample(self, key: jax.Array, sample_shape: tuple[int, ...] = ()) -> jax.Array:
        shape = sample_shape + self.batch_shape + self.event_shape
        return self.loc + self.sign * self.scale * jax.random.normal(key, shape)


class MirroredMultivariateNormal(dist.MultivariateNormal):
    """The same for a multivariate normal with Cholesky factor ``scale_tril``."""

    pytree_data_fields = ("sign",)

    def __init__(self, loc: Any, scale_tril: Any, *, sign: Any = 1.0) -> None:
        self.sign = sign
        super().__init__(loc, scale_tril=scale_tril)

    def sample(self, key: jax.Array, sample_shape: tuple[int, ...] = ()) -> jax.Array:
        shape = sample_shape + self.batch_shape + self.event_shape
        noise = self.sign * jax.random.normal(key, shape)
        return self.loc + jnp.squeeze(self.scale_tril @ noise[..., None], axis=-1)


def _in_precision(value: Any) -> jax.Array:
    """``value`` in the precision of the moment: fits are in float64, later use may not be."""
    return jnp.asarray(value, dtype=jax.dtypes.canonicalize_dtype(value.dtype))
