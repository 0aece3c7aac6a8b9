r"""Stochastic-gradient Langevin dynamics, preconditioned by what burn-in learnt or not at all.

One pure ``init``/``step`` pair for torch and JAX; see `sghmc` for the sampler with momentum.
"""

from dataclasses import dataclass
from typing import Any, NamedTuple

from bayesdiv._array import Array, array_namespace, stop_gradient
from bayesdiv._random import next_rng, standard_normal
from bayesdiv.inference._dynamics import (
    PotentialAndGradient,
    check_fraction,
    check_position,
    check_positive,
    check_step_count,
    evaluated,
    row_norm,
    step_counter,
    where_warm,
)

__all__ = ["SGLDDynamics", "SGLDInfo", "SGLDState"]

_OFFSET = 1e-16


class SGLDState(NamedTuple):
    """What the next step needs; arrays are ``(dim,)`` or ``(num_chains, dim)``."""

    position: Array
    second_moment: Array
    step: Any
    rng: Any


class SGLDInfo(NamedTuple):
    """What one step reports, one entry a chain; see `bayesdiv.inference.sghmc.SGHMCInfo`."""

    potential: Array
    gradient_norm: Array


@dataclass(frozen=True)
class SGLDDynamics:
    r"""Langevin steps on exp(−U), with U known through minibatches.

    .. math::
        w ← w - ε^2 M G + \sqrt{2 ε^2 M} \; ξ, \qquad M = V^{-1/2},

    where G estimates the gradient of U and V averages G² with decay ``memory`` while ``step`` is
    below ``num_burn_in``; without burn-in V is 1. The minibatch's noise is not corrected: it adds
    ε⁴ M² var(G) to every step's variance.

    Attributes
    ----------
    step_size : float
        ε.
    num_burn_in : int
        Steps that adapt V.
    memory : float
        Decay of the average of G², in (0, 1].

    Raises
    ------
    ValueError
        If a setting is outside its domain, or a position has no entries.

    References
    ----------
    Welling and Teh (2011), equation 4; the preconditioner is that of Li, Chen, Carlson and Carin
    (2016), equation 4, frozen after burn-in so that its missing correction term vanishes.
    """

    step_size: float
    num_burn_in: int = 0
    memory: float = 0.99

    def __post_init__(self) -> None:
        check_positive("step_size", self.step_size)
        check_step_count("num_burn_in", self.num_burn_in)
        check_fraction("memory", self.memory)

    def init(self, position: Array, rng: Any) -> SGLDState:
        """At ``position``, ``(dim,)`` or ``(num_chains, dim)``, with unit scales."""
        check_position(position)
        position = stop_gradient(position)
        ones = array_namespace(position).ones_like(position)
        return SGLDState(position, ones, step_counter(position), rng)

    def step(
        self, state: SGLDState, potential_and_gradient: PotentialAndGradient
    ) -> tuple[SGLDState, SGLDInfo]:
        """One step; see `bayesdiv.inference.sghmc.SGHMCDynamics.step`."""
        xp = array_namespace(state.position)
        rng, noise_rng, batch_rng = next_rng(state.rng, state.position, 2)
        potential, gradient = evaluated(potential_and_gradient, state.position, batch_rng)
        (second_moment,) = where_warm(
            state.step,
            self.num_burn_in,
            lambda scales: (self.memory * scales[0] + (1.0 - self.memory) * gradient**2,),
            (state.second_moment,),
        )
        rate = self.step_size**2 / (xp.sqrt(second_moment) + _OFFSET)
        noise = standard_normal(noise_rng, tuple(gradient.shape), gradient)
        position = state.position - rate * gradient + xp.sqrt(2.0 * rate) * noise
        info = SGLDInfo(potential, row_norm(gradient))
        return SGLDState(position, second_moment, state.step + 1, rng), info
