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

from bayesdiv._array import Array, array_namespace, is_jax_array, is_torch_array
from bayesdiv._random import next_rng
from bayesdiv.divergences import (
    FDivergence,
    TwoSampleDivergence,
    get_divergence,
    list_divergences,
)
from bayesdiv.nn import WeightPrior
from bayesdiv.objectives import LearnedRatio

__all__ = [
    "NetworkPriorPredictive",
    "PriorPredictive",
    "PriorPredictiveObjective",
    "Sampler",
    "SelectedPrior",
]

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

    def from_scratch(self, data: Array, predicted: Array, rng: Any) -> Array:
        """The divergence after one step of a fresh adversary."""
        return self.divergence(*self._samples(data, predicted), rng=rng)

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
    found: Any = get_divergence(divergence, **parameters)
    return found


def as_objective(objective: Any) -> PriorPredictiveObjective:
    """An objective as it is; a divergence, by name or object, with the default settings."""
    if isinstance(objective, PriorPredictiveObjective):
        return objective
    return PriorPredictiveObjective(objective)


@dataclass(frozen=True, eq=False)
class PriorPredictive:
    """A sampler whose hyper-parameters are those of a `bayesdiv.nn.WeightPrior`.

    The subclasses make predictions; this class goes back and forth between the prior and the flat
    ``"site.mean"`` and ``"site.log_variance"`` that are tuned.

    Attributes
    ----------
    start : WeightPrior
        Names, shapes and starting values. Gradients in log-variances are small and noisy, so that
        their start matters.
    """

    start: WeightPrior

    @property
    def parameters(self) -> dict[str, Array]:
        """The hyper-parameters to start from."""
        found = {}
        for name in self.start.shapes:
            found[f"{name}.mean"] = self.start.mean[name]
            found[f"{name}.log_variance"] = self.start.log_variance[name]
        return found

    def prior(self, parameters: Mapping[str, Array]) -> WeightPrior:
        """The prior that ``parameters`` describe."""
        shapes = self.start.shapes
        return WeightPrior(
            shapes,
            {name: parameters[f"{name}.mean"] for name in shapes},
            {name: parameters[f"{name}.log_variance"] for name in shapes},
        )

    def __call__(
        self, parameters: Mapping[str, Array], batch: Array, num_draws: int, rng: Any
    ) -> Array:
        raise NotImplementedError(f"{type(self).__name__} must implement __call__.")


class NetworkPriorPredictive(PriorPredictive):
    """What an autoencoder's prior predicts: all draws of the weights in one pass, torch or JAX.

    Parameters
    ----------
    model
        Whatever has ``network``, ``likelihood`` and ``prior``, such as
        `bayesdiv.models.bayesian_autoencoder_pyro.BayesianAutoencoder`; tuning starts at its prior.
    """

    def __init__(self, model: Any) -> None:
        super().__init__(model.prior)
        object.__setattr__(self, "network", model.network)
        object.__setattr__(self, "likelihood", model.likelihood)

    network: Any
    likelihood: Any

    def __call__(
        self, parameters: Mapping[str, Array], batch: Array, num_draws: int, rng: Any
    ) -> Array:
        """Rows x̃ ~ p(x | f(batch; w)), ``(num_draws * n, data_dim)``, w from the prior."""
        _, weight_rng, pixel_rng = next_rng(rng, batch, 2)
        weights = self.prior(parameters).sample(weight_rng, num_draws)
        drawn = self.likelihood.sample(pixel_rng, self.network(weights, batch))
        return array_namespace(drawn).reshape(drawn, (num_draws * batch.shape[0], -1))


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


def check_parameters(parameters: Any) -> None:
    """Refuse anything but a mapping of names to floating arrays, at least one."""
    if not isinstance(parameters, Mapping) or not parameters:
        raise ValueError(
            "parameters must be a mapping of names to arrays, at least one, got "
            f"{type(parameters).__name__}."
        )
    for name, value in parameters.items():
        if not (is_torch_array(value) or is_jax_array(value)):
            raise TypeError(
                f"parameters[{name!r}] must be a torch tensor or a JAX array, got "
                f"{type(value).__name__}."
            )
        if not array_namespace(value).isdtype(value.dtype, "real floating"):
            raise TypeError(f"parameters[{name!r}] must be floating, got {value.dtype}.")


@dataclass(frozen=True)
class SelectedPrior:
    """What ``select_prior`` found.

    Attributes
    ----------
    parameters
        The hyper-parameters, arrays by name.
    history
        "loss" and "gradient_norm", ``(num_steps,)`` each.
    num_steps, stopped, seconds
        See `bayesdiv.training.TrainingResult`.
    """

    parameters: dict[str, Array]
    history: dict[str, np.ndarray]
    num_steps: int
    stopped: str
    seconds: float


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
