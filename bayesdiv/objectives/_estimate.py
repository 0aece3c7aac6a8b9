"""The estimate of an objective from the log-weights of particles."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

from bayesdiv._array import Array, array_namespace, log_mean_exp, logsumexp, stop_gradient
from bayesdiv.divergences import FDivergence
from bayesdiv.objectives._coefficients import Coefficients, coefficients
from bayesdiv.objectives._registry import get_objective, require_log_weight_objective

GRADIENTS = ("path", "reparam", "score")


class Estimate(NamedTuple):
    """One step's estimate; a pytree, so that a compiled function may return it.

    ``loss`` has the value of ``value`` and the gradient of ``surrogate``; all three are scalars,
    summed over the independent plates and multiplied by their scale. ``log_weight`` is detached.
    """

    surrogate: Array
    value: Array
    log_weight: Array
    scale: Any = 1.0

    @property
    def loss(self) -> Array:
        """Report and differentiate this one."""
        return self.value + (self.surrogate - stop_gradient(self.surrogate))

    @property
    def log_evidence(self) -> Array:
        """log-mean-exp of the weights, summed over plates: the importance-weighted bound, nats."""
        xp = array_namespace(self.log_weight)
        return self.scale * xp.sum(log_mean_exp(self.log_weight, axis=0))

    @property
    def ess(self) -> Array:
        """Effective sample size of the weights for each plate, in [1, num_particles]."""
        xp = array_namespace(self.log_weight)
        return xp.exp(2.0 * logsumexp(self.log_weight, 0) - logsumexp(2.0 * self.log_weight, 0))

    @property
    def pareto_k(self) -> Any:
        """Pareto shape of the weights' tail for each plate (NumPy); below 0.7 trust them."""
        from bayesdiv.objectives._pareto import pareto_k

        return pareto_k(self.log_weight)


def check_gradient(rule: Any, gradient: str, num_particles: int, *, with_score: bool) -> None:
    """Raise unless ``rule`` has this gradient estimator with so many particles."""
    name = type(rule).__name__
    if gradient not in GRADIENTS:
        raise ValueError(
            f"gradient must be 'path', 'reparam' or 'score', got {gradient!r}; 'auto' is resolved "
            "by the adapters, which know the guide's sites."
        )
    if gradient == "path" and not rule.has_path_gradient:
        raise ValueError(
            f"gradient='path' does not exist for {name}: its f'' is a point mass at u = 1; "
            "use gradient='score'."
        )
    if not getattr(rule, "has_score_gradient", True) and (with_score or gradient != "path"):
        raise ValueError(
            f"{name} is defined by its path gradient and has no {gradient!r} gradient or score "
            "term; make every guide site reparameterised, or use 'renyi' or an f-divergence."
        )
    # One particle has no baseline. Reverse KL does without, as the hosts' ELBO; other rewards are
    # normalised over the particles and would be constants.
    with_baseline = with_score and not is_linear(rule)
    needed = max(2 if with_baseline else 1, getattr(rule, "min_particles", 1))
    if num_particles < needed:
        reason = "the leave-one-out baseline" if with_baseline else name
        raise ValueError(
            f"num_particles must be at least {needed} for {reason}, got {num_particles}."
        )


def estimate(
    objective: Any,
    log_weight: Array,
    *,
    gradient: str = "path",
    log_q: Array | None = None,
    log_normalizer: Any = None,
    scale: Any = 1.0,
) -> Estimate:
    r"""Estimate D_f(p‖q), or a bound, from log p̃(z) − log q(z) at particles z of the guide q.

    ==========  ==================================================  ==============================
    gradient    graph that ``log_weight`` must carry                 surrogate, l = log-ratio
    ==========  ==================================================  ==============================
    "path"      through z (and the model's parameters) only:        −mean(path_weight(l) · L)
                parameters are held fixed inside log q
    "reparam"   everything                                          −mean((f''(1)u − u f'(u)) · L)
    "score"     the model's parameters only, z held fixed           −mean(pseudo_reward(l) · log q)
    ==========  ==================================================  ==============================

    With ``log_q`` in the first two, sites in it are not reparameterised and get score terms: the
    gradients of mixed guides. Score rewards have a leave-one-out baseline. The ratio is clipped to
    ±43 (float32) or ±350 (float64) before it is exponentiated.

    Parameters
    ----------
    objective
        A name, an :class:`FDivergence`, a :class:`RenyiBound` or a :class:`TailAdaptive`.
    log_weight
        ``(num_particles, *independent_plates)``, nats.
    log_q
        Log-density of the sites that need the score function, same shape; None if there are none.
    log_normalizer
        log Z, shape ``independent_plates``; None self-normalises over the particles, with bias
        O(1/num_particles). Reverse KL and the bounds need none; reverse KL's value is minus the
        ELBO.
    scale
        Multiplies the sum over plates: full size over subsample size.

    Raises
    ------
    ValueError
        An unknown name; an estimator that does not exist for the objective, lacks ``log_q`` or has
        too few particles; shapes that differ.
    TypeError
        ``objective`` compares samples, or is neither a name nor an objective.

    References
    ----------
    "path": Roeder, Wu and Duvenaud (2017), §3, for reverse KL; Tucker et al. (2019), eq. 8, for the
    bounds. "score": Go et al. (2023), f-DPG, theorem 1; Mnih and Rezende (2016), eq. 10, for the
    bounds.

    Examples
    --------
    The forward KL of p = N(1, 1) and q = N(m, 1) at m = 0, whose gradient is m − 1:

    >>> import torch
    >>> from torch.distributions import Normal
    >>> from bayesdiv.objectives import estimate
    >>> m = torch.zeros((), dtype=torch.float64, requires_grad=True)
    >>> noise = torch.randn(100_000, dtype=m.dtype, generator=torch.Generator().manual_seed(0))
    >>> z = m + noise
    >>> log_weight = Normal(1.0, 1.0).log_prob(z) - Normal(m.detach(), 1.0).log_prob(z)
    >>> result = estimate("forward_kl", log_weight, gradient="path")
    >>> result.loss.backward()
    >>> round(result.value.item(), 1), round(m.grad.item(), 1)
    (0.5, -1.0)
    """
    rule = get_objective(objective)
    require_log_weight_objective(rule)
    if log_weight.ndim == 0:
        raise ValueError("log_weight must have shape (num_particles, *plates), got a scalar.")
    if gradient == "score" and log_q is None:
        raise ValueError("log_q is needed for gradient='score', shape (num_particles, *plates).")
    if log_q is not None and log_q.shape != log_weight.shape:
        raise ValueError(
            f"log_q must have the shape of log_weight, {tuple(log_weight.shape)}, "
            f"got {tuple(log_q.shape)}; sum it over all but particles and independent plates."
        )
    check_gradient(rule, gradient, log_weight.shape[0], with_score=log_q is not None)
    fixed = stop_gradient(log_weight)
    if log_normalizer is None and getattr(rule, "needs_normalizer", False):
        log_normalizer = log_mean_exp(fixed, axis=0)
    parts = coefficients(
        rule,
        fixed,
        gradient=gradient,
        log_normalizer=log_normalizer,
        with_reward=log_q is not None,
    )
    return assemble(parts, log_weight, log_q, scale=scale)


def assemble(
    parts: Coefficients, log_weight: Array, log_q: Array | None, *, scale: Any = 1.0
) -> Estimate:
    """The estimate whose surrogate has the given coefficients."""
    xp = array_namespace(log_weight)
    count = log_weight.shape[0]
    # A particle where the target has no mass has nothing to differentiate, only a value.
    terms = parts.weight * xp.where(log_weight == -math.inf, xp.zeros_like(log_weight), log_weight)
    total = xp.sum(terms)
    if log_q is not None:
        total = total + xp.sum(parts.reward * log_q)
    return Estimate(
        surrogate=total * (-scale / count),
        value=scale * xp.sum(parts.value),
        log_weight=stop_gradient(log_weight),
        scale=scale,
    )


def is_linear(objective: Any) -> bool:
    """Whether the objective is linear in the log-weight: plates may be subsampled freely."""
    return isinstance(objective, FDivergence) and not objective.needs_normalizer
