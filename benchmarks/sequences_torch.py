"""Autoregressive sequences in torch: sampling with a cache, and a step of f-DPG."""

from __future__ import annotations

import copy
import functools
import math
from collections.abc import Callable
from typing import Any

import torch

from bayesdiv.divergences import get_divergence
from bayesdiv.inference.f_dpg import FDPG
from bayesdiv.models.sequence_targets import ScalarPreference
from bayesdiv.nn.sequences_torch import CausalTransformer, CharacterGRU, TransformersModel
from bayesdiv.pyro.distributions import AutoregressiveSequence
from benchmarks.cases import Case, Comparison, Duel, ResultsDiffer, agree

_END, _BETA, _LEARNING_RATE = 0, 0.5, 1e-4
_STANDARD_ERRORS = 5.0


def cases(*, quick: bool) -> list[Case]:
    """Names of a GRU as in the f-DPG example, and forty symbols of transformers."""
    rows, length, width, layers = (8, 6, 16, 1) if quick else (64, 40, 128, 4)
    samples = 16 if quick else 512
    gru = functools.partial(CharacterGRU, 27, seed=0)
    transformer = functools.partial(
        CausalTransformer, 64, max_length=length, width=width, num_layers=layers, seed=0
    )
    return [
        Case(
            f"torch/sequences/sample/gru/{samples}x11",
            functools.partial(prepare_sampling, gru, samples, 11),
        ),
        Case(
            f"torch/sequences/sample/transformer/{rows}x{length}",
            functools.partial(prepare_sampling, transformer, rows, length),
        ),
        Case(
            f"torch/sequences/sample/gpt2/{rows}x{length}",
            functools.partial(prepare_generate, rows, length, width, layers),
        ),
        Case(f"torch/sequences/step/gru/{samples}x11", functools.partial(prepare_step, samples)),
    ]


def prepare_sampling(make: Callable[[], torch.nn.Module], rows: int, length: int) -> Duel:
    """Ours with the network's cache, and the same draws from the whole prefix at every symbol."""
    law = AutoregressiveSequence(make(), length, end=None)

    @torch.no_grad()
    def again() -> torch.Tensor:
        tokens = torch.full((rows, 1), law.start)
        for _ in range(length):
            logits = law.network(tokens)[0][:, -1]
            tokens = torch.cat([tokens, torch.multinomial(logits.softmax(-1), 1)], dim=1)
        return tokens[:, 1:]

    agreement = _same_law(law, law.sample, again, rows)
    contestants = {"ours": lambda: law.sample((rows,)), "no cache": again}
    notes = {"tokens": f"{rows * length} a call"}
    return Duel(contestants, [Comparison("ours", "no cache", 1.0)], agreement, notes)


def prepare_generate(rows: int, length: int, width: int, layers: int) -> Duel:
    """A GPT-2 of random weights: ours, and ``generate`` of transformers."""
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    configuration = GPT2Config(
        vocab_size=64,
        n_positions=length + 1,
        n_embd=width,
        n_layer=layers,
        n_head=4,
        # Every row then has all its symbols, as ours have.
        bos_token_id=None,
        eos_token_id=None,
    )
    model = GPT2LMHeadModel(configuration).eval()
    law = AutoregressiveSequence(TransformersModel(model), length, end=None, start=_END)
    prompt = torch.full((rows, 1), _END)

    @torch.no_grad()
    def generate() -> torch.Tensor:
        found = model.generate(
            prompt,
            attention_mask=torch.ones_like(prompt),
            do_sample=True,
            top_k=0,
            max_new_tokens=length,
            min_new_tokens=length,
            pad_token_id=_END,
        )
        return found[:, 1:]

    agreement = _same_law(law, law.sample, generate, rows)
    contestants = {"ours": lambda: law.sample((rows,)), "generate": generate}
    notes = {"tokens": f"{rows * length} a call"}
    return Duel(contestants, [Comparison("ours", "generate", 1.0)], agreement, notes)


def _same_law(
    law: AutoregressiveSequence,
    first: Callable[..., torch.Tensor],
    second: Callable[[], torch.Tensor],
    rows: int,
) -> dict[str, float]:
    """Mean log-probabilities of both samplers' rows, in standard errors apart."""
    torch.manual_seed(1)
    with torch.no_grad():
        scores = [law.log_prob(first((rows,))), law.log_prob(second())]
    error = math.sqrt(sum(float(score.var()) / rows for score in scores))
    gap = abs(float(scores[0].mean() - scores[1].mean())) / error
    if not gap <= _STANDARD_ERRORS:
        raise ResultsDiffer(f"mean log-probabilities: {gap:.1f} standard errors apart")
    return {"mean log-probability, in standard errors": gap}


def prepare_step(samples: int) -> Duel:
    """A step of f-DPG on reverse KL, and KL-penalised REINFORCE written out for the same model."""
    base = AutoregressiveSequence(CharacterGRU(27, seed=0), 11, end=_END)
    target = ScalarPreference(base, lambda value: (value == 5).sum(-1).float(), _BETA)
    ours = FDPG(
        target,
        base.trainable_copy(),
        "reverse_kl",
        num_samples=samples,
        learning_rate=_LEARNING_RATE,
    )
    js = FDPG(
        target,
        base.trainable_copy(),
        "jensen_shannon",
        num_samples=samples,
        learning_rate=_LEARNING_RATE,
    )
    plain = Reinforce(base, samples)
    agreement = _same_gradient(ours, plain)
    reward = get_divergence("jensen_shannon").pseudo_reward
    ratios = torch.randn(samples)
    contestants = {
        "reverse_kl": ours.step,
        "jensen_shannon": js.step,
        "REINFORCE": plain.step,
        "pseudo-reward": lambda: reward(ratios),
    }
    comparisons = [
        Comparison("reverse_kl", "REINFORCE", 1.1),
        Comparison("jensen_shannon", "REINFORCE", 1.1),
        Comparison("pseudo-reward", "jensen_shannon", 0.01),
    ]
    return Duel(contestants, comparisons, agreement, {"sequences": f"{samples} a step"})


class Reinforce:
    """E_π[r/β − log π/a] raised by the score-function gradient and Adam, with a baseline."""

    def __init__(self, base: AutoregressiveSequence, samples: int) -> None:
        self.base, self.samples = base, samples
        self.policy = base.trainable_copy()
        self.optimiser = torch.optim.Adam(self.policy.network.parameters(), lr=_LEARNING_RATE)

    def step(self) -> None:
        """One."""
        tokens = self.policy.sample((self.samples,))
        log_policy = self.policy.log_prob(tokens)
        with torch.no_grad():
            penalised = (tokens == 5).sum(-1) / _BETA + self.base.log_prob(tokens) - log_policy
            advantage = (penalised - penalised.mean()) * self.samples / (self.samples - 1)
        self.optimiser.zero_grad()
        (-(advantage * log_policy).mean()).backward()
        self.optimiser.step()


def _same_gradient(ours: FDPG, plain: Reinforce) -> dict[str, float]:
    """From the same draws; the policies are put back afterwards."""
    gradients: list[Any] = []
    for contestant in (ours, plain):
        network = contestant.policy.network
        before = copy.deepcopy(network.state_dict())
        torch.manual_seed(2)
        contestant.step()
        gradients.append(torch.cat([one.grad.ravel() for one in network.parameters()]))
        network.load_state_dict(before)
    return agree("gradient", *gradients, 1e-4)
