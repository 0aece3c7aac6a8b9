"""Guides in coordinates where the posterior is nearly standard normal."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from pyro.distributions import transforms
from pyro.infer.autoguide import AutoContinuous

from bayesdiv.fitting import Start


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

    noise_pairs: NoisePairs | None = None
    """Where the noise comes from inside :func:`antithetic`; ordinary draws are independent."""

    def __init__(self, model: Any, family: str, start: Start, *args: Any, **kwargs: Any) -> None:
        # Several restarts have parameters of the same names; a shared store would mix them up.
        with pyro.settings.context(module_local_params=True):
            super().__init__(model)
            self._set_up(family, start, *args, **kwargs)

    def _set_up(self, family: str, start: Start, *args: Any, **kwargs: Any) -> None:
        self.family = family
        self._setup_prototype(*args, **kwargs)
        dim = self.latent_dim
        options: dict[str, Any] = {"dtype": torch.get_default_dtype()}
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
            normal = PairedNormal(loc, self.unit * self.log_scale.exp(), validate_args=False)
            normal.noise_pairs = self.noise_pairs
            return normal.to_event(1)
        tril = self.whitening @ self._inner_scale()
        joint = PairedMultivariateNormal(loc, scale_tril=tril, validate_args=False)
        joint.noise_pairs = self.noise_pairs
        return joint

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


class NoisePairs:
    """Standard normal noise that comes in pairs ±ε: along the first axis, or from call to call."""

    def __init__(self) -> None:
        self._pending: torch.Tensor | None = None

    def draw(self, shape: torch.Size, like: torch.Tensor) -> torch.Tensor:
        """Noise of ``shape``, of the type of ``like``; two axes mean particles on the first."""
        options: dict[str, Any] = {"dtype": like.dtype, "device": like.device}
        if len(shape) > 1 and shape[0] > 1:
            half = torch.randn(((shape[0] + 1) // 2, *shape[1:]), **options)
            return torch.cat([half, -half])[: shape[0]]
        kept, self._pending = self._pending, None
        if kept is not None and kept.shape == shape:
            return -kept
        self._pending = torch.randn(shape, **options)
        return self._pending


@contextmanager
def antithetic(guide: Any) -> Iterator[None]:
    """Draw a whitened guide's particles in pairs, so that noise linear in ε cancels from steps."""
    if not isinstance(guide, WhitenedGuide):
        yield
        return
    guide.noise_pairs = NoisePairs()
    try:
        yield
    finally:
        guide.noise_pairs = None


class PairedNormal(dist.Normal):
    """A normal whose noise is that of ``noise_pairs``, where there is one."""

    noise_pairs: NoisePairs | None = None

    def expand(self, batch_shape: Any, _instance: Any = None) -> Any:
        wide = super().expand(batch_shape, _instance)
        wide.noise_pairs = self.noise_pairs
        return wide

    def rsample(self, sample_shape: Any = ()) -> torch.Tensor:
        if self.noise_pairs is None:
            return super().rsample(torch.Size(sample_shape))
        shape = self._extended_shape(torch.Size(sample_shape))
        return self.loc + self.scale * self.noise_pairs.draw(shape, self.loc)


class PairedMultivariateNormal(dist.MultivariateNormal):
    """The same for a multivariate normal."""

    noise_pairs: NoisePairs | None = None

    def expand(self, batch_shape: Any, _instance: Any = None) -> Any:
        wide = super().expand(batch_shape, _instance)
        wide.noise_pairs = self.noise_pairs
        return wide

    def rsample(self, sample_shape: Any = ()) -> torch.Tensor:
        if self.noise_pairs is None:
            return super().rsample(torch.Size(sample_shape))
        shape = self._extended_shape(torch.Size(sample_shape))
        noise = self.noise_pairs.draw(shape, self.loc)
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
