"""From one particle of a NumPyro model and guide to the rows that divergences compare."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from numpyro import handlers
from numpyro.distributions import MaskedDistribution, biject_to

from bayesdiv.numpyro._checks import Trace, check_match
from bayesdiv.numpyro._log_weights import Run, _mutable_values, _plates, scaled_log_prob
from bayesdiv.objectives._sample_spaces import (
    Codes,
    check_guide_site,
    check_likelihood,
    check_outside_codes,
    check_predicted_rows,
    check_whole_plates,
    find_codes,
    refuse_without_observations,
)
from bayesdiv.objectives._samples import row_weights


class LatentRow(NamedTuple):
    """One draw of all latent sites, unconstrained, ``(dim,)``, with its log-densities."""

    values: jax.Array
    log_joint: jax.Array
    log_q: jax.Array
    mutable: dict[str, Any]


class DataRows(NamedTuple):
    """Observed and predicted rows ``(n, event)`` by site, weights of rows, and log p(z)."""

    observed: dict[str, jax.Array]
    predicted: dict[str, jax.Array]
    weights: dict[str, jax.Array | None]
    log_prior: jax.Array
    mutable: dict[str, Any]


class CodeRows(NamedTuple):
    """Codes of the guide and of the prior, ``(rows, dim)``, the other terms, the full size."""

    codes: jax.Array
    prior: jax.Array
    log_weight: jax.Array
    full_size: jax.Array
    mutable: dict[str, Any]


def latent_row(rng_key: jax.Array, run: Run, *, with_density: bool) -> LatentRow:
    """The guide's draw; its density only weighs it, with no gradient through the model to it."""
    model_trace, guide_trace = _traces(rng_key, run, "latent")
    latents = _latents(model_trace)
    log_joint = log_q = jnp.zeros(())
    if with_density:
        check_whole_plates({name: _plates(site, model_trace) for name, site in latents.items()})
        log_joint = _density(model_trace)
        log_q = jax.lax.stop_gradient(_density(guide_trace))
    values = [
        jnp.ravel(biject_to(site["fn"].support).inv(guide_trace[name]["value"]))
        for name, site in latents.items()
    ]
    mutable = _mutable_values(guide_trace, model_trace)
    return LatentRow(jnp.concatenate(values), log_joint, log_q, mutable)


def data_rows(rng_key: jax.Array, run: Run, *, with_prior: bool) -> DataRows:
    """Posterior predictive rows of each observed site beside the observed ones."""
    model_trace, guide_trace = _traces(rng_key, run, "data")
    observed, predicted, weights = {}, {}, {}
    sites = {n: s for n, s in _samples(model_trace) if s["infer"].get("was_observed")}
    if not sites:
        refuse_without_observations()
    for name, site in sites.items():
        check_likelihood(name, site["fn"])
        mask = _mask(site["fn"])
        if mask is False:
            continue
        value = jnp.asarray(site["infer"]["obs"])
        batch = value.shape[: value.ndim - site["fn"].event_dim]
        rows = value.reshape((_size(batch), -1))
        drawn = site["value"].reshape((-1, rows.shape[1]))
        check_predicted_rows(
            name, value.shape, jnp.shape(site["value"]), drawn.shape[0], rows.shape[0]
        )
        factors = [
            jnp.broadcast_to(factor, batch).ravel() if jnp.ndim(factor) else None
            for factor in (mask, site["scale"])
            if factor is not None
        ]
        observed[name], predicted[name] = rows, drawn
        weights[name] = row_weights(*factors, rows=rows.shape[0])
    log_prior = _density(_latents(model_trace)) if with_prior else jnp.zeros(())
    mutable = _mutable_values(guide_trace, model_trace)
    return DataRows(observed, predicted, weights, log_prior, mutable)


def code_rows(rng_key: jax.Array, run: Run) -> CodeRows:
    """Codes beside ancestral draws of the prior, global sites held at the guide's draw."""
    density_key, prior_key = jax.random.split(rng_key)
    model_trace, guide_trace = _traces(density_key, run, "codes")
    codes = codes_of(model_trace)
    outside = {
        name: site
        for name, site in _samples(guide_trace)
        if not {plate.name for plate in _plates(site, guide_trace)} & codes.plates
    }
    global_sites = set(_latents(model_trace)) - set(codes.names)
    for name in outside:
        check_outside_codes(name, codes.names, global_sites)
    kept = {name: site for name, site in _samples(model_trace) if name not in codes.names}
    log_weight = _density(kept) - _density(outside)
    mutable = _mutable_values(guide_trace, model_trace)
    params = {**run.params, **mutable}
    partial = {name: site for name, site in guide_trace.items() if name not in codes.names}
    model = handlers.replay(handlers.seed(run.model, prior_key), trace=partial)
    model = handlers.uncondition(handlers.substitute(model, data=params))
    prior_trace = handlers.trace(model).get_trace(*run.args, **run.kwargs)
    return CodeRows(
        _side_by_side(model_trace, codes.names),
        _side_by_side(prior_trace, codes.names),
        log_weight,
        jnp.asarray(codes.full_size),
        mutable,
    )


def elbo_row(rng_key: jax.Array, run: Run) -> tuple[jax.Array, dict[str, Any]]:
    """log p̃ − log q of one draw with its whole graph: reverse KL, for the warm start."""
    model_trace, guide_trace = _traces(rng_key, run, "codes")
    log_weight = _density(model_trace) - _density(guide_trace)
    return log_weight, _mutable_values(guide_trace, model_trace)


def latent_layout(
    rng_key: jax.Array, run: Run
) -> tuple[dict[str, tuple[int, ...]], dict[str, Any]]:
    """Shapes of the latent sites and the maps from unconstrained space to their supports."""
    model_trace, _ = _traces(rng_key, run, "latent")
    latents = _latents(model_trace)
    shapes = {name: jnp.shape(site["value"]) for name, site in latents.items()}
    return shapes, {name: biject_to(site["fn"].support) for name, site in latents.items()}


def codes_of(model_trace: Trace) -> Codes:
    """The latent sites of the data plate."""
    return find_codes(
        {name: _plates(site, model_trace) for name, site in _latents(model_trace).items()},
        [_plates(s, model_trace) for _, s in _samples(model_trace) if s["is_observed"]],
    )


def _traces(rng_key: jax.Array, run: Run, space: str) -> tuple[Trace, Trace]:
    """Model and guide traces; keys are split as :class:`numpyro.infer.Trace_ELBO` does."""
    model_key, guide_key = jax.random.split(rng_key)
    guide = handlers.substitute(handlers.seed(run.guide, guide_key), data=run.params)
    guide_trace = handlers.trace(guide).get_trace(*run.args, **run.kwargs)
    for name, site in _samples(guide_trace):
        check_guide_site(name, site["fn"], space)
    source = guide_trace
    if space == "latent":
        source = {
            name: {**site, "value": jax.lax.stop_gradient(site["value"])}
            if site["type"] == "sample"
            else site
            for name, site in guide_trace.items()
        }
    params = {**run.params, **_mutable_values(guide_trace)}
    model = handlers.replay(handlers.seed(run.model, model_key), trace=source)
    model = handlers.substitute(model, data=params)
    if space == "data":
        model = handlers.uncondition(model)
    model_trace = handlers.trace(model).get_trace(*run.args, **run.kwargs)
    check_match(_latents(model_trace), guide_trace)
    return model_trace, guide_trace


def _samples(trace: Trace) -> Iterable[tuple[str, dict[str, Any]]]:
    return ((name, site) for name, site in trace.items() if site["type"] == "sample")


def _latents(trace: Trace) -> Trace:
    return {
        name: site
        for name, site in _samples(trace)
        if not site["is_observed"] and not site["infer"].get("was_observed")
    }


def _density(sites: Trace) -> jax.Array:
    """Σ scaled log-probabilities of the sample sites among ``sites``."""
    total = jnp.zeros(())
    for _, site in _samples(sites):
        total = total + jnp.sum(scaled_log_prob(site))
    return total


def _mask(distribution: Any) -> Any:
    """The mask of a distribution, None if it has none."""
    while distribution is not None:
        if isinstance(distribution, MaskedDistribution):
            return distribution._mask
        distribution = getattr(distribution, "base_dist", None)
    return None


def _size(shape: tuple[int, ...]) -> int:
    result = 1
    for size in shape:
        result *= size
    return result


def _side_by_side(trace: Trace, names: list[str]) -> jax.Array:
    """Values of sites as rows, one a batch element, their events laid side by side."""
    columns = []
    for name in names:
        site = trace[name]
        value = site["value"]
        event_dim = site["fn"].event_dim
        split = value.ndim - event_dim
        batch = jnp.broadcast_shapes(value.shape[:split], tuple(site["fn"].batch_shape))
        value = jnp.broadcast_to(value, batch + value.shape[split:])
        columns.append(value.reshape((_size(batch), -1)))
    return jnp.concatenate(columns, axis=1)
