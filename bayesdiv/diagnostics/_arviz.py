"""Guides, chains and weighted draws as ArviZ objects."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from bayesdiv.diagnostics._container import build_container
from bayesdiv.diagnostics._groups import Groups, as_numpy, group_weighted_draws, stack_chains
from bayesdiv.diagnostics._hosts import adapter, check_host, find_host
from bayesdiv.diagnostics._psis import resample_groups


def to_arviz(
    source: Any,
    model: Any = None,
    *args: Any,
    params: Any = None,
    rng_key: Any = None,
    seed: int | None = None,
    num_draws: int = 1000,
    posterior_predictive: bool = False,
    log_likelihood: bool = False,
    log_weights: Any = None,
    resample: bool = False,
    objective: Any = None,
    losses: Any = None,
    model_kwargs: Mapping[str, Any] | None = None,
    dims: Mapping[str, list[str]] | None = None,
    coords: Mapping[str, Any] | None = None,
    backend: str | None = None,
) -> Any:
    """Convert a fit to ArviZ: to an ``InferenceData`` (0.x) or a ``DataTree`` (1.x).

    ===============================  ==========================================================
    source                           call
    ===============================  ==========================================================
    a Pyro guide                     ``to_arviz(guide, model, *args)``
    a NumPyro guide                  ``to_arviz(guide, model, *args, params=..., rng_key=...)``
    restarts: guides, or params      a list of them; each is one chain
    ``MCMC`` of Pyro or NumPyro      ``to_arviz(mcmc)``
    draws with weights               ``to_arviz({name: (draw, *shape)}, log_weights=...)``
    ===============================  ==========================================================

    Groups: ``posterior`` (constrained values, deterministic sites included), ``sample_stats`` (for
    guides ``log_p`` and ``log_q``, the joint log p̃(x, z) and the guide's log-density at each draw,
    in nats; for chains ``log_p`` and the sampler's own; for weighted draws ``log_weight``),
    ``observed_data``, and on request ``posterior_predictive`` and ``log_likelihood``. Dims after
    ``chain`` and ``draw`` are named after plates. A subsampled plate has one subsample, common to
    all draws. Sites that were enumerated have no draws; then there is no ``log_p`` either.

    Parameters
    ----------
    source
        See the table.
    model, args, model_kwargs
        The model of a guide and the arguments that both were fitted with; chains know theirs.
    params
        NumPyro: what ``svi.get_params`` or ``svi.run`` returned; a list makes chains.
    rng_key
        NumPyro: a JAX key; guides need one.
    seed
        Pyro, and for ``resample``: of a generator of its own; None draws from the global one.
    num_draws
        Draws from each guide.
    posterior_predictive
        Whether to draw the observed sites anew at each draw.
    log_likelihood
        Whether to keep the pointwise log-likelihood, as leave-one-out needs.
    log_weights
        ``(draw,)`` or ``(chain, draw)`` for weighted draws.
    resample
        Whether to resample each chain by Pareto-smoothed weights, of ``log_weights`` or of
        log p̃ − log q; the attribute ``pareto_k`` says whether that may be trusted (below 0.7).
    objective
        What was minimised: a name, a divergence or the ``loss`` itself; goes into the attributes.
    losses
        The loss history, or a list of histories, which the attribute keeps one after another.
    dims, coords
        Names of axes by variable, and labels along them, as in ArviZ.
    backend
        "pyro" or "numpyro" where a guide is a plain function and ``params`` do not tell.

    Raises
    ------
    TypeError
        ``source`` is none of the above.
    ValueError
        A missing ``model``, ``params`` or ``rng_key``; restarts or weights that do not fit;
        ``log_likelihood`` with a subsampled plate.
    """
    kwargs = dict(model_kwargs or {})
    parts = {"posterior_predictive": posterior_predictive, "log_likelihood": log_likelihood}
    losses = _losses_of(params) if losses is None else losses
    if isinstance(source, Mapping):
        groups = group_weighted_draws(source, log_weights)
    elif hasattr(source, "get_samples") and hasattr(source, "run"):
        host = find_host(source)
        if host == "pyro":
            groups = adapter(host, "_arviz").mcmc_groups(source, seed=seed, **parts)
        elif host == "numpyro":
            groups = adapter(host, "_arviz").mcmc_groups(source, rng_key=rng_key, **parts)
        else:
            raise TypeError(
                f"source must be the MCMC of Pyro or NumPyro, got {type(source).__module__}."
                f"{type(source).__name__}; pass its draws as a mapping."
            )
    else:
        groups = _from_guides(
            source, model, args, kwargs, params, rng_key, seed, num_draws, parts, backend
        )
    if log_weights is not None and not isinstance(source, Mapping):
        raise ValueError("log_weights belong to a mapping of draws, got a guide or chains.")
    groups = groups.with_attrs(
        **describe_objective(objective), loss_history=_loss_attribute(losses)
    )
    if resample:
        groups = resample_groups(groups, seed=seed)
    return build_container(groups, dims=dims, coords=coords)


def _from_guides(
    source: Any,
    model: Any,
    args: tuple,
    kwargs: dict[str, Any],
    params: Any,
    rng_key: Any,
    seed: int | None,
    num_draws: int,
    parts: dict[str, bool],
    backend: str | None,
) -> Groups:
    guides = list(source) if isinstance(source, list | tuple) else [source]
    if not guides or not all(callable(guide) for guide in guides):
        raise TypeError(
            "source must be a guide, a list of guides, an MCMC object or a mapping of draws, got "
            f"{type(source).__name__}."
        )
    if not callable(model):
        raise ValueError(
            f"model must be the callable that the guide was fitted to, got {model!r}; call "
            "to_arviz(guide, model, *args)."
        )
    if isinstance(num_draws, bool) or not isinstance(num_draws, int) or num_draws < 1:
        raise ValueError(f"num_draws must be an integer of at least 1, got {num_draws!r}.")
    host = check_host(backend) if backend is not None else find_host(*guides)
    if host is None:
        host = "pyro" if params is None and rng_key is None else "numpyro"
    convert = adapter(host, "_arviz").guide_groups
    if host == "pyro":
        chains = [
            convert(
                guide,
                model,
                args,
                kwargs,
                num_draws=num_draws,
                seed=None if seed is None else seed + index,
                **parts,
            )
            for index, guide in enumerate(guides)
        ]
        return stack_chains(chains)
    if params is None or rng_key is None:
        name = "params" if params is None else "rng_key"
        raise ValueError(
            f"{name} is needed for a NumPyro guide, got None; call to_arviz(guide, model, *args, "
            "params=svi.get_params(state), rng_key=jax.random.key(0))."
        )
    fitted = list(params) if _is_sequence_of_fits(params) else [params]
    if len(guides) == 1:
        guides = guides * len(fitted)
    if len(guides) != len(fitted):
        raise ValueError(
            f"params must have one entry a guide, got {len(fitted)} for {len(guides)} guides."
        )
    chains = convert(
        guides,
        [_parameters_of(fit) for fit in fitted],
        model,
        args,
        kwargs,
        rng_key=rng_key,
        num_draws=num_draws,
        **parts,
    )
    return stack_chains(chains)


def _is_sequence_of_fits(params: Any) -> bool:
    # The result of svi.run is a tuple too, with names.
    return isinstance(params, list | tuple) and not hasattr(params, "_fields")


def _parameters_of(fit: Any) -> dict[str, Any]:
    """Parameters of ``fit``: a mapping, or the result of NumPyro's ``svi.run``."""
    if isinstance(fit, Mapping):
        return dict(fit)
    if hasattr(fit, "params") and hasattr(fit, "state"):
        return {**(getattr(fit.state, "mutable_state", None) or {}), **fit.params}
    raise ValueError(
        "params must be a mapping of parameters or the result of svi.run, got "
        f"{type(fit).__name__}."
    )


def _losses_of(params: Any) -> Any:
    fits: Sequence[Any] = list(params) if _is_sequence_of_fits(params) else [params]
    if params is not None and all(hasattr(fit, "losses") for fit in fits):
        histories = [fit.losses for fit in fits]
        return histories if len(histories) > 1 else histories[0]
    return None


def _loss_attribute(losses: Any) -> list[float] | None:
    """Plain numbers, which netCDF can hold; several histories one after another."""
    if losses is None:
        return None
    histories = losses if isinstance(losses, list | tuple) else [losses]
    return np.concatenate([np.ravel(as_numpy(entry)) for entry in histories]).astype(float).tolist()


def describe_objective(objective: Any) -> dict[str, Any]:
    """Attributes ``objective``, ``divergence`` and ``num_particles``, as far as they are known."""
    if objective is None:
        return {}
    if isinstance(objective, str):
        return {"objective": objective}
    settings = getattr(objective, "settings", None)
    if settings is None and not hasattr(objective, "num_particles"):
        name = repr(objective)
        return {"objective": name, "divergence": name}
    divergence = getattr(settings, "objective", getattr(settings, "divergence", None))
    described = {
        "objective": type(objective).__name__,
        "num_particles": getattr(objective, "num_particles", None),
    }
    if divergence is not None:
        described["divergence"] = divergence if isinstance(divergence, str) else repr(divergence)
    return described
