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

__all__ = ["Coordinates", "FitSettings", "Noise", "Problem", "fit", "make_noise", "start"]


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
        inverse = solve_triangular(self.scale, jnp.eye(len(self.scale)), lower=True)
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


class Noise(NamedTuple):
    """Random numbers of all batches, made at once; rows first."""

    parents: jax.Array
    labels: jax.Array
    normal: jax.Array
    mixing: jax.Array | None
    defensive: jax.Array


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


def make_noise(
    settings: FitSettings, problem: Problem, key: jax.Array, parents: jax.Array, dim: int
) -> Noise:
    """For `fit`, of batches with ``parents``, ``(num_iterations, n)``, each row sorted."""
    freedom, dtype = settings.degrees_of_freedom, jnp.result_type(float)
    normal_key, label_key, prior_key, mixing_key = jax.random.split(key, 4)
    shape, labels, mixing = parents.shape, jnp.zeros(parents.shape, dtype), None
    if settings.num_experts > 1:
        labels = jax.random.uniform(label_key, shape, dtype)
    if freedom is not None:
        mixing = jax.random.gamma(mixing_key, 0.5 * freedom, shape, dtype) / (0.5 * freedom)
    chosen = _defensive_places(settings, shape[1])
    defensive = jnp.zeros((shape[0], len(chosen), dim), dtype)
    if len(chosen):
        drawn = problem.sample(prior_key, parents[:, chosen].reshape(-1))
        defensive = drawn.reshape(defensive.shape).astype(dtype)
    normal = jax.random.normal(normal_key, (*shape, dim), dtype)
    return Noise(parents, labels, normal, mixing, defensive)


def _defensive_places(settings: FitSettings, count: int) -> np.ndarray:
    """Which of a batch's sorted rows the transition moves: every so many, all over the cloud."""
    num_defensive = math.ceil(settings.defensive_fraction * count)
    return np.linspace(0, count - 1, num_defensive).astype(int)


def _draw(
    settings: FitSettings,
    problem: Problem,
    coordinates: Coordinates,
    parameters: MixtureOfExpertsParameters,
    noise: Noise,
) -> Batch:
    """A batch drawn from the proposal with ``parameters``.

    The defensive share is drawn in its exact proportion, and the mixture's density is that of the
    proportions drawn.
    """
    freedom, parents = settings.degrees_of_freedom, noise.parents
    features = problem.features(parents)
    inner = coordinates.inner_features(features)
    innovations = draw(
        noise.labels,
        noise.normal,
        inner,
        parameters,
        experts="normal" if freedom is None else "student_t",
        mixing=noise.mixing,
    )
    values = coordinates.outcomes(innovations, features)
    chosen = _defensive_places(settings, len(parents))
    if len(chosen):
        values = values.at[chosen].set(noise.defensive)
        moved = coordinates.innovations(noise.defensive, features[chosen])
        innovations = innovations.at[chosen].set(moved)
    joint = em.joint_log_densities(innovations, inner, parameters, freedom)
    log_proposal = logsumexp(joint, axis=1) - coordinates.log_volume
    log_transition = problem.log_transition(values, parents)
    if len(chosen):
        share = jnp.asarray(len(chosen) / len(parents), values.dtype)
        log_proposal = mixed(log_proposal, log_transition, share)
    log_weights = (
        log_transition
        + problem.log_emission(values)
        - problem.log_adjustments(parents)
        - log_proposal
    )
    # A weight that is not a number says nothing here; the filter itself reports it.
    log_weights = jnp.where(jnp.isnan(log_weights), -jnp.inf, log_weights)
    return Batch(innovations, inner, log_weights, joint)


def fit(
    settings: FitSettings,
    problem: Problem,
    coordinates: Coordinates,
    parameters: MixtureOfExpertsParameters,
    noise: Noise,
) -> tuple[MixtureOfExpertsParameters, dict[str, jax.Array]]:
    """Online EM from ``parameters``, in coordinates of the step; one batch a row of ``noise``.

    Returns
    -------
    parameters, info
        ``kl_trace`` and ``ess_trace`` are ``(num_iterations,)``, estimated from each batch.
    """
    beginning = start(settings, parameters.scale.shape[-1], parameters.gate.shape[-1])
    prior = em.prior_statistics(beginning.coefficients, beginning.scale)

    def body(
        carried: tuple[em.Statistics, MixtureOfExpertsParameters, jax.Array],
        row: tuple[jax.Array, Noise],
    ) -> tuple[Any, tuple[jax.Array, jax.Array]]:
        (statistics, current, age), (is_early, numbers) = carried, row
        batch = _draw(settings, problem, coordinates, current, numbers)
        step = (age + 1.0) ** -settings.step_exponent
        ess, kl = effective_sample_size(batch.log_weights), entropy_kl(batch.log_weights)
        log_weights, age = batch.log_weights, age + 1.0
        is_lost = ess < settings.tempering_ess
        if settings.tempering_ess > 0:
            log_weights = jax.lax.cond(
                is_lost,
                lambda found: _tempered(found, settings.tempering_ess),
                lambda found: found,
                log_weights,
            )
        weights = em.particle_weights(settings.divergence, log_weights)
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
        # A batch far from the target tells the way, and nothing of the width: the next looks as
        # widely, and forgets it. In the end it may be ancestors that are few, not draws.
        scale = jnp.where(is_lost & is_early, beginning.scale, scale)
        age = jnp.where(is_lost, 0.0, age)
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
        return (statistics, current, age), (kl, ess / len(batch.log_weights))

    nothing = em.Statistics(
        jnp.zeros(settings.num_experts, prior.dtype),
        jnp.zeros_like(prior),
        jnp.zeros((parameters.gate.shape[-1],) * 2, prior.dtype),
    )
    carried = (nothing, parameters, jnp.zeros((), prior.dtype))
    is_early = jnp.arange(settings.num_iterations) < settings.num_iterations // 2
    (statistics, found, _), (kl, ess) = jax.lax.scan(body, carried, (is_early, noise))
    return found, {
        "kl_trace": kl,
        "ess_trace": ess,
        "active_experts": (statistics.counts * noise.parents.shape[1] > 1.0).sum(),
    }


def _tempered(log_weights: jax.Array, ess: float) -> jax.Array:
    """``log_weights`` times the power that leaves ``ess`` effective particles, found by bisection.

    Few particles that carry all of the target say little. With more of them weighed, each batch
    moves towards it, and the next is drawn from there.
    """
    centred = log_weights - log_weights.max()

    def halve(_: Any, interval: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        low, high = interval
        middle = 0.5 * (low + high)
        enough = effective_sample_size(jnp.exp2(middle) * centred) > ess
        return jnp.where(enough, middle, low), jnp.where(enough, high, middle)

    # Powers of two from −30, where all weights that are not zero are equal, to 0.
    ends = (jnp.full_like(centred[0], -30.0), jnp.zeros_like(centred[0]))
    power, _ = jax.lax.fori_loop(0, 12, halve, ends)
    return jnp.exp2(power) * centred
