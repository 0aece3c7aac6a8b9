"""Whole runs of score distillation: what must not change numbers, and what is reported."""

import math

import numpy as np
import pytest
import torch
from distillation_cases import (
    NOISE,
    NormalStudent,
    QuadraticCritic,
    exact_routine,
    plane_teacher,
    small_denoiser,
    standard_normal,
    tensor,
    two_modes,
)

from bayesdiv.divergences import EnergyDistance
from bayesdiv.inference.score_distillation import DistillationSettings, ScoreDistillation
from bayesdiv.models.diffusion import NoiseSchedule, OneStepGenerator
from bayesdiv.nn.denoisers_torch import FeatureCritic
from bayesdiv.objectives import DensityRatio
from bayesdiv.training import TensorBatches, train


def distillation(divergence, *, seed=0, teacher=None, **settings):
    torch.manual_seed(seed)
    teacher = small_denoiser(32).requires_grad_(requires_grad=False) if teacher is None else teacher
    student, fake = OneStepGenerator(small_denoiser(32), sigma=3.0), small_denoiser(32)
    critic = FeatureCritic(small_denoiser(32).requires_grad_(requires_grad=False).features, 32, 16)
    optimizers = [torch.optim.Adam(m.parameters(), lr=2e-3) for m in (student, fake, critic)]
    options = {"batch_size": 64, "num_critic_steps": 2, **settings}
    return ScoreDistillation(
        student,
        optimizers[0],
        teacher,
        fake,
        fake_optimizer=optimizers[1],
        critic=critic,
        critic_optimizer=optimizers[2],
        noise=NOISE,
        settings=DistillationSettings(divergence, **options),
    )


def numbers_of(routine):
    return [
        each.detach().clone() for name in routine._optimizers for each in routine._parameters(name)
    ]


@pytest.mark.parametrize("name", ["reverse_kl", "jensen_shannon", "forward_kl"])
def test_one_step_student_comes_nearer(name):
    """A wrong sign drives it away; a wrong ratio spoils forward KL and spares reverse KL."""
    teacher = plane_teacher()
    routine = distillation(name, teacher=teacher, num_critic_steps=4, batch_size=128)
    distance, rows = EnergyDistance(), teacher.sample(1000)
    before = float(distance(rows, routine.sample(1000)))
    batches = TensorBatches(teacher.sample(10_000), batch_size=512)
    train(routine, batches, num_steps=150, progress_bar=False)
    after = float(distance(rows, routine.sample(1000)))
    assert after < 0.5 * before


@pytest.mark.parametrize("gan_weight", [0.0, 0.01])
def test_reverse_kl_is_bit_for_bit_that_without_weights(gan_weight):
    runs = {}
    for weighted in (True, False):
        routine = distillation("reverse_kl", weighted=weighted, gan_weight=gan_weight)
        batches = TensorBatches(plane_teacher().sample(512), batch_size=128)
        train(routine, batches, num_steps=6, progress_bar=False)
        runs[weighted] = numbers_of(routine)
    for left, right in zip(runs[True], runs[False], strict=True):
        assert torch.equal(left, right)


def test_weights_of_reverse_kl_have_the_shape_of_the_batch():
    routine = distillation("reverse_kl")
    weights, _, _ = routine._weights(
        torch.randn(64), torch.full((64,), 0.5), torch.ones(64, dtype=torch.bool)
    )
    assert torch.equal(weights, torch.ones(64))


def test_kill_and_resume(tmp_path):
    def run(num_steps, path):
        routine = distillation("forward_kl", gan_weight=0.1, r1_weight=1.0)
        batches = TensorBatches(plane_teacher().sample(512), batch_size=128)
        settings = {"checkpoint": path, "checkpoint_every": 4, "progress_bar": False}
        result = train(routine, batches, num_steps=num_steps, **settings)
        return routine, result

    whole, result = run(9, tmp_path / "whole")
    run(4, tmp_path / "cut")
    resumed, again = run(9, tmp_path / "cut")
    for left, right in zip(numbers_of(whole), numbers_of(resumed), strict=True):
        assert torch.equal(left, right)
    assert torch.equal(whole._log_means, resumed._log_means)
    for name, values in result.history.items():
        np.testing.assert_array_equal(values, again.history[name])
    torch.manual_seed(0)
    first = whole.sample(5)
    torch.manual_seed(0)
    assert torch.equal(first, resumed.sample(5))


def test_average_is_apart_from_the_student():
    routine = distillation("reverse_kl", ema_decay=0.9)
    rows = plane_teacher().sample(128)
    for _ in range(5):
        routine.step(rows)
    now = [each.detach().clone() for each in routine._parameters("student")]
    with routine.averaged_parameters():
        inside = [each.detach().clone() for each in routine._parameters("student")]
    after = [each.detach() for each in routine._parameters("student")]
    assert all(torch.equal(left, right) for left, right in zip(now, after, strict=True))
    assert any(not torch.equal(left, right) for left, right in zip(now, inside, strict=True))


def test_teacher_and_its_features_stay_as_they_are():
    teacher = small_denoiser(32).requires_grad_(requires_grad=False)
    routine = distillation("jensen_shannon", teacher=teacher, gan_weight=0.5, r1_weight=0.5)
    routine.critic = FeatureCritic(teacher.features, 32, 16)
    before = [each.clone() for each in teacher.parameters()]
    routine.step(plane_teacher().sample(128))
    for left, right in zip(before, teacher.parameters(), strict=True):
        assert torch.equal(left, right)
        assert right.grad is None


def test_gan_term_adds_its_own_gradient():
    """Alone, with scores that cancel, it is λ ∇ E softplus(−l), through the samples only."""
    student = NormalStudent(1.0, 0.8, grid=True)
    critic = QuadraticCritic()
    with torch.no_grad():
        critic.coefficients.copy_(tensor(0.1, -0.7, 0.2))
    routine = ScoreDistillation(
        student,
        torch.optim.SGD(student.parameters(), lr=1.0),
        student.law(),
        student,
        critic=critic,
        critic_optimizer=torch.optim.SGD(critic.parameters(), lr=0.0),
        settings=DistillationSettings(scaling="score", gan_weight=0.3, batch_size=500),
    )
    again = NormalStudent(1.0, 0.8, grid=True)
    loss = 0.3 * torch.nn.functional.softplus(-critic(again.sample(500), 0.0)).mean()
    expected = torch.autograd.grad(loss, again.location)[0]
    routine.step(torch.randn(50, 1, dtype=torch.float64))
    torch.testing.assert_close(1.0 - student.location.detach(), expected)


# Normalisation and reports


def test_mean_weight_is_one_for_every_divergence():
    """Without stage 2 the Hellinger step would be half of reverse KL's near the teacher."""
    moved = {}
    for name in ("reverse_kl", "squared_hellinger", "jensen_shannon", "forward_kl"):
        student = NormalStudent(0.02, 1.0, grid=True)
        routine = exact_routine(
            student, standard_normal(), name, 0.0, normalize_weight=True, batch_size=2000
        )
        routine.step()
        moved[name] = 0.02 - float(student.location.detach())
    for name, found in moved.items():
        assert found == pytest.approx(moved["reverse_kl"], rel=0.03), name


@pytest.mark.parametrize("factor", [1e-6, 1.0, 1e6])
def test_stage_one_takes_off_a_factor_of_the_teacher(factor):
    class Scaled:
        event_shape, is_normalized = (1,), False

        def score_and_log_prob(self, x, sigma):
            score, log_prob = standard_normal().score_and_log_prob(x, sigma)
            return score, log_prob + math.log(factor)

        def score(self, x, sigma):
            return standard_normal().score(x, sigma)

    student = NormalStudent(1.0, 0.8, grid=True)
    settings = {"normalize_ratio": True, "batch_size": 4000}
    exact_routine(student, Scaled(), "jensen_shannon", 0.0, **settings).step()
    # E_q[p/q] = 1 up to the tail that the grid leaves out.
    assert 1.0 - float(student.location.detach()) == pytest.approx(0.4520372 / 2.0, abs=2e-3)


def test_report_by_noise_level():
    student = NormalStudent(0.3, 1.0)
    settings = {"scaling": "score", "batch_size": 2000, "num_bins": 4, "ratio_decay": 0.9}
    routine = ScoreDistillation(
        student,
        torch.optim.SGD(student.parameters(), lr=1e-3),
        standard_normal(),
        student,
        noise=NoiseSchedule(0.2, 5.0, rho=50.0),
        settings=DistillationSettings("forward_kl", **settings),
    )
    for _ in range(20):
        routine.step()
    report = routine.report()
    assert report.num_rows.sum() == 20 * 2000
    # ρ = 50 is even in log σ, nearly.
    assert report.num_rows.min() > 0.15 * report.num_rows.sum()
    np.testing.assert_allclose(report.log_mean_ratio, 0.0, atol=0.1)
    assert (report.weight_min <= report.weight_mean).all()
    assert (report.weight_mean <= report.weight_max).all()
    assert ((report.ess_share > 0.0) & (report.ess_share <= 1.0)).all()
    # The laws grow alike with the noise, and so do the weights.
    assert (np.diff(report.ess_share) > 0.0).all()
    assert (report.pareto_k < 0.7).all()


def test_constant_generator_has_no_gradient():
    class Constant:
        event_shape = (1,)

        def __init__(self):
            self.unused = torch.nn.Parameter(tensor(1.0))

        def sample(self, count):
            return torch.ones(count, 1, dtype=torch.float64) + 0.0 * self.unused

    student, other = Constant(), NormalStudent(1.0, 0.5)
    routine = ScoreDistillation(
        student,
        torch.optim.SGD([student.unused], lr=1.0),
        two_modes(),
        other,
        noise=NoiseSchedule(0.5, 0.5),
        settings=DistillationSettings("jensen_shannon", scaling="score", batch_size=32),
    )
    metrics = routine.step()
    assert all(math.isfinite(float(value)) for value in metrics.values())
    assert float(student.unused.detach()) == 1.0


def test_heads_are_averaged():
    one, two = DensityRatio(classes="balanced"), NormalStudent(1.0, 0.8)

    class Heads(QuadraticCritic):
        def forward(self, x, sigma):
            logit = super().forward(x, sigma)
            return torch.stack([logit - 1.0, logit + 1.0], dim=1)

    found = []
    for critic in (QuadraticCritic(), Heads()):
        with torch.no_grad():
            critic.coefficients.copy_(tensor(0.1, -0.7, 0.2))
        routine = ScoreDistillation(
            two,
            torch.optim.SGD(two.parameters(), lr=0.0),
            standard_normal(),
            two,
            critic=critic,
            critic_optimizer=torch.optim.SGD(critic.parameters(), lr=0.0),
            ratio=one,
            settings=DistillationSettings(scaling="score", batch_size=8),
        )
        rows = torch.linspace(-1.0, 1.0, 8, dtype=torch.float64)[:, None]
        found.append(routine._log_ratio(rows, torch.zeros(8), None)[0])
    torch.testing.assert_close(found[0], found[1])
