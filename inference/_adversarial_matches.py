"""Ways to compare codes with the prior: by a critic, exactly, by samples, or pair by pair."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any, NamedTuple, Protocol

import torch

from bayesdiv.divergences import FDivergence, ReverseKL, TwoSampleDivergence
from bayesdiv.inference._adversarial_critic import make_critic
from bayesdiv.inference._adversarial_probe import CriticWatch
from bayesdiv.inference._adversarial_settings import AdversarialSettings
from bayesdiv.inference._adversarial_sites import Batch, is_pooled
from bayesdiv.inference._adversarial_state import guard
from bayesdiv.inference._nested_tensors import filled, leaves_of
from bayesdiv.objectives import RatioCritic, estimate
from bayesdiv.objectives._samples import Pair, compare
from bayesdiv.pyro._frozen import FrozenGuide

ADVERSARIAL_BETAS = (0.5, 0.999)


class Compared(NamedTuple):
    """The divergence's value, what to differentiate for it, and metrics of its own."""

    value: torch.Tensor
    surrogate: torch.Tensor
    metrics: dict[str, torch.Tensor]


class Match(Protocol):
    """Compares the codes of a batch with the prior; None as a state is that of the start."""

    access: str

    def __call__(self, batch: Batch) -> Compared: ...

    def state_dict(self) -> Any: ...

    def load_state_dict(self, state: Any) -> None: ...


class _Stateless:
    def state_dict(self) -> Any:
        return None

    def load_state_dict(self, state: Any) -> None:
        pass


class LearnedMatch:
    r"""D_f(p*‖q) by a critic of logit l ≈ log p*/q, with the layer's path gradient.

    The weights are those of l within the clamp, the slopes those of l itself: with slopes of the
    clamped l, codes far from the prior would never come back.
    """

    access = "learned"

    def __init__(
        self, divergence: FDivergence, critic: Any, settings: AdversarialSettings, batch: Batch
    ) -> None:
        rows = batch.beside(batch.codes).detach()
        network = make_critic(critic, rows, settings.seed)
        optimizer = torch.optim.Adam(
            network.parameters(), lr=settings.critic_rate, betas=ADVERSARIAL_BETAS
        )
        guard(optimizer, "the critic")
        self.divergence = divergence
        self.critic = RatioCritic(network, optimizer, ratio=settings.ratio)
        self.watch = CriticWatch(settings.probe)
        self._num_steps = settings.num_critic_steps
        self._start = self.state_dict()

    def __call__(self, batch: Batch) -> Compared:
        q = batch.beside(batch.codes)
        fixed, metrics = q.detach(), {}
        for _ in range(self._num_steps):
            p = batch.beside(batch.draw_prior())
            seen = self.critic.step((p, fixed))
            metrics = {
                "critic_loss": seen["loss"],
                "implied_jensen_shannon": seen["implied_jensen_shannon"],
            }
        if metrics:
            self.watch.look(metrics["critic_loss"], p, fixed)
        logits = self.critic.critic(q) - self.critic.offset
        clamped = self.critic.ratio.log_ratio(logits.detach()).log_ratio
        log_ratio = clamped + (logits - logits.detach())
        found = estimate(self.divergence, log_ratio, gradient="path", log_normalizer=0.0)
        return Compared(found.value, found.surrogate, metrics)

    def state_dict(self) -> Any:
        return self.critic.state_dict()

    def load_state_dict(self, state: Mapping[str, Any] | None) -> None:
        self.critic.load_state_dict(self._start if state is None else state)


class ExactMatch(_Stateless):
    """E_x D_f(p(z)‖q(z|x)) from densities, with the gradient of ``objective(...)``."""

    access = "exact"

    def __init__(self, divergence: FDivergence, guide: Any) -> None:
        self.divergence, self.guide = divergence, guide
        # Reverse KL as the host's evidence bound differentiates it.
        self._frozen = None if isinstance(divergence, ReverseKL) else FrozenGuide()

    def __call__(self, batch: Batch) -> Compared:
        log_ratio, gradient = batch.exact_log_ratio(self.guide, self._frozen)
        found = estimate(
            self.divergence,
            log_ratio,
            gradient=gradient,
            log_normalizer=0.0,
            scale=len(log_ratio) / batch.layout.size,
        )
        return Compared(found.value, found.surrogate, {})


class SampleMatch:
    """A divergence of two samples, its slices kept from step to step where it learns them."""

    access = "samples"

    def __init__(self, divergence: TwoSampleDivergence, batch: Batch, seed: int) -> None:
        self.divergence = divergence
        self._inner: Any = None
        if type(divergence).init is not TwoSampleDivergence.init:
            rows = batch.beside(batch.codes).detach()
            self._inner = divergence.init(rows, rows, rng=seed)
        self._start = copy.deepcopy(self.state_dict())

    def __call__(self, batch: Batch) -> Compared:
        pair = Pair(batch.beside(batch.draw_prior()), batch.beside(batch.codes))
        value, self._inner = compare(self.divergence, pair, state=self._inner)
        return Compared(value, value, {})

    def state_dict(self) -> Any:
        return None if self._inner is None else [leaf.clone() for leaf in leaves_of(self._inner)]

    def load_state_dict(self, state: Any) -> None:
        leaves = self._start if state is None else state
        if self._inner is not None:
            self._inner = filled(self._inner, iter([leaf.clone() for leaf in leaves]))


class PairedMatch(_Stateless):
    """E|z − z*|², z* the prior's draw of the same row."""

    access = "paired"

    def __call__(self, batch: Batch) -> Compared:
        distance = (batch.codes - batch.draw_prior()).square().sum(1).mean()
        return Compared(distance, distance, {})


def make_match(
    batch: Batch,
    guide: Any,
    *,
    match: str | None,
    divergence: Any,
    context: Any,
    critic: Any,
    settings: AdversarialSettings,
) -> tuple[str, Match]:
    """How codes are matched, by name, and what does it.

    Raises
    ------
    ValueError
        Pooled draws with "paired"; "conditional" without context or densities.
    """
    layout = batch.layout
    if match == "paired":
        pooled = [name for name in layout.matched if is_pooled(batch.model_trace, name)]
        if pooled:
            raise ValueError(
                f"match='paired' needs the prior's code of each row, but site {pooled[0]!r} draws "
                "any row of its pool; sample Delta(encoder(x), event_dim=1) in the model, or use "
                "match='aggregate'."
            )
        return match, PairedMatch()
    is_f = isinstance(divergence, FDivergence)
    if match is None:
        match = "conditional" if layout.explicit and is_f else "aggregate"
    if match == "conditional" and context is None:
        if not (layout.explicit and is_f):
            raise ValueError(
                "match='conditional' needs context=, a function of the batch's arguments, unless "
                "every code has a density in model and guide and the divergence is an "
                f"f-divergence; got codes {list(layout.codes)} and {divergence!r}."
            )
        return match, ExactMatch(divergence, guide)
    if is_f:
        return match, LearnedMatch(divergence, critic, settings, batch)
    return match, SampleMatch(divergence, batch, settings.seed)
