"""One expert, its demonstrations, and students by every objective of imitation."""

from __future__ import annotations

import warnings
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from imitation_problem import Law, english_law, english_student, names_law, names_student
from names_problem import held_out_loss

from bayesdiv.inference.imitation import get_imitation, position_weights
from bayesdiv.inference.sequence_critics import GRUCritic
from bayesdiv.inference.sequence_metrics import TargetSample, evaluate_policy
from bayesdiv.models.character_language_model import CharacterModel, MaximumLikelihood
from bayesdiv.models.sequence_targets import ScalarPreference
from bayesdiv.objectives import DensityRatio, RatioCritic, pareto_k
from bayesdiv.pyro.distributions import AutoregressiveSequence
from bayesdiv.training import TensorBatches, train

GROUPS = ("many", "few", "oracle")
_Expert = tuple[ScalarPreference, TargetSample, torch.Tensor]


@dataclass(frozen=True)
class Rates:
    """Learning rates of Adam."""

    pretraining: float = 5e-3
    supervised: float = 3e-3
    adversarial: float = 5e-4
    oracle: float = 2e-3


@dataclass(frozen=True)
class Preset:
    """How much work, and on which base model: "names", or "smollm2" for English.

    Steps are the optimiser's. ``max_length`` tokens of English, ``row_batch_size`` rows at a time,
    and a student of ``student_layers`` of the base's thirty; ``student_hidden`` units for names.
    ``rows_at_once`` are drawn from the base between looks at whether there are enough.
    """

    num_seeds: int
    model: str = "names"
    base: CharacterModel = CharacterModel()
    max_length: int = 40
    row_batch_size: int = 512
    student_layers: int = 12
    rows_at_once: int = 20_000
    rates: Rates = Rates()
    groups: tuple[str, ...] = GROUPS
    num_base_samples: int = 80_000
    num_held_out: int = 4000
    num_many: int = 5000
    num_few: int = 200
    student_hidden: int = 24
    critic_hidden: int = 32
    num_pretraining_steps: int = 600
    num_warm_steps: int = 100
    num_supervised_steps: int = 600
    num_critic_only: int = 50
    num_adversarial_steps: int = 450
    num_oracle_steps: int = 600
    batch_size: int = 256
    evaluate_every: int = 75
    num_evaluated: int = 4000
    num_ratios: int = 2000
    clamp: float = 8.0


_ENGLISH_RATES = Rates(pretraining=1e-4, supervised=2e-5, adversarial=1e-5, oracle=1.4e-5)
PRESETS = {
    "quick": Preset(
        num_seeds=1,
        base=CharacterModel(hidden_size=32, num_steps=150, batch_size=128, learning_rate=0.02),
        num_base_samples=8000,
        num_held_out=300,
        num_many=400,
        num_few=50,
        student_hidden=16,
        critic_hidden=8,
        num_pretraining_steps=40,
        num_warm_steps=20,
        num_supervised_steps=40,
        num_critic_only=5,
        num_adversarial_steps=20,
        num_oracle_steps=20,
        batch_size=64,
        evaluate_every=20,
        num_evaluated=300,
    ),
    "laptop": Preset(num_seeds=3),
    "gpu": Preset(
        num_seeds=3,
        model="smollm2",
        rates=_ENGLISH_RATES,
        num_base_samples=100_000,
        critic_hidden=128,
        num_pretraining_steps=3000,
        num_warm_steps=200,
        num_supervised_steps=1500,
        num_adversarial_steps=1000,
        num_oracle_steps=1000,
        batch_size=128,
        evaluate_every=250,
    ),
    # What the gpu preset runs, small enough for a CPU.
    "quick-gpu": Preset(
        num_seeds=1,
        model="smollm2",
        max_length=8,
        row_batch_size=32,
        student_layers=6,
        rows_at_once=64,
        rates=_ENGLISH_RATES,
        num_base_samples=64,
        num_held_out=8,
        num_many=16,
        num_few=4,
        critic_hidden=8,
        num_pretraining_steps=4,
        num_warm_steps=2,
        num_supervised_steps=2,
        num_critic_only=1,
        num_adversarial_steps=2,
        num_oracle_steps=2,
        batch_size=8,
        evaluate_every=2,
        num_evaluated=8,
        num_ratios=40,
    ),
}


@dataclass(frozen=True, eq=False)
class Outcome:
    """One run: metrics by step of evaluation, what it ended with, and its history."""

    group: str
    row: str
    seed: int
    steps: list[int]
    curves: dict[str, list[float]]
    final: dict[str, float]
    history: dict[str, np.ndarray] = field(default_factory=dict)


def rows_of(group: str, divergences: tuple[str, ...]) -> list[str]:
    """Names of a group's runs."""
    if group == "oracle":
        return [f"oracle {each}" for each in divergences]
    adversarial = [f"adversarial {each}" for each in divergences if each != "total_variation"]
    return ["sft", *(["occupancy_sft"] if group == "many" else []), *adversarial]


class Experiment:
    """Expert, demonstrations and the students that all runs of one seed start from."""

    def __init__(self, work: Preset, seed: int, *, device: str, base_folder: Any = None) -> None:
        self.work, self.seed, self.device = work, seed, torch.device(device)
        self.expert, self.held_out, self.demonstrations = _make_expert(
            work, seed, device, base_folder
        )
        self.entropy = -float(self._expert_log_prob(self.held_out).mean())
        self.student = _pretrained(work, seed, device, base_folder)

    def _expert_log_prob(self, sample: TargetSample) -> torch.Tensor:
        return sample.log_target - sample.log_normalizer

    def start(self) -> Outcome:
        """The student before it has seen the expert."""
        metrics = self.evaluate(self.student)
        return Outcome("start", "student", self.seed, [0], _as_curves([metrics]), metrics)

    def rows_demonstrated(self, group: str) -> torch.Tensor:
        """The demonstrations of a group."""
        count = self.work.num_few if group == "few" else self.work.num_many
        return self.demonstrations[:count]

    def warm(self, group: str) -> AutoregressiveSequence:
        """The student after a few supervised steps, where adversarial and oracle runs start."""
        policy = self.student.trainable_copy()
        self._supervise(policy, group, "sft", self.work.num_warm_steps)
        return policy

    def _supervise(
        self, policy: AutoregressiveSequence, group: str, objective: str, num_steps: int
    ) -> list[tuple[int, dict[str, float]]]:
        optimizer = torch.optim.Adam(policy.network.parameters(), lr=self.work.rates.supervised)
        routine = get_imitation(objective, policy, optimizer)
        rows = self.rows_demonstrated(group)
        batches = TensorBatches(rows, batch_size=self.work.batch_size, seed=self.seed)
        return self._run(routine, batches, policy, num_steps)[0]

    def run(self, group: str, row: str) -> Outcome:
        """One run, from the pretrained student or from its warm start."""
        torch.manual_seed(100 * self.seed + 1)
        kind, _, divergence = row.partition(" ")
        work = self.work
        history: dict[str, np.ndarray] = {}
        if kind in ("sft", "occupancy_sft"):
            policy = self.student.trainable_copy()
            seen = self._supervise(policy, group, kind, work.num_supervised_steps)
        else:
            policy = self.warm(group)
            first = self.evaluate(policy)
            learning_rate = work.rates.oracle if kind == "oracle" else work.rates.adversarial
            optimizer = torch.optim.Adam(policy.network.parameters(), lr=learning_rate)
            if kind == "oracle":
                routine = get_imitation(
                    "oracle",
                    policy,
                    optimizer,
                    self.expert,
                    divergence=divergence,
                    num_samples=work.batch_size,
                    normalizer=self.held_out.log_normalizer,
                )
                batches: Any = None
            else:
                routine = get_imitation(
                    "adversarial",
                    policy,
                    optimizer,
                    self._critic(),
                    divergence=divergence,
                    num_samples=work.batch_size,
                    num_critic_only=work.num_critic_only,
                )
                rows = self.rows_demonstrated(group)
                batches = TensorBatches(rows, batch_size=work.batch_size, seed=self.seed)
            num_steps = work.num_oracle_steps if kind == "oracle" else work.num_adversarial_steps
            with warnings.catch_warnings():
                # The table shows the entropies and the clamped share that these are about.
                warnings.filterwarnings("ignore", "mode collapse")
                warnings.filterwarnings("ignore", "the discriminator separates")
                seen, history = self._run(routine, batches, policy, num_steps)
            seen = [(0, first), *seen]
        final = {**seen[-1][1], "demonstration_loss": self._demonstration_loss(policy, group)}
        if "saturated" in history:
            final["saturated"] = float(history["saturated"][-50:].mean())
        steps = [step for step, _ in seen]
        curves = _as_curves([metrics for _, metrics in seen])
        return Outcome(group, row, self.seed, steps, curves, final, history)

    def _critic(self) -> RatioCritic:
        network = GRUCritic(
            self.student.num_symbols,
            end=self.student.end,
            hidden_size=self.work.critic_hidden,
            seed=self.seed,
        ).to(self.device)
        optimizer = torch.optim.AdamW(network.parameters(), lr=3e-3, weight_decay=1e-2)
        return RatioCritic(network, optimizer, ratio=DensityRatio(max_log_ratio=self.work.clamp))

    def _run(
        self, routine: Any, batches: Any, policy: AutoregressiveSequence, num_steps: int
    ) -> tuple[list[tuple[int, dict[str, float]]], dict[str, np.ndarray]]:
        """Train, and evaluate every so many steps."""
        found, histories, done = [], [], 0
        while done < num_steps:
            size = min(self.work.evaluate_every, num_steps - done)
            result = train(routine, batches, num_steps=size, progress_bar=False, log_every=size)
            histories.append(result.history)
            done += size
            found.append((done, self.evaluate(policy)))
        names = histories[0]
        return found, {name: np.concatenate([each[name] for each in histories]) for name in names}

    def _demonstration_loss(self, policy: AutoregressiveSequence, group: str) -> float:
        return held_out_loss(policy, self.rows_demonstrated(group))

    @torch.no_grad()
    def evaluate(self, policy: AutoregressiveSequence) -> dict[str, float]:
        """Divergences from the expert with both sides' samples, and what else is looked at."""
        # Evaluations must not move the draws that training goes on with.
        with torch.random.fork_rng():
            torch.manual_seed(7)
            found = evaluate_policy(
                self.expert,
                policy,
                self.held_out,
                num_samples=self.work.num_evaluated,
                statistics={"alignment": lambda rows: self.expert.reward(rows).exp()},
                num_texts=50,
            )
            rows = policy.sample((self.work.num_ratios,))
            log_ratio = self.expert.log_prob(rows) - policy.log_prob(rows)
        scores = policy.token_log_probs(self.held_out.value)
        weights = position_weights(scores.shape[-1]).to(scores)
        found["occupancy_loss"] = -float((scores * weights).sum(-1).mean())
        found["pareto_k"] = float(pareto_k(log_ratio))
        return found


@lru_cache(maxsize=4)
def _law(work: Preset, device: str, base_folder: Any) -> Law:
    if work.model == "names":
        return names_law(work.base, device, base_folder)
    return english_law(work.max_length, work.row_batch_size, device)


@lru_cache(maxsize=4)
def _make_expert(work: Preset, seed: int, device: str, base_folder: Any) -> _Expert:
    """The tilted base, held-out samples, and demonstrations: by rejection, so that they are exact.

    φ^(1/β) ≤ 1 is the probability of keeping a sample of the base; Z is the share that is kept in
    expectation.
    """
    law = _law(work, device, base_folder)
    base, expert = law.base, ScalarPreference(law.base, law.log_share, law.beta)
    torch.manual_seed(1000 + seed)
    wanted = work.num_held_out + work.num_many
    kept, masses, count = [], [], 0
    while count < wanted or len(masses) * work.rows_at_once < work.num_base_samples:
        rows = base.sample((min(work.rows_at_once, work.num_base_samples),))
        factor = expert.log_factor(rows).exp()
        masses.append(factor)
        kept.append(rows[torch.rand(len(rows), device=rows.device) < factor])
        count += len(kept[-1])
    mass = torch.cat(masses).double()
    rows = torch.cat(kept)[:wanted]
    log_z = float(mass.mean().log())
    error = float(mass.std() / mass.mean()) / len(mass) ** 0.5
    held_out = rows[: work.num_held_out]
    sample = TargetSample(held_out, expert.log_prob(held_out), log_z, error)
    return expert, sample, rows[work.num_held_out :]


@lru_cache(maxsize=4)
def _pretrained(work: Preset, seed: int, device: str, base_folder: Any) -> AutoregressiveSequence:
    """A smaller network, fitted to samples of the base: it cannot be the expert exactly."""
    base = _law(work, device, base_folder).base
    torch.manual_seed(2000 + seed)
    rows = base.sample((min(work.rows_at_once, work.num_base_samples),))
    if work.model == "names":
        student = names_student(base, work.student_hidden, seed, device)
    else:
        student = english_student(base, work.student_layers)
    steps = work.num_pretraining_steps
    routine = MaximumLikelihood(student, learning_rate=work.rates.pretraining, num_steps=steps)
    batches = TensorBatches(rows, batch_size=work.batch_size, seed=seed)
    train(routine, batches, num_steps=steps, progress_bar=False)
    return student


def _as_curves(metrics: list[dict[str, float]]) -> dict[str, list[float]]:
    return {name: [each[name] for each in metrics] for name in metrics[0]}
