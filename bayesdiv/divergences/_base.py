"""The contract of an f-divergence: three functions of the log-ratio."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

from bayesdiv._array import Array, array_namespace
from bayesdiv.divergences._numeric import conjugate_by_inversion


@dataclass(frozen=True)
class FDivergence:
    r"""Csiszár divergence :math:`D_f(p\|q) = E_q[f(u)]` with :math:`u = p/q` and f(1) = f'(1) = 0.

    ``p`` is the target and ``q`` the approximation. Methods take ``log_ratio`` (log u, any shape)
    and return that shape; only ``conjugate`` takes t = f'(u). With l = log u they satisfy

    .. math::

        \frac{d}{dl}\,\mathrm{pseudo\_reward}(l) = \mathrm{path\_weight}(l), \qquad
        \nabla D = -E_q[\mathrm{pseudo\_reward}\,\nabla\log q]
                 = -E_q[\mathrm{path\_weight}\,\nabla_z l\,\partial z/\partial\theta].

    Multiply by positive numbers and add to combine divergences: ``0.5 * d1 + d2``.

    References
    ----------
    Csiszár (1967); Ali and Silvey (1966). The gradients: Wan et al. (2020), f-divergence
    variational inference, §3; Go et al. (2023), f-DPG, theorem 1.

    Examples
    --------
    >>> import torch
    >>> from bayesdiv.divergences import JensenShannon
    >>> log_ratio = torch.tensor([0.0])
    >>> float(JensenShannon().path_weight(log_ratio))
    0.25
    """

    has_path_gradient: ClassVar[bool] = True
    """False where f'' is not a function (total variation): only the score gradient exists."""

    @property
    def needs_normalizer(self) -> bool:
        """False where gradients do not change when p is multiplied by a constant (reverse KL)."""
        return True

    @property
    def tail_exponents(self) -> tuple[float, float] | None:
        """``(a, b)`` with path_weight ~ u^a as u → 0 and u^b as u → ∞; None without path weight."""
        return None

    @property
    def mode_seeking_rank(self) -> int | None:
        """1 for the most mode-seeking; larger ranks punish a missed mode (u → ∞) harder.

        The order is by the growth of the path weight as u → ∞, ties by that as u → 0, counted among
        the named members (Xu et al. 2025, f-distill, table 6). None without tail exponents.
        """
        from bayesdiv.divergences._members import rank_of_tails

        return None if self.tail_exponents is None else rank_of_tails(self.tail_exponents)

    @property
    def value_at_zero(self) -> Any:
        """f(0): what a unit of q's mass costs where p has none."""
        raise NotImplementedError

    @property
    def slope_at_infinity(self) -> Any:
        """lim f(u)/u as u → ∞: what a unit of p's mass costs where q has none."""
        raise NotImplementedError

    @property
    def second_derivative_at_one(self) -> Any:
        """f''(1): near p = q the divergence is half of it times χ²(p‖q)."""
        raise NotImplementedError

    def generator(self, log_ratio: Array) -> Array:
        """f(u) ≥ 0."""
        raise NotImplementedError

    def derivative(self, log_ratio: Array) -> Array:
        """f'(u)."""
        raise NotImplementedError

    def log_path_weight(self, log_ratio: Array) -> Array:
        """log(u² f''(u)), kept as a logarithm so that the caller can normalise it first."""
        raise NotImplementedError

    def path_weight(self, log_ratio: Array) -> Array:
        """u² f''(u)."""
        return array_namespace(log_ratio).exp(self.log_path_weight(log_ratio))

    def pseudo_reward(self, log_ratio: Array) -> Array:
        """u f'(u) − f(u)."""
        xp = array_namespace(log_ratio)
        return xp.exp(log_ratio) * self.derivative(log_ratio) - self.generator(log_ratio)

    def conjugate(self, t: Array) -> Array:
        """f*(t) = sup_u (ut − f(u)); +∞ above the slope at infinity.

        Without a closed form, f'(u) = t is solved by bisection in log u; the gradient is u.
        """
        return conjugate_by_inversion(self, t)

    def between_logits(
        self, p_logits: Array, q_logits: Array, *, mask: Array | None = None, axis: int = -1
    ) -> Array:
        """D(p‖q) of categorical distributions; see :func:`bayesdiv.divergences.between_logits`."""
        from bayesdiv.divergences._categorical import between_logits

        return between_logits(self, p_logits, q_logits, mask=mask, axis=axis)

    def reversed(self) -> FDivergence:
        """D(q‖p) as a function of the same log-ratio log(p/q)."""
        from bayesdiv.divergences._algebra import Reversed

        return Reversed(self)

    def symmetrized(self) -> FDivergence:
        """½ D(p‖q) + ½ D(q‖p)."""
        return 0.5 * self + 0.5 * self.reversed()

    def __add__(self, other: FDivergence) -> FDivergence:
        from bayesdiv.divergences._algebra import combine

        if not isinstance(other, FDivergence):
            return NotImplemented
        return combine([(1.0, self), (1.0, other)])

    def __mul__(self, weight: Any) -> FDivergence:
        from bayesdiv.divergences._algebra import combine

        if isinstance(weight, FDivergence):
            return NotImplemented
        return combine([(weight, self)])

    __rmul__ = __mul__

    @staticmethod
    def from_generator(
        generator: Callable[[Array], Array],
        *,
        log_space: bool = False,
        name: str = "custom",
        check: bool = True,
    ) -> FDivergence:
        """A divergence of your own; see :class:`CustomDivergence`."""
        from bayesdiv.divergences._custom import CustomDivergence

        return CustomDivergence(generator, log_space=log_space, name=name, check=check)
