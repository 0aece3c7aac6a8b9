"""Prior selection for any Pyro model: its latent normals, and what they predict."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from pyro import poutine
from pyro.distributions import Independent, MaskedDistribution, Normal
from pyro.distributions.torch_distribution import ExpandedDistribution
from pyro.poutine.messenger import Messenger

from bayesdiv._random import next_rng
from bayesdiv.inference.prior_selection import PriorPredictive
from bayesdiv.nn import WeightPrior

__all__ = ["PyroPriorPredictive", "with_normal_priors"]


class PyroPriorPredictive(PriorPredictive):
    """What a Pyro model predicts, as a function of the normal priors of its latent sites.

    The model stays as it is: the sites that are tuned get other means and log-variances when it
    runs, all others keep their own prior, and the observation is drawn instead of conditioned on.
    Draws are made one after the other; `bayesdiv.inference.prior_selection.NetworkPriorPredictive`
    makes them at once.

    Parameters
    ----------
    model
        A Pyro model.
    batch
        Data to look at the model with, ``(n, ...)``.
    site
        The observed site, whose distribution has ``rsample``; one row a datum.
    arguments
        From a batch to the model's arguments: ``lambda batch: (batch,)`` if left out.
    tuned
        Which latent sites; all those with a normal prior if left out.

    Raises
    ------
    ValueError
        If there is no such site, no draw of it is differentiable, or a tuned site is not normal.

    Examples
    --------
    >>> import pyro, pyro.distributions as dist, torch
    >>> def model(y):
    ...     mean = pyro.sample("mean", dist.Normal(0.0, 1.0))
    ...     with pyro.plate("data", len(y)):
    ...         pyro.sample("y", dist.Normal(mean, 0.5), obs=y)
    >>> predictive = PyroPriorPredictive(model, torch.zeros(20), site="y")
    >>> {name: float(value) for name, value in predictive.parameters.items()}
    {'mean.mean': 0.0, 'mean.log_variance': 0.0}
    >>> predictive(predictive.parameters, torch.zeros(20), num_draws=3, rng=0).shape
    torch.Size([60, 1])
    """

    def __init__(
        self,
        model: Callable[..., Any],
        batch: torch.Tensor,
        *,
        site: str,
        arguments: Callable[[Any], tuple] | None = None,
        tuned: list[str] | None = None,
    ) -> None:
        arguments = arguments or (lambda batch: (batch,))
        with seeded(0, batch), torch.no_grad():
            trace = poutine.trace(poutine.uncondition(model)).get_trace(*arguments(batch))
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
        parameters: Mapping[str, torch.Tensor],
        batch: torch.Tensor,
        num_draws: int,
        rng: int,
    ) -> torch.Tensor:
        """Rows drawn at ``site``, ``(num_draws * n, ...)`` flattened, every draw with own latents.

        ``batch`` has shape ``(n, ...)``; the global generators are left as they were.
        """
        run = poutine.uncondition(with_normal_priors(self.model, self.prior(parameters)))
        rows = []
        with seeded(rng, batch):
            for _ in range(num_draws):
                trace = poutine.trace(run).get_trace(*self.arguments(batch))
                value: Any = trace.nodes[self.site]["value"]
                rows.append(value.reshape(len(batch), -1))
        return torch.cat(rows)


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

    def _pyro_sample(self, msg: dict[str, Any]) -> None:
        name = msg["name"]
        if name not in self._prior.shapes or msg["is_observed"]:
            return
        shape = tuple(msg["fn"].shape())
        if shape != tuple(self._prior.shapes[name]):
            raise ValueError(
                f"prior has shape {tuple(self._prior.shapes[name])} for site {name!r}, whose shape "
                f"is {shape}."
            )
        law = Normal(self._prior.mean[name], self._prior.scale(name))
        msg["fn"] = law.expand(shape).to_event(msg["fn"].event_dim)


@contextmanager
def seeded(seed: int, like: torch.Tensor) -> Iterator[None]:
    """Draws from ``seed`` inside, and generators as they were outside."""
    devices = [like.device] if like.device.type == "cuda" else []
    with torch.random.fork_rng(devices):
        (_, start) = next_rng(seed, like, 1)
        torch.manual_seed(start)
        yield


def _check_observation(trace: Any, site: str) -> None:
    names = [name for name, node in trace.nodes.items() if node["type"] == "sample"]
    if site not in names:
        raise ValueError(f"site must be one of the model's, {', '.join(names)}; got {site!r}.")
    if not getattr(trace.nodes[site]["fn"], "has_rsample", False):
        raise ValueError(
            f"site {site!r} must have a distribution with rsample, so that hyper-parameters feel "
            f"its draws; got {type(trace.nodes[site]['fn']).__name__}."
        )


def _start(trace: Any, site: str, tuned: list[str] | None) -> WeightPrior:
    latent = {
        name: node["fn"]
        for name, node in trace.nodes.items()
        if node["type"] == "sample"
        and not node["is_observed"]
        and not node["infer"].get("was_observed")
        and name != site
    }
    normals = {name: fn for name, fn in latent.items() if _is_normal(fn)}
    for name in tuned or ():
        if name not in normals:
            raise ValueError(
                f"tuned must name latent sites with a normal prior, {', '.join(normals)}; got "
                f"{name!r}."
            )
    chosen = list(normals) if tuned is None else tuned
    if not chosen:
        raise ValueError("model must have a latent site with a normal prior, got none.")
    shapes = {name: tuple(normals[name].shape()) for name in chosen}
    return WeightPrior(
        shapes,
        {name: normals[name].mean.expand(shapes[name]).clone() for name in chosen},
        {name: normals[name].variance.log().expand(shapes[name]).clone() for name in chosen},
    )


def _is_normal(fn: Any) -> bool:
    # Not every base is a wrapper's: that of a half-normal or log-normal law is normal too.
    while isinstance(fn, Independent | ExpandedDistribution | MaskedDistribution):
        fn = fn.base_dist
    return isinstance(fn, torch.distributions.Normal)
