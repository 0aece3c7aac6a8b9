"""The mixture of experts for NumPyro."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from numpyro.distributions import Distribution, constraints
from numpyro.util import is_prng_key

from bayesdiv import _mixture_of_experts as formulas
from bayesdiv import _mixture_of_experts_checks as checks
from bayesdiv._control import is_traced
from bayesdiv._mixture_of_experts import MixtureOfExpertsParameters

__all__ = ["MixtureOfExperts"]


class MixtureOfExperts(Distribution):
    r"""Outcomes given features: experts mixed by a softmax gate, the label summed out.

    .. math:: p(y | φ) = Σ_k π_k(φ) \, p_k(y | φ), \qquad π(φ) = \mathrm{softmax}(a_1·φ, …, a_K·φ)

    Parameters
    ----------
    features
        φ, ``(*batch, features)``; put a 1 in front where an intercept is wanted.
    parameters
        ``MixtureOfExpertsParameters(gate, coefficients, scale)``. ``gate`` is
        ``(experts, features)``. Outcomes are numbers with ``coefficients`` ``(experts, features)``
        and ``scale`` ``(experts,)``, standard deviations; they are vectors with
        ``(experts, dim, features)`` and ``(experts, dim, dim)``, lower Cholesky factors. Bernoulli
        experts have logits b_k·φ and no scale. Batch dimensions on the left are allowed.
    experts
        ``"normal"``, ``"student_t"`` or ``"bernoulli"``.
    degrees_of_freedom
        ν of Student's experts: a number, or an array that broadcasts against the batch. Their
        ``scale`` is that of the law, not its standard deviation.
    validate_args
        As everywhere in NumPyro.

    Raises
    ------
    TypeError
        If ``parameters`` has not the three parts.
    ValueError
        If family, parameters and shapes disagree; with validation, if a scale is not positive or
        ν is not, unless they are traced.

    References
    ----------
    Jacobs, Jordan, Nowlan and Hinton (1991), "Adaptive mixtures of local experts".

    Examples
    --------
    >>> features = jnp.array([[1.0, -2.0], [1.0, 2.0]])
    >>> parameters = MixtureOfExpertsParameters(
    ...     gate=jnp.array([[0.0, 9.0], [0.0, 0.0]]),
    ...     coefficients=jnp.array([[1.0, 0.5], [0.0, -1.0]]),
    ...     scale=jnp.array([0.1, 0.2]),
    ... )
    >>> law = MixtureOfExperts(features, parameters)
    >>> law.mean.round(3).tolist()
    [2.0, 2.0]
    >>> law.responsibilities(law.mean).round(3).tolist()
    [[0.0, 1.0], [1.0, 0.0]]
    """

    arg_constraints: dict[str, Any] = {}
    pytree_data_fields = ("features", "parameters", "degrees_of_freedom")
    pytree_aux_fields = ("experts",)
    # The label of a draw is discrete.
    has_rsample = False

    def __init__(
        self,
        features: Any,
        parameters: MixtureOfExpertsParameters,
        *,
        experts: str = "normal",
        degrees_of_freedom: Any = None,
        validate_args: bool | None = None,
    ) -> None:
        if isinstance(parameters, tuple) and len(parameters) == 3:
            parts = [part for part in (features, *parameters) if part is not None]
            dtype = jnp.result_type(float, *parts)
            features = jnp.asarray(features, dtype)
            parameters = MixtureOfExpertsParameters(
                *(None if part is None else jnp.asarray(part, dtype) for part in parameters)
            )
        checks.check_parameters(
            features, parameters, experts=experts, degrees_of_freedom=degrees_of_freedom
        )
        self.features = features
        self.parameters = parameters
        self.experts = experts
        self.degrees_of_freedom = degrees_of_freedom
        dim = formulas.dimension(parameters)
        freedom_shape = () if degrees_of_freedom is None else jnp.shape(degrees_of_freedom)
        batch_shape = jnp.broadcast_shapes(
            features.shape[:-1], freedom_shape, *formulas.parameter_batch_shapes(parameters)
        )
        super().__init__(batch_shape, () if dim is None else (dim,), validate_args=validate_args)

    def validate_args(self, strict: bool = True) -> None:  # noqa: FBT001, FBT002 - NumPyro's own
        super().validate_args(strict)
        scale = self.parameters.scale
        if scale is not None and formulas.dimension(self.parameters) is not None:
            scale = jnp.diagonal(scale, axis1=-2, axis2=-1)
        for name, value in (("scale", scale), ("degrees_of_freedom", self.degrees_of_freedom)):
            if value is not None and not is_traced(value):
                checks.check_positive(np.asarray(value), name)

    @constraints.dependent_property
    def support(self) -> constraints.Constraint:
        if self.experts == "bernoulli":
            return constraints.boolean
        return constraints.real_vector if self.event_shape else constraints.real

    def sample(self, key: jax.Array | None, sample_shape: tuple[int, ...] = ()) -> jax.Array:
        if key is None or not is_prng_key(key):
            raise TypeError(f"key must be a JAX key, got {type(key).__name__}.")
        shape, dtype = tuple(sample_shape) + self.batch_shape, self.features.dtype
        label_key, noise_key, mixing_key = jax.random.split(key, 3)
        draw_noise = jax.random.uniform if self.experts == "bernoulli" else jax.random.normal
        mixing = None
        if self.experts == "student_t":
            half = 0.5 * jnp.asarray(self.degrees_of_freedom, dtype)
            mixing = jax.random.gamma(mixing_key, jnp.broadcast_to(half, shape), dtype=dtype) / half
        return formulas.draw(
            jax.random.uniform(label_key, shape, dtype=dtype),
            draw_noise(noise_key, shape + self.event_shape, dtype=dtype),
            self.features,
            self.parameters,
            experts=self.experts,
            mixing=mixing,
        )

    def log_prob(self, value: Any) -> jax.Array:
        """log p(y | φ), ``(*batch,)``."""
        return formulas.log_prob(self._checked(value), **self._settings)

    def responsibilities(self, value: Any) -> jax.Array:
        """P(expert = k | y, φ), ``(*batch, experts)``; rows sum to 1."""
        return formulas.responsibilities(self._checked(value), **self._settings)

    @property
    def mean(self) -> jax.Array:
        return self._to_batch(formulas.mean(**self._settings))

    @property
    def variance(self) -> jax.Array:
        return self._to_batch(formulas.variance(**self._settings))

    @property
    def covariance_matrix(self) -> jax.Array:
        """Of multivariate experts, within plus between them, ``(*batch, dim, dim)``."""
        found = formulas.covariance(**self._settings)
        return jnp.broadcast_to(found, self.batch_shape + found.shape[-2:])

    @property
    def _settings(self) -> dict[str, Any]:
        return {
            "features": self.features,
            "parameters": self.parameters,
            "experts": self.experts,
            "degrees_of_freedom": self.degrees_of_freedom,
        }

    def _checked(self, value: Any) -> jax.Array:
        value = jnp.asarray(value, self.features.dtype)
        checks.check_value_shape(value.shape, self.event_shape)
        if self._validate_args:
            self._validate_sample(value)
        return value

    def _to_batch(self, moment: jax.Array) -> jax.Array:
        return jnp.broadcast_to(moment, self.batch_shape + self.event_shape)
