"""Programs whose codes lack a density in the model, in the guide, in both or in neither."""

import pyro
import pyro.distributions as dist
import torch
from torch import nn

from bayesdiv.pyro import EmpiricalPrior


class Autoencoder(nn.Module):
    """x ~ N(decoder(z), noise²) with a linear decoder and encoder.

    The plate is of ``total`` rows, of which a batch is the first ones; None for the batch itself.
    ``prior`` is a pool of codes, None for N(0, I), or a function of the batch that gives each row
    its own code; ``scale`` is that of a normal guide, None for a point mass.
    """

    def __init__(
        self, dim, latent_dim, *, prior=None, noise=1.0, scale=None, total=None, dtype=torch.float64
    ):
        super().__init__()
        self.total = total
        self.encoder = nn.Linear(dim, latent_dim, dtype=dtype)
        self.decoder = nn.Linear(latent_dim, dim, dtype=dtype)
        self.prior, self.noise = prior, noise
        self.log_scale = None
        if scale is not None:
            self.log_scale = nn.Parameter(torch.full((latent_dim,), scale, dtype=dtype).log())

    def rows(self, x):
        index = None if self.total is None else torch.arange(len(x))
        return pyro.plate("rows", self.total or len(x), subsample=index)

    def law(self, x):
        if torch.is_tensor(self.prior):
            return EmpiricalPrior(self.prior)
        if self.prior is not None:
            return dist.Delta(self.prior(x), event_dim=1)
        zeros = x.new_zeros(self.encoder.out_features)
        return dist.Normal(zeros, torch.ones_like(zeros)).to_event(1)

    def model(self, x, target=None):
        pyro.module("decoder", self.decoder)
        target = x if target is None else target
        with self.rows(x):
            z = pyro.sample("z", self.law(x))
            pyro.sample("x", dist.Normal(self.decoder(z), self.noise).to_event(1), obs=target)

    def guide(self, x, target=None):
        pyro.module("encoder", self.encoder)
        with self.rows(x):
            mean = self.encoder(x)
            if self.log_scale is None:
                pyro.sample("z", dist.Delta(mean, event_dim=1))
            else:
                scale = pyro.param("log_scale", self.log_scale).exp()
                pyro.sample("z", dist.Normal(mean, scale).to_event(1))


class Location(nn.Module):
    """No observations: the law of z = m + s ε against a pool, or N(0, 1), of one dimension.

    With ``implicit`` z is sampled as a function of ε, which hides its density.
    """

    def __init__(self, location, scale, *, pool=None, implicit=True):
        super().__init__()
        self.location = nn.Parameter(torch.tensor([location], dtype=torch.float64))
        self.log_scale = nn.Parameter(torch.tensor([scale], dtype=torch.float64).log())
        self.pool, self.implicit = pool, implicit

    def model(self, count, plate="rows"):
        zeros = torch.zeros(1, dtype=torch.float64)
        law = dist.Normal(zeros, zeros + 1.0).to_event(1)
        with pyro.plate(plate, count):
            pyro.sample("z", law if self.pool is None else EmpiricalPrior(self.pool))

    def guide(self, count, plate="rows"):
        location = pyro.param("location", self.location)
        scale = pyro.param("log_scale", self.log_scale).exp()
        with pyro.plate(plate, count):
            if self.implicit:
                noise = torch.randn(count, 1, dtype=torch.float64)
                pyro.sample("z", dist.Delta(location + scale * noise, event_dim=1))
            else:
                pyro.sample("z", dist.Normal(location, scale).to_event(1))


def normal_pool(count, seed=1):
    """Draws of N(0, 1), ``(count, 1)``."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, 1, dtype=torch.float64, generator=generator)
