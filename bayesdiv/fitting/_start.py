"""Where a fit starts: the mode of a few quasi-Newton paths, and a whitening around it.

Plain stochastic gradients crawl when coordinates differ in scale or are collinear, as raw
predictors are. A second-order start removes both before the first stochastic step: in the
coordinates w of z = location + scale_tril w the posterior is close to a standard normal, whatever
its units.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import linalg, optimize

from bayesdiv.fitting._refine import refine_normal
from bayesdiv.fitting._target import Target


@dataclass(frozen=True)
class Start:
    """A normal approximation: ``location`` (dim,), ``scale_tril`` (dim, dim), its ELBO in nats."""

    location: np.ndarray
    scale_tril: np.ndarray
    elbo: float


def find_starts(
    target: Target,
    initial_points: Sequence[np.ndarray],
    rng: np.random.Generator,
    *,
    max_iterations: int = 1000,
    num_draws: int = 200,
) -> list[Start]:
    """The best normal approximation along each path from ``initial_points``, best ELBO first.

    A path is L-BFGS in coordinates scaled by the initial curvature, then Newton steps. Along it,
    normal approximations with the local curvature compete by their ELBO (as in Pathfinder, Zhang et
    al. 2022, but with exact curvature): a joint mode that is sharper than the posterior, as that of
    a hierarchical model can be, does not win. The winner is refined to the best normal overall.

    Raises
    ------
    ValueError
        No path found a point with a finite density.
    """
    starts = []
    problems = []
    for point in initial_points:
        try:
            starts.append(_best_on_path(target, point, rng, max_iterations, num_draws))
        except (ValueError, linalg.LinAlgError) as error:
            problems.append(str(error))
    if not starts:
        raise ValueError(
            "no starting point has a finite log-density and curvature: "
            f"{'; '.join(sorted(set(problems)))}. Check the model's arguments for NaN and for "
            "values outside the support, or give init_values."
        )
    return sorted(starts, key=lambda start: -start.elbo)


def _best_on_path(
    target: Target,
    point: np.ndarray,
    rng: np.random.Generator,
    max_iterations: int,
    num_draws: int,
) -> Start:
    path = _minimise(target, point, max_iterations)
    path.append(_newton(target, path[-1]))
    # The end first; earlier points only compete where the end may be a spike.
    picks = np.unique(np.linspace(0, len(path) - 1, 5).astype(int))[::-1]
    noise = rng.standard_normal((num_draws, target.dim))
    best: Start | None = None
    for pick in picks:
        candidate = _normal_at(target, path[pick], noise)
        if candidate is not None and (best is None or candidate.elbo > best.elbo + 1.0):
            best = candidate
    if best is None:
        raise ValueError("the log-density is not finite around the path")
    location, scale_tril = refine_normal(target, best.location, best.scale_tril, rng)
    refined = _with_elbo(target, location, scale_tril, noise)
    return refined if refined.elbo > best.elbo else best


def _normal_at(target: Target, location: np.ndarray, noise: np.ndarray) -> Start | None:
    hessian = target.hessian(location)
    if not np.all(np.isfinite(hessian)):
        return None
    return _with_elbo(target, location, scale_tril_of(hessian), noise)


def _with_elbo(
    target: Target, location: np.ndarray, scale_tril: np.ndarray, noise: np.ndarray
) -> Start:
    draws = location + noise @ scale_tril.T
    with np.errstate(all="ignore"):
        potentials = target.values(draws)
    potentials = np.where(np.isnan(potentials), np.inf, potentials)
    entropy = np.sum(np.log(np.diag(scale_tril))) + 0.5 * target.dim * np.log(2.0 * np.pi * np.e)
    return Start(location, scale_tril, float(entropy - np.mean(potentials)))


def scale_tril_of(hessian: np.ndarray) -> np.ndarray:
    """Lower Cholesky factor of the inverse of ``hessian``, made positive definite.

    Eigenvalues are taken in coordinates of unit curvature, so that units do not decide which
    direction counts as flat.
    """
    symmetric = 0.5 * (hessian + hessian.T)
    diagonal = np.abs(np.diag(symmetric))
    unit = 1.0 / np.sqrt(np.maximum(diagonal, 1e-12 * max(diagonal.max(), 1e-300)))
    values, vectors = linalg.eigh(unit[:, None] * symmetric * unit[None, :])
    values = np.maximum(np.abs(values), 1e-11 * np.abs(values).max())
    root = unit[:, None] * vectors / np.sqrt(values)
    # root rootᵀ is the covariance; its triangular factor comes from QR without squaring it.
    triangle = linalg.qr(root.T, mode="r")[0][: len(unit)]
    return triangle.T * np.sign(np.diag(triangle))


def _minimise(target: Target, point: np.ndarray, max_iterations: int) -> list[np.ndarray]:
    value, _ = target.value_and_gradient(point)
    for _ in range(5):
        if np.isfinite(value):
            break
        # Towards zero, where exponential links do not overflow.
        point = 0.1 * point
        value, _ = target.value_and_gradient(point)
    if not np.isfinite(value):
        raise ValueError(f"the log-density at the starting point is {-value}")
    curvature = np.abs(np.diag(target.hessian(point)))
    typical = np.median(curvature[curvature > 0.0]) if np.any(curvature > 0.0) else 1.0
    unit = 1.0 / np.sqrt(np.maximum(curvature, 1e-8 * typical))
    path = [point]

    def scaled(w: np.ndarray) -> tuple[float, np.ndarray]:
        potential, gradient = target.value_and_gradient(point + unit * w)
        if not np.isfinite(potential) or not np.all(np.isfinite(gradient)):
            return 1e300, np.zeros_like(w)
        return potential, unit * gradient

    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore", category=RuntimeWarning)
        optimize.minimize(
            scaled,
            np.zeros_like(point),
            jac=True,
            method="L-BFGS-B",
            callback=lambda w: path.append(point + unit * w),
            options={"maxiter": max_iterations, "maxcor": 20, "maxls": 50},
        )
    return path


def _newton(target: Target, point: np.ndarray, max_steps: int = 50) -> np.ndarray:
    """Damped Newton steps until the expected decrease is below 1e-8 nats."""
    value, gradient = target.value_and_gradient(point)
    for _ in range(max_steps):
        hessian = target.hessian(point)
        if not np.all(np.isfinite(hessian)):
            break
        factor = scale_tril_of(hessian)
        whitened = factor.T @ gradient
        decrement = float(whitened @ whitened)
        if decrement < 1e-8:
            break
        direction = -factor @ whitened
        size = 1.0
        while size > 1e-6:
            trial = point + size * direction
            with np.errstate(all="ignore"):
                trial_value, trial_gradient = target.value_and_gradient(trial)
            if np.isfinite(trial_value) and trial_value <= value - 1e-4 * size * decrement:
                break
            size *= 0.5
        else:
            break
        point, value, gradient = trial, trial_value, trial_gradient
    return point
