"""Rates, counts and watches of adversarial inference, and what its arguments may be together."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

from bayesdiv.divergences import FDivergence, get_divergence
from bayesdiv.inference._adversarial_probe import ProbeSettings
from bayesdiv.objectives import DensityRatio

MATCHES = ("aggregate", "conditional", "paired")
UPDATES = ("separate", "joint")
DEFAULT_DIVERGENCE = "softened_reverse_kl"


@dataclass(frozen=True)
class AdversarialSettings:
    r"""How the networks of `AdversarialInference` are trained.

    Attributes
    ----------
    updates : {None, "separate", "joint"}
        "separate": one Adam for the reconstruction, another for the guide's adversarial step, as
        published; Adam takes no notice of a factor in its loss, so the weight multiplies
        ``encoder_rate``. "joint": one Adam on the sum. None: joint where the log-ratio is exact or
        codes are paired, separate otherwise.
    num_critic_steps : int
        Of the critic, before each step of the guide; 0 only where the weight is 0.
    critic_rate, encoder_rate, reconstruction_rate : float
        Adam's; the first two with moments (0.5, 0.999), the last with (0.9, 0.999).
    num_decay_steps : int or None
        Steps over which both rates of the guide fall to 0 along half a cosine; None keeps them. If
        the reconstruction's fell alone, as was published, the adversarial step would have the last
        word, and undo it.
    ratio : DensityRatio
        The critic's loss, and the clamp of the log-ratio in the weights.
    probe : ProbeSettings
        Of the fresh critic that judges codes.
    seed : int
        Of the critic's start. All else is drawn from torch's global generator.

    Raises
    ------
    ValueError
        A setting outside its domain.
    TypeError
        ``ratio`` or ``probe`` of another kind.
    """

    updates: str | None = None
    num_critic_steps: int = 1
    critic_rate: float = 1e-3
    encoder_rate: float = 2e-4
    reconstruction_rate: float = 2e-3
    num_decay_steps: int | None = None
    ratio: DensityRatio = field(default_factory=lambda: DensityRatio(classes="balanced"))
    probe: ProbeSettings = field(default_factory=ProbeSettings)
    seed: int = 0

    def __post_init__(self) -> None:
        if self.updates not in (None, *UPDATES):
            raise ValueError(f"updates must be 'separate', 'joint' or None, got {self.updates!r}.")
        for name, least in (("num_critic_steps", 0), ("num_decay_steps", 1)):
            value = getattr(self, name)
            if value is None and name == "num_decay_steps":
                continue
            if isinstance(value, bool) or not isinstance(value, int) or value < least:
                raise ValueError(f"{name} must be an integer of at least {least}, got {value!r}.")
        for name in ("critic_rate", "encoder_rate", "reconstruction_rate"):
            if not 0.0 < getattr(self, name) < math.inf:
                raise ValueError(
                    f"{name} must be positive and finite, got {getattr(self, name)!r}."
                )
        for name, kind in (("ratio", DensityRatio), ("probe", ProbeSettings)):
            if not isinstance(getattr(self, name), kind):
                raise TypeError(
                    f"{name} must be a {kind.__name__}, got {type(getattr(self, name)).__name__}."
                )

    def decay(self, num_steps: int) -> float:
        """What multiplies the rates of guide and model after so many steps."""
        if self.num_decay_steps is None:
            return 1.0
        return 0.5 * (1.0 + math.cos(math.pi * min(1.0, num_steps / self.num_decay_steps)))


def resolve_divergence(divergence: Any, match: str | None) -> Any:
    """The divergence object, None for paired codes; raises where it cannot serve."""
    if match == "paired":
        if divergence is not None:
            raise ValueError(
                "divergence must be None with match='paired', which takes the squared distance of "
                f"each code to its own; got {divergence!r}."
            )
        return None
    rule = get_divergence(DEFAULT_DIVERGENCE if divergence is None else divergence)
    if isinstance(rule, FDivergence) and not rule.has_path_gradient:
        raise ValueError(
            f"divergence must have a path gradient, got {rule!r}, whose gradient through samples "
            "is zero almost everywhere; use 'jensen_shannon', which is bounded too."
        )
    return rule


def check_arguments(
    match: str | None, weight: float, context: Any, settings: AdversarialSettings
) -> None:
    """Refuse arguments that do not go together."""
    if match not in (None, *MATCHES):
        raise ValueError(
            f"match must be one of {', '.join(map(repr, MATCHES))}, or None, got {match!r}."
        )
    if not 0.0 <= weight < math.inf:
        raise ValueError(f"weight must be finite and at least 0, got {weight!r}.")
    if settings.num_critic_steps == 0 and weight > 0.0:
        raise ValueError(
            "num_critic_steps may be 0 only with weight=0, where nobody asks the critic, got "
            f"weight={weight!r}."
        )
    if context is not None and match != "conditional":
        raise ValueError(
            "context is what a critic sees beside each code with match='conditional', got it with "
            f"match={match!r}."
        )
    if context is not None and not callable(context):
        raise TypeError(
            "context must be a function of the batch's arguments that returns rows (n, ...), got "
            f"{type(context).__name__}."
        )
