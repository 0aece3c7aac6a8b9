"""The unknown log Z of the target: estimated from the particles, kept across steps, or given."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, NamedTuple

from bayesdiv._array import (
    Array,
    array_namespace,
    as_array_like,
    is_jax_array,
    is_torch_array,
    log_mean_exp,
    stop_gradient,
)
from bayesdiv.divergences._checks import is_concrete_number, require_finite


@dataclass(frozen=True)
class SelfNormalizer:
    """log Z from the step's own particles, for each independent plate; biased at O(1/particles)."""

    is_stateful = False

    def __call__(self, state: Any, log_weight: Array) -> tuple[Array, Any]:
        return log_mean_exp(stop_gradient(log_weight), axis=0), state


@dataclass(frozen=True)
class GivenNormalizer:
    """A known log Z, a number or an array that broadcasts to the independent plates."""

    log_normalizer: Any
    is_stateful = False

    def __call__(self, state: Any, log_weight: Array) -> tuple[Any, Any]:
        known = self.log_normalizer
        if is_concrete_number(known):
            return known, state
        if is_torch_array(known) or is_jax_array(known):
            known = stop_gradient(known)
        return as_array_like(known, log_weight), state


class RunningNormalizerState(NamedTuple):
    """log of the mean weight so far and of how many steps' worth of particles stand behind it."""

    log_mean: Any
    count: Any


@dataclass(frozen=True)
class RunningNormalizer:
    r"""log Z as the mean weight over all steps so far, or an exponential average with ``decay``.

    The mean of p̃/q over samples of any q estimates Z, so earlier steps with other guides stay
    valid, and one particle a step is enough (Go et al. 2023, f-DPG, §3.3).

    Raises
    ------
    ValueError
        ``decay`` is outside (0, 1).
    """

    decay: float | None = None
    is_stateful = True

    def __post_init__(self) -> None:
        if self.decay is not None and not 0.0 < self.decay < 1.0:
            raise ValueError(
                f"decay must be in (0, 1) or None for the plain mean, got {self.decay!r}."
            )

    def init(self) -> RunningNormalizerState:
        """Nothing seen yet."""
        return RunningNormalizerState(-math.inf, 0.0)

    def __call__(
        self, state: RunningNormalizerState, log_weight: Array
    ) -> tuple[Array, RunningNormalizerState]:
        xp = array_namespace(log_weight)
        fresh = log_mean_exp(stop_gradient(log_weight), axis=0)
        count = state.count if self.decay is None else self.decay * state.count
        # Weighted mean in log space; a count that decays corrects the start of the average.
        if is_concrete_number(count):
            log_old = math.log(count) if count > 0.0 else -math.inf
            log_total = math.log(count + 1.0)
        else:
            log_old, log_total = xp.log(count), xp.log(count + 1.0)
        log_mean = (
            xp.logaddexp(xp.zeros_like(fresh) + (state.log_mean + log_old), fresh) - log_total
        )
        return log_mean, RunningNormalizerState(log_mean, count + 1.0)


Normalizer = SelfNormalizer | GivenNormalizer | RunningNormalizer


def get_normalizer(normalizer: Any) -> Normalizer:
    """ "self", "running", a number or array that is log Z, or one of the classes here."""
    if isinstance(normalizer, SelfNormalizer | GivenNormalizer | RunningNormalizer):
        return normalizer
    if isinstance(normalizer, str):
        if normalizer == "self":
            return SelfNormalizer()
        if normalizer == "running":
            return RunningNormalizer()
        raise ValueError(
            f"normalizer must be 'self', 'running' or a known log Z, got {normalizer!r}."
        )
    require_finite("normalizer", normalizer)
    return GivenNormalizer(normalizer)
