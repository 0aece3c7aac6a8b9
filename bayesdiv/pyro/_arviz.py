"""Groups for the ArviZ bridge from Pyro guides and chains."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import pyro
import torch
from pyro import poutine

from bayesdiv.diagnostics._groups import Groups, as_numpy
from bayesdiv.pyro._replay import Evaluation, Layout, draw_guide, evaluate_model, read_layout


def guide_groups(
    guide: Any,
    model: Callable,
    args: tuple,
    kwargs: Mapping[str, Any],
    *,
    num_draws: int,
    seed: int | None,
    posterior_predictive: bool,
    log_likelihood: bool,
) -> Groups:
    """One chain of draws from a fitted guide; see :func:`bayesdiv.diagnostics.to_arviz`."""
    with torch.no_grad(), _seeded(seed), own_parameters(guide):
        guide_trace = poutine.trace(guide).get_trace(*args, **kwargs)
        layout = read_layout(model, args, kwargs, guide_trace)
        _check_request(layout, log_likelihood=log_likelihood)
        values, log_q = draw_guide(guide, args, kwargs, layout, num_draws)
        missing = set(layout.names("latent")) - set(values)
        if missing:
            _refuse_parts(missing, posterior_predictive or log_likelihood)
            draws = {name: as_numpy(values[name])[None] for name in layout.sites if name in values}
            stats = {"log_q": as_numpy(log_q)[None]}
            return Groups({"posterior": draws, "sample_stats": stats}, layout.dims())
        found = evaluate_model(
            model, args, kwargs, layout, values, num_draws, predictive=posterior_predictive
        )
    return _to_groups(found, layout, (1, num_draws), {"log_q": log_q}, log_likelihood)


def mcmc_groups(
    mcmc: Any, *, seed: int | None, posterior_predictive: bool, log_likelihood: bool
) -> Groups:
    """The chains of a ``pyro.infer.MCMC`` that has run."""
    samples = mcmc.get_samples(group_by_chain=True)
    width = getattr(mcmc.kernel, "num_chains", 1)
    if width > 1:
        samples = {name: _chains_first(value) for name, value in samples.items()}
    lead = next(iter(samples.values())).shape[:2]
    count = lead.numel()
    stats = _kernel_statistics(mcmc)
    # Pyro's own takes the effective sample size of every entry, which large networks feel.
    diagnostics = {} if stats else mcmc.diagnostics()
    if "divergences" in diagnostics:
        stats["diverging"] = np.zeros(lead, dtype=bool)
        for chain, steps in enumerate(diagnostics["divergences"].values()):
            stats["diverging"][chain, list(steps)] = True
    rates = diagnostics.get("acceptance rate", {})
    attrs = {"acceptance_rate": [float(rate) for rate in rates.values()]} if rates else {}
    model, args, kwargs = getattr(mcmc.kernel, "model", None), mcmc._args, mcmc._kwargs
    plain = {name: as_numpy(value) for name, value in samples.items()}
    without_model = Groups({"posterior": plain, "sample_stats": stats}, attrs=attrs)
    if model is None:
        if posterior_predictive or log_likelihood:
            raise ValueError(
                "posterior_predictive and log_likelihood need the kernel's model, got a kernel "
                "made from a potential function."
            )
        return without_model
    flat = {name: value.flatten(0, 1) for name, value in samples.items()}
    with torch.no_grad(), _seeded(seed):
        first = poutine.Trace()
        for name, value in flat.items():
            first.add_node(name, type="sample", value=value[0], is_observed=False, infer={})
        layout = read_layout(model, args, kwargs, first)
        missing = set(layout.names("latent")) - set(samples)
        if missing:
            _refuse_parts(missing, posterior_predictive or log_likelihood)
            return Groups(without_model.variables, layout.dims(), attrs)
        _check_request(layout, log_likelihood=log_likelihood)
        found = evaluate_model(
            model, args, kwargs, layout, flat, count, predictive=posterior_predictive
        )
    groups = _to_groups(found, layout, tuple(lead), {}, log_likelihood)
    groups.variables["sample_stats"].update(stats)
    return groups.with_attrs(**attrs)


def _chains_first(value: torch.Tensor) -> torch.Tensor:
    """``(run * chain, draw, *shape)`` from ``(run, draw, chain, *shape)``."""
    return value.transpose(1, 2).flatten(0, 1)


def _kernel_statistics(mcmc: Any) -> dict[str, np.ndarray]:
    """``{name: (chain, draw)}`` of a kernel that reports ``sample_stats``; else empty.

    ``lp`` is minus the potential, an estimate where the model subsamples.
    """
    runs = [found or {} for found in mcmc._diagnostics]
    if not all(run.get("sample_stats") for run in runs):
        return {}
    stats = {
        name: np.concatenate([as_numpy(run["sample_stats"][name]).T for run in runs])
        for name in runs[0]["sample_stats"]
    }
    stats["lp"] = -stats.pop("potential")
    stats["diverging"] = np.zeros(stats["lp"].shape, dtype=bool)
    return stats


@contextmanager
def own_parameters(guide: Any) -> Iterator[None]:
    """Run a module guide with the parameters it holds.

    Pyro looks a module's parameters up by name in the store, where those of a later fit of the same
    class replace them.
    """
    store = pyro.get_param_store()
    prefix = getattr(guide, "_pyro_name", None)
    if not isinstance(guide, torch.nn.Module) or not prefix:
        yield
        return
    state: Any = store.get_state()
    for part in ("params", "constraints"):
        state[part] = {
            name: value
            for name, value in state[part].items()
            if not name.startswith((f"{prefix}.", f"{prefix}$$$"))
        }
    with store.scope(state):
        yield


@contextmanager
def _seeded(seed: int | None) -> Iterator[None]:
    """A generator of its own, unless ``seed`` is None; the global one continues afterwards."""
    if seed is None:
        yield
        return
    devices = [torch.cuda.current_device()] if torch.cuda.is_available() else []
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(seed)
        yield


def _refuse_parts(missing: set[str], wanted: bool) -> None:  # noqa: FBT001 - private
    """Enumerated sites are summed out; what depends on their values cannot be had."""
    if wanted:
        raise ValueError(
            "posterior_predictive and log_likelihood need a draw of every latent site, but there "
            f"is none of {sorted(missing)}; draw enumerated sites with infer_discrete."
        )


def _check_request(layout: Layout, *, log_likelihood: bool) -> None:
    if log_likelihood and layout.subsamples:
        raise ValueError(
            f"log_likelihood=True needs every observation, but plates {sorted(layout.subsamples)} "
            "are subsampled; call the model without subsample_size."
        )


def _to_groups(
    found: Evaluation,
    layout: Layout,
    lead: tuple[int, ...],
    stats: Mapping[str, torch.Tensor],
    log_likelihood: bool,  # noqa: FBT001 - private
) -> Groups:
    def shaped(values: Mapping[str, torch.Tensor]) -> dict[str, np.ndarray]:
        return {name: as_numpy(v).reshape(*lead, *v.shape[1:]) for name, v in values.items()}

    variables = {
        "posterior": shaped({**found.latent, **found.deterministic}),
        "sample_stats": shaped({"log_p": found.log_p, **stats}),
        "posterior_predictive": shaped(found.predictive),
        "log_likelihood": shaped(found.log_likelihood) if log_likelihood else {},
        "observed_data": {name: as_numpy(value) for name, value in layout.observed.items()},
    }
    return Groups(variables, layout.dims(), deterministic=tuple(layout.names("deterministic")))
