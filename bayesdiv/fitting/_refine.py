"""From the curvature at a mode to that of the whole posterior."""

from __future__ import annotations

import numpy as np
from scipy import linalg

from bayesdiv.fitting._target import Target, gradients

_LARGEST_STEP = 1.0
_CURVATURE_RANGE = (0.25, 4.0)


def refine_normal(
    target: Target,
    location: np.ndarray,
    scale_tril: np.ndarray,
    rng: np.random.Generator,
    *,
    max_iterations: int = 100,
) -> tuple[np.ndarray, np.ndarray]:
    r"""Move a normal approximation towards the reverse-KL optimum among all normals.

    At that optimum the mean gradient is zero and the mean curvature is the precision. Both are read
    off a least-squares line through the gradients at draws, g(ε) ≈ b + Aε in whitened coordinates,
    without noise where the posterior is normal (Salimans and Knowles 2013, §4). Steps are at most
    one standard deviation, and scales change at most twofold.
    """
    dim = len(location)
    pairs = max(64, 2 * (dim + 1))
    for _ in range(max_iterations):
        half = rng.standard_normal((pairs, dim))
        noise = np.concatenate([half, -half])
        with np.errstate(all="ignore"):
            slopes = gradients(target, location + noise @ scale_tril.T) @ scale_tril
        usable = np.isfinite(slopes).all(axis=1)
        if usable.sum() < pairs:
            scale_tril = 0.5 * scale_tril
            continue
        design = np.column_stack([np.ones(usable.sum()), noise[usable]])
        coefficients = linalg.lstsq(design, slopes[usable], check_finite=False)[0]
        intercept, slope = coefficients[0], coefficients[1:]
        values, vectors = linalg.eigh(0.5 * (slope + slope.T))
        settled = np.max(np.abs(intercept)) < 0.05 and np.max(np.abs(values - 1.0)) < 0.1
        values = np.clip(values, *_CURVATURE_RANGE)
        step = -vectors @ ((vectors.T @ intercept) / values)
        step *= min(1.0, _LARGEST_STEP / max(np.max(np.abs(step)), 1e-300))
        location = location + scale_tril @ step
        root = scale_tril @ (vectors / np.sqrt(values))
        triangle = linalg.qr(root.T, mode="r")[0][:dim]
        scale_tril = triangle.T * np.sign(np.diag(triangle))
        if settled:
            break
    return location, scale_tril
