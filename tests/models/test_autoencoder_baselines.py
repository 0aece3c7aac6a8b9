"""Baselines: an ordinary autoencoder, and a variational one in Pyro."""

import numpy as np
import pyro
import pytest
import torch
from helpers import assert_within_standard_errors
from pyro import poutine
from pyro.infer import SVI
from pyro.optim import Adam

from bayesdiv.data import load_digits
from bayesdiv.inference.reconstruction_torch import Reconstruction
from bayesdiv.models.bayesian_autoencoder_pyro import BayesianAutoencoder
from bayesdiv.models.variational_autoencoder_pyro import VariationalAutoencoder
from bayesdiv.nn import MLPAutoencoder, WeightPrior
from bayesdiv.nn.convolutional_torch import ConvAutoencoder, ConvLayer
from bayesdiv.pyro import objective
from bayesdiv.training import TensorBatches, train

DIGITS = torch.tensor(load_digits().pixels)
NETWORK = MLPAutoencoder(data_dim=64, hidden=(32,), latent_dim=4)


def test_linear_reconstruction_finds_the_principal_subspace():
    rng = np.random.default_rng(0)
    axes = np.linalg.qr(rng.normal(size=(5, 5)))[0]
    rows = rng.normal(size=(200, 5)) * [1.5, 1.0, 0.2, 0.2, 0.1] @ axes
    images = torch.tensor(rows - rows.mean(0))
    network = MLPAutoencoder(data_dim=5, hidden=(), latent_dim=2)
    routine = Reconstruction(network, like=images, likelihood="gaussian", learning_rate=0.05)
    for _ in range(1_500):
        found = float(routine.step(images)["squared_error"])
    # Eckart and Young: the least error of rank 2 is what the other singular values hold.
    least = (np.linalg.svd(images.numpy(), compute_uv=False)[2:] ** 2).sum() / images.numel()
    assert least * (1 - 1e-9) <= found < 1.02 * least


def test_reconstruction_centres_a_prior_and_resumes(tmp_path):
    batches = TensorBatches(DIGITS[:200], batch_size=50)
    routine = Reconstruction(NETWORK, like=DIGITS)
    before = routine.squared_error(routine.weights, DIGITS[:200]).item()
    history = train(routine, batches, num_steps=300, progress_bar=False).history["squared_error"]
    assert history[-20:].mean() < 0.5 * before
    prior = WeightPrior.centred(routine.weights, -6.0)
    model = BayesianAutoencoder(NETWORK, prior)
    torch.testing.assert_close(
        model.reconstruct(routine.weights, DIGITS[:9]), routine.reconstruct(DIGITS[:9])
    )
    again = Reconstruction(NETWORK, like=DIGITS, seed=1)
    again.load_state_dict(routine.state_dict())
    for copy in (routine, again):
        copy.step(DIGITS[:50])
    for name, weight in routine.weights.items():
        torch.testing.assert_close(again.weights[name], weight, rtol=0, atol=0)


def test_weights_taken_from_a_routine_do_not_move_with_it():
    routine = Reconstruction(NETWORK, like=DIGITS)
    taken = routine.weights["encoder_0_weight"]
    before = taken.clone()
    routine.step(DIGITS[:50])
    torch.testing.assert_close(taken, before, rtol=0, atol=0)
    assert not torch.equal(routine.weights["encoder_0_weight"], before)


@pytest.mark.parametrize("num_particles", [1, 3])
def test_variational_autoencoder_trains_by_an_objective_of_the_package(num_particles):
    images = DIGITS[:300]
    vae = VariationalAutoencoder(NETWORK, like=images, subsample_size=64)
    loss = objective("reverse_kl", num_particles=num_particles, vectorize_particles=True)
    svi = SVI(vae.model, vae.guide, Adam({"lr": 3e-3}), loss)
    losses = np.array([svi.step(images) for _ in range(300)]) / 300
    assert losses[-30:].mean() < losses[:30].mean() - 20.0
    outputs = vae.outputs(images[:7], num_draws=5)
    assert outputs.shape == (5, 7, 64)
    error = (vae.likelihood.mean(outputs).mean(0) - images[:7]).square().mean()
    assert error < 0.8 * (images[:7] - images.mean(0)).square().mean()
    generated = vae.generate(11)
    assert generated.shape == (11, 64)
    assert generated.min() >= 0.0
    assert generated.max() <= 1.0


def test_linear_variational_autoencoder_scores_like_factor_analysis():
    """With x = W z + b + noise and the exact posterior as guide every draw gives log p(x)."""
    network = MLPAutoencoder(data_dim=3, hidden=(), latent_dim=1)
    images = torch.randn(4, 3, dtype=torch.float64)
    vae = VariationalAutoencoder(network, like=images, likelihood="gaussian")
    loading, offset = vae.weights["decoder_0_weight"], vae.weights["decoder_0_bias"]
    with torch.no_grad():
        offset.copy_(torch.tensor([0.3, -0.2, 1.0]))
        precision = 1.0 + (loading**2).sum() / 0.01
        gain = loading.T / 0.01 / precision
        vae.weights["encoder_0_weight"].copy_(torch.cat([gain, torch.zeros_like(gain)], 1))
        vae.weights["encoder_0_bias"].copy_(
            torch.stack([-(offset @ gain)[0], -0.5 * precision.log()])
        )
    guide = poutine.trace(vae.guide).get_trace(images)
    model = poutine.trace(poutine.replay(vae.model, guide)).get_trace(images)
    covariance = loading.T @ loading + 0.01 * torch.eye(3, dtype=torch.float64)
    exact = torch.distributions.MultivariateNormal(offset, covariance).log_prob(images).sum()
    bound = model.log_prob_sum() - guide.log_prob_sum()
    torch.testing.assert_close(bound, exact, rtol=1e-9, atol=1e-9)
    draws = vae.outputs(images, num_draws=4_000)
    assert_within_standard_errors(draws, vae.posterior(images).mean.detach() @ loading + offset)


def test_convolutions_serve_the_variational_autoencoder():
    network = ConvAutoencoder(
        (1, 8, 8), (ConvLayer(3, 3, 2, 1),), (4, 4, 4), (ConvLayer(1, 2, 2),), latent_dim=2
    )
    vae = VariationalAutoencoder(network, like=DIGITS)
    loss = objective("reverse_kl", num_particles=2, vectorize_particles=True)
    pyro.set_rng_seed(0)
    assert np.isfinite(SVI(vae.model, vae.guide, Adam({"lr": 1e-3}), loss).step(DIGITS[:20]))
    assert vae.outputs(DIGITS[:6], num_draws=3).shape == (3, 6, 64)


def test_sigmoids_may_be_matched_instead_of_means():
    routine = Reconstruction(NETWORK, like=DIGITS, match="sigmoid", learning_rate=0.01)
    outputs = routine.outputs(DIGITS[:50])
    error = routine.step(DIGITS[:50])["squared_error"]
    torch.testing.assert_close(error, (outputs.sigmoid() - DIGITS[:50]).square().mean())


def test_bad_settings_are_named():
    with pytest.raises(ValueError, match="match must be 'mean' or 'sigmoid', got 'logit'"):
        Reconstruction(NETWORK, like=DIGITS, match="logit")
    with pytest.raises(ValueError, match="learning_rate must be positive and finite, got 0.0"):
        Reconstruction(NETWORK, like=DIGITS, learning_rate=0.0)
    with pytest.raises(ValueError, match="subsample_size must be at least 1 or None, got 0"):
        VariationalAutoencoder(NETWORK, like=DIGITS, subsample_size=0)
    with pytest.raises(ValueError, match="likelihood must be one of"):
        VariationalAutoencoder(NETWORK, like=DIGITS, likelihood="poisson")
