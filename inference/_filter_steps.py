"""The steps of a particle filter as pure functions of its settings.

``settings`` is a `bayesdiv.inference.smc.ParticleFilter`; the formulas are in that module.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from bayesdiv.inference import _filter_checks as checks
from bayesdiv.inference.resampling import get_resampling

__all__ = ["FilterInfo", "FilterState"]


class FilterState(NamedTuple):
    """What the next step needs.

    Parameters
    ----------
    key
        The key that ``init`` was given; step t uses its t-th fold.
    time
        Time of ``states``.
    states
        ``(num_particles, *event)``.
    log_weights
        ``(num_particles,)``, normalised.
    ess
        Effective sample size of the weights, in particles.
    log_evidence
        Estimate of log p(y_{0:time}).
    proposal
        What the proposal carries.
    """

    key: jax.Array
    time: jax.Array
    states: jax.Array
    log_weights: jax.Array
    ess: jax.Array
    log_evidence: jax.Array
    proposal: Any


class FilterInfo(NamedTuple):
    """What one step reports; see the fields of the same names in `FilterResult`."""

    log_evidence_increment: jax.Array
    ess: jax.Array
    kl: jax.Array
    max_weight: jax.Array
    resampled: jax.Array
    mean: jax.Array
    variance: jax.Array
    ancestors: jax.Array
    adaptation: dict[str, jax.Array]


def start(
    settings: Any, key: jax.Array, observation: jax.Array, missing: Any, keys: jax.Array
) -> tuple[FilterState, FilterInfo]:
    """The weighted cloud at time 0; ``missing`` is ``()``, or None where nothing ever is.

    ``keys`` are those of `step_keys` for time 0; ``key`` is what later ones are made from.
    """
    model, count = settings.model, settings.num_particles
    prior = checks.check_distribution(model.initial(), "model.initial", (), None)
    event_shape = tuple(prior.event_shape)
    move_key, adapt_key, _ = keys
    carried = settings.proposal.init(model, count)

    def adapt(carried: Any) -> tuple[Any, dict[str, jax.Array]]:
        return settings.proposal.adapt_initial(adapt_key, carried, model, observation)

    carried, adaptation = _unless(missing, adapt, carried)
    carried = jax.lax.stop_gradient(carried)

    dtype = jnp.result_type(float)

    def propose() -> tuple[jax.Array, jax.Array]:
        proposed = checks.check_distribution(
            settings.proposal.initial_distribution(carried, model, observation),
            "proposal.initial_distribution",
            (),
            event_shape,
        )
        states = _sample(settings, proposed, "proposal.initial_distribution", move_key, (count,))
        density = checks.log_density(prior, states, "model.initial", count)
        ratio = density - proposed.log_prob(states)
        return states, ratio.astype(dtype)

    def draw() -> tuple[jax.Array, jax.Array]:
        states = _sample(settings, prior, "model.initial", move_key, (count,))
        return states, jnp.zeros((count,), dtype)

    plain = getattr(settings.proposal, "is_transition", False)
    states, log_ratio = draw() if plain else _choose(missing, draw, propose)
    base = jnp.full((count,), -math.log(count), dtype)
    time = jnp.zeros((), jnp.int32)
    return _weigh(
        settings,
        FilterState(key, time, states, base, base[0], jnp.zeros_like(base[0]), carried),
        base if plain else base + log_ratio,
        observation,
        missing,
        resampled=jnp.zeros((), bool),
        ancestors=jnp.arange(count, dtype=jnp.int32),
        adaptation=adaptation,
    )


def advance(
    settings: Any, state: FilterState, observation: jax.Array, missing: Any, keys: jax.Array
) -> tuple[FilterState, FilterInfo]:
    """One time further; ``keys`` are those of `step_keys`."""
    model, proposal, count = settings.model, settings.proposal, settings.num_particles
    move_key, adapt_key, resample_key = keys
    time, weights_dtype = state.time + 1, state.log_weights.dtype
    adjusts = getattr(proposal, "adjusts_weights", True)

    adjustments = jnp.zeros((count,), weights_dtype)
    if adjusts:

        def look_ahead(zeros: jax.Array) -> jax.Array:
            found = proposal.log_adjustments(state.proposal, model, time, state.states, observation)
            return found.astype(zeros.dtype)

        adjustments = _choose(missing, lambda zeros: zeros, look_ahead, adjustments)

    def adapt(carried: Any) -> tuple[Any, dict[str, jax.Array]]:
        return proposal.adapt(
            adapt_key,
            carried,
            model,
            time,
            state.states,
            state.log_weights,
            adjustments,
            observation,
        )

    carried, adaptation = _unless(missing, adapt, state.proposal)
    carried = jax.lax.stop_gradient(carried)

    states, base, resampled, ancestors = _resample(
        settings, resample_key, state, adjustments if adjusts else None
    )

    def propose(states: jax.Array) -> tuple[jax.Array, jax.Array]:
        proposed = checks.check_distribution(
            proposal.distribution(carried, model, time, states, observation),
            "proposal.distribution",
            (count,),
            states.shape[1:],
        )
        moved = _sample(settings, proposed, "proposal.distribution", move_key)
        moved = checks.cast_states(moved, states, "proposal.distribution")
        transition = _transition(model, states, time)
        density = checks.log_density(transition, moved, "model.transition", count)
        ratio = density - proposed.log_prob(moved)
        return moved, ratio.astype(weights_dtype)

    def draw(states: jax.Array) -> tuple[jax.Array, jax.Array]:
        transition = _transition(model, states, time)
        moved = _sample(settings, transition, "model.transition", move_key)
        moved = checks.cast_states(moved, states, "model.transition")
        return moved, jnp.zeros((count,), weights_dtype)

    if getattr(proposal, "is_transition", False):
        states, _ = draw(states)
    else:
        states, log_ratio = _choose(missing, draw, propose, states)
        base = base + log_ratio
    return _weigh(
        settings,
        state._replace(time=time, states=states, proposal=carried),
        base,
        observation,
        missing,
        resampled=resampled,
        ancestors=ancestors,
        adaptation=adaptation,
    )


def _resample(
    settings: Any, key: jax.Array, state: FilterState, adjustments: jax.Array | None
) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
    """States, the logarithm of the module's W̄, whether they were resampled, and ancestors."""
    count = settings.num_particles
    scheme = get_resampling(settings.resampling)
    if adjustments is not None:
        # A particle of weight zero may have any adjustment, an infinite one too.
        log_first = jnp.where(
            state.log_weights == -jnp.inf, -jnp.inf, state.log_weights + adjustments
        )
        # A lookahead that gives up every particle says nothing about which to keep.
        is_lost = jnp.max(log_first) == -jnp.inf
        adjustments = jnp.where(is_lost, 0.0, adjustments)
        log_first = jnp.where(is_lost, state.log_weights, log_first)
        largest = jax.lax.stop_gradient(jnp.max(log_first))
        first = jnp.exp(log_first - largest)
        total = jnp.sum(first)

    def resample(states: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        weights = jnp.exp(state.log_weights) if adjustments is None else first
        ancestors = scheme(key, weights)
        base = jnp.full((count,), -math.log(count), weights.dtype)
        if adjustments is not None:
            base = base + largest + jnp.log(total) - adjustments[ancestors]
        if settings.differentiable == "score":
            share = state.log_weights if adjustments is None else log_first - jnp.log(total)
            chosen = share[ancestors]
            # Zero, with the gradient of the log-probability that these ancestors had.
            base = base + chosen - jax.lax.stop_gradient(chosen)
        return states[ancestors], base, ancestors

    def keep(states: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        return states, state.log_weights, jnp.arange(count, dtype=jnp.int32)

    if settings.ess_threshold in (0, 1):
        always = settings.ess_threshold == 1
        found = (resample if always else keep)(state.states)
        resampled = jnp.full((), always)
    else:
        ess = total * total / jnp.sum(first * first) if adjustments is not None else state.ess
        # Said this way round, weights that are not numbers are resampled, and thereby found.
        resampled = ~(ess >= settings.ess_threshold * count)
        found = jax.lax.cond(resampled, resample, keep, state.states)
    states, base, ancestors = found
    return states, base, resampled, ancestors


def _weigh(
    settings: Any,
    state: FilterState,
    base: jax.Array,
    observation: jax.Array,
    missing: Any,
    **report: Any,
) -> tuple[FilterState, FilterInfo]:
    """``state`` with ``base`` times the emission's density for weights, and its report."""
    count = settings.num_particles
    emission = checks.check_distribution(
        settings.model.emission(state.states, state.time),
        "model.emission",
        (count,),
        observation.shape,
    )
    likelihood = checks.log_density(emission, observation, "model.emission", count)
    if missing is not None:
        likelihood = jnp.where(missing, 0.0, likelihood)
    log_weights = base + likelihood.astype(base.dtype)
    largest = jax.lax.stop_gradient(jnp.max(log_weights))
    # A dead cloud goes on with equal weights, so that what follows stays a number.
    is_dead = largest == -jnp.inf
    centred = log_weights - jnp.where(is_dead, 0.0, largest)
    weights = jnp.where(is_dead, 1.0, jnp.exp(centred))
    total = jnp.sum(weights)
    increment = largest + jnp.log(total)
    normalized = jnp.where(is_dead, -math.log(count), centred - jnp.log(total))
    if missing is not None:
        # Exactly, while the sum of normalised weights is 1 only up to rounding.
        increment = jnp.where(missing & jnp.isfinite(increment), 0.0, increment)
    # Below the floor the weight is zero, in float64 too, and the product is not NaN.
    log_ratio = jnp.sum(weights * jnp.maximum(centred, -800.0)) / total - jnp.log(total)
    ess = total * total / jnp.sum(weights * weights)
    spread = weights.reshape((count,) + (1,) * (state.states.ndim - 1))
    mean = jnp.sum(spread * state.states, axis=0) / total
    variance = jnp.sum(spread * (state.states - mean) ** 2, axis=0) / total
    state = state._replace(
        log_weights=normalized, ess=ess, log_evidence=state.log_evidence + increment
    )
    info = FilterInfo(
        log_evidence_increment=increment,
        ess=ess,
        kl=math.log(count) + jnp.where(is_dead, -math.log(count), log_ratio),
        # The largest is 1 before it is normalised.
        max_weight=1.0 / total,
        mean=mean,
        variance=variance,
        **report,
    )
    return state, info


def _sample(
    settings: Any, distribution: Any, name: str, key: jax.Array, shape: tuple[int, ...] = ()
) -> jax.Array:
    if settings.differentiable and not distribution.has_rsample:
        raise ValueError(
            f"differentiable=True needs reparameterised draws, and {name} returned a "
            f"{type(distribution).__name__}, which has none."
        )
    return distribution.sample(key, shape)


@jax.custom_jvp
def without_gradient(value: jax.Array) -> jax.Array:
    """``value``, whose differentiation is an error rather than a number without a meaning."""
    return value


@without_gradient.defjvp
def _refuse(primals: tuple, tangents: tuple) -> Any:
    raise TypeError(
        "the results of a particle filter are not differentiable as they are: resampling is a "
        "step function of the parameters. Use an inference method without gradients, such as "
        "particle-marginal MCMC, or pass differentiable=True for a biased gradient, which holds "
        "the ancestors fixed, or 'score' for a noisier one without that bias."
    )


def guarded(settings: Any, results: Any) -> Any:
    """``results``, not to be differentiated unless that was asked for."""
    if settings.differentiable:
        return results

    def guard(leaf: jax.Array) -> jax.Array:
        return without_gradient(leaf) if jnp.issubdtype(leaf.dtype, jnp.floating) else leaf

    return jax.tree.map(guard, results)


def _transition(model: Any, states: jax.Array, time: Any) -> Any:
    return checks.check_distribution(
        model.transition(states, time),
        "model.transition",
        states.shape[:1],
        states.shape[1:],
    )


def step_keys(key: jax.Array, time: Any) -> jax.Array:
    """Keys of one time: to move, to adapt, to resample."""
    return jax.random.split(jax.random.fold_in(key, time), 3)


def _choose(missing: Any, if_missing: Callable, otherwise: Callable, *operands: Any) -> Any:
    """A branch; ``missing=None`` says that nothing is."""
    if missing is None:
        return otherwise(*operands)
    return jax.lax.cond(missing, if_missing, otherwise, *operands)


def _unless(missing: Any, adapt: Callable, carried: Any) -> tuple[Any, dict[str, jax.Array]]:
    """``adapt(carried)``; where missing, ``carried`` and a report of NaN or zero."""
    if missing is None:
        return adapt(carried)
    shapes = jax.eval_shape(adapt, carried)[1]

    def keep(carried: Any) -> tuple[Any, dict[str, jax.Array]]:
        return carried, jax.tree.map(not_reported, shapes)

    return jax.lax.cond(missing, keep, adapt, carried)


def not_reported(like: Any) -> jax.Array:
    """NaN, or zero for integers and flags, in the shape of ``like``."""
    value = jnp.nan if jnp.issubdtype(like.dtype, jnp.floating) else 0
    return jnp.full(like.shape, value, like.dtype)
