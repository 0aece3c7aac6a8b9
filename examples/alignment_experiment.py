"""One seed and variant of alignment from demonstrations: policies, rewards, choices, scores."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from alignment_problem import Problem, english_problem, names_problem
from names_problem import fine_tune
from scipy.stats import spearmanr

from bayesdiv.inference.best_of_n import (
    best_of_n,
    best_of_n_bound,
    best_of_n_curve,
    best_of_n_kl,
)
from bayesdiv.inference.imitation import OracleImitation
from bayesdiv.inference.reward_models import RewardModel, RewardSettings, fit_reward_model
from bayesdiv.inference.sequence_critics import GRUCritic, LinearCritic
from bayesdiv.models.character_language_model import CharacterModel
from bayesdiv.training import train

CRITIC_KINDS = ("init_sft", "init_demo", "sft_demo", "preference")
# "gru" is kept as it is after its last step, "gru stopped" where held-out rows say, "gru long" is
# trained thrice as long; "gru fresh" sees many more samples, which only two policies can give.
CRITICS = ("gru", "gru stopped", "gru long", "gru fresh", "linear")
_DEMONSTRATION_KINDS = ("init_sft", "init_demo", "sft_demo")
# Pairs of neighbours among 49,152 tokens are too many for the linear one.
_ENGLISH_CRITICS = ("gru", "gru stopped", "gru long", "gru fresh")
_LONG, _FRESH = 3, 7
ANCHORS = ("judge", "log_ratio", "likelihood", "longest", "random")
VARIANTS = ("plain", "heterogeneous")
Reward = Callable[[torch.Tensor], torch.Tensor]


@dataclass(frozen=True)
class Preset:
    """How much work, and on which base model: "names", or "smollm2" for English.

    ``max_length`` tokens of English and ``row_batch_size`` rows at a time; for names, both are the
    base model's.
    """

    num_seeds: int
    model: str = "names"
    base: CharacterModel = CharacterModel()
    max_length: int = 40
    row_batch_size: int = 512
    variants: tuple[str, ...] = VARIANTS
    critics: tuple[str, ...] = CRITICS
    num_demonstrations: int = 3000
    num_tuning_steps: int = 400
    num_samples: int = 3000
    num_reward_steps: int = 400
    hidden_size: int = 32
    bayesian_kinds: tuple[str, ...] = ("init_sft", "init_demo")
    num_slots: int = 1000
    num_candidates: int = 64
    num_tilt_steps: int = 300
    num_tilt_samples: int = 256
    num_head_draws: int = 250
    num_evaluated: int = 4000
    batch_size: int = 128
    tuning_batch_size: int = 128
    tuning_rate: float = 2e-3
    tilt_rate: float = 1e-3

    @property
    def counts(self) -> tuple[int, ...]:
        """N = 1, 2, 4, … up to the candidates there are."""
        return tuple(2**power for power in range(self.num_candidates.bit_length()))


PRESETS = {
    "quick": Preset(
        num_seeds=1,
        base=CharacterModel(hidden_size=32, num_steps=150, batch_size=128),
        variants=("plain",),
        critics=("gru",),
        num_demonstrations=1500,
        num_tuning_steps=75,
        num_samples=800,
        num_reward_steps=100,
        hidden_size=16,
        bayesian_kinds=("init_sft",),
        num_slots=100,
        num_candidates=16,
        num_tilt_steps=20,
        num_tilt_samples=64,
        num_head_draws=30,
    ),
    "laptop": Preset(num_seeds=3),
    "gpu": Preset(
        num_seeds=3,
        model="smollm2",
        critics=_ENGLISH_CRITICS,
        num_samples=10_000,
        num_reward_steps=1500,
        hidden_size=128,
        num_tilt_steps=500,
        batch_size=512,
        tuning_batch_size=64,
        tuning_rate=2e-5,
        tilt_rate=1.4e-5,
    ),
    # What the gpu preset runs, small enough for a CPU.
    "quick-gpu": Preset(
        num_seeds=1,
        model="smollm2",
        max_length=8,
        row_batch_size=32,
        variants=("plain",),
        critics=("gru",),
        num_demonstrations=32,
        num_tuning_steps=4,
        num_samples=32,
        num_reward_steps=20,
        hidden_size=8,
        bayesian_kinds=("init_sft",),
        num_slots=8,
        num_candidates=4,
        num_tilt_steps=2,
        num_tilt_samples=8,
        num_head_draws=20,
        num_evaluated=16,
        batch_size=16,
        tuning_batch_size=8,
        tuning_rate=1e-4,
        tilt_rate=1e-4,
    ),
}


@dataclass(frozen=True, eq=False)
class Outcome:
    """One row of one seed and variant: metrics, the golden curve over N, its slots' scores."""

    row: str
    variant: str
    seed: int
    metrics: dict[str, float]
    curve: dict[int, float] = field(default_factory=dict)


def _problem_of(work: Preset, *, hard: bool, device: str, base_folder: Any) -> Problem:
    if work.model == "names":
        return names_problem(work.base, hard=hard, device=device, folder=base_folder)
    return english_problem(work.max_length, work.row_batch_size, hard=hard, device=device)


class Experiment:
    """Policies, judge and candidates that all rows of one seed and variant share."""

    def __init__(
        self, work: Preset, seed: int, variant: str, *, device: str, base_folder: Any = None
    ) -> None:
        self.work, self.seed, self.variant = work, seed, variant
        self.device = torch.device(device)
        hard = variant == "heterogeneous"
        self.problem = _problem_of(work, hard=hard, device=device, base_folder=base_folder)
        self.initial, self.judge = self.problem.initial, self.problem.judge
        rows = self.problem.demonstrations
        order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(seed))
        rows = rows[order.to(rows.device)].to(device)
        count = min(work.num_demonstrations, round(0.7 * len(rows)))
        self.demonstrations = rows[:count]
        self.held_out = rows[count:][: work.num_evaluated]
        torch.manual_seed(seed)
        self.student = fine_tune(
            self.initial,
            self.demonstrations,
            self.held_out,
            num_steps=work.num_tuning_steps,
            learning_rate=work.tuning_rate,
            batch_size=work.tuning_batch_size,
            seed=seed,
            parts=self.problem.last_layers if hard else (),
        )
        # Seeds of candidates are apart from those that reward models are trained on.
        torch.manual_seed(10_000 + seed)
        shape = (work.num_slots, work.num_candidates)
        self.candidates = self.student.sample(shape)
        self.golden = self.judge(self.candidates)
        self.rivals = self.judge(self.student.sample((work.num_slots,)))

    def rows(self) -> list[tuple[str, str]]:
        """Kind and critic of every reward model of the table."""
        return [
            (kind, critic)
            for critic in self.work.critics
            for kind in {
                "gru stopped": _DEMONSTRATION_KINDS,
                "gru long": _DEMONSTRATION_KINDS,
                "gru fresh": ("init_sft",),
            }.get(critic, CRITIC_KINDS)
        ]

    def fit(self, kind: str, critic: str) -> RewardModel:
        """A reward model of a kind, with a critic by name."""
        work = self.work
        network: torch.nn.Module
        if critic.startswith("gru"):
            network = GRUCritic(
                self.initial.num_symbols,
                end=self.problem.end,
                hidden_size=self.work.hidden_size,
                seed=self.seed,
            )
        else:
            network = LinearCritic(self.initial.num_symbols, end=self.problem.end)
        with warnings.catch_warnings():
            # The table shows the accuracies that these are about.
            warnings.filterwarnings("ignore", "the classes are separable")
            warnings.filterwarnings("ignore", "the critic is dead")
            return fit_reward_model(
                kind,
                network.to(self.device),
                initial=self.initial,
                student=self.student,
                demonstrations=self.demonstrations,
                pairs=self._pairs() if kind == "preference" else None,
                num_samples=work.num_samples * (_FRESH if critic == "gru fresh" else 1),
                settings=RewardSettings(
                    num_steps=work.num_reward_steps * (_LONG if critic == "gru long" else 1),
                    batch_size=work.batch_size,
                    keep="best" if critic == "gru stopped" else "last",
                ),
                seed=20_000 + self.seed,
            )

    def _pairs(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Pairs of the student's samples, labelled by Bradley and Terry's law of the judge."""
        torch.manual_seed(30_000 + self.seed)
        first, second = self.student.sample((2, self.work.num_samples))
        gap = self.problem.preference_scale * (self.judge(first) - self.judge(second))
        wins = (torch.rand(len(gap), device=gap.device) < gap.sigmoid())[:, None]
        return torch.where(wins, first, second), torch.where(wins, second, first)

    def anchor(self, row: str) -> torch.Tensor:
        """Rewards of the candidates that need no training, ``(num_slots, num_candidates)``."""
        if row == "judge":
            return self.golden
        if row == "longest":
            return self.student.length(self.candidates).float()
        if row == "random":
            torch.manual_seed(40_000 + self.seed)
            return torch.rand(self.candidates.shape[:2], device=self.device)
        log_probs = self.student.log_prob(self.candidates)
        return (
            log_probs if row == "likelihood" else log_probs - self.initial.log_prob(self.candidates)
        )

    def score(self, row: str, rewards: torch.Tensor, **more: float) -> Outcome:
        """What choosing by ``rewards``, one for each candidate, is worth to the judge."""
        rewards = rewards.double()
        counts = self.work.counts
        curve = best_of_n_curve(rewards, self.golden.double(), counts)
        picks = best_of_n(rewards, rng=torch.Generator(self.device).manual_seed(self.seed))
        each = torch.arange(len(picks), device=self.device)
        picked = self.candidates[each, picks]
        wins = self.golden[each, picks] > self.rivals
        pool = rewards.flatten()
        uniform = torch.full_like(pool, -float(np.log(len(pool))))
        kl = float(best_of_n_kl(uniform, pool, counts[-1]))
        ranks = spearmanr(pool.cpu(), self.golden.flatten().cpu()).statistic
        metrics = {
            **{f"golden_{count}": float(curve[count].mean()) for count in counts},
            "win_rate": float(wins.double().mean()),
            "spearman": float(np.nan_to_num(ranks)),
            "kl": kl,
            "kl_bound": best_of_n_bound(counts[-1]),
            "length": float(self.student.length(picked).double().mean()),
            **more,
        }
        means = {count: float(found.mean()) for count, found in curve.items()}
        return Outcome(row, self.variant, self.seed, metrics, means)

    def references(self) -> Outcome:
        """The judge's mean at the base model's samples and at the demonstrations."""
        torch.manual_seed(50_000 + self.seed)
        initial = self.judge(self.initial.sample((self.work.num_evaluated,)))
        metrics = {
            "golden_initial": float(initial.mean()),
            "golden_demonstrations": float(self.judge(self.held_out).mean()),
            "golden_student": float(self.golden.mean()),
            "judge_accuracy": self.problem.judge_accuracy,
        }
        return Outcome("reference", self.variant, self.seed, metrics)

    def tilt(self, reward: RewardModel, divergence: str, *, beta: float = 1.0) -> Outcome:
        """The best of N amortised: a policy for p ∝ π_SFT exp(r/β), by any divergence."""
        policy = self.student.trainable_copy()
        optimizer = torch.optim.Adam(policy.network.parameters(), lr=self.work.tilt_rate)
        routine = OracleImitation(
            policy,
            optimizer,
            _Tilted(self.student, reward, beta),
            divergence=divergence,
            num_samples=self.work.num_tilt_samples,
            normalizer="running",
        )
        torch.manual_seed(60_000 + self.seed)
        train(routine, None, num_steps=self.work.num_tilt_steps, progress_bar=False)
        with torch.no_grad():
            tokens, log_prob = policy.sample_with_log_prob((self.work.num_evaluated,))
            gap = log_prob - self.student.log_prob(tokens)
        metrics = {
            "golden": float(self.judge(tokens).mean()),
            "reward": float(reward(tokens).mean()),
            "kl": float(gap.mean()),
            "entropy": -float(log_prob.mean()),
            "distinct": len(torch.unique(tokens, dim=0)) / len(tokens),
        }
        return Outcome(f"tilt {divergence}", self.variant, self.seed, metrics)


@dataclass(frozen=True, eq=False)
class _Tilted:
    """log π_SFT(y) + r(y)/β, an expert known up to its normaliser."""

    base: Any
    reward: RewardModel
    beta: float

    def log_prob(self, tokens: torch.Tensor) -> torch.Tensor:
        return self.base.log_prob(tokens) + self.reward(tokens) / self.beta
