r"""One mixture of experts made of several, by minimising an expected transportation divergence.

Models fitted on shards of data are pooled to f_W = Σ_m λ_m f_m and reduced to K experts:

.. math::

    T_c(f_W, g) = E_x \min_{P ∈ U(Π(x), π(x))} Σ_{l,k} P_{lk} \, c(p_l(·|x), p_k(·|x)),

where U are the couplings of the pooled gate Π and the reduced gate π. As that gate is free, the
constraint on it is dropped while experts are sought: all mass of a local expert goes to the
cheapest reduced one. Steps of majorise–minimise then lower the objective until it stays, and the
gate is fitted to the mass that arrives. Only parameters and a sample of predictors are needed.

Chamroukhi and Pham (2023), "Distributed learning of mixtures of experts"; Zhang and Chen (2022)
for mixtures without predictors.
"""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from bayesdiv._mixture_of_experts import MixtureOfExpertsParameters
from bayesdiv.divergences import FDivergence
from bayesdiv.inference._ground_cost_updates import Experts, TransportPlan
from bayesdiv.inference._ground_costs import (
    GaussianForwardKL,
    GroundCost,
    get_ground_cost,
    list_ground_costs,
)
from bayesdiv.inference._pooled_experts import PooledExperts, pool_experts, warn_if_saturated
from bayesdiv.inference._reduction_baselines import BASELINES, baseline
from bayesdiv.inference._reduction_result import (
    Reduction,
    model_costs,
    num_distinct,
    posterior_targets,
)
from bayesdiv.inference._reduction_starts import (
    ModelDistances,
    aligned_start,
    cluster_start,
    greedy_start,
    model_distances,
)
from bayesdiv.inference._reduction_steps import (
    ReductionInfo,
    ReductionState,
    evaluate,
    init,
    run_steps,
    step,
)
from bayesdiv.inference._soft_gate import fit_gate
from bayesdiv.inference._transport_divergence import expected_divergence

__all__ = [
    "BASELINES",
    "Experts",
    "GaussianForwardKL",
    "GroundCost",
    "ModelDistances",
    "PooledExperts",
    "Reduction",
    "ReductionInfo",
    "ReductionState",
    "TransportPlan",
    "TransportReduction",
    "baseline",
    "expected_divergence",
    "get_ground_cost",
    "list_ground_costs",
    "pool_experts",
]

_GATE_TARGETS = ("plan", "posterior")
_PLANS = ("hard", "entropic")


@dataclass(frozen=True)
class TransportReduction:
    """How several mixtures of experts become one.

    Attributes
    ----------
    cost : str, FDivergence or GroundCost
        Between a local and a reduced expert, D(local‖reduced): one of `list_ground_costs`, a
        divergence of the layer, or your own `GroundCost`. Forward and reverse KL and
        "wasserstein2" have closed updates; others take steps with a search.
    experts : str
        "normal" or "bernoulli".
    plan : str
        "hard", or "entropic", which divides mass smoothly and serves gradients.
    epsilon : float
        Of the entropic plan, in units of the cost.
    gate_target : str
        "plan": the gate learns where mass arrives. "posterior": the same given outcomes of the
        support, which `run` then needs; noisier.
    gate_ridge : float
        Precision of a normal prior on the gate's rows about their mean, standardised predictors.
    trim : bool
        Leave out models that are flagged as outliers; see `ModelDistances`.
    num_starts : int
        One aligned to the medoid (by greedy merging where no model has the wanted size), the
        others by k-means of the predictions.
    tolerance : float
        Steps end where one lowers the objective by less than ``tolerance * (1 + |objective|)``.
    max_steps : int
        Of each start.

    Raises
    ------
    TypeError, ValueError
        If a setting is outside its domain.

    Examples
    --------
    >>> left = MixtureOfExpertsParameters(
    ...     gate=jnp.array([[1.0], [0.0]]),
    ...     coefficients=jnp.array([[0.0], [5.0]]),
    ...     scale=jnp.array([1.0, 2.0]),
    ... )
    >>> right = MixtureOfExpertsParameters(
    ...     gate=jnp.array([[-1.0], [0.0]]),
    ...     coefficients=jnp.array([[5.0], [0.2]]),
    ...     scale=jnp.array([2.0, 1.0]),
    ... )
    >>> found = TransportReduction().run(jax.random.key(0), [left, right], np.empty((50, 0)))
    >>> sorted(found.parameters.coefficients[:, 0].round(3).tolist())
    [0.1, 5.0]
    """

    cost: str | FDivergence | GroundCost = "forward_kl"
    experts: str = "normal"
    plan: str = "hard"
    epsilon: float = 0.1
    gate_target: str = "plan"
    gate_ridge: float = 1e-6
    trim: bool = False
    num_starts: int = 3
    tolerance: float = 1e-8
    max_steps: int = 500

    def __post_init__(self) -> None:
        for name, allowed in (
            ("experts", ("normal", "bernoulli")),
            ("plan", _PLANS),
            ("gate_target", _GATE_TARGETS),
        ):
            if getattr(self, name) not in allowed:
                raise ValueError(f"{name} must be one of {allowed}, got {getattr(self, name)!r}.")
        for name in ("epsilon", "gate_ridge"):
            if not 0.0 < getattr(self, name) < math.inf:
                raise ValueError(f"{name} must be positive, got {getattr(self, name)!r}.")
        if not 0.0 <= self.tolerance < math.inf:
            raise ValueError(f"tolerance must be at least 0, got {self.tolerance!r}.")
        for name in ("num_starts", "max_steps"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise ValueError(f"{name} must be a positive whole number, got {value!r}.")
        get_ground_cost(self.cost, experts=self.experts)

    @property
    def ground_cost(self) -> GroundCost:
        """The cost that `cost` names."""
        return get_ground_cost(self.cost, experts=self.experts)

    def init(self, pooled: PooledExperts, start: MixtureOfExpertsParameters) -> ReductionState:
        """The state whose experts are those of ``start``."""
        return init(
            pooled.problem,
            pooled.experts_of(start),
            cost=self.ground_cost,
            epsilon=self._epsilon,
        )

    def step(
        self, state: ReductionState, pooled: PooledExperts
    ) -> tuple[ReductionState, ReductionInfo]:
        """One step of experts and plan; the objective does not rise."""
        return step(state, pooled.problem, cost=self.ground_cost, epsilon=self._epsilon)

    def run(
        self,
        key: Any,
        models: Sequence[MixtureOfExpertsParameters],
        support: Any,
        *,
        weights: Any = None,
        num_experts: int | None = None,
        start: MixtureOfExpertsParameters | None = None,
        outcome: Any = None,
    ) -> Reduction:
        """Reduce ``models`` to one of ``num_experts`` experts.

        Parameters
        ----------
        key
            Of the k-means starts.
        models
            Fitted models of (1, predictors), any number of experts each; one may stand alone.
        support
            Predictors without the intercept, ``(rows, dim)``; outcomes are not needed. Take 20 rows
            or more a feature.
        weights
            Rows of each shard, ``(models,)``, or by row of the support ``(rows, models)``; uniform
            by default.
        num_experts
            K; that of the models by default.
        start
            Begin from this model's experts alone.
        outcome
            Of the support, ``(rows,)``, for ``gate_target="posterior"``.

        Returns
        -------
        Reduction

        Raises
        ------
        TypeError, ValueError
            Models, weights or support that do not fit; K above the number of all experts; a cost
            that is infinite for every start.

        Warns
        -----
        UserWarning
            If the support has fewer rows than features, or gates are saturated on it.
        """
        begin = time.perf_counter()
        pooled = pool_experts(models, weights, support, experts=self.experts)
        num_experts = self._num_experts(pooled, num_experts, start)
        outcome = self._outcome(outcome, len(pooled.features))
        if len(pooled.features) < pooled.features.shape[1]:
            warnings.warn(
                f"support has {len(pooled.features)} rows for {pooled.features.shape[1]} features; "
                "take 20 rows or more a feature.",
                UserWarning,
                stacklevel=2,
            )
        warn_if_saturated(pooled)
        distances = model_distances(pooled)
        everyone = pooled
        used = ~distances.flags if self.trim else np.ones(len(pooled.parameters), bool)
        if not used.all():
            pooled = pooled.kept(used)
        if start is None:
            starts = self._starts(key, pooled, distances.medoid, num_experts)
        else:
            starts = {"given": pooled.experts_of(start)}
        name, state, trace, ends = self._best(pooled, starts)
        targets = state.plan.received()
        if self.gate_target == "posterior":
            targets = posterior_targets(targets, outcome, pooled, state.experts)
        gate = fit_gate(pooled.features, targets, ridge=self.gate_ridge).gate
        parameters = jax.block_until_ready(pooled.parameters_of(state.experts, gate))
        return Reduction(
            parameters,
            float(state.objective),
            trace,
            state.plan,
            targets,
            model_costs(everyone, state, used, self.ground_cost),
            distances,
            used,
            name,
            ends,
            num_distinct(pooled, state),
            time.perf_counter() - begin,
        )

    @property
    def _epsilon(self) -> float | None:
        return self.epsilon if self.plan == "entropic" else None

    def _num_experts(
        self,
        pooled: PooledExperts,
        num_experts: int | None,
        start: MixtureOfExpertsParameters | None,
    ) -> int:
        most = len(pooled.shard)
        if num_experts is None:
            num_experts = int(pooled.counts.max()) if start is None else len(start.gate)
        if isinstance(num_experts, bool) or not 1 <= num_experts <= most:
            raise ValueError(
                f"num_experts must be from 1 to {most}, the experts of all models together, got "
                f"{num_experts!r}."
            )
        if start is not None and np.shape(start.coefficients) != (
            num_experts,
            pooled.features.shape[1],
        ):
            raise ValueError(
                f"start must have coefficients of shape ({num_experts}, "
                f"{pooled.features.shape[1]}), got {np.shape(start.coefficients)}."
            )
        return num_experts

    def _outcome(self, outcome: Any, num_rows: int) -> np.ndarray | None:
        if self.gate_target == "plan":
            return None
        if outcome is None:
            raise ValueError(
                "gate_target='posterior' needs the outcome of the support, shape (rows,), got "
                "None; pass it, or use gate_target='plan'."
            )
        outcome = np.asarray(outcome, float)
        if outcome.shape != (num_rows,) or not np.isfinite(outcome).all():
            raise ValueError(
                f"outcome must be finite and of shape ({num_rows},), got shape {outcome.shape}."
            )
        return outcome

    def _starts(
        self, key: Any, pooled: PooledExperts, medoid: int, num_experts: int
    ) -> dict[str, Experts]:
        counts = pooled.counts
        if counts[medoid] == num_experts:
            starts = {"aligned": aligned_start(pooled, medoid)}
        else:
            starts = {"greedy": greedy_start(pooled, num_experts)[0]}
        seeds = np.asarray(jax.random.randint(key, (self.num_starts - 1,), 0, 2**31 - 1))
        for index, seed in enumerate(seeds.tolist()):
            starts[f"cluster {index}"] = cluster_start(pooled, num_experts, seed)
        return starts

    def _best(
        self, pooled: PooledExperts, starts: dict[str, Experts]
    ) -> tuple[str, ReductionState, np.ndarray, dict[str, float]]:
        """The start that ends lowest. Costs without a closed update go on from forward KL's end."""
        cost, problem = self.ground_cost, pooled.problem
        loop = {"tolerance": self.tolerance, "max_steps": self.max_steps}
        first = cost if cost.is_closed_form else get_ground_cost("forward_kl", experts=self.experts)
        is_final = first == cost
        epsilon = self._epsilon if is_final else None
        ends = {
            name: run_steps(problem, experts, cost=first, epsilon=epsilon, **loop)
            for name, experts in starts.items()
        }
        objectives = {name: float(end[0].objective) for name, end in ends.items()}
        # NaN would win a minimum.
        name = min(objectives, key=lambda one: np.nan_to_num(objectives[one], nan=np.inf))
        state, trace, count = ends[name]
        if not is_final:
            state = self._finite_state(state.experts, pooled)
            state, trace, count = run_steps(
                problem, state.experts, cost=cost, epsilon=self._epsilon, **loop
            )
        if not np.isfinite(float(state.objective)):
            raise ValueError(
                f"the cost {self.cost!r} is {float(state.objective)} between these experts from "
                "every start; choose one that is finite between all experts, such as forward_kl."
            )
        return name, state, np.asarray(trace)[: int(count) + 1], objectives

    def _finite_state(self, experts: Experts, pooled: PooledExperts) -> ReductionState:
        """``experts``; scales wide or narrow enough for all local ones if the cost is infinite."""
        problem = pooled.problem
        candidates = [experts]
        if experts.scale is not None:
            widest, narrowest = jnp.max(pooled.local.scale), jnp.min(pooled.local.scale)
            candidates += [
                experts._replace(scale=jnp.maximum(experts.scale, widest)),
                experts._replace(scale=jnp.minimum(experts.scale, narrowest)),
            ]
        for candidate in candidates:
            state = evaluate(problem, candidate, cost=self.ground_cost, epsilon=self._epsilon)
            if np.isfinite(float(state.objective)):
                return state
        return state
