"""Targets over sequences as Pyro models: a base model and a factor, unnormalised.

``P(x) = a(x) · exp(log_factor(x))`` with a base ``a`` that can be sampled and scored. Calling a
target runs its Pyro model: the site ``"sequence"`` from the base, then the factor ``"target"``. So
a target is the ``model`` of ``pyro.infer.SVI``, and an autoregressive policy its ``guide``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import pyro
import torch

from bayesdiv.models._moment_fit import MomentFit, fit_moments
from bayesdiv.nn.sequences_torch import MarkovTable
from bayesdiv.pyro.distributions import AutoregressiveSequence

__all__ = [
    "ConditionalTarget",
    "EnumeratedTarget",
    "ExponentialTilt",
    "HiddenMarkovPosterior",
    "PointwiseConstraint",
    "ScalarPreference",
    "SequenceTarget",
    "enumerate_target",
]

Function = Callable[[torch.Tensor], torch.Tensor]
"""Of sequences ``(..., max_length)``, with one number for each, ``(...)``."""


class SequenceTarget:
    """The base and a factor; subclasses say which.

    Parameters
    ----------
    base
        `AutoregressiveSequence`, or a distribution like it.
    """

    def __init__(self, base: Any) -> None:
        for method in ("sample", "log_prob"):
            if not callable(getattr(base, method, None)):
                raise TypeError(
                    f"base must be a distribution over sequences with {method}(), got "
                    f"{type(base).__name__}."
                )
        self.base = base

    def log_factor(self, value: torch.Tensor, contexts: torch.Tensor | None = None) -> torch.Tensor:
        """What is added to the base's log-probability, ``(...)``; −∞ rules a sequence out."""
        raise NotImplementedError

    def terms(
        self, value: torch.Tensor, contexts: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """log a(x) and the log-factor, ``(...)`` each."""
        base = self.base if contexts is None else self.base.at(contexts)
        return base.log_prob(value), self.log_factor(value, contexts)

    def log_prob(self, value: torch.Tensor, contexts: torch.Tensor | None = None) -> torch.Tensor:
        """log P(x), unnormalised, ``(...)``; with ``contexts`` numbers of prompts, ``(k,)``."""
        log_base, log_factor = self.terms(value, contexts)
        return log_base + log_factor

    def __call__(self) -> torch.Tensor:
        """The Pyro model."""
        shape = getattr(self.base, "batch_shape", torch.Size())
        if not shape:
            value = pyro.sample("sequence", self.base)
            pyro.factor("target", self.log_factor(value))
            return value
        with pyro.plate("contexts", shape[0], dim=-1):
            value = pyro.sample("sequence", self.base)
            pyro.factor("target", self.log_factor(value))
        return value


def _evaluate(function: Function, value: torch.Tensor, name: str) -> torch.Tensor:
    found = function(value)
    if not isinstance(found, torch.Tensor) or found.shape != value.shape[:-1]:
        got = tuple(found.shape) if isinstance(found, torch.Tensor) else type(found).__name__
        raise ValueError(
            f"{name} must return one number for each sequence, shape {tuple(value.shape[:-1])} for "
            f"sequences of shape {tuple(value.shape)}, got {got}."
        )
    return found


def _require_unconditional(base: Any) -> None:
    if getattr(base, "batch_shape", ()):
        raise ValueError(
            "base must be one distribution, got one for each of "
            f"{tuple(base.batch_shape)} prompts; use ConditionalTarget."
        )


class PointwiseConstraint(SequenceTarget):
    """P(x) = a(x) where ``predicate(x)`` holds, else 0; KL(p‖a) = −log Z.

    Source: Khalifa, Elsahar and Dymetman (2021), §2.2; Go et al. (2023), §4.2.
    """

    def __init__(self, base: Any, predicate: Function) -> None:
        super().__init__(base)
        _require_unconditional(base)
        self.predicate = predicate

    def log_factor(self, value: torch.Tensor, contexts: torch.Tensor | None = None) -> torch.Tensor:
        return _log_indicator(_evaluate(self.predicate, value, "predicate"))


def _log_indicator(holds: torch.Tensor) -> torch.Tensor:
    zero = torch.zeros(holds.shape, device=holds.device)
    return torch.where(holds.bool(), zero, -math.inf)


class ScalarPreference(SequenceTarget):
    r"""P(x) = a(x) exp(r(x)/β): what a reward with a KL penalty β asks for.

    E_π[r] − β KL(π‖a) = β log Z − β KL(π‖p), so that reverse KL is KL-penalised reinforcement
    learning and every other divergence aims at the same optimum.

    Parameters
    ----------
    base
        a.
    reward
        r, of sequences.
    beta
        β, in units of the reward.

    Raises
    ------
    ValueError
        If ``beta`` is not positive and finite.

    References
    ----------
    Korbak, Elsahar, Kruszewski and Dymetman (2022), §3.1; Go et al. (2023), §4.1.
    """

    def __init__(self, base: Any, reward: Function, beta: float) -> None:
        super().__init__(base)
        _require_unconditional(base)
        if not 0.0 < beta < math.inf:
            raise ValueError(f"beta must be positive and finite, got {beta!r}.")
        self.reward, self.beta = reward, beta

    def log_factor(self, value: torch.Tensor, contexts: torch.Tensor | None = None) -> torch.Tensor:
        return _evaluate(self.reward, value, "reward") / self.beta


class ExponentialTilt(SequenceTarget):
    r"""P(x) = a(x) b(x) exp(λ·φ(x)): the law nearest to a, in KL(p‖a), with E_p[φ] = μ̄.

    Parameters
    ----------
    base
        a.
    features
        φ_1, …, of sequences.
    coefficients
        λ, one a feature.
    predicate
        b, of sequences; None for none.

    References
    ----------
    Csiszár (1975), §3; Khalifa, Elsahar and Dymetman (2021), §2.2, whose gradient ascent is
    Newton's method here.
    """

    def __init__(
        self,
        base: Any,
        features: Sequence[Function],
        coefficients: Sequence[float],
        *,
        predicate: Function | None = None,
    ) -> None:
        super().__init__(base)
        _require_unconditional(base)
        if len(features) != len(coefficients):
            raise ValueError(
                f"coefficients must be one a feature, got {len(coefficients)} for {len(features)}."
            )
        self.features = tuple(features)
        self.coefficients = tuple(float(value) for value in coefficients)
        self.predicate = predicate
        self.fitted: MomentFit | None = None

    @classmethod
    def fit(
        cls,
        base: Any,
        features: Sequence[Function],
        moments: Sequence[float],
        *,
        num_samples: int = 10_000,
        value: torch.Tensor | None = None,
        log_weights: torch.Tensor | None = None,
    ) -> ExponentialTilt:
        """λ for wanted moments, from samples of the base.

        A feature that is 0 or 1 in every sample, and whose moment is to be 0 or 1, becomes a
        pointwise constraint: its λ would be infinite.

        Parameters
        ----------
        base, features
            As above.
        moments
            μ̄, one a feature.
        num_samples
            Drawn from the base.
        value, log_weights
            Sequences ``(n, max_length)`` instead, with their log-weights ``(n,)`` against the base;
            all sequences with their log-probabilities make the fit exact.

        Raises
        ------
        ValueError
            Infeasible moments: outside the convex hull of the features in the samples, or of a
            feature that is constant there. Or lengths that differ.
        """
        if len(features) != len(moments):
            raise ValueError(
                f"moments must be one a feature, got {len(moments)} for {len(features)}."
            )
        if value is None:
            value = base.sample((num_samples,))
        columns = [_evaluate(each, value, "features").double() for each in features]
        keep = torch.ones(len(value), dtype=torch.bool, device=value.device)
        required: list[tuple[Function, float]] = []
        free = []
        for index, (feature, moment) in enumerate(zip(features, moments, strict=True)):
            binary = bool(((columns[index] == 0) | (columns[index] == 1)).all())
            if binary and moment in (0.0, 1.0) and bool((columns[index] == moment).any()):
                required.append((feature, float(moment)))
                keep &= columns[index] == moment
            else:
                free.append(index)
        coefficients, fitted = [0.0] * len(features), None
        if free:
            phi = torch.stack([columns[index] for index in free], dim=1)[keep]
            wanted = phi.new_tensor([moments[index] for index in free])
            fitted = fit_moments(phi, wanted, None if log_weights is None else log_weights[keep])
            for index, coefficient in zip(free, fitted.coefficients.tolist(), strict=True):
                coefficients[index] = coefficient
        found = cls(
            base,
            features,
            coefficients,
            predicate=_all_of(required) if required else None,
        )
        found.fitted = fitted
        return found

    def log_factor(self, value: torch.Tensor, contexts: torch.Tensor | None = None) -> torch.Tensor:
        total: Any = 0.0
        for feature, coefficient in zip(self.features, self.coefficients, strict=True):
            total = total + coefficient * _evaluate(feature, value, "features")
        if self.predicate is not None:
            total = total + _log_indicator(_evaluate(self.predicate, value, "predicate"))
        return total


def _all_of(required: Sequence[tuple[Function, float]]) -> Function:
    def holds(value: torch.Tensor) -> torch.Tensor:
        return torch.stack([feature(value) == wanted for feature, wanted in required]).all(0)

    return holds


class ConditionalTarget(SequenceTarget):
    """A target for each of several prompts, p_c(x) ∝ a(x | c) exp(log_factor(x, c)).

    Each context has its own normaliser: the Pyro model has a plate ``"contexts"`` around all its
    sites, whose elements are independent problems.

    Parameters
    ----------
    base
        `AutoregressiveSequence` with prompts, ``(num_contexts, prompt_length)``.
    log_factor
        Of sequences ``(..., k, max_length)`` and the numbers of their prompts ``(k,)``.

    References
    ----------
    Korbak, Elsahar, Kruszewski and Dymetman (2022), "Controlling conditional language models
    without catastrophic forgetting", §3.
    """

    def __init__(
        self, base: Any, log_factor: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
    ) -> None:
        super().__init__(base)
        if len(getattr(base, "batch_shape", ())) != 1:
            raise ValueError(
                "base must have prompts of shape (num_contexts, prompt_length), got batch_shape "
                f"{tuple(getattr(base, 'batch_shape', ()))}."
            )
        self.num_contexts = base.batch_shape[0]
        self._log_factor = log_factor

    def log_factor(self, value: torch.Tensor, contexts: torch.Tensor | None = None) -> torch.Tensor:
        if contexts is None:
            contexts = torch.arange(self.num_contexts, device=value.device)
        return _evaluate(lambda rows: self._log_factor(rows, contexts), value, "log_factor")


class HiddenMarkovPosterior(SequenceTarget):
    r"""The posterior of a hidden Markov chain's states: P(x) = p(x) Π_t e(y_t | x_t), Z = p(y).

    Parameters
    ----------
    initial, transition
        Of the states, ``(k,)`` and ``(k, k)``.
    emission
        Of the symbols that are seen, ``(k, m)``.
    observations
        y, ``(length,)``.

    Raises
    ------
    ValueError
        Shapes that do not fit, or rows that do not sum to 1.
    """

    def __init__(
        self,
        initial: torch.Tensor,
        transition: torch.Tensor,
        emission: torch.Tensor,
        observations: torch.Tensor,
    ) -> None:
        states = len(initial)
        if transition.shape != (states, states) or emission.shape[:1] != (states,):
            raise ValueError(
                f"transition must be ({states}, {states}) and emission ({states}, num_symbols), "
                f"got {tuple(transition.shape)} and {tuple(emission.shape)}."
            )
        for name, rows in (
            ("initial", initial), ("transition", transition), ("emission", emission)
        ):  # fmt: skip
            if not torch.allclose(rows.sum(-1), torch.ones_like(rows.sum(-1)), atol=1e-5):
                raise ValueError(f"{name} must sum to 1 along its last axis, got {rows.sum(-1)}.")
        network = MarkovTable.from_probabilities(initial, transition).requires_grad_(
            requires_grad=False
        )
        super().__init__(AutoregressiveSequence(network, len(observations), end=None))
        self._log_transition, self._log_initial = transition.log(), initial.log()
        self._log_likelihood = emission.log()[:, observations].T  # (length, k)

    def log_factor(self, value: torch.Tensor, contexts: torch.Tensor | None = None) -> torch.Tensor:
        times = torch.arange(value.shape[-1], device=value.device)
        return self._log_likelihood[times, value].sum(-1)

    def _messages(self) -> list[torch.Tensor]:
        """log p(y_t, … | x_t) for each t, ``(k,)`` each."""
        messages = [self._log_likelihood[-1]]
        for likelihood in self._log_likelihood.flip(0)[1:]:
            messages.append(likelihood + (self._log_transition + messages[-1]).logsumexp(-1))
        return messages[::-1]

    def log_evidence(self) -> torch.Tensor:
        """log p(y) by the backward recursion, a scalar."""
        return (self._log_initial + self._messages()[0]).logsumexp(-1)

    def exact(self) -> AutoregressiveSequence:
        """The posterior itself: a Markov chain whose transitions change with time."""
        rows = torch.cat([self._log_transition, self._log_initial[None]])
        logits = torch.stack([(rows + message).log_softmax(-1) for message in self._messages()])
        return AutoregressiveSequence(MarkovTable(logits), len(logits), end=None)


class EnumeratedTarget(NamedTuple):
    """Every sequence, ``(n, *batch, max_length)``, log p at each, and log Z, ``(*batch,)``."""

    value: torch.Tensor
    log_prob: torch.Tensor
    log_normalizer: torch.Tensor


def enumerate_target(target: SequenceTarget) -> EnumeratedTarget:
    """The normalised target where all sequences can be written down."""
    value = target.base.enumerate_support()
    with torch.no_grad():
        log_joint = target.log_prob(value)
    log_z = log_joint.logsumexp(0)
    return EnumeratedTarget(value, log_joint - log_z, log_z)
