"""A learnt ratio as the objective of either host's SVI, like any divergence of two samples."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import pyro
import pyro.distributions as pyro_dist
import pytest
import torch
from numpyro import distributions as numpyro_dist
from numpyro.infer import SVI as NumPyroSVI
from numpyro.infer.autoguide import AutoNormal as NumPyroAutoNormal
from pyro.infer import SVI
from pyro.infer.autoguide import AutoNormal

from bayesdiv.numpyro import objective as numpyro_objective
from bayesdiv.objectives import LearnedRatio
from bayesdiv.pyro import objective as pyro_objective

RATIO = LearnedRatio(hidden=(), quadratic=True, num_steps=4, learning_rate=0.03)


def observations():
    draws = np.random.default_rng(0).normal(size=200)
    return 1.0 + 0.7 * (draws - draws.mean()) / draws.std()


def make_model(api, dist):
    def model(y):
        mean = api.sample("mean", dist.Normal(0.0, 3.0))
        scale = api.sample("scale", dist.LogNormal(0.0, 1.0))
        with api.plate("data", 200):
            api.sample("y", dist.Normal(mean, scale), obs=y)

    return model


def test_the_posterior_predictive_meets_the_data_in_pyro():
    """The critic's state survives from step to step, so that a few inner steps are enough."""
    y = torch.tensor(observations())
    model = make_model(pyro, pyro_dist)
    guide = AutoNormal(model, init_scale=0.05)
    svi = SVI(model, guide, pyro.optim.Adam({"lr": 0.04}), pyro_objective(RATIO, space="data"))
    for _ in range(150):
        svi.step(y)
    found = guide.median()
    assert float(found["mean"]) == pytest.approx(1.0, abs=0.12)
    assert float(found["scale"]) == pytest.approx(0.7, abs=0.12)


def test_the_posterior_predictive_meets_the_data_in_numpyro():
    model = make_model(numpyro, numpyro_dist)
    guide = NumPyroAutoNormal(model, init_scale=0.05)
    svi = NumPyroSVI(model, guide, numpyro.optim.Adam(0.04), numpyro_objective(RATIO, space="data"))
    result = svi.run(jax.random.key(0), 150, jnp.asarray(observations()), progress_bar=False)
    found = guide.median(result.params)
    assert float(found["mean"]) == pytest.approx(1.0, abs=0.12)
    assert float(found["scale"]) == pytest.approx(0.7, abs=0.12)
