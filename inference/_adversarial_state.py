"""Parameters, buffers and optimisers of a Pyro model and guide: what a checkpoint holds."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from pyro import poutine
from torch import nn


def modules_of(things: Iterable[Any]) -> list[nn.Module]:
    """Modules among ``things``, and the owners of bound methods among them, each once."""
    found: dict[int, nn.Module] = {}
    for thing in things:
        inner = poutine.unwrap(thing) if callable(thing) else thing
        owner = inner if isinstance(inner, nn.Module) else getattr(inner, "__self__", None)
        if isinstance(owner, nn.Module):
            found[id(owner)] = owner
    return list(found.values())


class ParameterState:
    """Parameters by name with named optimisers, and the buffers of modules.

    The start is remembered, so that a state from before the first step can be gone back to.
    """

    def __init__(
        self,
        parameters: Mapping[str, torch.Tensor],
        optimizers: Mapping[str, torch.optim.Optimizer],
        modules: list[nn.Module],
    ) -> None:
        self.parameters, self.optimizers, self.modules = dict(parameters), optimizers, modules
        self._start = self.state_dict()

    def state_dict(self) -> dict[str, Any]:
        """A copy."""
        return {
            "parameters": {name: p.detach().clone() for name, p in self.parameters.items()},
            "buffers": [each.detach().clone() for each in self._buffers()],
            "optimizers": {
                name: copy.deepcopy(optimizer.state_dict())
                for name, optimizer in self.optimizers.items()
            },
        }

    def load_state_dict(self, state: Mapping[str, Any] | None) -> None:
        """Go back to ``state``; None is the start.

        Raises
        ------
        ValueError
            The state is of other parameters.
        """
        state = self._start if state is None else state
        found = {name: tuple(value.shape) for name, value in state["parameters"].items()}
        expected = {name: tuple(value.shape) for name, value in self.parameters.items()}
        if found != expected:
            raise ValueError(
                f"state must have the parameters {expected}, got {found}; it is of another model "
                "or guide."
            )
        with torch.no_grad():
            for name, value in state["parameters"].items():
                self.parameters[name].copy_(value)
            for buffer, value in zip(self._buffers(), state["buffers"], strict=True):
                buffer.copy_(value)
        for name, optimizer in self.optimizers.items():
            optimizer.load_state_dict(copy.deepcopy(state["optimizers"][name]))

    def _buffers(self) -> Iterator[torch.Tensor]:
        for module in self.modules:
            yield from module.buffers()


@contextmanager
def evaluating(modules: Iterable[nn.Module]) -> Iterator[None]:
    """Modules in evaluation mode, and afterwards each part as it was."""
    parts = [(part, part.training) for module in modules for part in module.modules()]
    for module in modules:
        module.eval()
    try:
        yield
    finally:
        for part, training in parts:
            part.training = training


def apply_gradients(
    optimizer: torch.optim.Optimizer, parameters: list[torch.Tensor], gradients: Iterable[Any]
) -> None:
    """One step of ``optimizer`` on ``gradients``, None where a parameter has no influence."""
    for parameter, gradient in zip(parameters, gradients, strict=True):
        parameter.grad = gradient
    optimizer.step()
    optimizer.zero_grad()


@torch.no_grad()
def all_finite(tensors: Iterable[Any]) -> bool:
    """Whether every entry is; one reading of the device."""
    # A sum is finite only if its terms are, and costs less than looking at each of them.
    sums = [each.sum() for each in tensors if each is not None]
    return bool(torch.stack(sums).isfinite().all())


def guard(optimizer: torch.optim.Optimizer, what: str) -> None:
    """Let ``optimizer`` refuse gradients that are not finite, before it spoils anything."""

    def refuse(optimizer: Any, args: Any, kwargs: Any) -> None:
        groups = optimizer.param_groups
        if not all_finite(p.grad for group in groups for p in group["params"]):
            raise FloatingPointError(
                f"the gradient of {what} is not finite; its last good parameters are kept. Lower "
                "its rate, or look at the batch."
            )

    optimizer.register_step_pre_hook(refuse)


def gradients_of(loss: torch.Tensor, parameters: list[torch.Tensor], *, keep: bool = False) -> Any:
    """∂loss/∂parameters, None where there is none; ``keep`` leaves the graph for another one."""
    if not loss.requires_grad:
        return [None] * len(parameters)
    return torch.autograd.grad(loss, parameters, retain_graph=keep, allow_unused=True)


def check_influence(pull: list[Any], gradients: list[Any], num_guide: int) -> None:
    """Refuse parameters that Pyro names and the networks do not run on."""
    stale = (
        "has any influence on the loss: Pyro's store holds others under the same names, of an "
        "earlier program. Call pyro.clear_param_store() before a new one, or name its parts anew"
    )
    if all(each is None for each in (*pull, *gradients[:num_guide])):
        raise ValueError(f"no parameter of the guide {stale}.")
    model = gradients[num_guide:]
    if model and all(each is None for each in model):
        warnings.warn(
            f"no parameter of the model {stale}. Those of an implicit prior are never trained.",
            RuntimeWarning,
            stacklevel=4,
        )
