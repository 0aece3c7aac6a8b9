"""The mixture of experts for Pyro."""

from __future__ import annotations

from functools import reduce
from typing import Any

import torch
from pyro.distributions import constraints
from pyro.distributions.torch_distribution import TorchDistribution

from bayesdiv import _mixture_of_experts as formulas
from bayesdiv import _mixture_of_experts_checks as checks
from bayesdiv._mixture_of_experts import MixtureOfExpertsParameters

__all__ = ["MixtureOfExperts"]


class MixtureOfExperts(TorchDistribution):
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
        As everywhere in Pyro.

    Raises
    ------
    TypeError
        If ``parameters`` has not the three parts.
    ValueError
        If family, parameters and shapes disagree; with validation, if a scale or ν is not
        positive.

    References
    ----------
    Jacobs, Jordan, Nowlan and Hinton (1991), "Adaptive mixtures of local experts".

    Examples
    --------
    >>> features = torch.tensor([[1.0, -2.0], [1.0, 2.0]])
    >>> parameters = MixtureOfExpertsParameters(
    ...     gate=torch.tensor([[0.0, 9.0], [0.0, 0.0]]),
    ...     coefficients=torch.tensor([[1.0, 0.5], [0.0, -1.0]]),
    ...     scale=torch.tensor([0.1, 0.2]),
    ... )
    >>> law = MixtureOfExperts(features, parameters)
    >>> law.mean
    tensor([2., 2.])
    >>> law.responsibilities(law.mean).round()
    tensor([[0., 1.],
            [1., 0.]])
    """

    arg_constraints = {}
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
            features, *parts = _in_one_dtype(features, *parameters)
            parameters = MixtureOfExpertsParameters(*parts)
        checks.check_parameters(
            features, parameters, experts=experts, degrees_of_freedom=degrees_of_freedom
        )
        self.features = features
        self.parameters = parameters
        self.experts = experts
        self.degrees_of_freedom = degrees_of_freedom
        dim = formulas.dimension(parameters)
        freedom_shape = getattr(degrees_of_freedom, "shape", ())
        batch_shape = torch.broadcast_shapes(
            features.shape[:-1], freedom_shape, *formulas.parameter_batch_shapes(parameters)
        )
        super().__init__(
            batch_shape,
            torch.Size() if dim is None else torch.Size((dim,)),
            validate_args=validate_args,
        )
        if self._validate_args:
            scale = parameters.scale
            if scale is not None and dim is not None:
                scale = scale.diagonal(dim1=-2, dim2=-1)
            for name, value in (("scale", scale), ("degrees_of_freedom", degrees_of_freedom)):
                if value is not None:
                    checks.check_positive(torch.as_tensor(value), name)

    def expand(self, batch_shape: Any, _instance: MixtureOfExperts | None = None) -> Any:
        new = self._get_checked_instance(MixtureOfExperts, _instance)
        batch_shape = torch.Size(batch_shape)
        new.features = self.features.expand(batch_shape + self.features.shape[-1:])
        for name in ("parameters", "experts", "degrees_of_freedom"):
            setattr(new, name, getattr(self, name))
        super(MixtureOfExperts, new).__init__(batch_shape, self.event_shape, validate_args=False)
        new._validate_args = self._validate_args
        return new

    @constraints.dependent_property
    def support(self) -> Any:
        if self.experts == "bernoulli":
            return constraints.boolean
        return constraints.real_vector if self.event_shape else constraints.real

    def sample(self, sample_shape: Any = torch.Size()) -> torch.Tensor:  # noqa: B008 - torch's own
        shape = torch.Size(sample_shape) + self.batch_shape
        like = {"dtype": self.features.dtype, "device": self.features.device}
        draw_noise = torch.rand if self.experts == "bernoulli" else torch.randn
        mixing = None
        with torch.no_grad():
            if self.experts == "student_t":
                half = 0.5 * torch.as_tensor(self.degrees_of_freedom, **like)
                mixing = torch._standard_gamma(half.expand(shape).contiguous()) / half
            return formulas.draw(
                torch.rand(shape, **like),
                draw_noise(shape + self.event_shape, **like),
                self.features,
                self.parameters,
                experts=self.experts,
                mixing=mixing,
            )

    def log_prob(self, value: torch.Tensor) -> torch.Tensor:
        """log p(y | φ), ``(*batch,)``."""
        return formulas.log_prob(self._checked(value), **self._settings)

    def responsibilities(self, value: torch.Tensor) -> torch.Tensor:
        """P(expert = k | y, φ), ``(*batch, experts)``; rows sum to 1."""
        return formulas.responsibilities(self._checked(value), **self._settings)

    @property
    def mean(self) -> torch.Tensor:
        return formulas.mean(**self._settings).expand(self.batch_shape + self.event_shape)

    @property
    def variance(self) -> torch.Tensor:
        return formulas.variance(**self._settings).expand(self.batch_shape + self.event_shape)

    @property
    def covariance_matrix(self) -> torch.Tensor:
        """Of multivariate experts, within plus between them, ``(*batch, dim, dim)``."""
        found = formulas.covariance(**self._settings)
        return found.expand(self.batch_shape + found.shape[-2:])

    @property
    def _settings(self) -> dict[str, Any]:
        return {
            "features": self.features,
            "parameters": self.parameters,
            "experts": self.experts,
            "degrees_of_freedom": self.degrees_of_freedom,
        }

    def _checked(self, value: torch.Tensor) -> torch.Tensor:
        value = value.to(self.features.dtype)
        checks.check_value_shape(tuple(value.shape), tuple(self.event_shape))
        if self._validate_args:
            self._validate_sample(value)
        return value


def _in_one_dtype(*parts: Any) -> list[torch.Tensor | None]:
    tensors = [None if part is None else torch.as_tensor(part) for part in parts]
    kinds = [tensor.dtype for tensor in tensors if tensor is not None]
    floating = [kind for kind in kinds if kind.is_floating_point]
    dtype = reduce(torch.promote_types, floating) if floating else torch.get_default_dtype()
    return [None if tensor is None else tensor.to(dtype) for tensor in tensors]
