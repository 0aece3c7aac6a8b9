"""Steps of NumPyro's SVI in one ``lax.scan``, and the time to compile them."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
from numpyro.infer import SVI, RenyiELBO, Trace_ELBO

from bayesdiv.divergences import get_divergence
from bayesdiv.numpyro import objective
from benchmarks.cases import Case, Comparison, Duel, agree
from benchmarks.members import MEMBERS, PARTICLES, RENYI_ORDER
from benchmarks.numpyro_models import Problem, problems

LEARNING_RATE = 1e-6
# Steps of one scan: long enough that dispatch does not count, short enough for a block.
STEPS = {"small": 1000, "regression": 20, "vae": 20, "sites": 200}
CHECKED_STEPS = 3
# Two divergences tell what a path gradient costs there; each takes seconds to compile.
FEW_MEMBERS = ("forward_kl", "jensen_shannon")


def cases(*, quick: bool) -> list[Case]:
    """Running and compiling every model with 1 and 16 particles."""
    found = []
    for name, make in problems(quick=quick).items():
        steps = 5 if quick else STEPS[name]
        members = FEW_MEMBERS if name == "sites" else MEMBERS
        members = FEW_MEMBERS[:1] if quick else members
        for count in PARTICLES:
            chosen = members if count > 1 else ()
            prepare = functools.partial(prepare_steps, make, count, steps, chosen)
            found.append(Case(f"numpyro/{name}/{count}", prepare))
        compile_ = functools.partial(prepare_compilation, make, PARTICLES[-1], steps)
        found.append(Case(f"numpyro/{name}/compile", compile_, single_calls=True))
    return found


def prepare_steps(make: Any, count: int, steps: int, members: tuple[str, ...]) -> Duel:
    """Each contestant is one compiled scan from the same state; its unit is the scan."""
    problem = make()
    losses: dict[str, Any] = {
        "Trace_ELBO": Trace_ELBO(num_particles=count),
        "RenyiELBO": RenyiELBO(RENYI_ORDER, num_particles=count),
        "reverse_kl": objective("reverse_kl", num_particles=count),
        "renyi": objective("renyi", order=RENYI_ORDER, num_particles=count),
    }
    losses |= {name: objective(name, num_particles=count) for name in members}
    comparisons = [
        Comparison("reverse_kl", "Trace_ELBO", 1.05),
        Comparison("renyi", "RenyiELBO"),
        *(Comparison(name, "reverse_kl", 1.05) for name in members),
    ]
    agreement = _check(problem, count)
    for name in members:
        agreement |= _check_member(problem, name, count)
    contestants = {name: _scan(problem, loss, steps) for name, loss in losses.items()}
    return Duel(contestants, comparisons, agreement, {"unit": f"{steps} steps in one scan"})


def prepare_compilation(make: Any, count: int, steps: int) -> Duel:
    """From a new function to the executable: tracing, lowering and XLA, with empty caches."""
    problem = make()
    losses: dict[str, Any] = {
        "Trace_ELBO": Trace_ELBO(num_particles=count),
        "RenyiELBO": RenyiELBO(RENYI_ORDER, num_particles=count),
        "reverse_kl": objective("reverse_kl", num_particles=count),
        "renyi": objective("renyi", order=RENYI_ORDER, num_particles=count),
        "jensen_shannon": objective("jensen_shannon", num_particles=count),
    }
    comparisons = [
        Comparison("reverse_kl", "Trace_ELBO", 1.2),
        Comparison("renyi", "RenyiELBO", 1.2),
        Comparison("jensen_shannon", "RenyiELBO", 1.2),
    ]
    contestants = {name: _compilation(problem, loss, steps) for name, loss in losses.items()}
    return Duel(contestants, comparisons, _check(problem, count), {"unit": "one compilation"})


def _svi(problem: Problem, loss: Any) -> SVI:
    return SVI(problem.model, problem.guide, numpyro.optim.Adam(LEARNING_RATE), loss)


def _scanned(problem: Problem, svi: SVI, steps: int) -> Callable[[Any], Any]:
    def run(state: Any) -> Any:
        def step(state: Any, _: None) -> Any:
            return svi.update(state, *problem.arguments)

        return jax.lax.scan(step, state, None, length=steps)

    return run


def _scan(problem: Problem, loss: Any, steps: int) -> Callable[[], Any]:
    svi = _svi(problem, loss)
    state = svi.init(jax.random.key(0), *problem.arguments)
    compiled = jax.jit(_scanned(problem, svi, steps)).lower(state).compile()
    return lambda: jax.block_until_ready(compiled(state))


def _compilation(problem: Problem, loss: Any, steps: int) -> Callable[[], Any]:
    svi = _svi(problem, loss)
    state = svi.init(jax.random.key(0), *problem.arguments)

    def compile_() -> Any:
        jax.clear_caches()
        return jax.jit(_scanned(problem, svi, steps)).lower(state).compile()

    return compile_


def _check(problem: Problem, count: int) -> dict[str, float]:
    """Losses and parameters after a few steps from one key, with the host's kind of gradient."""
    pairs = {
        "reverse_kl": (
            objective("reverse_kl", num_particles=count),
            Trace_ELBO(num_particles=count),
        ),
        "renyi": (
            objective("renyi", order=RENYI_ORDER, num_particles=count, gradient="reparam"),
            RenyiELBO(RENYI_ORDER, num_particles=count),
        ),
    }
    agreement: dict[str, float] = {}
    for name, (ours, theirs) in pairs.items():
        found, wanted = (_loss_and_gradient(problem, loss) for loss in (ours, theirs))
        agreement |= agree(f"{name}: loss", found[0], wanted[0], 1e-5)
        # Log-weights of 10^4 rows are known to 1e-3 in float32, and so are weights.
        tolerance = 1e-4 if name == "reverse_kl" else 2e-3
        agreement |= agree(f"{name}: gradient", found[1], wanted[1], tolerance)
    return agreement


def _loss_and_gradient(problem: Problem, loss: Any) -> tuple[np.ndarray, np.ndarray]:
    """At ``CHECKED_STEPS`` keys, for the unconstrained parameters."""
    svi = _svi(problem, loss)
    state = svi.init(jax.random.key(0), *problem.arguments)
    unconstrained = svi.optim.get_params(state.optim_state)

    def value(parameters: Any, key: jax.Array) -> jax.Array:
        constrained = svi.constrain_fn(parameters)
        return loss.loss(key, constrained, svi.model, svi.guide, *problem.arguments)

    keys = jax.random.split(jax.random.key(1), CHECKED_STEPS)
    at_keys = jax.jit(jax.vmap(jax.value_and_grad(value), in_axes=(None, 0)))
    values, gradients = at_keys(unconstrained, keys)
    flat = [np.asarray(leaf).ravel() for leaf in jax.tree.leaves(gradients)]
    return np.asarray(values), np.concatenate(flat)


def _check_member(problem: Problem, name: str, count: int) -> dict[str, float]:
    """The loss against sum of mean f(u) over the log-weights of the host's own RenyiELBO."""
    divergence = get_divergence(name)
    host = RenyiELBO(RENYI_ORDER, num_particles=count)
    svi = _svi(problem, host)
    state = svi.init(jax.random.key(0), *problem.arguments)
    parameters = svi.get_params(state)
    weights = _RecordedWeights(host)

    @jax.jit
    def both(key: jax.Array) -> tuple[jax.Array, jax.Array]:
        ours = objective(name, num_particles=count).loss(
            key, parameters, svi.model, svi.guide, *problem.arguments
        )
        log_weight = weights(key, parameters, svi, problem.arguments)
        log_mean = jax.nn.logsumexp(log_weight, axis=0) - jnp.log(count)
        return ours, jnp.sum(jnp.mean(divergence.generator(log_weight - log_mean), axis=0))

    ours, wanted = both(jax.random.key(2))
    return agree(f"{name}: loss", ours, wanted, 1e-3)


class _RecordedWeights:
    """Log-weights, shape ``(particles, *common plates)``, that a RenyiELBO computes on its way."""

    def __init__(self, host: RenyiELBO) -> None:
        self.host = host
        self.recorded: Any = None

    def __call__(self, key: jax.Array, parameters: Any, svi: SVI, arguments: Any) -> jax.Array:
        mapped = self.host.vectorize_particles_fn

        def record(function: Any, keys: jax.Array) -> Any:
            self.recorded = mapped(function, keys)
            return self.recorded

        self.host.vectorize_particles_fn = record
        try:
            self.host.loss(key, parameters, svi.model, svi.guide, *arguments)
        finally:
            self.host.vectorize_particles_fn = mapped
        return self.recorded[0]
