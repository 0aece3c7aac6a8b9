"""Markov targets over short sequences for NumPyro, with every sequence written down beside them.

The model draws sites ``"x0"``, ``"x1"``, … from a Markov chain and adds a factor ``"target"``; the
policy is a chain with free logits. Small enough for exact values, they are what the estimators
of the score function are measured on in JAX.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist

__all__ = ["MarkovTarget", "hidden_markov_target"]


@dataclass(frozen=True)
class MarkovTarget:
    """P(x) = a(x) exp(log_factor(x)), a a Markov chain.

    Attributes
    ----------
    initial, transition
        Probabilities of the first symbol, ``(k,)``, and of the next, ``(k, k)``.
    length
        Symbols of a sequence.
    log_factor
        Of one sequence, ``(length,)``; −∞ rules it out.
    """

    initial: jax.Array
    transition: jax.Array
    length: int
    log_factor: Callable[[jax.Array], jax.Array]

    def start(self) -> jax.Array:
        """The policy's logits at the chain itself: a row for each last symbol, then the start's."""
        return jnp.log(jnp.concatenate([self.transition, self.initial[None]]))

    def model(self) -> None:
        """The NumPyro model."""
        value = self._sites(self.start())
        numpyro.factor("target", self.log_factor(value))

    def guide(self) -> None:
        """A chain whose logits, ``(k + 1, k)``, are the parameter ``"logits"``."""
        self._sites(numpyro.param("logits", self.start()))

    def _sites(self, logits: jax.Array) -> jax.Array:
        last, drawn = len(self.initial), []
        for time in range(self.length):
            last = numpyro.sample(f"x{time}", dist.Categorical(logits=logits[last]))
            drawn.append(last)
        return jnp.stack(drawn)

    def support(self) -> jax.Array:
        """Every sequence, ``(k^length, length)``."""
        symbols = range(len(self.initial))
        return jnp.asarray(np.array(list(itertools.product(symbols, repeat=self.length))))

    def log_policy(self, logits: jax.Array, value: jax.Array) -> jax.Array:
        """log π(x) of sequences ``(n, length)`` under a policy's logits, ``(n,)``."""
        table = jax.nn.log_softmax(logits, axis=-1)
        first = jnp.full_like(value[:, :1], len(self.initial))
        before = jnp.concatenate([first, value[:, :-1]], axis=1)
        return jnp.sum(table[before, value], axis=1)

    def log_joint(self, value: jax.Array) -> jax.Array:
        """log P(x), unnormalised, ``(n,)``."""
        return self.log_policy(self.start(), value) + jax.vmap(self.log_factor)(value)

    def log_normalizer(self) -> jax.Array:
        """log Z, by adding up every sequence."""
        return jax.scipy.special.logsumexp(self.log_joint(self.support()))


def hidden_markov_target(
    initial: jax.Array, transition: jax.Array, emission: jax.Array, observations: jax.Array
) -> MarkovTarget:
    """The posterior of a hidden Markov chain's states; Z is the evidence.

    ``emission`` has shape ``(k, m)``, ``observations`` ``(length,)``.
    """
    likelihood = jnp.log(emission)[:, observations].T
    times = jnp.arange(len(observations))

    def log_factor(value: jax.Array) -> jax.Array:
        return jnp.sum(likelihood[times, value])

    return MarkovTarget(initial, transition, len(observations), log_factor)
