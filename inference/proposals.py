r"""Proposals of particle filters: how particles move, and which of them are worth moving.

At time t an auxiliary particle filter draws an ancestor i with probability proportional to W_i ψ_i
and moves it by r(x_t | x_{t−1}). The weight of what it gets is

.. math:: w = \frac{q(x_t ∣ x_{t-1}) \, g(y_t ∣ x_t)}{ψ \, r(x_t ∣ x_{t-1})},

with q the model's transition and g its emission. Three choices: r = q and ψ = 1 (bootstrap); any r
and ψ = 1 (guided); a lookahead ψ ≈ p(y_t | x_{t−1}) before either (auxiliary). `Proposal` says
what a fourth must supply.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol

import jax
import jax.numpy as jnp

__all__ = ["AuxiliaryProposal", "BootstrapProposal", "GuidedProposal", "Proposal"]


class Proposal(Protocol):
    """What a particle filter asks of a proposal; inherit to get the defaults.

    Shapes: ``states`` are ``(num_particles, *event)`` at time t − 1, ``observation`` is one row,
    ``time`` is t and may be traced. The filter calls, at each time t >= 1, `log_adjustments`,
    `adapt`, then (after resampling) `distribution` with the state that `adapt` returned; at
    time 0 `adapt_initial` and `initial_distribution`. At a missing observation it calls none of
    them: particles move by the transition.
    """

    @property
    def is_transition(self) -> bool:
        """Whether r is the model's own transition and initial law, exactly.

        The filter then leaves the ratio q / r out instead of computing that it is 1.
        """
        return False

    @property
    def adjusts_weights(self) -> bool:
        """Whether ψ may differ from 1; where not, the filter does not call `log_adjustments`."""
        return True

    def init(self, model: Any, num_particles: int) -> Any:
        """What the proposal carries from one time to the next: any pytree of arrays."""
        return ()

    def adapt_initial(
        self, key: jax.Array, proposal_state: Any, model: Any, observation: jax.Array
    ) -> tuple[Any, dict[str, jax.Array]]:
        """Learn for time 0; as `adapt`."""
        return proposal_state, {}

    def adapt(
        self,
        key: jax.Array,
        proposal_state: Any,
        model: Any,
        time: Any,
        states: jax.Array,
        log_weights: jax.Array,
        log_adjustments: jax.Array,
        observation: jax.Array,
    ) -> tuple[Any, dict[str, jax.Array]]:
        """Learn from the weighted cloud before it is resampled.

        Draws made here must not enter the cloud: the filter's own draws come after, from
        `distribution`, so that its evidence stays unbiased.

        Parameters
        ----------
        log_weights
            ``(num_particles,)``, normalised: log W.
        log_adjustments
            ``(num_particles,)``: log ψ, zeros where weights are not adjusted.

        Returns
        -------
        proposal_state, info
            The new state, of the same structure, and arrays to report of this step.
        """
        return proposal_state, {}

    def log_adjustments(
        self,
        proposal_state: Any,
        model: Any,
        time: Any,
        states: jax.Array,
        observation: jax.Array,
    ) -> jax.Array:
        """log ψ, ``(num_particles,)``."""
        return jnp.zeros(states.shape[:1], jnp.result_type(float))

    def initial_distribution(self, proposal_state: Any, model: Any, observation: jax.Array) -> Any:
        """r(x_0): a NumPyro distribution with batch shape ``()``."""
        return model.initial()

    def distribution(
        self,
        proposal_state: Any,
        model: Any,
        time: Any,
        states: jax.Array,
        observation: jax.Array,
    ) -> Any:
        """r(x_t | x_{t−1}): a NumPyro distribution with batch shape ``(num_particles,)``."""
        raise NotImplementedError(f"{type(self).__name__} must define distribution.")


@dataclass(frozen=True)
class BootstrapProposal(Proposal):
    """r is the transition and ψ is 1, so that weights are likelihoods.

    References
    ----------
    Gordon, Salmond and Smith (1993).
    """

    is_transition = True
    adjusts_weights = False

    def distribution(
        self,
        proposal_state: Any,
        model: Any,
        time: Any,
        states: jax.Array,
        observation: jax.Array,
    ) -> Any:
        return model.transition(states, time)


@dataclass(frozen=True)
class GuidedProposal(Proposal):
    """r is a function of yours, ψ is 1.

    A proposal with lighter tails than q · g makes the weights' variance infinite and the evidence
    erratic, however large the ESS looks: err on the wide side, or mix some of the transition in.

    Attributes
    ----------
    function
        ``function(states, time, observation)`` returns r(x_t | x_{t−1}), a NumPyro distribution
        with batch shape ``(num_particles,)``.
    initial
        ``initial(observation)`` returns r(x_0), batch shape ``()``; None is the model's own.

    Raises
    ------
    TypeError
        If ``function`` or ``initial`` cannot be called.

    References
    ----------
    Doucet, Godsill and Andrieu (2000), section II.
    """

    function: Callable[[jax.Array, Any, jax.Array], Any]
    initial: Callable[[jax.Array], Any] | None = None

    adjusts_weights = False

    def __post_init__(self) -> None:
        if not callable(self.function):
            raise TypeError(
                "function must be callable as function(states, time, observation), got "
                f"{type(self.function).__name__}."
            )
        if self.initial is not None and not callable(self.initial):
            raise TypeError(
                "initial must be callable as initial(observation), or None, got "
                f"{type(self.initial).__name__}."
            )

    def initial_distribution(self, proposal_state: Any, model: Any, observation: jax.Array) -> Any:
        return model.initial() if self.initial is None else self.initial(observation)

    def distribution(
        self,
        proposal_state: Any,
        model: Any,
        time: Any,
        states: jax.Array,
        observation: jax.Array,
    ) -> Any:
        return self.function(states, time, observation)


@dataclass(frozen=True)
class AuxiliaryProposal(Proposal):
    r"""A lookahead before any proposal: ancestors are chosen by W ψ, ψ ≈ p(y_t | x_{t−1}).

    Since p(y_t | x_{t−1}) is at most sup_x g(y_t | x), every ψ is cut at the model's
    ``log_emission_supremum`` where it has one. Without the cut an approximation that explodes for
    a few extreme particles gives them the whole first stage, and *more* particles make the answer
    worse, as there is then always such a particle.

    Attributes
    ----------
    proposal
        What moves the particles; adjustments of its own are replaced.
    log_lookahead
        ``log_lookahead(states, time, observation)`` returns log ψ, ``(num_particles,)``. None
        takes the model's ``log_predictive``, exact, or else its ``log_lookahead``.

    Raises
    ------
    TypeError
        If ``log_lookahead`` cannot be called.
    ValueError
        If neither this nor the model has a lookahead, or it returns another shape.

    References
    ----------
    Pitt and Shephard (1999), Filtering via simulation: auxiliary particle filters.
    """

    proposal: Any = field(default_factory=BootstrapProposal)
    log_lookahead: Callable[[jax.Array, Any, jax.Array], jax.Array] | None = None

    adjusts_weights = True

    def __post_init__(self) -> None:
        if self.log_lookahead is not None and not callable(self.log_lookahead):
            raise TypeError(
                "log_lookahead must be callable as log_lookahead(states, time, observation), or "
                f"None, got {type(self.log_lookahead).__name__}."
            )
        for name in ("init", "distribution"):
            if not callable(getattr(self.proposal, name, None)):
                raise TypeError(
                    f"proposal must be a proposal with a method {name}, got "
                    f"{type(self.proposal).__name__}; see Proposal."
                )

    @property
    def is_transition(self) -> bool:
        return getattr(self.proposal, "is_transition", False)

    def init(self, model: Any, num_particles: int) -> Any:
        return self.proposal.init(model, num_particles)

    def adapt_initial(
        self, key: jax.Array, proposal_state: Any, model: Any, observation: jax.Array
    ) -> tuple[Any, dict[str, jax.Array]]:
        return self.proposal.adapt_initial(key, proposal_state, model, observation)

    def adapt(
        self,
        key: jax.Array,
        proposal_state: Any,
        model: Any,
        time: Any,
        states: jax.Array,
        log_weights: jax.Array,
        log_adjustments: jax.Array,
        observation: jax.Array,
    ) -> tuple[Any, dict[str, jax.Array]]:
        return self.proposal.adapt(
            key, proposal_state, model, time, states, log_weights, log_adjustments, observation
        )

    def log_adjustments(
        self,
        proposal_state: Any,
        model: Any,
        time: Any,
        states: jax.Array,
        observation: jax.Array,
    ) -> jax.Array:
        lookahead = self.log_lookahead
        for name in ("log_predictive", "log_lookahead"):
            lookahead = getattr(model, name, None) if lookahead is None else lookahead
        if lookahead is None:
            raise ValueError(
                "AuxiliaryProposal needs log_lookahead, or a model with log_predictive or "
                "log_lookahead; got none of them."
            )
        found = lookahead(states, time, observation)
        if jnp.shape(found) != states.shape[:1]:
            raise ValueError(
                f"log_lookahead must return shape {states.shape[:1]}, one a particle, got "
                f"{jnp.shape(found)}."
            )
        supremum = getattr(model, "log_emission_supremum", None)
        return found if supremum is None else jnp.minimum(found, supremum(time, observation))

    def initial_distribution(self, proposal_state: Any, model: Any, observation: jax.Array) -> Any:
        return self.proposal.initial_distribution(proposal_state, model, observation)

    def distribution(
        self,
        proposal_state: Any,
        model: Any,
        time: Any,
        states: jax.Array,
        observation: jax.Array,
    ) -> Any:
        return self.proposal.distribution(proposal_state, model, time, states, observation)
