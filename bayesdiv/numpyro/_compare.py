"""Fits of a NumPyro model by one objective after another, for ``compare``."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
import numpyro
from numpyro.infer import SVI

from bayesdiv.diagnostics._fits import Fit
from bayesdiv.numpyro._arviz import GuideDraws
from bayesdiv.numpyro._objective import objective

_MAX_CHUNKS = 20


class Runner:
    """Fits with a fresh guide each; what is compiled for an objective serves all its seeds."""

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
        self.model, self.guide, self.args, self.kwargs = model, guide, args, dict(kwargs)
        self.num_steps, self.num_draws = num_steps, num_draws
        if optimizer is None:
            # A hundredth of the step size at the end: what is compared are objectives, not noise.
            def step_size(step: jax.Array) -> jax.Array:
                return learning_rate * 0.01 ** (step / num_steps)

            # As in Pyro's twin: a short memory of the warm start's large gradients.
            optimizer = numpyro.optim.ClippedAdam(step_size, b2=0.99)
        self.optimizer = optimizer
        self._compiled: Any = (None, None, None)
        self._draws: GuideDraws | None = None

    def make_loss(self, divergence: Any, arguments: Mapping[str, Any]) -> Any:
        """The host's loss."""
        if hasattr(divergence, "loss") and not isinstance(divergence, str):
            return copy.copy(divergence)
        return objective(divergence, **arguments)

    def fit(self, make_loss: Callable[[], Any], seed: int, report: Callable[[int], None]) -> Fit:
        """One fit and its draws.

        Raises
        ------
        ValueError
            From the objective, or when the loss is no longer finite.
        """
        start = time.perf_counter()
        guide = self.guide(self.model)
        is_new = self._compiled[0] is not make_loss
        loss = make_loss() if is_new else self._compiled[1]
        svi = self._make_svi(loss, guide)
        init_key, draw_key = jax.random.split(jax.random.PRNGKey(seed))
        state = svi.init(init_key, *self.args, **self.kwargs)
        if is_new:
            self._compiled = make_loss, loss, jax.jit(self._make_advance(svi))
        advance = self._compiled[2]
        losses: list[float] = []
        while len(losses) < self.num_steps:
            state, chunk = advance(state)
            finite = np.isfinite(chunk)
            if not finite.all():
                first = int(np.argmin(finite))
                raise ValueError(f"the loss at step {len(losses) + first} is {chunk[first]}.")
            losses.extend(np.asarray(chunk).tolist())
            report(len(chunk))
        params = svi.get_params(state)
        seconds = time.perf_counter() - start
        if self._draws is None:
            # Guides of the other objectives have the same parameters, so that this one serves all.
            self._draws = GuideDraws(guide, self.model, self.args, self.kwargs)
        return Fit(self._draws(params, draw_key, self.num_draws), losses, seconds)

    def _make_svi(self, loss: Any, guide: Any) -> SVI:
        settings = getattr(loss, "settings", None)
        if getattr(settings, "is_stateful", False):
            guide = loss.stateful(guide)
        elif getattr(settings, "has_inner_state", False) or getattr(settings, "warmup", 0):
            # Two-sample objectives: learnt slices have as many dimensions as the model.
            guide = loss.stateful(guide, self.model)
        return SVI(self.model, guide, self.optimizer, loss)

    def _make_advance(self, svi: SVI) -> Callable:
        """Steps of one chunk; as many chunks as divide the steps, so that one program serves."""
        chunks = max(n for n in range(1, _MAX_CHUNKS + 1) if self.num_steps % n == 0)

        def step(state: Any, _: None) -> tuple[Any, jax.Array]:
            return svi.update(state, *self.args, **self.kwargs)

        return lambda state: jax.lax.scan(step, state, None, length=self.num_steps // chunks)
