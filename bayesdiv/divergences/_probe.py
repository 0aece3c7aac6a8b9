"""Values of a user's function at plain numbers, whichever library it was written for."""

from collections.abc import Callable
from typing import Any

import numpy as np

from bayesdiv._array import Array


def _with_numpy(function: Callable[[Any], Any], points: np.ndarray) -> np.ndarray:
    with np.errstate(all="ignore"):
        return np.asarray(function(points), dtype=np.float64)


def _with_torch(function: Callable[[Array], Array], points: np.ndarray) -> np.ndarray:
    import torch

    with torch.no_grad():
        return function(torch.as_tensor(points, dtype=torch.float64)).numpy()


def _with_jax(function: Callable[[Array], Array], points: np.ndarray) -> np.ndarray:
    import jax

    # Objects may be built while a caller is being traced; the probe needs numbers then too.
    with jax.ensure_compile_time_eval():
        return np.asarray(function(jax.numpy.asarray(points)), dtype=np.float64)


def evaluate_on_numbers(
    function: Callable[[Array], Array], points: np.ndarray, name: str
) -> np.ndarray:
    """``function(points)`` in float64, by the first of NumPy, torch and JAX that it accepts."""
    problems = []
    for attempt in (_with_numpy, _with_torch, _with_jax):
        try:
            values = attempt(function, points)
        except (TypeError, AttributeError) as error:
            problems.append(f"{attempt.__name__[6:]}: {error}")
            continue
        if values.shape != points.shape:
            raise ValueError(
                f"generator of {name!r} must act elementwise: it turned shape {points.shape} "
                f"into {values.shape}."
            )
        return values
    raise TypeError(
        f"generator of {name!r} accepts neither NumPy, torch nor JAX arrays: {'; '.join(problems)}."
    )
