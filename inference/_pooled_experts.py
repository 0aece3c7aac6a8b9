r"""Experts of several models side by side on a support sample, where a reduction starts.

.. math:: f_W(y | x) = Σ_m λ_m f(y | x; θ_m) = Σ_l Π_l(x) p_l(y | x), \qquad
          Π_l(x) = λ_m π_j(x; A_m), \; l = (m, j).
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

from bayesdiv._mixture_of_experts import MixtureOfExpertsParameters
from bayesdiv._mixture_of_experts_checks import check_parameters
from bayesdiv.inference._ground_cost_updates import Experts

__all__ = [
    "PooledExperts",
    "StepProblem",
    "SupportUnits",
    "check_support",
    "check_weights",
    "pool_experts",
    "warn_if_saturated",
]

_LARGEST_LOGIT = 30.0


class SupportUnits(NamedTuple):
    """Predictors are standardised by the support, outcomes shifted: what single precision needs."""

    centre: np.ndarray
    scale: np.ndarray
    shift: float

    @classmethod
    def of(cls, support: np.ndarray, shift: float) -> SupportUnits:
        """Mean and sd of ``support`` ``(rows, dim)``; a constant column keeps scale 1."""
        centre, scale = support.mean(axis=0), support.std(axis=0)
        noise = 1e-12 * np.abs(centre)
        return cls(centre, np.where(scale > noise, scale, 1.0), shift)

    def features(self, support: np.ndarray) -> np.ndarray:
        """(1, standardised predictors), ``(rows, features)``."""
        standard = (support - self.centre) / self.scale
        return np.concatenate([np.ones((len(support), 1)), standard], axis=1)

    def from_data(self, rows: np.ndarray) -> np.ndarray:
        """Rows ``(…, features)`` that act on (1, predictors), as they act on standard features."""
        intercept = rows[..., :1] + rows[..., 1:] @ self.centre[:, None]
        return np.concatenate([intercept, rows[..., 1:] * self.scale], axis=-1)

    def to_data(self, rows: np.ndarray) -> np.ndarray:
        """The inverse of `from_data`."""
        slopes = rows[..., 1:] / self.scale
        return np.concatenate([rows[..., :1] - slopes @ self.centre[:, None], slopes], axis=-1)


class StepProblem(NamedTuple):
    """What stays the same from step to step: features, masses and experts to be reduced."""

    features: Any
    mass: Any
    local: Experts


class PooledExperts(NamedTuple):
    """Every expert of every model on the support, and the gates that weigh them.

    Parameters
    ----------
    features
        ``(rows, features)``, standardised.
    gram
        Mean of φ φᵀ over the rows, ``(features, features)``.
    mass
        Π, ``(rows, L)`` with L the number of experts of all models; rows sum to 1.
    local
        Coefficients, scales and places of the L experts, in the units of ``features``.
    shard
        ``(L,)``, the model each expert belongs to.
    weights
        λ, ``(models,)`` or by row ``(rows, models)``.
    units
        The way back to the units of the data.
    parameters
        The models, as NumPy arrays in the units of the data.
    experts
        "normal" or "bernoulli".
    """

    features: Any
    gram: np.ndarray
    mass: Any
    local: Experts
    shard: np.ndarray
    weights: np.ndarray
    units: SupportUnits
    parameters: tuple[MixtureOfExpertsParameters, ...]
    experts: str

    @property
    def counts(self) -> np.ndarray:
        """Experts of each model, ``(models,)``."""
        return np.bincount(self.shard, minlength=len(self.parameters))

    @property
    def problem(self) -> StepProblem:
        """What steps look at."""
        return StepProblem(self.features, self.mass, self.local)

    @property
    def mean_weights(self) -> np.ndarray:
        """λ averaged over the support where it differs by row, ``(models,)``."""
        return self.weights if self.weights.ndim == 1 else self.weights.mean(axis=0)

    def experts_of(self, parameters: MixtureOfExpertsParameters) -> Experts:
        """A model's experts in the units of this pool."""
        coefficients = self.units.from_data(np.asarray(parameters.coefficients, float))
        coefficients[:, 0] -= self.units.shift
        scale = None if parameters.scale is None else jnp.asarray(np.asarray(parameters.scale))
        return Experts(jnp.asarray(coefficients, self.features.dtype), scale)

    def parameters_of(self, experts: Experts, gate: Any) -> MixtureOfExpertsParameters:
        """The model of ``experts`` and ``gate`` in the units of the data, its last gate row 0."""
        coefficients = np.array(experts.coefficients, float)
        coefficients[:, 0] += self.units.shift
        gate = self.units.to_data(np.asarray(gate, float))
        return _as_jax(
            MixtureOfExpertsParameters(
                gate - gate[-1:], self.units.to_data(coefficients), experts.scale
            )
        )

    def kept(self, keep: np.ndarray) -> PooledExperts:
        """The same with weight for the models ``keep`` alone, a boolean vector.

        No array changes its shape, so that nothing has to be compiled again.
        """
        weights = np.where(keep, self.weights, 0.0)
        mass = np.where(keep[self.shard], np.asarray(self.mass, float), 0.0)
        return self._replace(
            mass=jnp.asarray(mass / mass.sum(axis=1, keepdims=True), self.features.dtype),
            weights=weights / weights.sum(axis=-1, keepdims=True),
        )


def pool_experts(
    models: Sequence[MixtureOfExpertsParameters],
    weights: Any,
    support: Any,
    *,
    experts: str = "normal",
) -> PooledExperts:
    """Put the experts of ``models`` side by side on ``support``; see `PooledExperts`.

    Parameters
    ----------
    models
        Fitted models of (1, predictors), with any number of experts each.
    weights
        λ, ``(models,)``, or by row of the support ``(rows, models)``; None is uniform. They are
        normalised.
    support
        Predictors without the intercept, ``(rows, dim)``.
    experts
        "normal", univariate, or "bernoulli".

    Raises
    ------
    TypeError, ValueError
        Shapes, families or numbers that do not fit; the message names the model or the row.
    """
    support = check_support(support)
    parameters = _check_models(models, support.shape[1], experts)
    weights = check_weights(weights, len(parameters), len(support))
    first = SupportUnits.of(support, 0.0)
    shift = 0.0
    if experts == "normal":
        # Intercepts of standardised predictors are the experts' mean predictions.
        means = [first.from_data(model.coefficients)[:, 0].mean() for model in parameters]
        shift = float(np.mean(means))
    units = first._replace(shift=shift)
    features = units.features(support)
    sizes = [len(model.gate) for model in parameters]
    gate = units.from_data(np.concatenate([model.gate for model in parameters]))
    mass = _gates(features @ gate.T, sizes) * np.repeat(weights, sizes, axis=-1)
    coefficients = units.from_data(np.concatenate([model.coefficients for model in parameters]))
    coefficients[:, 0] -= shift
    places = features @ coefficients.T
    scale = None
    if experts == "bernoulli":
        # Beyond it a probability is 0 or 1 to 13 digits, and its cost no longer finite.
        places = np.clip(places, -_LARGEST_LOGIT, _LARGEST_LOGIT)
    else:
        scale = jnp.asarray(np.concatenate([model.scale for model in parameters]))
    shard = np.repeat(np.arange(len(parameters)), sizes)
    return PooledExperts(
        jnp.asarray(features),
        features.T @ features / len(features),
        jnp.asarray(mass),
        Experts(jnp.asarray(coefficients), scale, jnp.asarray(places)),
        shard,
        weights,
        units,
        parameters,
        experts,
    )


def check_support(support: Any) -> np.ndarray:
    """``support`` as ``(rows, dim)`` of finite floats, or a ValueError."""
    support = np.asarray(support, float)
    if support.ndim != 2 or not len(support):
        raise ValueError(
            "support must be predictors without the intercept, shape (rows, dim) with at least "
            f"one row, got shape {support.shape}."
        )
    bad = np.flatnonzero(~np.isfinite(support).all(axis=1))
    if len(bad):
        raise ValueError(
            f"support must be finite, got NaN or infinity in {len(bad)} rows, first in row "
            f"{bad[0]}; drop them."
        )
    return support


def check_weights(weights: Any, num_models: int, num_rows: int) -> np.ndarray:
    """Normalised weights, ``(models,)`` or ``(rows, models)``, or a ValueError."""
    weights = np.ones(num_models) if weights is None else np.asarray(weights, float)
    if weights.shape not in ((num_models,), (num_rows, num_models)):
        raise ValueError(
            f"weights must have shape ({num_models},), one for each model, or ({num_rows}, "
            f"{num_models}), also one for each row of the support, got {weights.shape}."
        )
    if not np.isfinite(weights).all() or (weights < 0.0).any():
        raise ValueError(
            f"weights must be finite and not negative, got values from {weights.min():.6g} to "
            f"{weights.max():.6g}."
        )
    total = weights.sum(axis=-1, keepdims=True)
    if not (total > 0.0).all():
        raise ValueError("weights must not all be zero; give each shard its number of rows.")
    return weights / total


def _check_models(
    models: Sequence[MixtureOfExpertsParameters], dim: int, experts: str
) -> tuple[MixtureOfExpertsParameters, ...]:
    if experts not in ("normal", "bernoulli"):
        raise ValueError(f"experts must be 'normal' or 'bernoulli' to be reduced, got {experts!r}.")
    if not len(models):
        raise ValueError("models must hold at least one fitted model, got none.")
    for index, model in enumerate(models):
        if not isinstance(model, MixtureOfExpertsParameters):
            raise TypeError(
                f"models must be MixtureOfExpertsParameters, got {type(model).__name__} for model "
                f"{index}; pass fit.parameters."
            )
    widths = [np.shape(model.gate)[-1] for model in models]
    wrong = [index for index, width in enumerate(widths) if width != dim + 1]
    if wrong:
        raise ValueError(
            f"models must have {dim + 1} features, the intercept and the {dim} columns of the "
            f"support, got {sorted({widths[index] for index in wrong})} in models {wrong}."
        )
    plain = []
    for index, model in enumerate(models):
        arrays = MixtureOfExpertsParameters(
            *(None if part is None else np.asarray(part, float) for part in model)
        )
        try:
            check_parameters(np.zeros(dim + 1), arrays, experts=experts)
        except ValueError as error:
            raise ValueError(f"model {index}: {error}") from error
        if arrays.gate.ndim != 2 or arrays.coefficients.ndim != 2:
            raise ValueError(
                "models must be single ones of univariate outcomes, gate and coefficients "
                f"(experts, features), got {arrays.gate.shape} and {arrays.coefficients.shape} "
                f"for model {index}."
            )
        if not all(np.isfinite(part).all() for part in arrays if part is not None):
            raise ValueError(f"model {index} has parameters that are not finite; fit it again.")
        if arrays.scale is not None and not (arrays.scale > 0.0).all():
            raise ValueError(
                f"scale must be positive, got {arrays.scale.min():.6g} in model {index}."
            )
        plain.append(arrays)
    return tuple(plain)


def warn_if_saturated(pooled: PooledExperts) -> None:
    """Warn where most models are sure of one expert at more than every twentieth row."""
    mass, weights = np.asarray(pooled.mass, float), pooled.weights
    largest = np.stack(
        [mass[:, pooled.shard == index].max(axis=1) for index in range(len(pooled.parameters))],
        axis=1,
    )
    with np.errstate(invalid="ignore", divide="ignore"):
        saturated = largest / weights > 1.0 - 1e-6
    share = float((saturated.mean(axis=1) > 0.5).mean())
    if pooled.counts.max() > 1 and share > 0.05:
        warnings.warn(
            f"at {100 * share:.0f}% of the support's rows most models put all weight on one "
            "expert; is the support inside the range of the data that they were fitted to?",
            UserWarning,
            stacklevel=3,
        )


def _gates(logits: np.ndarray, sizes: Sequence[int]) -> np.ndarray:
    """Softmax within each run of ``sizes`` columns."""
    first = np.concatenate([[0], np.cumsum(sizes)[:-1]])
    largest = np.maximum.reduceat(logits, first, axis=1)
    shares = np.exp(logits - np.repeat(largest, sizes, axis=1))
    return shares / np.repeat(np.add.reduceat(shares, first, axis=1), sizes, axis=1)


def _as_jax(parameters: MixtureOfExpertsParameters) -> MixtureOfExpertsParameters:
    return MixtureOfExpertsParameters(
        *(None if part is None else jnp.asarray(part) for part in parameters)
    )
