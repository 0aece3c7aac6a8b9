"""SGLD as a kernel of ``numpyro.infer.MCMC``."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

from numpyro.infer import init_to_uniform

from bayesdiv.inference._dynamics import check_step_count
from bayesdiv.inference.sgld import SGLDDynamics
from bayesdiv.numpyro import StochasticGradientKernel

__all__ = ["SGLD"]


class SGLD(StochasticGradientKernel):
    """Langevin dynamics on a NumPyro model; see :class:`bayesdiv.inference.sgld.SGLDDynamics`.

    Parameters
    ----------
    model
        A NumPyro model; plates with a ``subsample_size`` give minibatches.
    step_size
        ε.
    num_burn_in
        Gradient steps that adapt the preconditioner; None is half of the warm-up's, 0 leaves the
        coordinates as they are.
    memory
        Decay of the average of the squared gradient, in (0, 1].
    steps_per_sample
        Gradient steps in one iteration of ``MCMC``.
    init_strategy
        One of NumPyro's.

    Raises
    ------
    ValueError
        If a setting is outside its domain; when it runs, if warm-up is shorter than
        ``num_burn_in``, or the model has sites that it cannot sample.
    """

    def __init__(
        self,
        model: Callable,
        *,
        step_size: float,
        num_burn_in: int | None = None,
        memory: float = 0.99,
        steps_per_sample: int = 1,
        init_strategy: Callable = init_to_uniform,
    ) -> None:
        if num_burn_in is not None:
            check_step_count("num_burn_in", num_burn_in)
        dynamics = SGLDDynamics(step_size=step_size, num_burn_in=num_burn_in or 0, memory=memory)
        super().__init__(
            model, dynamics, steps_per_sample=steps_per_sample, init_strategy=init_strategy
        )
        self.num_burn_in = num_burn_in

    def choose_dynamics(self, num_warmup_steps: int, *, is_minibatched: bool) -> SGLDDynamics:
        """Burn-in by the length of the warm-up."""
        num_burn_in = num_warmup_steps // 2 if self.num_burn_in is None else self.num_burn_in
        return dataclasses.replace(self.dynamics, num_burn_in=num_burn_in)
