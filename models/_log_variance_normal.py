"""The normal law of a return, given its log-variance."""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp
from numpyro.distributions import Distribution, constraints

_LOG_TWO_PI = math.log(2.0 * math.pi)


class LogVarianceNormal(Distribution):
    r"""Normal with mean 0 and variance :math:`e^h`, in one exponential.

    .. math:: \log N(y; 0, e^h) = -\tfrac12 \{ \log 2\pi + h + y^2 e^{-h} \}.

    A ``Normal`` with scale :math:`e^{h/2}` takes a logarithm and a division besides, an eighth of a
    bootstrap filter's time.

    Parameters
    ----------
    log_variance
        h, of any shape, which is that of the batch.
    """

    arg_constraints = {"log_variance": constraints.real}
    support = constraints.real
    reparametrized_params = ["log_variance"]

    def __init__(self, log_variance: Any, *, validate_args: bool | None = None) -> None:
        self.log_variance = log_variance
        super().__init__(batch_shape=jnp.shape(log_variance), validate_args=validate_args)

    def sample(self, key: jax.Array, sample_shape: tuple[int, ...] = ()) -> jax.Array:
        noise = jax.random.normal(key, sample_shape + self.batch_shape, self._dtype)
        return jnp.exp(0.5 * self.log_variance) * noise

    def log_prob(self, value: jax.Array) -> jax.Array:
        # Squared last: the exponential of all of −h would overflow earlier.
        scaled = jnp.square(value * jnp.exp(-0.5 * self.log_variance))
        return -0.5 * (_LOG_TWO_PI + self.log_variance + scaled)

    @property
    def mean(self) -> jax.Array:
        return jnp.zeros(self.batch_shape, self._dtype)

    @property
    def variance(self) -> jax.Array:
        return jnp.exp(self.log_variance)

    @property
    def _dtype(self) -> Any:
        return jnp.result_type(self.log_variance, float)
