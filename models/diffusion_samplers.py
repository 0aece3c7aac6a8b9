r"""Samples of a diffusion by its denoiser: the probability-flow ODE, with added noise if wanted."""

from __future__ import annotations

from typing import Any

import torch

from bayesdiv.nn.conditions_torch import given
from bayesdiv.nn.noise_levels_torch import NoiseSchedule

__all__ = ["sample_diffusion"]


@torch.no_grad()
def sample_diffusion(
    teacher: Any,
    count: int,
    condition: torch.Tensor | None = None,
    *,
    num_steps: int = 18,
    churn: float = 0.0,
    noise_scale: float = 1.0,
    schedule: NoiseSchedule | None = None,
    like: torch.Tensor | None = None,
) -> torch.Tensor:
    r"""``count`` samples by Heun's method on dx/dσ = (x − D(x, σ))/σ from σ_max down to 0.

    Parameters
    ----------
    teacher
        An object with ``denoise(x, sigma)`` and ``event_shape``, and ``schedule`` unless given.
    condition
        A third argument of ``denoise``, of ``count`` rows; None for none.
    num_steps
        N noise levels; 2N − 1 passes.
    churn
        S_churn: before each step the level is raised by the factor 1 + min(churn/N, √2 − 1) with
        fresh noise. 0 is the deterministic sampler.
    noise_scale
        S_noise, standard deviation of that noise.
    schedule
        Noise levels in place of the teacher's.
    like
        A tensor whose dtype and device are taken; None for torch's defaults.

    Raises
    ------
    ValueError
        ``count`` or ``num_steps`` below 1, ``churn`` negative, or a condition of other rows.

    References
    ----------
    Karras et al. (2022), algorithms 1 and 2.
    """
    if isinstance(count, bool) or not isinstance(count, int) or count < 1:
        raise ValueError(f"count must be a whole number of at least 1, got {count!r}.")
    if not churn >= 0.0:
        raise ValueError(f"churn must be at least 0, got {churn!r}.")
    known = given(condition, count)
    levels = (teacher.schedule if schedule is None else schedule).levels(num_steps).tolist()
    like = torch.empty(0) if like is None else like
    x = levels[0] * torch.randn(count, *teacher.event_shape, dtype=like.dtype, device=like.device)
    rise = min(churn / num_steps, 2.0**0.5 - 1.0)
    for level, following in zip(levels[:-1], levels[1:], strict=True):
        raised = level * (1.0 + rise)
        if rise:
            added = (raised**2 - level**2) ** 0.5 * noise_scale
            x = x + added * torch.randn_like(x)
        slope = (x - teacher.denoise(x, raised, *known)) / raised
        moved = x + (following - raised) * slope
        if following:
            there = (moved - teacher.denoise(moved, following, *known)) / following
            moved = x + (following - raised) * 0.5 * (slope + there)
        x = moved
    return x
