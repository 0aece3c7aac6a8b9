"""The von Mises–Fisher law on the sphere, in any dimension, for Pyro."""

from __future__ import annotations

import math
from typing import Any

import torch
from pyro.distributions import constraints
from pyro.distributions.torch_distribution import TorchDistribution

__all__ = ["VonMisesFisher"]

# Shorter directions have none.
_LEAST_NORM = 1e-6
# Of a component of a draw; one in some thirds of the proposals is refused.
_MAX_ROUNDS = 1000


class VonMisesFisher(TorchDistribution):
    r"""p(x) = C_d(κ) exp(κ ⟨μ, x⟩) on unit vectors x of d ≥ 2 dimensions.

    .. math:: C_d(κ) = \frac{κ^{d/2-1}}{(2π)^{d/2} I_{d/2-1}(κ)}, \qquad
              E[x] = \frac{I_{d/2}(κ)}{I_{d/2-1}(κ)}\, μ

    The negative log-density is κ(1 − cos) up to a constant: a likelihood of a waveform's shape that
    does not look at its amplitude, with a slope that vanishes where shapes agree (that of the angle
    itself is infinite there).

    Parameters
    ----------
    direction
        μ, ``(*batch, d)``, of any length; it is divided by it, or by 10⁻⁶ where it is shorter.
    concentration
        κ, a positive number. It is not learnt: torch has no derivative of the Bessel function.
    validate_args
        As everywhere in Pyro; where on, `log_prob` looks at the values.

    Raises
    ------
    TypeError
        A concentration that is not a number.
    ValueError
        One that is not positive and finite, a direction of fewer than two dimensions, or, in
        `log_prob` with validation, a value that is not of length one.

    References
    ----------
    Mardia and Jupp (2000), Directional Statistics, §9.3; Wood (1994), "Simulation of the von Mises
    Fisher distribution", algorithm VM*, for the draws.

    Examples
    --------
    >>> law = VonMisesFisher(torch.tensor([3.0, 0.0, 0.0]), 2.0)
    >>> law.mean
    tensor([0.5373, 0.0000, 0.0000])
    """

    arg_constraints = {"direction": constraints.real_vector}
    support = constraints.sphere
    has_rsample = False

    def __init__(
        self, direction: torch.Tensor, concentration: float, *, validate_args: bool | None = None
    ) -> None:
        if isinstance(concentration, bool) or not isinstance(concentration, int | float):
            raise TypeError(
                f"concentration must be a number, got {type(concentration).__name__}; it cannot be "
                "learnt."
            )
        if not 0.0 < concentration < math.inf:
            raise ValueError(f"concentration must be positive and finite, got {concentration!r}.")
        if direction.ndim == 0 or direction.shape[-1] < 2:
            raise ValueError(
                "direction must have at least 2 dimensions, shape (..., d), got "
                f"{tuple(direction.shape)}."
            )
        norm = direction.norm(dim=-1, keepdim=True)
        self.direction = direction / norm.clamp(min=_LEAST_NORM)
        self.concentration = float(concentration)
        super().__init__(direction.shape[:-1], direction.shape[-1:], validate_args=validate_args)

    def expand(self, batch_shape: Any, _instance: VonMisesFisher | None = None) -> VonMisesFisher:
        new = self._get_checked_instance(VonMisesFisher, _instance)
        batch = torch.Size(batch_shape)
        new.direction = self.direction.expand(batch + self.event_shape)
        new.concentration = self.concentration
        super(VonMisesFisher, new).__init__(batch, self.event_shape, validate_args=False)
        new._validate_args = self._validate_args
        return new

    @property
    def mean(self) -> torch.Tensor:
        """E[x], ``(*batch, d)``, shorter than 1."""
        order = self.event_shape[0] / 2.0
        shrink = _log_bessel(order, self.concentration) - _log_bessel(
            order - 1.0, self.concentration
        )
        return math.exp(shrink) * self.direction

    def log_prob(self, value: torch.Tensor) -> torch.Tensor:
        """log p(x), ``(*batch,)``, with respect to the sphere's area."""
        if self._validate_args:
            self._validate_sample(value)
        dim, kappa = self.event_shape[0], self.concentration
        constant = (dim / 2.0 - 1.0) * math.log(kappa) - dim / 2.0 * math.log(2.0 * math.pi)
        constant -= _log_bessel(dim / 2.0 - 1.0, kappa)
        return kappa * (self.direction * value).sum(-1) + constant

    @torch.no_grad()
    def sample(self, sample_shape: Any = ()) -> torch.Tensor:
        """Unit vectors ``(*sample_shape, *batch, d)``, from torch's global generator."""
        shape = torch.Size(sample_shape) + self.batch_shape
        along = self._cosines(shape.numel()).reshape(*shape, 1)
        center = self.direction.expand(*shape, -1)
        across = torch.randn_like(center)
        across = across - (across * center).sum(-1, keepdim=True) * center
        across = across / across.norm(dim=-1, keepdim=True).clamp(min=_LEAST_NORM)
        return along * center + (1.0 - along**2).clamp(min=0.0).sqrt() * across

    def _cosines(self, count: int) -> torch.Tensor:
        """⟨μ, x⟩ of ``count`` draws, by rejection from a beta law."""
        like, less = self.direction, self.event_shape[0] - 1.0
        # The stable form of (√(4κ² + (d−1)²) − 2κ)/(d − 1).
        ratio = less / (2.0 * self.concentration + math.hypot(2.0 * self.concentration, less))
        peak = (1.0 - ratio) / (1.0 + ratio)
        top = self.concentration * peak + less * math.log1p(-(peak**2))
        half = torch.full((), less / 2.0, dtype=like.dtype, device=like.device)
        found = torch.empty(0, dtype=like.dtype, device=like.device)
        for _ in range(_MAX_ROUNDS):
            share = torch.distributions.Beta(half, half).sample((count,))
            drawn = (1.0 - (1.0 + ratio) * share) / (1.0 - (1.0 - ratio) * share)
            height = self.concentration * drawn + less * torch.log1p(-peak * drawn) - top
            found = torch.cat([found, drawn[torch.rand_like(drawn).log() <= height]])
            if len(found) >= count:
                return found[:count]
        raise RuntimeError(
            f"no draw was accepted in {_MAX_ROUNDS} rounds; this is an error of ours."
        )


def _log_bessel(order: float, x: float) -> float:
    """log I_order(x): SciPy's, or the series where that is below the smallest number."""
    from scipy.special import gammaln, hyp0f1, ive

    scaled = float(ive(order, x))
    if scaled > 1e-280:
        return math.log(scaled) + x
    series = math.log(float(hyp0f1(order + 1.0, x * x / 4.0)))
    return order * math.log(x / 2.0) - float(gammaln(order + 1.0)) + series
