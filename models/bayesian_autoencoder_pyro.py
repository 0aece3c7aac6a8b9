"""A Bayesian autoencoder in Pyro: a prior on every weight of encoder and decoder."""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine

from bayesdiv.models._bayesian_autoencoder import AutoencoderModel
from bayesdiv.nn import AutoencoderNetwork
from bayesdiv.pyro.distributions import ContinuousBernoulli

__all__ = ["BayesianAutoencoder"]


class BayesianAutoencoder(AutoencoderModel):
    __doc__ = (AutoencoderModel.__doc__ or "").replace("HOST", "Pyro")

    def __call__(self, images: torch.Tensor, *, observe: bool = True) -> torch.Tensor:
        """The model: sites ``encoder_0_weight`` and so on, ``image`` in the plate ``data``.

        Parameters
        ----------
        images
            ``(n, data_dim)``, input and observation; the plate draws ``subsample_size`` of them.
        observe
            False leaves ``image`` open, for draws of the prior or posterior predictive, and
            records the mean image as ``reconstruction``.

        Returns
        -------
        Outputs of the decoder, ``(*particles, n, data_dim)``.

        Raises
        ------
        ValueError
            As `check` does, the first time that these images come.
        """
        self._check_once(images)
        with poutine.scale(scale=1.0 / self.prior_temperature):
            weights = {
                name: pyro.sample(name, self._weight_law(name)) for name in self.prior.shapes
            }
        weights = _without_plate(weights, self.network)
        with pyro.plate("data", len(images), subsample_size=self.subsample_size) as index:
            batch = images if self.subsample_size is None else images[index]
            outputs = self.network(weights, batch)
            with poutine.scale(scale=1.0 / self.likelihood_temperature):
                observation = self._observation(outputs).to_event(1)
                pyro.sample("image", observation, obs=batch if observe else None)
            if not observe:
                pyro.deterministic("reconstruction", self._pixels.mean(outputs), event_dim=1)
        return outputs

    def _weight_law(self, name: str) -> dist.TorchDistribution:
        shape = self.prior.shapes[name]
        law = dist.Normal(self.prior.mean[name], self.prior.scale(name))
        return law.expand(shape).to_event(len(shape))

    def _observation(self, outputs: torch.Tensor) -> dist.TorchDistribution:
        if self._pixels.name == "continuous_bernoulli":
            return ContinuousBernoulli(logits=outputs)
        return dist.Normal(outputs, self._pixels.noise)


def _without_plate(
    weights: dict[str, torch.Tensor], network: AutoencoderNetwork
) -> dict[str, torch.Tensor]:
    """Weights without the dimension in which vectorised particles leave room for the data."""
    shapes = network.weight_shapes()
    return {
        name: weight
        if weight.ndim == len(shapes[name])
        else weight.squeeze(weight.ndim - len(shapes[name]) - 1)
        for name, weight in weights.items()
    }
