"""The continuous Bernoulli law for Pyro."""

from __future__ import annotations

from typing import Any

import torch
from pyro.distributions import constraints
from pyro.distributions.torch_distribution import TorchDistribution
from torch.distributions.kl import register_kl

from bayesdiv import _continuous_bernoulli as formulas

__all__ = ["ContinuousBernoulli"]


class ContinuousBernoulli(TorchDistribution):
    """The continuous Bernoulli law on [0, 1] with logit ℓ: p(x) ∝ e^(ℓx).

    Differs from ``pyro.distributions.ContinuousBernoulli`` in that density, mean and draws share
    the limits −15.9 ≤ ℓ ≤ 15.9, and that values and gradients are smooth and exact around ℓ = 0.

    Parameters
    ----------
    logits
        Any batch shape. ``1 / (1 + e^(−ℓ))`` is not the mean.
    validate_args
        As everywhere in Pyro; where on, `log_prob` looks at the values.

    Raises
    ------
    ValueError
        In `log_prob` and `cdf`, if validation is on and a value is outside [0, 1]; the message
        has the extremes.

    References
    ----------
    Loaiza-Ganem and Cunningham (2019), "The continuous Bernoulli: fixing a pervasive error in
    variational autoencoders".

    Examples
    --------
    >>> law = ContinuousBernoulli(logits=torch.zeros(3))
    >>> law.mean
    tensor([0.5000, 0.5000, 0.5000])
    """

    arg_constraints = {"logits": constraints.real}
    support = constraints.unit_interval
    has_rsample = True

    def __init__(self, logits: Any, *, validate_args: bool | None = None) -> None:
        self.logits = torch.as_tensor(logits)
        if not self.logits.is_floating_point():
            self.logits = self.logits.to(torch.get_default_dtype())
        super().__init__(self.logits.shape, validate_args=validate_args)

    def expand(
        self, batch_shape: Any, _instance: ContinuousBernoulli | None = None
    ) -> ContinuousBernoulli:
        new = self._get_checked_instance(ContinuousBernoulli, _instance)
        new.logits = self.logits.expand(torch.Size(batch_shape))
        super(ContinuousBernoulli, new).__init__(new.logits.shape, validate_args=False)
        new._validate_args = self._validate_args
        return new

    def _validate_sample(self, value: torch.Tensor) -> None:
        if not self.support.check(value).all():
            formulas.check_unit_interval(value, "value")

    def log_prob(self, value: torch.Tensor) -> torch.Tensor:
        if self._validate_args:
            self._validate_sample(value)
        return formulas.log_prob(value, self.logits)

    def cdf(self, value: torch.Tensor) -> torch.Tensor:
        if self._validate_args:
            self._validate_sample(value)
        return formulas.cdf(value, self.logits)

    def icdf(self, value: torch.Tensor) -> torch.Tensor:
        return formulas.icdf(value, self.logits)

    def rsample(self, sample_shape: Any = torch.Size()) -> torch.Tensor:  # noqa: B008 - torch's own
        shape = self._extended_shape(torch.Size(sample_shape))
        uniform = torch.rand(shape, dtype=self.logits.dtype, device=self.logits.device)
        return formulas.icdf(uniform, self.logits)

    @property
    def mean(self) -> torch.Tensor:
        return formulas.mean(self.logits)

    @property
    def variance(self) -> torch.Tensor:
        return formulas.variance(self.logits)

    def entropy(self) -> torch.Tensor:
        return formulas.entropy(self.logits)


@register_kl(ContinuousBernoulli, ContinuousBernoulli)
def _kl(p: ContinuousBernoulli, q: ContinuousBernoulli) -> torch.Tensor:
    return formulas.kl_divergence(p.logits, q.logits)
