"""Groups for the ArviZ bridge from NumPyro guides and chains."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from numpyro import handlers

from bayesdiv.diagnostics._groups import Groups
from bayesdiv.numpyro._chain_checks import check_chains
from bayesdiv.numpyro._stochastic_gradient import StochasticGradientKernel

# Draws that are evaluated at once; more would only take memory.
_BATCH = 250
_STATISTIC_NAMES = {
    "potential_energy": "lp",
    "adapt_state.step_size": "step_size",
    "num_steps": "n_steps",
    "accept_prob": "acceptance_rate",
}


def guide_groups(
    guides: list[Callable],
    fits: list[Mapping[str, Any]],
    model: Callable,
    args: tuple,
    kwargs: Mapping[str, Any],
    *,
    rng_key: jax.Array,
    num_draws: int,
    posterior_predictive: bool,
    log_likelihood: bool,
) -> list[Groups]:
    """One chain of draws from each fitted guide; see :func:`bayesdiv.diagnostics.to_arviz`."""
    sources: dict[int, GuideDraws] = {}
    chains = []
    for index, (guide, params) in enumerate(zip(guides, fits, strict=True)):
        # Restarts of one guide differ in their parameters only and share what is compiled.
        if id(guide) not in sources:
            sources[id(guide)] = GuideDraws(
                guide,
                model,
                args,
                kwargs,
                posterior_predictive=posterior_predictive,
                log_likelihood=log_likelihood,
            )
        chains.append(sources[id(guide)](params, jax.random.fold_in(rng_key, index), num_draws))
    return chains


class GuideDraws:
    """Draws from a guide at any of its parameters, compiled once."""

    def __init__(
        self,
        guide: Callable,
        model: Callable,
        args: tuple,
        kwargs: Mapping[str, Any],
        *,
        posterior_predictive: bool = False,
        log_likelihood: bool = False,
    ) -> None:
        self.guide, self.model, self.args, self.kwargs = guide, model, args, kwargs
        self.posterior_predictive, self.log_likelihood = posterior_predictive, log_likelihood
        self._draws: Callable | None = None
        self._sites: dict[str, Any] = {}
        self._reference: dict[str, Any] = {}

    def __call__(self, params: Mapping[str, Any], rng_key: jax.Array, num_draws: int) -> Groups:
        """One chain of draws at ``params``."""
        params = dict(params)
        if self._draws is None:
            self._draws = self._compile(params, rng_key)
        found = jax.device_get(self._draws(params, jax.random.split(rng_key, num_draws)))
        return _to_groups(
            found,
            self._sites,
            (1, num_draws),
            self._reference,
            log_likelihood=self.log_likelihood,
        )

    def _compile(self, params: dict[str, Any], rng_key: jax.Array) -> Callable:
        """Read the sites off one run, and return ``(params, keys) -> values``."""
        guide, model, args, kwargs = self.guide, self.model, self.args, self.kwargs
        guide_key, model_key = jax.random.split(rng_key)
        fitted = handlers.substitute(guide, data=params)
        first = handlers.trace(handlers.seed(fitted, guide_key)).get_trace(*args, **kwargs)
        fitted_model = handlers.substitute(model, data=params)
        reference = _run_model(fitted_model, args, kwargs, model_key, _latent_values(first))
        subsamples = _subsamples(first) | _subsamples(reference)
        sites = _read_sites(reference)
        _check_subsamples(subsamples, log_likelihood=self.log_likelihood)
        missing = [name for name in _of_kind(sites, "latent") if name not in first]
        if missing:
            _refuse_parts(missing, self.posterior_predictive or self.log_likelihood)
        self._sites, self._reference = sites, reference

        def draw(params: dict[str, Any], key: jax.Array) -> dict[str, Any]:
            key_guide, key_model, key_new = jax.random.split(key, 3)
            # Every draw shares the subsample, else a local site would mean another datum in each.
            seeded = handlers.seed(handlers.substitute(guide, data=params | subsamples), key_guide)
            trace = handlers.trace(seeded).get_trace(*args, **kwargs)
            values = _latent_values(trace) | subsamples
            log_q = _log_density(trace)
            if missing:
                return {"latent": {n: v for n, v in values.items() if n in sites}, "log_q": log_q}
            with_params = handlers.substitute(model, data=params)
            found = _evaluate(with_params, args, kwargs, key_model, values, sites)
            if self.posterior_predictive:
                found["predictive"] = _predict(with_params, args, kwargs, key_new, values, sites)
            return found | {"log_q": log_q}

        @jax.jit
        def draws(params: dict[str, Any], keys: jax.Array) -> dict[str, Any]:
            size = min(len(keys), _BATCH)
            return jax.lax.map(lambda key: draw(params, key), keys, batch_size=size)

        return draws


def mcmc_groups(
    mcmc: Any,
    *,
    rng_key: jax.Array | None,
    posterior_predictive: bool,
    log_likelihood: bool,
) -> Groups:
    """The chains of a ``numpyro.infer.MCMC`` that has run."""
    if isinstance(mcmc.sampler, StochasticGradientKernel):
        check_chains(mcmc)
    samples = jax.device_get(mcmc.get_samples(group_by_chain=True))
    if hasattr(samples, "_asdict"):
        samples = samples._asdict()
    if not isinstance(samples, dict):
        samples = {f"Param:{i}": leaf for i, leaf in enumerate(jax.tree.leaves(samples))}
    lead = next(iter(samples.values())).shape[:2]
    count = int(np.prod(lead))
    stats = _statistics(mcmc)
    model = mcmc.sampler.model
    args, kwargs = mcmc._args, mcmc._kwargs
    without_model = Groups({"posterior": dict(samples), "sample_stats": stats})
    if model is None:
        if posterior_predictive or log_likelihood:
            raise ValueError(
                "posterior_predictive and log_likelihood need the kernel's model, got a kernel "
                "made from a potential function."
            )
        return without_model
    flat = {name: value.reshape(count, *value.shape[2:]) for name, value in samples.items()}
    key = jax.random.PRNGKey(0) if rng_key is None else rng_key
    first = {name: value[0] for name, value in flat.items()}
    reference = _run_model(model, args, kwargs, key, first)
    sites = _read_sites(reference)
    subsamples = _subsamples(reference)
    _check_subsamples(subsamples, log_likelihood=log_likelihood)
    missing = [name for name in _of_kind(sites, "latent") if name not in flat]
    if missing:
        _refuse_parts(missing, posterior_predictive or log_likelihood)
        return Groups(without_model.variables, _dims(sites))

    def evaluate(inputs: tuple[jax.Array, dict[str, Any]]) -> dict[str, Any]:
        draw_key, values = inputs
        key_model, key_new = jax.random.split(draw_key)
        values = {name: values[name] for name in _of_kind(sites, "latent")} | subsamples
        found = _evaluate(model, args, kwargs, key_model, values, sites)
        if posterior_predictive:
            found["predictive"] = _predict(model, args, kwargs, key_new, values, sites)
        return found

    inputs = (jax.random.split(key, count), flat)
    mapped = jax.jit(lambda xs: jax.lax.map(evaluate, xs, batch_size=min(count, _BATCH)))
    found = jax.device_get(mapped(inputs))
    groups = _to_groups(found, sites, tuple(lead), reference, log_likelihood=log_likelihood)
    # What the chains recorded themselves stands, sites of the reparameterised model included.
    groups.variables["posterior"] = groups.variables["posterior"] | dict(samples)
    groups.variables["sample_stats"] |= stats
    return groups


def _run_model(
    model: Callable, args: tuple, kwargs: Mapping, key: jax.Array, values: Mapping[str, Any]
) -> dict[str, Any]:
    # Substituting a value keeps a site latent, where conditioning would make it observed.
    model = handlers.seed(handlers.substitute(model, data=dict(values)), key)
    return handlers.trace(model).get_trace(*args, **kwargs)


def _evaluate(
    model: Callable,
    args: tuple,
    kwargs: Mapping,
    key: jax.Array,
    values: Mapping[str, Any],
    sites: Mapping[str, str],
) -> dict[str, Any]:
    trace = _run_model(model, args, kwargs, key, values)
    return {
        "latent": {name: trace[name]["value"] for name in _of_kind(sites, "latent")},
        "deterministic": {name: trace[name]["value"] for name in _of_kind(sites, "deterministic")},
        "log_likelihood": {
            name: _site_log_prob(trace[name]) for name in _of_kind(sites, "observed")
        },
        "log_p": _log_density(trace),
    }


def _predict(
    model: Callable,
    args: tuple,
    kwargs: Mapping,
    key: jax.Array,
    values: Mapping[str, Any],
    sites: Mapping[str, str],
) -> dict[str, Any]:
    """Observed sites drawn anew."""
    trace = _run_model(handlers.uncondition(model), args, kwargs, key, values)
    return {name: trace[name]["value"] for name in _of_kind(sites, "observed")}


def _site_log_prob(site: Mapping[str, Any]) -> jax.Array:
    if site["intermediates"]:
        return site["fn"].log_prob(site["value"], site["intermediates"])
    return site["fn"].log_prob(site["value"])


def _log_density(trace: Mapping[str, Any]) -> jax.Array:
    """Scaled log-density of all sample sites, a scalar."""
    total = jnp.zeros(())
    for site in trace.values():
        if site["type"] == "sample":
            term = jnp.sum(_site_log_prob(site))
            total = total + (term if site["scale"] is None else site["scale"] * term)
    return total


def _latent_values(trace: Mapping[str, Any]) -> dict[str, Any]:
    return {
        name: site["value"]
        for name, site in trace.items()
        if site["type"] == "sample" and not site["is_observed"]
    }


def _subsamples(trace: Mapping[str, Any]) -> dict[str, Any]:
    """Index sets of the plates that are subsampled."""
    return {
        name: site["value"]
        for name, site in trace.items()
        if site["type"] == "plate" and site["value"].shape[0] < site["args"][0]
    }


def _read_sites(trace: Mapping[str, Any]) -> dict[str, Any]:
    """Sites worth keeping: kind and names of the plates along the leading axes."""
    sites = {}
    for name, site in trace.items():
        if site["type"] == "sample":
            if site["is_observed"] and isinstance(_base(site["fn"]), dist.Unit):
                continue
            kind = "observed" if site["is_observed"] else "latent"
            batch = tuple(site["fn"].batch_shape)
        elif site["type"] == "deterministic":
            kind, batch = "deterministic", tuple(jnp.shape(site["value"]))
        else:
            continue
        frames = {frame.dim: frame for frame in site.get("cond_indep_stack", [])}
        fits = all(-dim <= len(batch) and batch[dim] == f.size for dim, f in frames.items())
        names = [frames[dim].name if dim in frames else None for dim in range(-len(batch), 0)]
        named = list(site.get("infer", {}).get("event_dims", []))
        plates = [*names, *named] if fits or kind != "deterministic" else []
        sites[name] = (kind, plates)
    return sites


def _of_kind(sites: Mapping[str, Any], kind: str) -> list[str]:
    return [name for name, (found, _) in sites.items() if found == kind]


def _dims(sites: Mapping[str, Any]) -> dict[str, list[str | None]]:
    return {name: plates for name, (_, plates) in sites.items() if any(plates)}


def _base(fn: Any) -> Any:
    while hasattr(fn, "base_dist") and not isinstance(fn, dist.TransformedDistribution):
        fn = fn.base_dist
    return fn


def _statistics(mcmc: Any) -> dict[str, np.ndarray]:
    """The sampler's extra fields under ArviZ's names."""
    stats = {}
    for name, value in mcmc.get_extra_fields(group_by_chain=True).items():
        if isinstance(value, dict | tuple):
            continue
        value = np.asarray(value)
        stats[_STATISTIC_NAMES.get(name, name)] = -value if name == "potential_energy" else value
        if name == "num_steps":
            stats["tree_depth"] = np.log2(value).astype(int) + 1
    return stats


def _check_subsamples(subsamples: Mapping[str, Any], *, log_likelihood: bool) -> None:
    if log_likelihood and subsamples:
        raise ValueError(
            f"log_likelihood=True needs every observation, but plates {sorted(subsamples)} are "
            "subsampled; call the model without subsample_size."
        )


def _refuse_parts(missing: list[str], wanted: bool) -> None:  # noqa: FBT001 - private
    """Enumerated sites are summed out; what depends on their values cannot be had."""
    if wanted:
        raise ValueError(
            "posterior_predictive and log_likelihood need a draw of every latent site, but there "
            f"is none of {sorted(missing)}; draw enumerated sites with infer_discrete."
        )


def _to_groups(
    found: Mapping[str, Any],
    sites: Mapping[str, Any],
    lead: tuple[int, ...],
    reference: Mapping[str, Any],
    *,
    log_likelihood: bool,
) -> Groups:
    def shaped(values: Mapping[str, Any]) -> dict[str, np.ndarray]:
        return {name: np.reshape(v, (*lead, *np.shape(v)[1:])) for name, v in values.items()}

    values = {**found["latent"], **found.get("deterministic", {})}
    stats = {name: found[name] for name in ("log_p", "log_q") if name in found}
    variables = {
        # Compiled code returns sites by name; the model's order reads better.
        "posterior": shaped({name: values[name] for name in sites if name in values}),
        "sample_stats": shaped(stats),
        "posterior_predictive": shaped(found.get("predictive", {})),
        "log_likelihood": shaped(found.get("log_likelihood", {})) if log_likelihood else {},
        "observed_data": {
            name: np.asarray(reference[name]["value"]) for name in _of_kind(sites, "observed")
        },
    }
    deterministic = tuple(_of_kind(sites, "deterministic"))
    return Groups(variables, _dims(sites), deterministic=deterministic)
