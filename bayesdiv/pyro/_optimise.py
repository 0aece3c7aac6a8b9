"""Windows of Adam steps on a Pyro objective, under a schedule that stops by itself."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import torch
from pyro import poutine

from bayesdiv.fitting import WINDOW, FitRun, StageSchedule, WindowSummary
from bayesdiv.pyro._whitened import antithetic


class Problem(NamedTuple):
    """A model on its arguments and an objective to take steps on."""

    model: Callable
    args: tuple
    kwargs: Mapping[str, Any]
    objective: Any


@dataclass
class Run(FitRun):
    """One restart: its guide, parameters, optimiser and history; all of it pickles."""

    guide: Any = None
    parameters: list[torch.Tensor] = field(default_factory=list)
    optimiser: Any = None
    generator_state: Any = None

    def prepare(self, problem: Problem) -> None:
        if not self.parameters:
            self._collect(problem)
        if self.generator_state is not None:
            torch.set_rng_state(self.generator_state)

    def take_window(self, problem: Problem) -> WindowSummary:
        kept = self._snapshot()
        try:
            losses, average = self._steps(problem)
        except ValueError:
            self._restore(kept)
            raise
        self.generator_state = torch.get_rng_state()
        whitened = getattr(self.guide, "is_whitened", False)
        return WindowSummary(losses, average, whitened)

    def load_average(self, problem: Problem, average: np.ndarray) -> None:
        position = 0
        with torch.no_grad():
            for leaf in self.parameters:
                part = average[position : position + leaf.numel()]
                leaf.copy_(torch.as_tensor(part, dtype=leaf.dtype).reshape(leaf.shape))
                position += leaf.numel()

    def begin_stage(self, schedule: StageSchedule) -> None:
        self.schedule, self.optimiser = schedule, None
        self.parameters = []

    def _collect(self, problem: Problem) -> None:
        with poutine.trace(param_only=True) as capture:
            problem.objective.loss(problem.model, self.guide, *problem.args, **problem.kwargs)
        values: list[Any] = [site["value"] for site in capture.trace.nodes.values()]
        # The parameters of local modules are leaves themselves.
        found = [v.unconstrained() if hasattr(v, "unconstrained") else v for v in values]
        if isinstance(self.guide, torch.nn.Module):
            found += list(self.guide.parameters())
        unique = {id(leaf): leaf for leaf in found if leaf.requires_grad}
        self.parameters = list(unique.values())
        self.optimiser = torch.optim.Adam(self.parameters, lr=self.schedule.step_size)

    def _steps(self, problem: Problem) -> tuple[np.ndarray, np.ndarray]:
        """The losses of a window and the flat average of the parameters."""
        for group in self.optimiser.param_groups:
            group["lr"] = self.schedule.step_size
        losses = np.empty(WINDOW)
        sums = [torch.zeros_like(leaf) for leaf in self.parameters]
        with antithetic(self.guide):
            for step in range(WINDOW):
                self.optimiser.zero_grad(set_to_none=True)
                losses[step] = problem.objective.loss_and_grads(
                    problem.model, self.guide, *problem.args, **problem.kwargs
                )
                self.optimiser.step()
                torch._foreach_add_(sums, [leaf.detach() for leaf in self.parameters])
        average = np.concatenate([(total / WINDOW).numpy().ravel() for total in sums])
        if not (np.all(np.isfinite(losses)) and np.all(np.isfinite(average))):
            raise ValueError(
                "the loss or the parameters became NaN or infinite within a window of steps."
            )
        return losses, average

    def _snapshot(self) -> Any:
        values = [leaf.detach().clone() for leaf in self.parameters]
        return values, copy.deepcopy(self.optimiser.state_dict())

    def _restore(self, kept: Any) -> None:
        values, optimiser_state = kept
        with torch.no_grad():
            for leaf, value in zip(self.parameters, values, strict=True):
                leaf.copy_(value)
        self.optimiser.load_state_dict(optimiser_state)
