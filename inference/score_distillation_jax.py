"""Score distillation with an explicit guide, in JAX: a pure ``init``/``step`` pair."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from bayesdiv.inference._distillation_settings import DistillationSettings
from bayesdiv.inference._ratio_weights import effective_sample_size, ratio_weights

__all__ = ["ExplicitDistillation", "ExplicitInfo", "ExplicitState"]


class ExplicitState(NamedTuple):
    """What the next step needs; ``log_mean``, ``(1,)``, is the running log-evidence."""

    parameters: Any
    optimizer: Any
    log_mean: jax.Array
    rng: jax.Array


class ExplicitInfo(NamedTuple):
    """Scalars of a step: the weights' largest and effective sample size, the mean of the ratio that
    stage 1 left, rows left out, whether the step was skipped, and the gradient's norm."""

    weight_max: jax.Array
    weight_ess: jax.Array
    log_ratio: jax.Array
    dropped: jax.Array
    skipped: jax.Array
    gradient_norm: jax.Array


@dataclass(frozen=True, eq=False)
class ExplicitDistillation:
    r"""Fits q to p by −E[path_weight(l) ∇_z l · ∂z/∂θ], l = log p̃ − log q less the log-evidence.

    `bayesdiv.inference.score_distillation.ScoreDistillation` without noise and with exact parts:
    the same weights, for a posterior known up to its evidence. ``step`` compiles, maps and scans.

    Attributes
    ----------
    sample
        ``sample(parameters, rng, count)``: draws of q, ``(count, dim)``, reparameterised.
    log_q
        ``log_q(parameters, z)``, ``(n,)``; differentiated in ``z`` alone.
    log_p
        ``log_p(z)``, ``(n,)``: log p̃, its constant unknown.
    optimizer
        An Optax transformation.
    settings
        `bayesdiv.inference.score_distillation.DistillationSettings` with ``scaling="score"``, of
        which divergence, batch size, normalisation, clipping and ``min_ess`` apply.

    Raises
    ------
    ValueError
        Another scaling, a GAN term, or more than one noise bin.

    References
    ----------
    Xu, Nie and Vahdat (2025), f-distill, equation 5; Roeder et al. (2017) for reverse KL.

    Examples
    --------
    >>> from jax.scipy.stats import norm
    >>> routine = ExplicitDistillation(
    ...     sample=lambda q, rng, n: q["mean"] + jax.random.normal(rng, (n, 1)),
    ...     log_q=lambda q, z: norm.logpdf(z[:, 0], q["mean"]),
    ...     log_p=lambda z: norm.logpdf(z[:, 0], 1.0),
    ...     optimizer=optax.sgd(1.0),
    ... )
    >>> state = routine.init({"mean": jnp.zeros(())}, jax.random.key(0))
    >>> state, info = routine.step(state)
    >>> round(float(state.parameters["mean"]), 3)
    1.0
    """

    sample: Callable[[Any, jax.Array, int], jax.Array]
    log_q: Callable[[Any, jax.Array], jax.Array]
    log_p: Callable[[jax.Array], jax.Array]
    optimizer: optax.GradientTransformation
    settings: DistillationSettings = field(
        default_factory=lambda: DistillationSettings(
            scaling="score", num_bins=1, ratio_decay=0.0, normalize_weight=False, min_ess=0.0
        )
    )

    def __post_init__(self) -> None:
        settings = self.settings
        if settings.scaling != "score" or settings.gan_weight or settings.num_bins != 1:
            raise ValueError(
                "settings must have scaling='score', gan_weight=0 and num_bins=1 for an explicit "
                f"guide, which sees no noise and no critic; got {settings!r}."
            )

    def init(self, parameters: Any, rng: jax.Array) -> ExplicitState:
        """At ``parameters``, a pytree of q's."""
        dtype = jax.tree.leaves(parameters)[0].dtype
        log_mean = jnp.full((1,), -jnp.inf, dtype=dtype)
        return ExplicitState(parameters, self.optimizer.init(parameters), log_mean, rng)

    def step(self, state: ExplicitState) -> tuple[ExplicitState, ExplicitInfo]:
        """One step on fresh draws; one whose weights collapse leaves the parameters alone."""
        settings = self.settings
        rng, draw_rng = jax.random.split(state.rng)
        z, pull_back = jax.vjp(
            lambda parameters: self.sample(parameters, draw_rng, settings.batch_size),
            state.parameters,
        )

        def total(points: jax.Array) -> tuple[jax.Array, jax.Array]:
            log_ratio = self.log_p(points) - self.log_q(state.parameters, points)
            return log_ratio.sum(), log_ratio

        slope, log_ratio = jax.grad(total, has_aux=True)(z)
        clip = settings.clip_for(exact=True)
        if clip is not None:
            log_ratio = jnp.clip(log_ratio, *jnp.log(jnp.asarray(clip)))
        keep = jnp.isfinite(log_ratio) & jnp.isfinite(slope).all(axis=1)
        log_ratio = jnp.where(keep, log_ratio, 0.0)
        weights, log_mean = jnp.where(keep, 1.0, 0.0).astype(z.dtype), state.log_mean
        if settings.weighted:
            weights, log_mean, log_ratio = ratio_weights(
                settings.rule,
                log_ratio,
                jnp.zeros_like(log_ratio),
                state.log_mean,
                keep=keep,
                decay=settings.ratio_decay,
                normalize_ratio=settings.normalize_ratio,
                normalize_weight=settings.normalize_weight,
            )
        cotangent = jnp.where(keep[:, None], -weights[:, None] * slope, 0.0) / settings.batch_size
        (gradient,) = pull_back(cotangent)
        moves, optimizer = self.optimizer.update(gradient, state.optimizer, state.parameters)
        ess = effective_sample_size(weights)
        skip = (ess < min(settings.min_ess, float(settings.batch_size))) | ~(ess > 0.0)

        def choose(old: Any, new: Any) -> Any:
            return jax.tree.map(lambda a, b: jnp.where(skip, a, b), old, new)

        moved = optax.apply_updates(state.parameters, moves)
        following = ExplicitState(
            choose(state.parameters, moved), choose(state.optimizer, optimizer), log_mean, rng
        )
        info = ExplicitInfo(
            weight_max=weights.max(),
            weight_ess=ess,
            log_ratio=log_ratio.mean(),
            dropped=jnp.sum(~keep),
            skipped=skip,
            gradient_norm=optax.tree.norm(gradient),
        )
        return following, info
