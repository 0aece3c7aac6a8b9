"""A Pyro posterior as the teacher of score distillation, and a guide as its student."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from pyro.infer.autoguide import AutoContinuous

from bayesdiv.inference.score_distillation import DistillationSettings, ScoreDistillation
from bayesdiv.pyro._target import PyroTarget

__all__ = ["GuideStudent", "PosteriorTeacher", "distill_posterior"]


class PosteriorTeacher:
    r"""log p(x, z) of a Pyro model over its unconstrained latent vector, and its gradient.

    The order of the vector is that of Pyro's ``AutoContinuous`` guides, and the Jacobians of
    constrained sites are in the density. There is one noise level, 0.

    Parameters
    ----------
    model
        Pyro model on its full data, with continuous latent sites.
    *args, **kwargs
        Its arguments.

    Raises
    ------
    ValueError
        A latent site is discrete, or a plate is subsampled.
    """

    is_normalized = False

    def __init__(self, model: Callable, *args: Any, **kwargs: Any) -> None:
        self._target = PyroTarget(model, args, kwargs)
        self.event_shape = (self._target.dim,)

    def log_prob(self, z: torch.Tensor, sigma: Any = 0.0) -> torch.Tensor:
        """log p(x, z) + log|dθ/dz|, ``(n,)``, at ``z``, ``(n, dim)``: the evidence is not in it."""
        if self._target.vectorizes and len(z) > 1:
            return -self._target._batched(z)
        return -torch.stack([self._target.potential(row) for row in z])

    def score_and_log_prob(
        self, z: torch.Tensor, sigma: Any = 0.0
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Its gradient in ``z``, ``(n, dim)``, and itself."""
        return _slope_and_value(self.log_prob, z)

    def score(self, z: torch.Tensor, sigma: Any = 0.0) -> torch.Tensor:
        """The gradient alone."""
        return self.score_and_log_prob(z)[0]


class GuideStudent:
    """A Pyro guide with a density over the unconstrained vector, as student and as its own score.

    Parameters
    ----------
    guide
        ``AutoDiagonalNormal``, ``AutoMultivariateNormal``, ``AutoLowRankMultivariateNormal``,
        ``AutoIAFNormal``, or another ``AutoContinuous`` that has ``get_posterior``.
    *args, **kwargs
        The model's arguments.

    Raises
    ------
    TypeError
        Another guide.
    """

    is_normalized = True

    def __init__(self, guide: Any, *args: Any, **kwargs: Any) -> None:
        if not isinstance(guide, AutoContinuous):
            raise TypeError(
                "guide must be an AutoContinuous, whose density is one of the unconstrained "
                f"vector, such as AutoDiagonalNormal; got {type(guide).__name__}."
            )
        guide(*args, **kwargs)  # Makes its parameters.
        self.guide = guide
        self.event_shape = (guide.latent_dim,)

    def parameters(self) -> list[torch.Tensor]:
        """What an optimiser moves."""
        return list(self.guide.parameters())

    def sample(self, count: int) -> torch.Tensor:
        """Reparameterised draws, ``(count, dim)``."""
        posterior: Any = self.guide.get_posterior()
        return posterior.rsample((count,))

    def log_prob(self, z: torch.Tensor, sigma: Any = 0.0) -> torch.Tensor:
        """log q(z), ``(n,)``."""
        posterior: Any = self.guide.get_posterior()
        return posterior.log_prob(z)

    def score_and_log_prob(
        self, z: torch.Tensor, sigma: Any = 0.0
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """∇_z log q, ``(n, dim)``, and log q: in z alone, so that parameters need no freezing."""
        return _slope_and_value(self.log_prob, z)

    def score(self, z: torch.Tensor, sigma: Any = 0.0) -> torch.Tensor:
        """The gradient alone."""
        return self.score_and_log_prob(z)[0]


def distill_posterior(
    model: Callable,
    guide: Any,
    *args: Any,
    divergence: Any = "reverse_kl",
    num_particles: int = 64,
    learning_rate: float = 0.01,
    normalize_weight: bool = False,
    min_ess: float = 0.0,
    **kwargs: Any,
) -> ScoreDistillation:
    r"""Score distillation of the posterior of ``model`` into ``guide``, with Adam.

    The gradient is that of ``bayesdiv.pyro.objective(divergence, gradient="path")`` with a
    self-normalised ratio: ∇ log p − ∇ log q is taken at the guide's draws, and the mean ratio of
    the step stands for the evidence.

    Parameters
    ----------
    model, guide
        Pyro's; see `PosteriorTeacher` and `GuideStudent`.
    *args, **kwargs
        The model's arguments.
    divergence
        An f-divergence D_f(posterior‖guide) with a path gradient.
    num_particles
        Draws a step.
    learning_rate
        Of Adam.
    normalize_weight
        Whether the weights' mean is made 1, so that one rate suits every divergence.
    min_ess
        As in `DistillationSettings`.

    Raises
    ------
    ValueError, TypeError
        As the parts say.

    Examples
    --------
    >>> import pyro, torch
    >>> import pyro.distributions as dist
    >>> from bayesdiv.training import train
    >>> def model():
    ...     z = pyro.sample("z", dist.Normal(0.0, 1.0))
    ...     pyro.sample("x", dist.Normal(z, 1.0), obs=torch.tensor(1.0))
    >>> guide = pyro.infer.autoguide.AutoDiagonalNormal(model)
    >>> routine = distill_posterior(model, guide, divergence="jensen_shannon")
    >>> train(routine, None, num_steps=5, progress_bar=False).stopped
    'completed'
    """
    teacher, student = (
        PosteriorTeacher(model, *args, **kwargs),
        GuideStudent(guide, *args, **kwargs),
    )
    settings = DistillationSettings(
        divergence,
        scaling="score",
        batch_size=num_particles,
        num_bins=1,
        ratio_decay=0.0,
        normalize_weight=normalize_weight,
        min_ess=min_ess,
    )
    optimizer = torch.optim.Adam(student.parameters(), lr=learning_rate)
    return ScoreDistillation(student, optimizer, teacher, student, settings=settings)


def _slope_and_value(
    function: Callable[[torch.Tensor], torch.Tensor], z: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    with torch.enable_grad():
        point = z.detach().requires_grad_()
        value = function(point)
        (slope,) = torch.autograd.grad(value.sum(), point)
    return slope, value.detach()
