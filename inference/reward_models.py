r"""Rewards for sequences: from demonstrations alone, from preferences, or in closed form.

================  =======================  =======================  ==============================
kind              positives                negatives                reward
================  =======================  =======================  ==============================
``"init_sft"``    the fine-tuned policy    the initial policy       logit of telling them apart
``"init_demo"``   demonstrations           the initial policy       the same
``"sft_demo"``    demonstrations           the fine-tuned policy    the same
``"preference"``  preferred of a pair      the other of the pair    Bradley and Terry's
``"log_ratio"``   -                        -                        log π_SFT(y) − log π_0(y)
================  =======================  =======================  ==============================

Demonstrations differ from a policy in ways that do not matter, and a critic that has seen them is
accurate for these; two policies of one family differ in what fine-tuning changed. The last kind is
what the first one learns at its optimum, without its smoothing.

Sun and van der Schaar (2024), Inverse-RLignment, §3.3.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

import torch

from bayesdiv.inference._imitation_checks import require
from bayesdiv.inference._reward_data import Classes, draw_classes, joined, split
from bayesdiv.objectives import DensityRatio, RatioCritic, RatioProbe
from bayesdiv.training import TensorBatches, train

__all__ = [
    "KINDS",
    "BradleyTerry",
    "RewardModel",
    "RewardSettings",
    "fit_reward_model",
    "log_ratio_reward",
    "shaped_token_rewards",
]

KINDS = ("init_sft", "init_demo", "sft_demo", "preference", "log_ratio")


@dataclass(frozen=True)
class RewardSettings:
    """How a reward model is fitted.

    Attributes
    ----------
    num_steps, batch_size, learning_rate, weight_decay
        Of AdamW; a batch has so many rows of either class.
    held_out : float
        Share of each class that is kept for stopping and for the probe.
    keep : {"best", "last"}
        Which step's critic is kept: that of the lowest held-out loss, or the last one.
    validate_every : int
        Steps between looks at the held-out loss.
    ratio
        Classes, label smoothing and clamp of the critic.

    Raises
    ------
    ValueError
        A setting outside its domain.
    """

    num_steps: int = 400
    batch_size: int = 128
    learning_rate: float = 3e-3
    weight_decay: float = 1e-2
    held_out: float = 0.1
    keep: str = "best"
    validate_every: int = 25
    ratio: DensityRatio = DensityRatio()

    def __post_init__(self) -> None:
        for name in ("num_steps", "batch_size", "validate_every"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise ValueError(f"{name} must be a whole number of at least 1, got {value!r}.")
        if not 0.0 < self.learning_rate < math.inf:
            raise ValueError(
                f"learning_rate must be positive and finite, got {self.learning_rate!r}."
            )
        if not 0.0 <= self.weight_decay < math.inf:
            raise ValueError(
                f"weight_decay must be finite and at least 0, got {self.weight_decay!r}."
            )
        if not 0.0 < self.held_out < 1.0:
            raise ValueError(f"held_out must be in (0, 1), got {self.held_out!r}.")
        if self.keep not in ("best", "last"):
            raise ValueError(f"keep must be 'best' or 'last', got {self.keep!r}.")


class RewardModel:
    """A reward ``(…)`` of token rows ``(…, max_length)``; `fit_reward_model` makes one.

    Attributes
    ----------
    kind : str
        One of ``KINDS``.
    critic
        The network behind it; None for the closed form.
    probe : RatioProbe or None
        What held-out rows said.
    """

    def __init__(
        self,
        kind: str,
        reward: Callable[[torch.Tensor], torch.Tensor],
        *,
        critic: Any = None,
        probe: RatioProbe | None = None,
        prompts: torch.Tensor | None = None,
    ) -> None:
        self.kind, self.critic, self.probe = kind, critic, probe
        self._reward, self._prompts = reward, prompts
        self._has_warned = False

    @torch.no_grad()
    def __call__(
        self, tokens: torch.Tensor, *, prompts: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Rewards, unclamped and without history.

        Parameters
        ----------
        tokens
            ``(…, max_length)``, responses only.
        prompts
            ``(prompts, prompt_length)``, where the model was fitted to responses to prompts: then
            ``tokens`` is ``(…, prompts, max_length)``. Warns, once, if any of them was trained on.
        """
        if prompts is not None:
            self._warn_of_leakage(prompts)
        rows = joined(tokens, prompts)
        if self.critic is None:
            return self._reward(tokens)
        return self._reward(rows.reshape(-1, rows.shape[-1])).reshape(tokens.shape[:-1])

    @torch.no_grad()
    def features(
        self, tokens: torch.Tensor, *, prompts: torch.Tensor | None = None
    ) -> torch.Tensor:
        """What the critic's head is linear in, ``(…, width)``, for a Bayesian head."""
        if not hasattr(self.critic, "features"):
            raise TypeError(
                f"a reward model of kind {self.kind!r} with critic {type(self.critic).__name__} "
                "has no features; use a critic that has, such as GRUCritic."
            )
        rows = joined(tokens, prompts)
        found = self.critic.features(rows.reshape(-1, rows.shape[-1]))
        return found.reshape(*tokens.shape[:-1], found.shape[-1])

    def _warn_of_leakage(self, prompts: torch.Tensor) -> None:
        if self._prompts is None or self._has_warned:
            return
        known = {tuple(row) for row in self._prompts.tolist()}
        repeated = sum(tuple(row) in known for row in prompts.tolist())
        if repeated:
            self._has_warned = True
            warnings.warn(
                f"{repeated} of {len(prompts)} prompts were in the reward model's training: what "
                "it says of them is too good. Keep prompts for evaluation apart.",
                RuntimeWarning,
                stacklevel=3,
            )


class BradleyTerry:
    """Fits rewards to preferences, P(y beats y') = σ(r(y) − r(y')); a routine for ``train``.

    ``step((preferred, dispreferred))`` takes rows ``(n, max_length)`` each.
    """

    def __init__(self, critic: Any, optimizer: torch.optim.Optimizer) -> None:
        self.critic, self.optimizer = critic, optimizer

    def loss(self, preferred: torch.Tensor, dispreferred: torch.Tensor) -> torch.Tensor:
        """Mean of softplus(r(y') − r(y)), nats."""
        rewards = self.critic(torch.cat([preferred, dispreferred]))
        gap = rewards[: len(preferred)] - rewards[len(preferred) :]
        return torch.nn.functional.softplus(-gap).mean()

    def step(self, batch: tuple[torch.Tensor, torch.Tensor]) -> dict[str, torch.Tensor]:
        """One optimiser step on pairs."""
        loss = self.loss(*batch)
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        return {"loss": loss.detach()}

    def state_dict(self) -> dict[str, Any]:
        """A copy of all that the next step depends on."""
        parts = {"critic": self.critic.state_dict(), "optimizer": self.optimizer.state_dict()}
        return deepcopy(parts)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from what `state_dict` gave."""
        self.critic.load_state_dict(state["critic"])
        self.optimizer.load_state_dict(deepcopy(state["optimizer"]))


def fit_reward_model(
    kind: str,
    critic: torch.nn.Module | None = None,
    *,
    initial: Any = None,
    student: Any = None,
    demonstrations: torch.Tensor | None = None,
    pairs: tuple[torch.Tensor, torch.Tensor] | None = None,
    num_samples: int = 3000,
    settings: RewardSettings | None = None,
    seed: int = 0,
    progress_bar: bool = False,
) -> RewardModel:
    """A reward model of one of five kinds; see the module for what each learns from.

    Parameters
    ----------
    kind
        One of ``KINDS``.
    critic
        From rows ``(n, time)`` to logits ``(n,)``, for example `GRUCritic` or `LinearCritic`; it is
        trained in place. Not for ``"log_ratio"``.
    initial, student
        π_0 and π_SFT, with ``sample`` and, for ``"log_ratio"``, ``log_prob``. If they have
        ``prompts``, critics read each response after its prompt.
    demonstrations
        ``(n, max_length)``, or ``(n, prompts, max_length)``.
    pairs
        ``(preferred, dispreferred)``, ``(n, max_length)`` each.
    num_samples
        Rows that are drawn from a policy where no demonstrations say how many.
    settings
        See `RewardSettings`.
    seed
        Of samples, splits and batches; torch's global generator is left as it was.
    progress_bar
        Whether the fit shows one.

    Raises
    ------
    ValueError
        An unknown kind; an ingredient that it lacks; policies that declare different settings of
        sampling (length, temperature, truncation) or other prompts; what `DensityRatio` raises.
    TypeError
        A policy without the methods that are needed.

    Warns
    -----
    RuntimeWarning
        Classes that are separable, or alike, as `RatioProbe.warn` says.
    """
    if kind not in KINDS:
        raise ValueError(f"kind must be one of {', '.join(map(repr, KINDS))}, got {kind!r}.")
    settings = RewardSettings() if settings is None else settings
    if kind == "log_ratio":
        return RewardModel(kind, log_ratio_reward(initial=initial, student=student))
    if critic is None:
        raise ValueError(f"critic is needed for kind={kind!r}, got None; pass a GRUCritic.")
    optimizer = torch.optim.AdamW(
        critic.parameters(), lr=settings.learning_rate, weight_decay=settings.weight_decay
    )
    if kind == "preference":
        if pairs is None:
            raise ValueError("pairs are needed for kind='preference', got None.")
        if pairs[0].shape != pairs[1].shape:
            raise ValueError(
                "pairs must have one shape, (n, max_length), got "
                f"{tuple(pairs[0].shape)} and {tuple(pairs[1].shape)}."
            )
        train(
            BradleyTerry(critic, optimizer),
            TensorBatches(*pairs, batch_size=settings.batch_size, seed=seed),
            num_steps=settings.num_steps,
            progress_bar=progress_bar,
            title="preferences",
        )
        return RewardModel(kind, critic, critic=critic)
    classes: Classes = draw_classes(
        kind,
        initial=initial,
        student=student,
        demonstrations=demonstrations,
        num_samples=num_samples,
        seed=seed,
    )
    positives, negatives = classes.positives, classes.negatives
    settings.ratio.check_counts(len(positives), len(negatives))
    training, held_out = zip(
        *(split(rows, settings.held_out, seed) for rows in (positives, negatives)), strict=True
    )
    routine = RatioCritic(
        critic,
        optimizer,
        ratio=settings.ratio,
        held_out=held_out,
        validate_every=settings.validate_every,
    )
    train(
        routine,
        _ClassBatches(*training, batch_size=settings.batch_size, seed=seed),
        num_steps=settings.num_steps,
        progress_bar=progress_bar,
        title=kind,
    )
    if settings.keep == "best":
        routine.restore_best()
    critic.eval()
    probe = routine.probe(*held_out).warn()
    offset = routine.offset
    return RewardModel(
        kind,
        lambda rows: critic(rows) - offset,
        critic=critic,
        probe=probe,
        prompts=classes.prompts,
    )


def log_ratio_reward(*, initial: Any, student: Any) -> Callable[[torch.Tensor], torch.Tensor]:
    """log π_SFT(y) − log π_0(y), the reward that needs no training, as a function of tokens."""
    for name, policy in (("student", student), ("initial", initial)):
        if policy is None:
            raise ValueError(f"{name} is needed for the log-ratio, got None.")
        require(policy, name, "log_prob")
    return lambda tokens: student.log_prob(tokens) - initial.log_prob(tokens)


def shaped_token_rewards(token_log_probs: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
    r"""Rewards of tokens that an autoregressive model implies: its logits as soft Q-values.

    .. math:: r_t = \log π(a_t|s_t) + V(s_t) - V(s_{t+1}), \qquad
              \sum_t r_t = \log π(y) + V(s_0) - V(s_T),

    V(s) the logsumexp of the logits in s: log π shaped by a potential.

    Parameters
    ----------
    token_log_probs
        ``(…, time)``, 0 at padding.
    values
        V of every state, the last one included, ``(…, time + 1)``.

    Raises
    ------
    ValueError
        Shapes that do not fit.

    References
    ----------
    Ng, Harada and Russell (1999), theorem 1.
    """
    expected = (*token_log_probs.shape[:-1], token_log_probs.shape[-1] + 1)
    if tuple(values.shape) != expected:
        raise ValueError(
            f"values must have one state more than there are tokens, shape {expected}, got "
            f"{tuple(values.shape)}."
        )
    return token_log_probs + values[..., :-1] - values[..., 1:]


class _ClassBatches:
    """A batch of either class; the smaller one goes round more often."""

    def __init__(
        self, positives: torch.Tensor, negatives: torch.Tensor, *, batch_size: int, seed: int
    ) -> None:
        self._classes = (positives, negatives)
        # Each class in its share of the counts, which the critic's offset takes off again.
        most = max(len(positives), len(negatives))
        self._sizes = [max(1, round(batch_size * len(rows) / most)) for rows in self._classes]
        self.generator = torch.Generator().manual_seed(seed)

    def __iter__(self) -> Any:
        orders = [torch.randperm(len(rows), generator=self.generator) for rows in self._classes]
        sizes = [min(size, len(rows)) for size, rows in zip(self._sizes, orders, strict=True)]
        count = min(len(rows) // size for size, rows in zip(sizes, orders, strict=True))
        for index in range(count):
            yield tuple(
                rows[order[index * size : (index + 1) * size]]
                for rows, order, size in zip(self._classes, orders, sizes, strict=True)
            )
