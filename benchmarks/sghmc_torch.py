"""A step of SGHMC in torch: ours, a bare loop of the same arithmetic, and posteriors."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable

import torch

with warnings.catch_warnings():
    # tensordict 0.15 announces what 0.17 will do with the defaults of posteriors' states.
    warnings.simplefilter("ignore", FutureWarning)
    from posteriors.sgmcmc import sghmc as posteriors_sghmc

from bayesdiv._random import next_rng, standard_normal
from bayesdiv.inference.sghmc import SGHMCDynamics, SGHMCState
from benchmarks import sghmc_problem as problem_
from benchmarks.cases import Case, Comparison, Duel, agree
from benchmarks.sghmc_problem import BURN_IN, FRICTION, STEP_SIZE, TOLERANCE, Layers, Problem

Potential = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]
_errors = torch.nn.functional.binary_cross_entropy_with_logits


def cases(*, quick: bool) -> list[Case]:
    """Sixteen chains and one, on a logistic regression and on a small network."""
    num_data, dim, hidden = (100, 5, 4) if quick else (1000, 50, 32)
    logistic = problem_.classification(num_data, dim)
    network = problem_.classification(num_data, 20 if not quick else 3)
    layers = Layers(network.dim, hidden)
    return [
        Case(
            f"torch/sghmc/logistic/{dim}x16",
            functools.partial(prepare_chains, logistic, dim, logistic_potential(logistic)),
        ),
        Case(
            f"torch/sghmc/mlp/{layers.dim}x16",
            functools.partial(
                prepare_chains, network, layers.dim, network_potential(network, layers)
            ),
        ),
        Case(
            f"torch/sghmc/logistic/{dim}x1",
            functools.partial(prepare_single, logistic, logistic_potential(logistic)),
        ),
    ]


def logistic_potential(problem: Problem) -> Potential:
    """U of ``(chains, dim)`` from a minibatch of each chain, standard normal prior."""

    def potential(w: torch.Tensor, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        if w.ndim == 1:
            return problem.scale * _errors(x @ w, y, reduction="sum") + 0.5 * (w @ w)
        logits = torch.bmm(x, w[..., None])[..., 0]
        errors = _errors(logits, y, reduction="none").sum(-1)
        return problem.scale * errors + 0.5 * (w * w).sum(-1)

    return potential


def network_potential(problem: Problem, layers: Layers) -> Potential:
    """The same for a network's logits."""
    sizes = [rows * columns for rows, columns in layers.shapes]

    def potential(w: torch.Tensor, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        hidden = x
        for part, shape in zip(w.split(sizes, -1), layers.shapes, strict=True):
            weights = part.reshape(*w.shape[:-1], *shape)
            if hidden is not x:
                hidden = torch.tanh(hidden)
            hidden = torch.matmul(hidden, weights[..., :-1, :]) + weights[..., -1:, :]
        errors = _errors(hidden[..., 0], y, reduction="none").sum(-1)
        return problem.scale * errors + 0.5 * (w * w).sum(-1)

    return potential


class Target:
    """Potential and gradient by autograd, from minibatches of a generator."""

    def __init__(self, problem: Problem, potential: Potential, *shape: int) -> None:
        self.inputs, self.outputs = torch.tensor(problem.inputs), torch.tensor(problem.outputs)
        self.shape = (*shape, problem.batch_size)
        self.potential = potential
        self.generator = torch.Generator()

    def batch(self) -> tuple[torch.Tensor, torch.Tensor]:
        rows = torch.randint(len(self.inputs), self.shape, generator=self.generator)
        return self.inputs[rows], self.outputs[rows]

    def at(self, position: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        position = position.detach().requires_grad_()
        potential = self.potential(position, *self.batch())
        (gradient,) = torch.autograd.grad(potential.sum(), position)
        return potential.detach(), gradient

    def __call__(self, position: torch.Tensor, rng: int) -> tuple[torch.Tensor, torch.Tensor]:
        self.generator.manual_seed(rng)
        return self.at(position)


def prepare_chains(problem: Problem, dim: int, potential: Potential) -> Duel:
    """Sixteen chains with minibatches of their own."""
    target = Target(problem, potential, 16)
    dynamics, state = _adapted(target, (16, dim))
    agreement = _check_bare(dynamics, state, target)
    return Duel(
        {"ours": _ours(dynamics, state, target), "bare loop": _bare(dynamics, state, target)},
        [Comparison("ours", "bare loop", 1.15)],
        agreement,
    )


def prepare_single(problem: Problem, potential: Potential) -> Duel:
    """One chain, whose position is a vector."""
    target = Target(problem, potential)
    dynamics, state = _adapted(target, (problem.dim,))
    # posteriors has no scales; its friction and noise are ours in units of its step size.
    rival = posteriors_sghmc.build(
        lambda w, batch: (-potential(w, *batch), torch.empty(0)),
        lr=STEP_SIZE,
        alpha=FRICTION / STEP_SIZE,
    )
    agreement = _check_bare(dynamics, state, target)
    agreement |= _check_posteriors(state.position, target)
    their_state = rival.init(state.position)

    def posteriors() -> None:
        nonlocal their_state
        their_state, _ = rival.update(their_state, target.batch())

    # A state of its own: the other contestant's must not change under it.
    in_place_state = rival.init(state.position.clone())

    def in_place() -> None:
        nonlocal in_place_state
        in_place_state, _ = rival.update(in_place_state, target.batch(), inplace=True)

    steps = {
        "ours": _ours(dynamics, state, target),
        "bare loop": _bare(dynamics, state, target),
        "posteriors": posteriors,
        "posteriors in place": in_place,
    }
    comparisons = [
        Comparison("ours", "posteriors", 0.25),
        Comparison("ours", "posteriors in place"),
        Comparison("ours", "bare loop"),
    ]
    return Duel(steps, comparisons, agreement)


def _adapted(target: Target, shape: tuple[int, ...]) -> tuple[SGHMCDynamics, SGHMCState]:
    dynamics = SGHMCDynamics(STEP_SIZE, FRICTION, num_burn_in=BURN_IN)
    start = 0.1 * torch.randn(shape, generator=torch.Generator().manual_seed(0))
    state = dynamics.init(start, rng=0)
    for _ in range(BURN_IN + 1):
        state, _ = dynamics.step(state, target)
    return dynamics, state


def _ours(dynamics: SGHMCDynamics, state: SGHMCState, target: Target) -> Callable[[], None]:
    def step() -> None:
        nonlocal state
        state, _ = dynamics.step(state, target)

    return step


def _coefficients(
    dynamics: SGHMCDynamics, state: SGHMCState
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """1 − α, ε² / √V and the injected noise's standard deviation."""
    root = state.second_moment.sqrt()
    squared_step = dynamics.step_size**2
    variance = 2.0 * dynamics.friction * squared_step / root - squared_step**2
    kept_share = torch.tensor(1.0 - dynamics.friction)
    return kept_share, squared_step / root, variance.clamp(min=1e-16).sqrt()


def _bare(dynamics: SGHMCDynamics, state: SGHMCState, target: Target) -> Callable[[], None]:
    """The recursion alone: no seeds, no state, no diagnostics."""
    kept_share, pull, noise_scale = _coefficients(dynamics, state)
    position, velocity = state.position, state.velocity
    generator = torch.Generator().manual_seed(1)

    def step() -> None:
        nonlocal position, velocity
        _, gradient = target.at(position)
        noise = torch.randn(position.shape, generator=generator)
        velocity = kept_share * velocity - pull * gradient + noise_scale * noise
        position = position + velocity

    return step


def _check_bare(dynamics: SGHMCDynamics, state: SGHMCState, target: Target) -> dict[str, float]:
    """The bare recursion with the seeds that our step takes."""
    kept_share, pull, noise_scale = _coefficients(dynamics, state)
    _, noise_rng, batch_rng = next_rng(state.rng, state.position, 2)
    _, gradient = target(state.position, batch_rng)
    noise = standard_normal(noise_rng, state.position.shape, state.position)
    velocity = kept_share * state.velocity - pull * gradient + noise_scale * noise
    found, _ = dynamics.step(state, target)
    return agree("bare loop: velocity", found.velocity, velocity, TOLERANCE)


def _check_posteriors(position: torch.Tensor, target: Target) -> dict[str, float]:
    """Without noise and from rest, momentum after a step is step size times gradient."""
    rival = posteriors_sghmc.build(
        lambda w, batch: (-target.potential(w, *batch), torch.empty(0)),
        lr=STEP_SIZE,
        alpha=FRICTION / STEP_SIZE,
        temperature=0.0,
        momenta=0.0,
    )
    target.generator.manual_seed(3)
    theirs, _ = rival.update(rival.init(position), target.batch())
    potential, gradient = target(position, 3)
    return agree("posteriors: log posterior", theirs.log_posterior, -potential, TOLERANCE) | agree(
        "posteriors: gradient", theirs.momenta / STEP_SIZE, -gradient, TOLERANCE
    )
