"""Students and teachers in one dimension, whose gradients are known to ten digits."""

import torch

from bayesdiv.inference.score_distillation import DistillationSettings, ScoreDistillation
from bayesdiv.models.analytic_diffusion import (
    GaussianMixtureDiffusion,
    NormalGenerator,
    gaussian_diffusion,
)
from bayesdiv.models.diffusion import EDMDenoiser
from bayesdiv.nn.denoisers_torch import DenoisingMLP
from bayesdiv.nn.noise_levels_torch import NoiseSchedule

# What the published table's weights are, as multiples of the layer's.
PUBLISHED_SCALE = {
    "reverse_kl": 1.0,
    "softened_reverse_kl": 1.0,
    "jensen_shannon": 2.0,
    "squared_hellinger": 0.5,
    "forward_kl": 1.0,
    "jeffreys": 1.0,
    "neyman_chi2": 1.0,
}


def tensor(*values):
    return torch.tensor(values, dtype=torch.float64)


class NormalStudent(NormalGenerator):
    """x = θ + s z in one dimension: the restricted student and an explicit guide.

    ``grid`` takes quantiles of z in place of draws, so that sums over samples are quadrature.
    """

    def __init__(self, location, scale, *, grid=False):
        super().__init__(tensor(location), tensor(scale))
        self.grid = grid

    @property
    def log_scale(self):
        return self.log_diagonal

    def sample(self, count):
        if not self.grid:
            return super().sample(count)
        z = torch.special.ndtri((torch.arange(count, dtype=torch.float64) + 0.5) / count)
        return self.location + self.log_scale.exp() * z[:, None]


def standard_normal():
    return gaussian_diffusion(tensor(0.0), tensor(1.0))


def two_modes():
    """A third of the mass at −2, the rest at 2."""
    means, deviations = tensor(-2.0, 2.0)[:, None], tensor(0.5, 0.5)[:, None]
    return GaussianMixtureDiffusion(tensor(1.0, 2.0), means, deviations)


def one_level(sigma):
    return NoiseSchedule(sigma, sigma) if sigma else None


def exact_settings(divergence, **settings):
    """The plain gradient of the divergence, nothing normalised."""
    plain = {
        "scaling": "score",
        "normalize_ratio": False,
        "normalize_weight": False,
        "min_ess": 0.0,
        "num_bins": 1,
    }
    return DistillationSettings(divergence, **{**plain, **settings})


def exact_routine(student, teacher, divergence, sigma, *, rate=1.0, optimizer=None, **settings):
    """Exact scores, exact ratio."""
    optimizer = optimizer or torch.optim.SGD(student.parameters(), lr=rate)
    return ScoreDistillation(
        student,
        optimizer,
        teacher,
        student,
        noise=one_level(sigma),
        settings=exact_settings(divergence, **settings),
    )


NOISE = NoiseSchedule(0.3, 3.0)
MODES = torch.tensor([[-1.0, -1.0], [1.0, -1.0], [0.0, 1.2]])


def plane_teacher():
    return GaussianMixtureDiffusion(
        torch.ones(3), MODES, torch.full((3, 2), 0.3), schedule=NoiseSchedule(0.05, 10.0)
    )


def small_denoiser(width=64):
    network = DenoisingMLP(2, width=width, num_blocks=2)
    return EDMDenoiser(network, (2,), sigma_data=1.0, schedule=NoiseSchedule(0.05, 10.0))


class QuadraticCritic(torch.nn.Module):
    """A logit in (1, x, x²): the ratio of two Gaussians is exactly one of these."""

    def __init__(self):
        super().__init__()
        self.coefficients = torch.nn.Parameter(tensor(0.0, 0.0, 0.0))

    def forward(self, x, sigma):
        return torch.cat([torch.ones_like(x), x, x**2], dim=1) @ self.coefficients
