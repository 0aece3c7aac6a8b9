"""Score distillation of conditional laws: each class's own optimum, guidance, what is handed on."""

import pytest
import torch
from conditional_cases import ClassNormals, ClassTeacher, double, normal, two_classes
from distillation_cases import NOISE, one_level

from bayesdiv.inference.score_distillation import DistillationSettings, ScoreDistillation
from bayesdiv.models.analytic_diffusion import gaussian_diffusion
from bayesdiv.models.diffusion import EDMDenoiser, GuidedDenoiser, NoiseSchedule, OneStepGenerator
from bayesdiv.nn.denoisers_torch import DenoisingMLP, FeatureCritic, NoiseCritic
from bayesdiv.training import TensorBatches, train

# Exact conditional laws


def distil(teacher, student, divergence, labels, *, sigma=0.5, num_steps=250):
    """By exact parts, at a rate that falls to zero."""
    optimizer = torch.optim.Adam(student.parameters(), lr=0.06)
    routine = ScoreDistillation(
        student,
        optimizer,
        teacher,
        student,
        noise=one_level(sigma),
        settings=DistillationSettings(
            divergence, scaling="score", batch_size=len(labels), num_bins=1
        ),
    )
    for step in range(num_steps):
        optimizer.param_groups[0]["lr"] = 0.06 * (1.0 - step / num_steps)
        routine.step((None, labels))
    return routine


@pytest.mark.parametrize("name", ["reverse_kl", "jensen_shannon", "forward_kl"])
def test_each_class_ends_at_its_own_law(name):
    """Which a student of the mixture, or of labels in another order, does not."""
    student = ClassNormals(2)
    routine = distil(two_classes(), student, name, torch.tensor([0, 1, 1, 0]).repeat(32))
    torch.testing.assert_close(
        student.location.detach(), double([-2.0], [1.0]), atol=0.02, rtol=0.0
    )
    scale = student.log_scale.detach().exp()
    torch.testing.assert_close(scale, double([0.5], [1.5]), atol=0.02, rtol=0.0)
    rows = routine.sample(2, torch.tensor([1, 0]))
    assert rows.shape == (2, 1)


def test_guided_student_ends_beyond_its_class():
    """Normals of one variance: p(x|c)^γ p(x)^(1−γ) is the normal at γ m_c + (1 − γ) m."""
    teacher = ClassTeacher(normal(-1.0, 0.7), normal(2.0, 0.7), normal(0.5, 0.7))
    student = ClassNormals(2)
    labels = torch.arange(2).repeat(32)
    distil(GuidedDenoiser(teacher, 1.5, 2), student, "reverse_kl", labels)
    torch.testing.assert_close(
        student.location.detach(), double([-1.75], [2.75]), atol=0.02, rtol=0.0
    )
    scale = student.log_scale.detach().exp()
    torch.testing.assert_close(scale, double([0.7], [0.7]), atol=0.02, rtol=0.0)


# What is handed on


class Recorded(torch.nn.Module):
    """Student, teacher, fake score or critic: each call writes down its rows and condition."""

    event_shape = (1,)

    def __init__(self, name, seen):
        super().__init__()
        self.name, self.seen = name, seen
        self.parameter = torch.nn.Parameter(double(0.0))

    def sample(self, count, condition):
        return self.score(-condition[:, :1], None, condition) - condition[:, :1]

    def score(self, x, sigma, condition):
        self.seen.append((self.name, x.detach(), condition))
        return self.parameter + 0.0 * x

    def forward(self, x, sigma, condition):
        found = self.score(x, sigma, condition)
        return found[:, 0] if self.name == "critic" else found


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_each_part_is_handed_the_conditions_of_its_rows(dtype):
    seen = []
    student, teacher, fake, critic = (
        Recorded(name, seen) for name in ("student", "teacher", "fake", "critic")
    )
    optimizers = [torch.optim.SGD(each.parameters(), lr=0.0) for each in (student, fake, critic)]
    routine = ScoreDistillation(
        student,
        optimizers[0],
        teacher.requires_grad_(requires_grad=False),
        fake,
        fake_optimizer=optimizers[1],
        critic=critic,
        critic_optimizer=optimizers[2],
        noise=one_level(1e-3),
        settings=DistillationSettings(
            scaling="score", batch_size=3, num_critic_steps=2, r1_weight=1.0, num_bins=1
        ),
    )
    condition = torch.arange(24, dtype=dtype).reshape(8, 3)
    routine.step((condition[:, :1], condition))
    critic_step = ["student", "fake", "data", "critic", "data"]
    order = [*critic_step, *critic_step, "student", "teacher", "fake", "critic"]
    parts = [condition[:4]] * 5 + [condition[4:]] * 5 + [condition[:3]] * 4
    assert len(seen) == len(order)
    for name, part, (found, x, known) in zip(order, parts, seen, strict=True):
        assert found == ("critic" if name == "data" else name)
        assert torch.equal(known, part.double())
        # Data have the sign of their condition, samples the other; the penalty's noise is 0.1.
        sign = 1.0 if name == "data" else -1.0
        torch.testing.assert_close(x, sign * known[:, :1], atol=1.0, rtol=0.0)


def networks(num_classes):
    """Of the same weights whatever the classes."""
    torch.manual_seed(0)

    def denoiser():
        network = DenoisingMLP(2, width=16, num_blocks=2, num_classes=num_classes)
        return EDMDenoiser(network, (2,), schedule=NoiseSchedule(0.05, 10.0))

    teacher = denoiser().requires_grad_(requires_grad=False)
    critic = FeatureCritic(teacher.features, 16, 8, num_classes=num_classes)
    return OneStepGenerator(denoiser(), sigma=3.0), teacher, denoiser(), critic


def test_a_condition_that_says_nothing_changes_no_number():
    """No draw more, no rounding: the vector of no class is zero, and stays so."""
    found = {}
    for num_classes in (0, 3):
        student, teacher, fake, critic = networks(num_classes)
        lists = [
            [value for name, value in part.named_parameters() if not name.endswith("vectors")]
            for part in (student, fake, critic)
        ]
        optimizers = [torch.optim.Adam(each, lr=1e-2) for each in lists]
        routine = ScoreDistillation(
            student,
            optimizers[0],
            teacher,
            fake,
            fake_optimizer=optimizers[1],
            critic=critic,
            critic_optimizer=optimizers[2],
            noise=NOISE,
            settings=DistillationSettings(
                "forward_kl", batch_size=16, num_critic_steps=2, gan_weight=0.1, r1_weight=1.0
            ),
        )
        rows = torch.randn(32, 2)
        batch = (rows, torch.full((32,), 3)) if num_classes else rows
        metrics = [routine.step(batch) for _ in range(3)][-1]
        label = torch.full((5,), 3) if num_classes else None
        found[num_classes] = [
            *(value.detach() for each in lists for value in each),
            *metrics.values(),
            routine.sample(5, label),
        ]
    for left, right in zip(found[0], found[3], strict=True):
        assert torch.equal(left, right)


# Learnt parts


def test_learnt_student_follows_its_label():
    means = torch.tensor([[-1.5], [1.5]])
    teacher = ClassTeacher(*(gaussian_diffusion(mean, torch.tensor([0.3])) for mean in means))
    network = DenoisingMLP(1, width=32, num_blocks=2, num_classes=2)
    fake = EDMDenoiser(network, (1,), sigma_data=1.0, schedule=NoiseSchedule(0.05, 10.0))
    student = OneStepGenerator(fake, sigma=3.0)
    critic = NoiseCritic(1, width=32, num_classes=2)
    optimizers = [torch.optim.Adam(each.parameters(), lr=4e-3) for each in (student, fake, critic)]
    routine = ScoreDistillation(
        student,
        optimizers[0],
        teacher,
        fake,
        fake_optimizer=optimizers[1],
        critic=critic,
        critic_optimizer=optimizers[2],
        noise=NOISE,
        settings=DistillationSettings("jensen_shannon", batch_size=64, num_critic_steps=3),
    )
    labels = torch.randint(2, (3000,))
    rows = means[labels] + 0.3 * torch.randn(3000, 1)
    batches = TensorBatches(rows, labels, batch_size=192)
    train(routine, batches, num_steps=50, progress_bar=False)
    for label, mean in enumerate(means[:, 0].tolist()):
        samples = routine.sample(400, torch.full((400,), label))
        assert float(samples.mean()) == pytest.approx(mean, abs=0.6)


# Input


def exact(**settings):
    return ScoreDistillation(
        student := ClassNormals(2),
        torch.optim.SGD(student.parameters(), lr=0.1),
        two_classes(),
        student,
        settings=DistillationSettings(scaling="score", **settings),
    )


def learnt(**settings):
    student, teacher, fake, critic = networks(2)
    optimizers = [torch.optim.SGD(each.parameters(), lr=0.0) for each in (student, fake, critic)]
    return ScoreDistillation(
        student,
        optimizers[0],
        teacher,
        fake,
        fake_optimizer=optimizers[1],
        critic=critic,
        critic_optimizer=optimizers[2],
        noise=NOISE,
        settings=DistillationSettings(batch_size=4, num_critic_steps=3, **settings),
    )


def labels(count, dtype=torch.long):
    return torch.ones(count, dtype=dtype)


BAD = {
    "at least batch_size=20 rows, .* got 7": lambda: exact(batch_size=20).step((None, labels(7))),
    "multiple of num_critic_steps=3 rows, .* got 4": lambda: learnt().step(
        (torch.zeros(4, 2), labels(4))
    ),
    "equally long, got lengths 6 and 9": lambda: learnt().step((torch.zeros(6, 2), labels(9))),
    "batch must be rows of data .* got NoneType": lambda: learnt().step((None, labels(6))),
    r"pair \(rows, condition\), got 3 parts": lambda: exact().step((None, labels(6), labels(6))),
    r"labels \(n,\) or embeddings \(n, ...\), got list": lambda: exact().step((None, [0, 1])),
    r"embeddings \(n, ...\), got a single number": lambda: exact().step((None, torch.tensor(1))),
    r"whole labels of shape \(2,\), got None; label 2 stands": lambda: learnt().step(
        torch.zeros(6, 2)
    ),
    "labels from 0 to 2, got labels from 3 to 3": lambda: learnt().step(
        (torch.zeros(6, 2), 3 * labels(6))
    ),
    r"whole labels of shape \(2,\), got torch.float32": lambda: learnt().step(
        (torch.zeros(6, 2), labels(6, torch.float64))
    ),
    r"condition must be a tensor of shape \(5, ...\), .* got \(4,\)": lambda: learnt().sample(
        5, labels(4)
    ),
    "noise must be within the teacher's range": lambda: ScoreDistillation(
        student := networks(2)[0],
        torch.optim.SGD(student.parameters(), lr=0.1),
        GuidedDenoiser(networks(2)[1], 2.0, 2),
        networks(2)[2],
        noise=NoiseSchedule(0.01, 5.0),
    ),
    "condition must be given to a guided teacher": lambda: ScoreDistillation(
        student := networks(0)[0],
        torch.optim.SGD(student.parameters(), lr=0.1),
        GuidedDenoiser(networks(2)[1], 2.0, 2),
        networks(0)[2],
        noise=NOISE,
    ).step(),
}


@pytest.mark.parametrize("message", BAD)
def test_bad_conditions_are_named(message):
    with pytest.raises(ValueError, match=message):
        BAD[message]()
