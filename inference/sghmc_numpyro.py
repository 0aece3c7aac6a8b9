"""SGHMC as a kernel of ``numpyro.infer.MCMC``."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

from numpyro.infer import init_to_uniform

from bayesdiv.inference._dynamics import check_step_count
from bayesdiv.inference.sghmc import SGHMCDynamics
from bayesdiv.numpyro import StochasticGradientKernel

__all__ = ["SGHMC"]


class SGHMC(StochasticGradientKernel):
    """Scale-adapted SGHMC on a NumPyro model; see :class:`bayesdiv.inference.sghmc.SGHMCDynamics`.

    Warm-up has two halves: burn-in, which adapts the scales, and as many steps at the scales that
    it found, which are dropped too.

    Parameters
    ----------
    model
        A NumPyro model; plates with a ``subsample_size`` give minibatches.
    step_size
        ε, in units of the scaled coordinates: about 0.01 to 0.1 whatever the units of the model.
    friction
        α in (0, 1], the share of velocity lost in a step.
    num_burn_in
        Gradient steps that adapt the scales; None is half of the warm-up's.
    steps_per_sample
        Gradient steps in one iteration of ``MCMC``.
    subtract_gradient_noise
        Whether the minibatch's own noise is taken off the injected noise; None does so where a
        plate is subsampled, since exact gradients have none.
    init_strategy
        One of NumPyro's.

    Raises
    ------
    ValueError
        If a setting is outside its domain; when it runs, if there is no warm-up or it is shorter
        than ``num_burn_in``, or the model has sites that it cannot sample.

    Examples
    --------
    >>> import jax, numpyro, numpyro.distributions as dist
    >>> def model():
    ...     numpyro.sample("scale", dist.LogNormal(0.0, 0.5))
    >>> kernel = SGHMC(model, step_size=0.1, steps_per_sample=10)
    >>> mcmc = numpyro.infer.MCMC(kernel, num_warmup=100, num_samples=500, progress_bar=False)
    >>> mcmc.run(jax.random.key(0))
    >>> bool(0.7 < jax.numpy.median(mcmc.get_samples()["scale"]) < 1.4)
    True
    """

    def __init__(
        self,
        model: Callable,
        *,
        step_size: float,
        friction: float = 0.05,
        num_burn_in: int | None = None,
        steps_per_sample: int = 1,
        subtract_gradient_noise: bool | None = None,
        init_strategy: Callable = init_to_uniform,
    ) -> None:
        if num_burn_in is not None:
            check_step_count("num_burn_in", num_burn_in)
            if num_burn_in == 0:
                raise ValueError(
                    "num_burn_in must be at least 1 or None, got 0: without burn-in the scales "
                    "stay 1 and the first steps mostly diverge. For plain SGHMC pass "
                    "SGHMCDynamics(step_size=...) to StochasticGradientKernel."
                )
        dynamics = SGHMCDynamics(
            step_size=step_size,
            friction=friction,
            num_burn_in=num_burn_in or 0,
            subtract_gradient_noise=subtract_gradient_noise is not False,
        )
        super().__init__(
            model, dynamics, steps_per_sample=steps_per_sample, init_strategy=init_strategy
        )
        self.num_burn_in = num_burn_in
        self.subtract_gradient_noise = subtract_gradient_noise

    def choose_dynamics(self, num_warmup_steps: int, *, is_minibatched: bool) -> SGHMCDynamics:
        """Burn-in by the length of the warm-up, the noise's correction by the model's plates."""
        num_burn_in = num_warmup_steps // 2 if self.num_burn_in is None else self.num_burn_in
        if num_burn_in == 0:
            raise ValueError(
                f"num_warmup must leave steps for burn-in, got {num_warmup_steps} gradient steps "
                "in all; pass MCMC a num_warmup of some hundred steps. A resumed run keeps the "
                "num_warmup of the first; NumPyro skips it."
            )
        subtract = self.subtract_gradient_noise
        return dataclasses.replace(
            self.dynamics,
            num_burn_in=num_burn_in,
            subtract_gradient_noise=is_minibatched if subtract is None else subtract,
        )
