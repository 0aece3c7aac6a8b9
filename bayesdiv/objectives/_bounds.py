"""Objectives that users know by name and that are not an f-divergence of single log-ratios."""

from dataclasses import dataclass
from typing import Any

from bayesdiv.divergences._checks import is_concrete_number, require_finite


@dataclass(frozen=True)
class RenyiBound:
    r"""Minus the variational Rényi bound, log-mean w^{1 − order} over the particles / (1 − order).

    Order 0 is the importance-weighted bound (IWAE), orders towards 1 approach the ELBO. Hosts call
    the order alpha; it is not the order of :class:`~bayesdiv.divergences.Alpha`.

    Raises
    ------
    ValueError
        ``order`` is 1 or not finite.

    References
    ----------
    Li and Turner (2016), eq. 14; Burda et al. (2016), eq. 8; Tucker et al. (2019), eq. 8, for the
    path gradient.
    """

    order: Any = 0.5

    def __post_init__(self) -> None:
        require_finite("order", self.order)
        if is_concrete_number(self.order) and self.order == 1.0:
            raise ValueError("order must not be 1, where the bound is the ELBO; use 'reverse_kl'.")

    min_particles = 1
    has_path_gradient = True
    is_linear = False
    has_score_gradient = True


@dataclass(frozen=True)
class TailAdaptive:
    r"""Path gradients weighted by ranks: γ_k ∝ (share of particles with w_j ≥ w_k)^exponent.

    The weights follow an f-divergence that adapts to the tail of the ratio, so that its moments
    stay finite. The value reported is minus the ELBO.

    Raises
    ------
    ValueError
        ``exponent`` is outside [−1, 0).

    References
    ----------
    Wang, Liu and Liu (2018), Variational inference with tail-adaptive f-divergence, algorithm 1.
    """

    exponent: float = -1.0

    def __post_init__(self) -> None:
        require_finite("exponent", self.exponent)
        if is_concrete_number(self.exponent) and not -1.0 <= self.exponent < 0.0:
            raise ValueError(f"exponent must be in [-1, 0), got {self.exponent!r}.")

    min_particles = 2
    has_path_gradient = True
    is_linear = False
    has_score_gradient = False


def importance_weighted() -> RenyiBound:
    """The importance-weighted bound (IWAE): the Rényi bound of order 0."""
    return RenyiBound(order=0.0)
