"""An ordinary autoencoder: one set of weights, fitted to reconstruct."""

from __future__ import annotations

from copy import deepcopy
from typing import Any

import torch

from bayesdiv.inference._dynamics import check_positive
from bayesdiv.nn import AutoencoderNetwork, PixelLikelihood

__all__ = ["Reconstruction"]


class Reconstruction:
    """Fits a network's weights to images by least squares, with Adam.

    A routine for `bayesdiv.training.train`; its ``weights`` are also where a prior may be centred,
    by `bayesdiv.nn.WeightPrior.centred`.

    Parameters
    ----------
    network
        `bayesdiv.nn.MLPAutoencoder` or a convolutional one.
    like
        A tensor that decides dtype and device, for example the images.
    likelihood
        Says what the mean image of an output is, and must be the one that scores.
    match
        What is compared with the image: ``"mean"``, the mean image, or ``"sigmoid"``, the sigmoid
        of the output, as in the authors' code, although it is not the continuous Bernoulli's mean.
    learning_rate
        Of Adam.
    seed
        Of the starting weights.

    Raises
    ------
    ValueError
        If the learning rate is not positive and finite, or a name is unknown.

    References
    ----------
    Tran et al. (2021), whose code starts priors from such weights.

    Examples
    --------
    >>> from bayesdiv.nn import MLPAutoencoder
    >>> images = torch.full((20, 6), 0.25)
    >>> routine = Reconstruction(MLPAutoencoder(6, (8,), 2), like=images, learning_rate=0.01)
    >>> errors = [float(routine.step(images)["squared_error"]) for _ in range(100)]
    >>> errors[-1] < 0.1 * errors[0]
    True
    """

    def __init__(
        self,
        network: AutoencoderNetwork,
        *,
        like: torch.Tensor,
        likelihood: PixelLikelihood | str = "continuous_bernoulli",
        match: str = "mean",
        learning_rate: float = 1e-3,
        seed: int = 0,
    ) -> None:
        check_positive("learning_rate", learning_rate)
        if match not in ("mean", "sigmoid"):
            raise ValueError(f"match must be 'mean' or 'sigmoid', got {match!r}.")
        self.match = match
        self.network = network
        self.likelihood = PixelLikelihood(likelihood) if isinstance(likelihood, str) else likelihood
        start = network.init_weights(seed, like=like)
        self._parameters = {name: torch.nn.Parameter(value) for name, value in start.items()}
        self._optimiser = torch.optim.Adam(self._parameters.values(), lr=learning_rate)

    @property
    def weights(self) -> dict[str, torch.Tensor]:
        """The weights as they are now, copied, without history."""
        return {name: value.detach().clone() for name, value in self._parameters.items()}

    def step(self, batch: torch.Tensor) -> dict[str, torch.Tensor]:
        """One step of Adam on ``batch``, ``(n, data_dim)``; the squared error of a pixel."""
        self._optimiser.zero_grad()
        loss = self.squared_error(self._parameters, batch)
        loss.backward()
        self._optimiser.step()
        return {"squared_error": loss.detach()}

    def squared_error(self, weights: dict[str, Any], images: torch.Tensor) -> torch.Tensor:
        """Mean over pixels of (image − mean image)², or of (image − sigmoid)²."""
        outputs = self.network(weights, images)
        found = outputs.sigmoid() if self.match == "sigmoid" else self.likelihood.mean(outputs)
        return (images - found).square().mean()

    def reconstruct(self, images: torch.Tensor) -> torch.Tensor:
        """Mean images, ``(n, data_dim)``."""
        with torch.no_grad():
            return self.likelihood.mean(self.outputs(images))

    @torch.no_grad()
    def outputs(self, images: torch.Tensor) -> torch.Tensor:
        """Outputs of the network, ``(n, data_dim)``: logits under the continuous Bernoulli."""
        return self.network(self._parameters, images)

    def state_dict(self) -> dict[str, Any]:
        """A copy of all that the next step depends on."""
        # Torch's optimisers give out, and take in, the very tensors that they go on to change.
        return {"weights": self.weights, "optimiser": deepcopy(self._optimiser.state_dict())}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from what `state_dict` gave."""
        with torch.no_grad():
            for name, value in state["weights"].items():
                self._parameters[name].copy_(value)
        self._optimiser.load_state_dict(deepcopy(state["optimiser"]))
