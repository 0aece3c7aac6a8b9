"""What imitation watches while it runs, and what it asks of policies."""

from __future__ import annotations

import warnings
from typing import Any

import torch

# Steps between looks: on an accelerator each look waits for it.
_STEPS_BETWEEN_LOOKS = 20
_COLLAPSED_SHARE = 0.25


def require(thing: Any, name: str, *methods: str) -> None:
    """Raise unless ``thing`` has the methods."""
    missing = [method for method in methods if not callable(getattr(thing, method, None))]
    if missing:
        raise TypeError(
            f"{name} must have {' and '.join(methods)}, got {type(thing).__name__} without "
            f"{' and '.join(missing)}; wrap it, for example, in an AutoregressiveSequence."
        )


def check_finite(loss: torch.Tensor, step: int, log_ratio: torch.Tensor | None = None) -> None:
    """Raise if the loss is not finite, with the range of the log-ratio."""
    if bool(loss.detach().isfinite()):
        return
    seen = ""
    if log_ratio is not None:
        seen = f" with log-ratios from {float(log_ratio.min())} to {float(log_ratio.max())}"
    raise FloatingPointError(
        f"the loss became {float(loss.detach())} at step {step}{seen}; lower the learning rate or "
        "the clamp."
    )


class Watch:
    """Warns, once each, of a critic at its clamp and of a policy that collapses."""

    def __init__(self) -> None:
        self._entropies: list[torch.Tensor] = []
        self._saturated: list[torch.Tensor] = []
        self._first: float | None = None
        self._warned: set[str] = set()

    def look(self, entropy: torch.Tensor, saturated: torch.Tensor | None) -> None:
        """Note one step's policy entropy and share of saturated roll-outs."""
        self._entropies.append(entropy)
        if saturated is not None:
            self._saturated.append(saturated)
        if self._first is None:
            self._first = float(entropy)
        if len(self._entropies) < _STEPS_BETWEEN_LOOKS:
            return
        mean = float(torch.stack(self._entropies).mean())
        if mean < _COLLAPSED_SHARE * self._first:
            self._warn(
                "mode collapse",
                f"mode collapse: the policy's entropy fell from {self._first:.3g} to {mean:.3g} "
                "nats; lower the learning rate, anchor the policy, or take a divergence that "
                "covers modes.",
            )
        if self._saturated and bool((torch.stack(self._saturated) > 0.5).all()):
            self._warn(
                "saturated",
                "the discriminator separates: more than half of the roll-outs were at the clamp "
                f"for {_STEPS_BETWEEN_LOOKS} steps, and the reward carries no gradient "
                "information; regularise the critic or start the policy closer.",
            )
        self._entropies.clear()
        self._saturated.clear()

    def _warn(self, name: str, message: str) -> None:
        if name not in self._warned:
            self._warned.add(name)
            warnings.warn(message, RuntimeWarning, stacklevel=5)
