"""Windows of Adam steps on a NumPyro objective, each one compiled scan."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.flatten_util import ravel_pytree
from numpyro.infer import SVI

from bayesdiv.fitting import WINDOW, FitRun, StageSchedule, WindowSummary
from bayesdiv.numpyro._objective import DivergenceELBO
from bayesdiv.numpyro._state import STATE_SITE
from bayesdiv.numpyro._whitened import WhitenedGuide


class Problem:
    """A model, a guide and an objective, compiled once for all step sizes and restarts.

    The arguments are constants of the compiled code, as in :meth:`numpyro.infer.SVI.run`: models
    may count groups or take shapes from them.
    """

    def __init__(
        self,
        model: Callable,
        guide: Callable,
        loss: Any,
        args: tuple,
        kwargs: Mapping[str, Any],
        *,
        is_whitened: bool,
    ) -> None:
        self.is_whitened = is_whitened
        self.guide, self.loss = guide, loss
        self.args, self.kwargs = args, kwargs
        declared = loss.stateful(guide) if _is_stateful(loss) else guide
        optimiser = optax.inject_hyperparams(optax.adam)(learning_rate=0.0)
        self.svi = SVI(model, declared, optimiser, loss)
        self._window = jax.jit(self._scan)

    def start(self, rng_key: jax.Array, params: dict[str, Any] | None) -> Any:
        """The state of SVI at ``params``, or where the guide starts by itself."""

        def initialise(key: jax.Array, params: dict[str, Any] | None) -> Any:
            return self.svi.init(key, *self.args, init_params=params, **self.kwargs)

        # SVI keeps constraints, into which compilation must not leak; without parameters but the
        # whitened guide's there are none, and one compilation is faster than many.
        trace = self.guide.prototype_trace if isinstance(self.guide, WhitenedGuide) else None
        if trace and not any(site["type"] in ("param", "mutable") for site in trace.values()):
            initialise = jax.jit(initialise)
        return initialise(rng_key, params)._replace(rng_key=rng_key)

    def take_window(self, state: Any, step_size: float) -> tuple[Any, np.ndarray, np.ndarray]:
        """The state after a window, its losses, and the flat average of the parameters."""
        after, losses, average = self._window(state, step_size)
        return after, np.asarray(losses, dtype=np.float64), np.asarray(average, dtype=np.float64)

    def params(self, state: Any) -> dict[str, Any]:
        """Constrained parameters, with what the model or the guide keep between steps."""
        kept = {k: v for k, v in (state.mutable_state or {}).items() if k != STATE_SITE}
        return jax.device_get({**self.svi.get_params(state), **kept})

    def replace_parameters(self, state: Any, flat: np.ndarray) -> Any:
        """``state`` with unconstrained parameters from one vector."""
        step, (values, memory) = state.optim_state
        unravel = ravel_pytree(values)[1]
        return state._replace(optim_state=(step, (unravel(jnp.asarray(flat)), memory)))

    def describe_failure(self, state: Any) -> str:
        """What is not finite at ``state``."""
        if isinstance(self.loss, DivergenceELBO):
            try:
                params = self.params(state)
                self.loss.check(
                    state.rng_key, params, self.svi.model, self.guide, *self.args, **self.kwargs
                )
            except ValueError as error:
                return str(error)
        return "the loss or the parameters became NaN or infinite within a window of steps."

    def _scan(self, state: Any, step_size: jax.Array) -> tuple[Any, jax.Array, jax.Array]:
        step, (values, memory) = state.optim_state
        rate = jnp.asarray(step_size, memory.hyperparams["learning_rate"].dtype)
        memory = memory._replace(hyperparams={**memory.hyperparams, "learning_rate": rate})
        state = state._replace(optim_state=(step, (values, memory)))

        def body(carry: Any, _: None) -> tuple[Any, jax.Array]:
            state, total = carry
            state, loss = self.svi.update(state, *self.args, **self.kwargs)
            return (state, total + ravel_pytree(state.optim_state[1][0])[0]), loss

        total = jnp.zeros_like(ravel_pytree(values)[0])
        (state, total), losses = jax.lax.scan(body, (state, total), None, length=WINDOW)
        return state, losses, total / WINDOW


@dataclass
class Run(FitRun):
    """One restart: its parameters and the optimiser's state, in NumPy; all of it pickles.

    ``params`` are constrained, as SVI returns them; None before the first window.
    """

    rng_key: np.ndarray = field(default_factory=lambda: np.zeros(2, np.uint32))
    params: dict[str, Any] | None = None
    state: Any = None

    def prepare(self, problem: Problem) -> None:
        # SVI learns the parameters' constraints here, so a run that was loaded needs it too.
        start = problem.start(jnp.asarray(self.rng_key), self.params)
        if self.state is None:
            self._keep(problem, start)

    def take_window(self, problem: Problem) -> WindowSummary:
        before = self.state
        after, losses, average = problem.take_window(before, self.schedule.step_size)
        if not (np.all(np.isfinite(losses)) and np.all(np.isfinite(average))):
            # The same draws would fail again.
            key = np.asarray(jax.random.fold_in(jnp.asarray(before.rng_key), len(self.failures)))
            self.state = before._replace(rng_key=key)
            raise ValueError(problem.describe_failure(before))
        self._keep(problem, after)
        return WindowSummary(losses, average, problem.is_whitened)

    def load_average(self, problem: Problem, average: np.ndarray) -> None:
        self._keep(problem, problem.replace_parameters(self.state, average))

    def begin_stage(self, schedule: StageSchedule) -> None:
        self.rng_key = np.asarray(self.state.rng_key)
        self.schedule, self.state = schedule, None

    def _keep(self, problem: Problem, state: Any) -> None:
        self.state = jax.device_get(state)
        self.params = problem.params(state)


def _is_stateful(loss: Any) -> bool:
    settings = getattr(loss, "settings", None)
    return hasattr(loss, "stateful") and getattr(settings, "is_stateful", False)
