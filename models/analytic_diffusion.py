r"""Teachers whose diffused law is known: mixtures of Gaussians, a single one among them."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import nn

from bayesdiv.nn.noise_levels_torch import NoiseSchedule, expand_sigma

__all__ = ["GaussianMixtureDiffusion", "NormalGenerator", "gaussian_diffusion"]


class GaussianMixtureDiffusion:
    r"""Σ_k w_k N(m_k, C_k) and, at noise level σ, Σ_k w_k N(m_k, C_k + σ² I): all of it exact.

    Parameters
    ----------
    weights
        ``(components,)``, positive; they are normalised.
    means
        ``(components, dim)``.
    covariances
        ``(components, dim, dim)``, or standard deviations ``(components, dim)`` of independent
        coordinates. Zero standard deviations (a sum of points, such as a batch of a student's
        samples) are allowed, but then levels must be positive.
    schedule
        For `bayesdiv.models.diffusion_samplers.sample_diffusion`.

    Raises
    ------
    ValueError
        Shapes that do not fit, weights that are not positive, or a covariance that is not
        symmetric and positive semi-definite.

    Examples
    --------
    >>> teacher = gaussian_diffusion(torch.zeros(1), torch.ones(1))
    >>> teacher.score(torch.tensor([[1.0]]), 1.0)
    tensor([[-0.5000]])
    """

    is_normalized = True

    def __init__(
        self,
        weights: torch.Tensor,
        means: torch.Tensor,
        covariances: torch.Tensor,
        *,
        schedule: NoiseSchedule | None = None,
    ) -> None:
        if means.ndim != 2 or weights.shape != means.shape[:1] or not len(weights):
            raise ValueError(
                "weights and means must have shapes (components,) and (components, dim), got "
                f"{tuple(weights.shape)} and {tuple(means.shape)}."
            )
        if not bool((weights > 0).all()):
            raise ValueError(f"weights must be positive, got {weights.tolist()}.")
        dim = means.shape[1]
        if covariances.shape not in (means.shape, (*means.shape, dim)):
            raise ValueError(
                f"covariances must have shape {(*means.shape, dim)}, or {tuple(means.shape)} for "
                f"standard deviations, got {tuple(covariances.shape)}."
            )
        self.event_shape = (dim,)
        self.schedule = NoiseSchedule() if schedule is None else schedule
        self.log_weights = (weights / weights.sum()).log()
        self.means = means
        # C = V diag(e) Vᵀ: noise only adds to e, whatever the level.
        self._axes: torch.Tensor | None = None
        if covariances.ndim == 3:
            gap = (covariances - covariances.mT).abs().max()
            if float(gap) > 1e-6 * float(covariances.abs().max()):
                raise ValueError("covariances must be symmetric, got one that is not.")
            self._variances, self._axes = torch.linalg.eigh(covariances)
        else:
            self._variances = covariances**2
        if not bool((self._variances >= 0).all()):
            raise ValueError(
                "covariances must be positive semi-definite, got an eigenvalue of "
                f"{float(self._variances.min()):.4g}."
            )

    def log_prob(self, x: torch.Tensor, sigma: Any = 0.0) -> torch.Tensor:
        """log p_σ(x), ``(n,)``, at ``x``, ``(n, dim)``, and ``sigma``, a number or ``(n,)``."""
        return self._terms(x, sigma)[0].logsumexp(1)

    def score(self, x: torch.Tensor, sigma: Any = 0.0) -> torch.Tensor:
        """∇ log p_σ(x), ``(n, dim)``."""
        return self.score_and_log_prob(x, sigma)[0]

    def score_and_log_prob(
        self, x: torch.Tensor, sigma: Any = 0.0
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Both in one pass."""
        logs, scaled = self._terms(x, sigma)
        slopes = scaled
        if self._axes is not None:
            slopes = torch.einsum("kij,nkj->nki", self._axes, scaled)
        return -torch.einsum("nk,nki->ni", logs.softmax(1), slopes), logs.logsumexp(1)

    def denoise(self, x: torch.Tensor, sigma: Any) -> torch.Tensor:
        """E[x | x_σ] = x_σ + σ² ∇ log p_σ(x_σ), ``(n, dim)``."""
        return x + expand_sigma(sigma, x, may_be_zero=True) ** 2 * self.score(x, sigma)

    def sample(self, count: int) -> torch.Tensor:
        """``count`` rows of the clean law from torch's global generator."""
        chosen = torch.multinomial(self.log_weights.exp(), count, replacement=True)
        noise = torch.randn(count, self.means.shape[1]).to(self.means)
        spread = self._variances[chosen].sqrt() * noise
        if self._axes is not None:
            spread = torch.einsum("nij,nj->ni", self._axes[chosen], spread)
        return self.means[chosen] + spread

    def _terms(self, x: torch.Tensor, sigma: Any) -> tuple[torch.Tensor, torch.Tensor]:
        """log w_k N(x; m_k, C_k + σ²I), ``(n, k)``; (E + σ²)⁻¹ Vᵀ(x − m_k), ``(n, k, dim)``."""
        if x.ndim != 2 or x.shape[1:] != self.event_shape:
            raise ValueError(f"x must have shape (n, {self.event_shape[0]}), got {tuple(x.shape)}.")
        wide = expand_sigma(sigma, x, may_be_zero=True)[:, None]
        gap = x[:, None, :] - self.means
        if self._axes is not None:
            gap = torch.einsum("kji,nkj->nki", self._axes, gap)
        variances = self._variances + wide**2
        scaled = gap / variances
        squares = (gap * scaled).sum(2) + variances.log().sum(2)
        constant = 0.5 * x.shape[1] * math.log(2.0 * math.pi)
        return self.log_weights - 0.5 * squares - constant, scaled


def gaussian_diffusion(
    mean: torch.Tensor, covariance: torch.Tensor, *, schedule: NoiseSchedule | None = None
) -> GaussianMixtureDiffusion:
    """N(mean, covariance) as a teacher; ``covariance`` is ``(dim, dim)``, or deviations ``(dim,)``.

    Raises
    ------
    ValueError
        As `GaussianMixtureDiffusion` says.
    """
    one = torch.ones(1, dtype=mean.dtype, device=mean.device)
    return GaussianMixtureDiffusion(one, mean[None], covariance[None], schedule=schedule)


class NormalGenerator(nn.Module):
    r"""x = m + L z with z ∼ N(0, I): a student whose diffused law N(m, LLᵀ + σ² I) is exact.

    It is generator and fake score at once, and the smallest student for which divergences differ:
    one normal cannot be a mixture, so that each divergence chooses what to give up.

    Parameters
    ----------
    location
        m at the start, ``(dim,)``; learnt.
    scale
        Standard deviations at the start, ``(dim,)``; L is lower triangular and learnt, its diagonal
        by its logarithm.

    Raises
    ------
    ValueError
        Shapes that are not equal and ``(dim,)``, or a scale that is not positive.

    Examples
    --------
    >>> student = NormalGenerator(torch.zeros(2), torch.ones(2))
    >>> student.sample(5).shape, student.log_prob(torch.zeros(5, 2), 0.5).shape
    (torch.Size([5, 2]), torch.Size([5]))
    """

    def __init__(self, location: torch.Tensor, scale: torch.Tensor) -> None:
        super().__init__()
        if location.ndim != 1 or location.shape != scale.shape:
            raise ValueError(
                "location and scale must both have shape (dim,), got "
                f"{tuple(location.shape)} and {tuple(scale.shape)}."
            )
        if not bool((scale > 0).all()):
            raise ValueError(f"scale must be positive, got {scale.tolist()}.")
        self.event_shape = tuple(location.shape)
        self.location = nn.Parameter(location.clone())
        self.log_diagonal = nn.Parameter(scale.log())
        self.below = nn.Parameter(torch.zeros_like(location).diag().tril(-1))

    def factor(self) -> torch.Tensor:
        """L, ``(dim, dim)``."""
        return self.log_diagonal.exp().diag() + self.below.tril(-1)

    def sample(self, count: int) -> torch.Tensor:
        """``count`` rows from torch's global generator, differentiable in the parameters."""
        z = torch.randn(count, *self.event_shape, dtype=self.location.dtype)
        return self.location + z.to(self.location) @ self.factor().mT

    def law(self) -> GaussianMixtureDiffusion:
        """The law as it is now, as a teacher; without gradients in the parameters."""
        factor = self.factor().detach()
        return gaussian_diffusion(self.location.detach(), factor @ factor.mT)

    def score_and_log_prob(self, x: torch.Tensor, sigma: Any) -> tuple[torch.Tensor, torch.Tensor]:
        """∇ log q_σ(x), ``(n, dim)``, and log q_σ(x), ``(n,)``."""
        return self.law().score_and_log_prob(x, sigma)

    def score(self, x: torch.Tensor, sigma: Any) -> torch.Tensor:
        """∇ log q_σ(x), ``(n, dim)``."""
        return self.law().score(x, sigma)

    def log_prob(self, x: torch.Tensor, sigma: Any) -> torch.Tensor:
        """log q_σ(x), ``(n,)``."""
        return self.law().log_prob(x, sigma)

    def denoise(self, x: torch.Tensor, sigma: Any) -> torch.Tensor:
        """E[x | x_σ], ``(n, dim)``."""
        return self.law().denoise(x, sigma)
