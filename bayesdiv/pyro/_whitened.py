"""Guides in coordinates where the posterior is nearly standard normal."""

from __future__ import annotations

import math
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from pyro.distributions import transforms
from pyro.infer.autoguide import AutoContinuous

from bayesdiv.fitting import Start

GUIDES = ("mean_field", "full_rank", "flow")


class WhitenedGuide(AutoContinuous):
    r"""q(z) of the unconstrained latent vector, parameterised around a :class:`Start` (m, L).

    ==============  =============================================================
    ``mean_field``  z = m + L a + diag(s₀) exp(r) ε, one scale a coordinate
    ``full_rank``   z = m + L (a + S ε), S lower triangular
    ``flow``        z = m + L T(ε), T four coupling layers that start at the identity
    ==============  =============================================================

    with ε standard normal. The parameters are of order one whatever the units of the model, and the
    means move along the principal axes even where the scales may not.
    """

    antithetic = False
    """Whether draws come in pairs: steps do, so that noise linear in ε cancels from gradients."""

    def __init__(self, model: Any, family: str, start: Start, *args: Any, **kwargs: Any) -> None:
        # Several restarts have parameters of the same names; a shared store would mix them up.
        with pyro.settings.context(module_local_params=True):
            super().__init__(model)
            self._set_up(family, start, *args, **kwargs)

    def _set_up(self, family: str, start: Start, *args: Any, **kwargs: Any) -> None:
        self.family = family
        self._setup_prototype(*args, **kwargs)
        dim = self.latent_dim
        options = {"dtype": torch.get_default_dtype()}
        self.register_buffer("centre", torch.as_tensor(start.location, **options))
        self.register_buffer("whitening", torch.as_tensor(start.scale_tril, **options))
        self.shift = torch.nn.Parameter(torch.zeros(dim, **options))
        if family == "mean_field":
            # Of all diagonal normals the reverse-KL optimum has the conditional scales.
            inverse = torch.linalg.inv(self.whitening)
            self.register_buffer("unit", (inverse**2).sum(0).rsqrt())
            self.log_scale = torch.nn.Parameter(torch.zeros(dim, **options))
        elif family == "full_rank":
            self.log_scale = torch.nn.Parameter(torch.zeros(dim, **options))
            self.lower = torch.nn.Parameter(torch.zeros(dim * (dim - 1) // 2, **options))
        else:
            self.flow = torch.nn.ModuleList(_identity_layers(dim))

    @property
    def is_whitened(self) -> bool:
        """Whether every parameter is in posterior standard deviations."""
        return self.family != "flow"

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        with pyro.settings.context(module_local_params=True):
            return super().__call__(*args, **kwargs)

    def _loc_scale(self, *args: Any, **kwargs: Any) -> tuple[torch.Tensor, torch.Tensor]:
        posterior = self.get_posterior(*args, **kwargs)
        if self.family == "flow":
            with torch.no_grad():
                draws = posterior.sample((4000,))
            return draws.mean(0), draws.std(0)
        return posterior.mean, posterior.stddev

    def get_posterior(self, *args: Any, **kwargs: Any) -> Any:
        """The distribution of the unconstrained latent vector, event shape ``(dim,)``."""
        if self.family == "flow":
            base = dist.Normal(torch.zeros_like(self.shift), 1.0).to_event(1)
            affine = transforms.LowerCholeskyAffine(
                self.centre + self.whitening @ self.shift, self.whitening
            )
            return dist.TransformedDistribution(base, [*self._steps(), affine])
        loc = self.centre + self.whitening @ self.shift
        if self.family == "mean_field":
            normal = AntitheticNormal if self.antithetic else dist.Normal
            return normal(loc, self.unit * self.log_scale.exp()).to_event(1)
        normal = AntitheticMultivariateNormal if self.antithetic else dist.MultivariateNormal
        return normal(loc, scale_tril=self.whitening @ self._inner_scale())

    def _steps(self) -> list[Any]:
        """The flow's layers with the order of coordinates turned round between them."""
        backwards = transforms.permute(self.latent_dim, torch.arange(self.latent_dim - 1, -1, -1))
        steps: list[Any] = []
        for layer in self.flow:
            steps.extend([backwards, layer] if steps else [layer])
        return steps

    def _inner_scale(self) -> torch.Tensor:
        dim = self.shift.shape[0]
        rows, columns = torch.tril_indices(dim, dim, offset=-1)
        lower = torch.zeros(dim, dim, dtype=self.shift.dtype, device=self.shift.device)
        lower = lower.index_put((rows, columns), self.lower)
        return lower + torch.diag(self.log_scale.exp())

    def at(self, latent: torch.Tensor) -> PointGuide:
        """A guide whose unconstrained latent vector is ``latent``, ``(dim,)``."""
        return PointGuide(self, latent)


def _antithetic_noise(shape: torch.Size, like: torch.Tensor) -> torch.Tensor:
    """Standard normal noise whose second half along the first axis is minus the first."""
    if len(shape) < 2 or shape[0] < 2:
        return torch.randn(shape, dtype=like.dtype, device=like.device)
    half = torch.randn(((shape[0] + 1) // 2, *shape[1:]), dtype=like.dtype, device=like.device)
    return torch.cat([half, -half])[: shape[0]]


class AntitheticNormal(dist.Normal):
    """A normal whose particles, along the first axis, come in pairs around the mean."""

    def rsample(self, sample_shape: Any = ()) -> torch.Tensor:
        noise = _antithetic_noise(self._extended_shape(torch.Size(sample_shape)), self.loc)
        return self.loc + self.scale * noise


class AntitheticMultivariateNormal(dist.MultivariateNormal):
    """The same for a multivariate normal."""

    def rsample(self, sample_shape: Any = ()) -> torch.Tensor:
        noise = _antithetic_noise(self._extended_shape(torch.Size(sample_shape)), self.loc)
        return self.loc + (self._unbroadcasted_scale_tril @ noise.unsqueeze(-1)).squeeze(-1)


class PointGuide:
    """Every latent site at the values that one unconstrained vector stands for."""

    def __init__(self, guide: AutoContinuous, latent: torch.Tensor) -> None:
        self.guide, self.latent = guide, latent

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        keep = self.guide.__dict__.get("sample_latent")
        self.guide.__dict__["sample_latent"] = lambda *_args, **_kwargs: self.latent
        try:
            return self.guide(*args, **kwargs)
        finally:
            del self.guide.__dict__["sample_latent"]
            if keep is not None:
                self.guide.__dict__["sample_latent"] = keep


def _identity_layers(dim: int, num_layers: int = 4) -> list[Any]:
    """Coupling layers close to the identity; an elementwise spline for one dimension."""
    if dim == 1:
        return [transforms.Spline(1, count_bins=16, bound=6.0)]
    layers = []
    for _ in range(num_layers):
        layer = transforms.affine_coupling(dim, hidden_dims=[max(16, 2 * dim)])
        last = layer.nn.layers[-1]
        torch.nn.init.normal_(last.weight, std=1e-3 / math.sqrt(last.weight.shape[1]))
        torch.nn.init.zeros_(last.bias)
        layers.append(layer)
    return layers
