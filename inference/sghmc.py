r"""Stochastic-gradient Hamiltonian Monte Carlo whose scales adapt during burn-in.

One pure ``init``/``step`` pair for torch and JAX. The kernels for ``pyro.infer.MCMC`` and
``numpyro.infer.MCMC`` are in `sghmc_pyro` and `sghmc_numpyro`.
"""

from dataclasses import dataclass
from typing import Any, NamedTuple

from bayesdiv._array import Array, array_namespace, as_array_like, is_torch_array, stop_gradient
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

__all__ = ["SGHMCDynamics", "SGHMCInfo", "SGHMCState"]

# Floor of the injected noise's variance, and of the square root that it is divided by.
_LEAST_VARIANCE = 1e-16
_OFFSET = 1e-16


class SGHMCState(NamedTuple):
    """What the next step needs; arrays are ``(dim,)`` or ``(num_chains, dim)``.

    ``window`` is the length of the memory of ``mean_gradient`` and ``second_moment``, the running
    averages of the gradient and of its square. ``step`` counts steps taken; ``rng`` is a JAX key,
    or an integer for torch. ``coefficients`` follows from the rest and saves torch its computation:
    None is always right.
    """

    position: Array
    velocity: Array
    window: Array
    mean_gradient: Array
    second_moment: Array
    step: Any
    rng: Any
    coefficients: Any = None


class SGHMCInfo(NamedTuple):
    """What one step reports, one entry a chain.

    Parameters
    ----------
    potential
        Estimate of U at the position that the step left, from its minibatch.
    gradient_norm
        Euclidean norm of the estimated gradient there.
    kinetic_temperature
        (1 − α/2) mean(v² √V) / ε²; 1 in equilibrium, whatever the target.
    clamped_fraction
        Share of coordinates without injected noise, because the variance left for it was negative.
    """

    potential: Array
    gradient_norm: Array
    kinetic_temperature: Array
    clamped_fraction: Array


@dataclass(frozen=True)
class SGHMCDynamics:
    r"""Scale-adapted SGHMC for exp(−U), with U known through minibatches.

    While ``step`` is below ``num_burn_in``, with r = 1/(τ + 1) and G the gradient of U,

    .. math::
        τ ← τ + 1 - τ g^2 / V, \quad g ← g + r (G - g), \quad V ← V + r (G^2 - V),

    all three from the old values; afterwards V stays. Every step then moves

    .. math::
        v ← (1 - α) v - ε^2 V^{-1/2} G + \sqrt{2 α ε^2 V^{-1/2} - ε^4} \; ξ, \quad w ← w + v,

    where ξ is standard normal. The ε⁴ takes off the noise that the minibatch injects itself, right
    where V is that noise's variance; with exact gradients it makes variances too small by the
    factor 1 − ε² √V / (2α), and ``subtract_gradient_noise=False`` leaves it out.

    Attributes
    ----------
    step_size : float
        ε, in units of w over the square root of the standardised time.
    friction : float
        α, the share of velocity lost in a step, in (0, 1].
    num_burn_in : int
        Steps that adapt τ, g and V. With 0, V is 1 throughout: plain SGHMC with step ε².
    subtract_gradient_noise : bool
        Whether the minibatch's own noise is taken off the injected noise.

    Raises
    ------
    ValueError
        If a setting is outside its domain, or a position has no entries.

    References
    ----------
    Chen, Fox and Guestrin (2014), equation 15; Springenberg, Klein, Falkner and Hutter (2016),
    equations 7 to 9.

    Examples
    --------
    >>> import torch
    >>> dynamics = SGHMCDynamics(step_size=0.1, num_burn_in=100, subtract_gradient_noise=False)
    >>> state = dynamics.init(torch.zeros(200, 2), rng=0)
    >>> for _ in range(500):
    ...     state, info = dynamics.step(state, lambda w, rng: (0.5 * (w * w).sum(-1), w))
    >>> bool(0.8 < state.position.var() < 1.2)
    True
    """

    step_size: float
    friction: float = 0.05
    num_burn_in: int = 0
    subtract_gradient_noise: bool = True

    def __post_init__(self) -> None:
        check_positive("step_size", self.step_size)
        check_fraction("friction", self.friction)
        check_step_count("num_burn_in", self.num_burn_in)

    def init(self, position: Array, rng: Any) -> SGHMCState:
        """At rest at ``position``, ``(dim,)`` or ``(num_chains, dim)``; unit scales."""
        check_position(position)
        xp, position = array_namespace(position), stop_gradient(position)
        zeros, ones = xp.zeros_like(position), xp.ones_like(position)
        return SGHMCState(position, zeros, ones, ones, ones, step_counter(position), rng)

    def step(
        self, state: SGHMCState, potential_and_gradient: PotentialAndGradient
    ) -> tuple[SGHMCState, SGHMCInfo]:
        """One step.

        Parameters
        ----------
        state
            From `init` or the step before.
        potential_and_gradient
            Called with ``(position, rng)``; returns an estimate of U, ``()`` or ``(num_chains,)``,
            and of its gradient, in the shape of the position. ``rng`` (a JAX key, or an integer
            seed for torch) draws the minibatch.
        """
        rng, noise_rng, batch_rng = next_rng(state.rng, state.position, 2)
        potential, gradient = evaluated(potential_and_gradient, state.position, batch_rng)
        window, mean_gradient, second_moment = where_warm(
            state.step,
            self.num_burn_in,
            lambda scales: _adapted(scales, gradient),
            (state.window, state.mean_gradient, state.second_moment),
        )
        coefficients = self._coefficients(second_moment, state.coefficients)
        _, _, kept_share, pull, noise_scale, heat, clamped_fraction = coefficients

        # Torch fills the arrays made here anew in place; for JAX these are plain operators.
        velocity = kept_share * state.velocity
        velocity -= pull * gradient
        noise = standard_normal(noise_rng, gradient.shape, gradient)
        noise *= noise_scale
        velocity += noise
        root_temperature = row_norm(heat * velocity)
        info = SGHMCInfo(
            potential,
            row_norm(gradient),
            root_temperature * root_temperature,
            clamped_fraction,
        )
        position = state.position + velocity
        known = coefficients if is_torch_array(position) else None
        following = SGHMCState(
            position,
            velocity,
            window,
            mean_gradient,
            second_moment,
            state.step + 1,
            rng,
            known,
        )
        return following, info

    def _coefficients(self, second_moment: Array, known: tuple | None) -> tuple:
        """What follows from V and the settings; ``known`` where it is of these very ones.

        V and the settings themselves; 1 − α; ε² / √V; the injected noise's standard deviation; the
        weights of v whose squared norm is the kinetic temperature; the share of clamped entries.
        """
        settings = (self.step_size, self.friction, self.subtract_gradient_noise)
        if known is not None and known[0] is second_moment and known[1] == settings:
            return known
        xp = array_namespace(second_moment)
        root = xp.sqrt(second_moment) + _OFFSET
        squared_step = self.step_size**2
        variance = 2.0 * self.friction * squared_step / root
        if self.subtract_gradient_noise:
            variance = variance - squared_step**2
        dim = second_moment.shape[-1]
        return (
            second_moment,
            settings,
            # An array, because torch takes thrice the time for a number.
            as_array_like(1.0 - self.friction, second_moment),
            squared_step / root,
            xp.sqrt(xp.clip(variance, _LEAST_VARIANCE, None)),
            xp.sqrt((1.0 - self.friction / 2.0) / (squared_step * dim) * root),
            xp.mean(xp.astype(variance <= _LEAST_VARIANCE, second_moment.dtype), axis=-1),
        )


def _adapted(scales: tuple, gradient: Array) -> tuple[Array, Array, Array]:
    window, mean_gradient, second_moment = scales
    rate = 1.0 / (window + 1.0)
    return (
        window + 1.0 - window * mean_gradient**2 / (second_moment + _OFFSET),
        mean_gradient + rate * (gradient - mean_gradient),
        second_moment + rate * (gradient**2 - second_moment),
    )
