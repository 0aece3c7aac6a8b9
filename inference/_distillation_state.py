"""Parameters, optimisers, averages and bins of a distillation: what a checkpoint holds."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from typing import Any

import torch

from bayesdiv.nn.conditions_torch import given


class DistillationState:
    """Named optimisers whose parameters are the state, the student's average, the bins' means."""

    student: Any
    teacher: Any
    fake_score: Any
    critic: Any

    def __init__(
        self,
        optimizers: Mapping[str, torch.optim.Optimizer | None],
        *,
        num_bins: int,
        ema_decay: float,
    ) -> None:
        self._optimizers = {name: each for name, each in optimizers.items() if each is not None}
        self._ema_decay = ema_decay
        like = self._parameters("student")[0]
        self._like = like.detach()
        # Weights are computed in single precision at least.
        wide = like.dtype if like.dtype == torch.float64 else torch.float32
        self._log_means = torch.full((num_bins,), -torch.inf, dtype=wide, device=like.device)
        self._averaged = [each.detach().clone() for each in self._parameters("student")]
        self._accelerator: Any = None
        self.num_steps = 0

    def prepare(self, accelerator: Any) -> None:
        """Move to the accelerator's device, and take its mixed precision and its processes.

        Weights are computed in single precision whatever the networks run in; each process keeps
        its own bins.
        """
        self._accelerator = accelerator
        for part in (self.student, self.teacher, self.fake_score, self.critic):
            if isinstance(part, torch.nn.Module):
                part.to(accelerator.device)
        self._like = self._parameters("student")[0].detach()
        self._log_means = self._log_means.to(accelerator.device)
        self._averaged = [each.to(accelerator.device) for each in self._averaged]

    def state_dict(self) -> dict[str, Any]:
        """A copy of all that the next step depends on, random states aside."""
        return {
            "parameters": {
                name: [each.detach().clone() for each in self._parameters(name)]
                for name in self._optimizers
            },
            "optimizers": {
                name: copy.deepcopy(optimizer.state_dict())
                for name, optimizer in self._optimizers.items()
            },
            "averaged": [each.clone() for each in self._averaged],
            # −∞ marks an unseen bin; a state's numbers are finite.
            "seen_bins": self._log_means > -torch.inf,
            "log_means": self._log_means.nan_to_num(neginf=0.0),
            "num_steps": self.num_steps,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from what `state_dict` gave."""
        with torch.no_grad():
            for name, values in state["parameters"].items():
                for parameter, value in zip(self._parameters(name), values, strict=True):
                    parameter.copy_(value)
            for mean, value in zip(self._averaged, state["averaged"], strict=True):
                mean.copy_(value)
        for name, optimizer in self._optimizers.items():
            optimizer.load_state_dict(copy.deepcopy(state["optimizers"][name]))
        log_means = state["log_means"].to(self._log_means)
        seen = state["seen_bins"].to(self._log_means.device)
        self._log_means = torch.where(seen, log_means, torch.full_like(log_means, -torch.inf))
        self.num_steps = state["num_steps"]

    @contextmanager
    def averaged_parameters(self) -> Iterator[None]:
        """The student with the average of its parameters, which is what to sample from."""
        parameters = self._parameters("student")
        now = [each.detach().clone() for each in parameters]
        with torch.no_grad():
            for parameter, mean in zip(parameters, self._averaged, strict=True):
                parameter.copy_(mean)
        try:
            yield
        finally:
            with torch.no_grad():
                for parameter, value in zip(parameters, now, strict=True):
                    parameter.copy_(value)

    def sample(self, count: int, condition: torch.Tensor | None = None) -> torch.Tensor:
        """``count`` samples of the averaged student, of a condition if given, without history."""
        with self.averaged_parameters(), torch.no_grad():
            return self.student.sample(count, *given(condition, count))

    def _parameters(self, name: str) -> list[torch.Tensor]:
        return [p for group in self._optimizers[name].param_groups for p in group["params"]]

    def _descend(self, name: str, loss: torch.Tensor) -> None:
        optimizer = self._optimizers[name]
        optimizer.zero_grad()
        loss.backward()
        if self._accelerator is not None and self._accelerator.num_processes > 1:
            for parameter in self._parameters(name):
                if parameter.grad is not None:
                    parameter.grad = self._accelerator.reduce(parameter.grad, reduction="mean")
        optimizer.step()

    def _average(self) -> None:
        # The average of few steps is not dragged down by its start.
        decay = min(self._ema_decay, (1.0 + self.num_steps) / (11.0 + self.num_steps))
        with torch.no_grad():
            for mean, now in zip(self._averaged, self._parameters("student"), strict=True):
                mean.lerp_(now, 1.0 - decay)

    def _autocast(self) -> Any:
        return nullcontext() if self._accelerator is None else self._accelerator.autocast()
