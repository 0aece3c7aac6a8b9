"""Diffusions: exact teachers, preconditioning, samplers and training, by laws of Gaussians."""

import math

import pyro
import pytest
import torch

from bayesdiv.models.analytic_diffusion import (
    GaussianMixtureDiffusion,
    NormalGenerator,
    gaussian_diffusion,
)
from bayesdiv.models.diffusion import DenoiserTraining, EDMDenoiser, NoiseSchedule, OneStepGenerator
from bayesdiv.models.diffusion_pyro import diffusion_model
from bayesdiv.models.diffusion_samplers import sample_diffusion
from bayesdiv.nn.denoisers_torch import DenoisingMLP, DenoisingUNet
from bayesdiv.training import TensorBatches, train

WIDE = NoiseSchedule(0.02, 20.0)


def double(*values):
    return torch.tensor(values, dtype=torch.float64)


def full_mixture():
    covariances = torch.stack([double([1.0, 0.6], [0.6, 0.8]), double([0.2, -0.1], [-0.1, 0.3])])
    means = double([-1.0, 0.5], [1.5, 0.0])
    return GaussianMixtureDiffusion(double(1.0, 3.0), means, covariances, schedule=WIDE)


def small_denoiser(dim=1, **settings):
    settings = {"sigma_data": 1.0, "schedule": WIDE, **settings}
    return EDMDenoiser(DenoisingMLP(dim, width=32, num_blocks=2), (dim,), **settings)


# Exact teachers


@pytest.mark.parametrize("sigma", [0.0, 0.3, 4.0])
def test_log_density_is_that_of_torch(sigma):
    teacher = full_mixture()
    x = 2.0 * torch.randn(50, 2, dtype=torch.float64)
    covariances = torch.stack([double([1.0, 0.6], [0.6, 0.8]), double([0.2, -0.1], [-0.1, 0.3])])
    parts = torch.distributions.MultivariateNormal(
        teacher.means, covariances + sigma**2 * torch.eye(2, dtype=torch.float64)
    )
    mixture = torch.distributions.Categorical(probs=double(0.25, 0.75))
    expected = torch.distributions.MixtureSameFamily(mixture, parts).log_prob(x)
    torch.testing.assert_close(teacher.log_prob(x, sigma), expected)


@pytest.mark.parametrize("sigma", [0.0, 0.5, torch.linspace(0.1, 3.0, 40, dtype=torch.float64)])
def test_score_is_the_slope_of_the_log_density(sigma):
    teacher = full_mixture()
    x = torch.randn(40, 2, dtype=torch.float64).requires_grad_()
    (slope,) = torch.autograd.grad(teacher.log_prob(x, sigma).sum(), x)
    torch.testing.assert_close(teacher.score(x.detach(), sigma), slope)


def test_denoised_row_is_the_posterior_mean():
    """Of points with known weights it is a softmax of distances."""
    points = torch.randn(20, 3, dtype=torch.float64)
    teacher = GaussianMixtureDiffusion(
        torch.ones(20, dtype=torch.float64), points, torch.zeros_like(points)
    )
    x, sigma = torch.randn(7, 3, dtype=torch.float64), 0.6
    chances = (-((x[:, None] - points) ** 2).sum(2) / (2.0 * sigma**2)).softmax(1)
    torch.testing.assert_close(teacher.denoise(x, sigma), chances @ points)


def test_clean_samples_have_the_moments():
    teacher, count = full_mixture(), 40_000
    rows = teacher.sample(count)
    mean = double(0.25, 0.75) @ teacher.means
    error = 5.0 * float(rows.std(0).max()) / math.sqrt(count)
    torch.testing.assert_close(rows.mean(0), mean, atol=error, rtol=0.0)
    second = rows.T @ rows / count
    expected = 0.25 * (double([1.0, 0.6], [0.6, 0.8]) + teacher.means[0].outer(teacher.means[0]))
    expected = expected + 0.75 * (
        double([0.2, -0.1], [-0.1, 0.3]) + teacher.means[1].outer(teacher.means[1])
    )
    torch.testing.assert_close(second, expected, atol=0.08, rtol=0.0)


# Preconditioning


def test_untrained_denoiser_is_that_of_a_gaussian():
    """Its network starts at zero, which is the optimum for N(0, σ_d² I)."""
    denoiser = small_denoiser(3, sigma_data=0.7).double()
    teacher = gaussian_diffusion(torch.zeros(3).double(), torch.full((3,), 0.7).double())
    x, sigma = torch.randn(30, 3, dtype=torch.float64), WIDE.draw(30, double(0.0))
    torch.testing.assert_close(denoiser.denoise(x, sigma), teacher.denoise(x, sigma))
    torch.testing.assert_close(denoiser.score(x, sigma), teacher.score(x, sigma))


def test_unit_variance_enters_the_network():
    seen = []

    class Probe(torch.nn.Module):
        def forward(self, x, noise):
            seen.append((x, noise))
            return torch.ones_like(x)

    denoiser = EDMDenoiser(Probe(), (1,), sigma_data=0.5, schedule=WIDE)
    x = (0.5**2 + 3.0**2) ** 0.5 * torch.ones(4, 1)
    found = denoiser.denoise(x, 3.0)
    torch.testing.assert_close(seen[0][0], torch.ones(4, 1))
    torch.testing.assert_close(seen[0][1], torch.full((4,), 0.25 * math.log(3.0)))
    # What the network adds is scaled so that its target has variance 1.
    expected = 0.25 / 9.25 * x + 3.0 * 0.5 / 9.25**0.5
    torch.testing.assert_close(found, expected)


def test_u_net_denoises_images():
    network = DenoisingUNet((2, 12, 8), width=8, embedding_size=8)
    denoiser = EDMDenoiser(network, (2, 12, 8), schedule=WIDE)
    x = torch.randn(3, 2, 12, 8)
    assert denoiser.denoise(x, torch.tensor([0.1, 1.0, 10.0])).shape == x.shape
    assert denoiser.features(x, 0.5).shape == (3, network.num_features)
    routine = DenoiserTraining(denoiser, torch.optim.Adam(denoiser.parameters(), lr=1e-2))
    images = torch.tensor([1.0, -1.0]).reshape(2, 1, 1, 1).expand(2, 2, 12, 8).repeat(8, 1, 1, 1)
    losses = [float(routine.step(images)["loss"]) for _ in range(40)]
    assert sum(losses[-10:]) < 0.7 * sum(losses[:10])
    assert denoiser.sample(2, num_steps=3).shape == (2, 2, 12, 8)


# Samplers


def ode_error(num_steps):
    """Of x(0) = x(σ_max) / √(1 + σ_max²), which is the flow of N(0, 1)."""
    teacher = gaussian_diffusion(double(0.0), double(1.0), schedule=NoiseSchedule(0.01, 5.0))
    torch.manual_seed(3)
    found = sample_diffusion(teacher, 5, num_steps=num_steps, like=double(0.0))
    torch.manual_seed(3)
    start = 5.0 * torch.randn(5, 1, dtype=torch.float64)
    return float((found / (start / 26.0**0.5) - 1.0).abs().max())


def test_heun_is_of_second_order():
    errors = [ode_error(steps) for steps in (20, 40, 80)]
    assert 3.0 < errors[0] / errors[1] < 5.5
    assert 3.0 < errors[1] / errors[2] < 5.5


def test_heun_takes_two_passes_a_step_but_the_last():
    class Counted:
        event_shape, schedule, passes = (1,), WIDE, 0

        def denoise(self, x, sigma):
            self.passes += 1
            return 0.0 * x

    teacher = Counted()
    assert (sample_diffusion(teacher, 3, num_steps=18) == 0.0).all()
    assert teacher.passes == 35


@pytest.mark.parametrize("churn", [0.0, 20.0])
def test_samplers_reach_the_law(churn):
    teacher, count = full_mixture(), 4000
    rows = sample_diffusion(teacher, count, num_steps=40, churn=churn, like=double(0.0))
    clean = teacher.sample(count)
    for power in (1, 2, 3):
        x, y = rows**power, clean**power
        error = 5.0 * ((x.var(0) + y.var(0)) / count).sqrt()
        assert bool(((x.mean(0) - y.mean(0)).abs() < error + 0.02).all())


def test_flow_draws_its_start_and_no_more():
    """Churn draws on, and moves the end."""
    teacher = gaussian_diffusion(double(0.0), double(1.0), schedule=WIDE)
    ends, states = {}, {}
    for churn in (0.0, 20.0):
        torch.manual_seed(5)
        ends[churn] = sample_diffusion(teacher, 3, num_steps=5, churn=churn)
        states[churn] = torch.get_rng_state()
    torch.manual_seed(5)
    torch.randn(3, 1)
    assert torch.equal(states[0.0], torch.get_rng_state())
    assert not torch.equal(states[20.0], states[0.0])
    assert not torch.allclose(ends[20.0], ends[0.0])


# The Pyro model


def test_pyro_model_draws_from_the_teacher():
    teacher = gaussian_diffusion(double(1.0, -1.0), double(0.5, 2.0), schedule=WIDE)
    rows = diffusion_model(teacher, count=20_000, num_steps=120)
    assert rows.shape == (20_000, 2)
    torch.testing.assert_close(rows.mean(0).double(), double(1.0, -1.0), atol=0.1, rtol=0.0)
    torch.testing.assert_close(rows.std(0).double(), double(0.5, 2.0), atol=0.0, rtol=0.06)


def test_pyro_model_scores_data_by_its_chain():
    """Σ over the sites of a trace is the joint density of the chain, written out here."""
    teacher = gaussian_diffusion(double(0.3), double(0.8), schedule=WIDE)
    data = double([0.1], [-0.7], [1.4])
    trace = pyro.poutine.trace(diffusion_model).get_trace(teacher, data, num_steps=4)
    levels = WIDE.levels(4)[:-1].tolist()
    states = [trace.nodes[f"state_{i}"]["value"] for i in range(4)]
    total = torch.distributions.Normal(0.0, levels[0]).log_prob(states[0]).sum()
    for i in range(1, 4):
        clean, share = (
            teacher.denoise(states[i - 1], levels[i - 1]),
            (levels[i] / levels[i - 1]) ** 2,
        )
        mean = (1.0 - share) * clean + share * states[i - 1]
        scale = levels[i] * math.sqrt(1.0 - share)
        total = total + torch.distributions.Normal(mean, scale).log_prob(states[i]).sum()
    last = torch.distributions.Normal(teacher.denoise(states[3], levels[3]), levels[3])
    expected = total + last.log_prob(data).sum()
    torch.testing.assert_close(trace.log_prob_sum(), expected)


# Training


def test_training_learns_the_posterior_mean():
    means, deviations = torch.tensor([[-1.0], [1.0]]), torch.full((2, 1), 0.3)
    exact = GaussianMixtureDiffusion(torch.ones(2), means, deviations)
    denoiser = small_denoiser()
    optimizer = torch.optim.Adam(denoiser.parameters(), lr=3e-3)
    routine = DenoiserTraining(denoiser, optimizer, log_sigma_mean=-0.5, ema_decay=0.98)
    batches = TensorBatches(exact.sample(20_000), batch_size=512)
    train(routine, batches, num_steps=400, progress_bar=False)
    for sigma in (0.3, 1.0):
        clean = exact.sample(2000)
        x = clean + sigma * torch.randn_like(clean)
        with torch.no_grad():
            gap = routine.averaged.denoise(x, sigma) - exact.denoise(x, sigma)
        relative = float((gap**2).mean().sqrt() / exact.denoise(x, sigma).std())
        assert relative < 0.1, sigma
    share = float((routine.averaged.sample(2000) > 0.0).float().mean())
    assert share == pytest.approx(0.5, abs=0.08)


def test_training_resumes_to_the_same_numbers(tmp_path):
    def run(num_steps, path):
        torch.manual_seed(7)
        denoiser = small_denoiser()
        optimizer = torch.optim.Adam(denoiser.parameters(), lr=1e-2)
        scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 12)
        routine = DenoiserTraining(denoiser, optimizer, scheduler=scheduler)
        batches = TensorBatches(torch.randn(64, 1), batch_size=16)
        settings = {"checkpoint": path, "checkpoint_every": 5, "progress_bar": False}
        train(routine, batches, num_steps=num_steps, **settings)
        return routine

    whole = run(12, tmp_path / "whole")
    run(5, tmp_path / "cut")
    resumed = run(12, tmp_path / "cut")
    for left, right in zip(
        [*whole.denoiser.parameters(), *whole.averaged.parameters()],
        [*resumed.denoiser.parameters(), *resumed.averaged.parameters()],
        strict=True,
    ):
        assert torch.equal(left, right)


def test_one_step_generator_starts_as_the_teacher():
    teacher = small_denoiser(2)
    generator = OneStepGenerator(teacher)
    z = torch.randn(6, 2)
    torch.testing.assert_close(generator(z), teacher.denoise(20.0 * z, 20.0))
    x = generator.sample(4)
    x.sum().backward()
    assert x.shape == (4, 2)
    assert all(parameter.grad is None for parameter in teacher.parameters())


# Input

BAD = {
    "sigma_min and sigma_max must be positive": lambda: NoiseSchedule(2.0, 1.0),
    "rho must be finite and at least 1": lambda: NoiseSchedule(rho=0.5),
    "num_steps must be a whole number": lambda: WIDE.levels(0),
    "count must be a whole number": lambda: sample_diffusion(full_mixture(), 0),
    "churn must be at least 0": lambda: sample_diffusion(full_mixture(), 2, churn=-1.0),
    "sigma must be positive, got 0.0": lambda: small_denoiser().denoise(torch.zeros(3, 1), 0.0),
    "sigma must be within the teacher's range": lambda: small_denoiser().score(
        torch.zeros(3, 1), 100.0
    ),
    "one level a row of x": lambda: small_denoiser().denoise(torch.zeros(3, 1), torch.ones(2)),
    r"x must have shape \(n, 1\), got \(3, 2\)": lambda: small_denoiser().denoise(
        torch.zeros(3, 2), 1.0
    ),
    "event_shape must have positive sizes": lambda: EDMDenoiser(DenoisingMLP(1), ()),
    "sigma_data must be positive": lambda: small_denoiser(sigma_data=0.0),
    "ema_decay must be in": lambda: DenoiserTraining(small_denoiser(), None, ema_decay=1.0),
    "log_sigma_std must be positive": lambda: DenoiserTraining(
        small_denoiser(), None, log_sigma_std=0.0
    ),
    "weights must be positive": lambda: GaussianMixtureDiffusion(
        torch.zeros(1), torch.zeros(1, 2), torch.ones(1, 2)
    ),
    "weights and means must have shapes": lambda: GaussianMixtureDiffusion(
        torch.ones(2), torch.zeros(1, 2), torch.ones(1, 2)
    ),
    "covariances must have shape": lambda: gaussian_diffusion(torch.zeros(2), torch.ones(3)),
    "covariances must be symmetric": lambda: gaussian_diffusion(
        torch.zeros(2), torch.tensor([[1.0, 0.5], [0.0, 1.0]])
    ),
    "covariances must be positive semi-definite": lambda: gaussian_diffusion(
        torch.zeros(2), torch.tensor([[1.0, 2.0], [2.0, 1.0]])
    ),
    "x must have shape": lambda: full_mixture().score(torch.zeros(4, 3)),
    "multiples of 4 for 3 resolutions": lambda: DenoisingUNet((1, 10, 8)),
    "width must be a whole number": lambda: DenoisingMLP(2, width=0),
    "embedding_size must be even": lambda: DenoisingMLP(2, embedding_size=3),
    "count must be the number of rows of data": lambda: diffusion_model(
        full_mixture(), torch.zeros(3, 2), count=4
    ),
}


@pytest.mark.parametrize("message", BAD)
def test_bad_input_is_named(message):
    with pytest.raises(ValueError, match=message):
        BAD[message]()


def slanted_generator():
    student = NormalGenerator(double(0.5, -1.0), double(0.7, 1.2))
    with torch.no_grad():
        student.below[1, 0] = 0.8
        # Above the diagonal nothing counts.
        student.below[0, 1] = 5.0
    return student


def test_generator_is_its_law():
    torch.manual_seed(0)
    student = slanted_generator()
    rows = student.sample(100_000).detach()
    factor = double([0.7, 0.0], [0.8, 1.2])
    torch.testing.assert_close(student.factor(), factor)
    # Five standard errors of a mean and of a covariance.
    torch.testing.assert_close(rows.mean(0), student.location, atol=0.024, rtol=0.0)
    torch.testing.assert_close(rows.T.cov(), factor @ factor.T, atol=0.05, rtol=0.0)
    exact = gaussian_diffusion(student.location.detach(), factor @ factor.T)
    noisy = torch.randn(6, 2, dtype=torch.float64)
    for found, wanted in zip(
        student.score_and_log_prob(noisy, 0.4), exact.score_and_log_prob(noisy, 0.4), strict=True
    ):
        torch.testing.assert_close(found, wanted)
    torch.testing.assert_close(student.denoise(noisy, 0.4), exact.denoise(noisy, 0.4))


def test_generator_refuses_shapes_and_scales():
    with pytest.raises(ValueError, match=r"shape \(dim,\), got \(2,\) and \(3,\)"):
        NormalGenerator(torch.zeros(2), torch.ones(3))
    with pytest.raises(ValueError, match=r"scale must be positive, got \[-1.0\]"):
        NormalGenerator(torch.zeros(1), -torch.ones(1))
