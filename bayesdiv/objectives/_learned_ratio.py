r"""An f-divergence between two samples, through a critic that learns the log-ratio."""

import math
from dataclasses import dataclass
from typing import Any, NamedTuple

from bayesdiv._array import Array, array_namespace, softplus, stop_gradient
from bayesdiv._control import is_traced, run_compiled
from bayesdiv._random import split_rng, standard_normal
from bayesdiv.divergences import FDivergence, TwoSampleDivergence, get_divergence
from bayesdiv.divergences._inner import Ascent, ascend, start_ascent
from bayesdiv.divergences._two_sample import (
    InnerInfo,
    Samples,
    check_choice,
    check_count,
    check_samples,
    uniform_weights,
)
from bayesdiv.objectives._critic_losses import logistic_loss, variational_bound

# Coordinates that hardly vary are measured in this share of the typical standard deviation.
_LEAST_SPREAD = 0.1


class LearnedRatioState(NamedTuple):
    """The critic's layers with Adam's moments, and the origin and units of its inputs."""

    ascent: Ascent
    center: Array
    scale: Array


@dataclass(frozen=True)
class LearnedRatio(TwoSampleDivergence):
    r"""D_f(p‖q) between a sample ``x`` of p and ``y`` of q, from below, through a learnt log-ratio.

    A critic, a small network with logit l(z), learns l = log p/q; the value is the variational
    bound at T = f'(eˡ),

    .. math:: D_f(p\|q) \ge E_p[f'(e^{l})] - E_q[f^*(f'(e^{l}))]
              = E_p[f'(e^l)] - E_q[\mathrm{pseudo\_reward}(l)],

    tight where l is the log-ratio; an under-trained critic makes it too small, even negative, one
    trained too long on the very same points too large. With l held fixed its gradients are

    .. math:: ∂/∂y: -E_q[\mathrm{path\_weight}(l)\,∇_z l], \qquad
              ∂/∂x: E_p[e^{-l}\,\mathrm{path\_weight}(l)\,∇_z l],

    the first being the path gradient of D_f itself. ``x``, the target, has shape ``(n, dim)``,
    ``y``, the approximation, ``(m, dim)``; not symmetric in them, unless f is.

    Attributes
    ----------
    divergence
        The f-divergence, by name or object, with a path gradient.
    hidden : tuple of int
        Widths of the critic's hidden layers, softplus between them; none gives a linear critic.
    quadratic : bool
        Whether the critic sees the squares of its inputs too; with ``hidden=()`` that is the exact
        form of the log-ratio of Gaussians with diagonal covariances.
    num_steps : int
        Adam updates of one `step`.
    learning_rate : float
        Adam's step size.
    loss : {"logistic", "bound"}
        What the critic climbs: the log-likelihood of telling x from y, which does not depend on f
        and is better behaved, or the bound itself.
    penalty : float
        Multiplies ½ E‖∇l‖² over both samples, in units of the standardised inputs. Keeps logits
        finite where the samples do not overlap; too large, it pulls l towards 0.
    weight_decay : float
        Multiplies ½ the sum of squares of the critic's matrices.
    label_smoothing : float
        Share, below ½, of either sample that the logistic loss takes for the other one; bounds l
        by ±log(1/share − 1), approximately shrinking it everywhere.

    Raises
    ------
    ValueError
        If a setting is outside its domain or the divergence has no path gradient, and as
        `TwoSampleDivergence` says of the samples.
    TypeError
        If ``divergence`` is no f-divergence.

    References
    ----------
    Nguyen, Wainwright and Jordan (2010), equation 8, for the bound; Nowozin, Cseke and Tomioka
    (2016), f-GAN, equation 4; the logistic loss: Sugiyama, Suzuki and Kanamori (2012), §4.2; the
    penalty at the samples themselves: Mescheder, Geiger and Nowozin (2018), equation 9.

    Examples
    --------
    >>> import torch
    >>> generator = torch.Generator().manual_seed(0)
    >>> x, y = torch.randn(2, 500, 1, generator=generator)
    >>> kl = LearnedRatio("reverse_kl", hidden=(), num_steps=300, learning_rate=0.05)
    >>> value = kl(x + 1.0, y, rng=0)  # KL(N(0, 1)‖N(1, 1)) = 0.5
    >>> bool(0.3 < value < 0.7)
    True
    """

    divergence: Any = "jensen_shannon"
    hidden: tuple[int, ...] = (64, 64)
    quadratic: bool = False
    num_steps: int = 20
    learning_rate: float = 2e-3
    loss: str = "logistic"
    penalty: float = 0.01
    weight_decay: float = 0.0
    label_smoothing: float = 0.0

    def __post_init__(self) -> None:
        divergence = get_divergence(self.divergence)
        if not isinstance(divergence, FDivergence):
            raise TypeError(
                f"divergence must be an f-divergence, got {divergence!r}, which compares samples "
                "without a ratio; use it directly."
            )
        if not divergence.has_path_gradient:
            raise ValueError(
                f"divergence must have a path gradient, got {divergence!r}, whose gradient through "
                "samples is zero almost everywhere; use 'jensen_shannon', which is bounded too."
            )
        object.__setattr__(self, "divergence", divergence)
        object.__setattr__(self, "hidden", tuple(self.hidden))
        for width in self.hidden:
            check_count("hidden", width)
        check_count("num_steps", self.num_steps)
        check_choice("loss", self.loss, ("logistic", "bound"))
        if not is_traced(self.learning_rate) and not 0 < self.learning_rate < math.inf:
            raise ValueError(f"learning_rate must be positive, got {self.learning_rate!r}.")
        for name in ("penalty", "weight_decay"):
            number = getattr(self, name)
            if not is_traced(number) and not 0 <= number < math.inf:
                raise ValueError(f"{name} must be finite and at least 0, got {number!r}.")
        smoothing = self.label_smoothing
        if not is_traced(smoothing) and not 0 <= smoothing < 0.5:
            raise ValueError(f"label_smoothing must be in [0, 0.5), got {smoothing!r}.")
        if self.loss == "bound" and not is_traced(smoothing) and smoothing > 0:
            raise ValueError("label_smoothing belongs to loss='logistic', got loss='bound'.")

    def init(self, x: Array, y: Array, *, rng: Any = None) -> LearnedRatioState:
        """A critic that says l = 0, its inputs measured in mean and spread of ``x``, the target."""
        samples = check_samples(x, y)
        xp = array_namespace(samples.x)
        sample = stop_gradient(samples.x)
        center = xp.mean(sample, axis=0)
        variance = xp.mean((sample - center) ** 2, axis=0)
        floored = variance + _LEAST_SPREAD**2 * xp.mean(variance)
        scale = xp.sqrt(xp.where(floored > 0, floored, xp.ones_like(floored)))
        widths = (sample.shape[1] * (2 if self.quadratic else 1), *self.hidden, 1)
        sources = split_rng(rng, sample, len(widths))
        layers = []
        for source, inputs, outputs in zip(sources, widths[:-1], widths[1:], strict=False):
            matrix = standard_normal(source, (inputs, outputs), sample) * inputs**-0.5
            layers += [matrix, xp.zeros_like(matrix[0])]
        layers[-2] = xp.zeros_like(layers[-2])
        return LearnedRatioState(start_ascent(tuple(layers)), center, scale)

    def log_ratio(self, state: LearnedRatioState, z: Array) -> Array:
        """The critic's l(z) ≈ log p(z)/q(z) for ``z`` of shape ``(n, dim)``; shape ``(n,)``."""
        return self._critic(state.ascent.parameters, (z - state.center) / state.scale)[0]

    def step(
        self,
        state: LearnedRatioState,
        x: Array,
        y: Array,
        *,
        x_weights: Array | None = None,
        y_weights: Array | None = None,
        rng: Any = None,
    ) -> tuple[LearnedRatioState, InnerInfo]:
        """``num_steps`` of Adam on the critic, the samples held fixed: ``(state, info)``."""
        samples = check_samples(x, y, x_weights, y_weights)
        detached = Samples(*(None if array is None else stop_gradient(array) for array in samples))
        state, objective = run_compiled(_train_critic, self, detached.x, detached, state)
        return state, InnerInfo(objective)

    def _value(self, state: LearnedRatioState, samples: Samples, rng: Any) -> Array:
        return self._bound(
            self.log_ratio(state, samples.x), self.log_ratio(state, samples.y), samples
        )

    def __call__(
        self,
        x: Array,
        y: Array,
        *,
        x_weights: Array | None = None,
        y_weights: Array | None = None,
        rng: Any = None,
    ) -> Array:
        """The bound after one `step` of a fresh critic, on the points it has learnt from."""
        weights = {"x_weights": x_weights, "y_weights": y_weights}
        state, _ = self.step(self.init(x, y, rng=rng), x, y, **weights)
        return self.evaluate(state, x, y, **weights)

    def _bound(self, at_x: Array, at_y: Array, samples: Samples) -> Array:
        return variational_bound(
            self.divergence,
            at_x,
            at_y,
            p_weights=samples.x_weights,
            q_weights=samples.y_weights,
        )

    def _climbed(self, parameters: tuple[Array, ...], samples: Samples) -> Array:
        """What the critic maximises, for standardised samples."""
        xp = array_namespace(samples.x)
        (at_x, slopes_x), (at_y, slopes_y) = (
            self._critic(parameters, sample, with_slopes=True) for sample in samples[:2]
        )
        a = uniform_weights(samples.x_weights, samples.x)
        b = uniform_weights(samples.y_weights, samples.y)
        if self.loss == "bound":
            value = self._bound(at_x, at_y, samples)
        else:
            value = -logistic_loss(
                at_x, at_y, p_weights=a, q_weights=b, label_smoothing=self.label_smoothing
            )
        squares = a @ xp.sum(slopes_x**2, axis=1) + b @ xp.sum(slopes_y**2, axis=1)
        decay = sum(xp.sum(matrix**2) for matrix in parameters[::2])
        return value - 0.5 * (self.penalty * squares + self.weight_decay * decay)

    def _critic(
        self, parameters: tuple[Array, ...], z: Array, *, with_slopes: bool = False
    ) -> tuple[Array, Any]:
        """l at the rows of standardised ``z``, ``(n,)``, and ∇l, ``(n, dim)``, if wanted.

        The slopes are written out, so that the penalty needs no second differentiation.
        """
        xp = array_namespace(z)
        value = xp.concat([z, z * z], axis=1) if self.quadratic else z
        before = []
        for matrix, shift in zip(parameters[:-2:2], parameters[1:-2:2], strict=True):
            before.append(value @ matrix + shift)
            value = softplus(before[-1])
        last, shift = parameters[-2:]
        logit = (value @ last + shift)[:, 0]
        if not with_slopes:
            return logit, None
        slopes = last.T
        for matrix, inner in zip(parameters[:-2:2][::-1], before[::-1], strict=True):
            slopes = (slopes * xp.exp(-softplus(-inner))) @ matrix.T
        if self.quadratic:
            dim = z.shape[1]
            slopes = slopes[:, :dim] + 2.0 * z * slopes[:, dim:]
        return logit, slopes + xp.zeros_like(z)


def _train_critic(
    ratio: LearnedRatio, like: Array, samples: Samples, state: LearnedRatioState
) -> tuple[LearnedRatioState, Array]:
    standardised = samples._replace(
        x=(samples.x - state.center) / state.scale, y=(samples.y - state.center) / state.scale
    )
    ascent, objective = ascend(
        lambda parameters: ratio._climbed(parameters, standardised),
        state.ascent,
        num_steps=ratio.num_steps,
        learning_rate=ratio.learning_rate,
    )
    return state._replace(ascent=ascent), objective
