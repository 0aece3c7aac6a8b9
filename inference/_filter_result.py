"""What a particle filter found, what is wrong with it, and its ArviZ container."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import jax
import numpy as np

from bayesdiv._control import is_traced
from bayesdiv.inference._filter_arviz import filter_to_arviz

__all__ = ["FilterResult"]


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class FilterResult:
    """A filtered series; a pytree, so that ``vmap`` puts axes of runs in front of all of it.

    Attributes
    ----------
    log_evidence
        ``()``, estimate of log p(y_{0:T−1}), nats.
    log_evidence_increments
        ``(num_times,)``, estimates of log p(y_t | y_{0:t−1}); 0 where missing.
    ess
        ``(num_times,)``, effective sample size 1 / Σ W² after weighting, in particles.
    kl
        ``(num_times,)``, Σ W log(N W): how far the weights are from equal, KL(W‖uniform) in nats.
        Where a filter resamples at every step it estimates KL(target‖proposal).
    max_weight
        ``(num_times,)``, the largest W.
    resampled
        ``(num_times,)``, whether ancestors were drawn before the step.
    state
        The last cloud, from which ``step`` goes on.
    adaptation
        What the proposal's ``adapt`` reported, each with axis ``num_times`` in front.
    mean, variance
        ``(num_times, *event)``, of p(x_t | y_{0:t}); None unless moments were stored.
    particles, log_weights, ancestors
        ``(num_times, num_particles, *event)``, and without ``event`` for the normalised log W and
        the index at time t − 1 that each came from; None unless particles were stored.
    """

    log_evidence: jax.Array
    log_evidence_increments: jax.Array
    ess: jax.Array
    kl: jax.Array
    max_weight: jax.Array
    resampled: jax.Array
    state: Any
    adaptation: dict[str, jax.Array] = field(default_factory=dict)
    mean: jax.Array | None = None
    variance: jax.Array | None = None
    particles: Any = None
    log_weights: Any = None
    ancestors: Any = None

    @property
    def cv2(self) -> jax.Array:
        """Squared coefficient of variation of the weights, N / ESS − 1: χ²(W‖uniform)."""
        return self.state.log_weights.shape[-1] / self.ess - 1.0

    def check(self) -> FilterResult:
        """This, if every step had a weight above zero and all weights were numbers.

        Raises
        ------
        RuntimeError
            Otherwise; the message names the first such time, and the run where there are several.
        TypeError
            Inside ``jit`` and the like, where numbers are not known.
        """
        if is_traced(self.log_evidence_increments):
            raise TypeError("check needs numbers; call it outside jit, vmap and grad.")
        increments = np.asarray(self.log_evidence_increments)
        bad = ~np.isfinite(increments)
        if not bad.any():
            return self
        *run, time = (int(index) for index in np.argwhere(bad)[0])
        where = f"t={time}" + (f" of run {tuple(run)}" if run else "")
        if increments[(*run, time)] == -np.inf:
            raise RuntimeError(
                f"all particles have zero likelihood at {where}; the observation lies outside "
                "what the model can emit from where the particles are. Use more particles, a "
                "guided proposal, or an emission with heavier tails."
            )
        raise RuntimeError(
            f"a log-density is not a finite number at {where}: of the transition, the emission or "
            "the proposal. Look for parameters outside their domain and states that overflow."
        )

    def to_arviz(
        self,
        *,
        trajectories: Any = None,
        observations: Any = None,
        num_draws: int | None = None,
        seed: int = 0,
        pareto_k: bool = False,
        name: str = "state",
    ) -> Any:
        """An ``InferenceData`` (ArviZ 0.x) or ``DataTree`` (1.x).

        Runs, where ``vmap`` made several, are chains. Groups: ``posterior`` with the states,
        ``(chain, draw, time, *event)``; ``sample_stats`` and ``log_likelihood`` by step,
        ``(chain, 1, time)``, the latter the increments of the log-evidence; ``observed_data``.

        Parameters
        ----------
        trajectories
            Draws of `bayesdiv.inference.particle_smoothing.backward_trajectories`,
            ``(num_trajectories, num_times, *event)``, after an axis of runs where there is one.
            None draws from the stored particles instead: p(x_t | y_{0:t}), by time.
        observations
            What was filtered, to be kept along.
        num_draws
            How many from the particles; None is as many as there are. Ignored with trajectories.
        seed
            Of these draws.
        pareto_k
            Whether to add the tail index of each step's weights, which takes time.
        name
            Of the states.

        Raises
        ------
        ValueError
            If there are neither particles nor trajectories, or shapes do not fit.
        """
        return filter_to_arviz(
            self,
            trajectories=trajectories,
            observations=observations,
            num_draws=num_draws,
            seed=seed,
            pareto_k=pareto_k,
            name=name,
        )
