"""Particle-marginal Metropolis-Hastings as a kernel of ``numpyro.infer.MCMC``."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.flatten_util import ravel_pytree
from numpyro.infer import init_to_uniform
from numpyro.infer.mcmc import MCMCKernel
from numpyro.util import is_prng_key

from bayesdiv._control import is_traced
from bayesdiv.inference._marginal_target import WithFixedKey, draw_start, evaluate
from bayesdiv.inference._random_walk import RandomWalk, learn, start_walk, step_of

__all__ = ["PMMH", "PMMHState"]

_TRIES = 100


class PMMHState(NamedTuple):
    """State of one chain, or of vectorised chains along the first axis.

    Parameters
    ----------
    step
        Iterations so far, warm-up included.
    position
        Unconstrained values of the latent sites.
    z
        Constrained values, and deterministic sites of the run of the model that was accepted.
    potential_energy
        −log of the estimated joint density, as it was when the position was accepted.
    log_evidence
        The part of it that factors and observed sites make.
    accept_prob
        Of the last proposal.
    mean_accept_prob
        Over the warm-up so far, then over the sampling so far.
    walk
        The proposal.
    num_warmup
        Iterations that adapt the proposal.
    rng_key
        Key of everything that is still to be drawn.
    """

    step: jax.Array
    position: dict[str, jax.Array]
    z: dict[str, jax.Array]
    potential_energy: jax.Array
    log_evidence: jax.Array
    accept_prob: jax.Array
    mean_accept_prob: jax.Array
    walk: RandomWalk
    num_warmup: jax.Array
    rng_key: jax.Array


class PMMH(MCMCKernel):
    r"""Metropolis-Hastings on a NumPyro model whose likelihood is estimated without bias.

    The model has a ``numpyro.factor`` whose *exponential* is an unbiased estimate Ẑ of a
    likelihood, such as a particle filter's, from ``numpyro.prng_key()``; the key is new at each
    evaluation. A proposal θ′ is accepted with probability

    .. math:: \min\left\{1, \frac{p(\theta') \hat Z(\theta')}{p(\theta) \hat Z(\theta)}\right\},

    where Ẑ(θ) is the estimate that θ was accepted with. It is *kept*: with it the chain has the
    exact posterior of θ as its law, whatever the number of particles, and with a new estimate at
    each comparison it would have another. A noisy estimate costs efficiency only; a standard
    deviation of log Ẑ between 1 and 1.7 near the mode is a good compromise.

    Deterministic sites are those of the run that was accepted: a path that the filter drew given
    Ẑ is thereby a draw of the joint posterior of parameters and states.

    A normal random walk in unconstrained coordinates proposes. During warm-up it learns its
    covariance, and its scale from the acceptance rate; afterwards it stays as it is. All chain
    methods of ``MCMC`` work; an interrupted chain goes on with
    ``mcmc.post_warmup_state = mcmc.last_state``.

    Parameters
    ----------
    model
        A NumPyro model without discrete latent sites and subsampled plates.
    step_size
        Of the first proposals, in unconstrained coordinates.
    target_accept_prob
        Acceptance rate that the scale is adapted to. Noise lowers the best one: it is about 0.23
        for an exact likelihood and about 0.07 where log Ẑ has standard deviation 1.8.
    init_strategy
        One of NumPyro's.

    Raises
    ------
    TypeError
        If ``model`` is not callable.
    ValueError
        If a setting is outside its domain; when it runs, if the model has sites that it cannot
        sample, or no start with a finite density is found.

    References
    ----------
    Andrieu and Roberts (2009), "The pseudo-marginal approach for efficient Monte Carlo
    computations"; Andrieu, Doucet and Holenstein (2010), "Particle Markov chain Monte Carlo
    methods", section 2.4.2; Doucet, Pitt, Deligiannidis and Kohn (2015) and Sherlock, Thiery,
    Roberts and Rosenthal (2015) on the number of particles.
    """

    sample_field = "z"
    # NumPyro would call init on a state that is resumed if this were None; nothing is lacking.
    _sample_fn = evaluate

    def __init__(
        self,
        model: Callable,
        *,
        step_size: float = 0.1,
        target_accept_prob: float = 0.15,
        init_strategy: Callable = init_to_uniform,
    ) -> None:
        if not callable(model):
            raise TypeError(f"model must be a callable, got {type(model).__name__}.")
        if not step_size > 0.0 or step_size == float("inf"):
            raise ValueError(f"step_size must be positive and finite, got {step_size!r}.")
        if not 0.0 < target_accept_prob < 1.0:
            raise ValueError(
                f"target_accept_prob must be between 0 and 1, got {target_accept_prob!r}."
            )
        self._model = model
        self.step_size = step_size
        self.target_accept_prob = target_accept_prob
        self.init_strategy = init_strategy

    @property
    def model(self) -> Callable:
        """The model; without a seed around it, its ``prng_key()`` is always the same."""
        return WithFixedKey(self._model)

    @property
    def default_fields(self) -> tuple[str, ...]:
        """What is collected without being asked for."""
        return ("z", "potential_energy", "log_evidence", "accept_prob")

    def init(
        self,
        rng_key: jax.Array,
        num_warmup: int,
        init_params: Any,
        model_args: tuple = (),
        model_kwargs: Mapping[str, Any] | None = None,
    ) -> PMMHState:
        """At ``init_params``, unconstrained, or where the init strategy says."""
        kwargs = dict(model_kwargs or {})

        def start(key: jax.Array) -> dict[str, jax.Array]:
            return draw_start(self._model, self.init_strategy, key, model_args, kwargs)

        is_single = is_prng_key(rng_key)
        _check_init_params(
            init_params,
            jax.eval_shape(start, rng_key if is_single else rng_key[0]),
            () if is_single else rng_key.shape[:1],
        )

        def begin(key: jax.Array, given: Any) -> PMMHState:
            def attempt(carry: tuple) -> tuple:
                attempts, key, *_ = carry
                key, start_key, estimate_key = jax.random.split(key, 3)
                position = start(start_key) if given is None else given
                found = evaluate(self._model, position, estimate_key, model_args, kwargs)
                return attempts + 1, key, position, found

            def is_unusable(carry: tuple) -> jax.Array:
                return ~jnp.isfinite(carry[3].potential_energy) & (carry[0] < _TRIES)

            # Nothing yet, in the shapes to come, so that the model is compiled once.
            shapes = jax.eval_shape(lambda key: attempt((0, key, None, None)), key)[2:]
            position, found = jax.tree.map(lambda one: jnp.zeros(one.shape, one.dtype), shapes)
            nothing = (
                0,
                key,
                position,
                found._replace(potential_energy=jnp.full_like(found.potential_energy, jnp.inf)),
            )
            _, key, position, found = jax.lax.while_loop(is_unusable, attempt, nothing)
            flat = ravel_pytree(position)[0]
            zero = jnp.zeros((), flat.dtype)
            return PMMHState(
                step=jnp.zeros((), int),
                position=position,
                z=found.sites,
                potential_energy=found.potential_energy,
                log_evidence=found.log_evidence,
                accept_prob=zero,
                mean_accept_prob=zero,
                walk=start_walk(flat, self.step_size),
                num_warmup=jnp.asarray(num_warmup),
                rng_key=key,
            )

        state = jax.jit(begin if is_single else jax.vmap(begin))(rng_key, init_params)
        potential = state.potential_energy
        if not is_traced(potential) and not bool(jnp.isfinite(potential).all()):
            raise ValueError(
                f"no start with a finite density was found in {_TRIES} tries: the estimate of the "
                "likelihood is zero or not a number. Use more particles, another init_strategy, "
                "or init_params near the mode."
            )
        return state

    def sample(
        self, state: PMMHState, model_args: tuple, model_kwargs: Mapping[str, Any] | None
    ) -> PMMHState:
        """One proposal of every chain."""
        kwargs = dict(model_kwargs or {})

        def iterate(one: PMMHState) -> PMMHState:
            return self._iterate(one, model_args, kwargs)

        return (iterate if is_prng_key(state.rng_key) else jax.vmap(iterate))(state)

    def _iterate(self, state: PMMHState, args: tuple, kwargs: Mapping[str, Any]) -> PMMHState:
        rng_key, step_key, estimate_key, accept_key = jax.random.split(state.rng_key, 4)
        flat, unravel = ravel_pytree(state.position)
        proposal = unravel(flat + step_of(state.walk, step_key))
        found = evaluate(self._model, proposal, estimate_key, args, kwargs)
        log_ratio = state.potential_energy - found.potential_energy
        # An estimate that is not a number is of a proposal to refuse.
        accept_prob = jnp.where(jnp.isnan(log_ratio), 0.0, jnp.exp(jnp.minimum(log_ratio, 0.0)))
        accepts = jax.random.uniform(accept_key, dtype=accept_prob.dtype) < accept_prob

        def choose(new: jax.Array, old: jax.Array) -> jax.Array:
            return jnp.where(accepts, new, old)

        new = (proposal, found.sites, found.potential_energy, found.log_evidence)
        old = (state.position, state.z, state.potential_energy, state.log_evidence)
        position, z, potential_energy, log_evidence = jax.tree.map(choose, new, old)
        is_warming_up = state.step < state.num_warmup
        learnt = learn(
            state.walk,
            ravel_pytree(position)[0],
            accept_prob,
            state.step,
            self.target_accept_prob,
        )
        walk = jax.tree.map(lambda a, b: jnp.where(is_warming_up, a, b), learnt, state.walk)
        step = state.step + 1
        count = jnp.where(is_warming_up, step, step - state.num_warmup)
        mean = state.mean_accept_prob * (count > 1)
        return PMMHState(
            step=step,
            position=position,
            z=z,
            potential_energy=potential_energy,
            log_evidence=log_evidence,
            accept_prob=accept_prob,
            mean_accept_prob=mean + (accept_prob - mean) / count,
            walk=walk,
            num_warmup=state.num_warmup,
            rng_key=rng_key,
        )

    def postprocess_fn(self, model_args: tuple, model_kwargs: Mapping[str, Any] | None) -> Callable:
        """Nothing: ``z`` is constrained already."""
        return lambda z: z

    def get_diagnostics_str(self, state: PMMHState) -> str:
        """For the progress bar."""
        return (
            f"log-evidence {float(state.log_evidence):.4g}, acc. prob={state.mean_accept_prob:.2f}"
        )

    def wrap_model(self, wrapper: Callable) -> PMMH:
        """A copy on ``wrapper(model)``."""
        kernel = copy.copy(self)
        kernel._model = wrapper(self._model)
        return kernel


def _check_init_params(init_params: Any, start: Mapping[str, Any], chains: tuple) -> None:
    if init_params is None:
        return
    if not isinstance(init_params, Mapping) or set(init_params) != set(start):
        came = sorted(init_params) if isinstance(init_params, Mapping) else type(init_params)
        raise ValueError(
            f"init_params must have the latent sites {sorted(start)}, unconstrained, got {came}."
        )
    for name, value in start.items():
        wanted = chains + value.shape
        if jnp.shape(init_params[name]) != wanted:
            raise ValueError(
                f"init_params[{name!r}] must have shape {wanted}, got "
                f"{jnp.shape(init_params[name])}."
            )
