"""The law of a pixel given a network's output, for torch and JAX."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from bayesdiv import _continuous_bernoulli
from bayesdiv._array import Array, array_namespace, clip, log_mean_exp, softplus
from bayesdiv._continuous_bernoulli import MAX_LOGIT
from bayesdiv._control import is_traced
from bayesdiv._random import standard_normal, standard_uniform

LIKELIHOODS = ("continuous_bernoulli", "gaussian")


@dataclass(frozen=True)
class PixelLikelihood:
    """Independent pixels given outputs ℓ: continuous Bernoulli of logit ℓ, or N(ℓ, noise²).

    Attributes
    ----------
    name : str
        ``"continuous_bernoulli"``, for data in [0, 1], or ``"gaussian"``, whose mean is the output
        itself, without a squashing function.
    noise : float
        Standard deviation of the Gaussian.

    Raises
    ------
    ValueError
        If the name is unknown or the noise not positive.
    """

    name: str = "continuous_bernoulli"
    noise: float = 0.1

    def __post_init__(self) -> None:
        if self.name not in LIKELIHOODS:
            raise ValueError(f"likelihood must be one of {LIKELIHOODS}, got {self.name!r}.")
        if not is_traced(self.noise) and not 0.0 < self.noise < math.inf:
            raise ValueError(f"noise must be positive and finite, got {self.noise!r}.")

    def check(self, images: Any) -> None:
        """Raise a ValueError if ``images`` are outside the support; call it once, on all data."""
        if self.name == "continuous_bernoulli":
            _continuous_bernoulli.check_unit_interval(images)

    def log_prob(self, images: Array, outputs: Array) -> Array:
        """log p(image | outputs) in nats, summed over the last axis."""
        xp = array_namespace(outputs)
        if self.name == "continuous_bernoulli":
            return xp.sum(_continuous_bernoulli.log_prob(images, outputs), axis=-1)
        log_scale = math.log(self.noise) + 0.5 * math.log(2.0 * math.pi)
        return xp.sum(-0.5 * ((images - outputs) / self.noise) ** 2 - log_scale, axis=-1)

    def mean(self, outputs: Array) -> Array:
        """E[image | outputs]: the reconstruction."""
        if self.name == "continuous_bernoulli":
            return _continuous_bernoulli.mean(outputs)
        return outputs

    def average(self, outputs: Array, axis: int = 0) -> Array:
        """One output that stands for many: the logit of the averaged sigmoids, or the average.

        The log density at it is the plug-in score, not the logarithm of an averaged density.
        """
        if self.name == "gaussian":
            return array_namespace(outputs).mean(outputs, axis=axis)
        logits = clip(outputs, -MAX_LOGIT, MAX_LOGIT)
        return log_mean_exp(-softplus(-logits), axis) - log_mean_exp(-softplus(logits), axis)

    def sample(self, rng: Any, outputs: Array) -> Array:
        """A draw for every output, differentiable in the outputs."""
        if self.name == "gaussian":
            return outputs + self.noise * standard_normal(rng, tuple(outputs.shape), outputs)
        uniform = standard_uniform(rng, tuple(outputs.shape), outputs)
        return _continuous_bernoulli.icdf(uniform, outputs)
