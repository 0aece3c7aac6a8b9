r"""Particle filters for state-space models: bootstrap, guided, auxiliary and adaptive.

A weighted cloud (x_i, W_i) follows p(x_t | y_{0:t}). Each step resamples ancestors by W ψ if that
has degenerated, moves them by r, and weighs by

.. math::
    w = \bar W \, \frac{q(x_t ∣ x_{t-1}) g(y_t ∣ x_t)}{r(x_t ∣ x_{t-1})}, \qquad
    \bar W = \frac{\sum_j W_j ψ_j}{N ψ} \text{ after resampling, else } W.

The sum of w estimates p(y_t | y_{0:t−1}) in either case, and the product of these over time is an
unbiased estimate of the evidence. The proposals ψ and r are in `bayesdiv.inference.proposals`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp

from bayesdiv._control import is_traced
from bayesdiv.inference import _filter_checks as checks
from bayesdiv.inference._filter_result import FilterResult
from bayesdiv.inference._filter_steps import (
    FilterInfo,
    FilterState,
    advance,
    guarded,
    not_reported,
    start,
    step_keys,
)
from bayesdiv.inference.proposals import BootstrapProposal
from bayesdiv.inference.resampling import get_resampling

__all__ = ["FilterInfo", "FilterState", "ParticleFilter", "log_evidence"]

_STORABLE = ("moments", "particles")


# Compared by identity, so that jit recognises the methods of one and the same filter.
@dataclass(frozen=True, eq=False)
class ParticleFilter:
    """A particle filter: pure ``init`` and ``step``, and ``run``, one compiled scan over them.

    Attributes
    ----------
    model
        A state-space model: an object with ``initial()``, ``transition(states, time)`` and
        ``emission(states, time)``, which return NumPyro distributions with batch shapes ``()``,
        ``(num_particles,)`` and ``(num_particles,)``.
    proposal
        See `bayesdiv.inference.proposals.Proposal`.
    num_particles : int
        N. One is legal.
    resampling
        A name or function of `bayesdiv.inference.resampling.get_resampling`.
    ess_threshold : float
        Resample when the effective sample size of W ψ is below this share of N: 0 never, 1 always.
        Where a step does not resample, ψ is not used.
    differentiable : bool or str
        Whether results may be differentiated with respect to what the model closes over. The
        gradient runs through the draws, which must be reparameterised, and through the weights.
        With True ancestors are held fixed: that leaves out how resampling depends on the
        parameters, and is biased; as an ascent direction for E log Ẑ it is the usual one. With
        ``"score"`` the score of the ancestors' probabilities is added: the gradient of Ẑ is
        unbiased, so that of log Ẑ is consistent in N, and its variance is larger. Where False,
        differentiation is an error.

    Raises
    ------
    TypeError
        If the model lacks a function, or a setting has another type.
    ValueError
        If a setting is out of range, or (when run) a distribution has other shapes.

    References
    ----------
    Gordon, Salmond and Smith (1993); Pitt and Shephard (1999); Del Moral (2004), section 7.4.2, for
    the evidence; Maddison et al. (2017), Le et al. (2018) and Naesseth et al. (2018) for its
    gradient, Ścibior and Wood (2021) for the one with the score.

    Examples
    --------
    >>> import jax, jax.numpy as jnp, numpyro.distributions as dist
    >>> from types import SimpleNamespace
    >>> walk = SimpleNamespace(
    ...     initial=lambda: dist.Normal(0.0, 1.0),
    ...     transition=lambda states, time: dist.Normal(states, 0.5),
    ...     emission=lambda states, time: dist.Normal(states, 1.0),
    ... )
    >>> observations = jnp.array([0.3, 0.1, jnp.nan, -0.4])
    >>> result = ParticleFilter(walk, num_particles=500).run(jax.random.key(0), observations)
    >>> bool(-4.5 < result.log_evidence < -3.0), result.mean.shape
    (True, (4,))
    """

    model: Any
    proposal: Any = field(default_factory=BootstrapProposal)
    num_particles: int = field(default=1000, kw_only=True)
    resampling: Any = field(default="systematic", kw_only=True)
    ess_threshold: float = field(default=0.5, kw_only=True)
    differentiable: bool | str = field(default=False, kw_only=True)
    _compiled: dict = field(default_factory=dict, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        checks.check_model(self.model)
        if not callable(getattr(self.proposal, "distribution", None)):
            raise TypeError(
                "proposal must be a proposal, such as BootstrapProposal(), got "
                f"{type(self.proposal).__name__}."
            )
        count = self.num_particles
        if isinstance(count, bool) or not isinstance(count, int):
            raise TypeError(f"num_particles must be an integer, got {type(count).__name__}.")
        if count < 1:
            raise ValueError(f"num_particles must be 1 or more, got {count}.")
        threshold = self.ess_threshold
        if isinstance(threshold, bool) or not isinstance(threshold, int | float):
            raise TypeError(f"ess_threshold must be a number, got {type(threshold).__name__}.")
        if not 0 <= threshold <= 1:
            raise ValueError(f"ess_threshold must be in [0, 1], got {threshold}.")
        get_resampling(self.resampling)
        if not isinstance(self.differentiable, bool) and self.differentiable != "score":
            raise ValueError(
                f"differentiable must be True, False or 'score', got {self.differentiable!r}."
            )

    def init(self, key: jax.Array, observation: Any) -> tuple[FilterState, FilterInfo]:
        """The cloud at time 0, weighted by ``observation``, a row; NaN in it makes it missing."""
        observation = checks.check_observation(observation, self._emission_event_shape())
        missing = checks.missing_rows(observation[None])
        observation = checks.filled_rows(observation[None], missing)[0]
        return guarded(self, start(self, key, observation, missing[0], step_keys(key, 0)))

    def step(self, state: FilterState, observation: Any) -> tuple[FilterState, FilterInfo]:
        """From one time to the next."""
        observation = checks.check_observation(observation, self._emission_event_shape())
        missing = checks.missing_rows(observation[None])
        observation = checks.filled_rows(observation[None], missing)[0]
        keys = step_keys(state.key, state.time + 1)
        return guarded(self, advance(self, state, observation, missing[0], keys))

    def run(
        self, key: jax.Array, observations: Any, *, store: str | tuple[str, ...] = ("moments",)
    ) -> FilterResult:
        """Filter a series.

        Parameters
        ----------
        key
            A JAX key.
        observations
            ``(num_times, *event)``; x_0 emits the first. A row with NaN is missing: its increment
            is 0 and particles move by the transition.
        store
            Which histories to keep: ``"moments"`` (means and variances), ``"particles"`` (with
            their weights and ancestors, which smoothing needs), both, or ``()``.

        Raises
        ------
        ValueError
            If ``observations`` or a distribution of the model have wrong shapes.
        RuntimeError
            If every particle has likelihood zero at some time, or a density is NaN; the message
            names the time. Inside ``jit`` or ``vmap`` nothing can be raised: the log-evidence is
            then −inf or NaN, and `FilterResult.check` raises once the result is outside.
        """
        store = (store,) if isinstance(store, str) else tuple(store)
        for name in store:
            if name not in _STORABLE:
                raise ValueError(f"store must hold names of {_STORABLE}, got {name!r}.")
        # Where nothing is missing, which can be known of numbers only, no step asks again.
        any_missing = is_traced(observations) or checks.has_nan(observations)
        observations = checks.check_observations(observations, self._emission_event_shape())
        settings = (tuple(sorted(set(store))), any_missing)
        if settings not in self._compiled:
            function = partial(self._run, store=settings[0], any_missing=any_missing)
            self._compiled[settings] = jax.jit(function)
        result = self._compiled[settings](key, observations)
        if not is_traced(result.log_evidence):
            result.check()
        return result

    def _run(
        self,
        key: jax.Array,
        observations: jax.Array,
        *,
        store: tuple[str, ...],
        any_missing: bool,
    ) -> FilterResult:
        count = observations.shape[0]
        missing: Any = None
        if any_missing:
            missing = checks.missing_rows(observations)
            observations = checks.filled_rows(observations, missing)
        keys = jax.vmap(partial(step_keys, key))(jnp.arange(count, dtype=jnp.int32))

        def kept(state: FilterState, info: FilterInfo) -> dict[str, Any]:
            report = info._asdict()
            cloud = {"ancestors": report.pop("ancestors")}
            moments = {name: report.pop(name) for name in ("mean", "variance")}
            if "moments" in store:
                report |= moments
            if "particles" in store:
                report |= cloud | {"particles": state.states, "log_weights": state.log_weights}
            return report

        def body(state: FilterState, row: tuple) -> tuple[FilterState, dict[str, Any]]:
            state, info = advance(self, state, row[0], row[1], row[2])
            return state, kept(state, info)

        rows = (observations, missing, keys)
        observation, is_missing, step_key = jax.tree.map(lambda entry: entry[0], rows)
        first, info = start(self, key, observation, is_missing, step_key)
        rows = jax.tree.map(lambda entry: entry[1:], rows)
        state, history = jax.lax.scan(body, first, rows)
        history = _joined(kept(first, info), history)
        increments = history.pop("log_evidence_increment")
        result = FilterResult(
            log_evidence=state.log_evidence,
            log_evidence_increments=increments,
            state=state,
            **history,
        )
        return guarded(self, result)

    def _emission_event_shape(self) -> tuple[int, ...]:
        """Found by tracing, without a draw."""
        if "event_shape" not in self._compiled:

            def probe() -> None:
                prior = checks.check_distribution(self.model.initial(), "model.initial", (), None)
                states = prior.sample(jax.random.key(0), (self.num_particles,))
                emission = checks.check_distribution(
                    self.model.emission(states, jnp.zeros((), jnp.int32)),
                    "model.emission",
                    (self.num_particles,),
                    None,
                )
                self._compiled["event_shape"] = tuple(emission.event_shape)

            jax.eval_shape(probe)
        return self._compiled["event_shape"]


def log_evidence(
    key: jax.Array,
    model: Any,
    observations: Any,
    *,
    proposal: Any = None,
    num_particles: int = 1000,
    resampling: Any = "systematic",
    ess_threshold: float = 0.5,
    differentiable: bool | str = False,
) -> jax.Array:
    """An estimate of log p(y_{0:T−1}), ``()``, whose exponential is unbiased.

    Made for ``numpyro.factor("evidence", log_evidence(key, model, observations))``, with the model
    built from sampled parameters: particle-marginal MCMC needs no gradient of it. For ``SVI`` pass
    ``differentiable=True``; the objective is then E log Ẑ <= log p, with the biased gradient that
    `ParticleFilter` describes. Outside ``jit`` every call compiles; inside, evidence zero is −inf
    and a density that is not a number makes it NaN.

    Parameters
    ----------
    key
        A JAX key.
    model, observations
        As in `ParticleFilter.run`.
    proposal
        None is a `BootstrapProposal`.
    num_particles, resampling, ess_threshold, differentiable
        As in `ParticleFilter`.
    """
    particle_filter = ParticleFilter(
        model,
        BootstrapProposal() if proposal is None else proposal,
        num_particles=num_particles,
        resampling=resampling,
        ess_threshold=ess_threshold,
        differentiable=differentiable,
    )
    return particle_filter.run(key, observations, store=()).log_evidence


def _joined(first: dict[str, Any], later: dict[str, Any]) -> dict[str, Any]:
    """Histories with time 0 in front; what adaptation reports at later times only is NaN there."""
    adapted, first_adapted = later.pop("adaptation"), first.pop("adaptation")
    joined: dict[str, Any] = {
        name: jnp.concatenate([first[name][None], values]) for name, values in later.items()
    }
    joined["adaptation"] = {}
    for name, values in adapted.items():
        entry = first_adapted.get(name)
        if entry is None or jnp.shape(entry) != values.shape[1:]:
            entry = not_reported(jax.eval_shape(lambda rows: rows[0], values))
        entry = jnp.asarray(entry, values.dtype)
        joined["adaptation"][name] = jnp.concatenate([entry[None], values])
    return joined
