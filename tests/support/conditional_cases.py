"""Teachers and students of a law for each class, all of it exact, in one dimension."""

import torch

from bayesdiv.models.analytic_diffusion import GaussianMixtureDiffusion, gaussian_diffusion
from bayesdiv.nn.noise_levels_torch import NoiseSchedule


def double(*values):
    return torch.tensor(values, dtype=torch.float64)


class ClassTeacher:
    """A law for each label; the last one is that of no class."""

    event_shape, schedule = (1,), NoiseSchedule(0.02, 20.0)

    def __init__(self, *laws):
        self.laws = laws

    def _own(self, name, x, sigma, condition):
        every = torch.stack([getattr(law, name)(x, sigma) for law in self.laws])
        return every[condition, torch.arange(len(x))]

    def denoise(self, x, sigma, condition):
        return self._own("denoise", x, sigma, condition)

    def score(self, x, sigma, condition):
        return self._own("score", x, sigma, condition)

    def log_prob(self, x, sigma, condition):
        return self._own("log_prob", x, sigma, condition)


def normal(mean, deviation):
    return gaussian_diffusion(double(mean), double(deviation))


def two_classes(*, dtype=torch.float64):
    """N(−2, 0.5²) and N(1, 1.5²), with chances 1/4 and 3/4."""
    means, deviations = double([-2.0], [1.0]).to(dtype), double([0.5], [1.5]).to(dtype)
    whole = GaussianMixtureDiffusion(double(1.0, 3.0).to(dtype), means, deviations)
    return ClassTeacher(*map(gaussian_diffusion, means, deviations), whole)


class ClassNormals(torch.nn.Module):
    """x = m_c + s_c z: a student for each class, whose score and density are exact."""

    event_shape = (1,)

    def __init__(self, num_classes):
        super().__init__()
        zeros = torch.zeros(num_classes, 1, dtype=torch.float64)
        self.location, self.log_scale = (torch.nn.Parameter(zeros.clone()) for _ in range(2))

    def sample(self, count, condition):
        z = torch.randn(count, 1, dtype=torch.float64)
        return self.location[condition] + self.log_scale.exp()[condition] * z

    def law(self):
        pairs = zip(self.location.detach(), self.log_scale.detach().exp(), strict=True)
        return ClassTeacher(*(gaussian_diffusion(*pair) for pair in pairs))

    def score(self, x, sigma, condition):
        return self.law().score(x, sigma, condition)

    def log_prob(self, x, sigma, condition):
        return self.law().log_prob(x, sigma, condition)
