"""The f-divergences and bounds as a NumPyro ELBO."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from numpyro import handlers
from numpyro.infer.elbo import ELBO

from bayesdiv.divergences import ReverseKL
from bayesdiv.numpyro._log_weights import Findings, Run, particle, scaled_log_prob, trace_pair
from bayesdiv.numpyro._state import STATE_SITE, StatefulGuide, next_state, read_normalizer
from bayesdiv.objectives import (
    Estimate,
    ObjectiveSettings,
    RenyiBound,
    RunningNormalizer,
    SelfNormalizer,
    is_two_sample,
)
from bayesdiv.objectives._coefficients import Coefficients, coefficients
from bayesdiv.objectives._estimate import assemble, check_gradient, is_linear


def objective(
    divergence: Any,
    *,
    num_particles: int | None = None,
    gradient: str = "auto",
    normalizer: Any = "self",
    warmup: int = 0,
    **arguments: Any,
) -> ELBO:
    r"""An objective by name, as the ``loss`` of :class:`numpyro.infer.SVI`.

    Parameters
    ----------
    divergence
        A name from :func:`bayesdiv.objectives.list_objectives`, a divergence, or one of your own.
        f-divergences and bounds act on log p̃(z) − log q(z), see :class:`DivergenceELBO`;
        two-sample divergences on samples, see :class:`SampleObjective` for the space.
    num_particles
        Samples of the guide a step. None: 1 for reverse KL, 16 for others.
    gradient
        "auto", "path", "reparam" or "score". "auto" differentiates reverse KL as
        :class:`numpyro.infer.Trace_ELBO` does, everything else by "path", and gives score terms to
        the guide sites that are not reparameterised. A guide with an autoregressive flow, whose
        inverse is slow or unknown, gets "reparam".
    normalizer
        "self", "running", or the known log Z; only for log-weights.
    warmup
        Steps of reverse KL first. Mass-covering divergences need it when started far away. The
        objective then has state: wrap the guide with :meth:`DivergenceELBO.stateful`.
    **arguments
        ``vectorize_particles`` of NumPyro's ELBO; all others are parameters of the divergence, such
        as ``order=0.5``. A callable is a schedule: it gets the step, and the objective has state.

    Raises
    ------
    ValueError
        An unknown name or parameter, or an estimator that the divergence does not have.

    Examples
    --------
    >>> import jax, numpyro, numpyro.distributions as dist
    >>> from bayesdiv.numpyro import objective
    >>> def model():
    ...     z = numpyro.sample("z", dist.Normal(0.0, 1.0))
    ...     numpyro.sample("x", dist.Normal(z, 1.0), obs=1.0)
    >>> guide = numpyro.infer.autoguide.AutoNormal(model)
    >>> optimiser = numpyro.optim.Adam(0.01)
    >>> svi = numpyro.infer.SVI(model, guide, optimiser, loss=objective("jensen_shannon"))
    >>> result = svi.run(jax.random.key(0), 100, progress_bar=False)
    >>> bool((result.losses >= 0.0).all())
    True
    """
    if is_two_sample(divergence):
        from bayesdiv.numpyro._sample_objective import SampleObjective

        return SampleObjective(divergence, num_particles=num_particles, warmup=warmup, **arguments)
    host = {name: arguments.pop(name) for name in ("vectorize_particles",) if name in arguments}
    settings = ObjectiveSettings(
        divergence,
        arguments,
        num_particles=num_particles,
        gradient=gradient,
        normalizer=normalizer,
        warmup=warmup,
    )
    return DivergenceELBO(settings, **host)


class DivergenceELBO(ELBO):
    r"""D_f(p‖q) of the posterior p and the guide q, or a bound, estimated from the guide's samples.

    A drop-in ``loss`` for :class:`numpyro.infer.SVI`: pure, so that it may be jitted, scanned and
    vmapped. The loss of reverse KL is minus the ELBO, that of a bound minus the bound, that of any
    other divergence its self-normalised estimate. Plates that enclose every site are independent
    problems: the divergence is applied to each element and summed, so that they may be subsampled.

    Parameters of the model get −E[path_weight · ∇ log p]: the ELBO's gradient under reverse KL, the
    evidence's (wake phase) under forward KL; under a bound, the bound's own, for which "auto" takes
    the gradient of plain reparameterisation.

    Objectives that must remember something (a warm start, a schedule, a running normaliser) keep it
    in SVI's ``mutable_state``: ``SVI(model, loss.stateful(guide), optim, loss)``.

    Parameters
    ----------
    settings
        What :func:`objective` was asked for.
    vectorize_particles
        True (vmap), False (a loop) or a function that maps over keys.

    Raises
    ------
    ValueError
        From a step: a guide site without reparameterisation under "path" or "reparam", model and
        guide that do not match, enumeration, a subsampled plate that does not enclose every site,
        or a state that is missing. Log-weights that are not finite raise nothing, as nothing can
        inside jit: see :meth:`check`.
    """

    can_infer_discrete = True

    def __init__(self, settings: ObjectiveSettings, *, vectorize_particles: Any = True) -> None:
        super().__init__(num_particles=settings.count, vectorize_particles=vectorize_particles)
        self.settings = settings

    def stateful(self, guide: Any) -> StatefulGuide:
        """``guide`` that also declares this objective's state; give it to SVI in its place."""
        if isinstance(guide, StatefulGuide):
            return guide
        return StatefulGuide(
            guide, keeps_normalizer=isinstance(self.settings.normalizer, RunningNormalizer)
        )

    def loss_with_mutable_state(
        self,
        rng_key: jax.Array,
        param_map: dict[str, Any],
        model: Any,
        guide: Any,
        *args: Any,
        **kwargs: Any,
    ) -> dict[str, Any]:
        """The loss, with the surrogate's gradient, and the mutable state of the next step."""
        run = Run(param_map, model, guide, args, kwargs)
        shared = not self.settings.is_linear
        _, loss, mutable = _estimate(self, self.settings, rng_key, run, share_plates=shared)
        return {"loss": loss, "mutable_state": mutable or None}

    def estimate(
        self,
        rng_key: jax.Array,
        params: dict[str, Any],
        model: Any,
        guide: Any,
        *args: Any,
        num_particles: int | None = None,
        **kwargs: Any,
    ) -> Estimate:
        """The estimate with more particles: its ``log_evidence``, ``ess`` and ``pareto_k``.

        ``params`` are constrained, as ``svi.get_params`` returns them; a scheduled parameter needs
        the state too: ``{**params, **svi_state.mutable_state}``. By default 1000 particles.
        """
        count = 1000 if num_particles is None else num_particles
        settings = dataclasses.replace(self.settings, num_particles=count)
        run = Run(params, model, guide, args, kwargs)
        return _estimate(self, settings, rng_key, run, share_plates=True)[0]

    def check(
        self,
        rng_key: jax.Array,
        params: dict[str, Any],
        model: Any,
        guide: Any,
        *args: Any,
        num_particles: int | None = None,
        **kwargs: Any,
    ) -> None:
        """Raise if a log-weight is not finite; not to be jitted.

        Raises
        ------
        ValueError
            Naming the first particle and its sites whose log-probability is NaN or infinite.
        """
        count = self.settings.count if num_particles is None else num_particles
        run = Run(params, model, guide, args, kwargs)

        def by_site(key: jax.Array) -> dict[str, jax.Array]:
            model_trace, guide_trace, _ = trace_pair(key, run)
            return {
                f"{side} site {name!r}": jnp.sum(scaled_log_prob(site))
                for side, trace in (("model", model_trace), ("guide", guide_trace))
                for name, site in trace.items()
                if site["type"] == "sample"
            }

        keys = jax.random.split(rng_key, count) if count > 1 else rng_key[None]
        table = {name: np.asarray(values) for name, values in jax.vmap(by_site)(keys).items()}
        good = np.ones(count, dtype=bool)
        for values in table.values():
            good &= np.isfinite(values)
        if good.all():
            return
        first = int(np.flatnonzero(~good)[0])
        culprits = ", ".join(
            f"{name} has log-probability {values[first]}"
            for name, values in table.items()
            if not np.isfinite(values[first])
        )
        raise ValueError(
            f"log-weights of {int((~good).sum())} of {count} particles are not finite: at particle "
            f"{first}, {culprits}. Start closer (warmup=, a smaller step size, init_scale), or "
            "constrain the model so that log-probabilities stay finite."
        )


def _estimate(
    elbo: DivergenceELBO,
    settings: ObjectiveSettings,
    rng_key: jax.Array,
    run: Run,
    *,
    share_plates: bool,
) -> tuple[Estimate, jax.Array, dict[str, Any]]:
    """One estimate, the loss to differentiate, and the mutable state after the step."""
    stored = _stored_state(settings, run)
    rule = settings.at(0 if stored is None else stored["step"])
    wanted = settings.resolve_gradient(rule)
    findings = Findings()
    if share_plates:
        # Particles must see the same subsample for their weights to be comparable.
        plate_key, rng_key = jax.random.split(rng_key)
        run = run._replace(
            model=_with_plate_key(run.model, plate_key), guide=_with_plate_key(run.guide, plate_key)
        )

    def one(key: jax.Array) -> Any:
        return particle(
            key,
            run,
            findings,
            gradient=wanted,
            explicit=settings.gradient != "auto",
            linear=settings.is_linear,
            fixed_model=isinstance(rule, RenyiBound),
        )

    count = settings.count
    if count == 1:
        only = jax.random.split(rng_key, 1)[0] if share_plates else rng_key
        particles = jax.tree.map(lambda x: jnp.asarray(x)[None], one(only))
    else:
        particles = elbo.vectorize_particles_fn(one, jax.random.split(rng_key, count))
    log_weight, log_q, mutable = particles
    layout = findings.layout
    gradient = findings.gradient
    check_gradient(rule, gradient, count, with_score=log_q is not None)

    dims = tuple(plate.dim for plate in layout.common)
    normalizer: Any = settings.normalizer
    memory = None
    if isinstance(normalizer, RunningNormalizer):
        if layout.scale != 1.0:
            raise ValueError(
                "normalizer='running' keeps log Z of each plate element, but the plates "
                f"{[plate.name for plate in layout.common]} are subsampled and their elements "
                "change; use normalizer='self'."
            )
        if stored is None:
            normalizer = SelfNormalizer()
        else:
            memory = read_normalizer(stored, dims)
    fixed = jax.lax.stop_gradient(log_weight)
    log_normalizer, memory = normalizer(memory, fixed)

    def parts_of(chosen: Any) -> Coefficients:
        return coefficients(
            chosen,
            fixed,
            gradient=gradient,
            log_normalizer=log_normalizer,
            with_reward=log_q is not None,
        )

    if is_linear(rule) and log_q is None and not settings.warmup:
        # The value is its own surrogate; summed once, it is the host's program to the operation.
        loss = layout.scale * jnp.sum(-jnp.mean(rule.pseudo_reward(log_weight), axis=0))
        result = Estimate(loss, jax.lax.stop_gradient(loss), fixed, layout.scale)
        return result, loss, _next_mutable(mutable, stored, memory, dims)
    parts = parts_of(rule)
    if settings.warmup and stored is not None:
        cold = stored["step"] < settings.warmup
        parts = jax.tree.map(
            lambda early, late: jnp.where(cold, early, late), parts_of(ReverseKL()), parts
        )
    # Constants of the surrogate, also where a parameter of the divergence is differentiated.
    parts = Coefficients(parts.value, *jax.lax.stop_gradient((parts.weight, parts.reward)))
    result = assemble(parts, log_weight, log_q, scale=layout.scale)
    return result, result.loss, _next_mutable(mutable, stored, memory, dims)


def _next_mutable(
    mutable: dict[str, Any], stored: dict[str, Any] | None, memory: Any, dims: tuple[int, ...]
) -> dict[str, Any]:
    """The mutable state after the step: the sites' own, and the objective's."""
    result = jax.tree.map(_over_particles, mutable)
    if stored is not None:
        result[STATE_SITE] = next_state(stored, memory, dims)
    return result


def _stored_state(settings: ObjectiveSettings, run: Run) -> dict[str, Any] | None:
    """The objective's own state among the parameters; None where it may go without."""
    stored = run.params.get(STATE_SITE)
    if stored is not None or not settings.is_stateful:
        return stored
    if not isinstance(run.guide, StatefulGuide):
        raise ValueError(
            "this objective keeps state between steps (warmup=, a schedule or "
            "normalizer='running'), but the guide declares none; build "
            "SVI(model, loss.stateful(guide), optim, loss)."
        )
    if settings.has_schedule:
        raise ValueError(
            "the objective has a schedule, so its value depends on the step, which the parameters "
            "lack; add the state: loss.estimate(rng_key, {**params, **svi_state.mutable_state}, "
            "model, guide)."
        )
    return None


def _with_plate_key(function: Any, key: jax.Array) -> Any:
    return handlers.seed(function, key, hide_types=["sample", "prng_key", "control_flow"])


def _over_particles(values: jax.Array) -> jax.Array:
    """One mutable value out of the particles': the mean, or the first where there is none."""
    return jnp.mean(values, axis=0) if jnp.issubdtype(values.dtype, jnp.floating) else values[0]
