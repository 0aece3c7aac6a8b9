r"""The sliced Wasserstein distance: transport along random lines."""

from dataclasses import dataclass
from typing import Any

from bayesdiv._array import Array, array_namespace
from bayesdiv._random import unit_directions
from bayesdiv.divergences._quantiles import transport_on_lines
from bayesdiv.divergences._two_sample import (
    Samples,
    TwoSampleDivergence,
    check_choice,
    check_count,
    check_order,
    check_samples,
    safe_root,
    sample_count,
)


@dataclass(frozen=True)
class SlicedDivergence(TwoSampleDivergence):
    r"""What the sliced members share: the order, the root and the scale of what they report.

    Attributes
    ----------
    order : float
        p of :math:`W_p`, at least 1.
    root : bool
        Whether to report the distance, in units of the data, or its p-th power.
    reduction : {"mean", "sum"}
        ``"sum"`` adds the n matched pairs of a line instead of averaging them: ``n ** (1 / order)``
        times the distance, n times its power. It needs unweighted samples of one size.
    """

    order: float = 2.0
    root: bool = True
    reduction: str = "mean"

    def __post_init__(self) -> None:
        check_order(self.order)
        check_choice("reduction", self.reduction, ("mean", "sum"))

    def _powers(self, samples: Samples, directions: Array) -> Array:
        """W_p^p along each of ``directions``, shape ``(lines, dim)``, in the chosen reduction."""
        powers = transport_on_lines(
            directions @ samples.x.T,
            directions @ samples.y.T,
            samples.x_weights,
            samples.y_weights,
            self.order,
        )
        return powers * sample_count(samples) if self.reduction == "sum" else powers

    def _report(self, power: Array) -> Array:
        return safe_root(power, self.order) if self.root else power


@dataclass(frozen=True)
class SlicedWasserstein(SlicedDivergence):
    r"""Monte Carlo estimate of the sliced Wasserstein distance of order p.

    .. math:: SW_p(\mu, \nu) = \Big(E_{\theta \sim U(S^{d-1})}
              W_p^p(\theta_\#\mu, \theta_\#\nu)\Big)^{1/p}

    ``SlicedWasserstein()(x, y, rng=0)``: ``x`` has shape ``(n, dim)``, ``y`` ``(m, dim)``;
    symmetric in them. The power is unbiased in the directions; both have a floor of order n^(-1/2)
    from sampling.

    Attributes
    ----------
    num_projections : int
        Directions drawn at each evaluation.
    order, root, reduction
        See `SlicedDivergence`.

    Raises
    ------
    ValueError
        If a setting is outside its domain, and as `TwoSampleDivergence` says of the samples.

    References
    ----------
    Bonneel, Rabin, Peyré, Pfister (2015), Sliced and Radon Wasserstein barycenters, eq. 7.
    """

    num_projections: int = 64

    def __post_init__(self) -> None:
        super().__post_init__()
        check_count("num_projections", self.num_projections)

    def along(
        self,
        x: Array,
        y: Array,
        directions: Array,
        *,
        x_weights: Array | None = None,
        y_weights: Array | None = None,
    ) -> Array:
        """The distance over given unit ``directions``, shape ``(lines, dim)``."""
        samples = check_samples(x, y, x_weights, y_weights)
        if directions.ndim != 2 or directions.shape[1] != x.shape[1]:
            raise ValueError(
                f"directions must have shape (lines, {x.shape[1]}), got {tuple(directions.shape)}."
            )
        return self._mean_along(samples, directions)

    def _mean_along(self, samples: Samples, directions: Array) -> Array:
        powers = self._powers(samples, directions)
        return self._report(array_namespace(powers).mean(powers))

    def _value(self, state: Any, samples: Samples, rng: Any) -> Array:
        dim = samples.x.shape[1]
        return self._mean_along(samples, unit_directions(rng, self.num_projections, dim, samples.x))
