r"""The mixture of experts with softmax gates, as functions of its parameters, for torch and JAX.

With features φ, of which the first is usually 1, the conditional density is

.. math:: p(y | φ) = Σ_k π_k(φ) \, p_k(y | φ), \qquad π(φ) = \mathrm{softmax}(a_1·φ, …, a_K·φ),

where expert k is N(B_k φ, Σ_k), Student's t_ν(B_k φ, Σ_k), or Bernoulli with logit b_k·φ. Gates and
densities stay in log space. A row added to all of ``gate`` changes nothing, and neither does one
permutation of all parameters.

Shapes, each with any batch dimensions on the left that broadcast against those of the features:

============ ======================= ============================ ================
parameters   univariate              multivariate                 Bernoulli
============ ======================= ============================ ================
gate         (experts, features)     (experts, features)          (experts, features)
coefficients (experts, features)     (experts, dim, features)     (experts, features)
scale        (experts,)              (experts, dim, dim)          None
============ ======================= ============================ ================

A univariate scale is σ_k, a multivariate one the lower Cholesky factor of Σ_k; for Student's t, Σ
is the scale matrix and the covariance is Σ ν / (ν − 2).

Jacobs, Jordan, Nowlan and Hinton (1991); Cornebise, Moulines and Olsson (2014), section 3, for
Student's experts.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

from bayesdiv._array import (
    Array,
    array_namespace,
    as_array_like,
    identity_like,
    log_gamma,
    logsumexp,
    softplus,
    solve_lower_triangular,
)

__all__ = [
    "EXPERTS",
    "MixtureOfExpertsParameters",
    "assembled",
    "covariance",
    "dimension",
    "draw",
    "expert_locations",
    "expert_log_densities",
    "log_gates",
    "log_prob",
    "mean",
    "parameter_batch_shapes",
    "referenced_gate",
    "responsibilities",
    "variance",
]

EXPERTS = ("normal", "student_t", "bernoulli")
_LOG_TWO_PI = math.log(2.0 * math.pi)


class MixtureOfExpertsParameters(NamedTuple):
    """Gate, coefficients and scale; see the module for their shapes.

    Functions accept any gate; those that return one make its last row 0.
    """

    gate: Array
    coefficients: Array
    scale: Any = None


def dimension(parameters: MixtureOfExpertsParameters) -> int | None:
    """Entries of one outcome, or None where an outcome is a number."""
    scale = parameters.scale
    if scale is None or scale.ndim < parameters.coefficients.ndim:
        return None
    return parameters.coefficients.shape[-2]


def parameter_batch_shapes(parameters: MixtureOfExpertsParameters) -> list[tuple[int, ...]]:
    """Batch shape of each parameter that is there."""
    gate, coefficients, scale = parameters
    kept = 2 if dimension(parameters) is None else 3
    shapes = [tuple(gate.shape[:-2]), tuple(coefficients.shape[: coefficients.ndim - kept])]
    if scale is not None:
        shapes.append(tuple(scale.shape[: scale.ndim - (1 if kept == 2 else 3)]))
    return shapes


def referenced_gate(gate: Array) -> Array:
    """The same gates with the last row 0."""
    return gate - gate[..., -1:, :]


def assembled(
    free_gate: Array | None, coefficients: Array, scale: Array | None
) -> MixtureOfExpertsParameters:
    """Parameters of which the gate's last row is not given: univariate, for models in the hosts.

    ``free_gate`` is ``(experts − 1, features)``, or None for one expert.
    """
    reference = array_namespace(coefficients).zeros_like(coefficients[..., :1, :])
    if free_gate is None:
        return MixtureOfExpertsParameters(reference, coefficients, scale)
    gate = array_namespace(coefficients).concat([free_gate, reference], axis=-2)
    return MixtureOfExpertsParameters(gate, coefficients, scale)


def log_gates(features: Array, gate: Array) -> Array:
    """log π, ``(*batch, experts)``; ``features`` is ``(*batch, features)``."""
    logits = _linear(gate, features)
    return logits - logsumexp(logits, -1, keepdims=True)


def expert_locations(features: Array, coefficients: Array, *, multivariate: bool = False) -> Array:
    """B_k φ: ``(*batch, experts)``, or ``(*batch, experts, dim)`` where ``multivariate``."""
    if multivariate:
        return array_namespace(features).einsum("...kdf,...f->...kd", coefficients, features)
    return _linear(coefficients, features)


def expert_log_densities(
    value: Array,
    features: Array,
    parameters: MixtureOfExpertsParameters,
    *,
    experts: str = "normal",
    degrees_of_freedom: Any = None,
) -> Array:
    """log p_k(y | φ) for every expert, ``(*batch, experts)``.

    ``value`` is ``(*batch,)``, or ``(*batch, dim)`` for multivariate experts. Every Cholesky factor
    is inverted once, after which the rows take one product of matrices, not a solve each.
    """
    xp = array_namespace(features)
    coefficients, scale = parameters.coefficients, parameters.scale
    if experts == "bernoulli":
        logits = _linear(coefficients, features)
        # log σ(ℓ) for 1 and log σ(−ℓ) for 0, without the cancellation in y ℓ − softplus(ℓ).
        return -softplus((1.0 - 2.0 * value[..., None]) * logits)
    dim = dimension(parameters)
    if dim is None:
        residual = (value[..., None] - _linear(coefficients, features)) / scale
        squared = residual * residual
        log_volume = xp.log(scale)
    else:
        inverse = _inverse_factor(scale)
        whitened = xp.einsum("...kdf,...f->...kd", inverse @ coefficients, features)
        residual = xp.einsum("...kde,...e->...kd", inverse, value) - whitened
        squared = xp.sum(residual * residual, axis=-1)
        log_volume = xp.sum(xp.log(xp.linalg.diagonal(scale)), axis=-1)
    size = 1 if dim is None else dim
    if experts == "normal":
        return -0.5 * (squared + size * _LOG_TWO_PI) - log_volume
    return _student_kernel(squared, degrees_of_freedom, size) - log_volume


def log_prob(
    value: Array,
    features: Array,
    parameters: MixtureOfExpertsParameters,
    *,
    experts: str = "normal",
    degrees_of_freedom: Any = None,
) -> Array:
    """log p(y | φ) = log Σ_k π_k p_k, ``(*batch,)``; see `expert_log_densities`."""
    densities = expert_log_densities(
        value, features, parameters, experts=experts, degrees_of_freedom=degrees_of_freedom
    )
    return logsumexp(log_gates(features, parameters.gate) + densities, -1)


def responsibilities(
    value: Array,
    features: Array,
    parameters: MixtureOfExpertsParameters,
    *,
    experts: str = "normal",
    degrees_of_freedom: Any = None,
) -> Array:
    """P(expert = k | y, φ), ``(*batch, experts)``; rows sum to 1."""
    densities = expert_log_densities(
        value, features, parameters, experts=experts, degrees_of_freedom=degrees_of_freedom
    )
    joint = log_gates(features, parameters.gate) + densities
    return array_namespace(joint).exp(joint - logsumexp(joint, -1, keepdims=True))


def mean(
    features: Array,
    parameters: MixtureOfExpertsParameters,
    *,
    experts: str = "normal",
    degrees_of_freedom: Any = None,
) -> Array:
    """E[y | φ] = Σ_k π_k m_k, with m_k = B_k φ or σ(b_k·φ); ``(*batch,)`` or ``(*batch, dim)``.

    NaN for Student's experts with ν ≤ 1.
    """
    weights, means = _weights_and_means(features, parameters, experts)
    total = array_namespace(features).sum(weights * means, axis=_expert_axis(parameters))
    if experts != "student_t":
        return total
    spread = _student_spread(degrees_of_freedom, total)
    # Not where the variance is infinite, but where it is undefined.
    return _filled(total, _event_last(spread != spread, parameters), math.nan)


def variance(
    features: Array,
    parameters: MixtureOfExpertsParameters,
    *,
    experts: str = "normal",
    degrees_of_freedom: Any = None,
) -> Array:
    """Var[y | φ] = Σ_k π_k (v_k + (m_k − E y)²), of each entry; shaped as `mean`.

    Infinite for Student's experts with 1 < ν ≤ 2, and NaN with ν ≤ 1.
    """
    xp = array_namespace(features)
    weights, means = _weights_and_means(features, parameters, experts)
    axis = _expert_axis(parameters)
    centre = xp.sum(weights * means, axis=axis, keepdims=True)
    if experts == "bernoulli":
        within = means * (1.0 - means)
    elif dimension(parameters) is None:
        within = parameters.scale * parameters.scale
    else:
        within = xp.sum(parameters.scale * parameters.scale, axis=-1)
    if experts == "student_t":
        spread = _event_last(_student_spread(degrees_of_freedom, centre), parameters)
        within = spread[..., None] * within if axis == -1 else spread[..., None, :] * within
    return xp.sum(weights * (within + (means - centre) ** 2), axis=axis)


def covariance(
    features: Array,
    parameters: MixtureOfExpertsParameters,
    *,
    experts: str = "normal",
    degrees_of_freedom: Any = None,
) -> Array:
    """Cov[y | φ] of multivariate experts, within plus between them; ``(*batch, dim, dim)``."""
    xp = array_namespace(features)
    if dimension(parameters) is None:
        raise ValueError(
            "covariance needs multivariate experts, got coefficients of shape "
            f"{tuple(parameters.coefficients.shape)} with numbers as outcomes; use the variance."
        )
    weights, means = _weights_and_means(features, parameters, experts)
    centred = means - xp.sum(weights * means, axis=-2, keepdims=True)
    within = parameters.scale @ xp.matrix_transpose(parameters.scale)
    if experts == "student_t":
        spread = _student_spread(degrees_of_freedom, centred)
        within = spread[..., None, None, None] * within
    between = centred[..., :, None] * centred[..., None, :]
    return xp.sum(weights[..., None] * (within + between), axis=-3)


def draw(
    uniform: Array,
    noise: Array,
    features: Array,
    parameters: MixtureOfExpertsParameters,
    *,
    experts: str = "normal",
    mixing: Array | None = None,
) -> Array:
    """Outcomes made of random numbers; differentiable in what the chosen experts have.

    Parameters
    ----------
    uniform
        From [0, 1), ``(*batch,)``: chooses the expert by inverting the gate's cumulative sum.
    noise
        N(0, 1), ``(*batch,)`` or ``(*batch, dim)``; for Bernoulli experts uniform on [0, 1).
    features
        ``(*batch, features)``.
    parameters
        As everywhere here.
    experts
        One of `EXPERTS`.
    mixing
        For Student's experts Gamma(ν/2, rate ν/2), ``(*batch,)``.
    """
    xp = array_namespace(features)
    chosen = _chosen(uniform, log_gates(features, parameters.gate))
    if mixing is not None:
        noise = noise / _event_last(xp.sqrt(mixing), parameters)
    if dimension(parameters) is None:
        places = _linear(parameters.coefficients, features)
        if experts == "bernoulli":
            logits = _selected(places, chosen, -1)
            return xp.astype(noise < 1.0 / (1.0 + xp.exp(-logits)), features.dtype)
        return _selected(places + parameters.scale * noise[..., None], chosen, -1)
    places = expert_locations(features, parameters.coefficients, multivariate=True)
    shifts = xp.einsum("...kde,...e->...kd", parameters.scale, noise)
    return _selected(places + shifts, chosen[..., None], -2)


def _linear(coefficients: Array, features: Array) -> Array:
    return array_namespace(features).einsum("...kf,...f->...k", coefficients, features)


def _inverse_factor(scale: Array) -> Array:
    identity = identity_like(scale[(0,) * (scale.ndim - 1)])
    return solve_lower_triangular(scale, identity)


def _expert_axis(parameters: MixtureOfExpertsParameters) -> int:
    return -1 if dimension(parameters) is None else -2


def _event_last(array: Array, parameters: MixtureOfExpertsParameters) -> Array:
    """``array``, one number a row, so that it broadcasts against outcomes."""
    return array if dimension(parameters) is None else array[..., None]


def _weights_and_means(
    features: Array, parameters: MixtureOfExpertsParameters, experts: str
) -> tuple[Array, Array]:
    """Gates and expert means, broadcasting: both (…, experts), or (…, experts, 1) and (…, dim)."""
    xp = array_namespace(features)
    weights = xp.exp(log_gates(features, parameters.gate))
    if dimension(parameters) is not None:
        means = expert_locations(features, parameters.coefficients, multivariate=True)
        return weights[..., None], means
    places = _linear(parameters.coefficients, features)
    return weights, 1.0 / (1.0 + xp.exp(-places)) if experts == "bernoulli" else places


def _student_kernel(squared: Array, degrees_of_freedom: Any, size: int) -> Array:
    """log density of the standard t_ν in ``size`` dimensions at squared distance."""
    xp = array_namespace(squared)
    freedom = as_array_like(degrees_of_freedom, squared)[..., None]
    half = 0.5 * (freedom + size)
    constant = log_gamma(half) - log_gamma(0.5 * freedom) - 0.5 * size * xp.log(math.pi * freedom)
    return constant - half * xp.log1p(squared / freedom)


def _student_spread(degrees_of_freedom: Any, like: Array) -> Array:
    """ν / (ν − 2), infinite for 1 < ν ≤ 2 and NaN below."""
    xp = array_namespace(like)
    freedom = as_array_like(degrees_of_freedom, like)
    finite = freedom > 2.0
    safe = xp.where(finite, freedom, xp.full_like(freedom, 3.0))
    spread = xp.where(finite, safe / (safe - 2.0), xp.full_like(freedom, math.inf))
    return xp.where(freedom > 1.0, spread, xp.full_like(freedom, math.nan))


def _filled(array: Array, where: Array, value: float) -> Array:
    xp = array_namespace(array)
    return xp.where(where, xp.full_like(array, value), array)


def _chosen(uniform: Array, log_weights: Array) -> Array:
    """One-hot draw, ``(*batch, experts)``, of bools; never an expert of weight zero."""
    xp = array_namespace(log_weights)
    cumulative = xp.cumulative_sum(xp.exp(log_weights), axis=-1)
    below = cumulative <= uniform[..., None] * cumulative[..., -1:]
    # The cumulative sum passes the target once: not below, while all before are.
    first = xp.concat([xp.ones_like(below[..., :1]), below[..., :-1]], axis=-1)
    return first & ~below


def _selected(values: Array, chosen: Array, axis: int) -> Array:
    xp = array_namespace(values)
    return xp.sum(xp.where(chosen, values, xp.zeros_like(values)), axis=axis)
