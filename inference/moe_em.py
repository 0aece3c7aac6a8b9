r"""EM for mixtures of experts with softmax gates: normal and Bernoulli experts, in JAX.

`fit_experts` does all of it; `em_init` and `em_step` are the pure functions underneath, which work
on standardised rows. Everything jits, and vmaps over data sets of one shape: pad shards with rows
of weight 0.
"""

from __future__ import annotations

import math
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from bayesdiv._mixture_of_experts import MixtureOfExpertsParameters
from bayesdiv.inference._moe_em_checks import check_data, check_start
from bayesdiv.inference._moe_em_data import EMData, prepare, to_data_units, to_standard_units
from bayesdiv.inference._moe_em_fit import MixtureOfExpertsFit
from bayesdiv.inference._moe_em_settings import EMSettings
from bayesdiv.inference._moe_em_statistics import EMStatistics, collect
from bayesdiv.inference._moe_em_updates import (
    coefficient_penalty,
    gate_penalty,
    update_experts,
    update_gate,
)

__all__ = [
    "EMData",
    "EMInfo",
    "EMSettings",
    "EMState",
    "MixtureOfExpertsFit",
    "em_data",
    "em_init",
    "em_start",
    "em_step",
    "fit_experts",
]


class EMState(NamedTuple):
    """Standardised parameters, and what a pass over the rows found at them."""

    parameters: MixtureOfExpertsParameters
    statistics: EMStatistics
    objective: jax.Array


class EMInfo(NamedTuple):
    """One step's report.

    Parameters
    ----------
    log_likelihood
        At the new parameters, of the standardised outcome, in nats.
    objective
        The same less the ridge penalties; no step lowers it.
    gate_fraction, expert_fractions
        Of Newton's steps taken, ``()`` and ``(experts,)``; 0 where no halving helped.
    """

    log_likelihood: jax.Array
    objective: jax.Array
    gate_fraction: jax.Array
    expert_fractions: jax.Array


def em_data(predictors: Any, outcome: Any, weights: Any = None, *, settings: EMSettings) -> EMData:
    """Rows as EM reads them; see `fit_experts` for the arguments."""
    predictors = jnp.asarray(predictors)
    predictors = predictors.astype(jnp.result_type(float, predictors.dtype))
    outcome = jnp.asarray(outcome, predictors.dtype)
    weights = jnp.ones_like(outcome) if weights is None else jnp.asarray(weights, outcome.dtype)
    return prepare(
        predictors,
        outcome,
        weights,
        standardise_outcome=settings.experts == "normal",
        block_size=settings.block_size,
    )


def em_start(
    parameters: MixtureOfExpertsParameters, data: EMData, *, settings: EMSettings
) -> EMState:
    """The state at ``parameters``, given in the units of the data."""
    return _state(to_standard_units(parameters, data), data, settings)


def em_init(key: jax.Array, data: EMData, *, settings: EMSettings) -> EMState:
    """A random start: the fit of one expert, its coefficients perturbed for each of K.

    Gates start equal. The noise has the size of the mean coefficient, or, if that is larger, the
    size at which random slopes explain what one expert leaves. It depends on the key alone, not on
    the layout of the rows.
    """
    single, _ = jax.lax.scan(
        lambda state, _: (em_step(state, data, settings=settings)[0], None),
        _one_expert(data, settings),
        None,
        length=1 if settings.experts == "normal" else 10,
    )
    (base,), width = single.parameters.coefficients, single.parameters.coefficients.shape[1]
    left = 2.0 if single.parameters.scale is None else single.parameters.scale[0]
    size = jnp.maximum(jnp.mean(jnp.abs(base)), left / math.sqrt(width))
    shape = (settings.num_experts, width)
    coefficients = base + size * jax.random.normal(key, shape, base.dtype)
    scale = None
    if settings.num_experts == 1:
        coefficients = base[None]
    if single.parameters.scale is not None:
        scale = jnp.broadcast_to(single.parameters.scale, shape[:1])
    gate = jnp.zeros(shape, base.dtype)
    return _state(MixtureOfExpertsParameters(gate, coefficients, scale), data, settings)


def em_step(state: EMState, data: EMData, *, settings: EMSettings) -> tuple[EMState, EMInfo]:
    """One iteration of (generalised) EM: it never lowers the objective.

    Experts are maximised exactly (normal) or by one Newton step (Bernoulli), the gate by one step,
    then one pass over the rows makes the next state.
    """
    parameters, statistics, _ = state
    gate, gate_fraction = update_gate(parameters.gate, statistics, data, ridge=settings.gate_ridge)
    coefficients, scale, fractions = update_experts(
        parameters,
        statistics,
        data,
        ridge=settings.coefficient_ridge,
        variance_floor=settings.variance_floor,
    )
    state = _state(MixtureOfExpertsParameters(gate, coefficients, scale), data, settings)
    info = EMInfo(state.statistics.log_likelihood, state.objective, gate_fraction, fractions)
    return state, info


def fit_experts(
    key: jax.Array,
    predictors: Any,
    outcome: Any,
    num_experts: int,
    *,
    experts: str = "normal",
    weights: Any = None,
    start: MixtureOfExpertsParameters | None = None,
    **settings: Any,
) -> MixtureOfExpertsFit:
    r"""Maximise Σ w_i log Σ_k π_k(x_i) p_k(y_i | x_i) − penalties by EM from several starts.

    Predictors and outcome are standardised by weighted moments; the answer is in their own units.
    May be jitted and vmapped; then what depends on numbers is not checked.

    Parameters
    ----------
    key
        Of the random starts.
    predictors
        ``(n, dim)``, without intercept.
    outcome
        ``(n,)``; 0 or 1 for Bernoulli experts.
    num_experts
        K.
    experts
        ``"normal"`` or ``"bernoulli"``.
    weights
        ``(n,)``, at least 0: a row of weight 3 counts as three rows, one of weight 0 not at all,
        whatever it holds.
    start
        Parameters in the units of the data from which to go on, instead of random starts.
    settings
        Those of `EMSettings`.

    Returns
    -------
    MixtureOfExpertsFit

    Raises
    ------
    TypeError
        If a setting has no such name.
    ValueError
        If shapes disagree, a number is not finite, a Bernoulli outcome is neither 0 nor 1, a
        weight is negative or all are 0, or there are fewer rows than an expert has coefficients.

    Warns
    -----
    UserWarning
        If the model has more parameters than there are rows, or a predictor is constant.

    References
    ----------
    Jordan and Jacobs (1994), "Hierarchical mixtures of experts and the EM algorithm"; Böhning
    (1992) for the bound of ``gate_step="bound"``; Chamroukhi and Pham (2023) for its use on shards.

    Examples
    --------
    >>> x_key, choice_key, noise_key, fit_key = jax.random.split(jax.random.key(0), 4)
    >>> x = jax.random.normal(x_key, (500, 1))
    >>> first = jax.random.bernoulli(choice_key, jax.nn.sigmoid(3.0 * x[:, 0]))
    >>> y = jnp.where(first, 2.0 * x[:, 0], -x[:, 0] - 4.0)
    >>> fit = fit_experts(fit_key, x, y + 0.1 * jax.random.normal(noise_key, (500,)), 2)
    >>> bool(fit.converged)
    True
    >>> sorted(fit.parameters.coefficients[:, 1].round(1).tolist())
    [-1.0, 2.0]
    """
    options = EMSettings(num_experts, experts, **settings)
    check_data(predictors, outcome, weights, num_experts=num_experts, experts=experts)
    predictors = jnp.asarray(predictors)
    predictors = predictors.astype(jnp.result_type(float, predictors.dtype))
    if start is not None:
        start = check_start(start, predictors, num_experts=num_experts, experts=experts)
    outcome = jnp.asarray(outcome, predictors.dtype)
    weights = jnp.ones_like(outcome) if weights is None else jnp.asarray(weights, outcome.dtype)
    return _fit(key, predictors, outcome, weights, start, settings=options)


@partial(jax.jit, static_argnames="settings")
def _fit(
    key: jax.Array,
    predictors: jax.Array,
    outcome: jax.Array,
    weights: jax.Array,
    start: MixtureOfExpertsParameters | None,
    *,
    settings: EMSettings,
) -> MixtureOfExpertsFit:
    data = em_data(predictors, outcome, weights, settings=settings)
    if start is None:
        state, start_objectives = _best_start(key, data, settings)
    else:
        state = em_start(start, data, settings=settings)
        start_objectives = state.objective[None]
    trace = jnp.full((settings.max_iterations + 1,), jnp.nan, state.objective.dtype)
    least = settings.tolerance * data.total_weight

    def going_on(carry: tuple) -> jax.Array:
        _, _, count, rising = carry
        return rising & (count < settings.max_iterations)

    def iterate(carry: tuple) -> tuple:
        state, trace, count, _ = carry
        new, _ = em_step(state, data, settings=settings)
        count = count + 1
        # False for NaN, which no further step would cure.
        rising = new.objective - state.objective >= least
        return new, trace.at[count].set(new.objective), count, rising

    first = (state, trace.at[0].set(state.objective), jnp.zeros((), int), jnp.ones((), bool))
    state, trace, count, rising = jax.lax.while_loop(going_on, iterate, first)
    # The density of y is that of the standardised outcome over the outcome's scale.
    shift = data.total_weight * jnp.log(data.outcome_scale)
    log_likelihood = state.statistics.log_likelihood
    scale = state.parameters.scale
    if scale is None:
        at_floor = jnp.zeros((settings.num_experts,), bool)
    else:
        at_floor = scale**2 <= settings.variance_floor * (1.0 + 1e-3)
    return MixtureOfExpertsFit(
        to_data_units(state.parameters, data),
        log_likelihood - shift,
        trace - shift,
        count,
        ~rising & jnp.isfinite(log_likelihood),
        state.statistics.counts,
        at_floor,
        start_objectives - shift,
    )


def _best_start(key: jax.Array, data: EMData, settings: EMSettings) -> tuple[EMState, jax.Array]:
    """The best of the random starts after the short run, and all their objectives."""
    if settings.num_experts == 1 or settings.num_starts == 1:
        state = em_init(key, data, settings=settings)
        return state, state.objective[None]

    def short_run(key: jax.Array) -> EMState:
        return jax.lax.scan(
            lambda state, _: (em_step(state, data, settings=settings)[0], None),
            em_init(key, data, settings=settings),
            None,
            length=settings.short_iterations,
        )[0]

    states = jax.vmap(short_run)(jax.random.split(key, settings.num_starts))
    scores = jnp.where(jnp.isnan(states.objective), -jnp.inf, states.objective)
    best = jnp.argmax(scores)
    return jax.tree.map(lambda leaf: leaf[best], states), states.objective


def _one_expert(data: EMData, settings: EMSettings) -> EMState:
    row = jnp.zeros((1, data.features.shape[1]), data.features.dtype)
    scale = jnp.ones((1,), row.dtype) if settings.experts == "normal" else None
    return _state(MixtureOfExpertsParameters(row, row, scale), data, settings)


def _state(parameters: MixtureOfExpertsParameters, data: EMData, settings: EMSettings) -> EMState:
    statistics = collect(parameters, data, gate_hessian=settings.gate_step == "newton")
    penalty = gate_penalty(parameters.gate, settings.gate_ridge) + coefficient_penalty(
        parameters.coefficients, settings.coefficient_ridge
    )
    return EMState(parameters, statistics, statistics.log_likelihood - penalty)
