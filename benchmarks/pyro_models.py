"""Pyro models to time, all of which broadcast over vectorised particles."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import pyro
import pyro.distributions as dist
import torch
from pyro.infer.autoguide import AutoNormal, init_to_value
from sklearn.datasets import load_digits


class Problem(NamedTuple):
    """Model, guide and arguments; ``single`` are arguments whose data plate has one element.

    Pyro's Rényi bound is of the sum over a data plate, ours the sum of each datum's bound: only of
    one datum are they the same number.
    """

    model: Callable[..., Any]
    guide: Callable[..., Any]
    arguments: tuple[Any, ...]
    single: tuple[Any, ...]


def small() -> Problem:
    """Eight schools, centred: three sites, ten latent numbers."""
    effects = torch.tensor([28.0, 8.0, -3.0, 7.0, -1.0, 1.0, 18.0, 12.0])
    errors = torch.tensor([15.0, 10.0, 16.0, 11.0, 9.0, 11.0, 10.0, 18.0])

    def model() -> None:
        centre = pyro.sample("centre", dist.Normal(0.0, 10.0))
        spread = pyro.sample("spread", dist.HalfCauchy(5.0))
        with pyro.plate("schools", 8):
            effect = pyro.sample("effect", dist.Normal(centre, spread))
            pyro.sample("observed", dist.Normal(effect, errors), obs=effects)

    return Problem(model, AutoNormal(model), (), ())


def regression(rows: int = 10_000, columns: int = 20) -> Problem:
    """Linear regression on ``rows`` simulated rows."""
    generator = torch.Generator().manual_seed(0)
    predictors = torch.randn(rows, columns, generator=generator)
    truth = torch.randn(columns, generator=generator)
    outcome = predictors @ truth + torch.randn(rows, generator=generator)

    def model(predictors: torch.Tensor, outcome: torch.Tensor) -> None:
        prior = dist.Normal(torch.zeros(columns), 1.0).to_event(1)
        slopes = pyro.sample("slopes", prior)
        noise = pyro.sample("noise", dist.HalfNormal(1.0))
        # (particles, 1, columns) becomes (particles, rows), without a (particles, 1, rows).
        mean = (slopes @ predictors.T).reshape(slopes.shape[:-2] + (-1,))
        with pyro.plate("rows", len(outcome)):
            pyro.sample("outcome", dist.Normal(mean, noise), obs=outcome)

    # Near the posterior: far away, float32 has no room for the weights of most divergences.
    start = init_to_value(values={"slopes": truth, "noise": torch.tensor(1.0)})
    guide = AutoNormal(model, init_loc_fn=start, init_scale=rows**-0.5)
    data = (predictors, outcome)
    return Problem(model, guide, data, data)


class _Encoder(torch.nn.Module):
    def __init__(self, pixels: int, hidden: int, codes: int) -> None:
        super().__init__()
        self.body = torch.nn.Sequential(torch.nn.Linear(pixels, hidden), torch.nn.Softplus())
        self.loc = torch.nn.Linear(hidden, codes)
        self.log_scale = torch.nn.Linear(hidden, codes)

    def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        features = self.body(images)
        return self.loc(features), self.log_scale(features).exp()


def vae(batch: int = 128, hidden: int = 200, codes: int = 10) -> Problem:
    """Variational autoencoder on scikit-learn's 8x8 digits, a batch at a time."""
    images = torch.tensor(load_digits().data[:batch] / 16.0, dtype=torch.float32)
    pixels = images.shape[1]
    torch.manual_seed(0)
    encoder = _Encoder(pixels, hidden, codes)
    decoder = torch.nn.Sequential(
        torch.nn.Linear(codes, hidden), torch.nn.Softplus(), torch.nn.Linear(hidden, pixels)
    )

    def model(images: torch.Tensor) -> None:
        pyro.module("decoder", decoder)
        with pyro.plate("data", len(images)):
            prior = dist.Normal(torch.zeros(codes), 1.0).to_event(1)
            code = pyro.sample("code", prior)
            likelihood = dist.ContinuousBernoulli(logits=decoder(code)).to_event(1)
            pyro.sample("image", likelihood, obs=images)

    def guide(images: torch.Tensor) -> None:
        pyro.module("encoder", encoder)
        with pyro.plate("data", len(images)):
            loc, scale = encoder(images)
            pyro.sample("code", dist.Normal(loc, scale).to_event(1))

    return Problem(model, guide, (images,), (images[:1],))


def sites(count: int = 200) -> Problem:
    """``count`` latent sites and their observed sum: what handlers cost a site."""

    def model() -> None:
        steps = [pyro.sample(f"step_{i}", dist.Normal(0.0, 1.0)) for i in range(count)]
        pyro.sample(
            "total", dist.Normal(torch.stack(steps, -1).sum(-1), 1.0), obs=torch.tensor(3.0)
        )

    return Problem(model, AutoNormal(model), (), ())


def problems(*, quick: bool) -> dict[str, Callable[[], Problem]]:
    """The four models by name; small versions of them with ``quick``."""
    if quick:
        return {
            "small": small,
            "regression": lambda: regression(200, 5),
            "vae": lambda: vae(8, 16, 2),
            "sites": lambda: sites(10),
        }
    return {"small": small, "regression": regression, "vae": vae, "sites": sites}
