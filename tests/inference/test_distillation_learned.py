"""Fake score, critic and direction, learnt, against what is exact for a student that stays."""

import math

import numpy as np
import pytest
import torch
from distillation_cases import (
    NOISE,
    NormalStudent,
    QuadraticCritic,
    plane_teacher,
    small_denoiser,
    standard_normal,
    tensor,
)

from bayesdiv.inference.score_distillation import (
    DistillationSettings,
    ScoreDistillation,
    reports_to_arviz,
)
from bayesdiv.models.analytic_diffusion import GaussianMixtureDiffusion
from bayesdiv.nn.denoisers_torch import NoiseCritic
from bayesdiv.nn.noise_levels_torch import NoiseSchedule
from bayesdiv.training import TensorBatches


class Points:
    """A student that never learns, of so many points: its diffused law is a kernel mixture."""

    def __init__(self, count):
        self.points = 0.8 * torch.randn(count, 2) + torch.tensor([0.6, -0.3])
        self.unused = torch.nn.Parameter(torch.zeros(1))

    def sample(self, count):
        return self.points[torch.randint(len(self.points), (count,))] + 0.0 * self.unused

    def law(self):
        weights = torch.ones(len(self.points))
        return GaussianMixtureDiffusion(weights, self.points, torch.zeros_like(self.points))


@pytest.fixture(scope="module")
def oracle():
    """Fake score and critic after training on a student that stays, with what is exact."""
    torch.manual_seed(1)
    student, teacher = Points(2000), plane_teacher()
    fake, critic = small_denoiser(), NoiseCritic(2, width=64, sigma_data=1.0)
    optimizers = [torch.optim.Adam(each.parameters(), lr=2e-3) for each in (fake, critic)]
    routine = ScoreDistillation(
        student,
        torch.optim.SGD([student.unused], lr=0.0),
        teacher,
        fake,
        fake_optimizer=optimizers[0],
        critic=critic,
        critic_optimizer=optimizers[1],
        noise=NOISE,
        settings=DistillationSettings("jensen_shannon", batch_size=256, num_critic_steps=10),
    )
    batches = iter(TensorBatches(teacher.sample(90 * 5120), batch_size=5120))
    losses = []
    for step, batch in enumerate(batches):
        for optimizer in optimizers:
            optimizer.param_groups[0]["lr"] = 4e-3 * (1.0 - step / 90.0)
        losses.append({name: float(value) for name, value in routine.step(batch).items()})
    return routine, losses


def noisy_rows(routine, count=2000):
    level = NOISE.draw(count, torch.zeros(1))
    clean = routine.student.sample(count).detach()
    return clean, clean + level[:, None] * torch.randn(count, 2), level


def test_fake_score_is_that_of_the_kernel_mixture(oracle):
    routine, _ = oracle
    _, noisy, level = noisy_rows(routine)
    with torch.no_grad():
        found = routine.fake_score.score(noisy, level)
    exact = routine.student.law().score(noisy, level)
    assert float((found - exact).norm() / exact.norm()) < 0.1


def test_logit_is_the_log_ratio(oracle):
    """With the labels swapped the correlation is negative."""
    routine, _ = oracle
    _, noisy, level = noisy_rows(routine)
    with torch.no_grad():
        found = routine.critic(noisy, level)
    exact = routine.teacher.log_prob(noisy, level) - routine.student.law().log_prob(noisy, level)
    assert float(torch.corrcoef(torch.stack([found, exact]))[0, 1]) > 0.95


def test_direction_is_that_of_the_exact_parts(oracle):
    routine, _ = oracle
    student, teacher = routine.student, routine.teacher
    clean, noisy, level = noisy_rows(routine)
    direction, _ = routine._direction(clean, noisy, level)
    log_ratio, _, _ = routine._log_ratio(noisy, level, None)
    weights, _, _ = routine._weights(log_ratio, level, torch.ones(len(noisy), dtype=torch.bool))
    found = weights[:, None] * direction
    exact_ratio = teacher.log_prob(noisy, level) - student.law().log_prob(noisy, level)
    gap = teacher.score(noisy, level) - student.law().score(noisy, level)
    residual = (clean - teacher.denoise(noisy, level)).abs().mean(1)
    exact = exact_ratio.sigmoid()[:, None] * gap * (level**2 / residual)[:, None]
    assert float(torch.cosine_similarity(found.flatten(), exact.flatten(), dim=0)) > 0.95


def test_critic_learns_without_a_gan_term(oracle):
    """Its loss goes below that of a coin."""
    _, losses = oracle
    last = {name: np.mean([each[name] for each in losses[-10:]]) for name in losses[0]}
    assert last["critic_loss"] < 2.0 * math.log(2.0) - 0.02
    assert last["critic_accuracy"] > 0.55


def test_report_has_the_critics_accuracy_by_noise_level(oracle):
    """Noise makes the two laws alike."""
    routine, losses = oracle
    accuracy = routine.report().critic_accuracy
    assert ((accuracy > 0.45) & (accuracy < 1.0)).all()
    assert accuracy[:3].mean() > accuracy[-3:].mean() + 0.02
    recent = np.mean([each["critic_accuracy"] for each in losses[-5:]])
    assert accuracy.mean() == pytest.approx(recent, abs=0.03)


def test_runs_go_to_arviz(oracle):
    routine, _ = oracle
    reports, samples = [routine.report()] * 2, [routine.sample(30), routine.sample(30)]
    found = reports_to_arviz(reports, samples)
    assert found["posterior"]["x"].shape == (2, 30, 2)
    assert found["sample_stats"]["ess_share"].dims == ("chain", "draw", "noise_bin")
    np.testing.assert_array_equal(found["sample_stats"]["ess_share"][1, 0], reports[0].ess_share)
    assert len(found.attrs["noise_bin_edges"]) == found["sample_stats"].sizes["noise_bin"] + 1
    with pytest.raises(ValueError, match="got 1 reports and shapes"):
        reports_to_arviz(reports[:1], samples)
    short = reports[0]._replace(num_rows=reports[0].num_rows[:3])
    with pytest.raises(ValueError, match=r"numbers of bins \[10, 3\]"):
        reports_to_arviz([reports[0], short], samples)


@pytest.mark.parametrize(
    ("sigma", "coefficients", "loss"),
    [
        (0.0, (0.558106, -1.5625, 0.28125), 1.1073033590),
        (0.5, (0.391959, -1.123596, 0.161798), 1.1678919758),
    ],
)
def test_logistic_regression_recovers_the_ratio(sigma, coefficients, loss):
    student, critic = NormalStudent(1.0, 0.8), QuadraticCritic()
    routine = ScoreDistillation(
        student,
        torch.optim.SGD(student.parameters(), lr=0.0),
        standard_normal(),
        student,
        critic=critic,
        critic_optimizer=torch.optim.Adam(critic.parameters(), lr=0.05),
        noise=NoiseSchedule(sigma, sigma) if sigma else None,
        settings=DistillationSettings("forward_kl", scaling="score", batch_size=64),
    )
    losses = []
    for step in range(60):
        routine._optimizers["critic"].param_groups[0]["lr"] = 0.05 if step < 40 else 0.005
        rows = torch.randn(10_000, 1, dtype=torch.float64)
        losses += [float(routine.step(rows)["critic_loss"])]
    found = critic.coefficients.detach()
    torch.testing.assert_close(found, tensor(*coefficients), atol=0.06, rtol=0.05)
    assert np.mean(losses[-20:]) == pytest.approx(loss, abs=0.015)
