"""State that an objective keeps between steps, carried by SVI's mutable state."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpyro
from numpyro import handlers

from bayesdiv.objectives import RunningNormalizerState

STATE_SITE = "bayesdiv_state"


class StatefulGuide:
    """A guide that also declares an objective's state, so that SVI carries it from step to step.

    Everything else (``sample_posterior``, ``median``, …) is the wrapped guide's. Made by
    :meth:`bayesdiv.numpyro.DivergenceELBO.stateful`.
    """

    def __init__(self, guide: Any, *, keeps_normalizer: bool) -> None:
        self._guide = guide
        self._keeps_normalizer = keeps_normalizer

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        with handlers.trace() as inner:
            result = self._guide(*args, **kwargs)
        initial: dict[str, Any] = {"step": jnp.zeros((), jnp.int32)}
        if self._keeps_normalizer:
            shape = _common_shape(inner)
            initial["log_mean"] = jnp.full(shape, -jnp.inf)
            initial["count"] = jnp.zeros(())
        numpyro.primitives.mutable(STATE_SITE, initial)
        return result

    def __getattr__(self, name: str) -> Any:
        # Dunder lookups come before __init__ when an object is unpickled or copied.
        if name.startswith("__") or name == "_guide":
            raise AttributeError(name)
        return getattr(self._guide, name)


def _common_shape(trace: dict[str, dict[str, Any]]) -> tuple[int, ...]:
    """Sizes of the plates around every latent site: the most that log Z may be kept apart over."""
    stacks = [
        frozenset(site["cond_indep_stack"])
        for site in trace.values()
        if site["type"] == "sample" and not site["is_observed"]
    ]
    common = frozenset.intersection(*stacks) if stacks else frozenset()
    depth = -min((frame.dim for frame in common), default=0)
    sizes = {frame.dim: frame.size for frame in common}
    return tuple(sizes.get(dim, 1) for dim in range(-depth, 0))


def read_normalizer(stored: dict[str, Any], dims: tuple[int, ...]) -> RunningNormalizerState:
    """The running normaliser's memory, with an axis for each of the batch dimensions ``dims``."""
    log_mean = stored["log_mean"]
    # The guide's plates may be more than those that enclose the model's sites too; over the
    # surplus every entry is the same.
    surplus = tuple(slice(None) if axis in dims else 0 for axis in range(-log_mean.ndim, 0))
    return RunningNormalizerState(log_mean[surplus], stored["count"])


def next_state(
    stored: dict[str, Any], normalizer: RunningNormalizerState | None, dims: tuple[int, ...]
) -> dict[str, Any]:
    """``stored`` one step on; a log Z that is not a number is dropped with its step's particles.

    ``dims`` are the negative batch dimensions of the axes of ``normalizer.log_mean``.
    """
    result = {**stored, "step": stored["step"] + 1}
    if normalizer is None:
        return result
    old = stored["log_mean"]
    shape = [1] * old.ndim
    for dim, size in zip(dims, normalizer.log_mean.shape, strict=True):
        shape[dim] = size
    new = jnp.broadcast_to(normalizer.log_mean.reshape(shape), old.shape).astype(old.dtype)
    usable = jnp.all(jnp.isfinite(new) | (new == -jnp.inf))
    result["log_mean"] = jnp.where(usable, new, old)
    result["count"] = jnp.where(usable, normalizer.count, stored["count"]).astype(
        stored["count"].dtype
    )
    return jax.lax.stop_gradient(result)
