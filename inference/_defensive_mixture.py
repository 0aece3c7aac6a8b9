"""A mixture of experts with a share of the transition kernel in it."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from numpyro.distributions import Distribution

__all__ = ["DefensiveMixture"]


class DefensiveMixture(Distribution):
    r"""r = (1 − ε) m + ε q, with m the learnt kernel and q the transition.

    Its density is at least ε q, so that importance weights q g / r are at most g / ε.

    Parameters
    ----------
    learnt
        m.
    transition
        q, of the same batch and event shape.
    fraction
        ε in [0, 1], a number that may be traced; at 1 this is q to the last bit.
    """

    pytree_data_fields = ("learnt", "transition", "fraction")

    def __init__(self, learnt: Any, transition: Any, fraction: Any) -> None:
        self.learnt, self.transition, self.fraction = learnt, transition, fraction
        super().__init__(transition.batch_shape, transition.event_shape, validate_args=False)

    @property
    def support(self) -> Any:
        return self.transition.support

    def sample(self, key: jax.Array, sample_shape: tuple[int, ...] = ()) -> jax.Array:
        learnt_key, transition_key, choice_key = jax.random.split(key, 3)
        drawn = self.learnt.sample(learnt_key, sample_shape)
        defensive = self.transition.sample(transition_key, sample_shape).astype(drawn.dtype)
        chosen = jax.random.uniform(choice_key, sample_shape + self.batch_shape, drawn.dtype)
        chosen = (chosen < self.fraction).reshape(chosen.shape + (1,) * len(self.event_shape))
        return jnp.where(chosen, defensive, drawn)

    def log_prob(self, value: jax.Array) -> jax.Array:
        fraction = jnp.asarray(self.fraction, value.dtype)
        return mixed(self.learnt.log_prob(value), self.transition.log_prob(value), fraction)


def mixed(learnt: jax.Array, transition: jax.Array, fraction: jax.Array) -> jax.Array:
    """log{(1 − ε) eˡ + ε eᵗ}."""
    return jnp.logaddexp(jnp.log1p(-fraction) + learnt, jnp.log(fraction) + transition)
