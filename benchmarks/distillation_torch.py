"""Score distillation in torch: a student's update, and the same networks in a loop written out."""

from __future__ import annotations

import copy
import functools
from typing import Any

import torch
from torch.nn.functional import softplus

from bayesdiv.inference._ratio_weights import ratio_weights
from bayesdiv.inference.score_distillation import DistillationSettings, ScoreDistillation
from bayesdiv.models.diffusion import EDMDenoiser, OneStepGenerator
from bayesdiv.nn.denoisers_torch import DenoisingMLP, DenoisingUNet, FeatureCritic
from bayesdiv.nn.noise_levels_torch import NoiseSchedule
from benchmarks.cases import Case, Comparison, Duel, agree

_NOISE = NoiseSchedule(0.02, 20.0)
_CRITIC_STEPS, _RATE, _CRITIC_RATE, _DECAY = 5, 2e-4, 1e-3, 0.99
_TARGET, _WEIGHTING_TARGET = 1.05, 0.01


def cases(*, quick: bool) -> list[Case]:
    """8×8 digits as vectors for an MLP, and 16×16 images for a U-Net."""
    mlp, unet = ((16, 32), (8, 8)) if quick else ((256, 128), (16, 64))
    return [
        Case(
            f"torch/distillation/mlp/{mlp[1]}x64",
            functools.partial(prepare, (64,), *mlp),
        ),
        Case(
            f"torch/distillation/unet/{unet[1]}x16x16",
            functools.partial(prepare, (1, 16, 16), *unet),
        ),
    ]


def prepare(event_shape: tuple[int, ...], width: int, rows: int) -> Duel:
    """Ours under two divergences, and the loop, whose weights are those of reverse KL."""
    torch.manual_seed(0)
    teacher = make_denoiser(event_shape, width)
    data = torch.randn(_CRITIC_STEPS * rows, *event_shape)
    plain = BareLoop(*make_parts(teacher), rows)
    ours = {
        name: make_routine(name, *make_parts(teacher), rows)
        for name in ("reverse_kl", "jensen_shannon")
    }
    agreement = _same_step(ours["reverse_kl"], plain, data)
    contestants: dict[str, Any] = {
        name: functools.partial(routine.step, data) for name, routine in ours.items()
    }
    contestants["bare loop"] = functools.partial(plain.step, data)
    contestants["weighting"] = _weighting(rows)
    comparisons = [
        Comparison("reverse_kl", "bare loop", _TARGET),
        Comparison("jensen_shannon", "bare loop", _TARGET),
        Comparison("weighting", "jensen_shannon", _WEIGHTING_TARGET),
    ]
    notes = {"updates": f"{_CRITIC_STEPS} of fake score and critic for one of the student"}
    return Duel(contestants, comparisons, agreement, notes)


def make_denoiser(event_shape: tuple[int, ...], width: int) -> EDMDenoiser:
    """Random weights, the last layer included: it starts at zero otherwise."""
    network: torch.nn.Module
    if len(event_shape) == 1:
        network = DenoisingMLP(event_shape[0], width=width)
        last = network.leave[1]
    else:
        channels, height, wide = event_shape
        network = DenoisingUNet((channels, height, wide), width=width)
        last = network.leave
    torch.nn.init.normal_(last.weight, std=0.05)
    return EDMDenoiser(network, event_shape, schedule=_NOISE).requires_grad_(requires_grad=False)


def make_parts(teacher: EDMDenoiser) -> tuple[Any, Any, Any, Any]:
    """Student, teacher, fake score and critic, the same every time."""
    network: Any = teacher.network
    torch.manual_seed(3)
    critic = FeatureCritic(teacher.features, network.num_features, 128)
    torch.nn.init.normal_(critic.logit.weight, std=0.05)
    fake = copy.deepcopy(teacher).requires_grad_()
    return OneStepGenerator(teacher), teacher, fake, critic


def make_optimizers(student: Any, fake: Any, critic: Any) -> list[torch.optim.Optimizer]:
    """Adams, as in the example."""
    slow = {"lr": _RATE, "betas": (0.0, 0.99)}
    return [
        torch.optim.Adam(student.parameters(), **slow),
        torch.optim.Adam(fake.parameters(), **slow),
        torch.optim.Adam(critic.parameters(), lr=_CRITIC_RATE),
    ]


def make_routine(
    divergence: str, student: Any, teacher: Any, fake: Any, critic: Any, rows: int
) -> ScoreDistillation:
    """Ours."""
    optimizers = make_optimizers(student, fake, critic)
    return ScoreDistillation(
        student,
        optimizers[0],
        teacher,
        fake,
        fake_optimizer=optimizers[1],
        critic=critic,
        critic_optimizer=optimizers[2],
        noise=_NOISE,
        settings=DistillationSettings(
            divergence, batch_size=rows, num_critic_steps=_CRITIC_STEPS, ema_decay=_DECAY
        ),
    )


class BareLoop:
    """Distribution matching with a critic that is trained and not used: no weights, no reports."""

    def __init__(self, student: Any, teacher: Any, fake: Any, critic: Any, rows: int) -> None:
        self.student, self.teacher, self.fake, self.critic = student, teacher, fake, critic
        self.rows = rows
        self.optimizers = make_optimizers(student, fake, critic)
        self.average = [each.detach().clone() for each in student.parameters()]
        self.num_steps = 0

    def step(self, data: torch.Tensor) -> None:
        """Critic steps, then one of the student."""
        for real in data.chunk(_CRITIC_STEPS):
            self._train_critics(real)
        x = self.student.sample(self.rows)
        noisy, sigma = self._diffuse(x.detach())
        with torch.no_grad():
            target = self.teacher.denoise(noisy, sigma)
            own = self.fake.denoise(noisy, sigma)
            self.critic(noisy, sigma)
            residual = (x - target).abs().flatten(1).mean(1) + 1e-6
            gap = (own - target) / residual.reshape(-1, *(1,) * (x.ndim - 1))
            gap = gap / x.numel()
        self._descend(0, (gap * x).sum())
        decay = min(_DECAY, (1.0 + self.num_steps) / (11.0 + self.num_steps))
        with torch.no_grad():
            for mean, now in zip(self.average, self.student.parameters(), strict=True):
                mean.lerp_(now, 1.0 - decay)
        self.num_steps += 1

    def _train_critics(self, real: torch.Tensor) -> None:
        with torch.no_grad():
            x = self.student.sample(len(real))
        sigma = _NOISE.at(torch.rand(len(x)))
        wide = sigma.reshape(-1, *(1,) * (x.ndim - 1))
        found = self.fake.denoise(x + wide * torch.randn_like(x), sigma)
        weight = sigma**-2 + self.fake.sigma_data**-2
        self._descend(1, (weight * ((found - x) ** 2).flatten(1).mean(1)).mean())
        right = self.critic(*self._diffuse(real))
        wrong = self.critic(*self._diffuse(x))
        self._descend(2, softplus(-right).mean() + softplus(wrong).mean())

    def _diffuse(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        sigma = _NOISE.at(torch.rand(len(x)))
        return x + sigma.reshape(-1, *(1,) * (x.ndim - 1)) * torch.randn_like(x), sigma

    def _descend(self, index: int, loss: torch.Tensor) -> None:
        self.optimizers[index].zero_grad()
        loss.backward()
        self.optimizers[index].step()


def _same_step(ours: ScoreDistillation, plain: BareLoop, data: torch.Tensor) -> dict[str, float]:
    """The parameters after one step from the same draws."""
    found: dict[str, list[torch.Tensor]] = {"student": [], "fake score": [], "critic": []}
    for contestant, parts in (
        (ours, (ours.student, ours.fake_score, ours.critic)),
        (plain, (plain.student, plain.fake, plain.critic)),
    ):
        before = [copy.deepcopy(part.state_dict()) for part in parts]
        torch.manual_seed(2)
        contestant.step(data)
        for part, start, moved in zip(parts, before, found.values(), strict=True):
            change = [(now - start[name]).flatten() for name, now in part.named_parameters()]
            moved.append(torch.cat(change).detach())
    differences: dict[str, float] = {}
    for name, (mine, theirs) in found.items():
        # Adam's first step is the gradient's sign: a share of signs, not of sizes, may differ.
        differences |= agree(
            f"change of {name}", float(mine @ theirs / theirs.norm() ** 2), 1.0, 1e-3
        )
    return differences


def _weighting(rows: int) -> Any:
    """From the log-ratios of a batch to its weights."""
    rule = DistillationSettings("jensen_shannon").rule
    log_ratio, bins = torch.randn(rows), torch.randint(10, (rows,)).float()
    log_means, keep = torch.zeros(10), torch.ones(rows, dtype=torch.bool)
    return functools.partial(
        ratio_weights,
        rule,
        log_ratio,
        bins,
        log_means,
        keep=keep,
        decay=0.5,
        normalize_ratio=True,
        normalize_weight=True,
    )
