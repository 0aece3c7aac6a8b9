"""One step of a Pyro loss with a fixed seed; imported as ``from pyro_steps import ...``."""

from typing import Any

import pyro
import torch


def leaves() -> dict[str, torch.Tensor]:
    """The unconstrained parameters that Pyro's store knows."""
    return {
        name: value.unconstrained() if hasattr(value, "unconstrained") else value
        for name, value in pyro.get_param_store().items()
    }


def step(
    loss: Any, model: Any, guide: Any, *args: Any, seed: int = 0, **kwargs: Any
) -> tuple[float, dict[str, torch.Tensor]]:
    """The loss and the gradient of every parameter, for the draws of ``seed``."""
    for leaf in leaves().values():
        leaf.grad = None
    torch.manual_seed(seed)
    value = loss.loss_and_grads(model, guide, *args, **kwargs)
    gradients = {k: leaf.grad.clone() for k, leaf in leaves().items() if leaf.grad is not None}
    return value, gradients


def gradient_draws(
    loss: Any, model: Any, guide: Any, *args: Any, count: int
) -> dict[str, torch.Tensor]:
    """``count`` independent gradients of each parameter, ``(count, *shape)``."""
    rows = [step(loss, model, guide, *args, seed=seed)[1] for seed in range(1, count + 1)]
    return {name: torch.stack([row[name] for row in rows]) for name in rows[0]}


def assert_same_mean(first: dict, second: dict, *, gate: float = 5.0) -> None:
    """Fail unless the means of two sets of gradient draws agree within their standard errors."""
    assert set(first) == set(second)
    for name in first:
        a, b = first[name], second[name]
        error = (a.mean(0) - b.mean(0)).abs()
        limit = gate * (a.var(0) / len(a) + b.var(0) / len(b)).sqrt() + 1e-10
        assert bool((error <= limit).all()), (name, error, limit)


def assert_same_step(first: tuple, second: tuple, *, tolerance: float = 1e-9) -> None:
    """Fail unless two steps have the same loss and the same gradients."""
    assert abs(first[0] - second[0]) <= tolerance * max(1.0, abs(second[0]))
    assert set(first[1]) == set(second[1])
    for name, gradient in second[1].items():
        torch.testing.assert_close(first[1][name], gradient, rtol=tolerance, atol=tolerance)
