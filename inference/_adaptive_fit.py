"""One time step's fit of a mixture of experts to the auxiliary target of a particle filter.

Everything runs in coordinates of that step. Outcomes are the transition's innovations, whitened:
z = L₀⁻¹ (x − A₀ φ), with A₀ φ the transition's mean and L₀ L₀ᵀ its covariance. Features other
than the 1 are centred and scaled over the cloud. The transition is then close to N(0, I) whatever
the units, which is what makes one κ serve all models, and float32 suffice.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.linalg import cho_solve, solve_triangular
from jax.scipy.special import logsumexp

from bayesdiv._mixture_of_experts import MixtureOfExpertsParameters, draw
from bayesdiv.divergences import FDivergence
from bayesdiv.inference import _online_em as em
from bayesdiv.inference._defensive_mixture import mixed
from bayesdiv.inference.proposal_criteria import effective_sample_size, entropy_kl

__all__ = ["Batch", "Coordinates", "FitSettings", "Problem", "draw_prior", "fit", "start"]


class Problem(NamedTuple):
    """The auxiliary target at one time, as functions of ``(n, dim)`` outcomes and of parents.

    Parameters
    ----------
    sample
        ``sample(key, parents)``: one draw of the transition for each parent, ``(n, dim)``.
    log_transition
        ``log_transition(values, parents)``, ``(n,)``.
    log_emission
        ``log_emission(values)``, ``(n,)``.
    features
        ``features(parents)``, ``(n, features)``, with a 1 in front.
    moments
        ``moments(parents)``: means ``(n, dim)`` and mean covariance ``(dim, dim)`` of the
        transition.
    log_adjustments
        ``log_adjustments(parents)``, ``(n,)``.
    """

    sample: Callable
    log_transition: Callable
    log_emission: Callable
    features: Callable
    moments: Callable
    log_adjustments: Callable


class Coordinates(NamedTuple):
    """A₀ ``(dim, features)``, L₀ ``(dim, dim)``, and the features' centre and scale."""

    base: jax.Array
    scale: jax.Array
    centre: jax.Array
    spread: jax.Array

    @classmethod
    def of(cls, problem: Problem, parents: jax.Array) -> Coordinates:
        """From the cloud's ``parents``."""
        features = problem.features(parents)
        centre = features.mean(0).at[0].set(0.0)
        deviation = jnp.sqrt(((features - centre) ** 2).mean(0))
        # A feature that does not vary is left as it is.
        least = 1e-6 * (1.0 + jnp.abs(features).max(0))
        spread = jnp.where(deviation > least, deviation, 1.0).at[0].set(1.0)
        inner = (features - centre) / spread
        means, covariance = problem.moments(parents)
        ridge = 64.0 * jnp.finfo(inner.dtype).eps * len(inner)
        gram = inner.T @ inner + ridge * jnp.eye(inner.shape[1], dtype=inner.dtype)
        slopes = cho_solve((jnp.linalg.cholesky(gram), True), inner.T @ means).T
        residual = means - inner @ slopes.T
        # What the features cannot say of the mean is noise to the experts.
        covariance = covariance + residual.T @ residual / len(residual)
        base = slopes @ _to_inner(centre, spread)
        return cls(base, jnp.linalg.cholesky(covariance), centre, spread)

    def inner_features(self, features: jax.Array) -> jax.Array:
        return (features - self.centre) / self.spread

    def outcomes(self, innovations: jax.Array, features: jax.Array) -> jax.Array:
        """x of z."""
        return features @ self.base.T + innovations @ self.scale.T

    def innovations(self, outcomes: jax.Array, features: jax.Array) -> jax.Array:
        """z of x."""
        residual = outcomes - features @ self.base.T
        inverse = solve_triangular(self.scale, jnp.eye(*self.scale.shape), lower=True)
        return residual @ inverse.T

    @property
    def log_volume(self) -> jax.Array:
        """log |det L₀|."""
        return jnp.log(jnp.diagonal(self.scale)).sum()

    def outer(self, inner: MixtureOfExpertsParameters) -> MixtureOfExpertsParameters:
        """Parameters for raw features and outcomes."""
        change = _to_inner(self.centre, self.spread)
        return MixtureOfExpertsParameters(
            gate=inner.gate @ change,
            coefficients=self.base + self.scale @ inner.coefficients @ change,
            scale=self.scale @ inner.scale,
        )

    def inner(self, outer: MixtureOfExpertsParameters) -> MixtureOfExpertsParameters:
        """The inverse of `outer`."""
        change = jnp.diag(self.spread).at[:, 0].add(self.centre)
        solve = lambda matrix: solve_triangular(self.scale, matrix, lower=True)  # noqa: E731
        return MixtureOfExpertsParameters(
            gate=outer.gate @ change,
            coefficients=jax.vmap(solve)(outer.coefficients - self.base) @ change,
            scale=jax.vmap(solve)(outer.scale),
        )


def _to_inner(centre: jax.Array, spread: jax.Array) -> jax.Array:
    """The matrix that takes features to centred and scaled ones."""
    return jnp.diag(1.0 / spread).at[:, 0].add(-centre / spread)


@dataclass(frozen=True)
class FitSettings:
    """What of the proposal's settings the fit needs; see `AdaptiveProposal`."""

    divergence: FDivergence
    num_experts: int
    num_iterations: int
    step_exponent: float
    kappa: float
    defensive_fraction: float
    degrees_of_freedom: float | None
    offset: float
    gate_strength: float
    tempering_ess: float


class Batch(NamedTuple):
    """Draws, in coordinates of the step, and their log-weights."""

    innovations: jax.Array
    features: jax.Array
    log_weights: jax.Array
    joint: jax.Array


def start(settings: FitSettings, dim: int, num_features: int) -> MixtureOfExpertsParameters:
    """Experts around the transition, apart from each other: alike they would stay alike."""
    count = settings.num_experts
    dtype = jnp.result_type(float)
    coefficients = np.zeros((count, dim, num_features))
    gate = np.zeros((count, num_features))
    if count > 1:
        coefficients[:, :, 0] = settings.offset * _directions(count, dim)
        if num_features > 1:
            gate[:, 1:] = settings.gate_strength * _directions(count, num_features - 1)
    return MixtureOfExpertsParameters(
        jnp.asarray(gate - gate[-1], dtype),
        jnp.asarray(coefficients, dtype),
        jnp.broadcast_to(jnp.eye(dim, dtype=dtype), (count, dim, dim)),
    )


def _directions(count: int, dim: int) -> np.ndarray:
    """``(count, dim)``: along a line, around a circle, or scattered over a sphere."""
    if dim == 1:
        return np.linspace(-1.0, 1.0, count)[:, None]
    if dim == 2:
        angles = 2.0 * math.pi * np.arange(count) / count
        return np.stack([np.cos(angles), np.sin(angles)], axis=1)
    scattered = np.random.default_rng(0).normal(size=(count, dim))
    return scattered / np.linalg.norm(scattered, axis=1, keepdims=True)


def draw_prior(
    settings: FitSettings,
    problem: Problem,
    coordinates: Coordinates,
    parameters: MixtureOfExpertsParameters,
    key: jax.Array,
    parents: jax.Array,
) -> Batch:
    """A batch drawn from the transition."""
    values = problem.sample(key, parents)
    features = problem.features(parents)
    inner = coordinates.inner_features(features)
    innovations = coordinates.innovations(values, features)
    joint = em.joint_log_densities(innovations, inner, parameters, settings.degrees_of_freedom)
    log_weights = problem.log_emission(values) - problem.log_adjustments(parents)
    return Batch(innovations, inner, _finite(log_weights), joint)


def _draw(
    settings: FitSettings,
    problem: Problem,
    coordinates: Coordinates,
    parameters: MixtureOfExpertsParameters,
    key: jax.Array,
    parents: jax.Array,
) -> Batch:
    """A batch drawn from the proposal with ``parameters``.

    The defensive share is drawn in its exact proportion, and the mixture's density is that of the
    proportions drawn.
    """
    count, dim = len(parents), coordinates.scale.shape[0]
    freedom, dtype = settings.degrees_of_freedom, parameters.scale.dtype
    label_key, noise_key, mixing_key, prior_key = jax.random.split(key, 4)
    features = problem.features(parents)
    inner = coordinates.inner_features(features)
    mixing = None
    if freedom is not None:
        mixing = jax.random.gamma(mixing_key, 0.5 * freedom, (count,), dtype) / (0.5 * freedom)
    innovations = draw(
        jax.random.uniform(label_key, (count,), dtype),
        jax.random.normal(noise_key, (count, dim), dtype),
        inner,
        parameters,
        experts="normal" if freedom is None else "student_t",
        mixing=mixing,
    )
    values = coordinates.outcomes(innovations, features)
    num_defensive = math.ceil(settings.defensive_fraction * count)
    if num_defensive:
        # Parents come sorted: every so many of them keeps the proportion all over the cloud.
        chosen = np.linspace(0, count - 1, num_defensive).astype(int)
        defensive = problem.sample(prior_key, parents[chosen]).astype(dtype)
        values = values.at[chosen].set(defensive)
        innovations = innovations.at[chosen].set(
            coordinates.innovations(defensive, features[chosen])
        )
    joint = em.joint_log_densities(innovations, inner, parameters, freedom)
    log_proposal = logsumexp(joint, axis=1) - coordinates.log_volume
    log_transition = problem.log_transition(values, parents)
    if num_defensive:
        share = jnp.asarray(num_defensive / count, dtype)
        log_proposal = mixed(log_proposal, log_transition, share)
    log_weights = (
        log_transition
        + problem.log_emission(values)
        - problem.log_adjustments(parents)
        - log_proposal
    )
    return Batch(innovations, inner, _finite(log_weights), joint)


def fit(
    settings: FitSettings,
    problem: Problem,
    coordinates: Coordinates,
    parameters: MixtureOfExpertsParameters,
    keys: jax.Array,
    parents: jax.Array,
    pilot: Batch | None,
) -> tuple[MixtureOfExpertsParameters, dict[str, jax.Array]]:
    """Online EM from ``parameters``; one batch for each row of ``parents``.

    Parameters
    ----------
    parameters
        Where experts and gate start, in coordinates of the step.
    keys, parents
        ``(num_iterations,)`` and ``(num_iterations, n)``; one less where a pilot is given.
    pilot
        A batch of the transition that counts as the first; None where ``parameters`` are good
        enough to draw the first from.

    Returns
    -------
    parameters, info
        ``kl_trace`` is ``(num_iterations,)``, the estimate of each batch.
    """
    beginning = start(settings, parameters.scale.shape[-1], parameters.gate.shape[-1])
    prior = em.prior_statistics(beginning.coefficients, beginning.scale)
    schedule = settings.num_iterations

    def update(
        carried: tuple[em.Statistics, MixtureOfExpertsParameters], batch: Batch, index: Any
    ) -> tuple[tuple[em.Statistics, MixtureOfExpertsParameters], tuple[jax.Array, jax.Array]]:
        statistics, current = carried
        step = (jnp.asarray(index, prior.dtype) + 1.0) ** -settings.step_exponent
        ess, kl = effective_sample_size(batch.log_weights), entropy_kl(batch.log_weights)
        # Few particles that carry all of the target say where it lies, not how wide it is.
        exponent = 0.2 + 0.8 * jnp.asarray(index, prior.dtype) / max(schedule - 1, 1)
        exponent = jnp.where(ess < settings.tempering_ess, exponent, 1.0)
        weights = em.particle_weights(settings.divergence, exponent * batch.log_weights)
        # Where every weight is zero nothing was learnt.
        is_known = jnp.isfinite(weights.sum())
        weights = jnp.where(is_known, weights, 0.0)
        new, gradient = em.expectations(
            batch.innovations,
            batch.features,
            weights,
            current,
            settings.degrees_of_freedom,
            joint=batch.joint,
        )
        statistics = em.blended(statistics, new, jnp.where(is_known, step, 0.0))
        coefficients, scale = em.maximised(statistics, prior, settings.kappa)
        gate = current.gate
        if settings.num_experts > 1:
            gate = em.gate_step(
                gate,
                gradient,
                statistics.features,
                start=beginning.gate,
                step=step,
                kappa=settings.kappa,
            )
        current = MixtureOfExpertsParameters(gate, coefficients, scale)
        return (statistics, current), (kl, ess / len(batch.log_weights))

    def body(carried: Any, row: tuple) -> tuple[Any, Any]:
        index, key, chosen = row
        batch = _draw(settings, problem, coordinates, carried[1], key, chosen)
        return update(carried, batch, index)

    carried = (
        em.Statistics(
            jnp.zeros(settings.num_experts, prior.dtype),
            jnp.zeros_like(prior),
            jnp.zeros((parameters.gate.shape[-1],) * 2, prior.dtype),
        ),
        parameters,
    )
    traces = []
    if pilot is not None:
        carried, first = update(carried, pilot, 0)
        traces.append(jax.tree.map(lambda value: value[None], first))
    indices = jnp.arange(int(pilot is not None), schedule)
    carried, rest = jax.lax.scan(body, carried, (indices, keys, parents))
    traces.append(rest)
    kl, ess = (jnp.concatenate(parts) for parts in zip(*traces, strict=True))
    statistics, found = carried
    info = {
        "kl_trace": kl,
        "ess_trace": ess,
        "active_experts": (statistics.counts * parents.shape[-1] > 1.0).sum(),
    }
    return found, info


def _finite(log_weights: jax.Array) -> jax.Array:
    """A weight that is not a number says nothing here; the filter itself reports it."""
    return jnp.where(jnp.isnan(log_weights), -jnp.inf, log_weights)
