"""Scores of predictions averaged over posterior draws, and convergence seen in predictions."""

from __future__ import annotations

from typing import Any

import numpy as np
from scipy.special import logsumexp

from bayesdiv.diagnostics._groups import as_numpy


def proper_log_likelihood(log_likelihood: Any) -> np.ndarray:
    """log (1/M) Σ_m p(x_n | draw m), ``(n,)``: the log density of the predictive law, in nats.

    Parameters
    ----------
    log_likelihood
        log p(x_n | draw m), ``(draw, n)`` or ``(chain, draw, n)``, of torch, JAX or NumPy.

    Raises
    ------
    ValueError
        If there are no draws, other axes, or NaN.
    """
    values = as_numpy(log_likelihood).astype(np.float64)
    if values.ndim not in (2, 3) or 0 in values.shape:
        raise ValueError(
            "log_likelihood must have shape (draw, n) or (chain, draw, n), none of them 0, got "
            f"{values.shape}."
        )
    if np.isnan(values).any():
        raise ValueError(
            f"log_likelihood must not be NaN, got {int(np.isnan(values).sum())} of {values.size}."
        )
    rows = values.reshape(-1, values.shape[-1])
    return logsumexp(rows, axis=0) - np.log(len(rows))


def plug_in_log_likelihood(images: Any, outputs: Any, likelihood: Any) -> np.ndarray:
    """log p(x_n | averaged output), ``(n,)``, in nats: the score that papers often print.

    It is not the density of any predictive law: `proper_log_likelihood` is. They agree for one
    draw, and part where draws disagree.

    Parameters
    ----------
    images
        ``(n, data_dim)``.
    outputs
        Of the network for every draw, ``(draw, n, data_dim)`` or ``(chain, draw, n, data_dim)``.
    likelihood
        `bayesdiv.nn.PixelLikelihood`, whose ``average`` says what is averaged.

    Raises
    ------
    ValueError
        If the shapes do not fit.
    """
    fits = outputs.ndim in (3, 4) and tuple(outputs.shape[-2:]) == tuple(images.shape)
    if not fits or 0 in outputs.shape:
        raise ValueError(
            f"outputs must have shape (draw, *{tuple(images.shape)}) with at least one draw, got "
            f"{tuple(outputs.shape)}."
        )
    rows = outputs.reshape((-1, *outputs.shape[-2:]))
    return as_numpy(likelihood.log_prob(images, likelihood.average(rows)))


def rhat_of_predictions(predictions: Any) -> np.ndarray:
    """Rank-normalised split R-hat of each predicted quantity, of the shape of one prediction.

    Weights of a network have symmetries (permuted units, rescaled layers), so that chains which
    agree in every prediction may sit in different places: compare them here. Constant quantities
    are NaN. By ArviZ; Vehtari, Gelman, Simpson, Carpenter and Bürkner (2021), section 4.

    Parameters
    ----------
    predictions
        ``(chain, draw, ...)``, for example mean images at a few probes.

    Raises
    ------
    ValueError
        If there are fewer than four draws, or other axes.
    """
    values = as_numpy(predictions).astype(np.float64)
    if values.ndim < 2 or values.shape[1] < 4 or values.size == 0:
        raise ValueError(
            "predictions must have shape (chain, draw, ...) with at least 4 draws, got "
            f"{values.shape}."
        )
    import arviz
    import xarray

    flat = values.reshape(*values.shape[:2], -1)
    varies = flat.std(axis=(0, 1)) > 0
    found = np.full(flat.shape[2], np.nan)
    if varies.any():
        # ArviZ loops over quantities and warns at constants, so they are not shown to it.
        data = xarray.Dataset({"prediction": (["chain", "draw", "quantity"], flat[:, :, varies])})
        found[varies] = np.asarray(arviz.rhat(data)["prediction"])
    return found.reshape(values.shape[2:])
