r"""A policy from demonstrations: supervised, or by any f-divergence through a log-ratio.

With d^E the expert's law of whole sequences, d^π the policy's and l = log d^E/d^π:

========================  ==========================================  ===========================
routine                   minimises                                   needs of the expert
========================  ==========================================  ===========================
`SupervisedFineTuning`    KL(d^E‖d^π); weighted by position, the KL   demonstrations
                          of state–action occupancies
`AdversarialImitation`    D_f(d^E‖d^π) by a learnt l                  demonstrations
`OracleImitation`         D_f(d^E‖d^π) by the exact l                 a density, known up to log Z
========================  ==========================================  ===========================

The last two are score-function gradients, −E_π[pseudo_reward(l) ∇log π], which are ∇D_f exactly
where l is right. They are routines for `bayesdiv.training.train`. A policy is an object with
``sample((n,))`` → tokens ``(n, max_length)``, ``log_prob(tokens)``, ``token_log_probs(tokens)`` and
``mask(tokens)``, such as `bayesdiv.pyro.distributions.AutoregressiveSequence`.
"""

from __future__ import annotations

from typing import Any

import torch

from bayesdiv.inference._demonstrations import Demonstrations, prepare_demonstrations
from bayesdiv.inference._imitation_checks import check_finite, require
from bayesdiv.inference._policy_routine import PolicyRoutine
from bayesdiv.inference._ratio_imitation import AdversarialImitation, OracleImitation

__all__ = [
    "AdversarialImitation",
    "Demonstrations",
    "OracleImitation",
    "SupervisedFineTuning",
    "get_imitation",
    "position_weights",
    "prepare_demonstrations",
]

WEIGHTS = ("uniform", "occupancy")


def position_weights(max_length: int, *, discount: float = 1.0) -> torch.Tensor:
    r"""What turns maximum likelihood into the KL of occupancies, ``(max_length,)``, float64.

    .. math:: w_t = \frac{\sum_{k \ge t} γ^k}{\sum_{k \ge 0} γ^k}, \qquad
              w_t = (T - t)/T \text{ at } γ = 1,

    t = 0, …, T − 1: an early token is part of all later states.

    Raises
    ------
    ValueError
        ``discount`` outside (0, 1] or ``max_length`` below 1.

    References
    ----------
    Sun (2024), Supervised fine-tuning as inverse reinforcement learning, §3.

    Examples
    --------
    >>> position_weights(4).tolist()
    [1.0, 0.75, 0.5, 0.25]
    """
    if isinstance(max_length, bool) or not isinstance(max_length, int) or max_length < 1:
        raise ValueError(f"max_length must be a whole number of at least 1, got {max_length!r}.")
    if not 0.0 < discount <= 1.0:
        raise ValueError(f"discount must be in (0, 1], got {discount!r}.")
    powers = discount ** torch.arange(max_length, dtype=torch.float64)
    return powers.flip(0).cumsum(0).flip(0) / powers.sum()


class SupervisedFineTuning(PolicyRoutine):
    r"""Maximum likelihood of demonstrations: KL(d^E‖d^π) up to the expert's entropy.

    .. math:: L = -\frac1B \sum_i \sum_t w_t\, m_{it} \log π(a_{it} | s_{it})

    is summed over the tokens of a sequence and averaged over sequences; a mean over tokens is
    another objective, which counts long demonstrations less. L − H(d^E) is the divergence, so that
    a perplexity by itself is not.

    Parameters
    ----------
    policy
        What is trained.
    optimizer
        Of its parameters.
    weights
        ``"uniform"``, w = 1, or ``"occupancy"``: see `position_weights`.
    discount
        γ of the occupancy.

    Raises
    ------
    ValueError
        An unknown weighting; a discount outside (0, 1], or one with uniform weights.

    References
    ----------
    Sun (2024), Supervised fine-tuning as inverse reinforcement learning, §3; Sun and van der Schaar
    (2024), Inverse-RLignment, §3.2.

    Examples
    --------
    >>> from bayesdiv.nn.sequences_torch import MarkovTable
    >>> from bayesdiv.pyro.distributions import AutoregressiveSequence
    >>> policy = AutoregressiveSequence(MarkovTable(torch.zeros(4, 3)), 5, end=0)
    >>> optimizer = torch.optim.Adam(policy.network.parameters(), lr=0.1)
    >>> routine = SupervisedFineTuning(policy, optimizer)
    >>> demonstrations = torch.tensor([[1, 2, 1, 0, 0], [1, 2, 0, 0, 0]])
    >>> losses = [float(routine.step(demonstrations)["loss"]) for _ in range(100)]
    >>> losses[-1] < 0.5 * losses[0]
    True
    """

    def __init__(
        self,
        policy: Any,
        optimizer: torch.optim.Optimizer,
        *,
        weights: str = "uniform",
        discount: float = 1.0,
    ) -> None:
        if weights not in WEIGHTS:
            known = ", ".join(map(repr, WEIGHTS))
            raise ValueError(f"weights must be one of {known}, got {weights!r}.")
        position_weights(1, discount=discount)
        if weights == "uniform" and discount != 1.0:
            raise ValueError(f"discount belongs to weights='occupancy', got {discount!r}.")
        require(policy, "policy", "token_log_probs", "mask")
        super().__init__(policy, optimizer)
        self.weights, self.discount = weights, discount

    def loss(self, demonstrations: torch.Tensor) -> torch.Tensor:
        """L at ``demonstrations``, ``(n, max_length)``: nats a sequence, with gradients."""
        scores = self.policy.token_log_probs(demonstrations)
        scores = torch.where(self.policy.mask(demonstrations), scores, torch.zeros_like(scores))
        if self.weights == "occupancy":
            scores = scores * position_weights(scores.shape[-1], discount=self.discount).to(scores)
        return -scores.sum(-1).mean()

    def step(self, batch: torch.Tensor) -> dict[str, torch.Tensor]:
        """One optimiser step on ``batch``, ``(n, max_length)``; the loss in nats a sequence."""
        loss = self.loss(batch)
        check_finite(loss, self.num_steps + 1)
        self._descend(loss)
        self.num_steps += 1
        return {"loss": loss.detach()}


_OBJECTIVES = {
    "sft": SupervisedFineTuning,
    "occupancy_sft": SupervisedFineTuning,
    "adversarial": AdversarialImitation,
    "oracle": OracleImitation,
}


def get_imitation(objective: str, *arguments: Any, **settings: Any) -> Any:
    """A routine by name: "sft", "occupancy_sft", "adversarial" or "oracle".

    Arguments are those of the routine: policy, optimiser, then the critic or the expert.

    Raises
    ------
    ValueError
        An unknown name, and what the routine raises.
    """
    if objective not in _OBJECTIVES:
        known = ", ".join(map(repr, _OBJECTIVES))
        raise ValueError(f"objective must be one of {known}, got {objective!r}.")
    if objective == "occupancy_sft":
        settings = {"weights": "occupancy", **settings}
    return _OBJECTIVES[objective](*arguments, **settings)
