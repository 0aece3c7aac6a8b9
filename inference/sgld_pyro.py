"""Stochastic-gradient Langevin dynamics for ``pyro.infer.MCMC``."""

from collections.abc import Callable
from typing import Any

from bayesdiv.inference.sgld import SGLDDynamics
from bayesdiv.pyro import StochasticGradientKernel

__all__ = ["SGLD"]


class SGLD(StochasticGradientKernel):
    r"""`bayesdiv.inference.sgld.SGLDDynamics` on any Pyro model, subsampled plates included.

    Parameters
    ----------
    model
        Pyro model.
    step_size
        ε; a step moves by ε² times the preconditioned gradient.
    num_burn_in
        Gradient steps that adapt the preconditioner; 0 for none, which is plain SGLD.
    memory
        Decay of the average of squared gradients.
    collect_after, steps_per_sample, num_chains, settings
        As in `bayesdiv.pyro.StochasticGradientKernel`.

    Raises
    ------
    ValueError
        A setting outside its domain, or what the kernel raises.

    References
    ----------
    Welling and Teh (2011), equation 4; Li, Chen, Carlson and Carin (2016), equation 4.
    """

    def __init__(
        self,
        model: Callable,
        *,
        step_size: float,
        num_burn_in: int = 0,
        memory: float = 0.99,
        collect_after: int | None = None,
        steps_per_sample: int = 1,
        num_chains: int = 1,
        **settings: Any,
    ) -> None:
        super().__init__(
            model,
            SGLDDynamics(step_size=step_size, num_burn_in=num_burn_in, memory=memory),
            collect_after=collect_after,
            steps_per_sample=steps_per_sample,
            num_chains=num_chains,
            **settings,
        )
