"""Prior predictive samplers: of networks, of Pyro and NumPyro models; and disjoint data sets."""

import importlib
import math
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from helpers import make_array, to_numpy
from sklearn.datasets import load_digits

from bayesdiv.inference import prior_selection_jax, prior_selection_torch
from bayesdiv.inference.prior_selection import (
    NetworkPriorPredictive,
    PriorPredictiveObjective,
    check_disjoint,
)
from bayesdiv.nn import MLPAutoencoder, PixelLikelihood, WeightPrior
from bayesdiv.objectives import linear_schedule

HOSTS = {"torch": prior_selection_torch, "jax": prior_selection_jax}


def key(backend, seed=0):
    return seed if backend == "torch" else jax.random.key(seed)


def network_model(backend, log_variance, likelihood, **widths):
    network = MLPAutoencoder(**widths)
    like = make_array(backend, 0.0)
    weights = network.init_weights(key(backend), like=like)
    prior = WeightPrior.centred(weights, log_variance, per="layer")
    return SimpleNamespace(network=network, prior=prior, likelihood=likelihood)


def test_a_network_predicts_draws_of_its_prior(backend):
    """A linear decoder at mean zero: x̃ is N(0, τ² (1 + code²) + noise²) given the code."""
    model = network_model(
        backend, 0.0, PixelLikelihood("gaussian", noise=0.5), data_dim=3, hidden=(), latent_dim=1
    )
    predictive = NetworkPriorPredictive(model)
    parameters = {name: 0.0 * value for name, value in predictive.parameters.items()}
    for name in parameters:
        if name.startswith("encoder") and name.endswith("log_variance"):
            parameters[name] = parameters[name] - 60.0
        if name == "encoder_0_bias.mean":
            parameters[name] = parameters[name] + 2.0
    batch = make_array(backend, np.zeros((2, 3)))
    drawn = to_numpy(predictive(parameters, batch, 4000, key(backend))).reshape(4000, 2, 3)
    variance = 1.0 + 2.0**2 + 0.25
    assert drawn.var(0) == pytest.approx(variance, rel=5 * math.sqrt(2 / 4000))
    # One draw of the weights serves the whole batch: rows share all but the pixel noise.
    difference = drawn[:, 0] - drawn[:, 1]
    assert difference.var() == pytest.approx(2 * 0.25, rel=5 * math.sqrt(2 / 12000))


def test_tuning_a_network_on_digits_shortens_the_distance():
    """From the dossier's start, prior predictive images of an autoencoder approach real zeros."""
    digits = load_digits()
    zeros = torch.tensor(digits.data[digits.target == 0][:64] / 16.0)
    model = network_model("torch", -2.0, PixelLikelihood(), data_dim=64, hidden=(32,), latent_dim=8)
    predictive = NetworkPriorPredictive(model)
    found = prior_selection_torch.select_prior(
        predictive,
        predictive.parameters,
        zeros,
        PriorPredictiveObjective(parameters={"num_steps": 3, "num_projections": 50}, num_draws=4),
        num_steps=260,
        num_inner_only=10,
        learning_rate={"*.mean": 0.02, "*.log_variance": 0.1},
        schedule=linear_schedule(1.0, 0.05, 240),
        progress_bar=False,
    )
    before, after = (
        prior_selection_torch.prior_predictive_distance(predictive, parameters, zeros)
        for parameters in (predictive.parameters, found.parameters)
    )
    assert after < before / 2.5
    tuned = predictive.prior(found.parameters)
    assert tuned.shapes == model.prior.shapes


def host_model(backend):
    """Rows with a latent each, in the host's own language, and a scale that is not normal."""
    if backend == "torch":
        api = importlib.import_module("pyro")
        dist = importlib.import_module("pyro.distributions")
    else:
        api = importlib.import_module("numpyro")
        dist = importlib.import_module("numpyro.distributions")

    def model(covariate, y=None):
        scale = api.sample("scale", dist.HalfNormal(0.2))
        with api.plate("data", len(covariate)):
            w = api.sample("w", dist.Normal(0.0 * covariate, 1.0 + 0.0 * covariate))
            api.sample("y", dist.Normal(covariate + w, 0.05 + scale), obs=y)

    return model


def host_predictive(backend, model, batch, **settings):
    if backend == "torch":
        module = importlib.import_module("bayesdiv.inference.prior_selection_pyro")
        return module.PyroPriorPredictive(model, batch, **settings), module
    module = importlib.import_module("bayesdiv.inference.prior_selection_numpyro")
    return module.NumPyroPriorPredictive(model, batch, **settings), module


def test_a_model_of_the_host_is_tuned_as_it_is(backend):
    """y = covariate + w + noise with one mean and one log-variance for all w: both are found."""
    covariate = make_array(backend, np.zeros(100))
    y = make_array(backend, 2.0 + 0.5 * np.random.default_rng(0).normal(size=100))
    model = host_model(backend)
    predictive, module = host_predictive(
        backend, model, y, site="y", arguments=lambda batch: (covariate, batch)
    )
    assert predictive.parameters.keys() == {"w.mean", "w.log_variance"}
    start = {name: value.mean() for name, value in predictive.parameters.items()}
    found = HOSTS[backend].select_prior(
        predictive,
        start,
        y,
        PriorPredictiveObjective("energy_distance", 2),
        num_steps=150,
        batch_size=100,
        learning_rate=0.1,
        schedule=linear_schedule(1.0, 0.02, 140),
        progress_bar=False,
    )
    assert float(found.parameters["w.mean"]) == pytest.approx(2.0, abs=0.15)
    assert 0.05 < math.exp(float(found.parameters["w.log_variance"])) < 0.4

    tuned = module.with_normal_priors(model, predictive.prior(found.parameters))
    predicted, _ = host_predictive(
        backend, tuned, y, site="y", arguments=lambda batch: (covariate, batch)
    )
    np.testing.assert_allclose(
        to_numpy(predicted.parameters["w.mean"]), float(found.parameters["w.mean"]), rtol=1e-6
    )


def test_predictions_of_a_host_leave_its_generators_alone():
    covariate = torch.zeros(5)
    predictive, _ = host_predictive("torch", host_model("torch"), covariate, site="y")
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    first = predictive(predictive.parameters, covariate, 2, 7)
    assert torch.equal(torch.rand(3), expected)
    assert torch.equal(predictive(predictive.parameters, covariate, 2, 7), first)


def test_refused_models_of_the_host(backend):
    batch = make_array(backend, np.zeros(4))
    model = host_model(backend)
    with pytest.raises(ValueError, match="site must be one of the model's, .*; got 'z'"):
        host_predictive(backend, model, batch, site="z")
    with pytest.raises(ValueError, match="with a normal prior, w; got 'scale'"):
        host_predictive(backend, model, batch, site="y", tuned=["scale"])

    def counts(batch):
        api = importlib.import_module("pyro" if backend == "torch" else "numpyro")
        dist = importlib.import_module(f"{api.__name__}.distributions")
        rate = api.sample("rate", dist.HalfNormal(1.0))
        with api.plate("data", len(batch)):
            api.sample("count", dist.Poisson(rate), obs=batch)

    with pytest.raises(ValueError, match="site 'count' must have a distribution with .*rsample"):
        host_predictive(backend, counts, batch, site="count")
    with pytest.raises(ValueError, match="latent site with a normal prior, got none"):
        host_predictive(backend, model, batch, site="y", tuned=[])
    predictive, module = host_predictive(backend, model, batch, site="y")
    longer = make_array(backend, np.zeros(5))
    with pytest.raises(ValueError, match=r"shape \(4,\) for site 'w', whose shape is \(5,\)"):
        predictive(predictive.parameters, longer, 1, key(backend))


def test_data_sets_must_be_disjoint():
    tuning = np.random.default_rng(0).normal(size=(6, 2, 2))
    training = np.random.default_rng(1).normal(size=(5, 2, 2))
    check_disjoint(torch.tensor(tuning), jnp.asarray(training))
    training[[1, 3]] = tuning[[4, 2]]
    with pytest.raises(ValueError, match=r"got 2 of 6 tuning rows .* tuning\[2\] = training\[3\]"):
        check_disjoint(torch.tensor(tuning), jnp.asarray(training))
    check_disjoint(np.array([[0.0]]), np.array([[1.0]]))
    with pytest.raises(ValueError, match="must not share rows"):
        check_disjoint(np.array([[0.0]]), np.array([[-0.0]]))
    with pytest.raises(ValueError, match="rows of one shape"):
        check_disjoint(tuning, training[:, 0])
