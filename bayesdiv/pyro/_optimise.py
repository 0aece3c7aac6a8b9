"""Windows of Adam steps on a Pyro objective, under a schedule that stops by itself."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from pyro import poutine

from bayesdiv.fitting import StageSchedule, WindowSummary
from bayesdiv.pyro._objective import DivergenceELBO

WINDOW = 100
_MAX_FAILURES = 5


@dataclass
class Run:
    """One restart: its guide, parameters, optimiser and history; all of it pickles."""

    guide: Any
    objective: Any
    schedule: StageSchedule
    losses: list[float] = field(default_factory=list)
    parameters: list[torch.Tensor] = field(default_factory=list)
    optimiser: Any = None
    failures: list[str] = field(default_factory=list)
    generator_state: Any = None

    def advance(
        self,
        model: Callable,
        args: tuple,
        kwargs: Mapping[str, Any],
        *,
        on_window: Callable[[Run], None] = lambda run: None,
    ) -> None:
        """Run windows until the schedule is done; a window that fails is taken back."""
        if not self.parameters:
            self._collect(model, args, kwargs)
        while not self.schedule.done:
            kept = self._snapshot()
            try:
                window = self._window(model, args, kwargs)
            except ValueError as error:
                self._restore(kept)
                self.failures.append(str(error))
                if len(self.failures) >= _MAX_FAILURES:
                    return
                self.schedule.step_size *= 0.3
                continue
            self.schedule.update(window)
            self.generator_state = torch.get_rng_state()
            on_window(self)
        if self.schedule.average is not None and self.schedule.average.size:
            self._load(self.schedule.average)

    def _collect(self, model: Callable, args: tuple, kwargs: Mapping[str, Any]) -> None:
        with poutine.trace(param_only=True) as capture:
            self.objective.loss(model, self.guide, *args, **kwargs)
        values = [site["value"] for site in capture.trace.nodes.values()]
        # The parameters of local modules are leaves themselves.
        found = [v.unconstrained() if hasattr(v, "unconstrained") else v for v in values]
        if isinstance(self.guide, torch.nn.Module):
            found += list(self.guide.parameters())
        unique = {id(leaf): leaf for leaf in found if leaf.requires_grad}
        self.parameters = list(unique.values())
        self.optimiser = torch.optim.Adam(self.parameters, lr=self.schedule.step_size)

    def _window(self, model: Callable, args: tuple, kwargs: Mapping[str, Any]) -> WindowSummary:
        for group in self.optimiser.param_groups:
            group["lr"] = self.schedule.step_size
        losses = []
        sums = [torch.zeros_like(leaf) for leaf in self.parameters]
        for _ in range(WINDOW):
            self.optimiser.zero_grad(set_to_none=True)
            losses.append(self.objective.loss_and_grads(model, self.guide, *args, **kwargs))
            self.optimiser.step()
            with torch.no_grad():
                torch._foreach_add_(sums, self.parameters)
        self.losses.extend(losses)
        average = np.concatenate([(total / WINDOW).numpy().ravel() for total in sums])
        whitened = getattr(self.guide, "is_whitened", False)
        return WindowSummary(np.asarray(losses), average, whitened)

    def _load(self, flat: np.ndarray) -> None:
        position = 0
        with torch.no_grad():
            for leaf in self.parameters:
                part = flat[position : position + leaf.numel()]
                leaf.copy_(torch.as_tensor(part, dtype=leaf.dtype).reshape(leaf.shape))
                position += leaf.numel()

    def _snapshot(self) -> Any:
        values = [leaf.detach().clone() for leaf in self.parameters]
        return values, copy.deepcopy(self.optimiser.state_dict()), len(self.losses)

    def _restore(self, kept: Any) -> None:
        values, optimiser_state, count = kept
        with torch.no_grad():
            for leaf, value in zip(self.parameters, values, strict=True):
                leaf.copy_(value)
        self.optimiser.load_state_dict(optimiser_state)
        del self.losses[count:]


def set_objective(run: Run, objective: Any, schedule: StageSchedule) -> None:
    """Go on with another objective from where the last one ended."""
    run.objective, run.schedule, run.optimiser = objective, schedule, None
    run.parameters = []


def estimate_in_chunks(
    objective: DivergenceELBO,
    model: Callable,
    guide: Any,
    args: tuple,
    kwargs: Mapping[str, Any],
    *,
    num_particles: int,
    chunk: int = 500,
) -> torch.Tensor:
    """Log-weights of many particles, ``(num_particles, *plates)``, a chunk at a time."""
    parts = []
    while num_particles > 0:
        count = min(chunk, num_particles)
        result = objective.estimate(model, guide, *args, num_particles=count, **kwargs)
        parts.append(result.log_weight)
        num_particles -= count
    return torch.cat(parts)
