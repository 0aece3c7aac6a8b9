"""A training step of adversarial inference, and the same step written out in bare torch."""

from __future__ import annotations

import functools
import itertools
import math
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from torch import nn
from torch.nn.functional import softplus

from bayesdiv.inference.adversarial import AdversarialInference, AdversarialSettings, CodeCritic
from bayesdiv.pyro import EmpiricalPrior
from benchmarks.cases import Case, Comparison, Duel, agree

_NOISE = 0.5
_BETAS = (0.5, 0.999)
_SETTINGS = AdversarialSettings()


def cases(*, quick: bool) -> list[Case]:
    """Windows of 200 samples and codes of 100, as in speech to electroglottograph."""
    sizes = (16, 20, 8) if quick else (512, 200, 100)
    rows, width, dim = sizes
    name = f"torch/adversarial/step/{rows}x{width}"
    return [Case(name, functools.partial(prepare_step, rows, width, dim))]


class Networks(nn.Module):
    """Encoder and decoder with batch normalisation, a pool of codes, and a program over them."""

    def __init__(self, width: int, dim: int) -> None:
        super().__init__()
        torch.manual_seed(0)
        widths = [width, (3 * width + dim) // 4, (width + 3 * dim) // 4, dim]
        self.encoder = nn.Sequential(*_layers(widths), nn.BatchNorm1d(dim), nn.Tanh())
        self.decoder = nn.Sequential(*_layers(widths[::-1]))
        self.pool = torch.randn(4 * 512, dim).tanh()

    def model(self, speech: torch.Tensor, signal: torch.Tensor) -> None:
        """Codes of the pool, decoded with noise."""
        pyro.module("decoder", self.decoder)
        with pyro.plate("windows", len(signal)):
            z = pyro.sample("z", EmpiricalPrior(self.pool))
            pyro.sample("e", dist.Normal(self.decoder(z), _NOISE).to_event(1), obs=signal)

    def guide(self, speech: torch.Tensor, signal: torch.Tensor) -> None:
        """The encoder's code."""
        pyro.module("encoder", self.encoder)
        with pyro.plate("windows", len(speech)):
            pyro.sample("z", dist.Delta(self.encoder(speech), event_dim=1))


def _layers(widths: list[int]) -> list[nn.Module]:
    """Linear layers with batch normalisation and ReLU between them."""
    layers: list[nn.Module] = []
    for inputs, outputs in itertools.pairwise(widths):
        layers += [nn.Linear(inputs, outputs), nn.BatchNorm1d(outputs), nn.ReLU()]
    return layers[:-2]


class BareLoop:
    """The step of the same networks without program, divergence or checks."""

    def __init__(self, networks: Networks, dim: int) -> None:
        self.networks, self.critic = networks, CodeCritic(dim)
        self.encoder = list(networks.encoder.parameters())
        self.both = [*self.encoder, *networks.decoder.parameters()]
        self.critic_optimiser = torch.optim.Adam(
            self.critic.parameters(), lr=_SETTINGS.critic_rate, betas=_BETAS
        )
        self.encoder_optimiser = torch.optim.Adam(
            self.encoder, lr=_SETTINGS.encoder_rate, betas=_BETAS
        )
        self.optimiser = torch.optim.Adam(self.both, lr=_SETTINGS.reconstruction_rate)

    def step(self, batch: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
        """Critic, then encoder and decoder."""
        speech, signal = batch
        z = self.networks.encoder(speech)
        output = self.networks.decoder(z)
        error = ((signal - output) / _NOISE).square().sum(1).mean() / 2
        error = error + signal.shape[1] * math.log(_NOISE * math.sqrt(2 * math.pi))
        pool = self.networks.pool
        prior = pool[torch.randint(len(pool), (len(z),))]
        logits = self.critic(torch.cat([prior, z.detach()]))
        loss = softplus(-logits[: len(z)]).mean() + softplus(logits[len(z) :]).mean()
        self.critic_optimiser.zero_grad()
        loss.backward()
        self.critic_optimiser.step()
        adversarial = softplus(-self.critic(z)).mean()
        pull = torch.autograd.grad(adversarial, self.encoder, retain_graph=True)
        slopes = torch.autograd.grad(error, self.both)
        for parameter, slope in zip(self.encoder, pull, strict=True):
            parameter.grad = slope
        self.encoder_optimiser.step()
        for parameter, slope in zip(self.both, slopes, strict=True):
            parameter.grad = slope
        self.optimiser.step()
        return error.detach()


def prepare_step(rows: int, width: int, dim: int) -> Duel:
    """From the same start, draws and batch."""
    pyro.clear_param_store()
    batch = torch.randn(rows, width), torch.randn(rows, width).tanh()
    routines: dict[str, Any] = {}
    found = {}
    for name in ("ours", "bare loop"):
        networks = Networks(width, dim)
        # The second registers its own networks under the names of the first.
        pyro.clear_param_store()
        routines[name] = (
            AdversarialInference(networks.model, networks.guide)
            if name == "ours"
            else BareLoop(networks, dim)
        )
        torch.manual_seed(1)
        for _ in range(3):
            routines[name].step(batch)
        # Not the parameters: biases before batch normalisation have rounding for a gradient.
        with torch.no_grad():
            found[name] = networks.decoder(networks.encoder(batch[0]))
    agreement = agree("outputs after three steps", found["ours"], found["bare loop"], 1e-3)
    samples = AdversarialInference(
        routines["ours"].model, routines["ours"].guide, divergence="sliced_wasserstein"
    )

    def without_validation() -> None:
        with pyro.validation_enabled(is_validate=False):
            routines["ours"].step(batch)

    contestants = {
        "ours": lambda: routines["ours"].step(batch),
        "no validation": without_validation,
        "sliced_wasserstein": lambda: samples.step(batch),
        "bare loop": lambda: routines["bare loop"].step(batch),
    }
    comparisons = [
        Comparison("ours", "bare loop", 1.1),
        Comparison("no validation", "bare loop"),
        Comparison("sliced_wasserstein", "bare loop"),
    ]
    return Duel(contestants, comparisons, agreement, {"rows": f"{rows} a step"})
