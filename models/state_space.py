"""State-space models: three functions that return NumPyro distributions."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import KW_ONLY, dataclass, fields
from typing import Any

import jax
import jax.numpy as jnp
import numpyro
from jax.errors import TracerArrayConversionError, TracerIntegerConversionError
from numpyro.distributions import Distribution

from bayesdiv.models._state_space_sites import Emissions, StatePath

__all__ = ["StateSpaceModel"]


@dataclass(frozen=True)
class StateSpaceModel:
    r"""A hidden Markov chain and what is seen of it.

    .. math:: x_0 \sim p_0, \qquad x_t \mid x_{t-1} \sim q_t(x_{t-1}, \cdot), \qquad
              y_t \mid x_t \sim g_t(x_t, \cdot), \qquad t = 0, \dots, T - 1.

    States have event shape ``()`` or ``(dim,)``, and functions take many at once, along the first
    axis: ``states`` is ``(num_particles, *event)``. ``time`` is a whole number and may be traced.
    Parameters and covariates are closed over, ``jnp.asarray(covariates)[time]``; they may be traced
    too, so that a function from parameters to a model can be differentiated and vectorised.

    What a function returns is compared with what it should be at every call, which compiled code
    makes once.

    Parameters
    ----------
    initial
        ``initial()``: law of the state at time 0, batch shape ``()``.
    transition
        ``transition(states, time)``: law of the states at ``time`` ≥ 1, given those at
        ``time - 1``; batch shape ``(num_particles,)``.
    emission
        ``emission(states, time)``: law of the observation at ``time`` ≥ 0; batch shape
        ``(num_particles,)``, event shape ``()`` or ``(width,)``.
    transition_mean
        ``transition_mean(states, time)``: mean of the transition, shaped as ``states``.
    log_predictive
        ``log_predictive(states, time, observation)``: log p(y_t | x_{t−1}), ``(num_particles,)``.
    log_lookahead
        The same arguments and shape: an approximation of ``log_predictive``.
    log_emission_supremum
        ``log_emission_supremum(time, observation)``: a bound of log g_t(x, y_t) over all x, which
        bounds ``log_predictive`` too.

    Raises
    ------
    TypeError
        If an argument is not callable, or a call does not return a distribution.
    ValueError
        If what a call returns has the wrong batch, event or array shape.

    Notes
    -----
    Observations are arrays ``(num_times, *event)``, of which x_0 emits the first. A row with a NaN
    is missing.

    Examples
    --------
    >>> import jax
    >>> import numpyro.distributions as dist
    >>> from bayesdiv.models.state_space import StateSpaceModel
    >>> model = StateSpaceModel(
    ...     initial=lambda: dist.Normal(0.0, 1.0),
    ...     transition=lambda states, time: dist.Normal(0.9 * states, 0.5),
    ...     emission=lambda states, time: dist.Poisson(jax.numpy.exp(states)),
    ... )
    >>> states, counts = model.simulate(jax.random.key(0), 100)
    >>> counts.shape
    (100,)
    """

    initial: Callable[[], Distribution]
    transition: Callable[[jax.Array, Any], Distribution]
    emission: Callable[[jax.Array, Any], Distribution]
    _: KW_ONLY
    transition_mean: Callable[[jax.Array, Any], jax.Array] | None = None
    log_predictive: Callable[[jax.Array, Any, jax.Array], jax.Array] | None = None
    log_lookahead: Callable[[jax.Array, Any, jax.Array], jax.Array] | None = None
    log_emission_supremum: Callable[[Any, jax.Array], jax.Array] | None = None

    def __post_init__(self) -> None:
        for field in fields(self):
            function = getattr(self, field.name)
            if isinstance(function, _Checked) or (function is None and field.default is None):
                continue
            if not callable(function):
                raise TypeError(
                    f"{field.name} must be a function, got {type(function).__name__}; "
                    f"{_SIGNATURES[field.name]} returns {_RETURNS[field.name]}."
                )
            object.__setattr__(self, field.name, _Checked(function, field.name))

    def check(self) -> None:
        """Call every function once, without computing, and raise as a filter would."""

        def call() -> None:
            initial = self.initial()
            event = initial.event_shape
            # A number of particles that is no number of coordinates, so that neither hides a slip.
            states = jnp.zeros((2 + sum(event), *event), jnp.result_type(float))
            observation = jnp.zeros(self.emission(states, 0).event_shape, states.dtype)
            self.transition(states, 1)
            if self.transition_mean is not None:
                self.transition_mean(states, 1)
            for function in (self.log_predictive, self.log_lookahead):
                if function is not None:
                    function(states, 1, observation)
            if self.log_emission_supremum is not None:
                self.log_emission_supremum(1, observation)

        jax.eval_shape(call)

    def simulate(self, key: jax.Array, num_times: int) -> tuple[jax.Array, jax.Array]:
        """States and observations, ``(num_times, *event)`` each.

        Raises
        ------
        ValueError
            If ``num_times`` is less than 1.
        """
        _check_num_times(num_times)
        initial_key, key = jax.random.split(key)
        initial_key, first_key = jax.random.split(initial_key)
        first = self.initial().sample(initial_key)[None]
        first_observation = self.emission(first, 0).sample(first_key)

        def step(states: jax.Array, at: tuple) -> tuple[jax.Array, tuple]:
            time, step_key = at
            state_key, emission_key = jax.random.split(step_key)
            states = self.transition(states, time).sample(state_key).astype(states.dtype)
            return states, (states[0], self.emission(states, time).sample(emission_key)[0])

        times = jnp.arange(1, num_times)
        keys = jax.random.split(key, max(num_times - 1, 1))[: num_times - 1]
        _, (states, observations) = jax.lax.scan(step, first, (times, keys))
        return (
            jnp.concatenate([first, states]),
            jnp.concatenate([first_observation, observations]),
        )

    def numpyro_model(
        self, observations: jax.Array | None = None, *, num_times: int | None = None
    ) -> None:
        """The same model for NumPyro: a site ``states`` and a site ``observations``.

        ``states`` is ``(num_times, *event)``, all of them one event; ``observations`` is in a plate
        ``time``, so that ArviZ has a log-likelihood for each. For series that NUTS can manage, as a
        check on a filter. Call it from a model that samples parameters to learn those too.

        Parameters
        ----------
        observations
            ``(num_times, *event)``, missing where NaN; None draws them.
        num_times
            Length of the series that is drawn.

        Raises
        ------
        ValueError
            If both arguments are missing, or a length is less than 1.
        """
        if observations is not None:
            num_times = jnp.shape(observations)[0]
        if num_times is None:
            raise ValueError("numpyro_model needs observations, or num_times to draw them.")
        _check_num_times(num_times)
        states = numpyro.sample("states", StatePath(self, num_times))
        with numpyro.plate("time", num_times):
            numpyro.sample("observations", Emissions(self, states), obs=observations)


_SIGNATURES = {
    "initial": "initial()",
    "transition": "transition(states, time)",
    "emission": "emission(states, time)",
    "transition_mean": "transition_mean(states, time)",
    "log_predictive": "log_predictive(states, time, observation)",
    "log_lookahead": "log_lookahead(states, time, observation)",
    "log_emission_supremum": "log_emission_supremum(time, observation)",
}
_RETURNS = dict.fromkeys(("initial", "transition", "emission"), "a NumPyro distribution") | (
    dict.fromkeys(
        ("transition_mean", "log_predictive", "log_lookahead", "log_emission_supremum"), "an array"
    )
)


@dataclass(frozen=True)
class _Checked:
    """A user's function that is held to the shapes it should return."""

    function: Callable
    name: str

    def __call__(self, *arguments: Any) -> Any:
        takes_states = self.name not in ("initial", "log_emission_supremum")
        if takes_states and jnp.ndim(arguments[0]) not in (1, 2):
            raise ValueError(
                f"{_SIGNATURES[self.name]} takes states (num_particles,) or (num_particles, dim), "
                f"got shape {jnp.shape(arguments[0])}; add a first axis."
            )
        try:
            found = self.function(*arguments)
        except (TracerArrayConversionError, TracerIntegerConversionError) as error:
            raise TypeError(
                f"{_SIGNATURES[self.name]} must work where states and time are traced by JAX: use "
                "jax.numpy, and jnp.asarray(covariates)[time] where covariates are NumPy arrays."
            ) from error
        shape = jnp.shape(arguments[0]) if takes_states else ()
        if self.name == "transition":
            self._check_distribution(found, shape[:1], shape[1:])
        elif self.name in ("initial", "emission"):
            self._check_distribution(found, shape[:1], None)
        else:
            self._check_array(found, shape if self.name == "transition_mean" else shape[:1])
        return found

    def _check_distribution(self, found: Any, batch: tuple, event: tuple | None) -> None:
        signature = _SIGNATURES[self.name]
        if not isinstance(found, Distribution):
            raise TypeError(
                f"{signature} must return a numpyro.distributions.Distribution, got "
                f"{type(found).__name__}."
            )
        event_is_wrong = len(found.event_shape) > 1 if event is None else found.event_shape != event
        if found.batch_shape != batch or event_is_wrong:
            wanted = "() or (dim,)" if event is None else str(event)
            remedy = (
                " add .to_event(1), which makes the last axis one event."
                if len(found.batch_shape) == len(batch) + 1 and not found.event_shape
                else " the first axis of states is that of the particles."
            )
            raise ValueError(
                f"{signature} must return a distribution with batch_shape {batch} and event_shape "
                f"{wanted}, got batch_shape {found.batch_shape} and event_shape "
                f"{found.event_shape};{remedy}"
            )

    def _check_array(self, found: Any, shape: tuple) -> None:
        if jnp.shape(found) != shape:
            raise ValueError(
                f"{_SIGNATURES[self.name]} must return an array of shape {shape}, got "
                f"{jnp.shape(found)}."
            )


def _check_num_times(num_times: int) -> None:
    if num_times < 1:
        raise ValueError(f"a series must have at least 1 time, got {num_times}.")
