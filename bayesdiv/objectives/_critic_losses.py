r"""What a critic with logit l is trained on and judged by, from its values at the two samples."""

from __future__ import annotations

from bayesdiv._array import Array, array_namespace, softplus
from bayesdiv.divergences import FDivergence


def logistic_loss(
    p_logits: Array,
    q_logits: Array,
    *,
    p_weights: Array | None = None,
    q_weights: Array | None = None,
    label_smoothing: float = 0.0,
) -> Array:
    """E_p softplus(−l) + E_q softplus(l): least, at 2 log 2 − 2 JS(p, q), where l = log p/q.

    Each class counts with its mean, however many rows it has. ``label_smoothing`` is the share of
    either class that is taken for the other.
    """
    s = label_smoothing
    at_p = softplus(-p_logits) + s * p_logits
    at_q = softplus(q_logits) - s * q_logits
    return _average(at_p, p_weights) + _average(at_q, q_weights)


def variational_bound(
    divergence: FDivergence,
    p_logits: Array,
    q_logits: Array,
    *,
    p_weights: Array | None = None,
    q_weights: Array | None = None,
) -> Array:
    """E_p[f'(eˡ)] − E_q[pseudo_reward(l)] ≤ D_f(p‖q), tight where l = log p/q.

    Nguyen, Wainwright and Jordan (2010), equation 8, at T = f'(eˡ).
    """
    at_p, at_q = divergence.derivative(p_logits), divergence.pseudo_reward(q_logits)
    return _average(at_p, p_weights) - _average(at_q, q_weights)


def _average(values: Array, weights: Array | None) -> Array:
    return array_namespace(values).mean(values) if weights is None else weights @ values
