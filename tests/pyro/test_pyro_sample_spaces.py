"""Two-sample objectives in Pyro on data and on codes, and what a step refuses."""

import math

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import SVI
from pyro.infer.autoguide import AutoDelta, AutoMultivariateNormal
from torch.distributions import constraints

from bayesdiv.pyro import objective


@pytest.fixture(autouse=True)
def _double():
    torch.set_default_dtype(torch.float64)


DATA = torch.tensor([0.4, 1.9, 1.1, 2.3, 0.8], dtype=torch.float64)


def normal_model(data):
    mean = pyro.sample("mean", dist.Normal(0.0, 2.0))
    with pyro.plate("n", len(data)):
        pyro.sample("x", dist.Normal(mean, 1.0), obs=data)


def fit(model, guide, loss, num_steps, *args, rate=0.03):
    # A short memory of squared gradients: those of reverse KL are thousands of times larger.
    settings = {"lr": rate, "lrd": 0.03 ** (1 / num_steps), "betas": (0.9, 0.95)}
    svi = SVI(model, guide, pyro.optim.ClippedAdam(settings), loss)
    for _ in range(num_steps):
        last = svi.step(*args)
    return last


def _mean_field(data):
    location = pyro.param("location", torch.tensor(0.3))
    spread = pyro.param("spread", torch.tensor(0.6), constraint=constraints.positive)
    pyro.sample("mean", dist.Normal(location, spread))


# "data"

SAMPLE = 1.5 + 0.7 * torch.special.ndtri((torch.arange(40).double() + 0.5) / 40)


def location_scale(data, mask=None):
    mean = pyro.sample("mean", dist.Normal(0.0, 5.0))
    spread = pyro.sample("spread", dist.LogNormal(0.0, 1.0))
    with pyro.plate("n", len(data)), poutine.mask(mask=True if mask is None else mask):
        pyro.sample("x", dist.Normal(mean, spread), obs=data)


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("energy_distance", {}),
        ("mmd", {}),
        ("sliced_wasserstein", {"num_projections": 1}),
        ("wasserstein", {}),
    ],
)
def test_data_space_recovers_location_and_scale(name, parameters):
    guide = AutoDelta(location_scale)
    loss = objective(name, space="data", num_particles=4, **parameters)
    fit(location_scale, guide, loss, 300, SAMPLE, rate=0.05)
    found = guide.median(SAMPLE)
    deviation = SAMPLE.std(unbiased=False).item()
    assert found["mean"].item() == pytest.approx(SAMPLE.mean().item(), abs=0.1 * deviation)
    assert found["spread"].item() == pytest.approx(deviation, rel=0.1)


def test_energy_distance_fits_as_the_hosts_does():
    found = []
    for loss in (
        objective("energy_distance", space="data", num_particles=4),
        pyro.infer.EnergyDistance(num_particles=4),
    ):
        pyro.clear_param_store()
        guide = AutoDelta(location_scale)
        fit(location_scale, guide, loss, 300, SAMPLE, rate=0.05)
        median = guide.median(SAMPLE)
        found.append([median["mean"].item(), median["spread"].item()])
    np.testing.assert_allclose(*found, atol=0.08)


def test_masked_rows_are_left_out_even_where_they_are_missing():
    data = torch.cat([SAMPLE, torch.full((3,), math.nan)])
    mask = torch.isfinite(data)
    guide = AutoDelta(location_scale)
    guide(SAMPLE)
    losses = []
    outliers = torch.cat([SAMPLE, torch.full((3,), 99.0)])
    for rows, keep in ((outliers, mask), (data, mask), (outliers, None)):
        torch.manual_seed(0)
        loss = objective("energy_distance", space="data", num_particles=2)
        losses.append(loss.loss(location_scale, guide, rows, keep))
    assert losses[0] == losses[1]
    assert abs(losses[2] - losses[0]) > 0.1


def test_prior_scale_subtracts_the_log_prior():
    guide = AutoDelta(location_scale)
    losses = []
    for scale in (0.0, 0.3):
        loss = objective("energy_distance", space="data", num_particles=3, prior_scale=scale)
        loss.loss(location_scale, guide, SAMPLE)
        torch.manual_seed(0)
        losses.append(loss.loss(location_scale, guide, SAMPLE))
    point = guide.median(SAMPLE)
    log_prior = dist.Normal(0.0, 5.0).log_prob(point["mean"]) + dist.LogNormal(0.0, 1.0).log_prob(
        point["spread"]
    )
    assert losses[1] - losses[0] == pytest.approx(-0.3 * log_prior.item(), rel=1e-9)


@pytest.mark.parametrize("as_callable", [False, True])
def test_context_makes_a_slope_visible(as_callable):
    covariate = torch.linspace(-1.0, 1.0, 40).double()
    outcome = 2.0 * covariate + 0.3 * torch.sin(17.0 * covariate)

    def model(covariate, outcome):
        slope = pyro.sample("slope", dist.Normal(0.0, 5.0))
        with pyro.plate("n", len(outcome)):
            pyro.sample("y", dist.Normal(slope * covariate, 0.3), obs=outcome)

    context = (lambda covariate, _: covariate[:, None]) if as_callable else covariate[:, None]
    guide = AutoDelta(model)
    loss = objective("energy_distance", space="data", num_particles=2, context=context)
    fit(model, guide, loss, 150, covariate, outcome, rate=0.1)
    assert guide.median(covariate, outcome)["slope"].item() == pytest.approx(2.0, abs=0.2)


# "codes"

LOADINGS = torch.tensor([[1.0, 0.5], [-0.5, 1.0], [0.8, -0.3]], dtype=torch.float64)


def _autoencoder_data():
    codes = torch.distributions.Normal(0.0, 1.0).sample((100, 2))
    return codes @ LOADINGS.T + 0.1 * torch.distributions.Normal(0.0, 1.0).sample((100, 3))


def decoder(rows):
    loadings = pyro.param("loadings", LOADINGS.clone())
    with pyro.plate("data", len(rows)):
        code = pyro.sample("code", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        pyro.sample("row", dist.Normal(code @ loadings.T, 0.1).to_event(1), obs=rows)


def encoder(rows):
    # Scaled and shifted away from the prior: reconstruction alone would not bring it back.
    matrix = pyro.param("encoder", 3.0 * torch.linalg.pinv(LOADINGS).T)
    shift = pyro.param("shift", torch.tensor([2.0, -1.0]))
    with pyro.plate("data", len(rows)):
        pyro.sample("code", dist.Delta(rows @ matrix + shift, event_dim=1))


@pytest.mark.parametrize("name", ["energy_distance", "sliced_wasserstein"])
def test_penalty_brings_the_aggregated_codes_to_the_prior(name):
    rows = _autoencoder_data()
    loss = objective(name, space="codes", penalty=300.0)
    fit(decoder, encoder, loss, 500, rows, rate=0.05)
    codes = (rows @ pyro.param("encoder") + pyro.param("shift")).detach()
    # 100 draws of the prior have a mean of 0.1 and a relative sd error of 0.07 themselves.
    assert codes.mean(0).abs().max() < 0.25
    assert (codes.std(0) - 1).abs().max() < 0.2
    assert abs(torch.corrcoef(codes.T)[0, 1].item()) < 0.25
    rebuilt = codes @ pyro.param("loadings").detach().T
    assert ((rebuilt - rows) ** 2).mean() < 0.05 * (rows**2).mean()


def test_codes_loss_is_reconstruction_plus_penalty_for_each_datum():
    rows = _autoencoder_data()[:8]

    def subsampled(part, prior_mean=0.0):
        with pyro.plate("data", 40, subsample=torch.arange(8)):
            code = pyro.sample("code", dist.Delta(torch.ones(8, 1) * prior_mean, event_dim=1))
            pyro.sample("row", dist.Normal(code * torch.ones(3), 0.5).to_event(1), obs=part)

    def guide(part, prior_mean=0.0):
        with pyro.plate("data", 40, subsample=torch.arange(8)):
            pyro.sample("code", dist.Delta(torch.zeros(8, 1), event_dim=1))

    parts = [
        objective("wasserstein", space="codes", penalty=penalty, root=False).loss(
            subsampled, guide, rows, 0.0
        )
        for penalty in (0.0, 2.0)
    ]
    reconstruction = -5.0 * dist.Normal(0.0, 0.5).log_prob(rows).sum().item()
    assert parts == pytest.approx([reconstruction] * 2, rel=1e-9)


def test_global_sites_beside_codes_keep_their_reverse_kl():
    rows = _autoencoder_data()[:8]

    def model(rows):
        shift = pyro.sample("shift_site", dist.Normal(0.0, 1.0))
        with pyro.plate("data", 8):
            code = pyro.sample("code", dist.Normal(0.0, 1.0))
            top = pyro.sample("top", dist.Normal(code, 1.0))
            mean = (top + shift)[..., None] * torch.ones(3)
            pyro.sample("row", dist.Normal(mean, 1.0).to_event(1), obs=rows)

    def guide(rows):
        pyro.sample("shift_site", dist.Normal(0.3, 0.5))
        with pyro.plate("data", 8):
            pyro.sample("code", dist.Delta(rows[:, 0]))
            pyro.sample("top", dist.Delta(rows[:, 1]))

    loss = objective("energy_distance", space="codes", penalty=0.0)
    loss.loss(model, guide, rows)
    torch.manual_seed(8)
    value = loss.loss(model, guide, rows)
    torch.manual_seed(8)
    shift = 0.3 + 0.5 * torch.randn(())
    expected = (
        dist.Normal(rows[:, 1:2] + shift, 1.0).log_prob(rows).sum()
        + dist.Normal(0.0, 1.0).log_prob(shift)
        - dist.Normal(0.3, 0.5).log_prob(shift)
    )
    assert value == pytest.approx(-expected.item(), rel=1e-10)
    vectorised = objective("energy_distance", space="codes", num_particles=3)
    assert math.isfinite(vectorised.loss(model, guide, rows))


# What is refused


def _discrete_likelihood(data):
    rate = pyro.sample("mean", dist.Normal(0.0, 1.0))
    with pyro.plate("n", len(data)):
        pyro.sample("count", dist.Poisson(rate.exp()), obs=data.round())


def _coin(data):
    pyro.sample("coin", dist.Bernoulli(0.5))


def _infinite_model(data):
    pyro.sample("mean", dist.Normal(0.0, 1.0))
    pyro.factor("broken", torch.tensor(math.inf))


def _local(data):
    with pyro.plate("n", 5, subsample_size=2) as index:
        mean = pyro.sample("mean", dist.Normal(0.0, 1.0))
        pyro.sample("x", dist.Normal(mean, 1.0), obs=data[index])


def _local_guide(data):
    with pyro.plate("n", 5, subsample_size=2):
        pyro.sample("mean", dist.Normal(0.0, 1.0))


def _inside(data):
    with pyro.plate("n", 5):
        mean = pyro.sample("mean", dist.Normal(0.0, 1.0))
        pyro.sample("x", dist.Normal(mean, 1.0), obs=data)


@pytest.mark.parametrize(
    ("model", "guide", "arguments", "message"),
    [
        (
            _discrete_likelihood,
            _mean_field,
            {"space": "data"},
            "likelihood 'count' .Poisson. is not reparameterised",
        ),
        (_coin, _coin, {}, "guide site 'coin' .Bernoulli. is not reparameterised"),
        (normal_model, _mean_field, {"space": "codes"}, "needs a latent site and an observed site"),
        (
            _infinite_model,
            _mean_field,
            {"max_plate_nesting": 0},
            "'broken' has log-probability inf at particle 0",
        ),
        (_local, _local_guide, {}, "'mean' stands in plate 'n', of which 2 of 5 are subsampled"),
        (
            normal_model,
            _mean_field,
            {"reference": {"mean": torch.zeros(7, 3)}},
            r"reference\['mean'\] must have shape",
        ),
        (normal_model, _coin, {}, r"the guide lacks the latent sites \['mean'\]"),
        (
            normal_model,
            _mean_field,
            {"space": "data", "context": torch.zeros(3, 1)},
            r"context must have shape \(5, c\)",
        ),
        (
            lambda data: pyro.sample("mean", dist.Normal(0.0, 1.0)),
            _mean_field,
            {"space": "data"},
            "compares observed sites, and the model has none",
        ),
        (
            _inside,
            AutoMultivariateNormal(_inside),
            {"space": "codes"},
            "stands outside the data plate",
        ),
    ],
)
def test_a_step_refuses(model, guide, arguments, message):
    loss = objective("energy_distance", num_particles=4, **arguments)
    with pytest.raises(ValueError, match=message):
        loss.loss_and_grads(model, guide, DATA)


def test_too_few_particles_are_refused():
    with pytest.raises(ValueError, match="num_particles must be at least 2 in space='latent'"):
        objective("energy_distance", num_particles=1)
