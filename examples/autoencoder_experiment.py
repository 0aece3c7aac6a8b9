"""Presets, data, network, priors and scores of the Bayesian autoencoder's example."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from example_options import choose_device

from bayesdiv.data import ImageSplit, load_digits, load_faces, load_mnist, split_images
from bayesdiv.diagnostics import (
    ClassifierFeatures,
    plug_in_log_likelihood,
    proper_log_likelihood,
    train_classifier_features,
)
from bayesdiv.inference.prior_selection import NetworkPriorPredictive, check_disjoint
from bayesdiv.inference.prior_selection_torch import prior_predictive_distance
from bayesdiv.inference.reconstruction_torch import Reconstruction
from bayesdiv.models.bayesian_autoencoder_pyro import BayesianAutoencoder
from bayesdiv.nn import AutoencoderNetwork, MLPAutoencoder, PixelLikelihood, WeightPrior
from bayesdiv.training import TensorBatches, train

NUM_SHOWN = 12
LOADERS = {"digits": load_digits, "mnist": load_mnist, "faces": load_faces}


@dataclass(frozen=True)
class Preset:
    """How much work. Steps are gradient steps of each of two chains in one batch."""

    sizes: tuple[int, ...]
    num_seeds: int
    hidden: tuple[int, ...]
    latent_dim: int
    num_tuning: int
    num_test: int
    num_training_steps: int
    num_tuning_steps: int
    num_draws: int
    num_sampler_steps: int
    step_size: float
    # N(0, 1) lets weights move far: it needs smaller steps, and more of them, for a valid run.
    small_step_size: float
    num_small_steps: int
    num_kept: int = 20


PRESETS = {
    "quick": Preset((50,), 1, (64,), 8, 64, 200, 100, 60, 4, 400, 0.01, 0.003, 400, 10),
    "laptop": Preset(
        sizes=(50, 100, 400),
        num_seeds=3,
        hidden=(128, 128),
        latent_dim=16,
        num_tuning=100,
        num_test=800,
        num_training_steps=1500,
        num_tuning_steps=300,
        num_draws=8,
        num_sampler_steps=3000,
        step_size=0.01,
        small_step_size=0.003,
        num_small_steps=9000,
    ),
    "gpu": Preset(
        sizes=(200, 500, 1000, 2000),
        num_seeds=3,
        hidden=(),
        latent_dim=50,
        num_tuning=100,
        num_test=10_000,
        num_training_steps=3000,
        num_tuning_steps=2000,
        num_draws=32,
        num_sampler_steps=38_000,
        step_size=0.003,
        small_step_size=0.001,
        num_small_steps=76_000,
        num_kept=32,
    ),
}


class Experiment:
    """Data, network and scores that all rows of one seed share."""

    def __init__(
        self,
        work: Preset,
        seed: int,
        *,
        data: str,
        tuning: str,
        device: str,
        per: str,
        log_variance: float,
    ) -> None:
        self.work, self.seed = work, seed
        self.per, self.log_variance = per, log_variance
        images = LOADERS[data]()
        tuning_labels, training_labels = _labels(data, tuning)
        split: ImageSplit = split_images(
            images,
            num_tuning=work.num_tuning,
            num_training=max(work.sizes),
            num_test=None if data == "faces" else work.num_test,
            tuning_labels=tuning_labels,
            training_labels=training_labels,
            seed=seed,
        )
        check_disjoint(split.tuning.pixels, split.training.pixels)
        device = choose_device(device)
        self.tuning, self.training, self.test = (
            torch.tensor(part.pixels, device=device) for part in split
        )
        self.shape, self.likelihood = images.shape, PixelLikelihood()
        self.network = _network(work, data)
        self.features: ClassifierFeatures = train_classifier_features(
            split.test.pixels, split.test.labels, seed=seed
        )

    def prior(self, row: str) -> WeightPrior:
        """The prior that a row is named after, or that tuning starts from."""
        if row == "N(0, 1)":
            return WeightPrior.standard(self.network, like=self.tuning)
        if row == "N(0, 1/fan-in)":
            return WeightPrior.fan_in(self.network, like=self.tuning)
        weights = self.trained(self.tuning)
        return WeightPrior.centred(weights, self.log_variance, per=self.per)

    def trained(self, images: torch.Tensor, match: str = "mean") -> dict[str, torch.Tensor]:
        """Weights of the deterministic autoencoder; see `Reconstruction`."""
        routine = Reconstruction(
            self.network, like=images, likelihood=self.likelihood, match=match, seed=self.seed
        )
        batches = TensorBatches(images, batch_size=64, seed=self.seed)
        train(routine, batches, num_steps=self.work.num_training_steps, progress_bar=False)
        return routine.weights

    def model(self, prior: WeightPrior, size: int) -> BayesianAutoencoder:
        """The Pyro model for ``size`` images."""
        batch = 64 if size > 64 else None
        return BayesianAutoencoder(self.network, prior, self.likelihood, subsample_size=batch)

    def distance(self, prior: WeightPrior, images: torch.Tensor) -> float:
        """Sliced Wasserstein distance of the prior predictive to ``images``."""
        predictive = NetworkPriorPredictive(self.model(prior, len(images)))
        return prior_predictive_distance(
            predictive, predictive.parameters, images[:200], num_projections=500, seed=self.seed
        )

    def predict(self, prior: WeightPrior) -> torch.Tensor:
        """A few images that a prior predicts, each with weights of its own."""
        predictive = NetworkPriorPredictive(self.model(prior, len(self.tuning)))
        with torch.no_grad():
            rows = predictive(predictive.parameters, self.tuning[:NUM_SHOWN], NUM_SHOWN, self.seed)
        return rows.unflatten(0, (NUM_SHOWN, NUM_SHOWN)).diagonal().T

    def scores(self, outputs: torch.Tensor, generated: torch.Tensor) -> dict[str, float]:
        """Of test images, from the outputs ``(draw, n, data_dim)`` and generated images."""
        proper = proper_log_likelihood(self.likelihood.log_prob(self.test, outputs))
        plug_in = plug_in_log_likelihood(self.test, outputs, self.likelihood)
        mean = self.likelihood.mean(outputs).mean(0)
        return {
            "plug_in": float(plug_in.mean()),
            "proper": float(proper.mean()),
            "squared_error": float(((mean - self.test) ** 2).mean()),
            "frechet": self.features.distance(self.test, generated),
        }


def _labels(data: str, tuning: str) -> tuple[Sequence[int] | None, Sequence[int] | None]:
    """Labels that tuning and training may have."""
    if data == "faces":
        # A prior tuned on some people is for others.
        return range(1, 21), range(21, 41)
    return ((0,), range(1, 10)) if tuning == "zeros" else (None, None)


def _network(work: Preset, data: str) -> AutoencoderNetwork:
    if work.hidden:
        return MLPAutoencoder(64 if data == "digits" else 784, work.hidden, work.latent_dim)
    from bayesdiv.nn.convolutional_torch import ConvAutoencoder

    make = ConvAutoencoder.faces if data == "faces" else ConvAutoencoder.digits
    return make(latent_dim=work.latent_dim)
