"""Imitation by the log-ratio of expert to policy, learnt or exact, under any f-divergence."""

from __future__ import annotations

import math
from typing import Any

import torch

from bayesdiv.divergences import FDivergence, get_divergence
from bayesdiv.inference._imitation_checks import Watch, check_finite, require
from bayesdiv.inference._policy_routine import PolicyRoutine
from bayesdiv.objectives import RatioCritic, estimate
from bayesdiv.objectives._normalizer import RunningNormalizer, get_normalizer


class _ByLogRatio(PolicyRoutine):
    """What the two policy-gradient routines share: the divergence, the surrogate, the watch."""

    def __init__(
        self, policy: Any, optimizer: torch.optim.Optimizer, *, divergence: Any, num_samples: int
    ) -> None:
        require(policy, "policy", "sample", "log_prob")
        rule = get_divergence(divergence)
        if not isinstance(rule, FDivergence):
            raise TypeError(
                f"divergence must be an f-divergence, got {rule!r}, which compares samples without "
                "a ratio."
            )
        if isinstance(num_samples, bool) or not isinstance(num_samples, int) or num_samples < 2:
            raise ValueError(
                "num_samples must be a whole number of at least 2, for the leave-one-out baseline, "
                f"got {num_samples!r}."
            )
        super().__init__(policy, optimizer)
        self.divergence, self.num_samples = rule, num_samples
        self._watch = Watch()

    def _roll_out(self, count: int) -> torch.Tensor:
        with torch.no_grad():
            return self.policy.sample((count,))

    def _improve(
        self,
        tokens: torch.Tensor,
        log_prob: torch.Tensor,
        log_ratio: torch.Tensor,
        *,
        log_normalizer: Any,
        saturated: torch.Tensor | None = None,
        penalty: torch.Tensor | float = 0.0,
    ) -> dict[str, torch.Tensor]:
        found = estimate(
            self.divergence,
            log_ratio.to(log_prob.dtype),
            gradient="score",
            log_q=log_prob,
            log_normalizer=log_normalizer,
        )
        loss = found.surrogate + penalty
        check_finite(loss, self.num_steps + 1, log_ratio)
        self._descend(loss)
        entropy = -log_prob.detach().mean()
        self._watch.look(entropy, saturated)
        return {"divergence": found.value, "entropy": entropy, "log_ratio": log_ratio.mean()}


class AdversarialImitation(_ByLogRatio):
    r"""Policy gradient on the pseudo-reward of a divergence, the log-ratio learnt by a critic.

    A step draws fresh roll-outs, takes ``num_critic_steps`` of the critic on demonstrations
    against roll-outs, then one of the policy along

    .. math:: -E_{y∼π}[(\mathrm{pseudo\_reward}(l(y)) - b)\, ∇\log π(y)],

    b the mean reward of the other roll-outs. Reverse KL gives the reward l (AIRL's),
    Jensen–Shannon ½(softplus(l) − log 2) (GAIL's), total variation ½ sign(l). The value
    −l eˡ ("FAIRL") is no gradient of the forward KL and is not offered; that is eˡ − 1.

    Sequences are rewarded as wholes, at their end: a reward for each token, all of one sign, would
    reward length.

    Parameters
    ----------
    policy
        What is trained, best from a warm start (a few hundred steps of `SupervisedFineTuning`):
        from scratch a critic separates at once.
    optimizer
        Of its parameters.
    critic
        `bayesdiv.objectives.RatioCritic`; its log-ratio is clamped to ± its ``max_log_ratio``.
    divergence
        An f-divergence D_f(d^E‖d^π), by name or object.
    num_samples
        Roll-outs of the policy's step; the critic sees as many as demonstrations.
    num_critic_steps
        Critic steps before each policy step.
    num_critic_only
        First steps in which only the critic learns.
    anchor, anchor_weight
        A policy, usually the warm start, and what multiplies KL(π‖anchor) beside the divergence.

    Raises
    ------
    ValueError
        A count below 1, a negative weight, or a weight without an anchor.
    TypeError
        A policy that cannot be sampled and scored, or a critic of another kind.
    FloatingPointError
        If a reward or a loss is not finite.

    Warns
    -----
    RuntimeWarning
        Once each: more than half of the roll-outs at the clamp for 20 steps; the policy's entropy
        below a quarter of what it was at first.

    References
    ----------
    Sun and van der Schaar (2024), Inverse-RLignment, §3; Ho and Ermon (2016); Go et al. (2023),
    theorem 1, for the gradient.
    """

    def __init__(
        self,
        policy: Any,
        optimizer: torch.optim.Optimizer,
        critic: RatioCritic,
        *,
        divergence: Any = "jensen_shannon",
        num_samples: int = 256,
        num_critic_steps: int = 1,
        num_critic_only: int = 0,
        anchor: Any = None,
        anchor_weight: float = 0.0,
    ) -> None:
        super().__init__(policy, optimizer, divergence=divergence, num_samples=num_samples)
        if not isinstance(critic, RatioCritic):
            raise TypeError(f"critic must be a RatioCritic, got {type(critic).__name__}.")
        for name, value, least in (
            ("num_critic_steps", num_critic_steps, 1),
            ("num_critic_only", num_critic_only, 0),
        ):
            if isinstance(value, bool) or not isinstance(value, int) or value < least:
                raise ValueError(
                    f"{name} must be a whole number of at least {least}, got {value!r}."
                )
        if not 0.0 <= anchor_weight < math.inf or (anchor_weight and anchor is None):
            raise ValueError(
                "anchor_weight must be finite and at least 0, and needs an anchor where it is "
                f"positive, got {anchor_weight!r} with anchor={anchor!r}."
            )
        self.critic = critic
        self.num_critic_steps, self.num_critic_only = num_critic_steps, num_critic_only
        self.anchor, self.anchor_weight = anchor, anchor_weight

    def step(self, batch: torch.Tensor) -> dict[str, torch.Tensor]:
        """One step on demonstrations ``(n, max_length)``.

        ``divergence`` is its estimate from the roll-outs, ``implied_jensen_shannon`` the critic's.
        """
        for _ in range(self.num_critic_steps):
            seen = self.critic.step((batch, self._roll_out(len(batch))))
        tokens = self._roll_out(self.num_samples)
        read = self.critic.log_ratio(tokens)
        if self.num_steps < self.num_critic_only:
            with torch.no_grad():
                log_prob = self.policy.log_prob(tokens)
                value = self.divergence.generator(read.log_ratio).mean()
            found = {
                "divergence": value,
                "entropy": -log_prob.mean(),
                "log_ratio": read.log_ratio.mean(),
            }
        else:
            log_prob = self.policy.log_prob(tokens)
            found = self._improve(
                tokens,
                log_prob,
                read.log_ratio,
                log_normalizer=0.0,
                saturated=read.saturated,
                penalty=self._pull(tokens, log_prob),
            )
        self.num_steps += 1
        return {
            **found,
            "saturated": read.saturated,
            "critic_loss": seen["loss"],
            "implied_jensen_shannon": seen["implied_jensen_shannon"],
        }

    def _pull(self, tokens: torch.Tensor, log_prob: torch.Tensor) -> torch.Tensor | float:
        """A surrogate of the anchor's KL."""
        if not self.anchor_weight:
            return 0.0
        with torch.no_grad():
            log_ratio = self.anchor.log_prob(tokens) - log_prob
        pull = estimate("reverse_kl", log_ratio, gradient="score", log_q=log_prob)
        return self.anchor_weight * pull.surrogate

    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "critic": self.critic.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        super().load_state_dict(state)
        self.critic.load_state_dict(state["critic"])


class OracleImitation(_ByLogRatio):
    r"""The same gradient with the exact log-ratio of an expert that can be scored: f-DPG.

    Tells what the divergence does from what the critic's errors do.

    Parameters
    ----------
    policy, optimizer, divergence, num_samples
        As in `AdversarialImitation`.
    expert
        An object with ``log_prob(tokens)``, ``(n,)``, −∞ where the expert never goes.
    normalizer
        log Z of the expert: 0 if normalised, a number, ``"self"`` or ``"running"``.
    floor
        The expert's probability is taken for at least this share of the policy's; needed by
        divergences that are infinite where the expert has no mass, if it has none somewhere.

    Raises
    ------
    TypeError
        An expert without ``log_prob``, or a policy that cannot be sampled and scored.
    ValueError
        A setting outside its domain; an expert without mass at a roll-out under such a divergence
        and no floor.
    FloatingPointError
        If a reward or a loss is not finite.
    """

    def __init__(
        self,
        policy: Any,
        optimizer: torch.optim.Optimizer,
        expert: Any,
        *,
        divergence: Any = "jensen_shannon",
        num_samples: int = 256,
        normalizer: Any = 0.0,
        floor: float | None = None,
    ) -> None:
        if not callable(getattr(expert, "log_prob", None)):
            raise TypeError(
                f"expert has no log_prob, got {type(expert).__name__}; use an adversarial "
                "objective."
            )
        super().__init__(policy, optimizer, divergence=divergence, num_samples=num_samples)
        if floor is not None and not 0.0 < floor < 1.0:
            raise ValueError(f"floor must be in (0, 1) or None, got {floor!r}.")
        self.expert, self.floor = expert, floor
        self.normalizer = get_normalizer(normalizer)
        self._log_z: Any = None
        if isinstance(self.normalizer, RunningNormalizer):
            self._log_z = self.normalizer.init()

    def step(self, batch: Any = None) -> dict[str, torch.Tensor]:
        """One step on fresh roll-outs; ``batch`` is not looked at."""
        tokens = self._roll_out(self.num_samples)
        log_prob = self.policy.log_prob(tokens)
        with torch.no_grad():
            log_weight = self.expert.log_prob(tokens) - log_prob
        log_z, self._log_z = self.normalizer(self._log_z, log_weight)
        if self.floor is not None:
            log_weight = log_weight.clamp(min=math.log(self.floor) + float(log_z))
        elif self.divergence.value_at_zero == math.inf and bool((log_weight == -math.inf).any()):
            row = int((log_weight == -math.inf).nonzero()[0])
            raise ValueError(
                f"{self.divergence!r} is infinite where the expert has no mass, as at the roll-out "
                f"{tokens[row].tolist()}; pass floor=, or a divergence that is not, such as "
                "'jensen_shannon'."
            )
        found = self._improve(tokens, log_prob, log_weight, log_normalizer=log_z)
        self.num_steps += 1
        shown = torch.where(log_weight == -math.inf, torch.zeros_like(log_weight), log_weight)
        return {**found, "log_ratio": shown.mean() - log_z}

    def state_dict(self) -> dict[str, Any]:
        log_z = None if self._log_z is None else [float(each) for each in self._log_z]
        return {**super().state_dict(), "log_normalizer": log_z}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        super().load_state_dict(state)
        if state["log_normalizer"] is not None:
            self._log_z = type(self._log_z)(*state["log_normalizer"])
