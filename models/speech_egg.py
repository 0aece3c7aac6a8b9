r"""Speech and the electroglottogram (EGG): an autoencoder, its law of codes as a prior, a program.

.. math:: z ∼ p^*(z), \quad e ∼ p_θ(e\,|\,z) \qquad\text{with the guide}\qquad z ∼ q_φ(z\,|\,s)

e is a window of EGG and s of the speech at the same time. p* is the law of the codes that an
autoencoder of EGG windows gives to real ones: it can be drawn from and has no density. Speech
enters through the guide alone, so that the EGG of new speech is drawn by guide and decoder.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from torch import nn

from bayesdiv.models._speech_networks import (
    ConvolutionalSpeechEncoder,
    DenseEncoder,
    dense_network,
)
from bayesdiv.pyro import EmpiricalPrior
from bayesdiv.pyro.distributions import VonMisesFisher

__all__ = ["EGGAutoencoder", "EGGLikelihood", "SpeechToEGG"]

_LEAST_LOG_SCALE, _LARGEST_LOG_SCALE = -6.0, 1.0
_LEAST_NORM = 1e-6


@dataclass(frozen=True)
class EGGLikelihood:
    r"""p(e|z) of a window e given what is drawn for it, ê.

    .. math:: -\log p = \frac{|e - ê|^2}{2 σ^2} + κ (1 - \cos(e, ê)) + \text{const}

    With both terms, the default, it is a composite likelihood: the same window is seen twice, once
    for amplitude and shape, once for shape alone.

    Attributes
    ----------
    scale : float or None
        σ of independent samples; None leaves the term out. √½ makes it the squared error, summed.
    concentration : float or None
        κ of the window's direction under a von Mises–Fisher law; None leaves the term out.
    least_norm : float
        Windows whose EGG is shorter have no direction (nobody speaks), and are masked there.

    Raises
    ------
    ValueError
        Both terms left out, or a number that is not positive.
    """

    scale: float | None = math.sqrt(0.5)
    concentration: float | None = 1.0
    least_norm: float = 0.5

    def __post_init__(self) -> None:
        if self.scale is None and self.concentration is None:
            raise ValueError("scale and concentration must not both be None: nothing is observed.")
        for name in ("scale", "concentration", "least_norm"):
            value = getattr(self, name)
            if value is not None and not 0.0 < value < math.inf:
                raise ValueError(f"{name} must be positive and finite, got {value!r}.")

    def observe(self, drawn: torch.Tensor, egg: torch.Tensor) -> None:
        """The sites ``egg`` and ``direction`` of windows ``(n, window)``."""
        if self.scale is not None:
            pyro.sample("egg", dist.Normal(drawn, self.scale).to_event(1), obs=egg)
        if self.concentration is not None:
            norm = egg.norm(dim=-1)
            shape = egg / norm.clamp(min=_LEAST_NORM)[..., None]
            # A silent window has no direction, and stands for one only to be masked.
            axis = torch.zeros_like(shape)
            axis[..., 0] = 1.0
            voiced = norm > self.least_norm
            shape = torch.where(voiced[..., None], shape, axis)
            law = VonMisesFisher(drawn, self.concentration, validate_args=False)
            with poutine.mask(mask=voiced):
                pyro.sample("direction", law, obs=shape)


class EGGAutoencoder(nn.Module):
    """EGG windows to codes in (−1, 1) and back; what it makes of real windows is the prior.

    ``AdversarialInference(each.model, each.guide, divergence=..., weight=0.0)`` fits it: the codes
    are then free, and the divergence from N(0, I) only watched.

    Parameters
    ----------
    window, code_size
        Samples of a window, and numbers of its code.
    hidden
        Widths between.
    likelihood
        Of windows given codes, `EGGLikelihood`.

    Raises
    ------
    ValueError
        A size that is not positive.

    References
    ----------
    Prathosh et al. (2019), Adversarial approximate inference for speech to electroglottograph
    conversion, §II.
    """

    def __init__(
        self,
        window: int = 200,
        code_size: int = 100,
        *,
        hidden: tuple[int, ...] = (175, 125),
        likelihood: EGGLikelihood | None = None,
    ) -> None:
        super().__init__()
        _check_sizes(window=window, code_size=code_size)
        self.window, self.code_size = window, code_size
        self.likelihood = EGGLikelihood() if likelihood is None else likelihood
        self.encoder = DenseEncoder(window, code_size, hidden=hidden)
        self.decoder = dense_network((code_size, *reversed(hidden), window))

    def encode(self, egg: torch.Tensor) -> torch.Tensor:
        """Codes ``(n, code_size)`` of windows ``(n, window)``."""
        return self.encoder(egg).tanh()

    def forward(self, egg: torch.Tensor) -> torch.Tensor:
        """Windows, through their codes."""
        return self.decoder(self.encode(egg)).tanh()

    def model(self, egg: torch.Tensor) -> None:
        """Codes from N(0, I), windows given them; a prior to be replaced, at weight 0."""
        decoder = pyro.module("egg_decoder", self.decoder)
        with pyro.plate("windows", len(egg)):
            law = dist.Normal(egg.new_zeros(self.code_size), 1.0).to_event(1)
            z = pyro.sample("z", law)
            self.likelihood.observe(decoder(z).tanh(), egg)

    def guide(self, egg: torch.Tensor) -> None:
        """The code itself."""
        pyro.module("egg_encoder", self.encoder)
        with pyro.plate("windows", len(egg)):
            pyro.sample("z", dist.Delta(self.encode(egg), event_dim=1))

    @torch.no_grad()
    def prior(self, egg: torch.Tensor) -> EmpiricalPrior:
        """The law of the codes of ``egg``, ``(n, window)``, encoded once in evaluation mode."""
        was_training = self.training
        self.eval()
        codes = torch.cat([self.encode(part) for part in egg.split(65_536)])
        self.train(was_training)
        return EmpiricalPrior(codes)


class SpeechToEGG(nn.Module):
    r"""The model and guide that draw EGG from speech; called as ``(speech, egg)``.

    Parameters
    ----------
    prior
        Of the codes, with their ``event_shape``: `EGGAutoencoder.prior`, or ``Normal(0, 1)`` over
        the same shape for a prior that knows nothing of EGG.
    window
        Samples of an EGG window.
    context
        Samples of speech before and after it that the guide sees as well.
    stochastic
        Whether the guide is N(f(s), diag σ(s)²) rather than a point mass at f(s).
    bounded
        Whether f(s) goes through a tanh, as codes of an autoencoder do.
    convolutional
        Whether f is convolutional; dense otherwise.
    hidden
        Widths of dense layers.
    likelihood
        `EGGLikelihood`.

    Pyro keeps parameters by name for the whole process, and would give those of one network to the
    next: call ``pyro.clear_param_store()`` before a second one is trained.

    Raises
    ------
    ValueError
        A size that is not positive, a prior that is not over vectors, or, from model and guide,
        speech and EGG of other shapes.

    References
    ----------
    Prathosh et al. (2019), §II and figure 2.

    Examples
    --------
    >>> from bayesdiv.inference.adversarial import AdversarialInference
    >>> prior = EGGAutoencoder(40, 8).prior(torch.randn(300, 40))
    >>> network = SpeechToEGG(prior, 40)
    >>> routine = AdversarialInference(network.model, network.guide, divergence="jensen_shannon")
    >>> sorted(routine.step((torch.randn(30, 40), torch.randn(30, 40))))[:3]
    ['critic_loss', 'divergence', 'implied_jensen_shannon']
    """

    def __init__(
        self,
        prior: Any,
        window: int = 200,
        *,
        context: int = 0,
        stochastic: bool = False,
        bounded: bool = True,
        convolutional: bool = False,
        hidden: tuple[int, ...] = (175, 125),
        likelihood: EGGLikelihood | None = None,
    ) -> None:
        super().__init__()
        if len(prior.event_shape) != 1:
            raise ValueError(
                f"prior must be over vectors, event_shape (dim,), got {tuple(prior.event_shape)}."
            )
        code_size = int(prior.event_shape[0])
        _check_sizes(window=window, code_size=code_size)
        if isinstance(context, bool) or not isinstance(context, int) or context < 0:
            raise ValueError(f"context must be a whole number of samples, got {context!r}.")
        self.prior, self.window, self.context = prior, window, context
        self.code_size, self.stochastic, self.bounded = code_size, stochastic, bounded
        self.likelihood = EGGLikelihood() if likelihood is None else likelihood
        seen, outputs = window + 2 * context, code_size * (2 if stochastic else 1)
        self.encoder: nn.Module
        if convolutional:
            self.encoder = ConvolutionalSpeechEncoder(seen, outputs)
        else:
            self.encoder = DenseEncoder(seen, outputs, hidden=hidden)
        self.decoder = dense_network((code_size, *reversed(hidden), window))

    def encode(self, speech: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None]:
        """f(s) and σ(s), each ``(n, code_size)``; None for σ of a point mass."""
        found = self.encoder(speech)
        scale = None
        if self.stochastic:
            found, logs = found.chunk(2, dim=1)
            scale = (logs - 2.0).clamp(_LEAST_LOG_SCALE, _LARGEST_LOG_SCALE).exp()
        return (found.tanh() if self.bounded else found), scale

    def model(self, speech: torch.Tensor, egg: torch.Tensor) -> None:
        """Codes by the prior, windows ``(n, window)`` of EGG given them."""
        self._check(speech, egg)
        decoder = pyro.module("decoder", self.decoder)
        with pyro.plate("windows", len(egg)):
            z = pyro.sample("z", self.prior)
            self.likelihood.observe(decoder(z), egg)

    def guide(self, speech: torch.Tensor, egg: torch.Tensor) -> None:
        """Codes of windows of speech, ``(n, window + 2 · context)``."""
        self._check(speech, egg)
        pyro.module("encoder", self.encoder)
        location, scale = self.encode(speech)
        with pyro.plate("windows", len(speech)):
            if scale is None:
                pyro.sample("z", dist.Delta(location, event_dim=1))
            else:
                pyro.sample("z", dist.Normal(location, scale).to_event(1))

    @torch.no_grad()
    def draw(self, speech: torch.Tensor, noise: torch.Tensor | None = None) -> torch.Tensor:
        """Mean EGG windows ``(n, window)`` of windows of speech, at z = f(s) + σ(s) · noise.

        ``noise`` is ``(code_size,)`` or ``(n, code_size)``; None is the middle, z = f(s). Windows
        that overlap have codes that belong together: one noise for all of them moves a whole
        signal, where a noise each would be averaged away.
        """
        location, scale = self.encode(speech)
        if noise is not None:
            if scale is None:
                raise ValueError("noise needs a stochastic guide, got a point mass.")
            location = location + scale * noise
        return self.decoder(location)

    def _check(self, speech: torch.Tensor, egg: torch.Tensor) -> None:
        wanted = (len(egg), self.window + 2 * self.context)
        if tuple(speech.shape) != wanted or tuple(egg.shape[1:]) != (self.window,):
            raise ValueError(
                f"speech and egg must be windows of shapes {wanted} and {(len(egg), self.window)}, "
                f"got {tuple(speech.shape)} and {tuple(egg.shape)}."
            )


def _check_sizes(**sizes: int) -> None:
    for name, size in sizes.items():
        if isinstance(size, bool) or not isinstance(size, int) or size < 1:
            raise ValueError(f"{name} must be a whole number of at least 1, got {size!r}.")
