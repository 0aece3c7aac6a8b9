"""Settings of score distillation."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

from bayesdiv.divergences import FDivergence, get_divergence

SCALINGS = ("teacher_residual", "score")


@dataclass(frozen=True)
class DistillationSettings:
    r"""Which divergence, and how its weights are made fit for use.

    Attributes
    ----------
    divergence
        An f-divergence D_f(p‖q) of teacher p and student q, by name or object; it needs a path
        gradient.
    weighted : bool
        False leaves the weights at 1 without looking at any ratio: plain variational score
        distillation, which is what reverse KL is anyway.
    scaling : {"teacher_residual", "score"}
        What multiplies the difference of the denoised rows: 1/mean|x − D_T|, after Yin et al., or
        1/σ², which makes it the difference of scores and the gradient that of E_σ[D_f(p_σ‖q_σ)].
    batch_size : int
        Rows that the student draws.
    num_critic_steps : int
        Updates of fake score and critic before each of the student's.
    gan_weight : float
        Of softplus(−l) in the student's loss; at 0 the critic still learns.
    r1_weight : float
        Of (l(x) − l(x + 0.1 ε))² at real rows in the critic's loss.
    num_bins, ratio_decay : int, float
        Bins in log σ of the ratio's mean, and how much of it is kept from step to step.
    ratio_clip : tuple, None or "auto"
        Bounds of the ratio before it is normalised; "auto" is (0.1, 20) for a learnt ratio and
        none for an exact one.
    normalize_ratio, normalize_weight : bool
        Stage 1, by the bins' mean ratio, and stage 2, by the batch's mean weight.
    min_ess : float
        A step whose weights have a smaller effective sample size is skipped; 0 skips none.
    ema_decay : float
        Of the average of the student's parameters.
    debug : bool
        Raise at once where a ratio or score is not finite, rather than leave the row out.

    Raises
    ------
    ValueError
        A setting outside its domain, an unknown divergence, or one without path gradient; weights
        switched off for another divergence than reverse KL.
    TypeError
        A divergence between samples.

    References
    ----------
    Xu, Nie and Vahdat (2025), f-distill, §3 and table 1; Yin et al. (2024), DMD2.
    """

    divergence: Any = "reverse_kl"
    weighted: bool = True
    scaling: str = "teacher_residual"
    batch_size: int = 256
    num_critic_steps: int = 5
    gan_weight: float = 0.0
    r1_weight: float = 0.0
    num_bins: int = 10
    ratio_decay: float = 0.5
    ratio_clip: Any = "auto"
    normalize_ratio: bool = True
    normalize_weight: bool = True
    min_ess: float = 2.0
    ema_decay: float = 0.99
    debug: bool = False
    rule: FDivergence = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        rule = get_divergence(self.divergence)
        if not isinstance(rule, FDivergence):
            raise TypeError(
                f"divergence must be an f-divergence, got {rule!r}, which compares samples without "
                "a ratio; train the generator on it directly."
            )
        if not rule.has_path_gradient:
            raise ValueError(
                f"divergence must have a path gradient, got {rule!r}, whose f'' is a point mass at "
                "u = 1; use 'jensen_shannon' or 'squared_hellinger'."
            )
        if not self.weighted and rule.needs_normalizer:
            raise ValueError(
                f"weighted=False is reverse KL whatever the divergence says, got {rule!r}; pass "
                "divergence='reverse_kl' or weighted=True."
            )
        object.__setattr__(self, "rule", rule)
        if self.scaling not in SCALINGS:
            raise ValueError(
                f"scaling must be one of {', '.join(map(repr, SCALINGS))}, got {self.scaling!r}."
            )
        for name, least in (("batch_size", 1), ("num_critic_steps", 1), ("num_bins", 1)):
            count = getattr(self, name)
            if isinstance(count, bool) or not isinstance(count, int) or count < least:
                raise ValueError(
                    f"{name} must be a whole number of at least {least}, got {count!r}."
                )
        for name in ("gan_weight", "r1_weight", "min_ess"):
            if not 0.0 <= getattr(self, name) < math.inf:
                raise ValueError(
                    f"{name} must be finite and at least 0, got {getattr(self, name)!r}."
                )
        for name in ("ratio_decay", "ema_decay"):
            if not 0.0 <= getattr(self, name) < 1.0:
                raise ValueError(f"{name} must be in [0, 1), got {getattr(self, name)!r}.")
        self._check_clip()

    def _check_clip(self) -> None:
        clip = self.ratio_clip
        if clip is None or clip == "auto":
            return
        if not (isinstance(clip, tuple) and len(clip) == 2 and 0.0 < clip[0] < clip[1] < math.inf):
            raise ValueError(
                "ratio_clip must be a pair of positive bounds in increasing order, None or 'auto', "
                f"got {clip!r}."
            )

    def clip_for(self, *, exact: bool) -> tuple[float, float] | None:
        """The bounds in force."""
        if self.ratio_clip == "auto":
            return None if exact else (0.1, 20.0)
        return self.ratio_clip
