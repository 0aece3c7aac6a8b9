"""A Bayesian autoencoder in NumPyro: a prior on every weight of encoder and decoder."""

from __future__ import annotations

import jax
import numpyro
import numpyro.distributions as dist
from numpyro import handlers

from bayesdiv.models._bayesian_autoencoder import AutoencoderModel
from bayesdiv.numpyro.distributions import ContinuousBernoulli

__all__ = ["BayesianAutoencoder"]


class BayesianAutoencoder(AutoencoderModel):
    __doc__ = (AutoencoderModel.__doc__ or "").replace("HOST", "NumPyro")

    def __call__(self, images: jax.Array, *, observe: bool = True) -> jax.Array:
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
        Outputs of the decoder, ``(n, data_dim)``.

        Raises
        ------
        ValueError
            As `check` does, the first time that these images come.
        """
        self._check_once(images)
        with handlers.scale(scale=1.0 / self.prior_temperature):
            weights = {
                name: numpyro.sample(name, self._weight_law(name)) for name in self.prior.shapes
            }
        with numpyro.plate("data", len(images), subsample_size=self.subsample_size) as index:
            batch = images if self.subsample_size is None else images[index]
            outputs = self.network(weights, batch)
            with handlers.scale(scale=1.0 / self.likelihood_temperature):
                observation = self._observation(outputs).to_event(1)
                numpyro.sample("image", observation, obs=batch if observe else None)
            if not observe:
                numpyro.deterministic("reconstruction", self._pixels.mean(outputs))
        return outputs

    def _weight_law(self, name: str) -> dist.Distribution:
        shape = self.prior.shapes[name]
        law = dist.Normal(self.prior.mean[name], self.prior.scale(name))
        return law.expand(shape).to_event(len(shape))

    def _observation(self, outputs: jax.Array) -> dist.Distribution:
        if self._pixels.name == "continuous_bernoulli":
            return ContinuousBernoulli(logits=outputs)
        return dist.Normal(outputs, self._pixels.noise)
