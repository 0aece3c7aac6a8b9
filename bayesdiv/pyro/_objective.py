"""An objective by name, for Pyro."""

from __future__ import annotations

import inspect
from typing import Any

from pyro.infer.elbo import ELBO

from bayesdiv.objectives import ObjectiveSettings, is_two_sample
from bayesdiv.pyro._elbo import DivergenceELBO

__all__ = ["DivergenceELBO", "objective"]

_HOST_ARGUMENTS = tuple(
    name
    for name in inspect.signature(ELBO.__init__).parameters
    if name not in ("self", "num_particles")
)


def objective(
    divergence: Any,
    *,
    num_particles: int | None = None,
    gradient: str = "auto",
    normalizer: Any = "self",
    warmup: int = 0,
    **arguments: Any,
) -> ELBO:
    r"""An objective by name, as the ``loss`` of :class:`pyro.infer.SVI`.

    Parameters
    ----------
    divergence
        A name from :func:`bayesdiv.objectives.list_objectives`, a divergence, or one of your own.
        f-divergences and bounds act on log p̃(z) − log q(z), see :class:`DivergenceELBO`;
        two-sample divergences on samples, see :class:`SampleObjective` for the space.
    num_particles
        Samples of the guide a step. None: 1 for reverse KL, 16 for others, 64 for samples.
    gradient
        "auto", "path", "reparam" or "score".
    normalizer
        "self", "running", or the known log Z; only for log-weights.
    warmup
        Steps of reverse KL first. Mass-covering divergences need it when started far away.
    **arguments
        Arguments of Pyro's ELBO (``max_plate_nesting``, ``vectorize_particles``, …); all others
        are parameters of the divergence, such as ``order=0.5``. A callable is a schedule: it gets
        the step.

    Raises
    ------
    ValueError
        An unknown name or parameter, or an estimator that the divergence does not have.

    Examples
    --------
    >>> import pyro, torch
    >>> import pyro.distributions as dist
    >>> from bayesdiv.pyro import objective
    >>> def model():
    ...     z = pyro.sample("z", dist.Normal(0.0, 1.0))
    ...     pyro.sample("x", dist.Normal(z, 1.0), obs=torch.tensor(1.0))
    >>> guide = pyro.infer.autoguide.AutoNormal(model)
    >>> optimiser = pyro.optim.Adam({"lr": 0.01})
    >>> svi = pyro.infer.SVI(model, guide, optimiser, loss=objective("jensen_shannon"))
    >>> svi.step() >= 0.0
    True
    """
    if is_two_sample(divergence):
        from bayesdiv.pyro._sample_objective import SampleObjective

        return SampleObjective(divergence, num_particles=num_particles, warmup=warmup, **arguments)
    host = {name: arguments.pop(name) for name in _HOST_ARGUMENTS if name in arguments}
    settings = ObjectiveSettings(
        divergence,
        arguments,
        num_particles=num_particles,
        gradient=gradient,
        normalizer=normalizer,
        warmup=warmup,
    )
    return DivergenceELBO(settings, **host)
