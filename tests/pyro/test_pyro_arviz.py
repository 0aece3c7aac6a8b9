"""Pyro guides and chains as ArviZ objects: exact densities, names, fall-backs, bad input."""

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from helpers import assert_within_standard_errors
from pyro.infer import HMC, MCMC, SVI, Trace_ELBO, TraceEnum_ELBO, config_enumerate
from pyro.infer.autoguide import AutoMultivariateNormal, AutoNormal

from bayesdiv.diagnostics import compare_posteriors, to_arviz
from bayesdiv.divergences import JensenShannon
from bayesdiv.pyro import objective
from bayesdiv.pyro._arviz import own_parameters

Y = torch.tensor([0.3, -1.2, 2.0, 0.7], dtype=torch.float64)
PRIOR, NOISE = torch.tensor(2.0, dtype=torch.float64), torch.tensor(0.5, dtype=torch.float64)
VARIANCE = 1.0 / (1.0 / PRIOR**2 + 1.0 / NOISE**2)


def model(y):
    """Normal means in a plate; the posterior is a product of normals."""
    with pyro.plate("site", len(y)):
        mean = pyro.sample("mean", dist.Normal(torch.zeros_like(PRIOR), PRIOR))
        pyro.deterministic("double", 2.0 * mean)
        pyro.sample("y", dist.Normal(mean, NOISE), obs=y)


def posterior_guide(y):
    with pyro.plate("site", len(y)):
        pyro.sample("mean", dist.Normal(VARIANCE * y / NOISE**2, VARIANCE.sqrt()))


def log_evidence(y):
    return float(dist.Normal(0.0, (PRIOR**2 + NOISE**2).sqrt()).log_prob(y).sum())


def test_the_exact_posterior_has_constant_weights():
    found = to_arviz(posterior_guide, model, Y, num_draws=400, seed=0)
    stats = found.sample_stats
    np.testing.assert_allclose(stats["log_p"] - stats["log_q"], log_evidence(Y), rtol=1e-9)
    assert found.posterior["mean"].dims == ("chain", "draw", "site")
    assert found.posterior["double"].dims == ("chain", "draw", "site")
    np.testing.assert_allclose(found.posterior["double"], 2.0 * found.posterior["mean"])
    assert_within_standard_errors(found.posterior["mean"].values[0], VARIANCE * Y / NOISE**2)
    np.testing.assert_array_equal(found.observed_data["y"], Y)


def test_pointwise_likelihood_and_prior_make_the_joint():
    found = to_arviz(posterior_guide, model, Y, num_draws=30, log_likelihood=True, seed=0)
    mean = found.posterior["mean"].values
    assert found.log_likelihood["y"].dims == ("chain", "draw", "site")
    log_prior = dist.Normal(0.0, PRIOR).log_prob(torch.tensor(mean)).sum(-1).numpy()
    joint = found.log_likelihood["y"].values.sum(-1) + log_prior
    np.testing.assert_allclose(joint, found.sample_stats["log_p"], rtol=1e-9)


def test_predictive_draws_have_the_predictive_moments():
    found = to_arviz(posterior_guide, model, Y, num_draws=4_000, posterior_predictive=True, seed=0)
    drawn = found.posterior_predictive["y"].values[0]
    residual = drawn - found.posterior["mean"].values[0]
    assert_within_standard_errors(residual, np.zeros(4))
    assert_within_standard_errors(residual**2, np.full(4, float(NOISE) ** 2))


def unbatched(y):
    """Multiplies as if there were one draw: under a plate of draws it raises or mixes them up."""
    weights = pyro.sample("weights", dist.Normal(torch.zeros(3, dtype=Y.dtype), 1.0).to_event(1))
    design = torch.arange(12, dtype=Y.dtype).reshape(4, 3) / 10.0
    fitted = pyro.deterministic("fitted", design @ weights)
    with pyro.plate("site", len(y)):
        pyro.sample("y", dist.Normal(fitted, NOISE), obs=y)


def mixes_draws(y):
    """Broadcasts without error, and wrongly: every draw gets the mean over all."""
    mean = pyro.sample("mean", dist.Normal(torch.zeros_like(PRIOR), PRIOR))
    pyro.sample("y", dist.Normal(mean.mean(), NOISE).expand([4]).to_event(1), obs=y)


@pytest.mark.parametrize("function", [unbatched, mixes_draws])
def test_models_that_do_not_broadcast_are_run_one_by_one(function):
    guide = AutoNormal(function)
    guide(Y)
    found = to_arviz(
        guide, function, Y, num_draws=5, log_likelihood=True, posterior_predictive=True, seed=0
    )
    assert found.posterior_predictive["y"].shape == (1, 5, 4)
    for index in range(5):
        values = {
            name: torch.tensor(found.posterior[name].values[0, index])
            for name in ("weights", "mean")
            if name in found.posterior
        }
        trace = pyro.poutine.trace(pyro.condition(function, data=values)).get_trace(Y)
        expected = trace.log_prob_sum().item()
        assert np.isclose(found.sample_stats["log_p"].values[0, index], expected, rtol=1e-6)


def test_guides_that_do_not_broadcast_are_run_one_by_one():
    def guide(y):
        scale = torch.linspace(0.5, 1.0, 3, dtype=Y.dtype)
        location = pyro.sample("location", dist.Normal(torch.zeros_like(PRIOR), 1.0))
        shifted = torch.stack([location.reshape(()) + k for k in range(3)])
        pyro.sample("weights", dist.Normal(shifted, scale).to_event(1), infer={})

    def with_location(y):
        pyro.sample("location", dist.Normal(torch.zeros_like(PRIOR), 1.0))
        unbatched(y)

    found = to_arviz(guide, with_location, Y, num_draws=50, seed=0)
    gap = found.posterior["weights"].values[0, :, 0] - found.posterior["location"].values[0]
    assert np.std(gap) < 5 * 0.5
    assert found.posterior["weights"].shape == (1, 50, 3)


def test_a_guide_that_mixes_draws_is_run_one_by_one():
    def mixing(y):
        first = pyro.sample("first", dist.Normal(torch.zeros_like(PRIOR), 1.0))
        pyro.sample("mean", dist.Normal(first.mean(), torch.full_like(PRIOR, 1e-3)))

    def of_two(y):
        pyro.sample("first", dist.Normal(torch.zeros_like(PRIOR), 1.0))
        pyro.sample("mean", dist.Normal(torch.zeros_like(PRIOR), PRIOR))
        pyro.deterministic("constant", torch.tensor([1.0, 2.0]))

    found = to_arviz(mixing, of_two, Y, num_draws=40, seed=0)
    np.testing.assert_allclose(found.posterior["mean"], found.posterior["first"], atol=0.01)
    np.testing.assert_array_equal(found.posterior["constant"].values[0, 7], [1.0, 2.0])


def test_restarts_are_chains_of_their_own_parameters():
    guides = []
    for shift in (0.0, 3.0):
        pyro.clear_param_store()
        guide = AutoNormal(model, init_scale=1e-3)
        guide(Y)
        guide.locs.mean.data.fill_(shift)
        guides.append(guide)
    before = {name: value.detach().clone() for name, value in pyro.get_param_store().items()}
    found = to_arviz(guides, model, Y, num_draws=20, seed=0, losses=[[1.0, 2.0], [3.0]])
    means = found.posterior["mean"].values.mean((1, 2))
    np.testing.assert_allclose(means, [0.0, 3.0], atol=0.01)
    np.testing.assert_array_equal(found.attrs["loss_history"], [1.0, 2.0, 3.0])
    after = pyro.get_param_store()
    assert set(before) == set(after.keys())
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert torch.equal(guides[0].locs.mean, torch.zeros_like(guides[0].locs.mean))


def test_functions_keep_their_parameters_in_the_store():
    with own_parameters(posterior_guide):
        pyro.param("kept", torch.tensor(1.0))
    assert "kept" in pyro.get_param_store()


def test_seed_leaves_the_global_generator_alone():
    torch.manual_seed(3)
    first = to_arviz(posterior_guide, model, Y, num_draws=5, seed=0).posterior["mean"].values
    following = torch.rand(3)
    again = to_arviz(posterior_guide, model, Y, num_draws=5, seed=0).posterior["mean"].values
    torch.manual_seed(3)
    assert torch.equal(following, torch.rand(3))
    np.testing.assert_array_equal(first, again)


def test_resampling_corrects_a_guide_that_is_too_wide():
    def wide(y):
        with pyro.plate("site", len(y)):
            pyro.sample("mean", dist.Normal(VARIANCE * y / NOISE**2, 1.3 * VARIANCE.sqrt()))

    found = to_arviz(wide, model, Y, num_draws=8_000, resample=True, seed=0)
    ess = found.attrs["ess"][0]
    assert found.attrs["pareto_k"][0] < 0.5
    spread = found.posterior["mean"].values[0].std(0)
    np.testing.assert_allclose(spread, float(VARIANCE.sqrt()), rtol=5 / np.sqrt(2 * ess))


def subsampled(y):
    mean = pyro.sample("mean", dist.Normal(torch.zeros_like(PRIOR), PRIOR))
    with pyro.plate("site", len(y), subsample_size=2) as index:
        pyro.sample("y", dist.Normal(mean, NOISE), obs=y[index])


def test_all_draws_share_one_subsample():
    def guide(y):
        pyro.sample("mean", dist.Normal(torch.zeros_like(PRIOR), 1.0))

    found = to_arviz(guide, subsampled, Y, num_draws=6, seed=0)
    rows = torch.tensor(found.observed_data["y"].values)
    mean = torch.tensor(found.posterior["mean"].values[0])
    likelihood = dist.Normal(mean[:, None], NOISE).log_prob(rows).sum(-1)
    expected = dist.Normal(0.0, PRIOR).log_prob(mean) + 2.0 * likelihood
    np.testing.assert_allclose(found.sample_stats["log_p"].values[0], expected, rtol=1e-9)
    with pytest.raises(ValueError, match=r"plates \['site'\] are subsampled"):
        to_arviz(guide, subsampled, Y, num_draws=6, log_likelihood=True)


@config_enumerate
def mixture(y):
    share = pyro.sample("share", dist.Beta(torch.ones_like(PRIOR), 1.0))
    with pyro.plate("site", len(y)):
        label = pyro.sample("label", dist.Bernoulli(share))
        pyro.sample("y", dist.Normal(2.0 * label, NOISE), obs=y)


def test_sites_that_were_summed_out_have_no_draws_and_no_density():
    hidden = pyro.poutine.block(mixture, hide=["label"])
    guide = AutoNormal(hidden)
    loss = TraceEnum_ELBO(max_plate_nesting=1)
    SVI(mixture, guide, pyro.optim.Adam({"lr": 0.01}), loss).step(Y)
    found = to_arviz(guide, mixture, Y, num_draws=7, seed=0)
    assert list(found.posterior.data_vars) == ["share"]
    assert list(found.sample_stats.data_vars) == ["log_q"]
    with pytest.raises(ValueError, match=r"there is none of \['label'\]"):
        to_arviz(guide, mixture, Y, num_draws=7, posterior_predictive=True)


def test_factors_are_no_observations():
    def with_factor(y):
        mean = pyro.sample("mean", dist.Normal(torch.zeros_like(PRIOR), PRIOR))
        pyro.factor("penalty", -(mean**2))

    guide = AutoNormal(with_factor)
    guide(Y)
    found = to_arviz(guide, with_factor, Y, num_draws=4, seed=0)
    mean = found.posterior["mean"].values
    expected = dist.Normal(0.0, PRIOR).log_prob(torch.tensor(mean)).numpy() - mean**2
    np.testing.assert_allclose(found.sample_stats["log_p"], expected, rtol=1e-5)
    assert not hasattr(found, "observed_data")


@pytest.fixture(scope="module")
def chains():
    torch.manual_seed(0)
    mcmc = MCMC(HMC(model), num_samples=60, warmup_steps=20, disable_progbar=True)
    mcmc.run(Y)
    return mcmc


def test_chains_gain_densities_and_deterministic_sites(chains):
    found = to_arviz(chains, log_likelihood=True, posterior_predictive=True)
    assert found.posterior["mean"].shape == (1, 60, 4)
    np.testing.assert_allclose(found.posterior["double"], 2.0 * found.posterior["mean"])
    mean = torch.tensor(found.posterior["mean"].values)
    log_prior = dist.Normal(0.0, PRIOR).log_prob(mean).sum(-1).numpy()
    joint = log_prior + found.log_likelihood["y"].values.sum(-1)
    np.testing.assert_allclose(found.sample_stats["log_p"], joint, rtol=1e-9)
    assert found.sample_stats["diverging"].dtype == bool
    assert found.posterior_predictive["y"].shape == (1, 60, 4)
    assert 0.0 < found.attrs["acceptance_rate"][0] <= 1.0


def test_chains_are_a_reference(chains):
    found = compare_posteriors(chains, to_arviz(chains))
    assert found.worst_mean_error == 0.0
    assert found.sliced_wasserstein == 0.0


def test_objectives_describe_themselves():
    loss = objective("alpha", order=0.5, num_particles=8)
    found = to_arviz(posterior_guide, model, Y, num_draws=2, seed=0, objective=loss)
    assert found.attrs["divergence"] == "alpha"
    assert found.attrs["num_particles"] == 8
    divergence = to_arviz(posterior_guide, model, Y, num_draws=2, objective=JensenShannon())
    assert divergence.attrs["divergence"] == "JensenShannon()"
    host = to_arviz(posterior_guide, model, Y, num_draws=2, objective=Trace_ELBO(num_particles=3))
    assert host.attrs == {"objective": "Trace_ELBO", "num_particles": 3}


def test_divergent_steps_are_marked(chains, monkeypatch):
    diagnostics = chains.diagnostics() | {"divergences": {"chain 0": [3, 7]}}
    monkeypatch.setattr(chains, "diagnostics", lambda: diagnostics)
    diverging = to_arviz(chains).sample_stats["diverging"].values
    assert list(np.flatnonzero(diverging)) == [3, 7]


def test_chains_without_a_model_keep_their_draws():
    kernel = HMC(potential_fn=lambda values: 0.5 * values["z"].pow(2).sum())
    start = {"z": torch.zeros(2)}
    mcmc = MCMC(kernel, 10, 5, initial_params=start, disable_progbar=True)
    mcmc.run()
    found = to_arviz(mcmc)
    assert found.posterior["z"].shape == (1, 10, 2)
    with pytest.raises(ValueError, match="got a kernel made from a potential function"):
        to_arviz(mcmc, log_likelihood=True)


def test_enumerated_chains_have_no_density():
    mcmc = MCMC(HMC(mixture, max_plate_nesting=1), 5, 5, disable_progbar=True)
    mcmc.run(Y)
    found = to_arviz(mcmc)
    assert list(found.posterior.data_vars) == ["share"]
    assert "log_p" not in found.sample_stats
    with pytest.raises(ValueError, match=r"there is none of \['label'\]"):
        to_arviz(mcmc, log_likelihood=True)


def test_full_covariance_guides_leave_out_their_auxiliary_site():
    guide = AutoMultivariateNormal(model)
    SVI(model, guide, pyro.optim.Adam({"lr": 0.01}), Trace_ELBO()).step(Y)
    found = to_arviz(guide, model, Y, num_draws=9, seed=0, objective="reverse_kl")
    assert set(found.posterior.data_vars) == {"mean", "double"}
    mean = torch.tensor(found.posterior["mean"].values[0])
    covariance = (guide.scale[:, None] * guide.scale_tril).detach()
    expected = dist.MultivariateNormal(guide.loc.detach(), scale_tril=covariance).log_prob(mean)
    np.testing.assert_allclose(found.sample_stats["log_q"].values[0], expected, rtol=1e-5)


def test_log_weights_belong_to_draws():
    with pytest.raises(ValueError, match="log_weights belong to a mapping of draws"):
        to_arviz(posterior_guide, model, Y, num_draws=3, log_weights=np.zeros(3))
