"""Sinkhorn and sliced distances with gradient in torch: ours, POT and geomloss."""

from __future__ import annotations

import functools
import math
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import ot
import torch
from geomloss import SamplesLoss

from bayesdiv.divergences import Sinkhorn, SlicedWasserstein
from benchmarks import transport_problem as problem_
from benchmarks.cases import Case, Comparison, Duel, agree
from benchmarks.transport_problem import SinkhornProblem, SlicedProblem

MAX_ITERATIONS = 5_000
Value = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


def cases(*, quick: bool) -> list[Case]:
    """Every problem of :mod:`benchmarks.transport_problem`."""
    sinkhorn = [
        Case(f"torch/sinkhorn/{problem.name}", functools.partial(prepare_sinkhorn, problem))
        for problem in problem_.sinkhorn_problems(quick=quick)
    ]
    sliced = [
        Case(f"torch/sliced/{problem.name}", functools.partial(prepare_sliced, problem))
        for problem in problem_.sliced_problems(quick=quick)
    ]
    return sinkhorn + sliced


def prepare_sinkhorn(problem: SinkhornProblem) -> Duel:
    """Each solver at its loosest setting within the marginal error wanted."""
    x, y = problem_.samples(problem.count, problem.count, problem.dim)
    cost = problem_.squared_distances(x, y)
    epsilon = problem.relative_epsilon * float(cost.mean())
    points = torch.tensor(x), torch.tensor(y)
    values: dict[str, Value] = {}
    notes: dict[str, str] = {}
    for name, (settings, log_plan, value) in _solvers(problem, epsilon, cost).items():
        found = problem_.loosest(
            settings, lambda s, plan=log_plan: _error(plan, s, *points), problem.error
        )
        if found is None:
            best = _error(log_plan, settings[-1], *points)
            notes[name] = f"left out: marginal error {best:.1e} at its tightest setting"
        else:
            notes[name] = f"setting {found.setting:g}, marginal error {found.error:.1e}"
            values[name] = functools.partial(value, found.setting)
    agreement = _agreement(values, points, 10.0 * problem.error)
    rivals = [Comparison("ours", name, 1.0) for name in values if name != "ours"]
    steps = {name: functools.partial(_with_gradient, v, *points) for name, v in values.items()}
    return Duel(steps, rivals, agreement, notes)


def prepare_sliced(problem: SlicedProblem) -> Duel:
    """Each draws its own directions when timed; given directions, all agree."""
    x, y = problem_.samples(problem.x_count, problem.y_count, problem.dim)
    points = torch.tensor(x), torch.tensor(y)
    directions = torch.tensor(problem_.unit_directions(problem.directions, problem.dim))
    member = SlicedWasserstein(num_projections=problem.directions)
    given: dict[str, Value] = {
        "POT": lambda x, y: ot.sliced_wasserstein_distance(x, y, projections=directions.T),
        "ours": lambda x, y: member.along(x, y, directions),
    }
    values: dict[str, Value] = {
        "POT": lambda x, y: ot.sliced_wasserstein_distance(x, y, n_projections=problem.directions),
        "ours": member,
    }
    agreement = _agreement(given, points, problem_.SLICED_TOLERANCE)
    steps = {name: functools.partial(_with_gradient, v, *points) for name, v in values.items()}
    return Duel(steps, [Comparison("ours", "POT", 0.5)], agreement)


def _solvers(problem: SinkhornProblem, epsilon: float, cost: np.ndarray) -> dict[str, Any]:
    """Settings from loose to tight, the plan's logarithm and the value, by solver."""
    uniform = -2.0 * math.log(problem.count)
    tolerances = problem_.tolerances(problem.error)

    def pot(*, debias: bool) -> Any:
        return functools.partial(
            ot.solve_sample, reg=epsilon, grad="envelope", max_iter=MAX_ITERATIONS, debias=debias
        )

    def pot_plan(setting: float, x: torch.Tensor, y: torch.Tensor) -> np.ndarray:
        f, g = pot(debias=False)(x, y, tol=setting).potentials
        return _plus(f, g) - cost / epsilon

    # geomloss halves the squared distance, hence twice its potentials and ε = 2 blur².
    geomloss = functools.partial(
        SamplesLoss, "sinkhorn", p=2, blur=math.sqrt(epsilon / 2.0), backend="tensorized"
    )

    def geomloss_plan(setting: float, x: torch.Tensor, y: torch.Tensor) -> np.ndarray:
        f, g = geomloss(scaling=setting, debias=False, potentials=True)(x, y)
        return (2.0 * _plus(f, g) - cost) / epsilon + uniform

    def geomloss_value(setting: float, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return 2.0 * geomloss(scaling=setting, debias=problem.debias)(x, y)

    def member(setting: float) -> Sinkhorn:
        return Sinkhorn(
            epsilon, tolerance=setting, debias=problem.debias, max_iterations=MAX_ITERATIONS
        )

    def our_plan(setting: float, x: torch.Tensor, y: torch.Tensor) -> np.ndarray:
        solution = member(setting).solve(x, y)
        f, g = solution.x_potential, solution.y_potential
        return (_plus(f, g) - cost) / epsilon + uniform

    return {
        "POT": (
            tolerances,
            pot_plan,
            lambda setting, x, y: pot(debias=problem.debias)(x, y, tol=setting).value,
        ),
        "geomloss": (problem_.SCALINGS, geomloss_plan, geomloss_value),
        "ours": (tolerances, our_plan, lambda setting, x, y: member(setting)(x, y)),
    }


def _plus(f: torch.Tensor, g: torch.Tensor) -> np.ndarray:
    return f.double().numpy().reshape(-1, 1) + g.double().numpy().reshape(1, -1)


def _error(log_plan: Any, setting: float, x: torch.Tensor, y: torch.Tensor) -> float:
    with warnings.catch_warnings():
        # A setting that its solver cannot reach is noticed by the error.
        warnings.simplefilter("ignore")
        return problem_.marginal_error(log_plan(setting, x, y))


def _with_gradient(
    value: Value, x: torch.Tensor, y: torch.Tensor
) -> tuple[torch.Tensor, tuple[torch.Tensor, ...]]:
    x, y = x.detach().requires_grad_(), y.detach().requires_grad_()
    result = value(x, y)
    return result.detach(), torch.autograd.grad(result, (x, y))


def _agreement(
    values: dict[str, Value], points: tuple[torch.Tensor, torch.Tensor], tolerance: float
) -> dict[str, float]:
    value, gradients = _with_gradient(values["ours"], *points)
    found: dict[str, float] = {}
    for name, rival in values.items():
        if name != "ours":
            theirs, their_gradients = _with_gradient(rival, *points)
            found |= agree(f"{name}: value", value, theirs, tolerance)
            for side, ours, wanted in zip("xy", gradients, their_gradients, strict=True):
                found |= agree(f"{name}: gradient in {side}", ours, wanted, tolerance)
    return found
