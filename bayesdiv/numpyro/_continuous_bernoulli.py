"""The continuous Bernoulli law for NumPyro."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from numpyro.distributions import Distribution, constraints, kl_divergence
from numpyro.util import is_prng_key

from bayesdiv import _continuous_bernoulli as formulas
from bayesdiv._control import is_traced

__all__ = ["ContinuousBernoulli"]


class ContinuousBernoulli(Distribution):
    """The continuous Bernoulli law on [0, 1] with logit ℓ: p(x) ∝ e^(ℓx).

    Density, mean and draws share the limits −15.9 ≤ ℓ ≤ 15.9; values and gradients are smooth and
    exact around ℓ = 0.

    Parameters
    ----------
    logits
        Any batch shape. ``1 / (1 + e^(−ℓ))`` is not the mean.
    validate_args
        As everywhere in NumPyro.

    Raises
    ------
    ValueError
        In `log_prob`, if ``validate_args`` is on and a value that is not traced is outside
        [0, 1]; the message has the extremes.

    References
    ----------
    Loaiza-Ganem and Cunningham (2019), "The continuous Bernoulli: fixing a pervasive error in
    variational autoencoders".

    Examples
    --------
    >>> law = ContinuousBernoulli(logits=jnp.zeros(3))
    >>> law.mean.tolist()
    [0.5, 0.5, 0.5]
    """

    arg_constraints = {"logits": constraints.real}
    support = constraints.unit_interval
    reparametrized_params = ["logits"]

    def __init__(self, logits: Any, *, validate_args: bool | None = None) -> None:
        self.logits = jnp.asarray(logits, dtype=jnp.result_type(logits, float))
        super().__init__(self.logits.shape, validate_args=validate_args)

    def sample(self, key: jax.Array | None, sample_shape: tuple[int, ...] = ()) -> jax.Array:
        if key is None or not is_prng_key(key):
            raise TypeError(f"key must be a JAX key, got {type(key).__name__}.")
        shape = tuple(sample_shape) + self.batch_shape
        uniform = jax.random.uniform(key, shape, dtype=self.logits.dtype)
        return formulas.icdf(uniform, self.logits)

    def log_prob(self, value: Any) -> jax.Array:
        if self._validate_args and not is_traced(value):
            formulas.check_unit_interval(np.asarray(value), "value")
        return formulas.log_prob(jnp.asarray(value), self.logits)

    def cdf(self, value: Any) -> jax.Array:
        return formulas.cdf(jnp.asarray(value), self.logits)

    def icdf(self, q: Any) -> jax.Array:
        return formulas.icdf(jnp.asarray(q), self.logits)

    @property
    def mean(self) -> jax.Array:
        return formulas.mean(self.logits)

    @property
    def variance(self) -> jax.Array:
        return formulas.variance(self.logits)

    def entropy(self) -> jax.Array:
        return formulas.entropy(self.logits)


@kl_divergence.register(ContinuousBernoulli, ContinuousBernoulli)
def _kl(p: ContinuousBernoulli, q: ContinuousBernoulli) -> jax.Array:
    return formulas.kl_divergence(p.logits, q.logits)
