"""Which gradient step, chain and site made a run of chains non-finite."""

from __future__ import annotations

from typing import Any

import torch

from bayesdiv.pyro._batched_potential import BatchedPotential


class NonFinitePotentialError(FloatingPointError):
    """The potential or its gradient became infinite or NaN.

    The kernel's ``state`` is the one that the failing step started from; draws before it are in
    ``kernel.get_samples()``.

    Attributes
    ----------
    step : int
        Gradient steps taken before the one that failed.
    chain : int
        Row of the kernel's chains.
    """

    step: int = -1
    chain: int = -1


def find_failure(
    dynamics: Any, state: Any, potential: BatchedPotential, num_steps: int
) -> tuple[Any, NonFinitePotentialError]:
    """The state before the step that fails, and what to raise.

    Repeats up to ``num_steps`` steps from ``state``, which carries its own randomness, so that
    steps that go well need no look at the device.
    """
    seen: list[Any] = []

    def watched(position: torch.Tensor, rng: int) -> tuple[torch.Tensor, torch.Tensor]:
        value, gradient = potential(position, rng)
        seen[:] = [rng, torch.isfinite(value) & torch.isfinite(gradient).all(-1)]
        return value, gradient

    for _ in range(num_steps):
        following, _ = dynamics.step(state, watched)
        rng, is_fine = seen
        is_fine = is_fine & torch.isfinite(following.position).all(-1)
        if not bool(is_fine.all()):
            break
        state = following
    chain = int(is_fine.logical_not().nonzero()[0])
    row = state.position[chain]
    indices = (index[chain] for index in potential.minibatches(rng, len(is_fine)))
    error = NonFinitePotentialError(
        f"the potential stopped being finite at gradient step {int(state.step)} of chain {chain}: "
        f"{potential.culprit(row, *indices)}. The state before it is kernel.state and the draws "
        "are in kernel.get_samples(); lower step_size, or start from elsewhere with init_strategy."
    )
    error.step, error.chain = int(state.step), chain
    return state, error
