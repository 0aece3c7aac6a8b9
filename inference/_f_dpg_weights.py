"""log Z of each context across steps, and means under the target from weighted samples."""

from __future__ import annotations

from typing import Any

import torch

from bayesdiv.objectives import RunningNormalizer, RunningNormalizerState

__all__ = ["ContextNormalizer", "effective_share", "mean_under_target"]


class ContextNormalizer:
    """`bayesdiv.objectives.RunningNormalizer` with a count for each context.

    Parameters
    ----------
    shape
        ``()``, or ``(num_contexts,)``.
    device
        Of the samples.
    """

    def __init__(self, shape: tuple[int, ...], device: torch.device) -> None:
        self._rule = RunningNormalizer()
        self.log_mean = torch.full(shape, -torch.inf, dtype=torch.float64, device=device)
        self.count = torch.zeros(shape, dtype=torch.float64, device=device)

    def look(
        self, log_weight: torch.Tensor, contexts: torch.Tensor | None
    ) -> tuple[torch.Tensor, RunningNormalizerState]:
        """log Z with these weights included, and the state to `keep` if the step counts."""
        at: Any = ... if contexts is None else contexts
        before = RunningNormalizerState(self.log_mean[at], self.count[at])
        return self._rule(before, log_weight.to(self.log_mean))

    def keep(self, state: RunningNormalizerState, contexts: torch.Tensor | None) -> None:
        """Remember; contexts that were not asked for stay as they are."""
        at: Any = ... if contexts is None else contexts
        self.log_mean[at], self.count[at] = state.log_mean, state.count

    def state_dict(self) -> dict[str, torch.Tensor]:
        """Finite numbers only: what has not been seen is a flag."""
        seen = self.log_mean > -torch.inf
        known = torch.where(seen, self.log_mean, torch.zeros_like(self.log_mean))
        return {"log_mean": known, "seen": seen, "count": self.count.clone()}

    def load_state_dict(self, state: dict[str, torch.Tensor]) -> None:
        """Go on from what `state_dict` gave."""
        unseen = torch.where(state["seen"], state["log_mean"], -torch.inf)
        self.log_mean.copy_(unseen)
        self.count.copy_(state["count"])


def mean_under_target(values: torch.Tensor, log_weight: torch.Tensor) -> torch.Tensor:
    """E_p of ``values`` by self-normalised weights, averaged over contexts that have any."""
    top = log_weight.amax(0)
    seen = top > -torch.inf
    weights = (log_weight - torch.where(seen, top, torch.zeros_like(top))).exp()
    terms = torch.where(weights > 0.0, values, torch.zeros_like(values))
    mean = (weights * terms).sum(0) / weights.sum(0).clamp(min=1e-30)
    return mean.sum() / seen.sum().clamp(min=1)


def effective_share(log_weight: torch.Tensor) -> torch.Tensor:
    """(Σw)²/(n Σw²), the mean over contexts; 0 where no sample has weight."""
    log_ess = 2.0 * log_weight.logsumexp(0) - (2.0 * log_weight).logsumexp(0)
    return torch.nan_to_num(log_ess.exp(), nan=0.0).mean() / len(log_weight)
