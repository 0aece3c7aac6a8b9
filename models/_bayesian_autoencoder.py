"""What the Bayesian autoencoders of both hosts share: settings and densities as functions."""

from __future__ import annotations

import math
import weakref
from dataclasses import dataclass, field, replace
from typing import Any, cast

from bayesdiv._array import Array
from bayesdiv._control import is_traced
from bayesdiv.nn import AutoencoderNetwork, PixelLikelihood, WeightPrior
from bayesdiv.nn._weights import Weights

_seen: dict[tuple, weakref.ref] = {}


@dataclass(frozen=True, eq=False)
class AutoencoderModel:
    r"""A Bayesian autoencoder, a HOST model when called with images.

    .. math::
        w_j ∼ N(μ_j, e^{ρ_j}), \quad x_n ∼ p(x | f_{dec}(f_{enc}(x_n; w); w)),

    with one site for every weight tensor. It is the regression of an image on itself: images are
    input and observation.

    Attributes
    ----------
    network
        `bayesdiv.nn.MLPAutoencoder`, or a convolutional one.
    prior
        `bayesdiv.nn.WeightPrior` over its weights.
    likelihood
        `bayesdiv.nn.PixelLikelihood`, or its name.
    subsample_size
        Images in a minibatch; all of them if None.
    likelihood_temperature, prior_temperature
        Divide the logarithms of likelihood and prior; both 1 for the posterior, both T below 1 for
        a cold one.

    Raises
    ------
    ValueError
        If the prior is not over the network's weights, or a number is outside its domain.

    References
    ----------
    Tran, Rossi, Milios, Michiardi, Bonilla and Filippone (2021), "Model selection for Bayesian
    autoencoders", section 2.
    """

    network: AutoencoderNetwork
    prior: WeightPrior
    likelihood: PixelLikelihood | str = field(default_factory=PixelLikelihood)
    subsample_size: int | None = None
    likelihood_temperature: float = 1.0
    prior_temperature: float = 1.0

    def __post_init__(self) -> None:
        if isinstance(self.likelihood, str):
            object.__setattr__(self, "likelihood", PixelLikelihood(self.likelihood))
        ours, theirs = self.network.weight_shapes(), dict(self.prior.shapes)
        if ours != theirs:
            differing = sorted(
                name for name in ours.keys() | theirs.keys() if ours.get(name) != theirs.get(name)
            )
            raise ValueError(
                "prior must be over the network's weights, got other names or shapes for "
                f"{differing}; build it from the same network."
            )
        size = self.subsample_size
        if size is not None and (isinstance(size, bool) or not isinstance(size, int) or size < 1):
            raise ValueError(
                f"subsample_size must be a positive whole number or None, got {size!r}."
            )
        for name in ("likelihood_temperature", "prior_temperature"):
            value = getattr(self, name)
            if not is_traced(value) and not 0.0 < value < math.inf:
                raise ValueError(f"{name} must be positive and finite, got {value!r}.")

    def check(self, images: Any) -> None:
        """Raise a ValueError unless ``images`` are ``(n, data_dim)`` and inside the support.

        It looks at every pixel: call it once, before a run.
        """
        if images.ndim != 2 or images.shape[1] != self.network.data_dim:
            raise ValueError(
                f"images must have shape (n, {self.network.data_dim}), got {tuple(images.shape)}."
            )
        self._pixels.check(images)
        if self.subsample_size is not None and self.subsample_size > len(images):
            raise ValueError(
                f"subsample_size must be at most the number of images, {len(images)}, got "
                f"{self.subsample_size}."
            )

    @property
    def _pixels(self) -> PixelLikelihood:
        return cast(PixelLikelihood, self.likelihood)

    def _check_once(self, images: Any) -> None:
        """`check` the first time that these images come; hosts' kernels switch validation off."""
        if is_traced(images):
            return
        key = (id(images), self._pixels.name, self.subsample_size)
        # The reference tells a live array from another that has taken its place in memory.
        if key not in _seen or _seen[key]() is not images:
            self.check(images)
            _seen[key] = weakref.ref(images, lambda _: _seen.pop(key, None))

    def with_prior(self, prior: WeightPrior) -> Any:
        """The same model under another prior."""
        return replace(self, prior=prior)

    def log_likelihood(self, weights: Weights, images: Array) -> Array:
        """log p(x_n | w), ``(*batch, n)``, in nats an image; no temperature."""
        return self._pixels.log_prob(images, self.network(weights, images))

    def negative_log_joint(
        self, weights: Weights, images: Array, *, num_data: int | None = None
    ) -> Array:
        """U(w) = −Σ log p(x_n | w) / T_likelihood − log p(w) / T_prior, ``(*batch,)``, in nats.

        Equal to the host's own potential without its effect handlers, for batches of weights. If
        ``images`` are a minibatch of ``num_data``, the first sum is scaled up: an unbiased
        estimate.
        """
        scale = (1.0 if num_data is None else num_data / images.shape[-2]) / (
            self.likelihood_temperature
        )
        fit = self.log_likelihood(weights, images).sum(-1)
        return -scale * fit - self.prior.log_prob(weights) / self.prior_temperature

    def reconstruct(self, weights: Weights, images: Array) -> Array:
        """Mean images given each member of the weights' batch, ``(*batch, n, data_dim)``."""
        return self._pixels.mean(self.network(weights, images))
