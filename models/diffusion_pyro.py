r"""A diffusion as a Pyro model: noise, a chain of ever cleaner states, and the data."""

from __future__ import annotations

from typing import Any

import pyro
import pyro.distributions as dist
import torch

from bayesdiv.nn.conditions_torch import given
from bayesdiv.nn.noise_levels_torch import NoiseSchedule

__all__ = ["diffusion_model"]


def diffusion_model(
    teacher: Any,
    data: torch.Tensor | None = None,
    *,
    condition: torch.Tensor | None = None,
    count: int | None = None,
    num_steps: int = 18,
    schedule: NoiseSchedule | None = None,
) -> torch.Tensor:
    r"""Ancestral sampling through levels σ_0 > … > σ_{N−1} of the schedule.

    .. math::

        x_0 ∼ N(0, (σ_0^2 + s^2) I), \qquad
        x_{i+1} ∼ N\Big(D + \frac{σ_{i+1}^2}{σ_i^2}(x_i - D),\
                  σ_{i+1}^2 \big(1 - \frac{σ_{i+1}^2}{σ_i^2}\big) I\Big),\quad D = D(x_i, σ_i)

    are sites ``state_0``, …, and ``data`` ∼ N(D(x_{N−1}, σ_{N−1}), σ_{N−1}² I), observed where
    given. s is the teacher's ``sigma_data`` if it has one. The law of ``data`` is that of the
    teacher at level σ_{N−1} up to the error of N steps.

    Parameters
    ----------
    teacher
        An object with ``denoise(x, sigma)`` and ``event_shape``, and ``schedule`` unless given.
    data
        Rows that are observed, ``(n, *event_shape)``.
    condition
        A third argument of ``denoise``, with as many rows; None for none.
    count
        Rows in the plate ``rows``; those of ``data`` or of ``condition`` if None, else 1.
    num_steps
        N.
    schedule
        Noise levels in place of the teacher's.

    Returns
    -------
    torch.Tensor
        ``data``, ``(count, *event_shape)``.

    Raises
    ------
    ValueError
        If ``count``, ``data`` and ``condition`` do not agree.

    References
    ----------
    Ho, Jain and Abbeel (2020), equation 7, for noise without a decay of the signal.
    """
    if data is not None and count not in (None, len(data)):
        raise ValueError(f"count must be the number of rows of data, {len(data)}, got {count}.")
    rows = next((len(each) for each in (data, condition) if each is not None), 1)
    rows = rows if count is None else count
    known = given(condition, rows)
    shape = tuple(teacher.event_shape)
    levels = (teacher.schedule if schedule is None else schedule).levels(num_steps)[:-1].tolist()
    like = torch.empty(0) if data is None else data

    def normal(mean: torch.Tensor, scale: float) -> Any:
        return dist.Normal(mean, mean.new_tensor(scale)).to_event(len(shape))

    with pyro.plate("rows", rows, dim=-1):
        spread = (levels[0] ** 2 + getattr(teacher, "sigma_data", 0.0) ** 2) ** 0.5
        start = torch.zeros(shape, dtype=like.dtype, device=like.device)
        x = pyro.sample("state_0", normal(start, spread))
        for index, (level, following) in enumerate(zip(levels, levels[1:], strict=False), 1):
            clean = teacher.denoise(x, level, *known)
            share = (following / level) ** 2
            scale = following * (1.0 - share) ** 0.5
            x = pyro.sample(f"state_{index}", normal(clean + share * (x - clean), scale))
        clean = teacher.denoise(x, levels[-1], *known)
        return pyro.sample("data", normal(clean, levels[-1]), obs=data)
