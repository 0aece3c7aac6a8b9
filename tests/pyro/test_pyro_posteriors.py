"""Fits with every objective against posteriors in closed form."""

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.distributions import constraints
from pyro.infer import SVI
from pyro.infer.autoguide import AutoMultivariateNormal, AutoNormal
from pyro.optim import ClippedAdam

from bayesdiv.divergences import FDivergence
from bayesdiv.pyro import objective

STEPS = 220
OBJECTIVES = {
    "reverse_kl": {"num_particles": 16, "gradient": "path"},
    "forward_kl": {},
    "jensen_shannon": {},
    "squared_hellinger": {},
    "pearson_chi2": {"warmup": 60},
    "neyman_chi2": {"warmup": 60},
    "jeffreys": {},
    "softened_reverse_kl": {},
    "alpha": {"order": 0.5},
    "generalized_jensen_shannon": {},
    "total_variation": {"num_particles": 64, "warmup": 60},
    "iwae": {},
    "renyi": {"order": 0.5},
    "tail_adaptive": {"warmup": 60},
}


@pytest.fixture(autouse=True)
def _float64():
    torch.set_default_dtype(torch.float64)


def fit(model, guide, name, *, steps=STEPS, rate=0.1, **arguments):
    """SVI with a step size that falls a hundredfold."""
    torch.manual_seed(0)
    optimiser = ClippedAdam({"lr": rate, "lrd": 0.01 ** (1.0 / steps)})
    svi = SVI(model, guide, optimiser, loss=objective(name, **arguments))
    with pyro.validation_enabled(is_validate=False):
        for _ in range(steps):
            svi.step()


def tolerance(name):
    # Path gradients vanish at the posterior; score gradients keep their noise.
    return 0.2 if name == "total_variation" else 0.02


@pytest.mark.parametrize("name", OBJECTIVES)
def test_normal_location(name):
    data = torch.tensor([0.9, 1.6, 0.4, 1.1])

    def model():
        location = pyro.sample("location", dist.Normal(0.0, 2.0))
        with pyro.plate("rows", len(data), dim=-1):
            pyro.sample("x", dist.Normal(location, 1.0), obs=data)

    precision = 0.25 + len(data)
    mean, sd = float(data.sum()) / precision, precision**-0.5
    guide = AutoNormal(
        model,
        init_loc_fn=pyro.infer.autoguide.init_to_value(values={"location": torch.tensor(0.6)}),
        init_scale=0.6,
    )
    fit(model, guide, name, **OBJECTIVES[name])
    assert abs(guide.locs.location.item() - mean) < tolerance(name) * sd
    assert abs(guide.scales.location.item() / sd - 1.0) < tolerance(name)


@pytest.mark.parametrize(
    "name", ["reverse_kl", "forward_kl", "jensen_shannon", "neyman_chi2", "renyi", "tail_adaptive"]
)
def test_linear_regression_with_known_noise(name):
    features = torch.tensor(
        [[1.0, -1.0], [1.0, -0.2], [1.0, 0.1], [1.0, 0.9], [1.0, 1.6], [1.0, 2.0]]
    )
    data = torch.tensor([-0.9, 0.1, 0.2, 1.4, 1.8, 2.9])

    def model():
        weights = pyro.sample("weights", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        with pyro.plate("rows", len(data), dim=-1):
            location = (features * weights).sum(-1)
            pyro.sample("x", dist.Normal(location, 0.7), obs=data)

    covariance = torch.linalg.inv(torch.eye(2) + features.T @ features / 0.49)
    mean = covariance @ features.T @ data / 0.49
    start = pyro.infer.autoguide.init_to_value(values={"weights": torch.tensor([0.5, 0.9])})
    guide = AutoMultivariateNormal(model, init_loc_fn=start, init_scale=0.3)
    fit(model, guide, name, steps=250, **OBJECTIVES[name])
    found = guide.get_posterior()
    sd = covariance.diagonal().sqrt()
    assert bool(((found.mean - mean).abs() < 0.04 * sd).all())
    torch.testing.assert_close(
        found.covariance_matrix, covariance, atol=0.08 * float(sd.max()) ** 2, rtol=0.0
    )


def positive(name, value):
    return pyro.param(name, torch.tensor(value), constraint=constraints.positive)


@pytest.mark.parametrize("name", ["reverse_kl", "forward_kl", "jensen_shannon", "iwae"])
def test_gamma_guide_of_a_poisson_rate(name):
    counts = torch.tensor([3.0, 5.0, 4.0, 2.0])

    def model():
        rate = pyro.sample("rate", dist.Gamma(2.0, 1.0))
        with pyro.plate("rows", len(counts), dim=-1):
            pyro.sample("x", dist.Poisson(rate), obs=counts)

    def guide():
        pyro.sample("rate", dist.Gamma(positive("shape", 10.0), positive("inverse", 3.0)))

    fit(model, guide, name, steps=250, **OBJECTIVES[name])
    shape, inverse = pyro.param("shape").item(), pyro.param("inverse").item()
    exact_shape, exact_inverse = 2.0 + float(counts.sum()), 1.0 + len(counts)
    sd = math.sqrt(exact_shape) / exact_inverse
    assert abs(shape / inverse - exact_shape / exact_inverse) < 0.03 * sd
    assert math.sqrt(shape) / inverse == pytest.approx(sd, rel=0.04)


@pytest.mark.parametrize("name", ["reverse_kl", "forward_kl", "jensen_shannon", "iwae"])
def test_beta_guide_of_a_coin(name):
    flips = torch.tensor([1.0, 1.0, 0.0, 1.0, 1.0, 0.0, 1.0, 1.0])

    def model():
        bias = pyro.sample("bias", dist.Beta(2.0, 2.0))
        with pyro.plate("rows", len(flips), dim=-1):
            pyro.sample("x", dist.Bernoulli(bias), obs=flips)

    def guide():
        pyro.sample("bias", dist.Beta(positive("heads", 5.0), positive("tails", 5.0)))

    fit(model, guide, name, steps=250, **OBJECTIVES[name])
    found = dist.Beta(pyro.param("heads").detach(), pyro.param("tails").detach())
    exact = dist.Beta(2.0 + flips.sum(), 2.0 + (1.0 - flips).sum())
    assert abs(found.mean - exact.mean) < 0.03 * exact.stddev
    assert float(found.stddev / exact.stddev) == pytest.approx(1.0, abs=0.04)


@pytest.mark.parametrize(
    ("name", "generator"),
    [
        ("forward_kl", lambda u: u * u.log() - u + 1.0),
        ("squared_hellinger", lambda u: (u.sqrt() - 1.0) ** 2),
        ("jensen_shannon", lambda u: 0.5 * (u * u.log() - (1 + u) * ((1 + u) / 2).log())),
    ],
)
def test_a_divergence_given_by_f_alone_gives_the_fit_of_the_built_in_one(name, generator):
    data = torch.tensor([0.9, 1.6, 0.4, 1.1])

    def model():
        location = pyro.sample("location", dist.Normal(0.0, 2.0))
        spread = pyro.sample("spread", dist.LogNormal(0.0, 0.5))
        with pyro.plate("rows", len(data), dim=-1):
            pyro.sample("x", dist.StudentT(4.0, location, spread), obs=data)

    found = []
    for divergence in (name, FDivergence.from_generator(generator, name="mine")):
        pyro.clear_param_store()
        guide = AutoNormal(model)
        fit(model, guide, divergence, steps=60)
        found.append(torch.stack([leaf.detach() for leaf in guide.parameters()]))
    torch.testing.assert_close(found[1], found[0], rtol=1e-8, atol=1e-8)


def test_seeking_and_covering_of_two_modes():
    """With the modes 10 sd apart, one sits on a mode and the other has the mixture's moments."""
    centre, width = 3.0, 0.6

    def model():
        prior = dist.Normal(0.0, 10.0)
        z = pyro.sample("z", prior)
        parts = dist.Normal(torch.tensor([-centre, centre]), width)
        pyro.factor("modes", parts.log_prob(z[..., None]).logsumexp(-1) - prior.log_prob(z))

    spread = {}
    for name in ("reverse_kl", "forward_kl"):
        pyro.clear_param_store()
        start = pyro.infer.autoguide.init_to_value(values={"z": torch.tensor(0.8)})
        guide = AutoNormal(model, init_loc_fn=start, init_scale=2.0)
        fit(model, guide, name, steps=250, num_particles=200)
        spread[name] = guide.scales.z.item(), guide.locs.z.item()
    assert spread["reverse_kl"][0] == pytest.approx(width, rel=0.05)
    assert abs(spread["reverse_kl"][1]) == pytest.approx(centre, rel=0.05)
    assert spread["forward_kl"][0] == pytest.approx(math.hypot(centre, width), rel=0.05)
    assert abs(spread["forward_kl"][1]) < 0.2
