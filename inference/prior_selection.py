r"""Choose a prior by making what it predicts look like data: the objective, for torch and JAX.

Of hyper-parameters ψ,

.. math:: ψ^* = \arg\min_ψ D(π, p_ψ), \qquad p_ψ(x) = E_{w ∼ p_ψ(w)} p(x | w),

where π is the law of the data, known by a sample, and p_ψ the prior predictive, from which one can
draw; D compares two samples. The loops are in `prior_selection_torch` and `prior_selection_jax`,
samplers for Pyro and NumPyro models in `prior_selection_pyro` and `prior_selection_numpyro`.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Any

import numpy as np

from bayesdiv._array import Array, array_namespace
from bayesdiv.divergences import (
    FDivergence,
    TwoSampleDivergence,
    get_divergence,
    list_divergences,
)
from bayesdiv.objectives import LearnedRatio

Sampler = Callable[[Mapping[str, Array], Array, int, Any], Array]
"""``sample(parameters, batch, num_draws, rng)``: ``num_draws * len(batch)`` predicted rows.

``batch`` has shape ``(rows, ...)``; each prior draw serves the whole batch. The result is
differentiable in ``parameters``. ``rng`` is a JAX key, or an integer seed for torch.
"""


@dataclass(frozen=True)
class PriorPredictiveObjective:
    r"""The divergence D(data‖prior predictive) of two samples, and its inner adversary.

    x is the batch of data, ``(n, dim)``, and y the ``num_draws * n`` predicted rows: the data are
    the target, so that `LearnedRatio` estimates D_f(data‖prior predictive). Samples of different
    size are compared as the laws they stand for, which is what repeating the batch does; with
    ``reduction="sum"``, which needs equal sizes, the batch is repeated. What the divergence learns
    (directions, a critic) stays in the state from step to step; where it learns nothing the state
    is None.

    Attributes
    ----------
    divergence
        A two-sample divergence by name or object, or an f-divergence by name or object, which gets
        a `LearnedRatio`.
    num_draws : int
        Draws of the prior a step.
    parameters
        Of a named two-sample divergence, or of the `LearnedRatio` of an f-divergence.

    Raises
    ------
    ValueError
        If the name or a parameter is unknown, or ``num_draws`` is not positive.

    References
    ----------
    Tran et al. (2021), Model selection for Bayesian autoencoders, equation 8, whose divergence is
    the distributional sliced Wasserstein distance.
    """

    divergence: Any = "distributional_sliced_wasserstein"
    num_draws: int = 8
    parameters: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if isinstance(self.num_draws, bool) or not isinstance(self.num_draws, int):
            raise ValueError(f"num_draws must be an integer, got {self.num_draws!r}.")
        if self.num_draws < 1:
            raise ValueError(f"num_draws must be at least 1, got {self.num_draws!r}.")
        object.__setattr__(self, "divergence", _two_sample(self.divergence, self.parameters))
        object.__setattr__(self, "parameters", {})

    @property
    def learns(self) -> bool:
        """Whether the divergence has an inner adversary."""
        return type(self.divergence).init is not TwoSampleDivergence.init

    def init(self, data: Array, predicted: Array, rng: Any) -> Any:
        """The adversary at rest."""
        return self.divergence.init(*self._samples(data, predicted), rng=rng)

    def inner_step(self, state: Any, data: Array, predicted: Array, rng: Any) -> Any:
        """The adversary after it has improved on these samples, both held fixed."""
        state, _ = self.divergence.step(state, *self._samples(data, predicted), rng=rng)
        return state

    def value(self, state: Any, data: Array, predicted: Array, rng: Any) -> Array:
        """The divergence, a scalar that is differentiable in ``predicted``."""
        return self.divergence.evaluate(state, *self._samples(data, predicted), rng=rng)

    def _samples(self, data: Array, predicted: Array) -> tuple[Array, Array]:
        xp = array_namespace(predicted)
        rows = data.shape[0]
        x = xp.astype(xp.reshape(data, (rows, -1)), predicted.dtype)
        y = xp.reshape(predicted, (predicted.shape[0], -1))
        if y.shape != (self.num_draws * rows, x.shape[1]):
            raise ValueError(
                f"sample must return num_draws * rows = {self.num_draws * rows} rows of "
                f"{x.shape[1]} numbers, as the batch has {rows} rows and num_draws is "
                f"{self.num_draws}; got shape {tuple(predicted.shape)}."
            )
        if getattr(self.divergence, "reduction", "mean") == "sum":
            x = xp.concat([x] * self.num_draws, axis=0)
        return x, y


def _two_sample(divergence: Any, parameters: Mapping[str, Any]) -> TwoSampleDivergence:
    is_name_of_f = isinstance(divergence, str) and divergence in list_divergences("f")
    if is_name_of_f or isinstance(divergence, FDivergence):
        return LearnedRatio(divergence, **parameters)
    return get_divergence(divergence, **parameters)


def as_objective(objective: Any) -> PriorPredictiveObjective:
    """An objective as it is; a divergence, by name or object, with the default settings."""
    if isinstance(objective, PriorPredictiveObjective):
        return objective
    return PriorPredictiveObjective(objective)


def normal_prior_parameters(
    means: Mapping[str, Array], *, log_variance: float = -6.0, sharing: str = "weight"
) -> dict[str, Array]:
    """Hyper-parameters of independent normal priors: ``"site.mean"`` and ``"site.log_variance"``.

    Parameters
    ----------
    means
        Where the prior of each site is centred, in the site's own shape: weights of a pre-trained
        network, say.
    log_variance
        Where every log-variance starts. Gradients in it are small and noisy, so that the start
        matters.
    sharing
        "weight": a log-variance for every entry; "layer": one for every site.

    Raises
    ------
    ValueError
        If ``sharing`` is neither.

    References
    ----------
    Tran et al. (2021), §4.1, whose log-variances are per weight.
    """
    if sharing not in ("weight", "layer"):
        raise ValueError(f"sharing must be 'weight' or 'layer', got {sharing!r}.")
    found = {}
    for site, mean in means.items():
        xp = array_namespace(mean)
        spread = xp.full_like(mean, log_variance)
        found[f"{site}.mean"] = mean
        found[f"{site}.log_variance"] = xp.mean(spread) if sharing == "layer" else spread
    return found


def learning_rates(learning_rate: Any, names: list[str]) -> dict[str, float]:
    """A learning rate for each of ``names``: one number, or numbers by name or pattern.

    Raises
    ------
    ValueError
        If a rate is not positive, a name matches no pattern, or a pattern matches no name.
    """
    patterns = learning_rate if isinstance(learning_rate, Mapping) else {"*": learning_rate}
    for pattern, rate in patterns.items():
        if not isinstance(rate, int | float) or not 0 < rate < float("inf"):
            raise ValueError(f"learning_rate must be positive, got {rate!r} for {pattern!r}.")
        if not any(fnmatchcase(name, pattern) for name in names):
            raise ValueError(
                f"learning_rate has {pattern!r}, which matches no parameter of {', '.join(names)}."
            )
    found = {}
    for name in names:
        matching = [rate for pattern, rate in patterns.items() if fnmatchcase(name, pattern)]
        if not matching:
            raise ValueError(
                f"learning_rate must have a pattern for every parameter, got none for {name!r}; "
                "add '*' for the rest."
            )
        found[name] = float(matching[0])
    return found


def check_disjoint(tuning: Any, training: Any) -> None:
    """Refuse rows that are in both data sets: a prior must not be tuned on the data to be fitted.

    Parameters
    ----------
    tuning, training
        Arrays of any library, ``(n, ...)`` and ``(m, ...)``; rows are compared exactly.

    Raises
    ------
    ValueError
        If rows have different shapes, or a row is in both; the first pair is named.
    """
    tuning, training = (_rows(array) for array in (tuning, training))
    if tuning.shape[1:] != training.shape[1:]:
        raise ValueError(
            "tuning and training must have rows of one shape, got "
            f"{tuning.shape[1:]} and {training.shape[1:]}."
        )
    place = {row.tobytes(): index for index, row in reversed(list(enumerate(training)))}
    shared = [
        (index, place[row.tobytes()]) for index, row in enumerate(tuning) if row.tobytes() in place
    ]
    if shared:
        first, second = shared[0]
        raise ValueError(
            f"tuning and training must not share rows, got {len(shared)} of {len(tuning)} tuning "
            f"rows in both, the first of them tuning[{first}] = training[{second}]; a prior tuned "
            "on the data it is used for is over-fitted to them."
        )


def _rows(array: Any) -> np.ndarray:
    if hasattr(array, "detach"):
        array = array.detach().cpu()
    rows = np.asarray(array)
    # Adding zero makes the two zeros one.
    return np.ascontiguousarray(rows.astype(np.float64) + 0.0)
