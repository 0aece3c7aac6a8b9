"""Students of mixtures whose scores and densities are known: what each divergence gives up.

A student that is one normal cannot be a mixture, and ends where its divergence says. A network
could be, but starts on a few of 25 modes and has to find the others with what it learns itself.
"""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import torch
from distillation_experiment import Outcome, Preset

from bayesdiv.inference.score_distillation import DistillationSettings, ScoreDistillation
from bayesdiv.models.analytic_diffusion import GaussianMixtureDiffusion, NormalGenerator
from bayesdiv.models.diffusion import DenoiserTraining, EDMDenoiser, OneStepGenerator
from bayesdiv.nn.denoisers_torch import DenoisingMLP, NoiseCritic
from bayesdiv.nn.noise_levels_torch import NoiseSchedule
from bayesdiv.training import TensorBatches, train

MIXTURE_GROUPS = ("line", "plane", "modes")
# Location and scale of the student at the start: between the modes, and on the lesser of them.
LINE_STARTS = {"between": (0.5, 0.5), "minor": (-1.5, 0.5)}
LINE_NOISE, PLANE_NOISE = 0.5, 0.3
_MODES_NOISE = NoiseSchedule(0.05, 5.0)
_NUM_SCORED = 20_000


def line_teacher() -> GaussianMixtureDiffusion:
    """A third of the mass at −2, the rest at 2."""
    return GaussianMixtureDiffusion(
        _double([1.0, 2.0]), _double([[-2.0], [2.0]]), _double([[0.5], [0.5]])
    )


def plane_teacher() -> GaussianMixtureDiffusion:
    """Half, three tenths and a fifth of the mass on three slanted normals."""
    covariances = _double(
        [[[0.5, 0.3], [0.3, 0.3]], [[0.2, 0.0], [0.0, 0.6]], [[0.4, -0.2], [-0.2, 0.2]]]
    )
    means = _double([[-1.5, -1.0], [2.0, 0.0], [-0.5, 2.0]])
    return GaussianMixtureDiffusion(_double([0.5, 0.3, 0.2]), means, covariances)


def modes_teacher(device: str) -> GaussianMixtureDiffusion:
    """25 equal modes on a grid, from −1 to 1."""
    side = torch.linspace(-1.0, 1.0, 5, device=device)
    means = torch.cartesian_prod(side, side)
    return GaussianMixtureDiffusion(
        torch.ones(25, device=device), means, torch.full_like(means, 0.05), schedule=_MODES_NOISE
    )


def run_mixture(work: Preset, group: str, divergence: str, seed: int, device: str) -> list[Outcome]:
    """All runs of a group under one divergence."""
    torch.manual_seed(seed)
    if group == "line":
        return [
            _restricted("line", divergence, seed, work.line_steps, start=start)
            for start in LINE_STARTS
        ]
    if group == "plane":
        return [_restricted("plane", divergence, seed, work.plane_steps)]
    return [_find_modes(work, divergence, seed, device)]


def _restricted(
    group: str, divergence: str, seed: int, num_steps: int, *, start: str = ""
) -> Outcome:
    """A normal student with exact scores and ratio, at one level of noise."""
    teacher = line_teacher() if group == "line" else plane_teacher()
    if start:
        location, scale = (_double([value]) for value in LINE_STARTS[start])
    else:
        location, scale = _double([0.0, 0.0]), _double([1.0, 1.0])
    level = LINE_NOISE if group == "line" else PLANE_NOISE
    student = NormalGenerator(location, scale)
    optimizer = torch.optim.Adam(student.parameters(), lr=0.05, betas=(0.9, 0.99))
    # The plain gradient of the divergence: nothing is learnt, and nothing needs normalising.
    settings = DistillationSettings(
        divergence,
        scaling="score",
        batch_size=512,
        num_bins=1,
        normalize_ratio=False,
        normalize_weight=False,
        min_ess=0.0,
        ema_decay=0.95,
    )
    routine = ScoreDistillation(
        student,
        optimizer,
        teacher,
        student,
        noise=NoiseSchedule(level, level),
        settings=settings,
    )
    began = time.process_time()
    for step in range(num_steps):
        optimizer.param_groups[0]["lr"] = 0.05 * (1.0 - step / num_steps) + 1e-3
        routine.step()
    seconds = time.process_time() - began
    with routine.averaged_parameters():
        final = _distances(teacher, student, level)
        final["cpu_seconds"] = seconds
        law = student.law()
        parameters = torch.cat([law.means.flatten(), student.factor().detach().flatten()])
        final |= {f"parameter_{k}": float(value) for k, value in enumerate(parameters)}
    name = f"{divergence} from {start}" if start else divergence
    return Outcome(group, name, seed, final)


def _distances(teacher: Any, student: NormalGenerator, level: float) -> dict[str, float]:
    """Divergences of the diffused laws, and how much of the teacher's lesser modes is missed."""
    gaps, found = {}, {}
    for name, law in (("forward_kl", teacher), ("reverse_kl", student)):
        clean = law.sample(_NUM_SCORED).detach()
        noisy = clean + level * torch.randn_like(clean)
        gaps[name] = teacher.log_prob(noisy, level) - student.log_prob(noisy, level)
    found["forward_kl"] = float(gaps["forward_kl"].mean())
    found["reverse_kl"] = float(-gaps["reverse_kl"].mean())
    found["entropy"] = float(student.law().log_prob(student.sample(_NUM_SCORED).detach()).mean())
    found["entropy"] = -found["entropy"]
    return found


def _find_modes(work: Preset, divergence: str, seed: int, device: str) -> Outcome:
    """A network that starts on the five modes of the left column."""
    teacher, width = modes_teacher(device), work.mode_width
    network = DenoisingMLP(2, width=width, num_blocks=3)
    start = EDMDenoiser(network, (2,), sigma_data=0.7, schedule=_MODES_NOISE).to(device)
    left = teacher.sample(50_000)
    left = left[left[:, 0] < -0.75]
    optimizer = torch.optim.Adam(start.parameters(), lr=1e-3)
    warm = DenoiserTraining(start, optimizer, log_sigma_mean=-1.0, log_sigma_std=1.5)
    batches = TensorBatches(left, batch_size=512, seed=seed)
    train(warm, batches, num_steps=work.mode_steps, progress_bar=False)
    student = OneStepGenerator(warm.averaged)
    fake = EDMDenoiser(
        DenoisingMLP(2, width=width, num_blocks=3), (2,), sigma_data=0.7, schedule=_MODES_NOISE
    ).to(device)
    fake.load_state_dict(warm.averaged.state_dict())
    critic = NoiseCritic(2, width=width, sigma_data=0.7).to(device)
    rates = {"lr": 3e-4, "betas": (0.0, 0.99)}
    routine = ScoreDistillation(
        student,
        torch.optim.Adam(student.parameters(), **rates),
        teacher,
        fake,
        fake_optimizer=torch.optim.Adam(fake.parameters(), lr=1e-3, betas=(0.0, 0.99)),
        critic=critic,
        critic_optimizer=torch.optim.Adam(critic.parameters(), lr=1e-3),
        noise=_MODES_NOISE,
        settings=DistillationSettings(divergence, batch_size=512),
    )
    began = time.process_time()
    rows = TensorBatches(teacher.sample(100_000), batch_size=5 * 512, seed=seed)
    train(routine, rows, num_steps=work.mode_steps, progress_bar=False)
    seconds = time.process_time() - began
    samples = routine.sample(10_000)
    shares = mode_shares(samples, teacher.means)
    final = {
        "modes": float((shares > 0.2 / len(shares)).sum()),
        "largest_share": float(shares.max()),
        "near_a_mode": float(_near(samples, teacher.means)),
        "cpu_seconds": seconds,
    }
    return Outcome("modes", divergence, seed, final, samples=samples[:1000].cpu().numpy())


def mode_shares(samples: torch.Tensor, means: torch.Tensor) -> np.ndarray:
    """Of samples nearest to each mode."""
    nearest = torch.cdist(samples, means).argmin(1)
    counts = torch.bincount(nearest, minlength=len(means))
    return (counts / len(samples)).cpu().numpy()


def _near(samples: torch.Tensor, means: torch.Tensor) -> torch.Tensor:
    """The share within four standard deviations of a mode."""
    return (torch.cdist(samples, means).min(1).values < 0.2).float().mean()


def _double(values: Any) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)
