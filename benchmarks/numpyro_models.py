"""NumPyro models to time: those of :mod:`benchmarks.pyro_models`, one particle at a time."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from numpyro.infer.autoguide import AutoNormal
from numpyro.infer.initialization import init_to_value
from sklearn.datasets import load_digits


class Problem(NamedTuple):
    """Model, guide and their arguments."""

    model: Callable[..., Any]
    guide: Callable[..., Any]
    arguments: tuple[Any, ...]


def small() -> Problem:
    """Eight schools, centred: three sites, ten latent numbers."""
    effects = jnp.array([28.0, 8.0, -3.0, 7.0, -1.0, 1.0, 18.0, 12.0])
    errors = jnp.array([15.0, 10.0, 16.0, 11.0, 9.0, 11.0, 10.0, 18.0])

    def model() -> None:
        centre = numpyro.sample("centre", dist.Normal(0.0, 10.0))
        spread = numpyro.sample("spread", dist.HalfCauchy(5.0))
        with numpyro.plate("schools", 8):
            effect = numpyro.sample("effect", dist.Normal(centre, spread))
            numpyro.sample("observed", dist.Normal(effect, errors), obs=effects)

    return Problem(model, AutoNormal(model), ())


def regression(rows: int = 10_000, columns: int = 20) -> Problem:
    """Linear regression on ``rows`` simulated rows."""
    generator = np.random.default_rng(0)
    predictors = generator.normal(size=(rows, columns)).astype(np.float32)
    truth = generator.normal(size=columns).astype(np.float32)
    outcome = predictors @ truth + generator.normal(size=rows).astype(np.float32)

    def model(predictors: jax.Array, outcome: jax.Array) -> None:
        slopes = numpyro.sample("slopes", dist.Normal(jnp.zeros(columns), 1.0).to_event(1))
        noise = numpyro.sample("noise", dist.HalfNormal(1.0))
        with numpyro.plate("rows", len(outcome)):
            numpyro.sample("outcome", dist.Normal(predictors @ slopes, noise), obs=outcome)

    # Near the posterior: far away, float32 has no room for the weights of most divergences.
    start = init_to_value(values={"slopes": jnp.asarray(truth), "noise": jnp.array(1.0)})
    guide = AutoNormal(model, init_loc_fn=start, init_scale=rows**-0.5)
    return Problem(model, guide, (jnp.asarray(predictors), jnp.asarray(outcome)))


def _layer(name: str, inputs: int, outputs: int) -> Callable[[jax.Array], jax.Array]:
    start = np.random.default_rng(0).normal(size=(inputs, outputs)) / np.sqrt(inputs)
    weight = numpyro.param(f"{name}.weight", jnp.asarray(start, dtype=jnp.float32))
    bias = numpyro.param(f"{name}.bias", jnp.zeros(outputs))
    return lambda values: values @ weight + bias


def vae(batch: int = 128, hidden: int = 200, codes: int = 10) -> Problem:
    """Variational autoencoder on scikit-learn's 8x8 digits, a batch at a time."""
    images = jnp.asarray(load_digits().data[:batch] / 16.0, dtype=jnp.float32)
    pixels = images.shape[1]

    def model(images: jax.Array) -> None:
        first = _layer("decoder.first", codes, hidden)
        second = _layer("decoder.second", hidden, pixels)
        with numpyro.plate("data", len(images)):
            code = numpyro.sample("code", dist.Normal(jnp.zeros(codes), 1.0).to_event(1))
            logits = second(jax.nn.softplus(first(code)))
            # With grey pixels between 0 and 1 the log-likelihood is minus the cross-entropy.
            gain = jnp.sum(images * logits - jax.nn.softplus(logits), axis=-1)
            numpyro.factor("image", gain)

    def guide(images: jax.Array) -> None:
        body = _layer("encoder.body", pixels, hidden)
        loc = _layer("encoder.loc", hidden, codes)
        log_scale = _layer("encoder.log_scale", hidden, codes)
        with numpyro.plate("data", len(images)):
            features = jax.nn.softplus(body(images))
            code = dist.Normal(loc(features), jnp.exp(0.1 * log_scale(features)))
            numpyro.sample("code", code.to_event(1))

    return Problem(model, guide, (images,))


def sites(count: int = 20) -> Problem:
    """``count`` latent sites and their observed sum: what handlers cost a site to compile."""

    def model() -> None:
        steps = [numpyro.sample(f"step_{i}", dist.Normal(0.0, 1.0)) for i in range(count)]
        numpyro.sample("total", dist.Normal(jnp.sum(jnp.stack(steps)), 1.0), obs=3.0)

    return Problem(model, AutoNormal(model), ())


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
