r"""A particle filter's proposal that learns at every time step while the filter runs.

At time t the ideal move of a particle is to p(x_t | x_{t−1}, y_t). It is approximated for all
particles at once by one mixture of experts on features φ of x_{t−1},

.. math:: r_θ(x_t ∣ x_{t-1}) = (1 - ε) Σ_k π_k(φ) ρ_k(x_t ∣ φ) + ε \, q(x_t ∣ x_{t-1}),

which minimises an f-divergence from the auxiliary target μ(i, x) ∝ W_i q(x | ξ_i) g(y_t | x) to
the draws of the filter, π(i, x) ∝ W_i ψ_i r_θ(x | ξ_i). Pairs (i, x) of π with weights
q g / (ψ r_θ) make that a weighted maximum-likelihood problem, solved by online EM on a few small
batches; their number need not grow with the number of particles.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from bayesdiv._mixture_of_experts import MixtureOfExpertsParameters
from bayesdiv.inference import _adaptive_checks as checks
from bayesdiv.inference import _adaptive_fit as fitting
from bayesdiv.inference import _adaptive_problems as problems
from bayesdiv.inference._defensive_mixture import DefensiveMixture
from bayesdiv.inference._online_em import value_at_zero
from bayesdiv.inference.proposal_criteria import effective_sample_size, entropy_kl, f_divergence
from bayesdiv.inference.proposals import AuxiliaryProposal, Proposal
from bayesdiv.inference.resampling import systematic
from bayesdiv.numpyro.distributions import MixtureOfExperts

__all__ = ["AdaptiveProposal", "AdaptiveProposalState"]

_RULES = ("always", "never", "kl", "ess", "every")
_LOOKAHEADS = {"exact": "log_predictive", "lookahead": "log_lookahead"}


class AdaptiveProposalState(NamedTuple):
    """What the proposal has learnt.

    Parameters
    ----------
    parameters
        Of the kernel for times from 1 on; coefficients take raw features to raw states.
    initial_parameters
        Of the law of x_0, whose only feature is 1.
    fraction
        ε of the next move, 1 where the transition serves as it is.
    """

    parameters: MixtureOfExpertsParameters
    initial_parameters: MixtureOfExpertsParameters
    fraction: jax.Array


@dataclass(frozen=True)
class AdaptiveProposal(Proposal):
    r"""The proposal of the adaptive auxiliary particle filter: a mixture of experts for each step.

    At each time `num_iterations` batches of `num_adaptation_particles` draws are made from the
    kernel so far, the first from experts at the transition; each blends its sufficient statistics
    into those before it with step (l + 1)^−`step_exponent`, and experts and gate follow. These
    draws are used for nothing else, so that the evidence stays unbiased. A step costs O(N) once
    more than that of a filter that does not adapt, plus an amount that does not depend on N.

    A fit lowers the divergence of its own draws; that alone does not make a good filter. Experts
    with too little to learn from become narrow, and what falls outside them has enormous weights:
    high mean ESS, and now and then a wrong evidence. `defensive_fraction` bounds the weights, and
    `kappa` keeps experts near the transition. Rule of thumb: adaptation particles times the ESS
    share of the first batch should be 20 times the number of experts and features, or more.

    Attributes
    ----------
    num_experts : int
        K.
    divergence
        Name or object of an f-divergence D(target‖proposal) with f(0) finite. ``"forward_kl"`` is
        the paper's; ``"pearson_chi2"`` or ``Alpha`` of order 2 aims at the ESS itself.
    experts : str
        ``"normal"`` or ``"student_t"``.
    degrees_of_freedom : float
        ν of Student's experts, above 2.
    features
        What a particle is seen by, beside the constant 1: ``"transition_mean"``, its ``"state"``,
        or ``function(states, time, observation)``, which returns ``(n, num_features)``. With the
        transition's mean the experts can be the transition itself.
    num_adaptation_particles : int
        N₀, draws of a batch.
    num_iterations : int
        L, batches of a time step.
    step_exponent : float
        In (½, 1].
    kappa : float
        κ ≥ 0, weight of a pseudo-observation from the transition, where all particles together
        weigh 1; experts and gate are pulled to where they started.
    defensive_fraction : float
        ε in [0, 1), the share of the transition in the proposal.
    start : str
        ``"fresh"`` starts every step at the transition, ``"warm"`` where the last step ended.
    offset : float
        How far apart experts start, in standard deviations of the transition.
    gate_strength : float
        Where above 0, gates start with a preferred direction of the features for each expert, this
        steep a standard deviation; 0 starts them equal.
    lookahead : str
        First-stage weights ψ: ``"none"``, ``"exact"`` (the model's ``log_predictive``) or
        ``"lookahead"`` (its ``log_lookahead``); cut at its ``log_emission_supremum``.
    tempering_ess : float
        A batch with fewer effective particles than this has its weights raised to a power that
        leaves about so many; 0 never.
    adapt_when : str
        ``"always"``; ``"never"`` (the transition moves particles); ``"kl"`` or ``"ess"``, at times
        when N₀ draws of the transition have a divergence above `kl_threshold`, or an effective
        share below `ess_threshold`, the transition serving at others; ``"every"``, at times that
        `interval` divides, the last kernel serving in between.

    Raises
    ------
    TypeError, ValueError
        If a setting is of the wrong type or out of range; when first used, if the states are not
        vectors of unbounded reals, or the batches are smaller than experts times features.

    References
    ----------
    Cornebise, Moulines and Olsson (2014), "Adaptive sequential Monte Carlo by means of mixture of
    experts", for the kernel, its forward KL and the online EM. The defensive share, κ and the
    other divergences are additions.

    Examples
    --------
    >>> from types import SimpleNamespace
    >>> import numpyro.distributions as dist
    >>> from bayesdiv.inference.smc import ParticleFilter
    >>> sharp = SimpleNamespace(
    ...     initial=lambda: dist.Normal(0.0, 1.0),
    ...     transition=lambda states, time: dist.Normal(0.9 * states, 1.0),
    ...     emission=lambda states, time: dist.Normal(states, 0.1),
    ... )
    >>> observations = jnp.array([0.3, 1.5, 2.9, 1.1])
    >>> key = jax.random.key(0)
    >>> plain = ParticleFilter(sharp).run(key, observations)
    >>> adaptive = ParticleFilter(sharp, AdaptiveProposal(num_experts=1)).run(key, observations)
    >>> bool(plain.ess.mean() < 300), bool(adaptive.ess.mean() > 700)
    (True, True)
    """

    num_experts: int = 2
    divergence: Any = "forward_kl"
    experts: str = field(default="normal", kw_only=True)
    degrees_of_freedom: float = field(default=5.0, kw_only=True)
    features: str | Callable[[jax.Array, Any, jax.Array], jax.Array] = field(
        default="transition_mean", kw_only=True
    )
    num_adaptation_particles: int = field(default=500, kw_only=True)
    num_iterations: int = field(default=8, kw_only=True)
    step_exponent: float = field(default=0.6, kw_only=True)
    kappa: float = field(default=1e-3, kw_only=True)
    defensive_fraction: float = field(default=0.05, kw_only=True)
    start: str = field(default="fresh", kw_only=True)
    offset: float = field(default=1.0, kw_only=True)
    gate_strength: float = field(default=0.0, kw_only=True)
    lookahead: str = field(default="none", kw_only=True)
    tempering_ess: float = field(default=10.0, kw_only=True)
    adapt_when: str = field(default="always", kw_only=True)
    kl_threshold: float = field(default=0.2, kw_only=True)
    ess_threshold: float = field(default=0.5, kw_only=True)
    interval: int = field(default=1, kw_only=True)

    def __post_init__(self) -> None:
        for name in ("num_experts", "num_adaptation_particles", "num_iterations", "interval"):
            checks.check_count(name, getattr(self, name))
        for name, (low, high) in checks.RANGES.items():
            checks.check_range(name, getattr(self, name), low, high)
        for name, known in (
            ("experts", ("normal", "student_t")),
            ("start", ("fresh", "warm")),
            ("lookahead", ("none", *_LOOKAHEADS)),
            ("adapt_when", _RULES),
        ):
            if getattr(self, name) not in known:
                raise ValueError(f"{name} must be one of {known}, got {getattr(self, name)!r}.")
        if self.features not in ("transition_mean", "state") and not callable(self.features):
            raise ValueError(
                "features must be 'transition_mean', 'state' or a function of (states, time, "
                f"observation), got {self.features!r}."
            )
        if self.num_experts > 1 and self.offset == 0 and self.gate_strength == 0:
            raise ValueError(
                "offset and gate_strength are both 0, so that all experts start alike and stay "
                "so; set offset to 1.0, or num_experts to 1."
            )
        value_at_zero(f_divergence(self.divergence))

    @property
    def is_transition(self) -> bool:
        return self.adapt_when == "never"

    @property
    def adjusts_weights(self) -> bool:
        return self.lookahead != "none"

    def init(self, model: Any, num_particles: int) -> AdaptiveProposalState:
        """Kernels that are not fitted yet, and ε = 1."""
        law = model.initial()
        checks.check_law(law, "initial")
        states = jax.ShapeDtypeStruct((num_particles, *law.event_shape), jnp.result_type(float))
        dim = math.prod(law.event_shape)
        num_features = 1 + problems.count_features(self.features, model, states)
        most = self.num_experts * num_features
        if self.num_adaptation_particles < most:
            raise ValueError(
                f"num_adaptation_particles must be at least num_experts x features = {most}, and "
                f"many times that for a good fit, got {self.num_adaptation_particles}."
            )
        return AdaptiveProposalState(
            fitting.start(self._fit_settings, dim, num_features),
            fitting.start(self._fit_settings, dim, 1),
            jnp.ones((), jnp.result_type(float)),
        )

    def adapt_initial(
        self, key: jax.Array, proposal_state: Any, model: Any, observation: jax.Array
    ) -> tuple[Any, dict[str, jax.Array]]:
        law = model.initial()
        dtype = proposal_state.fraction.dtype
        problem = problems.of_initial_law(law, model, observation, dtype)
        parents = jnp.zeros((self.num_iterations, self.num_adaptation_particles), jnp.int32)
        found, fraction, info = self._adapt(
            key,
            problem,
            proposal_state.initial_parameters,
            jnp.ones_like(proposal_state.fraction),
            parents,
            0,
        )
        return proposal_state._replace(initial_parameters=found, fraction=fraction), info

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
        if self.adapt_when == "never":
            return proposal_state, {}
        checks.check_law(jax.eval_shape(lambda: model.transition(states, time)), "transition")
        problem = problems.of_transition(
            model, time, states, log_adjustments, self.features, observation
        )
        ancestor_key, offset_key, key = jax.random.split(key, 3)
        first_stage = log_weights + log_adjustments
        ancestors = systematic(ancestor_key, jnp.exp(first_stage - first_stage.max()))
        parents = ancestors[self._rows_of_batches(offset_key, len(states))]
        # What was fitted before is the law of x_0 at time 1, and no kernel.
        fitted = jnp.where(jnp.asarray(time) > 1, proposal_state.fraction, 1.0)
        found, fraction, info = self._adapt(
            key, problem, proposal_state.parameters, fitted, parents, time
        )
        return proposal_state._replace(parameters=found, fraction=fraction), info

    def log_adjustments(
        self,
        proposal_state: Any,
        model: Any,
        time: Any,
        states: jax.Array,
        observation: jax.Array,
    ) -> jax.Array:
        if self.lookahead == "none":
            return super().log_adjustments(proposal_state, model, time, states, observation)
        name = _LOOKAHEADS[self.lookahead]
        function = getattr(model, name, None)
        if function is None:
            raise ValueError(f"lookahead={self.lookahead!r} needs a model with {name}.")
        auxiliary = AuxiliaryProposal(self, function)
        return auxiliary.log_adjustments(proposal_state, model, time, states, observation)

    def initial_distribution(self, proposal_state: Any, model: Any, observation: jax.Array) -> Any:
        if self.adapt_when == "never":
            return model.initial()
        _, parameters, fraction = proposal_state
        return self._law(jnp.ones((1,), fraction.dtype), parameters, model.initial(), fraction)

    def distribution(
        self,
        proposal_state: Any,
        model: Any,
        time: Any,
        states: jax.Array,
        observation: jax.Array,
    ) -> Any:
        if self.adapt_when == "never":
            return model.transition(states, time)
        parameters, _, fraction = proposal_state
        features = problems.features_of(self.features, model, time, states, observation)
        return self._law(features, parameters, model.transition(states, time), fraction)

    def _law(
        self,
        features: jax.Array,
        parameters: MixtureOfExpertsParameters,
        transition: Any,
        fraction: jax.Array,
    ) -> Any:
        if not transition.event_shape:
            parameters = MixtureOfExpertsParameters(
                parameters.gate, parameters.coefficients[:, 0], parameters.scale[:, 0, 0]
            )
        learnt = MixtureOfExperts(
            features,
            parameters,
            experts=self.experts,
            degrees_of_freedom=self._freedom,
            validate_args=False,
        )
        if self.defensive_fraction == 0 and self.adapt_when == "always":
            return learnt
        return DefensiveMixture(learnt, transition, fraction)

    def _adapt(
        self,
        key: jax.Array,
        problem: fitting.Problem,
        previous: MixtureOfExpertsParameters,
        fraction: jax.Array,
        parents: jax.Array,
        time: Any,
    ) -> tuple[MixtureOfExpertsParameters, jax.Array, dict[str, jax.Array]]:
        """Parameters, ε of the coming move, and what to report."""
        settings = self._fit_settings
        pilot_key, key = jax.random.split(key)

        def learn() -> tuple:
            coordinates = fitting.Coordinates.of(problem, parents[0])
            dim, num_features = coordinates.base.shape
            begin = fitting.start(settings, dim, num_features)
            if self.start == "warm":
                begin = jax.tree.map(
                    lambda new, old: jnp.where(fraction < 1.0, old, new),
                    begin,
                    coordinates.inner(previous),
                )
            noise = fitting.make_noise(settings, problem, key, parents, dim)
            found, info = fitting.fit(settings, problem, coordinates, begin, noise)
            share = jnp.full_like(fraction, self.defensive_fraction)
            return coordinates.outer(found), share, info | {"adapted": jnp.ones((), bool)}

        def skip() -> tuple:
            shapes = jax.eval_shape(learn)[2]
            info = {name: problems.nothing(shape) for name, shape in shapes.items()}
            kept = fraction if self.adapt_when == "every" else jnp.ones_like(fraction)
            return previous, kept, info

        if self.adapt_when == "always":
            return learn()
        if self.adapt_when == "every":
            needed = jnp.asarray(time) % self.interval == 0
        else:
            values = problem.sample(pilot_key, parents[0])
            pilot = problem.log_emission(values) - problem.log_adjustments(parents[0])
            if self.adapt_when == "kl":
                needed = entropy_kl(pilot) > self.kl_threshold
            else:
                least = self.ess_threshold * self.num_adaptation_particles
                needed = effective_sample_size(pilot) < least
        return jax.lax.cond(needed, learn, skip)

    def _rows_of_batches(self, key: jax.Array, count: int) -> jax.Array:
        """``(num_iterations, num_adaptation_particles)``: places in a sorted cloud, evenly."""
        size = self.num_adaptation_particles
        offsets = jax.random.bits(key, (self.num_iterations, 1), jnp.uint32) % count
        places = (jnp.arange(size) * max(count // size, 1))[None, :] + offsets.astype(jnp.int32)
        return jnp.sort(places % count, axis=1)

    @property
    def _freedom(self) -> float | None:
        return self.degrees_of_freedom if self.experts == "student_t" else None

    @property
    def _fit_settings(self) -> fitting.FitSettings:
        return fitting.FitSettings(
            divergence=f_divergence(self.divergence),
            num_experts=self.num_experts,
            num_iterations=self.num_iterations,
            step_exponent=self.step_exponent,
            kappa=self.kappa,
            defensive_fraction=self.defensive_fraction,
            degrees_of_freedom=self._freedom,
            offset=self.offset,
            gate_strength=self.gate_strength,
            tempering_ess=self.tempering_ess,
        )
