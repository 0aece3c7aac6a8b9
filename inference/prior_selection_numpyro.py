"""Prior selection for any NumPyro model: its latent normals, and what they predict."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from numpyro import handlers
from numpyro.distributions import ExpandedDistribution, Independent, MaskedDistribution, Normal
from numpyro.primitives import Messenger

from bayesdiv.inference.prior_selection import PriorPredictive
from bayesdiv.nn import WeightPrior

__all__ = ["NumPyroPriorPredictive", "with_normal_priors"]


class NumPyroPriorPredictive(PriorPredictive):
    """What a NumPyro model predicts, as a function of the normal priors of its latent sites.

    The model stays as it is: the sites that are tuned get other means and log-variances when it
    runs, all others keep their own prior, and the observation is drawn instead of conditioned on.
    Draws are vectorised with ``jax.vmap``.

    Parameters
    ----------
    model
        A NumPyro model.
    batch
        Data to look at the model with, ``(n, ...)``.
    site
        The observed site, whose distribution has ``has_rsample``; one row a datum.
    arguments
        From a batch to the model's arguments: ``lambda batch: (batch,)`` if left out.
    tuned
        Which latent sites; all those with a normal prior if left out.

    Raises
    ------
    ValueError
        If there is no such site, no draw of it is differentiable, or a tuned site is not normal.
    """

    def __init__(
        self,
        model: Callable[..., Any],
        batch: jax.Array,
        *,
        site: str,
        arguments: Callable[[Any], tuple] | None = None,
        tuned: list[str] | None = None,
    ) -> None:
        arguments = arguments or (lambda batch: (batch,))
        trace = _trace(model, jax.random.key(0), *arguments(batch))
        _check_observation(trace, site)
        super().__init__(_start(trace, site, tuned))
        object.__setattr__(self, "model", model)
        object.__setattr__(self, "site", site)
        object.__setattr__(self, "arguments", arguments)

    model: Callable[..., Any]
    site: str
    arguments: Callable[[Any], tuple]

    def __call__(
        self,
        parameters: Mapping[str, jax.Array],
        batch: jax.Array,
        num_draws: int,
        rng: jax.Array,
    ) -> jax.Array:
        """Rows drawn at ``site``, ``(num_draws * n, ...)`` flattened, every draw with own latents.

        ``batch`` has shape ``(n, ...)``.
        """
        model = with_normal_priors(self.model, self.prior(parameters))

        def draw(key: jax.Array) -> jax.Array:
            return _trace(model, key, *self.arguments(batch))[self.site]["value"]

        drawn = jax.vmap(draw)(jax.random.split(rng, num_draws))
        return drawn.reshape(num_draws * len(batch), -1)


def with_normal_priors(model: Callable[..., Any], prior: WeightPrior) -> Callable[..., Any]:
    """The model with N(mean, exp(log_variance)) on the latent sites that ``prior`` names.

    This is how a tuned prior goes into inference: ``SGHMC(with_normal_priors(model, prior), ...)``.

    Raises
    ------
    ValueError
        When it runs, if a site has another shape than the prior's.
    """

    def run(*args: Any, **kwargs: Any) -> Any:
        with _NormalPriors(prior):
            return model(*args, **kwargs)

    return run


class _NormalPriors(Messenger):
    def __init__(self, prior: WeightPrior) -> None:
        super().__init__()
        self._prior = prior

    def process_message(self, msg: dict[str, Any]) -> None:
        if msg["type"] != "sample" or msg["is_observed"]:
            return
        name = msg["name"]
        if name not in self._prior.shapes:
            return
        shape = _shape_of(msg["fn"])
        if shape != tuple(self._prior.shapes[name]):
            raise ValueError(
                f"prior has shape {tuple(self._prior.shapes[name])} for site {name!r}, whose shape "
                f"is {shape}."
            )
        law = Normal(self._prior.mean[name], self._prior.scale(name))
        msg["fn"] = law.expand(shape).to_event(msg["fn"].event_dim)


def _trace(model: Callable[..., Any], key: jax.Array, *args: Any) -> dict[str, Any]:
    run = handlers.seed(handlers.uncondition(model), key)
    return handlers.trace(run).get_trace(*args)


def _shape_of(fn: Any) -> tuple[int, ...]:
    return tuple(fn.batch_shape) + tuple(fn.event_shape)


def _check_observation(trace: Any, site: str) -> None:
    names = [name for name, node in trace.items() if node["type"] == "sample"]
    if site not in names:
        raise ValueError(f"site must be one of the model's, {', '.join(names)}; got {site!r}.")
    if not trace[site]["fn"].has_rsample:
        raise ValueError(
            f"site {site!r} must have a distribution with has_rsample, so that hyper-parameters "
            f"feel its draws; got {type(trace[site]['fn']).__name__}."
        )


def _start(trace: Any, site: str, tuned: list[str] | None) -> WeightPrior:
    normals = {
        name: node["fn"]
        for name, node in trace.items()
        if node["type"] == "sample"
        and not node["infer"].get("was_observed")
        and name != site
        and _is_normal(node["fn"])
    }
    for name in tuned or ():
        if name not in normals:
            raise ValueError(
                f"tuned must name latent sites with a normal prior, {', '.join(normals)}; got "
                f"{name!r}."
            )
    chosen = list(normals) if tuned is None else tuned
    if not chosen:
        raise ValueError("model must have a latent site with a normal prior, got none.")
    shapes = {name: _shape_of(normals[name]) for name in chosen}
    return WeightPrior(
        shapes,
        {name: jnp.broadcast_to(normals[name].mean, shapes[name]) for name in chosen},
        {name: jnp.broadcast_to(jnp.log(normals[name].variance), shapes[name]) for name in chosen},
    )


def _is_normal(fn: Any) -> bool:
    # Not every base is a wrapper's: that of a half-normal or log-normal law is normal too.
    while isinstance(fn, Independent | ExpandedDistribution | MaskedDistribution):
        fn = fn.base_dist
    return isinstance(fn, Normal)
