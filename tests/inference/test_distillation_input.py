"""What score distillation refuses, leaves out or warns of, and in which words."""

import math

import pytest
import torch
from distillation_cases import NormalStudent, exact_routine, standard_normal, tensor

from bayesdiv.divergences import FDivergence
from bayesdiv.inference.score_distillation import DistillationSettings, ScoreDistillation
from bayesdiv.models.diffusion import EDMDenoiser, NoiseSchedule
from bayesdiv.nn.denoisers_torch import DenoisingMLP


def settings(**changes):
    return lambda: DistillationSettings(**changes)


class NaNAt(torch.nn.Module):
    """A critic whose first logits are not numbers."""

    def __init__(self, count):
        super().__init__()
        self.shift, self.count = torch.nn.Parameter(tensor(0.0)), count

    def forward(self, x, sigma):
        logits = self.shift + x[:, 0]
        return torch.cat([logits[: self.count] * math.nan, logits[self.count :]])


def with_critic(critic, **changes):
    student = NormalStudent(1.0, 0.8)
    return ScoreDistillation(
        student,
        torch.optim.SGD(student.parameters(), lr=0.1),
        standard_normal(),
        student,
        critic=critic,
        critic_optimizer=torch.optim.SGD([torch.nn.Parameter(tensor(0.0))], lr=0.0),
        settings=DistillationSettings(
            **{
                "divergence": "jensen_shannon",
                "scaling": "score",
                "num_critic_steps": 1,
                "batch_size": 20,
                **changes,
            }
        ),
    )


def denoiser():
    return EDMDenoiser(DenoisingMLP(1, width=8), (1,), schedule=NoiseSchedule(0.1, 10.0))


def frozen():
    return denoiser().requires_grad_(requires_grad=False)


def without_density(divergence, *, noise=None, teacher=None, **changes):
    fake, student = denoiser(), NormalStudent(1.0, 0.8)
    return ScoreDistillation(
        student,
        torch.optim.SGD(student.parameters(), lr=0.1),
        frozen() if teacher is None else teacher,
        fake,
        fake_optimizer=torch.optim.SGD(fake.parameters(), lr=0.1),
        noise=NoiseSchedule(0.2, 5.0) if noise is None else noise,
        settings=DistillationSettings(divergence, **changes),
    )


class Shape(torch.nn.Module):
    def __init__(self, *shape):
        super().__init__()
        self.shape, self.parameter = shape, torch.nn.Parameter(tensor(1.0))

    def sample(self, count):
        return self.parameter * torch.ones(count, *self.shape, dtype=torch.float64)

    def forward(self, x, sigma):
        return self.sample(len(x))


def of_shape(*shape):
    student = Shape(*shape)
    teacher = standard_normal()
    return ScoreDistillation(
        student,
        torch.optim.SGD(student.parameters(), lr=0.1),
        teacher,
        NormalStudent(0.0, 1.0),
        settings=DistillationSettings(scaling="score"),
    ).step()


BAD_VALUES = {
    r"divergence must be one of reverse_kl, .*, got 'rkl'|got 'rkl'": settings(divergence="rkl"),
    "must be convex": lambda: DistillationSettings(
        FDivergence.from_generator(lambda u: -u * u + 1)
    ),
    r"must have f\(1\) = 0": lambda: DistillationSettings(
        FDivergence.from_generator(lambda u: u * u)
    ),
    "divergence must have a path gradient": settings(divergence="total_variation"),
    "weighted=False is reverse KL": settings(divergence="forward_kl", weighted=False),
    "scaling must be one of 'teacher_residual', 'score', got 'dmd'": settings(scaling="dmd"),
    r"ratio_clip must be .* got \(20.0, 0.1\)": settings(ratio_clip=(20.0, 0.1)),
    r"ratio_clip must be .* got \(0.0, 2.0\)": settings(ratio_clip=(0.0, 2.0)),
    "num_bins must be a whole number of at least 1, got 0": settings(num_bins=0),
    "batch_size must be a whole number": settings(batch_size=2.5),
    "num_critic_steps must be a whole number": settings(num_critic_steps=0),
    r"ratio_decay must be in \[0, 1\), got 1.0": settings(ratio_decay=1.0),
    r"ema_decay must be in \[0, 1\), got -0.1": settings(ema_decay=-0.1),
    "gan_weight must be finite": settings(gan_weight=math.inf),
    "critic is needed for JensenShannon": lambda: without_density("jensen_shannon"),
    "noise must be within the teacher's range": lambda: without_density(
        "reverse_kl", noise=NoiseSchedule(0.01, 5.0)
    ),
    "gan_weight needs a critic": lambda: without_density("reverse_kl", gan_weight=1.0),
    "noise must be a schedule with scaling": lambda: exact_routine(
        NormalStudent(0.0, 1.0), standard_normal(), "reverse_kl", 0.0, scaling="teacher_residual"
    ),
    "critic and critic_optimizer belong together": lambda: ScoreDistillation(
        NormalStudent(0.0, 1.0), None, standard_normal(), NormalStudent(0.0, 1.0), critic=Shape()
    ),
    r"student must return samples of shape \(256, 1\).*got \(256, 3\)": lambda: of_shape(3),
    r"logits of shape \(7,\) or \(7, heads\) for 7 noise levels, got \(7, 2, 2\)": lambda: (
        with_critic(Shape(2, 2)).step(torch.zeros(7, 1, dtype=torch.float64))
    ),
    r"batch must be rows of data of shape \(1,\) for the critic, got \(4, 2\)": lambda: with_critic(
        NaNAt(0)
    ).step(torch.zeros(4, 2)),
    "batch must be rows of data .* got NoneType": lambda: with_critic(NaNAt(0)).step(None),
    "multiple of num_critic_steps=3 rows.* got 4": lambda: with_critic(
        NaNAt(0), num_critic_steps=3
    ).step(torch.zeros(4, 1)),
}


@pytest.mark.parametrize("message", BAD_VALUES)
def test_bad_values_are_named(message):
    with pytest.raises(ValueError, match=message):
        BAD_VALUES[message]()


BAD_TYPES = {
    "divergence must be an f-divergence": settings(divergence="sinkhorn"),
    "student must have sample, got Linear": lambda: ScoreDistillation(
        torch.nn.Linear(1, 1), None, standard_normal(), NormalStudent(0.0, 1.0)
    ),
    "teacher must have denoise, got Linear": lambda: ScoreDistillation(
        NormalStudent(0.0, 1.0), None, torch.nn.Linear(1, 1), NormalStudent(0.0, 1.0)
    ),
    "fake_score must be a torch module to be trained": lambda: ScoreDistillation(
        NormalStudent(0.0, 1.0),
        None,
        standard_normal(),
        standard_normal(),
        fake_optimizer=torch.optim.SGD([tensor(0.0)], lr=0.1),
    ),
}


@pytest.mark.parametrize("message", BAD_TYPES)
def test_bad_types_are_named(message):
    with pytest.raises(TypeError, match=message):
        BAD_TYPES[message]()


def test_unfrozen_teacher_is_frozen_with_a_warning():
    teacher = denoiser()
    with pytest.warns(RuntimeWarning, match="teacher has parameters that require gradients"):
        without_density("reverse_kl", teacher=teacher)
    assert not any(parameter.requires_grad for parameter in teacher.parameters())


class Unnormalised:
    """A posterior: a density up to its evidence."""

    event_shape, is_normalized = (1,), False

    def score(self, x, sigma):
        return standard_normal().score(x, sigma)

    def log_prob(self, x, sigma):
        return standard_normal().log_prob(x, sigma) - 300.0


@pytest.mark.parametrize("name", ["jensen_shannon", "softened_reverse_kl", "jeffreys"])
def test_unknown_constant_is_spoken_of(name):
    with pytest.warns(RuntimeWarning, match="depends on the unknown constant"):
        exact_routine(NormalStudent(0.0, 1.0), Unnormalised(), name, 0.0)


def test_reverse_kl_and_normalised_ratios_need_no_constant():
    for name, normalize in (("reverse_kl", False), ("jensen_shannon", True)):
        routine = exact_routine(
            NormalStudent(0.0, 1.0), Unnormalised(), name, 0.0, normalize_ratio=normalize
        )
        assert float(routine.step()["skipped"]) == 0.0


def test_rows_that_are_not_numbers_are_left_out_and_counted():
    routine = with_critic(NaNAt(3))
    routine._train_critic = lambda rows, x: {}
    rows = torch.zeros(20, 1, dtype=torch.float64)
    with pytest.warns(RuntimeWarning, match="3 of 20 rows had a ratio or score that is not finite"):
        metrics = routine.step(rows)
    assert float(metrics["dropped"]) == 3.0
    assert all(math.isfinite(float(value)) for value in metrics.values())
    assert bool(routine.student.location.detach().isfinite())
    # Once is enough: warnings are errors here.
    assert float(routine.step(rows)["dropped"]) == 3.0


def test_debug_stops_at_a_row_that_is_not_a_number():
    routine = with_critic(NaNAt(1), debug=True)
    routine._train_critic = lambda rows, x: {}
    with pytest.raises(FloatingPointError, match="1 of 20 rows .* at step 1"):
        routine.step(torch.zeros(20, 1, dtype=torch.float64))


def test_collapsed_weights_skip_the_step():
    student = NormalStudent(30.0, 0.5)
    routine = exact_routine(student, standard_normal(), "forward_kl", 0.0, min_ess=2.0)
    with pytest.warns(RuntimeWarning, match="the weights collapsed at step 1"):
        metrics = routine.step()
    assert float(metrics["skipped"]) == 1.0
    assert float(student.location.detach()) == 30.0
