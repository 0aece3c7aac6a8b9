"""The exponential tilt that gives features wanted moments, by damped Newton on its dual."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from scipy.optimize import linprog

_MAX_STEPS = 100
_TOLERANCE = 1e-9
_MOST_POINTS_OF_THE_HULL = 20_000


class MomentFit(NamedTuple):
    """λ, log Z(λ) against the samples' own weights, the moments reached, and Newton's steps."""

    coefficients: torch.Tensor
    log_normalizer: torch.Tensor
    moments: torch.Tensor
    num_steps: int


def fit_moments(
    features: torch.Tensor, moments: torch.Tensor, log_weights: torch.Tensor | None = None
) -> MomentFit:
    r"""Minimise log E[e^(λ·φ)] − λ·μ̄ over λ, whose gradient is the tilted mean of φ less μ̄.

    Parameters
    ----------
    features
        φ at samples, ``(n, num_features)``.
    moments
        μ̄, ``(num_features,)``.
    log_weights
        Of the samples, ``(n,)``; None for equal ones.

    Raises
    ------
    ValueError
        Infeasible moments: a feature is constant in the samples, or no weights on the samples have
        these moments with some of every sample.
    """
    phi, wanted = features.double(), moments.double().to(features.device)
    if log_weights is None:
        log_weights = phi.new_zeros(len(phi))
    log_weights = log_weights.double() - log_weights.double().logsumexp(0)
    _check_feasible(phi[log_weights > -torch.inf], wanted)

    def tilted(point: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        scores = log_weights + phi @ point
        log_z = scores.logsumexp(0)
        return log_z, (scores - log_z).exp()

    point = phi.new_zeros(phi.shape[1])
    log_z, share = tilted(point)
    steps = 0
    while steps < _MAX_STEPS:
        mean = share @ phi
        gap = mean - wanted
        centred = phi - mean
        covariance = (share[:, None] * centred).T @ centred
        direction = torch.linalg.lstsq(covariance, -gap[:, None]).solution[:, 0]
        decrease = -(gap @ direction)
        if bool(decrease < _TOLERANCE * 1e-3) and bool(gap.abs().max() < _TOLERANCE):
            break
        before, size = log_z - point @ wanted, 1.0
        while True:
            candidate = point + size * direction
            log_z, share = tilted(candidate)
            enough = log_z - candidate @ wanted <= before - 0.25 * size * decrease + 1e-14
            if bool(enough) or size < 1e-8:
                break
            size *= 0.5
        point = candidate
        steps += 1
    reached = share @ phi
    if not bool((reached - wanted).abs().max() < 1e-6):
        raise ValueError(
            f"infeasible moments {wanted.tolist()}: the tilt with coefficients {point.tolist()} "
            f"reaches {reached.tolist()}; use moments nearer to the base's own, or more samples."
        )
    return MomentFit(point, log_z, reached, steps)


def _check_feasible(phi: torch.Tensor, wanted: torch.Tensor) -> None:
    low, high = phi.amin(0), phi.amax(0)
    for index in range(phi.shape[1]):
        if bool(low[index] == high[index]):
            raise ValueError(
                f"infeasible moments {wanted.tolist()}: feature {index} is {low[index].item():g} "
                "in every sample, so that no tilt changes it; draw more samples, or leave it out."
            )
    outside = ((wanted <= low) | (wanted >= high)).nonzero()
    if len(outside):
        index = int(outside[0])
        raise ValueError(
            f"infeasible moments {wanted.tolist()}: feature {index} lies between "
            f"{low[index].item():g} and {high[index].item():g} in the samples, and its moment must "
            "lie strictly between, too."
        )
    if phi.shape[1] == 1:
        return
    points = np.unique(phi.cpu().numpy()[:_MOST_POINTS_OF_THE_HULL], axis=0)
    # A little beyond μ̄, as seen from the middle: on the hull's boundary λ is infinite as well.
    aim = wanted.cpu().numpy()
    aim = aim + 1e-6 * (aim - points.mean(0))
    found = linprog(
        np.zeros(len(points)),
        A_eq=np.vstack([points.T, np.ones(len(points))]),
        b_eq=np.append(aim, 1.0),
        bounds=(0.0, None),
    )
    if found.status == 2:
        raise ValueError(
            f"infeasible moments {wanted.tolist()}: they lie outside the convex hull of the "
            "features in the samples, so that no law on these has them all; relax one of them."
        )
