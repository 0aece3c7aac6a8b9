"""A policy's parameters and their optimiser, as the start of a routine."""

from __future__ import annotations

from copy import deepcopy
from typing import Any

import torch


class PolicyRoutine:
    """Optimiser and state of a policy's parameters, which are the optimiser's."""

    def __init__(self, policy: Any, optimizer: torch.optim.Optimizer) -> None:
        self.policy, self.optimizer = policy, optimizer
        self.num_steps = 0

    @property
    def parameters(self) -> list[torch.Tensor]:
        """What the optimiser moves."""
        return [each for group in self.optimizer.param_groups for each in group["params"]]

    def _descend(self, loss: torch.Tensor) -> None:
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()

    def state_dict(self) -> dict[str, Any]:
        """A copy of all that the next step depends on, random states aside."""
        return {
            "parameters": [each.detach().clone() for each in self.parameters],
            "optimizer": deepcopy(self.optimizer.state_dict()),
            "num_steps": self.num_steps,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from what `state_dict` gave."""
        with torch.no_grad():
            for parameter, value in zip(self.parameters, state["parameters"], strict=True):
                parameter.copy_(value)
        self.optimizer.load_state_dict(deepcopy(state["optimizer"]))
        self.num_steps = state["num_steps"]
