"""Steps of Pyro's SVI: our objectives against its own, and against each other."""

from __future__ import annotations

import functools
from typing import Any

import pyro
import torch
from pyro.infer import SVI, RenyiELBO, Trace_ELBO

from bayesdiv.divergences import get_divergence
from bayesdiv.pyro import objective
from benchmarks.cases import Case, Comparison, Duel, agree
from benchmarks.members import MEMBERS, PARTICLES, RENYI_ORDER
from benchmarks.pyro_models import Problem, problems

# Small enough that a thousand steps leave every contestant with the same problem.
LEARNING_RATE = 1e-6


def cases(*, quick: bool) -> list[Case]:
    """Every model with 1 and 16 particles."""
    return [
        Case(f"pyro/{name}/{count}", functools.partial(prepare, make, count))
        for name, make in problems(quick=quick).items()
        for count in PARTICLES
    ]


def prepare(make: Any, count: int) -> Duel:
    """Contestants share one guide and its parameters; each has its own optimiser."""
    pyro.clear_param_store()
    pyro.set_rng_seed(0)
    problem = make()
    host: dict[str, Any] = {
        "Trace_ELBO": Trace_ELBO(num_particles=count, vectorize_particles=True),
        "RenyiELBO": RenyiELBO(RENYI_ORDER, num_particles=count, vectorize_particles=True),
    }
    ours: dict[str, Any] = {
        "reverse_kl": objective("reverse_kl", num_particles=count),
        "renyi": objective("renyi", order=RENYI_ORDER, num_particles=count),
    }
    comparisons = [
        Comparison("reverse_kl", "Trace_ELBO", 1.0),
        Comparison("renyi", "RenyiELBO"),
    ]
    if count > 1:
        for name in MEMBERS:
            ours[name] = objective(name, num_particles=count)
            comparisons.append(Comparison(name, "reverse_kl", 1.05))
    agreement = _check(problem, count)
    for name in MEMBERS if count > 1 else ():
        agreement |= _check_member(problem, name, count)
    steps = {name: _step(problem, loss) for name, loss in {**host, **ours}.items()}
    return Duel(steps, comparisons, agreement)


def _step(problem: Problem, loss: Any) -> Any:
    svi = SVI(problem.model, problem.guide, pyro.optim.Adam({"lr": LEARNING_RATE}), loss=loss)
    return functools.partial(svi.step, *problem.arguments)


def _check(problem: Problem, count: int) -> dict[str, float]:
    """Losses and gradients for the same draws, with the host's own kind of gradient."""
    pairs = {
        "reverse_kl": (objective("reverse_kl", num_particles=count), Trace_ELBO, ()),
        "renyi": (
            objective("renyi", order=RENYI_ORDER, num_particles=count, gradient="reparam"),
            RenyiELBO,
            (RENYI_ORDER,),
        ),
    }
    agreement: dict[str, float] = {}
    for name, (loss, host, settings) in pairs.items():
        arguments = problem.arguments if name == "reverse_kl" else problem.single
        peer = host(*settings, num_particles=count, vectorize_particles=True)
        value, gradient = _loss_and_gradient(problem, loss, arguments)
        wanted, wanted_gradient = _loss_and_gradient(problem, peer, arguments)
        agreement |= agree(f"{name}: loss", value, wanted, 1e-5)
        # Log-weights of 10^4 rows are known to 1e-3 in float32, and so are weights.
        tolerance = 1e-4 if name == "reverse_kl" else 2e-3
        agreement |= agree(f"{name}: gradient", gradient, wanted_gradient, tolerance)
    return agreement


def _loss_and_gradient(
    problem: Problem, loss: Any, arguments: tuple[Any, ...]
) -> tuple[float, torch.Tensor]:
    pyro.set_rng_seed(1)
    # The first call creates parameters and guesses the depth of plates, which takes draws.
    loss.loss_and_grads(problem.model, problem.guide, *arguments)
    parameters = dict(pyro.get_param_store().named_parameters())
    for parameter in parameters.values():
        parameter.grad = None
    pyro.set_rng_seed(2)
    value = loss.loss_and_grads(problem.model, problem.guide, *arguments)
    gradients = [p.grad.flatten() for p in parameters.values() if p.grad is not None]
    return value, torch.cat(gradients)


def _check_member(problem: Problem, name: str, count: int) -> dict[str, float]:
    """The loss against mean f(u) over the log-weights of the host's own traces."""
    divergence = get_divergence(name)
    host = Trace_ELBO(num_particles=count, vectorize_particles=True)
    loss = objective(name, num_particles=count)
    value, _ = _loss_and_gradient(problem, loss, problem.single)
    host.loss(problem.model, problem.guide, *problem.single)
    pyro.set_rng_seed(2)
    with torch.no_grad():
        ((model_trace, guide_trace),) = host._get_traces(
            problem.model, problem.guide, problem.single, {}
        )
        log_weight = _log_joint(model_trace) - _log_joint(guide_trace)
        log_ratio = log_weight - torch.logsumexp(log_weight, 0) + torch.tensor(count).log()
        wanted = divergence.generator(log_ratio).mean()
    return agree(f"{name}: loss", value, wanted, 1e-3)


def _log_joint(trace: Any) -> torch.Tensor:
    trace.compute_log_prob()
    terms = [site["log_prob"] for site in trace.nodes.values() if site["type"] == "sample"]
    return sum(term.reshape(len(term), -1).sum(-1) for term in terms if term.dim() > 0)
