"""The two-sample divergences as a NumPyro ELBO."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpyro
from numpyro import handlers
from numpyro.infer.elbo import ELBO

from bayesdiv.numpyro._log_weights import Run
from bayesdiv.numpyro._objective import _over_particles, _with_plate_key
from bayesdiv.numpyro._sample_rows import (
    code_rows,
    data_rows,
    elbo_row,
    latent_layout,
    latent_row,
)
from bayesdiv.numpyro._state import STATE_SITE, StatefulGuide
from bayesdiv.objectives._samples import (
    Pair,
    compare,
    effective_size,
    flatten_reference,
    importance_weights,
    posterior_pair,
    predictive_pair,
    sample_settings,
    standardize,
)


class _Gathered(NamedTuple):
    """Samples to compare by name, what to add to and to multiply their divergence by."""

    pairs: dict[str, Pair]
    factor: Any
    extra: jax.Array
    mutable: dict[str, Any]
    log_weight: jax.Array | None = None


class SampleObjective(ELBO):
    r"""A divergence D(p‖q) between two samples, as the ``loss`` of :class:`numpyro.infer.SVI`.

    ========  ============================================  ===================================
    space     x, the sample of the target p                 y, the sample of the approximation q
    ========  ============================================  ===================================
    "latent"  the posterior's: the guide's draws with       the guide's draws, ``(num_particles,
              importance weights softmax(log p̃ − log q),    dim)``, all sites unconstrained and
              or ``reference`` draws                        laid side by side
    "data"    observed rows ``(n, event)`` of each site     posterior predictive rows, pooled:
                                                            ``(num_particles · n, event)``
    "codes"   the prior's draws of the latent sites in      the guide's draws of them, aggregated
              the data plate                                over the plate: ``(rows, dim)``
    ========  ============================================  ===================================

    - "latent": loss D. The weights approximate the posterior only where the guide covers it, so
      start with ``warmup`` steps of reverse KL, and look at :meth:`effective_size`. Parameters of
      the model get the evidence's gradient (the wake update), unless there is a ``reference``,
      which leaves them alone. Every latent site counts as one joint vector: for a latent a datum
      use "codes" or an f-divergence.
    - "data": loss Σ_sites D − prior_scale · E log p(z). Outcomes are compared by their marginal
      law; ``context`` joins covariates to both sides. Likelihoods need no density, only
      reparameterised draws. It does not fit the posterior: without a prior the guide shrinks to
      whatever best predicts. Masks and array scales weigh rows.
    - "codes": loss −E log p(x|z) + penalty · n · D, n the plate's full size: a Wasserstein
      autoencoder (Tolstikhin et al. 2018, eq. 4). log q of the codes is not used, so the encoder
      may be deterministic. Latent sites outside the plate keep their reverse KL.

    The loss is pure. What must be remembered, the step of a warm start and the inner parameters of
    learnt slices, lives in SVI's ``mutable_state``: ``SVI(model, loss.stateful(guide, model),
    optim, loss)``. Learnt slices without it start afresh at every step.

    Parameters
    ----------
    divergence
        A name, or a :class:`~bayesdiv.divergences.TwoSampleDivergence`.
    num_particles, space, warmup
        See :class:`~bayesdiv.objectives.SampleSettings`.
    vectorize_particles
        True (vmap), False (a loop) or a function that maps over keys.
    **options
        ``standardize``, ``reference``, ``context``, ``prior_scale``, ``penalty``; the rest are
        parameters of a named divergence.

    Raises
    ------
    ValueError
        At construction: an unknown space, name or option, too few particles. From a step: a guide
        site, or in "data" a likelihood, that is not reparameterised; no latent site in a data
        plate for "codes"; a reference or context of the wrong shape; model and guide that do not
        match; a warm start without state.
    """

    # Discrete sites are refused by name, with what to use instead.
    can_infer_discrete = True

    def __init__(
        self,
        divergence: Any,
        *,
        num_particles: int | None = None,
        space: str = "latent",
        warmup: int = 0,
        vectorize_particles: Any = True,
        **options: Any,
    ) -> None:
        self.settings = sample_settings(
            divergence, space=space, num_particles=num_particles, warmup=warmup, **options
        )
        super().__init__(num_particles=self.settings.count, vectorize_particles=vectorize_particles)

    def stateful(self, guide: Any, model: Any = None) -> StatefulGuide:
        """``guide`` that also declares this objective's state; give it to SVI in its place.

        ``model`` tells how many dimensions learnt slices have; only those need it.
        """
        if isinstance(guide, StatefulGuide):
            return guide
        if model is None and self.settings.has_inner_state:
            raise ValueError(
                f"{type(self.settings.divergence).__name__} has inner parameters, whose shapes "
                "depend on the model; call loss.stateful(guide, model)."
            )

        return _SampleGuide(guide, self, model)

    def initial_state(self, model: Any, guide: Any, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """The state before any step, from one draw at the parameters' initial values."""
        state: dict[str, Any] = {"step": jnp.zeros((), jnp.int32)}
        if self.settings.has_inner_state:
            key = numpyro.prng_key()
            key = jax.random.key(0) if key is None else key
            with handlers.block():
                gathered = self._gather(key, Run({}, model, guide, args, kwargs))
            state["inner"] = {
                name: self.settings.divergence.init(pair.x, pair.y, rng=key)
                for name, pair in gathered.pairs.items()
            }
        return jax.lax.stop_gradient(state)

    def loss_with_mutable_state(
        self,
        rng_key: jax.Array,
        param_map: dict[str, Any],
        model: Any,
        guide: Any,
        *args: Any,
        **kwargs: Any,
    ) -> dict[str, Any]:
        """The loss and the mutable state of the next step."""
        stored = param_map.get(STATE_SITE)
        wrapped = isinstance(guide, StatefulGuide)
        if self.settings.warmup and stored is None and not wrapped:
            raise ValueError(
                "this objective keeps the step of its warm start between steps (warmup="
                f"{self.settings.warmup}), but the guide declares no state; build "
                "SVI(model, loss.stateful(guide, model), optim, loss)."
            )
        params = {name: value for name, value in param_map.items() if name != STATE_SITE}
        run = Run(params, model, guide._guide if wrapped else guide, args, kwargs)
        if stored is None:
            loss, _, mutable = self._target(rng_key, run, None)
            return {"loss": loss, "mutable_state": mutable or None}
        inner = stored.get("inner")
        if self.settings.warmup:
            loss, inner, mutable = jax.lax.cond(
                stored["step"] < self.settings.warmup,
                lambda: self._warm_start(rng_key, run, inner),
                lambda: self._target(rng_key, run, inner),
            )
        else:
            loss, inner, mutable = self._target(rng_key, run, inner)
        state = {**stored, "step": stored["step"] + 1}
        if inner is not None:
            state["inner"] = inner
        return {
            "loss": loss,
            "mutable_state": {**mutable, STATE_SITE: jax.lax.stop_gradient(state)},
        }

    def effective_size(
        self,
        rng_key: jax.Array,
        params: dict[str, Any],
        model: Any,
        guide: Any,
        *args: Any,
        **kwargs: Any,
    ) -> jax.Array:
        """How many of the ``num_particles`` draws carry the weights of space="latent"."""
        inner = guide._guide if isinstance(guide, StatefulGuide) else guide
        log_weight = self._gather(rng_key, Run(params, model, inner, args, kwargs)).log_weight
        if log_weight is None:
            raise ValueError(
                "effective_size is that of importance weights, which space='latent' has without a "
                f"reference; this objective has space={self.settings.space!r}."
            )
        return effective_size(log_weight)

    def _target(
        self, rng_key: jax.Array, run: Run, inner: dict[str, Any] | None
    ) -> tuple[jax.Array, Any, dict[str, Any]]:
        """The loss after the warm start, the inner state and the model's mutable values."""
        sample_key, *keys = jax.random.split(rng_key, 3)
        gathered = self._gather(sample_key, run)
        total: Any = 0.0
        states = {}
        for number, (name, pair) in enumerate(gathered.pairs.items()):
            first, second = (jax.random.fold_in(key, number) for key in keys)
            value, states[name] = compare(
                self.settings.divergence,
                pair,
                state=None if inner is None else inner[name],
                rng=(first, second),
            )
            total = total + value
        loss = jnp.asarray(gathered.factor * total + gathered.extra)
        return loss, None if inner is None else states, gathered.mutable

    def _warm_start(
        self, rng_key: jax.Array, run: Run, inner: Any
    ) -> tuple[jax.Array, Any, dict[str, Any]]:
        log_weight, mutable = self._over_particles(lambda key: elbo_row(key, run), rng_key)
        return -jnp.mean(log_weight), inner, jax.tree.map(_over_particles, mutable)

    def _over_particles(self, row: Callable[[jax.Array], Any], rng_key: jax.Array) -> Any:
        return self.vectorize_particles_fn(row, jax.random.split(rng_key, self.settings.count))

    def _gather(self, rng_key: jax.Array, run: Run) -> _Gathered:
        plate_key, rng_key = jax.random.split(rng_key)
        # Pooled particles must see the same subsample.
        run = run._replace(
            model=_with_plate_key(run.model, plate_key), guide=_with_plate_key(run.guide, plate_key)
        )
        gather = {"latent": self._latent, "data": self._data, "codes": self._codes}
        return gather[self.settings.space](rng_key, run)

    def _latent(self, rng_key: jax.Array, run: Run) -> _Gathered:
        reference = self.settings.reference
        rows = self._over_particles(
            lambda key: latent_row(key, run, with_density=reference is None), rng_key
        )
        mutable = jax.tree.map(_over_particles, rows.mutable)
        extra, log_weight = jnp.zeros(()), None
        if reference is None:
            log_weight = jax.lax.stop_gradient(rows.log_joint - rows.log_q)
            pair = posterior_pair(rows.values, log_weight)
            # −inf is a draw outside the target's support, which weighs nothing.
            log_joint = jnp.where(log_weight > -jnp.inf, rows.log_joint, 0.0)
            wake = -jnp.sum(importance_weights(log_weight) * log_joint)
            extra = wake - jax.lax.stop_gradient(wake)
            scale_from = pair.y
        else:
            shapes, transforms = latent_layout(rng_key, run)
            draws = flatten_reference(
                {name: jnp.asarray(value) for name, value in reference.items()},
                shapes,
                lambda name, value: transforms[name].inv(value),
            )
            pair = Pair(draws.astype(rows.values.dtype), rows.values)
            scale_from = pair.x
        if self.settings.standardize:
            pair = standardize(pair, scale_from)
        return _Gathered({"latent": pair}, 1.0, extra, mutable, log_weight)

    def _data(self, rng_key: jax.Array, run: Run) -> _Gathered:
        with_prior = self.settings.prior_scale > 0
        rows = self._over_particles(lambda key: data_rows(key, run, with_prior=with_prior), rng_key)
        context = self.settings.context
        if callable(context):
            context = context(*run.args, **run.kwargs)
        context = None if context is None else jnp.asarray(context)
        pairs = {}
        for name, predicted in rows.predicted.items():
            weights = rows.weights[name]
            pair = predictive_pair(
                rows.observed[name][0],
                predicted.reshape((-1, predicted.shape[-1])),
                weights=None if weights is None else weights[0],
                context=context,
                site=name,
            )
            if self.settings.standardize:
                pair = standardize(pair, pair.x, pair.x_weights)
            pairs[name] = pair
        extra = jnp.zeros(())
        if with_prior:
            extra = -self.settings.prior_scale * jnp.mean(rows.log_prior)
        return _Gathered(pairs, 1.0, extra, jax.tree.map(_over_particles, rows.mutable))

    def _codes(self, rng_key: jax.Array, run: Run) -> _Gathered:
        rows = self._over_particles(lambda key: code_rows(key, run), rng_key)
        dim = rows.codes.shape[-1]
        pair = Pair(rows.prior.reshape((-1, dim)), rows.codes.reshape((-1, dim)))
        return _Gathered(
            {"codes": pair},
            self.settings.penalty * rows.full_size[0],
            -jnp.mean(rows.log_weight),
            jax.tree.map(_over_particles, rows.mutable),
        )


class _SampleGuide(StatefulGuide):
    """A guide that also declares the state of a sample objective."""

    def __init__(self, guide: Any, loss: SampleObjective, model: Any) -> None:
        super().__init__(guide, keeps_normalizer=False)
        self._loss, self._model = loss, model

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        result = self._guide(*args, **kwargs)
        state = self._loss.initial_state(self._model, self._guide, *args, **kwargs)
        numpyro.primitives.mutable(STATE_SITE, state)
        return result
