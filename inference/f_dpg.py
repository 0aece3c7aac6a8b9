"""f-DPG: a sequence model moved onto a target by the score gradient of any f-divergence."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import Any

import pyro
import torch

from bayesdiv._array import clip
from bayesdiv.divergences import FDivergence, ForwardKL, get_divergence
from bayesdiv.divergences._numeric import log_ratio_limit
from bayesdiv.inference._f_dpg_checks import (
    StepChecks,
    check_settings,
    checked_contexts,
    checked_proposal,
)
from bayesdiv.inference._f_dpg_weights import (
    ContextNormalizer,
    effective_share,
    mean_under_target,
)

__all__ = ["BASELINES", "FDPG", "policy_guide"]

BASELINES = ("auto", "analytic", "mean", "ema", "none")
_EMA_DECAY = 0.95


def policy_guide(policy: Any, name: str = "sequence") -> Callable[[], torch.Tensor]:
    """The policy as a Pyro guide: ``SVI(target, policy_guide(policy), optimiser, objective(
    "jensen_shannon", gradient="score", normalizer="running"))`` is f-DPG with baseline "mean".
    """

    def guide() -> torch.Tensor:
        pyro.module("policy", policy.network)
        if not policy.batch_shape:
            return pyro.sample(name, policy)
        with pyro.plate("contexts", policy.batch_shape[0], dim=-1):
            return pyro.sample(name, policy)

    return guide


class FDPG:
    r"""Minimise D_f(p‖π) over a policy π by policy gradient on the divergence's pseudo-reward.

    With l = log P(x) − log π(x) − log Z the surrogate is

    .. math:: -\frac1n \sum_i w_i (\mathrm{pseudo\_reward}(l_i) - b_i) \log\pi(x_i), \qquad
              x_i \sim q,\quad w_i = \pi(x_i)/q(x_i),

    everything but the last factor held fixed. The gradient is unbiased for every proposal q that
    covers π and every baseline here, as b stands inside the bracket; log Z is the mean of P/q over
    all steps, kept in log space, one for each context.

    A routine for `bayesdiv.training.train`; a batch is ``None``, or the numbers of the contexts
    ``(k,)`` of this step where target and policy have prompts.

    Parameters
    ----------
    target
        Has ``log_prob(value)`` (with ``contexts`` where it has prompts), unnormalised; for
        instance from `bayesdiv.models.sequence_targets`. −∞ is a value like others.
    policy
        `bayesdiv.pyro.distributions.AutoregressiveSequence` or alike: ``sample``, ``log_prob``
        with gradients, and the parameters of its ``network``. It is trained in place.
    divergence
        An f-divergence by name, or one of your own.
    parameters
        Of a named divergence.
    proposal
        ``"policy"``: q = π; ``"adaptive"``: q is a copy that follows π whenever π is nearer to the
        target in KL(p‖·), looked at every ``adapt_every`` steps; or a distribution that stays.
    num_samples
        Sequences a step, for each context.
    baseline
        ``"analytic"`` or ``"none"``: 0, the reward at p = π in this package's convention, for which
        nothing is left of the variance there; ``"mean"``: the weighted mean of the other samples;
        ``"ema"``: a moving average of earlier steps; ``"auto"``: analytic for forward KL, whose
        mean reward is 0, and else mean.
    optimiser
        Makes one from parameters; None for Adam with ``learning_rate``.
    max_gradient_norm
        Larger gradients are scaled down to it; None for never.
    max_log_ratio
        Truncates l from above, and with it the importance weights; the share is reported. None for
        the limit that keeps squares finite, 43 in single and 350 in double precision.
    zero_floor
        ε: sequences get at least the mass ε a(x), which changes the target; for divergences that
        are infinite where it has zeros. Needs a target with ``terms``.
    statistics
        Functions of sequences whose mean under π is reported, by name.
    num_attempts
        Samples in which to find a first sequence with P > 0.

    Attributes
    ----------
    log_normalizer
        log Z as estimated so far, a scalar or ``(num_contexts,)``.

    Raises
    ------
    ValueError
        A setting outside its domain; from a step: log P that is NaN or +∞ or of the wrong shape, a
        policy that is not normalised or has no gradient, a zero of the target under a divergence
        that is infinite there.
    TypeError
        A divergence between samples, a proposal without density, a batch that is no index.
    RuntimeError
        If the first ``num_attempts`` samples hold no sequence with P > 0.
    FloatingPointError
        If the gradient is not finite.

    References
    ----------
    Go, Korbak, Kruszewski, Rozen, Ryu and Dymetman (2023), theorem 1 and algorithm 1, whose ratio
    π/p is ours inverted; Khalifa, Elsahar and Dymetman (2021), for the proposal; Korbak, Elsahar,
    Kruszewski and Dymetman (2022), §3, for the baseline.
    """

    def __init__(
        self,
        target: Any,
        policy: Any,
        divergence: str | FDivergence = "jensen_shannon",
        *,
        parameters: Mapping[str, Any] | None = None,
        proposal: Any = "policy",
        num_samples: int = 512,
        baseline: str = "auto",
        learning_rate: float = 1e-3,
        optimiser: Callable[[Any], torch.optim.Optimizer] | None = None,
        max_gradient_norm: float | None = None,
        max_log_ratio: float | None = None,
        zero_floor: float | None = None,
        statistics: Mapping[str, Callable[[torch.Tensor], torch.Tensor]] | None = None,
        adapt_every: int = 16,
        num_attempts: int = 20,
    ) -> None:
        found = get_divergence(divergence, **(parameters or {}))
        if not isinstance(found, FDivergence):
            raise TypeError(
                f"divergence must be an f-divergence, got {found!r}, which compares samples and "
                "has no pseudo-reward."
            )
        if baseline == "auto":
            baseline = "analytic" if isinstance(found, ForwardKL) else "mean"
        check_settings(
            num_samples=num_samples,
            baseline=baseline,
            baselines=BASELINES,
            max_log_ratio=max_log_ratio,
            zero_floor=zero_floor,
            max_gradient_norm=max_gradient_norm,
            adapt_every=adapt_every,
            num_attempts=num_attempts,
        )
        if zero_floor is not None and not hasattr(target, "terms"):
            raise ValueError(
                "zero_floor needs a target whose terms() gives the base's log-probability, got "
                f"{type(target).__name__}."
            )
        base = getattr(target, "base", None)
        if getattr(base, "network", None) is policy.network:
            raise ValueError(
                "policy must have a network of its own, got the base's, which the target needs "
                "unchanged; pass base.trainable_copy()."
            )
        self.target, self.policy, self.divergence = target, policy, found
        self.num_samples, self.baseline = num_samples, baseline
        self.max_gradient_norm, self.max_log_ratio = max_gradient_norm, max_log_ratio
        self.zero_floor, self.statistics = zero_floor, dict(statistics or {})
        self.adapt_every, self.num_attempts = adapt_every, num_attempts
        self._parameters = list(policy.network.parameters())
        if optimiser is None:
            self.optimiser: Any = torch.optim.Adam(self._parameters, lr=learning_rate)
        else:
            self.optimiser = optimiser(self._parameters)
        self.proposal = self._make_proposal(proposal)
        self.is_adaptive = isinstance(proposal, str) and proposal == "adaptive"
        self._checks = StepChecks(found)
        self._normalizer = ContextNormalizer(tuple(policy.batch_shape), self._parameters[0].device)
        self._average = torch.zeros(2, dtype=torch.float64)
        self._num_steps = self._num_updates = 0

    def _make_proposal(self, proposal: Any) -> Any:
        """None for the policy itself."""
        if isinstance(proposal, str):
            if proposal not in ("policy", "adaptive"):
                raise ValueError(
                    f"proposal must be 'policy', 'adaptive' or a distribution, got {proposal!r}."
                )
            if proposal == "policy":
                return None
            frozen = copy.deepcopy(self.policy.network).requires_grad_(requires_grad=False)
            return self.policy.with_network(frozen)
        return checked_proposal(proposal)

    @property
    def log_normalizer(self) -> torch.Tensor:
        return self._normalizer.log_mean.clone()

    # One step

    def step(self, batch: torch.Tensor | None = None) -> dict[str, torch.Tensor]:
        """Sample, move the policy once, and report."""
        contexts = checked_contexts(batch)
        law = self.policy if contexts is None else self.policy.at(contexts)
        tokens, log_q, log_target = self._draw(contexts)
        log_policy = law.log_prob(tokens)
        if not log_policy.requires_grad:
            raise ValueError(
                "policy must have log-probabilities with a gradient, got none; call "
                "network.requires_grad_(), or pass base.trainable_copy()."
            )
        fixed = log_policy.detach()
        log_q = fixed if log_q is None else log_q
        log_z, normalizer = self._normalizer.look(log_target - log_q, contexts)
        seen = log_z > -torch.inf
        safe_z = torch.where(seen, log_z, torch.zeros_like(log_z)).to(fixed.dtype)
        log_ratio = log_target - fixed - safe_z
        inside, truncated = self._truncate(log_ratio)
        weight = (fixed - log_q).exp()
        reward = self.divergence.pseudo_reward(inside)
        advantage = weight * (reward - self._baseline(reward, weight))
        # Contexts without any sequence of positive mass so far have no target to move to.
        advantage = torch.where(seen, advantage, torch.zeros_like(advantage))
        share = seen.to(fixed.dtype).mean().clamp(min=1.0 / max(seen.numel(), 1))
        surrogate = -(advantage * log_policy).mean() / share
        self.optimiser.zero_grad()
        surrogate.backward()
        norm = self._gradient_norm()
        ess = effective_share(log_target - log_q)
        self._checks(tokens, log_target, fixed, log_ratio, norm=norm, ess=ess, truncated=truncated)
        self.optimiser.step()
        self._normalizer.keep(normalizer, contexts)
        self._after(reward, weight, log_target - log_q, fixed - log_q)
        value = weight * self._generator(inside, reward)
        nearness = mean_under_target(log_target - fixed, log_target - log_q)
        mean_log_z = safe_z.sum() / seen.sum().clamp(min=1)
        metrics = {
            "divergence": value.mean(),
            "log_normalizer": mean_log_z,
            "forward_kl": nearness - mean_log_z,
            "entropy": -(weight * fixed).mean(),
            "supported": (weight * (log_target > -torch.inf)).mean(),
            "ess": ess,
            "truncated": truncated,
            "mean_weight": weight.mean(),
            "gradient_norm": norm,
            "skipped_contexts": 1.0 - seen.double().mean(),
            "proposal_updates": torch.tensor(float(self._num_updates)),
        }
        for name, function in self.statistics.items():
            metrics[name] = (weight * function(tokens)).mean()
        return metrics

    def _truncate(self, log_ratio: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """l short of overflow, or of the limit asked for, and the share that was above."""
        if self.divergence.needs_normalizer:
            limit = log_ratio_limit(log_ratio)
            highest = limit if self.max_log_ratio is None else min(self.max_log_ratio, limit)
            return clip(log_ratio, -limit, highest), (log_ratio > highest).double().mean()
        # The reward of reverse KL is l itself, which nothing exponentiates.
        highest = torch.inf if self.max_log_ratio is None else self.max_log_ratio
        return log_ratio.clamp(max=highest), (log_ratio > highest).double().mean()

    def _generator(self, log_ratio: torch.Tensor, reward: torch.Tensor) -> torch.Tensor:
        """f(u), or without the part u − 1, whose mean is 0, where it alone would overflow."""
        if self.divergence.needs_normalizer:
            return self.divergence.generator(log_ratio)
        return -reward

    @torch.no_grad()
    def _draw(
        self, contexts: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor]:
        """Sequences, log q (None on-policy) and log P, until one has P > 0 if none ever had."""
        source = self.policy if self.proposal is None else self.proposal
        if contexts is not None:
            source = source.at(contexts)
        attempts = 0
        while True:
            tokens = source.sample((self.num_samples,))
            log_q = None if self.proposal is None else source.log_prob(tokens)
            log_target = self._log_target(tokens, contexts)
            # Only until the first is found, so that later steps need not wait for the device.
            if self._num_steps or bool((log_target != -torch.inf).any()):
                return tokens, log_q, log_target
            attempts += 1
            known = source.log_prob(tokens) if log_q is None else log_q
            self._normalizer.keep(self._normalizer.look(log_target - known, contexts)[1], contexts)
            if attempts >= self.num_attempts:
                raise RuntimeError(
                    f"the target has no mass on any of the first {attempts * self.num_samples} "
                    "samples, so that Z is estimated as 0 and nothing can be learnt; take larger "
                    "samples (num_samples), a proposal nearer to the target, or an easier target "
                    "first."
                )

    def _log_target(self, tokens: torch.Tensor, contexts: torch.Tensor | None) -> torch.Tensor:
        more = () if contexts is None else (contexts,)
        if self.zero_floor is None:
            log_target = self.target.log_prob(tokens, *more)
        else:
            log_base, log_factor = self.target.terms(tokens, *more)
            floor = torch.log(torch.as_tensor(self.zero_floor, dtype=torch.float64)).item()
            log_target = log_base + log_factor.clamp(min=floor)
        if not isinstance(log_target, torch.Tensor) or log_target.shape != tokens.shape[:-1]:
            got = getattr(log_target, "shape", type(log_target).__name__)
            raise ValueError(
                f"log P must have one number a sequence, shape {tuple(tokens.shape[:-1])}, got "
                f"{tuple(got) if isinstance(got, torch.Size) else got}."
            )
        return log_target.detach()

    def _baseline(self, reward: torch.Tensor, weight: torch.Tensor) -> Any:
        """Independent of each sample itself, hence without bias."""
        if self.baseline == "mean":
            weighted = weight * reward
            return (weighted.sum(0) - weighted) / (len(reward) - 1)
        if self.baseline == "ema":
            total, count = self._average.tolist()
            return total / count if count else 0.0
        return 0.0

    def _gradient_norm(self) -> torch.Tensor:
        gradients = [part.grad for part in self._parameters if part.grad is not None]
        if self.max_gradient_norm is None:
            return torch.nn.utils.get_total_norm(gradients)
        return torch.nn.utils.clip_grad_norm_(self._parameters, self.max_gradient_norm)

    def _after(
        self,
        reward: torch.Tensor,
        weight: torch.Tensor,
        log_weight: torch.Tensor,
        log_importance: torch.Tensor,
    ) -> None:
        self._num_steps += 1
        if self.baseline == "ema":
            fresh = torch.stack([(weight * reward).mean(), weight.mean() * 0.0 + 1.0])
            self._average.mul_(_EMA_DECAY).add_(fresh.to(self._average) * (1.0 - _EMA_DECAY))
        if not self.is_adaptive or self._num_steps % self.adapt_every:
            return
        # KL(p‖q) − KL(p‖π) = E_p[log π − log q]; by weights, without log Z.
        if bool(mean_under_target(log_importance, log_weight) > 0.0):
            self.proposal.network.load_state_dict(self.policy.network.state_dict())
            self._num_updates += 1

    # Checkpoints

    def state_dict(self) -> dict[str, Any]:
        """A copy of all that the next step depends on."""
        parts = {
            "policy": self.policy.network.state_dict(),
            "optimiser": self.optimiser.state_dict(),
            "normalizer": self._normalizer.state_dict(),
            "average": self._average,
            "num_steps": self._num_steps,
            "num_updates": self._num_updates,
        }
        if self.is_adaptive:
            parts["proposal"] = self.proposal.network.state_dict()
        return copy.deepcopy(parts)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from what `state_dict` gave."""
        state = copy.deepcopy(state)
        self.policy.network.load_state_dict(state["policy"])
        self.optimiser.load_state_dict(state["optimiser"])
        self._normalizer.load_state_dict(state["normalizer"])
        self._average = state["average"]
        self._num_steps, self._num_updates = state["num_steps"], state["num_updates"]
        if self.is_adaptive:
            self.proposal.network.load_state_dict(state["proposal"])
