"""Fits of a Pyro model by one objective after another, for ``compare``."""

from __future__ import annotations

import copy
import logging
import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import pyro
import torch
from pyro.infer import SVI

from bayesdiv.diagnostics._fits import Fit
from bayesdiv.pyro._arviz import guide_groups
from bayesdiv.pyro._objective import objective


class Runner:
    """Fits with a fresh guide, parameter store and generator each; see ``compare``."""

    def __init__(
        self,
        model: Callable,
        guide: Callable,
        args: tuple,
        kwargs: Mapping[str, Any],
        *,
        num_steps: int,
        learning_rate: float,
        optimizer: Any,
        num_draws: int,
    ) -> None:
        self.model, self.guide, self.args, self.kwargs = model, guide, args, kwargs
        self.num_steps, self.num_draws = num_steps, num_draws
        self.learning_rate, self.optimizer = learning_rate, optimizer

    def make_loss(self, divergence: Any, arguments: Mapping[str, Any]) -> Any:
        """The host's loss; a loss object is copied, since it counts steps."""
        if hasattr(divergence, "loss_and_grads"):
            return copy.deepcopy(divergence)
        return objective(divergence, **arguments)

    def fit(self, make_loss: Callable[[], Any], seed: int, report: Callable[[int], None]) -> Fit:
        """One fit and its draws.

        Raises
        ------
        ValueError
            From the objective, or when the loss is no longer finite.
        """
        devices = [torch.cuda.current_device()] if torch.cuda.is_available() else []
        with pyro.get_param_store().scope(), torch.random.fork_rng(devices=devices), _quiet():
            torch.manual_seed(seed)
            # Networks inside the model start anew as well.
            is_module = isinstance(self.model, torch.nn.Module)
            model = copy.deepcopy(self.model) if is_module else self.model
            start = time.perf_counter()
            guide = self.guide(model)
            loss = make_loss()
            svi = SVI(model, guide, self._make_optimizer(), loss)
            losses = []
            for step in range(self.num_steps):
                losses.append(svi.step(*self.args, **self.kwargs))
                if not math.isfinite(losses[-1]):
                    raise ValueError(f"the loss at step {step} is {losses[-1]}.")
                report(1)
            seconds = time.perf_counter() - start
            groups = guide_groups(
                guide,
                model,
                self.args,
                dict(self.kwargs),
                num_draws=self.num_draws,
                seed=seed,
                posterior_predictive=False,
                log_likelihood=False,
            )
        return Fit(groups, losses, seconds)

    def _make_optimizer(self) -> Any:
        if self.optimizer is not None:
            return copy.deepcopy(self.optimizer)
        # A hundredth of the step size at the end: what is compared are objectives, not noise.
        decay = 0.01 ** (1.0 / self.num_steps)
        # Gradients of the warm start can be a thousand times larger than those after it; a long
        # memory of their squares would stall what follows.
        settings = {"lr": self.learning_rate, "lrd": decay, "betas": (0.9, 0.99)}
        return pyro.optim.ClippedAdam(settings)


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the host's line about plates at every fit, which would break the progress bar."""
    host = logging.getLogger("pyro")
    level = host.level
    host.setLevel(max(level, logging.WARNING))
    try:
        yield
    finally:
        host.setLevel(level)
