"""What one step of f-DPG looks at before it moves anything, with one wait for the device."""

from __future__ import annotations

import math
import warnings
from typing import Any

import torch

__all__ = [
    "StepChecks",
    "check_settings",
    "checked_contexts",
    "checked_proposal",
]

_LEAST_ESS = 0.01
_MOST_TRUNCATED = 0.05
# Rounding of a sum of log-probabilities may exceed 0 by a little.
_ABOVE_ZERO = 1e-3


class StepChecks:
    """Raises at the first step that is wrong and warns once a run of one that is doubtful."""

    def __init__(self, divergence: Any) -> None:
        self.divergence = divergence
        self.has_warned_of: set[str] = set()

    def __call__(
        self,
        tokens: torch.Tensor,
        log_target: torch.Tensor,
        log_policy: torch.Tensor,
        log_ratio: torch.Tensor,
        *,
        norm: torch.Tensor,
        ess: torch.Tensor,
        truncated: torch.Tensor,
    ) -> None:
        # One wait for the device.
        summary = [
            (torch.isnan(log_target) | (log_target == math.inf)).any(),
            (log_target == -math.inf).any(),
            log_policy.max(),
            log_ratio.min(),
            log_ratio.max(),
            norm,
            ess,
            truncated,
        ]
        values = torch.stack([part.double() for part in summary]).tolist()
        bad, zero, largest, low, high, size, effective, share = values
        name = type(self.divergence).__name__
        if bad:
            where = torch.isnan(log_target) | (log_target == math.inf)
            raise ValueError(
                "log P must be a number or −∞, got "
                f"{log_target[where][0].item()} for the sequence {tokens[where][0].tolist()}."
            )
        if zero and math.isinf(float(self.divergence.value_at_zero)):
            row = tokens[log_target == -math.inf][0].tolist()
            raise ValueError(
                f"{name} is infinite where the target has no mass, got log P = −∞ for the sequence "
                f"{row}; pass zero_floor=1e-3 to give such sequences that share of the base, or "
                "use 'forward_kl', 'jensen_shannon' or 'total_variation'."
            )
        if not largest <= _ABOVE_ZERO:
            raise ValueError(
                f"policy must have log-probabilities of at most 0, got {largest}; it is not "
                "normalised over sequences, or not finite."
            )
        if not math.isfinite(size):
            raise FloatingPointError(
                f"the gradient of {name} is not finite at log-ratios log p/π from {low:.4g} to "
                f"{high:.4g}; pass max_log_ratio= to truncate the weights, or start closer."
            )
        if effective < _LEAST_ESS:
            self._warn("ess", f"the effective sample size is {effective:.2g} of a sample")
        if share > _MOST_TRUNCATED:
            self._warn("truncated", f"{share:.0%} of the ratios are truncated")

    def _warn(self, name: str, finding: str) -> None:
        if name not in self.has_warned_of:
            self.has_warned_of.add(name)
            warnings.warn(
                f"{finding}: gradients rest on few sequences. Take more samples a step, or a "
                "target closer to the policy (a softer tilt first).",
                RuntimeWarning,
                stacklevel=4,
            )


def check_settings(
    *,
    num_samples: Any,
    baseline: str,
    baselines: tuple[str, ...],
    max_log_ratio: Any,
    zero_floor: Any,
    max_gradient_norm: Any,
    adapt_every: Any,
    num_attempts: Any,
) -> None:
    """Raise on the first setting outside its domain."""
    if baseline not in baselines:
        raise ValueError(f"baseline must be one of {', '.join(baselines)}, got {baseline!r}.")
    for name, value in (
        ("num_samples", num_samples),
        ("adapt_every", adapt_every),
        ("num_attempts", num_attempts),
    ):
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise ValueError(f"{name} must be an integer of at least 1, got {value!r}.")
    if baseline == "mean" and num_samples < 2:
        raise ValueError(
            "num_samples must be at least 2 for baseline='mean', the mean of the other samples, "
            f"got {num_samples}."
        )
    if zero_floor is not None and not 0.0 < zero_floor < 1.0:
        raise ValueError(f"zero_floor must be in (0, 1) or None, got {zero_floor!r}.")
    if max_log_ratio is not None and not math.isfinite(max_log_ratio):
        raise ValueError(f"max_log_ratio must be finite or None, got {max_log_ratio!r}.")
    if max_gradient_norm is not None and not 0.0 < max_gradient_norm < math.inf:
        raise ValueError(
            f"max_gradient_norm must be positive and finite or None, got {max_gradient_norm!r}."
        )


def checked_contexts(batch: Any) -> torch.Tensor | None:
    """Numbers of contexts ``(k,)``, or None for all."""
    if batch is None:
        return None
    if not isinstance(batch, torch.Tensor) or batch.is_floating_point() or batch.ndim != 1:
        raise TypeError(
            f"batch must be None or the numbers of contexts, an integer tensor (k,), got {batch!r}."
        )
    return batch


def checked_proposal(proposal: Any) -> Any:
    """A distribution that can be sampled and scored."""
    for method in ("sample", "log_prob"):
        if not callable(getattr(proposal, method, None)):
            raise TypeError(
                f"proposal must have {method}(), so that samples can be weighted, got "
                f"{type(proposal).__name__}."
            )
    return proposal
