"""Networks that more than one model uses, as pure functions of named weights."""

from bayesdiv.nn._likelihood import LIKELIHOODS, PixelLikelihood
from bayesdiv.nn._mlp_autoencoder import MLPAutoencoder
from bayesdiv.nn._weights import AutoencoderNetwork, WeightPrior

__all__ = [
    "LIKELIHOODS",
    "AutoencoderNetwork",
    "MLPAutoencoder",
    "PixelLikelihood",
    "WeightPrior",
]
