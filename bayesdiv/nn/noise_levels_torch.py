r"""Noise levels of a variance-exploding diffusion, x_σ = x + σ ε, and what is learnt at each."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch

from bayesdiv.nn.conditions_torch import given

__all__ = ["NoiseSchedule", "denoising_loss", "expand_sigma"]


@dataclass(frozen=True)
class NoiseSchedule:
    r"""Levels between ``sigma_min`` and ``sigma_max``, evenly spaced in σ^(1/ρ).

    .. math:: σ(u) = (σ_{min}^{1/ρ} + u\,(σ_{max}^{1/ρ} - σ_{min}^{1/ρ}))^ρ,\quad u \in [0, 1].

    Equal ends are a schedule of one level.

    Attributes
    ----------
    sigma_min, sigma_max : float
        In units of the data.
    rho : float
        7 puts most levels low; large ρ is even in log σ.

    Raises
    ------
    ValueError
        Unless 0 < σ_min ≤ σ_max < ∞ and ρ ≥ 1.

    References
    ----------
    Karras et al. (2022), equation 5.

    Examples
    --------
    >>> [round(float(s), 2) for s in NoiseSchedule(0.1, 10.0).levels(4)]
    [10.0, 2.93, 0.66, 0.1, 0.0]
    """

    sigma_min: float = 0.002
    sigma_max: float = 80.0
    rho: float = 7.0

    def __post_init__(self) -> None:
        if not 0.0 < self.sigma_min <= self.sigma_max < math.inf:
            raise ValueError(
                "sigma_min and sigma_max must be positive, finite and in this order, got "
                f"{self.sigma_min!r} and {self.sigma_max!r}."
            )
        if not 1.0 <= self.rho < math.inf:
            raise ValueError(f"rho must be finite and at least 1, got {self.rho!r}.")

    def at(self, u: torch.Tensor) -> torch.Tensor:
        """σ(u), of the shape of ``u``, whose entries are in [0, 1]."""
        low, high = (end ** (1.0 / self.rho) for end in (self.sigma_min, self.sigma_max))
        # Rounding must not leave the range that a teacher was trained on.
        return ((low + u * (high - low)) ** self.rho).clamp(self.sigma_min, self.sigma_max)

    def levels(self, num_steps: int) -> torch.Tensor:
        """``num_steps`` levels from σ_max down to σ_min, then 0: ``(num_steps + 1,)``, float64."""
        if isinstance(num_steps, bool) or not isinstance(num_steps, int) or num_steps < 1:
            raise ValueError(f"num_steps must be a whole number of at least 1, got {num_steps!r}.")
        u = torch.linspace(1.0, 0.0, num_steps, dtype=torch.float64)
        return torch.cat([self.at(u), torch.zeros(1, dtype=torch.float64)])

    def draw(self, count: int, like: torch.Tensor) -> torch.Tensor:
        """``count`` levels at uniform u from the global generator; dtype, device of ``like``."""
        return self.at(torch.rand(count, dtype=like.dtype, device=like.device))


def expand_sigma(sigma: Any, x: torch.Tensor, *, may_be_zero: bool = False) -> torch.Tensor:
    """``sigma``, a number or ``(n,)``, in the shape ``(n, 1, …)`` that broadcasts against ``x``.

    Raises
    ------
    ValueError
        A negative level, a zero unless ``may_be_zero``, or a shape that does not fit. Values on an
        accelerator are not looked at.
    """
    levels = torch.as_tensor(sigma, dtype=x.dtype, device=x.device)
    if levels.ndim > 1 or (levels.ndim == 1 and len(levels) not in (1, len(x))):
        raise ValueError(
            f"sigma must be a number or have shape ({len(x)},), one level a row of x, got shape "
            f"{tuple(levels.shape)}."
        )
    if levels.device.type == "cpu":
        least = float(levels.min()) if levels.numel() else 1.0
        if not (least > 0.0 or (may_be_zero and least == 0.0)):
            kind = "at least 0" if may_be_zero else "positive"
            raise ValueError(f"sigma must be {kind}, got {least!r}.")
    return levels.expand(len(x)).reshape(-1, *(1,) * (x.ndim - 1))


def denoising_loss(
    denoiser: Any, x: torch.Tensor, sigma: torch.Tensor, condition: torch.Tensor | None = None
) -> torch.Tensor:
    r"""A denoiser's mean squared error, least where D(x_σ, σ) = E[x given x_σ].

    .. math:: E\big[(σ^{-2} + σ_d^{-2})\, |D(x + σε, σ) - x|^2/\mathrm{dim}\big]

    ``denoiser`` is called as ``denoiser(x, sigma)`` and may have ``sigma_data``; ``x`` is
    ``(n, *event)`` and ``sigma`` ``(n,)``. A ``condition``, ``(n, …)``, is a third argument, for
    which the least is at E[x given x_σ and c]. Karras et al. (2022), equation 8.

    Raises
    ------
    ValueError
        Levels or a condition that do not fit the rows.
    """
    wide, known = expand_sigma(sigma, x), given(condition, len(x))
    found = denoiser(x + wide * torch.randn_like(x), sigma, *known)
    weight = sigma**-2 + getattr(denoiser, "sigma_data", 0.5) ** -2
    return (weight * ((found - x) ** 2).flatten(1).mean(1)).mean()
