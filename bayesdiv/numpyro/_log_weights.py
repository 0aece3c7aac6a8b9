"""From one particle of a NumPyro model and guide to the terms that an objective needs."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from numpyro import handlers
from numpyro.distributions.flows import (
    BlockNeuralAutoregressiveTransform,
    InverseAutoregressiveTransform,
)
from numpyro.primitives import Messenger

from bayesdiv.numpyro._checks import Trace, check_match, warn_of_missing_plates
from bayesdiv.numpyro._state import STATE_SITE
from bayesdiv.objectives._plates import Plate, PlateLayout, SiteTerm, find_layout, reduce_to_layout

# Their inverse runs as many passes as the site has dimensions, or does not exist.
_SLOW_INVERSES = (BlockNeuralAutoregressiveTransform, InverseAutoregressiveTransform)


class Particle(NamedTuple):
    """Terms of one particle: ``common plates``-shaped log-weight, and log q of score sites."""

    log_weight: jax.Array
    log_q: jax.Array | None
    mutable: dict[str, Any]


@dataclass
class Findings:
    """What is the same for every particle and known once one of them has been traced.

    Filled while the particles' function is traced; holds no array, so that nothing traced leaks.
    """

    layout: PlateLayout = field(default_factory=lambda: PlateLayout((), 1.0))
    gradient: str = "reparam"


class Run(NamedTuple):
    """The arguments of a loss that its particles share."""

    params: dict[str, Any]
    model: Any
    guide: Any
    args: tuple[Any, ...]
    kwargs: dict[str, Any]


def particle(
    rng_key: jax.Array,
    run: Run,
    findings: Findings,
    *,
    gradient: str,
    explicit: bool,
    linear: bool,
    fixed_model: bool,
) -> Particle:
    """log p̃(z) − log q(z) of one draw z of the guide, with the graph that ``gradient`` asks for.

    Keys are split as :class:`numpyro.infer.Trace_ELBO` does, so that draws coincide. ``explicit``
    says that the user asked for this gradient rather than for "auto"; ``fixed_model``, that paths
    exist only where the model has no parameters.

    Raises
    ------
    ValueError
        Model and guide do not match, a plate is subsampled where it must not be, or a guide site
        lacks the gradient that was asked for.
    """
    model_trace, guide_trace, guide_key = trace_pair(rng_key, run, hold_all=gradient == "score")
    check_match(model_trace, guide_trace)
    warn_of_missing_plates(model_trace)
    latents = [site for site in _samples(guide_trace) if not site["is_observed"]]
    scored = {site["name"] for site in latents if gradient == "score" or not _has_path(site)}
    if gradient != "score":
        if scored and explicit:
            _refuse_path(next(site for site in latents if site["name"] in scored), gradient)
        if len(scored) == len(latents) and scored:
            gradient = "score"
    if gradient == "path" and not explicit and any(map(_is_slow_to_invert, latents)):
        gradient = "reparam"

    if gradient == "path" and fixed_model and _has_parameters(model_trace):
        if explicit:
            raise ValueError(
                "gradient='path' does not exist for a bound whose model has parameters, which need "
                "other weights than the samples; use gradient='reparam' or 'auto'."
            )
        gradient = "reparam"

    plus, own = log_probs(model_trace), log_probs(guide_trace)
    minus = own
    if gradient == "path":
        try:
            minus = _held_log_probs(run, guide_trace, guide_key)
        except _NoInverse:
            if explicit:
                raise
            gradient = "reparam"
    elif gradient == "score":
        minus = [term._replace(log_prob=jax.lax.stop_gradient(term.log_prob)) for term in own]

    layout = find_layout([_scaled(term, model_trace) for term in plus] + minus, linear=linear)
    shape = tuple(plate.size for plate in layout.common)
    log_weight = _sum((_scaled(term, model_trace) for term in plus), layout, shape) - _sum(
        (_scaled(term, guide_trace) for term in minus), layout, shape
    )
    if layout.scale != 1.0:
        log_weight = log_weight / layout.scale
    log_q = None
    if scored:
        log_q = _sum((term for term in own if term.name in scored), layout, shape)
    findings.layout, findings.gradient = layout, gradient
    return Particle(log_weight, log_q, _mutable_values(guide_trace, model_trace))


def trace_pair(
    rng_key: jax.Array, run: Run, *, hold_all: bool = False
) -> tuple[Trace, Trace, jax.Array]:
    """Traces of the model and the guide, and the guide's key.

    Values of sites that are not reparameterised, or of all with ``hold_all``, carry no gradient.
    """
    model_key, guide_key = jax.random.split(rng_key)
    guide = handlers.substitute(handlers.seed(run.guide, guide_key), data=run.params)
    with _HoldValues(hold_all=hold_all):
        guide_trace = handlers.trace(guide).get_trace(*run.args, **run.kwargs)
    updated = {**run.params, **_mutable_values(guide_trace)}
    model = handlers.replay(handlers.seed(run.model, model_key), trace=guide_trace)
    model = handlers.substitute(model, data=updated)
    model_trace = handlers.trace(model).get_trace(*run.args, **run.kwargs)
    return model_trace, guide_trace, guide_key


def log_probs(trace: Trace) -> list[SiteTerm]:
    """The log-probability of every sample site, batch-shaped and unscaled, with its plates."""
    return [
        SiteTerm(site["name"], _log_prob(site), _plates(site, trace)) for site in _samples(trace)
    ]


def scaled_log_prob(site: dict[str, Any]) -> jax.Array:
    """A site's log-probability times its scale: plates' and ``handlers.scale``'s."""
    log_prob = _log_prob(site)
    return log_prob if site["scale"] is None else site["scale"] * log_prob


class _HoldValues(Messenger):
    """Makes sampled values constants of differentiation where there is no path through them."""

    def __init__(self, *, hold_all: bool) -> None:
        super().__init__()
        self.hold_all = hold_all

    def postprocess_message(self, msg: dict[str, Any]) -> None:
        if msg["type"] != "sample" or msg["is_observed"]:
            return
        if self.hold_all or not _has_path(msg):
            msg["value"] = jax.lax.stop_gradient(msg["value"])
            # They would lead the gradient of log q around the held value.
            msg["intermediates"] = None


def _held_log_probs(run: Run, guide_trace: Trace, guide_key: jax.Array) -> list[SiteTerm]:
    """log q at the same values with the guide's parameters held fixed.

    The guide runs again from the same key, so that whatever else it draws is the same; compilation
    merges the two runs.
    """
    held = jax.lax.stop_gradient(run.params)
    guide = handlers.replay(handlers.seed(run.guide, guide_key), trace=guide_trace)
    guide = handlers.substitute(guide, data=held)
    return log_probs(handlers.trace(guide).get_trace(*run.args, **run.kwargs))


def _samples(trace: Trace) -> Iterable[dict[str, Any]]:
    return (site for site in trace.values() if site["type"] == "sample")


def _has_parameters(trace: Trace) -> bool:
    return any(site["type"] == "param" for site in trace.values())


def _has_path(site: dict[str, Any]) -> bool:
    return bool(getattr(site["fn"], "has_rsample", False))


class _NoInverse(ValueError):
    """A density is needed at a given value, and the flow that makes it runs one way only."""


def _log_prob(site: dict[str, Any]) -> jax.Array:
    if site["intermediates"]:
        return site["fn"].log_prob(site["value"], site["intermediates"])
    try:
        return jnp.asarray(site["fn"].log_prob(site["value"]))
    except NotImplementedError as error:
        raise _NoInverse(
            f"the density of site {site['name']!r} is needed at a given value, but its flow has "
            f"no inverse ({error}). Use gradient='reparam' or 'auto' and a divergence that has "
            "one of them, or another flow."
        ) from error


def _plates(site: dict[str, Any], trace: Trace) -> frozenset[Plate]:
    return frozenset(
        Plate(frame.name, frame.dim, frame.size, _full_size(frame, trace))
        for frame in site["cond_indep_stack"]
    )


def _full_size(frame: Any, trace: Trace) -> int:
    plate = trace.get(frame.name)
    return frame.size if plate is None else plate["args"][0]


def _scaled(term: SiteTerm, trace: Trace) -> SiteTerm:
    scale = trace[term.name]["scale"]
    return term if scale is None else term._replace(log_prob=scale * term.log_prob)


def _sum(terms: Iterable[SiteTerm], layout: PlateLayout, shape: tuple[int, ...]) -> jax.Array:
    result = jnp.zeros(())
    for term in terms:
        result = result + reduce_to_layout(term.log_prob, layout, None)
    return jnp.broadcast_to(result, shape)


def _mutable_values(*traces: Trace) -> dict[str, Any]:
    return {
        name: site["value"]
        for trace in traces
        for name, site in trace.items()
        if site["type"] == "mutable" and name != STATE_SITE
    }


def _refuse_path(site: dict[str, Any], gradient: str) -> None:
    raise ValueError(
        f"guide site {site['name']!r} ({type(site['fn']).__name__}) is not reparameterised, so "
        f"gradient={gradient!r} does not exist for it; use gradient='auto', which gives score "
        "terms to such sites only, or 'score'."
    )


def _is_slow_to_invert(site: dict[str, Any]) -> bool:
    return any(isinstance(part, _SLOW_INVERSES) for part in _transforms(site["fn"]))


def _transforms(part: Any) -> Iterable[Any]:
    """The transforms inside a distribution or a composed transform."""
    for name in ("base_dist", "base_transform", "_inv"):
        inner = getattr(part, name, None)
        if inner is not None:
            yield from _transforms(inner)
    for inner in (*getattr(part, "transforms", ()), *getattr(part, "parts", ())):
        yield inner
        yield from _transforms(inner)
