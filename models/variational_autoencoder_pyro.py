"""A variational autoencoder in Pyro: model and amortised guide on the networks of `bayesdiv.nn`."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pyro
import pyro.distributions as dist
import torch

from bayesdiv.nn import AutoencoderNetwork, PixelLikelihood
from bayesdiv.pyro.distributions import ContinuousBernoulli

__all__ = ["VariationalAutoencoder"]


class VariationalAutoencoder(torch.nn.Module):
    r"""z_n ~ N(0, I), x_n ~ p(x | f_dec(z_n)), with the guide z_n ~ N(m(x_n), diag s(x_n)²).

    The decoder is the network's; the encoder is the network's with a code of twice the width, for
    m and log s. `model` and `guide` go to ``pyro.infer.SVI``, with any objective.

    Parameters
    ----------
    network
        `bayesdiv.nn.MLPAutoencoder` or a convolutional one.
    like
        A tensor that decides dtype and device, for example the images.
    likelihood
        `bayesdiv.nn.PixelLikelihood`, or its name.
    subsample_size
        Images in a minibatch; all of them if None.
    seed
        Of the starting weights.

    Raises
    ------
    ValueError
        If the likelihood is unknown or the minibatch empty.

    References
    ----------
    Kingma and Welling (2014), "Auto-encoding variational Bayes".
    """

    def __init__(
        self,
        network: AutoencoderNetwork,
        *,
        like: torch.Tensor,
        likelihood: PixelLikelihood | str = "continuous_bernoulli",
        subsample_size: int | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__()
        if subsample_size is not None and subsample_size < 1:
            raise ValueError(f"subsample_size must be at least 1 or None, got {subsample_size!r}.")
        self.network = network
        self.inference_network: Any = replace(network, latent_dim=2 * network.latent_dim)  # type: ignore[type-var]
        self.likelihood = PixelLikelihood(likelihood) if isinstance(likelihood, str) else likelihood
        self.subsample_size = subsample_size
        start = network.init_weights(seed, like=like)
        encoder = self.inference_network.init_weights(seed, like=like)
        start |= {name: encoder[name] for name in encoder if name.startswith("encoder")}
        self.weights = torch.nn.ParameterDict(start)

    def model(self, images: torch.Tensor) -> None:
        """Sites ``code`` and ``image`` in the plate ``data``; ``images`` is ``(n, data_dim)``."""
        pyro.module("variational_autoencoder", self)
        with pyro.plate("data", len(images), subsample_size=self.subsample_size) as index:
            batch = images if self.subsample_size is None else images[index]
            zeros = batch.new_zeros(len(batch), self.network.latent_dim)
            code = pyro.sample("code", dist.Normal(zeros, torch.ones_like(zeros)).to_event(1))
            outputs = self.network.decode(dict(self.weights), code)
            pyro.sample("image", self._observation(outputs).to_event(1), obs=batch)

    def guide(self, images: torch.Tensor) -> None:
        """Site ``code`` from the encoder."""
        pyro.module("variational_autoencoder", self)
        with pyro.plate("data", len(images), subsample_size=self.subsample_size) as index:
            batch = images if self.subsample_size is None else images[index]
            pyro.sample("code", self.posterior(batch).to_event(1))

    def posterior(self, images: torch.Tensor) -> dist.TorchDistribution:
        """The guide's law of each coordinate of the codes, batch shape ``(n, latent_dim)``."""
        encoded = self.inference_network.encode(self.weights, images)
        mean, log_scale = encoded.chunk(2, dim=-1)
        return dist.Normal(mean, log_scale.exp())

    @torch.no_grad()
    def outputs(self, images: torch.Tensor, *, num_draws: int) -> torch.Tensor:
        """Decoder's outputs for codes drawn from the guide, ``(num_draws, n, data_dim)``."""
        return self.network.decode(dict(self.weights), self.posterior(images).sample((num_draws,)))

    @torch.no_grad()
    def generate(self, num: int) -> torch.Tensor:
        """Mean images of codes drawn from N(0, I), ``(num, data_dim)``."""
        like = next(iter(self.weights.values()))
        codes = torch.randn(num, self.network.latent_dim, dtype=like.dtype, device=like.device)
        return self.likelihood.mean(self.network.decode(dict(self.weights), codes))

    def _observation(self, outputs: torch.Tensor) -> dist.TorchDistribution:
        if self.likelihood.name == "continuous_bernoulli":
            return ContinuousBernoulli(logits=outputs)
        return dist.Normal(outputs, self.likelihood.noise)
