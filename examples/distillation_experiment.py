"""One student of a teacher of images under one divergence, and the rows that it stands beside."""

from __future__ import annotations

import time
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from distillation_problem import (
    SCHEDULE,
    ImageProblem,
    TeacherSettings,
    load_problem,
    load_teacher,
    make_denoiser,
    train_teacher,
)

from bayesdiv.inference.score_distillation import (
    DistillationSettings,
    NoiseReport,
    ScoreDistillation,
)
from bayesdiv.models.diffusion import EDMDenoiser, OneStepGenerator
from bayesdiv.nn.denoisers_torch import FeatureCritic
from bayesdiv.training import TensorBatches, train

IMAGE_GROUPS = ("digits", "long_tailed", "mnist", "fashion_mnist")
TEACHER_STEPS = 18
_NUM_SHOWN = 40
_NUM_KEPT = 300


@dataclass(frozen=True)
class Preset:
    """How much work. Steps are the student's, each after five of its fake score and critic.

    ``line_steps`` and ``plane_steps`` are of the restricted students of mixtures, ``mode_steps`` of
    the network that has to find 25 modes.
    """

    num_seeds: int
    groups: tuple[str, ...]
    teacher: TeacherSettings = TeacherSettings()
    num_steps: int = 600
    batch_size: int = 128
    learning_rate: float = 2e-4
    critic_learning_rate: float = 1e-3
    evaluate_every: int = 100
    num_evaluated: int = 2000
    line_steps: int = 600
    plane_steps: int = 600
    mode_steps: int = 2000
    mode_width: int = 128
    mixed_precision: str = "no"


_SMALL_UNET = TeacherSettings("unet", width=8, num_steps=20, batch_size=32)
PRESETS = {
    "quick": Preset(
        num_seeds=1,
        groups=("line", "plane", "digits"),
        teacher=TeacherSettings(width=64, num_steps=150, batch_size=128),
        num_steps=20,
        batch_size=32,
        evaluate_every=20,
        num_evaluated=300,
        line_steps=120,
        plane_steps=60,
    ),
    "laptop": Preset(num_seeds=3, groups=("line", "plane", "digits", "long_tailed")),
    "gpu": Preset(
        num_seeds=3,
        groups=("line", "plane", "modes", "mnist", "fashion_mnist"),
        teacher=TeacherSettings("unet", width=32, num_steps=8000, batch_size=512),
        num_steps=3000,
        batch_size=512,
        learning_rate=1e-4,
        evaluate_every=500,
        num_evaluated=10_000,
        mixed_precision="bf16",
    ),
    # What the gpu preset runs, small enough for a CPU.
    "quick-gpu": Preset(
        num_seeds=1,
        groups=("modes", "digits"),
        teacher=_SMALL_UNET,
        num_steps=3,
        batch_size=8,
        evaluate_every=3,
        num_evaluated=40,
        mode_steps=5,
        mode_width=16,
    ),
}


@dataclass(frozen=True, eq=False)
class Outcome:
    """A row of one seed: its final metrics, curves by step, images to show, and how it went."""

    group: str
    row: str
    seed: int
    final: dict[str, float]
    steps: list[int] = field(default_factory=list)
    curves: dict[str, list[float]] = field(default_factory=dict)
    images: np.ndarray | None = None
    samples: np.ndarray | None = None
    report: NoiseReport | None = None


class Images:
    """A data set, its teacher, and everything that is run on them."""

    def __init__(self, work: Preset, name: str, folder: Path, device: str) -> None:
        self.work, self.name, self.device = work, name, device
        self.problem: ImageProblem = load_problem(name, network=work.teacher.network)
        self.path = folder / f"teacher_{name}.pt"

    def accelerator(self) -> Accelerator:
        """The device and the precision that networks run in."""
        cpu = self.device == "cpu"
        precision = "no" if cpu else self.work.mixed_precision
        return Accelerator(cpu=cpu, mixed_precision=precision)

    def train_teacher(self) -> None:
        """Leave it in the folder of the results."""
        train_teacher(self.problem, self.work.teacher, self.path, self.accelerator())

    def teacher(self) -> EDMDenoiser:
        """As `train_teacher` left it."""
        return load_teacher(self.problem, self.work.teacher, self.path, self.device)

    def baselines(self, seed: int) -> list[Outcome]:
        """Real rows that training saw, the teacher, and its one step before distillation."""
        torch.manual_seed(seed)
        problem, count, teacher = self.problem, self.work.num_evaluated, self.teacher()
        found = []
        if seed == 0:
            chosen = problem.training[torch.randperm(len(problem.training))[:count]]
            found.append(self._outcome("training images", seed, chosen, problem.score(chosen)))
        rows = {
            f"teacher, {TEACHER_STEPS} steps": lambda: teacher.sample(
                count, num_steps=TEACHER_STEPS
            ),
            "teacher, 1 step": lambda: OneStepGenerator(teacher).sample(count).detach(),
        }
        for name, draw in rows.items():
            start = self._now()
            samples = draw()
            speed = count / (self._now() - start)
            scores = {**problem.score(samples), "samples_per_second": speed}
            found.append(self._outcome(name, seed, samples, scores))
        return found

    def distil(self, divergence: str, seed: int, *, gan_weight: float) -> Outcome:
        """A student from the teacher's weights, scored along the way and at the end."""
        work, problem = self.work, self.problem
        start = time.process_time()
        routine = self.routine(divergence, seed, gan_weight=gan_weight)
        rows_a_step = routine.settings.num_critic_steps * work.batch_size
        repeats = 1 + rows_a_step // len(problem.training)
        rows = problem.training.repeat(repeats, *(1 for _ in problem.event_shape)).to(self.device)
        batches = TensorBatches(rows, batch_size=rows_a_step, seed=seed)
        accelerator, history, curves = self.accelerator(), [], []
        stops = [*range(work.evaluate_every, work.num_steps, work.evaluate_every), work.num_steps]
        for stop in stops:
            result = train(
                routine,
                batches,
                num_steps=stop - routine.num_steps,
                progress_bar=False,
                accelerator=accelerator,
            )
            history.append(result.history)
            curves.append(problem.quick_score(routine.sample(work.num_evaluated)))
        seconds = time.process_time() - start
        began = self._now()
        samples = routine.sample(work.num_evaluated)
        speed = work.num_evaluated / (self._now() - began)
        merged = {
            name: np.concatenate([np.asarray(part[name]) for part in history])
            for name in history[0]
        }
        final = {
            **problem.score(samples),
            "samples_per_second": speed,
            "weight_max": float(merged["weight_max"].max()),
            "weight_ess": float(np.mean(merged["weight_ess"]) / work.batch_size),
            "critic_accuracy": float(np.mean(merged["critic_accuracy"][-3:])),
            "cpu_seconds": seconds,
        }
        outcome = self._outcome(divergence, seed, samples, final)
        return replace(
            outcome,
            steps=stops,
            curves={name: [each[name] for each in curves] for name in curves[0]},
            samples=samples[:_NUM_KEPT].flatten(1).float().cpu().numpy(),
            report=routine.report(),
        )

    def routine(self, divergence: str, seed: int, *, gan_weight: float) -> ScoreDistillation:
        """Student and fake score with the teacher's weights, a critic on its features."""
        torch.manual_seed(seed)
        work, teacher = self.work, self.teacher()
        student = OneStepGenerator(teacher)
        fake = make_denoiser(self.problem, work.teacher).to(self.device)
        fake.load_state_dict(teacher.state_dict())
        network: Any = teacher.network
        critic = FeatureCritic(teacher.features, network.num_features, 128).to(self.device)
        # Both chase a target that moves with every step of the other.
        rates = {"lr": work.learning_rate, "betas": (0.0, 0.99)}
        return ScoreDistillation(
            student,
            torch.optim.Adam(student.parameters(), **rates),
            teacher,
            fake,
            fake_optimizer=torch.optim.Adam(fake.parameters(), **rates),
            critic=critic,
            critic_optimizer=torch.optim.Adam(critic.parameters(), lr=work.critic_learning_rate),
            noise=SCHEDULE,
            settings=DistillationSettings(
                divergence, batch_size=work.batch_size, gan_weight=gan_weight
            ),
        )

    def _outcome(
        self, row: str, seed: int, samples: torch.Tensor, final: dict[str, float]
    ) -> Outcome:
        side = round(float(np.prod(self.problem.event_shape)) ** 0.5)
        images = samples[:_NUM_SHOWN].float().cpu().reshape(-1, side, side).numpy()
        return Outcome(self.name, row, seed, final, images=images)

    def _now(self) -> float:
        if self.device == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter()
