"""Scale-adapted stochastic-gradient HMC for ``pyro.infer.MCMC``."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from bayesdiv.inference.sghmc import SGHMCDynamics
from bayesdiv.pyro import StochasticGradientKernel

__all__ = ["SGHMC"]


class SGHMC(StochasticGradientKernel):
    r"""`bayesdiv.inference.sghmc.SGHMCDynamics` on any Pyro model, subsampled plates included.

    Parameters
    ----------
    model
        Pyro model.
    step_size
        ε, in units of an unconstrained site over the square root of its standardised time.
    friction
        α, the share of velocity lost in a gradient step.
    num_burn_in
        Gradient steps that adapt the scales; None for the first half of MCMC's warm-up, whose
        other half lets the chains settle under the scales it found.
    subtract_gradient_noise
        Whether the noise that minibatches inject is taken off the injected noise; None for
        whether the model subsamples any plate.
    collect_after, steps_per_sample, num_chains, settings
        As in `bayesdiv.pyro.StochasticGradientKernel`.

    Raises
    ------
    ValueError
        A setting outside its domain; ``num_burn_in`` of 0; or what the kernel raises.

    References
    ----------
    Chen, Fox and Guestrin (2014), equation 15; Springenberg, Klein, Falkner and Hutter (2016),
    equations 7 to 9.
    """

    def __init__(
        self,
        model: Callable,
        *,
        step_size: float,
        friction: float = 0.05,
        num_burn_in: int | None = None,
        subtract_gradient_noise: bool | None = None,
        collect_after: int | None = None,
        steps_per_sample: int = 1,
        num_chains: int = 1,
        **settings: Any,
    ) -> None:
        # Settings that depend on the model or on MCMC's warm-up are set when these are known.
        dynamics = SGHMCDynamics(
            step_size=step_size,
            friction=friction,
            num_burn_in=1 if num_burn_in is None else num_burn_in,
            subtract_gradient_noise=subtract_gradient_noise is not False,
        )
        if num_burn_in == 0:
            raise ValueError(
                "num_burn_in must be at least 1 gradient step, got 0: without burn-in the scales "
                "stay 1. Leave it out to adapt in the first half of the warm-up, or run plain "
                "SGHMC as StochasticGradientKernel(model, SGHMCDynamics(step_size=...))."
            )
        super().__init__(
            model,
            dynamics,
            collect_after=collect_after,
            steps_per_sample=steps_per_sample,
            num_chains=num_chains,
            **settings,
        )
        self._num_burn_in = num_burn_in
        self._subtracts = subtract_gradient_noise

    def _prepare(self, *, num_warmup: int, is_subsampled: bool) -> SGHMCDynamics:
        dynamics: SGHMCDynamics = self.dynamics
        if self._num_burn_in is None:
            dynamics = replace(dynamics, num_burn_in=max(1, num_warmup // 2))
        if self._subtracts is None:
            dynamics = replace(dynamics, subtract_gradient_noise=is_subsampled)
        return dynamics
