"""A Pyro model's log-density over one unconstrained vector, for the start of a fit."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pyro
import torch
from pyro import poutine
from pyro.infer.autoguide import AutoContinuous
from pyro.infer.autoguide.initialization import init_to_feasible

from bayesdiv.pyro._sites import PARTICLE_PLATE, plates_of, sample_sites, scaled, unscaled_log_prob
from bayesdiv.pyro._whitened import PointGuide


class PyroTarget:
    """Potential −log p(x, z) − log|dθ/dz| of the unconstrained latent vector z, in NumPy.

    Raises
    ------
    ValueError
        A latent site is discrete, or a plate is subsampled.
    """

    def __init__(self, model: Callable, args: tuple, kwargs: Mapping[str, Any]) -> None:
        self.model, self.args, self.kwargs = model, args, kwargs
        self.nesting = _plate_nesting(model, args, kwargs)
        # Medians of wide priors can be far out, where a count model already overflows.
        self.guide = AutoContinuous(model, init_loc_fn=init_to_feasible)
        self.guide._setup_prototype(*args, **kwargs)
        self.dim = self.guide.latent_dim
        self.vectorizes = self._vectorizes()

    def initial_point(self) -> np.ndarray:
        """A feasible point: zero for unconstrained sites."""
        return self.guide._init_loc().double().numpy()

    def potential(self, z: torch.Tensor) -> torch.Tensor:
        """Potential at ``z``, ``(dim,)``."""
        return -self._log_density(PointGuide(self.guide, z), self.model).sum()

    def value_and_gradient(self, z: np.ndarray) -> tuple[float, np.ndarray]:
        """Potential and its gradient."""
        point = _tensor(z).requires_grad_()
        value = self.potential(point)
        (gradient,) = torch.autograd.grad(value, point)
        return value.item(), gradient.double().numpy()

    def hessian(self, z: np.ndarray) -> np.ndarray:
        """Second derivatives, ``(dim, dim)``."""
        point = _tensor(z).requires_grad_()
        value = self.potential(point)
        (gradient,) = torch.autograd.grad(value, point, create_graph=True)
        rows = [
            torch.autograd.grad(entry, point, retain_graph=True, allow_unused=True)[0]
            if entry.requires_grad
            else None
            for entry in gradient
        ]
        zero = torch.zeros_like(point)
        return torch.stack([zero if row is None else row for row in rows]).double().numpy()

    def values(self, z: np.ndarray) -> np.ndarray:
        """Potentials of a batch, ``(batch, dim)`` → ``(batch,)``."""
        with torch.no_grad():
            if self.vectorizes:
                return self._batched(_tensor(z)).double().numpy()
            return np.array([self.potential(_tensor(row)).item() for row in z])

    def gradients(self, z: np.ndarray) -> np.ndarray:
        """Gradients of a batch, ``(batch, dim)``."""
        if not self.vectorizes:
            return np.stack([self.value_and_gradient(row)[1] for row in z])
        points = _tensor(z).requires_grad_()
        (slopes,) = torch.autograd.grad(self._batched(points).sum(), points)
        return slopes.double().numpy()

    def _batched(self, z: torch.Tensor) -> torch.Tensor:
        count = len(z)
        plate = pyro.plate(PARTICLE_PLATE, count, dim=-1 - self.nesting)
        wide = z.reshape((count,) + (1,) * self.nesting + (self.dim,))
        return -self._log_density(plate(PointGuide(self.guide, wide)), plate(self.model), count)

    def _log_density(self, guide: Any, model: Any, count: int = 1) -> torch.Tensor:
        guide_trace = poutine.trace(guide).get_trace(*self.args, **self.kwargs)
        replayed = poutine.replay(model, trace=guide_trace)
        model_trace = poutine.trace(replayed).get_trace(*self.args, **self.kwargs)
        total: Any = 0.0
        for sign, trace in ((1.0, model_trace), (-1.0, guide_trace)):
            for site in sample_sites(trace):
                term = torch.as_tensor(scaled(site, unscaled_log_prob(site)))
                if count > 1:
                    wide = (count,) + tuple(term.shape[1:])
                    term = term.expand(wide).reshape(count, -1).sum(-1)
                total = total + sign * (term if count > 1 else term.sum())
        return total

    def _vectorizes(self) -> bool:
        """Whether the model gives the same under a plate of particles as one by one."""
        z = self.guide._init_loc() + 0.05 * torch.randn(3, self.dim)
        with torch.no_grad():
            alone = torch.stack([self.potential(row) for row in z])
            try:
                together = self._batched(z)
            except (RuntimeError, ValueError, IndexError, TypeError, NotImplementedError):
                return False
        tolerance = 1e-5 * (1.0 + alone.abs())
        return bool(((together - alone).abs() <= tolerance).all())


def _tensor(z: np.ndarray) -> torch.Tensor:
    return torch.as_tensor(z, dtype=torch.get_default_dtype())


def _plate_nesting(model: Callable, args: tuple, kwargs: Mapping[str, Any]) -> int:
    """How many batch dimensions plates take; raises if the model is not one to fit."""
    trace = poutine.trace(poutine.block(model, hide_types=["param"])).get_trace(*args, **kwargs)
    latent = [site for site in sample_sites(trace) if not site["is_observed"]]
    if not latent:
        raise ValueError("model has no latent sites, so there is nothing to fit.")
    for site in latent:
        if site["fn"].support.is_discrete:
            raise ValueError(
                f"site {site['name']!r} is discrete, which the built-in guides do not approximate; "
                "marginalise it, or pass a guide of your own."
            )
    for site in sample_sites(trace):
        for frame in site["cond_indep_stack"]:
            if frame.full_size is not None and frame.size < frame.full_size:
                raise ValueError(
                    f"plate {frame.name!r} is subsampled ({frame.size} of {frame.full_size}); fit "
                    "starts from the curvature of the full data. Drop the subsampling, or run "
                    "pyro.infer.SVI with bayesdiv.pyro.objective."
                )
    sites = list(sample_sites(trace))
    return max((-plate.dim for site in sites for plate in plates_of(site)), default=0)
