r"""The log-ratio l = log p/q of two samplers, learnt as the logit of telling them apart.

`LearnedRatio` does this for vectors, with a network of its own inside a divergence. Here the
critic is anybody's: a network over sequences, images or pairs. Its logit is l, and from l on the
divergences are the same code: `bayesdiv.objectives.estimate` takes it for a log-weight whose
normaliser is known, 0.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from bayesdiv._array import Array, array_namespace, clip, stop_gradient
from bayesdiv.divergences import FDivergence, get_divergence
from bayesdiv.divergences._two_sample import check_choice, check_count, check_positive
from bayesdiv.objectives._critic_losses import logistic_loss, variational_bound
from bayesdiv.objectives._ratio_probe import Calibration, RatioProbe, probe_logits

__all__ = ["Calibration", "ClampedRatio", "DensityRatio", "RatioCritic", "RatioProbe"]

CLASSES = ("counts", "balanced")
# Beyond this ratio of class counts the rarer class hardly speaks in an unweighted loss.
_MOST_IMBALANCE = 10.0
# Rows that a critic sees at once outside training.
_ROWS_AT_ONCE = 4096


class ClampedRatio(NamedTuple):
    """``log_ratio`` within the clamp, any shape, and the share of it that had to be clamped."""

    log_ratio: Array
    saturated: Array


@dataclass(frozen=True)
class DensityRatio:
    r"""How l = log p/q is learnt from rows of p and of q, and read off a critic's logit h.

    .. math:: \min_h\; E_p[\mathrm{softplus}(-h)] + E_q[\mathrm{softplus}(h)]

    is attained at h = l, where it is 2 log 2 − 2 JS(p, q). With ``classes="counts"`` rows count
    alike, as in an ordinary classifier, the optimum is h = l + log(n_p/n_q), and `log_ratio` takes
    the offset off; with ``"balanced"`` each class counts with its mean and there is no offset.

    Everything here takes and returns arrays of torch or JAX and has no state.

    Attributes
    ----------
    classes : {"counts", "balanced"}
        What weighs the classes.
    label_smoothing : float
        Share, below ½, of either class that is taken for the other; bounds h, shrinking it a
        little everywhere.
    max_log_ratio : float
        l is clamped to ± this where it is used (e²⁰ is already beyond what samples can tell).

    Raises
    ------
    ValueError
        A setting outside its domain; more than ten times as many rows of one class as of the other
        with ``classes="counts"``.

    References
    ----------
    Sugiyama, Suzuki and Kanamori (2012), §4.2; the value at the optimum: Goodfellow et al. (2014),
    theorem 1.

    Examples
    --------
    >>> import torch
    >>> ratio = DensityRatio()
    >>> logits = torch.zeros(30)  # n_p = 20 and n_q = 10: l = −log 2 where h = 0
    >>> read = ratio.log_ratio(logits, offset=ratio.offset(20, 10))
    >>> round(float(read.log_ratio[0]), 4)
    -0.6931
    """

    classes: str = "counts"
    label_smoothing: float = 0.0
    max_log_ratio: float = 10.0

    def __post_init__(self) -> None:
        check_choice("classes", self.classes, CLASSES)
        if not 0.0 <= self.label_smoothing < 0.5:
            raise ValueError(f"label_smoothing must be in [0, 0.5), got {self.label_smoothing!r}.")
        check_positive("max_log_ratio", self.max_log_ratio)

    def offset(self, num_p: int, num_q: int) -> float:
        """log(n_p/n_q), what a critic trained on such counts has too much; 0 if balanced."""
        self.check_counts(num_p, num_q)
        return 0.0 if self.classes == "balanced" else math.log(num_p / num_q)

    def check_counts(self, num_p: int, num_q: int) -> None:
        """Refuse an empty class, and lopsided ones that are not balanced."""
        if min(num_p, num_q) < 1:
            raise ValueError(
                f"either class must have at least one row, got {num_p} of p and {num_q} of q."
            )
        if self.classes == "counts" and max(num_p, num_q) > _MOST_IMBALANCE * min(num_p, num_q):
            raise ValueError(
                f"the classes may differ by at most {_MOST_IMBALANCE:g} times with "
                f"classes='counts', got {num_p} rows of p and {num_q} of q; pass "
                "classes='balanced', which weighs them alike."
            )

    def loss(self, p_logits: Array, q_logits: Array) -> Array:
        """The critic's loss, a scalar, from its logits ``(n,)`` and ``(m,)`` at rows of p and q."""
        num_p, num_q = p_logits.shape[0], q_logits.shape[0]
        self.check_counts(num_p, num_q)
        if self.classes == "balanced":
            return logistic_loss(p_logits, q_logits, label_smoothing=self.label_smoothing)
        xp, each = array_namespace(p_logits), 2.0 / (num_p + num_q)
        return logistic_loss(
            p_logits,
            q_logits,
            p_weights=xp.full_like(p_logits, each),
            q_weights=xp.full_like(q_logits, each),
            label_smoothing=self.label_smoothing,
        )

    def log_ratio(self, logits: Array, *, offset: float = 0.0) -> ClampedRatio:
        """l = h − offset within ± ``max_log_ratio``, and the share at the clamp, a scalar array."""
        xp, bound = array_namespace(logits), self.max_log_ratio
        log_ratio = clip(logits - offset, -bound, bound)
        return ClampedRatio(log_ratio, xp.mean(xp.astype(xp.abs(log_ratio) >= bound, logits.dtype)))

    def value(self, divergence: Any, p_log_ratio: Array, q_log_ratio: Array) -> Array:
        """A lower bound of D_f(p‖q), by name or object, from l at rows of p and of q."""
        rule = get_divergence(divergence)
        if not isinstance(rule, FDivergence):
            raise TypeError(
                f"divergence must be an f-divergence, got {rule!r}, which compares samples without "
                "a ratio; use it directly."
            )
        return variational_bound(rule, p_log_ratio, q_log_ratio)

    def probe(self, p_log_ratio: Array, q_log_ratio: Array) -> RatioProbe:
        """What held-out rows say; see `RatioProbe`. Looks at numbers, so outside compilation.

        Raises
        ------
        ValueError
            Fewer than two rows of a class, or a logit that is not finite.
        """
        p, q = (_as_host(stop_gradient(logits)) for logits in (p_log_ratio, q_log_ratio))
        return probe_logits(p, q, self.max_log_ratio)


class RatioCritic:
    r"""Trains a torch critic until its logit is log p/q; a routine for `bayesdiv.training.train`.

    Parameters
    ----------
    critic
        From rows to logits ``(n,)``: a ``torch.nn.Module``, or any callable with ``state_dict`` and
        ``load_state_dict``.
    optimizer
        A ``torch.optim`` optimiser of the critic's parameters; weight decay is its business.
    ratio
        Classes, smoothing and clamp.
    held_out
        Rows ``(p, q)`` that are not trained on, for a loss to stop by; None leaves it out.
    validate_every
        Steps between looks at the held-out rows.
    parameters
        The module that holds the critic's parameters, where ``critic`` is a function of it.

    Raises
    ------
    ValueError
        Lopsided classes, held-out rows that are too few, or logits of a wrong shape.
    TypeError
        If there is nothing with a ``state_dict``.
    FloatingPointError
        If a held-out loss is not finite.

    Examples
    --------
    >>> import torch
    >>> p, q = 1.0 + torch.randn(500, 1), torch.randn(500, 1)
    >>> linear = torch.nn.Linear(1, 1)
    >>> optimizer = torch.optim.Adam(linear.parameters(), lr=0.05)
    >>> critic = RatioCritic(lambda rows: linear(rows)[:, 0], optimizer, parameters=linear)
    >>> for _ in range(200):
    ...     metrics = critic.step((p, q))
    >>> probe = critic.probe(p, q).warn()
    >>> probe.is_dead
    False
    """

    def __init__(
        self,
        critic: Callable[[Any], Array],
        optimizer: Any,
        *,
        ratio: DensityRatio | None = None,
        held_out: tuple[Any, Any] | None = None,
        validate_every: int = 25,
        parameters: Any = None,
    ) -> None:
        check_count("validate_every", validate_every)
        self.critic, self.optimizer = critic, optimizer
        self.ratio = DensityRatio() if ratio is None else ratio
        self.calibration = Calibration()
        self._held_out, self._validate_every = held_out, validate_every
        self._module: Any = critic if parameters is None else parameters
        if not hasattr(self._module, "state_dict"):
            raise TypeError(
                f"critic must have state_dict, got {type(critic).__name__}; pass the module that "
                "holds its parameters as parameters=."
            )
        self._seen = [0, 0]
        self._steps = 0
        self._held_out_loss = math.inf
        self._best: tuple[float, Any] = (math.inf, None)
        if held_out is not None:
            self.ratio.check_counts(len(held_out[0]), len(held_out[1]))

    @property
    def offset(self) -> float:
        """What the classes' counts, as trained on so far, add to the logit."""
        return self.ratio.offset(*self._seen) if any(self._seen) else 0.0

    def step(self, batch: tuple[Any, Any]) -> dict[str, Array]:
        """One step on ``batch``, rows of p and rows of q: loss and implied divergence."""
        p, q = batch
        self._mode(training=True)
        p_logits, q_logits = self._logits_of(p, q)
        loss = self.ratio.loss(p_logits, q_logits)
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        self._seen = [self._seen[0] + len(p), self._seen[1] + len(q)]
        self._steps += 1
        metrics = {"loss": loss.detach()}
        shift = self.offset
        balanced = logistic_loss(p_logits.detach() - shift, q_logits.detach() - shift)
        metrics["implied_jensen_shannon"] = math.log(2.0) - 0.5 * balanced
        if self._held_out is not None:
            if self._steps % self._validate_every == 1 or self._validate_every == 1:
                self._validate()
            metrics["held_out_loss"] = loss.new_tensor(self._held_out_loss)
        return metrics

    def log_ratio(self, rows: Any) -> ClampedRatio:
        """Calibrated l of ``rows``, ``(n,)`` without history, and the share at the clamp."""
        return self.ratio.log_ratio(self.calibration(self._evaluate(rows) - self.offset))

    def probe(self, p: Any, q: Any) -> RatioProbe:
        """What rows of either class that were not trained on say of the critic as it is now."""
        shift = self.offset
        return self.ratio.probe(
            *(self.calibration(self._evaluate(rows) - shift) for rows in (p, q))
        )

    def calibrate(self, p: Any, q: Any) -> RatioProbe:
        """Fit slope and intercept of the logit to held-out rows; the probe from before that."""
        self.calibration = Calibration()
        found = self.probe(p, q)
        self.calibration = found.calibration
        return found

    def restore_best(self) -> float:
        """Go back to the step of the lowest held-out loss, which is returned."""
        if self._held_out is None or self._best[1] is None:
            raise ValueError("held_out rows and at least one step are needed to know the best one.")
        self._validate()
        loss, state = self._best
        self._module.load_state_dict(copy.deepcopy(state))
        return loss

    def state_dict(self) -> dict[str, Any]:
        """A copy of all that the next step depends on."""
        return {
            "critic": copy.deepcopy(self._module.state_dict()),
            "optimizer": copy.deepcopy(self.optimizer.state_dict()),
            "seen": list(self._seen),
            "steps": self._steps,
            "calibration": list(self.calibration),
            "held_out_loss": self._held_out_loss,
            "best": [self._best[0], self._best[1]],
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from what `state_dict` gave."""
        self._module.load_state_dict(copy.deepcopy(state["critic"]))
        self.optimizer.load_state_dict(copy.deepcopy(state["optimizer"]))
        self._seen, self._steps = list(state["seen"]), state["steps"]
        self.calibration = Calibration(*state["calibration"])
        self._held_out_loss = state["held_out_loss"]
        self._best = (state["best"][0], copy.deepcopy(state["best"][1]))

    def _validate(self) -> None:
        assert self._held_out is not None
        shift = self.offset
        p_logits, q_logits = (self._evaluate(rows) - shift for rows in self._held_out)
        self._held_out_loss = float(logistic_loss(p_logits, q_logits))
        if not math.isfinite(self._held_out_loss):
            raise FloatingPointError(
                f"the critic's held-out loss became {self._held_out_loss} at step {self._steps}; "
                "lower its learning rate."
            )
        if self._held_out_loss < self._best[0]:
            self._best = (self._held_out_loss, copy.deepcopy(self._module.state_dict()))

    def _logits_of(self, p: Any, q: Any) -> tuple[Array, Array]:
        """Both classes in one pass where their rows have one shape."""
        if p.shape[1:] != q.shape[1:]:
            return _checked(self.critic(p), len(p)), _checked(self.critic(q), len(q))
        xp = array_namespace(p)
        logits = _checked(self.critic(xp.concat([p, q], axis=0)), len(p) + len(q))
        return logits[: len(p)], logits[len(p) :]

    def _evaluate(self, rows: Any) -> Array:
        self._mode(training=False)
        parts = [
            stop_gradient(_checked(self.critic(chunk), len(chunk)))
            for chunk in (
                rows[start : start + _ROWS_AT_ONCE] for start in range(0, len(rows), _ROWS_AT_ONCE)
            )
        ]
        if not parts:
            raise ValueError("rows must not be empty, got none.")
        return array_namespace(parts[0]).concat(parts, axis=0)

    def _mode(self, *, training: bool) -> None:
        if hasattr(self._module, "train"):
            self._module.train(training)


def _checked(logits: Array, count: int) -> Array:
    if logits.shape != (count,):
        raise ValueError(
            f"critic must return one logit a row, shape ({count},), got {tuple(logits.shape)}."
        )
    return logits


def _as_host(values: Any) -> Any:
    return values.cpu().numpy() if hasattr(values, "cpu") else values
