"""Diffusions with a condition: guidance, training with dropout, samplers, by exact laws."""

import pytest
import torch
from conditional_cases import ClassTeacher, double, normal, two_classes

from bayesdiv.models.diffusion import (
    DenoiserTraining,
    EDMDenoiser,
    GuidedDenoiser,
    NoiseSchedule,
    OneStepGenerator,
)
from bayesdiv.models.diffusion_pyro import diffusion_model
from bayesdiv.models.diffusion_samplers import sample_diffusion
from bayesdiv.nn.denoisers_torch import DenoisingMLP
from bayesdiv.training import TensorBatches, train

WIDE = NoiseSchedule(0.02, 20.0)


def small_denoiser():
    network = DenoisingMLP(1, width=32, num_blocks=2, num_classes=2)
    return EDMDenoiser(network, (1,), sigma_data=1.0, schedule=WIDE)


def noisy(count=40):
    x = 2.0 * torch.randn(count, 1, dtype=torch.float64)
    return x, WIDE.draw(count, x), torch.arange(count) % 2


# Guidance


@pytest.mark.parametrize("guidance", [0.0, 0.5, 1.0, 1.75, 4.0])
def test_guided_score_is_that_of_the_tilted_density(guidance):
    """∇ (γ log p_σ(x|c) + (1 − γ) log p_σ(x)) at the row's level."""
    teacher = two_classes()
    x, sigma, labels = noisy()
    x.requires_grad_()
    log_density = guidance * teacher.log_prob(x, sigma, labels)
    null = torch.full_like(labels, 2)
    log_density = log_density + (1.0 - guidance) * teacher.log_prob(x, sigma, null)
    (slope,) = torch.autograd.grad(log_density.sum(), x)
    found = GuidedDenoiser(teacher, guidance, 2).score(x.detach(), sigma, labels)
    torch.testing.assert_close(found, slope)


def test_guidance_is_of_the_posterior_of_the_class():
    """The guided score less the plain one is (γ − 1) ∇ log p_σ(c|x)."""
    teacher = two_classes()
    x, sigma, labels = noisy()
    x.requires_grad_()
    logits = torch.stack([teacher.log_prob(x, sigma, torch.full((40,), c)) for c in (0, 1)], 1)
    posterior = (logits + double(0.25, 0.75).log()).log_softmax(1)[torch.arange(40), labels]
    (slope,) = torch.autograd.grad(posterior.sum(), x)
    found = GuidedDenoiser(teacher, 3.0, 2).score(x.detach(), sigma, labels)
    torch.testing.assert_close(found - teacher.score(x.detach(), sigma, labels), 2.0 * slope)


def test_no_guidance_is_the_teacher_bit_for_bit_in_one_pass():
    class Counted(ClassTeacher):
        passes = 0

        def denoise(self, x, sigma, condition):
            self.passes += 1
            return super().denoise(x, sigma, condition)

    x, sigma, labels = noisy()
    teacher = Counted(*two_classes().laws)
    guided = GuidedDenoiser(teacher, 1.0, 2)
    assert torch.equal(guided.denoise(x, sigma, labels), teacher.denoise(x, sigma, labels))
    assert teacher.passes == 2


def test_guided_teacher_is_frozen_and_moves_with_its_null_condition():
    teacher = small_denoiser()
    guided = GuidedDenoiser(teacher, 2.0, 2)
    assert not any(parameter.requires_grad for parameter in teacher.parameters())
    assert not guided.training
    assert (guided.event_shape, guided.schedule) == ((1,), WIDE)
    assert "null_condition" in dict(guided.named_buffers())
    rows = guided.sample(3, torch.tensor([0, 1, 1]), num_steps=3)
    assert rows.shape == (3, 1)


def test_guidance_takes_embeddings():
    """Of which the null one has the shape of a row's."""

    class Shifted:
        event_shape, schedule = (2,), WIDE

        def denoise(self, x, sigma, condition):
            return x + condition

    x, embedding, null = torch.randn(4, 2), torch.randn(4, 2), torch.tensor([1.0, -1.0])
    found = GuidedDenoiser(Shifted(), 3.0, null).denoise(x, 1.0, embedding)
    torch.testing.assert_close(found, x + 3.0 * embedding - 2.0 * null)


# Samplers


def assert_classes(rows, labels, means, deviations):
    for label, (mean, deviation) in enumerate(zip(means, deviations, strict=True)):
        own = rows[labels == label]
        error = 5.0 * deviation / len(own) ** 0.5
        assert float(own.mean()) == pytest.approx(mean, abs=error + 0.02)
        assert float(own.std()) == pytest.approx(deviation, rel=0.08)


@pytest.mark.parametrize("churn", [0.0, 10.0])
def test_sampler_draws_from_each_class(churn):
    labels = torch.arange(4000) % 2
    rows = sample_diffusion(
        two_classes(), 4000, labels, num_steps=24, churn=churn, like=double(0.0)
    )
    assert_classes(rows, labels, (-2.0, 1.0), (0.5, 1.5))


def test_guided_sampler_goes_beyond_the_class():
    """Normals of one variance: the guided flow is that of the normal at γ m_c + (1 − γ) m."""
    guided = GuidedDenoiser(
        ClassTeacher(normal(-1.0, 0.7), normal(2.0, 0.7), normal(0.5, 0.7)), 1.5, 2
    )
    labels = torch.arange(4000) % 2
    rows = guided.sample(4000, labels, num_steps=24)
    assert_classes(rows, labels, (-1.75, 2.75), (0.7, 0.7))


def test_pyro_model_has_a_row_for_each_condition():
    labels = torch.arange(4000) % 2
    rows = diffusion_model(two_classes(), condition=labels, num_steps=60)
    assert rows.shape == (4000, 1)
    for label, mean in enumerate((-2.0, 1.0)):
        assert float(rows[labels == label].mean()) == pytest.approx(mean, abs=0.15)


def test_one_step_generator_hands_on_its_condition():
    teacher = small_denoiser()
    with torch.no_grad():
        for parameter in teacher.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    generator, z = OneStepGenerator(teacher), torch.randn(4, 1)
    labels = torch.tensor([0, 1, 2, 0])
    found = generator(z, labels)
    torch.testing.assert_close(found, teacher.denoise(20.0 * z, 20.0, labels))
    assert not torch.allclose(found, generator(z, labels.flip(0)))
    torch.manual_seed(0)
    samples = generator.sample(4, labels)
    torch.manual_seed(0)
    torch.testing.assert_close(samples, generator(torch.randn(4, 1), labels))


# Training


def test_dropout_teaches_the_class_and_the_whole():
    exact = two_classes(dtype=torch.float32)
    labels = (torch.rand(20_000) < 0.75).long()
    means, deviations = torch.tensor([-2.0, 1.0]), torch.tensor([0.5, 1.5])
    rows = (means[labels] + deviations[labels] * torch.randn(20_000))[:, None]
    denoiser = small_denoiser()
    routine = DenoiserTraining(
        denoiser,
        torch.optim.Adam(denoiser.parameters(), lr=5e-3),
        log_sigma_mean=0.0,
        ema_decay=0.98,
        condition_dropout=0.3,
        null_condition=2,
    )
    batches = TensorBatches(rows, labels, batch_size=512)
    train(routine, batches, num_steps=300, progress_bar=False)
    sigma = 1.5
    x = rows[:2000] + sigma * torch.randn(2000, 1)
    for given_labels in (labels[:2000], torch.full((2000,), 2)):
        with torch.no_grad():
            found = routine.averaged.denoise(x, sigma, given_labels)
        expected = exact.denoise(x, sigma, given_labels)
        relative = float(((found - expected) ** 2).mean().sqrt() / expected.std())
        assert relative < 0.12
    # The two differ by far more.
    whole = exact.denoise(x, sigma, torch.full((2000,), 2))
    gap = exact.denoise(x, sigma, labels[:2000]) - whole
    assert float((gap**2).mean().sqrt() / whole.std()) > 0.3


def test_training_without_dropout_draws_as_without_classes():
    """And its numbers are those of the network that knows none, where no label is given."""
    found = []
    for num_classes in (0, 2):
        torch.manual_seed(3)
        network = DenoisingMLP(1, width=8, num_blocks=1, num_classes=num_classes)
        denoiser = EDMDenoiser(network, (1,), schedule=WIDE)
        moved = [v for name, v in denoiser.named_parameters() if not name.endswith("vectors")]
        routine = DenoiserTraining(denoiser, torch.optim.Adam(moved, lr=1e-2))
        rows = torch.randn(16, 1)
        batch = (rows, torch.full((16,), 2)) if num_classes else rows
        losses = [routine.step(batch)["loss"] for _ in range(4)]
        found.append([*losses, *(each.detach() for each in moved)])
    for left, right in zip(*found, strict=True):
        assert torch.equal(left, right)


# Input


def training(**settings):
    return DenoiserTraining(small_denoiser(), None, **settings)


ROWS, LABELS = torch.zeros(3, 1), torch.tensor([0, 1, 1])
BAD = {
    "guidance must be finite and at least 0, got -0.5": lambda: GuidedDenoiser(
        two_classes(), -0.5, 2
    ),
    "guidance must be finite and at least 0, got nan": lambda: GuidedDenoiser(
        two_classes(), float("nan"), 2
    ),
    "condition must be given to a guided teacher": lambda: GuidedDenoiser(
        two_classes(), 2.0, 2
    ).denoise(ROWS, 1.0),
    r"condition must be a tensor of shape \(3, ...\), .* got \(2,\)": lambda: GuidedDenoiser(
        two_classes(), 2.0, 2
    ).denoise(ROWS, 1.0, LABELS[:2]),
    r"null_condition must be like .* got torch.int64 of shape \(2,\)": lambda: GuidedDenoiser(
        two_classes(), 2.0, torch.tensor([2, 2])
    ).score(ROWS, 1.0, LABELS),
    "sigma must be positive": lambda: GuidedDenoiser(two_classes(), 2.0, 2).score(
        ROWS, 0.0, LABELS
    ),
    r"condition_dropout must be in \[0, 1\), got 1.0": lambda: training(
        condition_dropout=1.0, null_condition=2
    ),
    "condition_dropout needs null_condition": lambda: training(condition_dropout=0.1),
    "condition_dropout needs a batch that is a pair": lambda: training(
        condition_dropout=0.1, null_condition=2
    ).step(ROWS),
    "batch must have rows to train on, got NoneType": lambda: training().step((None, LABELS)),
    "equally long, got lengths 3 and 2": lambda: training().step((ROWS, LABELS[:2])),
    r"tensor of shape \(4, ...\), .* got \(3,\)": lambda: small_denoiser().sample(4, LABELS),
    r"tensor of shape \(2, ...\), .* got \(3,\)": lambda: OneStepGenerator(small_denoiser()).sample(
        2, LABELS
    ),
    r"tensor of shape \(5, ...\), .* got \(3,\)": lambda: diffusion_model(
        two_classes(), condition=LABELS, count=5
    ),
}


@pytest.mark.parametrize("message", BAD)
def test_bad_input_is_named(message):
    with pytest.raises(ValueError, match=message):
        BAD[message]()


def test_guided_teacher_must_be_one():
    with pytest.raises(TypeError, match="teacher must have denoise, event_shape, schedule"):
        GuidedDenoiser(torch.nn.Linear(1, 1), 2.0, 2)
