"""Stochastic-gradient samplers as a kernel of :class:`numpyro.infer.MCMC`."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree
from numpyro import handlers
from numpyro.infer import init_to_uniform
from numpyro.infer.mcmc import MCMCKernel
from numpyro.infer.util import initialize_model
from numpyro.util import is_prng_key

from bayesdiv.numpyro._minibatch import MinibatchPotential, WithJaxArrays


class StochasticGradientState(NamedTuple):
    """State of one chain, or of vectorised chains along the first axis.

    What the last iteration reported is here too, under the names that ``extra_fields`` takes:
    ``potential_energy`` and every field of ``info``.

    Parameters
    ----------
    z
        Unconstrained values by site.
    dynamics
        State of the dynamics, without its random stream. Its ``step`` is common to the chains.
    info
        Of the iteration's gradient steps: the last potential, the averages of all else.
    failed_step
        Gradient step, counted from 1, whose potential or gradient was not finite; −1 if none was.
        The chain stands still from the step before.
    rng_key
        Key of everything that is still to be drawn.
    """

    z: Any
    dynamics: Any
    info: Any
    failed_step: jax.Array
    rng_key: jax.Array

    @property
    def potential_energy(self) -> jax.Array:
        """Estimate of U by the last minibatch, at the position that its step left."""
        return self.info.potential

    @property
    def diverging(self) -> jax.Array:
        """Whether the chain stands still since a step that was not finite."""
        return self.failed_step >= 0

    def __getattr__(self, name: str) -> Any:
        if not name.startswith("_") and name in getattr(self.info, "_fields", ()):
            return getattr(self.info, name)
        raise AttributeError(f"{type(self).__name__} has no field {name!r}")


class StochasticGradientKernel(MCMCKernel):
    """Any dynamics with ``init`` and ``step``, on any NumPyro model.

    The chain moves in unconstrained coordinates. Every gradient step draws a new minibatch of each
    plate with a ``subsample_size``, from the key in the state; see
    :func:`bayesdiv.numpyro._minibatch.draw_indices`. All chain methods of ``MCMC`` work, and a
    chain's numbers do not depend on the method. Samples lack deterministic sites of subsampled
    plates.

    A chain goes on to the same numbers with ``mcmc.post_warmup_state = mcmc.last_state`` and
    ``mcmc.run(mcmc.last_state.rng_key, ...)``; the state pickles. A potential or gradient that is
    not finite stops a chain at its last good state, and marks it ``diverging`` from there. Compiled
    code cannot warn: :func:`bayesdiv.numpyro.check_chains` and
    :func:`bayesdiv.diagnostics.to_arviz` do, after the run.

    Parameters
    ----------
    model
        A NumPyro model without discrete latent sites, and none in a subsampled plate.
    dynamics
        For example :class:`bayesdiv.inference.sghmc.SGHMCDynamics`. States are named tuples with
        ``position``, ``step`` and ``rng``, infos have ``potential``.
    steps_per_sample
        Gradient steps in one iteration of ``MCMC``, warm-up included.
    init_strategy
        One of NumPyro's; of the unconstrained starting values.

    Raises
    ------
    ValueError
        If an argument is outside its domain; when it runs, if sampling would start before burn-in
        ended or the model has sites that it cannot sample.
    """

    sample_field = "z"

    def __init__(
        self,
        model: Callable,
        dynamics: Any,
        *,
        steps_per_sample: int = 1,
        init_strategy: Callable = init_to_uniform,
    ) -> None:
        if not callable(model):
            raise TypeError(f"model must be a callable, got {type(model).__name__}.")
        for method in ("init", "step"):
            if not callable(getattr(dynamics, method, None)):
                raise TypeError(
                    f"dynamics must have methods init and step, got {type(dynamics).__name__} "
                    f"without {method}; pass for example SGHMCDynamics(step_size=0.01)."
                )
        if (
            isinstance(steps_per_sample, bool)
            or not isinstance(steps_per_sample, int)
            or steps_per_sample < 1
        ):
            raise ValueError(
                f"steps_per_sample must be a whole number of at least 1, got {steps_per_sample!r}."
            )
        self._model = WithJaxArrays(model)
        self.dynamics = dynamics
        self.steps_per_sample = steps_per_sample
        self.init_strategy = init_strategy
        self._reset()

    def _reset(self) -> None:
        self._potential: MinibatchPotential | None = None
        self._unravel: Callable | None = None
        # NumPyro calls init if this is None, also where it is given a state.
        self._sample_fn: Callable | None = None

    @property
    def model(self) -> Callable:
        """The model, taking NumPy arrays too."""
        return self._model

    @property
    def default_fields(self) -> tuple[str, ...]:
        """What is collected without being asked for: a few numbers a draw."""
        shown = _info_shape(self.dynamics, jax.ShapeDtypeStruct((1,), jnp.float32))._fields
        names = ["potential_energy" if name == "potential" else name for name in shown]
        return ("z", *names, "diverging")

    def choose_dynamics(self, num_warmup_steps: int, *, is_minibatched: bool) -> Any:
        """The dynamics for a run, for subclasses whose settings depend on it.

        Parameters
        ----------
        num_warmup_steps
            Gradient steps of the warm-up.
        is_minibatched
            Whether the model has a subsampled plate.
        """
        return self.dynamics

    def init(
        self,
        rng_key: jax.Array,
        num_warmup: int,
        init_params: Any,
        model_args: tuple = (),
        model_kwargs: Mapping[str, Any] | None = None,
    ) -> StochasticGradientState:
        """At rest at ``init_params``, unconstrained, or where the init strategy says."""
        kwargs = dict(model_kwargs or {})
        is_single = is_prng_key(rng_key)
        split = jax.random.split if is_single else jax.vmap(jax.random.split)
        pair = split(rng_key)
        rng_key, start_key = (pair[0], pair[1]) if is_single else (pair[:, 0], pair[:, 1])

        first_key = start_key if is_single else start_key[0]
        prototype = handlers.substitute(
            handlers.seed(self._model, first_key), substitute_fn=self.init_strategy
        )
        trace = handlers.trace(prototype).get_trace(*model_args, **kwargs)
        self._potential = MinibatchPotential(self._model, trace)
        num_warmup_steps = num_warmup * self.steps_per_sample
        self.dynamics = self.choose_dynamics(
            num_warmup_steps, is_minibatched=bool(self._potential.plates)
        )
        self._check_warmup(num_warmup_steps, num_warmup)
        start = initialize_model(
            start_key,
            self._model,
            init_strategy=self.init_strategy,
            model_args=model_args,
            model_kwargs=kwargs,
        ).param_info.z
        if init_params is not None:
            _check_init_params(init_params, start)
            start = init_params

        one_start = start if is_single else jax.tree.map(lambda leaf: leaf[0], start)
        example, unravel = ravel_pytree(one_start)
        self._unravel, self._sample_fn = unravel, self._iterate

        def begin(values: Any) -> tuple[Any, Any]:
            position = ravel_pytree(values)[0]
            # Back and forth, so that values have the dtypes that they will keep.
            return unravel(position), self.dynamics.init(position, None)

        z, dynamics = (begin if is_single else jax.vmap(begin))(start)
        shape = () if is_single else (start_key.shape[0],)
        if not is_single:
            dynamics = dynamics._replace(step=dynamics.step[0])
        info = jax.tree.map(
            lambda leaf: jnp.zeros(shape + leaf.shape, leaf.dtype),
            _info_shape(self.dynamics, example),
        )
        failed_step = jnp.full(shape, -1, dynamics.step.dtype)
        return StochasticGradientState(z, dynamics, info, failed_step, rng_key)

    def sample(
        self,
        state: StochasticGradientState,
        model_args: tuple,
        model_kwargs: Mapping[str, Any] | None,
    ) -> StochasticGradientState:
        """``steps_per_sample`` gradient steps of every chain."""
        kwargs = dict(model_kwargs or {})

        def iterate(one: StochasticGradientState) -> StochasticGradientState:
            return self._iterate(one, model_args, kwargs)

        if is_prng_key(state.rng_key):
            return iterate(state)
        # The counter stays one number, so that the end of burn-in stays a branch under vmap.
        axes = jax.tree.map(lambda _: 0, state)
        axes = axes._replace(dynamics=axes.dynamics._replace(step=None))
        return jax.vmap(iterate, in_axes=(axes,), out_axes=axes)(state)

    def _iterate(
        self, state: StochasticGradientState, args: tuple, kwargs: Mapping[str, Any]
    ) -> StochasticGradientState:
        model_potential, unravel = self._ready()

        def potential(position: jax.Array, key: jax.Array) -> jax.Array:
            return model_potential(unravel(position), key, args, kwargs)

        potential_and_gradient = jax.value_and_grad(potential)

        def step(carry: tuple, _: None) -> tuple[tuple, Any]:
            dynamics, info, failed_step = carry
            new, found = self.dynamics.step(dynamics, potential_and_gradient)
            finite = jnp.all(jnp.stack([jnp.isfinite(number).all() for number in found]))
            failed_step = jnp.where((failed_step < 0) & ~finite, new.step, failed_step)

            def keep_good(new_value: jax.Array, old_value: jax.Array) -> jax.Array:
                return jnp.where(failed_step < 0, new_value, old_value)

            bare = dynamics._replace(rng=None)
            kept = jax.tree.map(keep_good, new._replace(rng=None), bare)
            info = jax.tree.map(keep_good, found, info)
            return (kept._replace(step=new.step, rng=new.rng), info, failed_step), info

        carry = (state.dynamics._replace(rng=state.rng_key), state.info, state.failed_step)
        if self.steps_per_sample == 1:
            (dynamics, info, failed_step), _ = step(carry, None)
        else:
            carry, infos = jax.lax.scan(step, carry, None, length=self.steps_per_sample)
            dynamics, last, failed_step = carry
            info = jax.tree.map(lambda steps: steps.mean(0), infos)
            info = info._replace(potential=last.potential)
        z = unravel(dynamics.position)
        return StochasticGradientState(
            z, dynamics._replace(rng=None), info, failed_step, dynamics.rng
        )

    def postprocess_fn(self, model_args: tuple, model_kwargs: Mapping[str, Any] | None) -> Callable:
        """From unconstrained values to constrained ones and deterministic sites."""
        kwargs = dict(model_kwargs or {})
        potential, _ = self._ready()

        def constrain(z: Mapping[str, Any]) -> dict[str, Any]:
            return potential.constrain(z, model_args, kwargs)

        return constrain

    def get_diagnostics_str(self, state: StochasticGradientState) -> str:
        """For the progress bar."""
        if int(state.failed_step) >= 0:
            return f"stopped at gradient step {int(state.failed_step)}: not finite"
        parts = [f"potential {float(state.potential_energy):.4g}"]
        for name, label in (("kinetic_temperature", "T"), ("clamped_fraction", "clamped")):
            if name in state.info._fields:
                parts.append(f"{label} {float(getattr(state.info, name)):.2f}")
        return ", ".join(parts)

    def wrap_model(self, wrapper: Callable) -> StochasticGradientKernel:
        """A copy on ``wrapper(model)``."""
        kernel = copy.copy(self)
        kernel._model = WithJaxArrays(wrapper(self._model))
        kernel._reset()
        return kernel

    def _ready(self) -> tuple[MinibatchPotential, Callable]:
        if self._potential is None or self._unravel is None:
            raise ValueError("the kernel has no model yet; call init before sample.")
        return self._potential, self._unravel

    def __getstate__(self) -> dict[str, Any]:
        # Closures do not pickle; NumPyro calls init again.
        return {**self.__dict__, "_potential": None, "_unravel": None, "_sample_fn": None}

    def _check_warmup(self, num_warmup_steps: int, num_warmup: int) -> None:
        num_burn_in = getattr(self.dynamics, "num_burn_in", 0)
        if num_burn_in > num_warmup_steps:
            raise ValueError(
                f"sampling would start before burn-in ended: num_burn_in is {num_burn_in} gradient "
                f"steps, the warm-up has {num_warmup_steps} (num_warmup={num_warmup} times "
                f"steps_per_sample={self.steps_per_sample}); raise num_warmup to "
                f"{-(-num_burn_in // self.steps_per_sample)} or more. A resumed run keeps the "
                "num_warmup of the first; NumPyro skips it."
            )


def _info_shape(dynamics: Any, position: Any) -> Any:
    """Shapes and dtypes of what one step of a single chain reports."""

    def report(values: jax.Array) -> Any:
        state = dynamics.init(values, jax.random.key(0))
        return dynamics.step(state, lambda w, _: (jnp.sum(w), w))[1]

    return jax.eval_shape(report, position)


def _check_init_params(init_params: Any, start: Mapping[str, Any]) -> None:
    if not isinstance(init_params, Mapping) or set(init_params) != set(start):
        came = sorted(init_params) if isinstance(init_params, Mapping) else type(init_params)
        raise ValueError(
            f"init_params must have the latent sites {sorted(start)}, unconstrained, got {came}."
        )
    for name, value in start.items():
        if jnp.shape(init_params[name]) != jnp.shape(value):
            raise ValueError(
                f"init_params[{name!r}] must have shape {jnp.shape(value)}, got "
                f"{jnp.shape(init_params[name])}."
            )
