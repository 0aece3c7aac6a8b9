"""Objectives on two samples: what is compared, with which weights, and how inner state is kept."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from bayesdiv._array import Array, array_namespace, softmax, stop_gradient
from bayesdiv.divergences import FDivergence, TwoSampleDivergence, get_divergence

SPACES = ("latent", "data", "codes")
DEFAULT_PARTICLES = {"latent": 64, "data": 8, "codes": 1}
_MIN_PARTICLES = {"latent": 2, "data": 1, "codes": 1}
_SPACES_OF_OPTION = {
    "standardize": ("latent", "data"),
    "reference": ("latent",),
    "context": ("data",),
    "prior_scale": ("data",),
    "penalty": ("codes",),
}


@dataclass(frozen=True)
class SampleSettings:
    """A two-sample divergence as an objective, checked once at construction.

    Parameters
    ----------
    divergence
        A name, or a :class:`~bayesdiv.divergences.TwoSampleDivergence`.
    parameters
        Of a named divergence.
    space
        "latent", "data" or "codes": which samples are compared.
    num_particles
        None: 64 draws of the guide in "latent", 8 in "data", 1 in "codes".
    warmup
        Steps of reverse KL before the divergence takes over.
    standardize
        "latent" and "data": divide each coordinate by its standard deviation first.
    reference
        "latent": draws of the posterior, ``{site: (n, *shape)}``.
    context
        "data": covariates ``(rows, c)``, or a callable of the model's arguments that returns them.
    prior_scale
        "data": multiplies −E log p(z).
    penalty
        "codes": multiplies the divergence.
    """

    divergence: Any
    parameters: dict[str, Any] = field(default_factory=dict)
    space: str = "latent"
    num_particles: int | None = None
    warmup: int = 0
    standardize: bool = True
    reference: Mapping[str, Any] | None = field(default=None, compare=False)
    context: Any = field(default=None, compare=False)
    prior_scale: float = 0.0
    penalty: float = 1.0

    def __post_init__(self) -> None:
        if self.space not in SPACES:
            raise ValueError(
                f"space must be 'latent' (guide against posterior), 'data' (posterior predictive "
                f"against observations) or 'codes' (aggregated guide against prior), got "
                f"{self.space!r}."
            )
        divergence = get_divergence(self.divergence, **self.parameters)
        if not isinstance(divergence, TwoSampleDivergence):
            kind = "an f-divergence" if isinstance(divergence, FDivergence) else "no divergence"
            raise TypeError(
                f"divergence must compare two samples, such as 'sliced_wasserstein', got "
                f"{divergence!r}, {kind}; pass it to objective(...), which takes both."
            )
        object.__setattr__(self, "divergence", divergence)
        object.__setattr__(self, "parameters", {})
        _check_whole_number("warmup", self.warmup, 0)
        count, least = self.num_particles, _MIN_PARTICLES[self.space]
        if count is None:
            object.__setattr__(self, "num_particles", DEFAULT_PARTICLES[self.space])
        elif _check_whole_number("num_particles", count, 1) < least:
            raise ValueError(
                f"num_particles must be at least {least} in space='latent', whose importance "
                f"weights are normalised over them, got {count}; 64 is usual."
            )
        for name in ("prior_scale", "penalty"):
            number = getattr(self, name)
            if isinstance(number, int | float) and not 0.0 <= number < math.inf:
                raise ValueError(f"{name} must be finite and at least 0, got {number!r}.")

    @property
    def count(self) -> int:
        """The number of particles."""
        assert self.num_particles is not None
        return self.num_particles

    @property
    def has_inner_state(self) -> bool:
        """Whether the divergence learns something of its own, such as a projection."""
        return type(self.divergence).init is not TwoSampleDivergence.init


def sample_settings(
    divergence: Any,
    *,
    space: str = "latent",
    num_particles: int | None = None,
    warmup: int = 0,
    **options: Any,
) -> SampleSettings:
    """Settings from the arguments of ``objective(...)``; what is no option parametrises the name.

    Raises
    ------
    ValueError
        An unknown space or name, an option of another space, or too few particles.
    TypeError
        A divergence that does not compare samples.
    """
    own = {name: options.pop(name) for name in _SPACES_OF_OPTION if name in options}
    settings = SampleSettings(
        divergence, options, space=space, num_particles=num_particles, warmup=warmup, **own
    )
    for name in own:
        if space not in _SPACES_OF_OPTION[name]:
            where = " or ".join(f"space={owner!r}" for owner in _SPACES_OF_OPTION[name])
            raise ValueError(f"{name} is an option of {where}, got it with space={space!r}.")
    return settings


class Pair(NamedTuple):
    """Target sample ``x``, shape ``(n, dim)``, approximation ``y``, ``(m, dim)``; row weights."""

    x: Array
    y: Array
    x_weights: Array | None = None
    y_weights: Array | None = None


def importance_weights(log_weight: Array) -> Array:
    """w_k ∝ exp(log_weight_k), summing to one, as constants of differentiation."""
    return softmax(stop_gradient(log_weight))


def posterior_pair(y: Array, log_weight: Array) -> Pair:
    r"""The guide's draws as an importance sample of the posterior, against themselves.

    x is ``y`` detached, ``(num_particles, dim)``, with self-normalised weights
    w_k ∝ exp(log_weight_k), ``(num_particles,)``; ``y`` is uniform. Where the guide is the
    posterior the weights are uniform too, so that every divergence and its gradient vanish.
    """
    return Pair(stop_gradient(y), y, importance_weights(log_weight), None)


def effective_size(log_weight: Array) -> Array:
    """Effective number of draws behind the weights, 1 / Σ w_k², in [1, num_particles]."""
    weights = importance_weights(log_weight)
    return 1.0 / array_namespace(weights).sum(weights * weights)


def row_weights(*factors: Any, rows: int) -> Array | None:
    """Weights ∝ the product of masks and scales of a site's rows, None where those are constant.

    Each factor is a number, None, or an array with one entry a row.
    """
    product: Any = None
    for factor in factors:
        if getattr(factor, "ndim", 0):
            product = factor * 1.0 if product is None else product * factor
    if product is None:
        return None
    if tuple(product.shape) != (rows,):
        raise ValueError(f"weights of rows must have shape ({rows},), got {tuple(product.shape)}.")
    return stop_gradient(product) / array_namespace(product).sum(stop_gradient(product))


def predictive_pair(
    observed: Array,
    predicted: Array,
    *,
    weights: Array | None = None,
    context: Array | None = None,
    site: str = "",
) -> Pair:
    """Observed rows ``(n, dim)`` against ``(num_particles · n, dim)`` predicted ones, pooled.

    ``weights``, ``(n,)``, belong to the rows of both; ``context``, ``(n, c)``, is joined to both,
    so that it is the joint law of covariates and outcome which is compared.
    """
    xp = array_namespace(predicted)
    count = predicted.shape[0] // observed.shape[0]
    observed = xp.astype(observed, predicted.dtype)
    if context is not None:
        shape = tuple(getattr(context, "shape", ()))
        if len(shape) != 2 or shape[0] != observed.shape[0]:
            raise ValueError(
                f"context must have shape ({observed.shape[0]}, c), one row for each row of site "
                f"{site!r}, got {shape}; where rows are subsampled pass a callable of the model's "
                "arguments."
            )
        context = xp.astype(context, predicted.dtype)
        observed = xp.concat([context, observed], axis=1)
        predicted = xp.concat([xp.concat([context] * count, axis=0), predicted], axis=1)
    if weights is None:
        return Pair(observed, predicted)
    weights = xp.astype(weights, predicted.dtype)
    # Masked rows may hold NaN for what is missing.
    observed = xp.where(weights[:, None] > 0, observed, xp.zeros_like(observed))
    return Pair(observed, predicted, weights, xp.concat([weights] * count) / count)


def standardize(pair: Pair, sample: Array, weights: Array | None = None) -> Pair:
    """Divide both sides by the detached standard deviations of ``sample``, 1 where they are 0."""
    xp = array_namespace(sample)
    sample = stop_gradient(sample)
    if weights is None:
        mean = xp.mean(sample, axis=0)
        variance = xp.mean((sample - mean) ** 2, axis=0)
    else:
        mean = xp.sum(weights[:, None] * sample, axis=0)
        variance = xp.sum(weights[:, None] * (sample - mean) ** 2, axis=0)
    scale = xp.where(variance > 0, xp.sqrt(variance), xp.ones_like(variance))
    return pair._replace(x=pair.x / scale, y=pair.y / scale)


def flatten_reference(
    reference: Mapping[str, Any],
    shapes: Mapping[str, tuple[int, ...]],
    unconstrain: Callable[[str, Any], Any],
) -> Array:
    """Reference draws as ``(n, dim)``, sites in the order of ``shapes``, unconstrained.

    Raises
    ------
    ValueError
        A latent site without draws, draws whose shape is not ``(n, *shape)``, or different n.
    """
    missing = [name for name in shapes if name not in reference]
    if missing:
        raise ValueError(
            f"reference must have draws of every latent site; {missing} are missing and "
            f"{sorted(reference)} were given."
        )
    sizes = {name: tuple(reference[name].shape)[:1] for name in shapes}
    count = next(iter(sizes.values()))
    columns = []
    for name, shape in shapes.items():
        draws = reference[name]
        if tuple(draws.shape) != (*count, *shape) or draws.ndim != len(shape) + 1:
            raise ValueError(
                f"reference[{name!r}] must have shape (n, {', '.join(map(str, shape))}) with the "
                f"same n at every site, got {tuple(draws.shape)}; chains are joined to one axis."
            )
        value = unconstrain(name, draws)
        columns.append(value.reshape((draws.shape[0], -1)))
    return stop_gradient(array_namespace(*columns).concat(columns, axis=1))


def compare(
    divergence: TwoSampleDivergence,
    pair: Pair,
    *,
    state: Any = None,
    rng: tuple[Any, Any] = (None, None),
    advance: bool = True,
) -> tuple[Array, Any]:
    """``(D(x‖y), state)``, after one inner step where the divergence learns and keeps ``state``.

    With ``state=None`` the divergence starts afresh, runs its own inner steps, and keeps nothing.
    ``rng`` serves the inner step and the evaluation.
    """
    weights = {"x_weights": pair.x_weights, "y_weights": pair.y_weights}
    if state is None:
        return divergence(pair.x, pair.y, **weights, rng=rng[0]), None
    if advance:
        state, _ = divergence.step(state, pair.x, pair.y, **weights, rng=rng[0])
    return divergence.evaluate(state, pair.x, pair.y, **weights, rng=rng[1]), state


def _check_whole_number(name: str, value: Any, least: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise ValueError(f"{name} must be an integer >= {least}, got {value!r}.")
    return value
