"""What a mixture of experts may be made of; messages for what it may not."""

from __future__ import annotations

from typing import Any

from bayesdiv._mixture_of_experts import EXPERTS, MixtureOfExpertsParameters, dimension

__all__ = ["check_parameters", "check_positive", "check_value_shape"]


def check_parameters(
    features: Any,
    parameters: Any,
    *,
    experts: str = "normal",
    degrees_of_freedom: Any = None,
) -> None:
    """Raise unless shapes and family agree; looks at shapes, never at numbers.

    Raises
    ------
    TypeError
        If ``parameters`` has not the three parts.
    ValueError
        If the family is unknown, it and its parameters disagree, or a shape does.
    """
    if experts not in EXPERTS:
        raise ValueError(f"experts must be one of {EXPERTS}, got {experts!r}.")
    if not isinstance(parameters, tuple) or len(parameters) != 3:
        raise TypeError(
            "parameters must be MixtureOfExpertsParameters(gate, coefficients, scale), got "
            f"{type(parameters).__name__}."
        )
    gate, coefficients, scale = parameters
    if (experts == "student_t") != (degrees_of_freedom is not None):
        raise ValueError(
            f"degrees_of_freedom goes with experts='student_t' and only with it, got experts="
            f"{experts!r} and degrees_of_freedom={degrees_of_freedom!r}."
        )
    if (experts == "bernoulli") != (scale is None):
        given = "None" if scale is None else f"an array of shape {tuple(scale.shape)}"
        raise ValueError(
            f"scale must be None for experts='bernoulli' and only for them, got {given} for "
            f"experts={experts!r}."
        )
    if features.ndim < 1 or gate.ndim < 2 or coefficients.ndim < 2:
        raise ValueError(
            "features must be (*batch, features), gate (experts, features) and coefficients "
            f"(experts, features) or (experts, dim, features), got {tuple(features.shape)}, "
            f"{tuple(gate.shape)} and {tuple(coefficients.shape)}."
        )
    if scale is not None and scale.ndim not in (coefficients.ndim - 1, coefficients.ndim):
        raise ValueError(
            "scale must have one dimension less than coefficients (standard deviations) or as "
            f"many (Cholesky factors), got {tuple(scale.shape)} for coefficients of shape "
            f"{tuple(coefficients.shape)}."
        )
    width, num_experts = features.shape[-1], gate.shape[-2]
    dim = dimension(MixtureOfExpertsParameters(gate, coefficients, scale))
    experts_shape = (num_experts,) if dim is None else (num_experts, dim)
    wanted = {"gate": (num_experts, width), "coefficients": (*experts_shape, width)}
    if scale is not None:
        wanted["scale"] = (num_experts,) if dim is None else (num_experts, dim, dim)
    for name, shape in wanted.items():
        found = tuple(getattr(parameters, name).shape)
        if found[-len(shape) :] != shape:
            raise ValueError(
                f"{name} must end in {shape} for {width} features and {num_experts} experts, "
                f"got shape {found}."
            )


def check_value_shape(shape: tuple[int, ...], event_shape: tuple[int, ...]) -> None:
    """Raise a ValueError unless ``shape``, that of an outcome, ends in ``event_shape``."""
    if len(shape) < len(event_shape) or tuple(shape[len(shape) - len(event_shape) :]) != (
        event_shape
    ):
        raise ValueError(
            f"value must have shape (*batch, {event_shape[0]}) for these experts, got "
            f"{tuple(shape)}."
        )


def check_positive(values: Any, name: str) -> None:
    """Raise a ValueError unless all of ``values``, an array that can be looked at, is positive."""
    if not bool((values > 0.0).all()):
        raise ValueError(f"{name} must be positive, got values down to {float(values.min()):.6g}.")
