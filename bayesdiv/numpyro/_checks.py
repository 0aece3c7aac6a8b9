"""What a pair of NumPyro traces must satisfy, checked while the loss is traced."""

from __future__ import annotations

import warnings
from typing import Any

import jax.numpy as jnp

Trace = dict[str, dict[str, Any]]


def latent_sites(trace: Trace) -> dict[str, dict[str, Any]]:
    """The sample sites of a trace that are not observed."""
    return {
        name: site
        for name, site in trace.items()
        if site["type"] == "sample" and not site["is_observed"]
    }


def check_match(model_trace: Trace, guide_trace: Trace) -> None:
    """Raise unless the guide samples exactly the model's latent sites, in the same shapes.

    Raises
    ------
    ValueError
        A site is enumerated, lacks its partner, or has another shape there.
    """
    model_sites, guide_sites = latent_sites(model_trace), latent_sites(guide_trace)
    for side, sites in (("guide", guide_sites), ("model", model_sites)):
        for name, site in sites.items():
            if site["infer"].get("enumerate"):
                raise ValueError(
                    f"{side} site {name!r} is enumerated ({site['infer']['enumerate']!r}), which "
                    "this objective does not do; use numpyro.infer.TraceEnum_ELBO, or drop the "
                    "annotation and sample the site in the guide (it gets score-function "
                    "gradients)."
                )
    missing = [name for name in model_sites if name not in guide_trace]
    if missing:
        raise ValueError(
            f"the guide lacks the model's latent sites {missing}: it has {[*guide_sites]}. Sample "
            "them in the guide under the same names, or observe them in the model."
        )
    for name, site in guide_sites.items():
        auxiliary = site["infer"].get("is_auxiliary", False)
        if name not in model_sites and not auxiliary:
            raise ValueError(
                f"guide site {name!r} is not a latent site of the model, which has "
                f"{[*model_sites]}. Rename it, or mark it with infer={{'is_auxiliary': True}} if "
                "its density is accounted for."
            )
        if name in model_sites:
            _check_shapes(name, model_sites[name], site)


def _check_shapes(name: str, model_site: dict[str, Any], guide_site: dict[str, Any]) -> None:
    model_fn, guide_fn = model_site["fn"], guide_site["fn"]
    if model_site.get("_control_flow_done") or guide_site.get("_control_flow_done"):
        return
    if model_fn.event_dim != guide_fn.event_dim:
        raise ValueError(
            f"model and guide disagree on the event dimensions of site {name!r}: "
            f"{model_fn.event_dim} and {guide_fn.event_dim}; use .to_event(...) on one of them."
        )
    model_shape = _without_leading_ones(model_fn.shape(model_site["kwargs"]["sample_shape"]))
    guide_shape = _without_leading_ones(guide_fn.shape(guide_site["kwargs"]["sample_shape"]))
    if model_shape != guide_shape:
        raise ValueError(
            f"model and guide disagree on the shape of site {name!r}: {model_shape} and "
            f"{guide_shape}; put both into the same plates."
        )


def _without_leading_ones(shape: tuple[int, ...]) -> tuple[int, ...]:
    while shape and shape[0] == 1:
        shape = shape[1:]
    return tuple(shape)


def warn_of_missing_plates(trace: Trace) -> None:
    """Warn where a site inside a plate has a batch dimension that no plate stands for."""
    for name, site in trace.items():
        frames = site.get("cond_indep_stack") if site["type"] == "sample" else None
        if not frames or site.get("_control_flow_done"):
            continue
        fn = site["fn"]
        value_batch = jnp.shape(site["value"])[: jnp.ndim(site["value"]) - fn.event_dim]
        batch = jnp.broadcast_shapes(tuple(fn.batch_shape), value_batch)
        plates = {frame.dim for frame in frames}
        for dim in range(-len(batch), 0):
            if batch[dim] > 1 and dim not in plates:
                warnings.warn(
                    f"site {name!r} has size {batch[dim]} at batch dimension {dim}, for which "
                    "there is no plate: its elements are summed as one. Add a numpyro.plate, or "
                    "to_event(...) if they belong together.",
                    stacklevel=2,
                )
