r"""What a fresh critic says of two samples of codes, and whether the critic in use is dead."""

from __future__ import annotations

import math
import warnings
from collections import deque
from dataclasses import dataclass
from typing import NamedTuple

import torch

from bayesdiv.objectives import DensityRatio, LearnedRatio, RatioProbe

# The logistic loss of a critic that says l = 0 everywhere.
CHANCE = 2.0 * math.log(2.0)
_NEAR_CHANCE = 1e-3
# Steps that are looked at together, and whose mean loss counts.
WINDOW = 100
# Batches whose codes a look at the critic has.
_BATCHES_KEPT = 4
_STANDARD_ERRORS = 5.0
_LEAST_ROWS = 8


class CodeProbe(NamedTuple):
    """How far apart prior and codes are, by a critic of its own judged on rows it has not seen.

    With l ≈ log p*/q, in nats: ``reverse_kl`` is −E_q[l] ≈ KL(q‖p*), ``forward_kl`` E_p[l] ≈
    KL(p*‖q), both without guarantee; ``reverse_kl_bound`` E_q[−l] + 1 − E_p[e^{−l}] ≤ KL(q‖p*) and
    ``jensen_shannon`` log 2 − loss/2 ≤ JS(p*, q) ≤ log 2, both in expectation. ``accuracy`` is the
    mean of the classes', and ``ratio`` has the rest. The estimates are of use up to about 1.5 nats;
    beyond 4 the samples hardly overlap, and the numbers say "far" and no more.
    """

    reverse_kl: float
    forward_kl: float
    jensen_shannon: float
    reverse_kl_bound: float
    accuracy: float
    ratio: RatioProbe

    @property
    def is_separable(self) -> bool:
        """Whether hardly a row is in doubt."""
        return self.ratio.is_separable

    @property
    def separates(self) -> bool:
        """Whether the rows can be told apart at all: accuracy 5 standard errors above ½."""
        return self.accuracy > 0.5 + _STANDARD_ERRORS * self.ratio.accuracy_error

    def warn(self) -> CodeProbe:
        """Warn where the codes are separable; returns itself."""
        if self.is_separable:
            warnings.warn(
                f"the codes are separable from the prior's (held-out accuracy {self.accuracy:.4f}, "
                f"Jensen–Shannon divergence {self.jensen_shannon:.4f} of at most "
                f"{math.log(2.0):.4f}): their KL divergences have no finite estimate, and compare "
                "fits by the Jensen–Shannon divergence only. Raise the weight, train longer, or "
                "take a divergence of samples such as 'sliced_wasserstein'.",
                RuntimeWarning,
                stacklevel=2,
            )
        return self


@dataclass(frozen=True)
class ProbeSettings:
    """The fresh critic of a probe: `bayesdiv.objectives.LearnedRatio` with early stopping.

    Half of the rows train it, a quarter decides when to stop, a quarter judges. Numbers compare
    between fits under the same settings only: in many dimensions a critic that is free enough tells
    any two networks' codes apart, and then puts no fit before another.

    Attributes
    ----------
    hidden, quadratic, learning_rate, penalty
        As in `LearnedRatio`. With the squares among its inputs a critic is exact for Gaussians of
        diagonal covariances even with ``hidden=()``, and sees differences of spread in many
        dimensions from few rows.
    num_steps : int
        Of Adam on all training rows, at most.
    patience : int
        Looks, 20 steps apart, without a better one before it stops.
    max_rows : int or None
        Rows of a class that are used.
    seed : int
        Of the split and the starting weights.

    Raises
    ------
    ValueError
        A setting outside its domain.
    """

    hidden: tuple[int, ...] = (64, 64)
    quadratic: bool = True
    num_steps: int = 200
    learning_rate: float = 1e-3
    penalty: float = 0.02
    patience: int = 5
    max_rows: int | None = 4096
    seed: int = 0

    _STEPS_A_LOOK = 20

    def __post_init__(self) -> None:
        for name in ("num_steps", "patience", "max_rows"):
            value = getattr(self, name)
            if value is None and name == "max_rows":
                continue
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise ValueError(f"{name} must be an integer of at least 1, got {value!r}.")
        object.__setattr__(self, "hidden", tuple(self.hidden))
        self.ratio()

    def ratio(self) -> LearnedRatio:
        """The critic."""
        return LearnedRatio(
            "jensen_shannon",
            hidden=self.hidden,
            quadratic=self.quadratic,
            num_steps=min(self._STEPS_A_LOOK, self.num_steps),
            learning_rate=self.learning_rate,
            penalty=self.penalty,
        )


def probe_codes(
    p: torch.Tensor, q: torch.Tensor, settings: ProbeSettings | None = None
) -> CodeProbe:
    """Fit a fresh critic to rows of the prior, ``(n, dim)``, and of the codes, ``(m, dim)``.

    Rows must not be those that the model was fitted to, or the numbers flatter it. The global
    random generators are left alone.

    Raises
    ------
    ValueError
        Shapes that do not fit, fewer than 8 rows of a class, or rows that are not finite.

    Examples
    --------
    >>> import torch
    >>> generator = torch.Generator().manual_seed(0)
    >>> z = torch.randn(2, 4000, 1, generator=generator)
    >>> found = probe_codes(z[0], z[1] + 1.0, ProbeSettings(hidden=(), learning_rate=0.05))
    >>> bool(0.4 < found.reverse_kl < 0.6)  # KL(N(1, 1)‖N(0, 1)) = 0.5
    True
    """
    settings = ProbeSettings() if settings is None else settings
    for name, rows in (("p", p), ("q", q)):
        if rows.ndim != 2 or len(rows) < _LEAST_ROWS:
            raise ValueError(
                f"{name} must be rows of codes, shape (n, dim) with n at least {_LEAST_ROWS}, for "
                f"training, stopping and judging, got shape {tuple(rows.shape)}."
            )
    generator = torch.Generator().manual_seed(settings.seed)
    parts = [_split(rows.detach(), settings.max_rows, generator) for rows in (p, q)]
    (p_train, p_stop, p_judge), (q_train, q_stop, q_judge) = parts
    ratio, read = settings.ratio(), DensityRatio(classes="balanced", max_log_ratio=1e3)
    with torch.enable_grad():
        state = ratio.init(p_train, q_train, rng=settings.seed)
        best, best_loss, since = state, math.inf, 0
        for _ in range(-(-settings.num_steps // ratio.num_steps)):
            state, _ = ratio.step(state, p_train, q_train)
            loss = float(read.loss(ratio.log_ratio(state, p_stop), ratio.log_ratio(state, q_stop)))
            best, best_loss, since = (
                (state, loss, 0) if loss < best_loss else (best, best_loss, since + 1)
            )
            if since >= settings.patience:
                break
    at_p, at_q = (ratio.log_ratio(best, rows).detach() for rows in (p_judge, q_judge))
    judged = read.probe(at_p, at_q)
    return CodeProbe(
        reverse_kl=-float(at_q.mean()),
        forward_kl=float(at_p.mean()),
        jensen_shannon=judged.implied_jensen_shannon,
        reverse_kl_bound=float(read.value("reverse_kl", at_p, at_q)),
        accuracy=judged.accuracy,
        ratio=judged,
    )


def _split(
    rows: torch.Tensor, most: int | None, generator: torch.Generator
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    order = torch.randperm(len(rows), generator=generator)[:most].to(rows.device)
    half, quarter = len(order) // 2, len(order) // 4
    return rows[order[:half]], rows[order[half : half + quarter]], rows[order[half + quarter :]]


class CriticWatch:
    """Warns once where the critic's loss is that of chance while a fresh one tells codes apart."""

    def __init__(self, settings: ProbeSettings) -> None:
        self.settings = settings
        self.is_dead = False
        self.mean_loss = math.nan
        self.last_probe: CodeProbe | None = None
        self._losses: list[torch.Tensor] = []
        self._rows: deque[tuple[torch.Tensor, torch.Tensor]] = deque(maxlen=_BATCHES_KEPT)
        self._looks, self._next = 0, 1

    def look(self, loss: torch.Tensor, p: torch.Tensor, q: torch.Tensor) -> None:
        """Note one step's loss and rows; every hundredth reads them from the device."""
        self._losses.append(loss)
        self._rows.append((p, q))
        if len(self._losses) < WINDOW:
            return
        self.mean_loss = float(torch.stack(self._losses).mean())
        self._losses.clear()
        # A loss above chance is no better than one at chance.
        if self.is_dead or self.mean_loss <= CHANCE - _NEAR_CHANCE:
            return
        self._looks += 1
        if self._looks < self._next:
            return
        # Codes that match leave the loss here too; probing them ever again would cost for nothing.
        self._next = 2 * self._looks
        p_rows, q_rows = (torch.cat(each) for each in zip(*self._rows, strict=True))
        if len(p_rows) < _LEAST_ROWS:
            return
        self.last_probe = probe_codes(p_rows, q_rows, self.settings)
        if self.last_probe.separates:
            self.is_dead = True
            warnings.warn(
                f"the critic is dead: its loss was {self.mean_loss:.5f} on average over {WINDOW} "
                f"steps, not below chance, {CHANCE:.5f}, but a fresh critic tells prior and codes "
                f"apart with accuracy {self.last_probe.accuracy:.3f}. Codes are not being matched; "
                "take batch normalisation out of the critic, above all from its logit, give both "
                "classes in one batch, or raise critic_rate.",
                RuntimeWarning,
                stacklevel=5,
            )
