"""What EM for mixtures of experts refuses and warns of, before anything is compiled."""

from __future__ import annotations

import warnings
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from bayesdiv._control import is_traced
from bayesdiv._mixture_of_experts import MixtureOfExpertsParameters
from bayesdiv._mixture_of_experts_checks import check_parameters

__all__ = ["check_data", "check_start"]


def check_data(
    predictors: Any,
    outcome: Any,
    weights: Any = None,
    *,
    num_experts: int,
    experts: str = "normal",
    name: str = "",
) -> None:
    """Raise or warn as `fit_experts` says; numbers are looked at unless traced.

    ``name`` stands in front of the arrays' names, such as ``"shard 3: "``.
    """
    shapes = [np.shape(predictors), np.shape(outcome)]
    if len(shapes[0]) != 2 or len(shapes[1]) != 1 or shapes[0][0] != shapes[1][0]:
        raise ValueError(
            f"{name}predictors must be (n, dim) and outcome (n,), got {shapes[0]} and {shapes[1]}."
        )
    if weights is not None and np.shape(weights) != shapes[1]:
        raise ValueError(
            f"{name}weights must be {shapes[1]} like outcome, got {np.shape(weights)}."
        )
    if any(is_traced(array) for array in (predictors, outcome, weights)):
        return
    predictors, outcome = np.asarray(predictors), np.asarray(outcome)
    weights = np.ones(len(outcome)) if weights is None else np.asarray(weights)
    bad = ~(np.isfinite(weights) & (weights >= 0))
    if bad.any():
        row = int(np.argmax(bad))
        raise ValueError(
            f"{name}weights must be finite and at least 0, got {weights[row]} in row {row}."
        )
    used = weights > 0
    width = predictors.shape[1] + 1
    if used.sum() < width + 1:
        raise ValueError(
            f"{name}an expert of {width} coefficients and a variance needs at least {width + 1} "
            f"rows, got {used.sum()} of positive weight."
        )
    for label, array in (("predictors", predictors), ("outcome", outcome)):
        finite = np.isfinite(array)
        bad = used & ~(finite.all(axis=1) if array.ndim == 2 else finite)
        if bad.any():
            row = int(np.argmax(bad))
            raise ValueError(
                f"{name}{label} must be finite, got {array[row]} in row {row}; leave such rows out "
                "or give them weight 0."
            )
    if experts == "bernoulli":
        bad = used & ~np.isin(outcome, (0, 1))
        if bad.any():
            row = int(np.argmax(bad))
            raise ValueError(
                f"{name}outcome must be 0 or 1 for experts='bernoulli', got {outcome[row]} in row "
                f"{row}."
            )
    _warn_of_little_data(predictors[used], num_experts, experts, name)


def _warn_of_little_data(predictors: np.ndarray, num_experts: int, experts: str, name: str) -> None:
    rows, width = len(predictors), predictors.shape[1] + 1
    scales = num_experts if experts == "normal" else 0
    free = (2 * num_experts - 1) * width + scales
    if rows < free:
        warnings.warn(
            f"{name}{num_experts} experts with {width} features have {free} parameters, and there "
            f"are {rows} rows; use fewer experts or a larger gate_ridge and coefficient_ridge.",
            UserWarning,
            stacklevel=4,
        )
    constant = np.flatnonzero((predictors == predictors[:1]).all(axis=0))
    if constant.size:
        warnings.warn(
            f"{name}predictors {constant.tolist()} are constant: their coefficients are 0, as the "
            "ridge has it.",
            UserWarning,
            stacklevel=4,
        )


def check_start(
    start: Any, predictors: jax.Array, *, num_experts: int, experts: str
) -> MixtureOfExpertsParameters:
    """``start`` as arrays of the predictors' type, or a ValueError on its shapes."""
    if isinstance(start, tuple) and len(start) == 3:
        start = MixtureOfExpertsParameters(
            *(None if part is None else jnp.asarray(part, predictors.dtype) for part in start)
        )
    features = jax.ShapeDtypeStruct((predictors.shape[1] + 1,), predictors.dtype)
    check_parameters(features, start, experts=experts)
    if start.gate.shape[0] != num_experts or start.coefficients.ndim != 2 or start.gate.ndim != 2:
        raise ValueError(
            f"start must have {num_experts} experts with numbers as outcomes, got a gate of shape "
            f"{start.gate.shape} and coefficients of shape {start.coefficients.shape}."
        )
    return start
