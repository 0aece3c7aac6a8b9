"""NumPyro guides and chains as ArviZ objects: exact densities, names, bad input."""

from collections import namedtuple

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from helpers import assert_within_standard_errors
from numpyro import handlers
from numpyro.infer import HMC, MCMC, SVI, Trace_ELBO
from numpyro.infer.autoguide import AutoNormal

from bayesdiv.diagnostics import to_arviz

Y = jnp.array([0.3, -1.2, 2.0, 0.7])
PRIOR, NOISE = 2.0, 0.5
VARIANCE = 1.0 / (1.0 / PRIOR**2 + 1.0 / NOISE**2)
KEY = jax.random.PRNGKey(0)


def model(y):
    """Normal means in a plate; the posterior is a product of normals."""
    with numpyro.plate("site", len(y)):
        mean = numpyro.sample("mean", dist.Normal(0.0, PRIOR))
        numpyro.deterministic("double", 2.0 * mean)
        numpyro.sample("y", dist.Normal(mean, NOISE), obs=y)


def guide(y):
    shift = numpyro.param("shift", 0.0)
    with numpyro.plate("site", len(y)):
        numpyro.sample("mean", dist.Normal(shift + VARIANCE * y / NOISE**2, VARIANCE**0.5))


def log_prior(mean):
    return np.asarray(dist.Normal(0.0, PRIOR).log_prob(mean)).sum(-1)


@pytest.fixture(scope="module")
def exact():
    return to_arviz(
        guide,
        model,
        Y,
        params={"shift": 0.0},
        rng_key=KEY,
        num_draws=1_000,
        log_likelihood=True,
        posterior_predictive=True,
    )


def test_the_exact_posterior_has_constant_weights(exact):
    evidence = dist.Normal(0.0, np.hypot(PRIOR, NOISE)).log_prob(Y).sum()
    stats = exact.sample_stats
    np.testing.assert_allclose(stats["log_p"] - stats["log_q"], evidence, rtol=1e-9)
    assert list(exact.posterior.data_vars) == ["mean", "double"]
    assert exact.posterior["double"].dims == ("chain", "draw", "site")
    np.testing.assert_allclose(exact.posterior["double"], 2.0 * exact.posterior["mean"])
    assert_within_standard_errors(exact.posterior["mean"].values[0], VARIANCE * Y / NOISE**2)
    np.testing.assert_array_equal(exact.observed_data["y"], Y)


def test_pointwise_likelihood_and_prior_make_the_joint(exact):
    assert exact.log_likelihood["y"].dims == ("chain", "draw", "site")
    joint = exact.log_likelihood["y"].values.sum(-1) + log_prior(exact.posterior["mean"].values)
    np.testing.assert_allclose(joint, exact.sample_stats["log_p"], rtol=1e-9)


def test_predictive_draws_have_the_predictive_moments(exact):
    residual = exact.posterior_predictive["y"].values[0] - exact.posterior["mean"].values[0]
    assert_within_standard_errors(residual, np.zeros(4))
    assert_within_standard_errors(residual**2, np.full(4, NOISE**2))


def test_restarts_are_chains_of_their_own_parameters():
    fits = [{"shift": 0.0}, {"shift": 50.0}]
    found = to_arviz(guide, model, Y, params=fits, rng_key=KEY, num_draws=300)
    assert found.posterior.sizes["chain"] == 2
    gap = np.diff(found.posterior["mean"].values.mean((1, 2)))
    assert abs(gap - 50.0) < 5 * np.sqrt(2 * VARIANCE / 1_200)
    assert not np.allclose(found.posterior["mean"][0], found.posterior["mean"][1] - 50.0)
    twice = to_arviz([guide, guide], model, Y, params=fits, rng_key=KEY, num_draws=300)
    np.testing.assert_array_equal(twice.posterior["mean"], found.posterior["mean"])


def test_results_of_svi_bring_parameters_and_losses():
    fitted = AutoNormal(model)
    svi = SVI(model, fitted, numpyro.optim.Adam(0.01), Trace_ELBO())
    results = [svi.run(jax.random.PRNGKey(i), 3, Y, progress_bar=False) for i in range(2)]
    found = to_arviz(fitted, model, Y, params=results, rng_key=KEY, num_draws=5)
    losses = np.concatenate([result.losses for result in results])
    np.testing.assert_array_equal(found.attrs["loss_history"], losses)
    scale = np.stack([result.params["mean_auto_scale"] for result in results])[:, None]
    location = np.stack([result.params["mean_auto_loc"] for result in results])[:, None]
    log_q = dist.Normal(location, scale).log_prob(found.posterior["mean"].values).sum(-1)
    np.testing.assert_allclose(found.sample_stats["log_q"], log_q, rtol=1e-9)
    one = to_arviz(fitted, model, Y, params=results[0], rng_key=KEY, num_draws=5)
    np.testing.assert_array_equal(one.attrs["loss_history"], results[0].losses)


def test_all_draws_share_one_subsample():
    def subsampled(y):
        mean = numpyro.sample("mean", dist.Normal(0.0, PRIOR))
        with numpyro.plate("site", len(y), subsample_size=2) as index:
            numpyro.sample("y", dist.Normal(mean, NOISE), obs=y[index])

    def one(y):
        numpyro.sample("mean", dist.Normal(0.0, 1.0))

    found = to_arviz(one, subsampled, Y, params={}, rng_key=KEY, num_draws=6)
    mean = found.posterior["mean"].values[0]
    likelihood = dist.Normal(mean[:, None], NOISE).log_prob(found.observed_data["y"].values)
    expected = log_prior(mean[:, None]) + 2.0 * likelihood.sum(-1)
    np.testing.assert_allclose(found.sample_stats["log_p"].values[0], expected, rtol=1e-9)
    with pytest.raises(ValueError, match=r"plates \['site'\] are subsampled"):
        to_arviz(one, subsampled, Y, params={}, rng_key=KEY, num_draws=6, log_likelihood=True)


def mixture(y):
    share = numpyro.sample("share", dist.Beta(1.0, 1.0))
    with numpyro.plate("site", len(y)):
        label = numpyro.sample("label", dist.Bernoulli(share), infer={"enumerate": "parallel"})
        numpyro.sample("y", dist.Normal(2.0 * label, NOISE), obs=y)


def test_sites_that_were_summed_out_have_no_draws_and_no_density():
    def share(y):
        numpyro.sample("share", dist.Beta(2.0, 2.0))

    found = to_arviz(share, mixture, Y, params={}, rng_key=KEY, num_draws=7)
    assert list(found.posterior.data_vars) == ["share"]
    assert list(found.sample_stats.data_vars) == ["log_q"]
    with pytest.raises(ValueError, match=r"there is none of \['label'\]"):
        to_arviz(share, mixture, Y, params={}, rng_key=KEY, posterior_predictive=True)


def test_factors_scales_and_flows_count_in_the_densities():
    @handlers.scale(scale=3.0)
    def scaled(y):
        mean = numpyro.sample("mean", dist.LogNormal(0.0, 1.0))
        numpyro.factor("penalty", -mean)

    def flow(y):
        affine = dist.transforms.AffineTransform(1.0, 2.0)
        exponential = dist.transforms.ExpTransform()
        normal = dist.Normal(0.0, 0.1)
        numpyro.sample("mean", dist.TransformedDistribution(normal, [affine, exponential]))

    found = to_arviz(flow, scaled, Y, params={}, rng_key=KEY, num_draws=8)
    mean = found.posterior["mean"].values
    log_p = 3.0 * (dist.LogNormal(0.0, 1.0).log_prob(mean) - mean)
    np.testing.assert_allclose(found.sample_stats["log_p"], log_p, rtol=1e-9)
    log_q = dist.LogNormal(1.0, 0.2).log_prob(mean)
    np.testing.assert_allclose(found.sample_stats["log_q"], log_q, rtol=1e-9)
    assert not hasattr(found, "observed_data")


@pytest.fixture(scope="module")
def chains():
    mcmc = MCMC(
        HMC(model, num_steps=3, trajectory_length=None),
        num_warmup=10,
        num_samples=20,
        num_chains=2,
        chain_method="vectorized",
        progress_bar=False,
    )
    fields = ("diverging", "potential_energy", "accept_prob", "num_steps", "adapt_state.step_size")
    mcmc.run(KEY, Y, extra_fields=fields)
    return mcmc


def test_chains_gain_densities_and_keep_the_samplers_statistics(chains):
    found = to_arviz(chains, log_likelihood=True, posterior_predictive=True)
    stats = found.sample_stats
    assert found.posterior["mean"].shape == (2, 20, 4)
    assert found.posterior["double"].dims == ("chain", "draw", "site")
    joint = log_prior(found.posterior["mean"].values) + found.log_likelihood["y"].values.sum(-1)
    np.testing.assert_allclose(stats["log_p"], joint, rtol=1e-9)
    # The mean is unconstrained, so the potential has no Jacobian.
    np.testing.assert_allclose(stats["lp"], joint, rtol=1e-9)
    assert {"diverging", "acceptance_rate", "n_steps", "tree_depth", "step_size"} <= set(stats)
    assert found.posterior_predictive["y"].shape == (2, 20, 4)


def test_chains_without_a_model_keep_their_draws(monkeypatch):
    def run(potential, start):
        kernel = HMC(potential_fn=potential, num_steps=2, trajectory_length=None)
        mcmc = MCMC(kernel, num_warmup=3, num_samples=6, progress_bar=False)
        mcmc.run(KEY, init_params=start)
        return mcmc

    plain = run(lambda z: 0.5 * (z**2).sum(), jnp.zeros(2))
    assert to_arviz(plain).posterior["Param:0"].shape == (1, 6, 2)
    with pytest.raises(ValueError, match="got a kernel made from a potential function"):
        to_arviz(plain, log_likelihood=True)
    named = namedtuple("Point", "a b")
    samples = named(np.zeros((1, 6)), np.ones((1, 6, 3)))
    monkeypatch.setattr(plain, "get_samples", lambda *, group_by_chain: samples)
    assert set(to_arviz(plain).posterior.data_vars) == {"a", "b"}


def test_chains_that_lack_a_site_have_no_density(monkeypatch):
    def share(y):
        numpyro.sample("share", dist.Beta(2.0, 2.0))

    kernel = HMC(share, num_steps=2, trajectory_length=None)
    mcmc = MCMC(kernel, num_warmup=3, num_samples=6, progress_bar=False)
    mcmc.run(KEY, Y)
    # As enumeration leaves it, for which NumPyro would need funsor.
    monkeypatch.setattr(kernel, "_model", mixture)
    found = to_arviz(mcmc)
    assert list(found.posterior.data_vars) == ["share"]
    assert "log_p" not in found.sample_stats
    with pytest.raises(ValueError, match=r"there is none of \['label'\]"):
        to_arviz(mcmc, posterior_predictive=True)


def test_what_is_missing_or_does_not_fit_is_named():
    with pytest.raises(ValueError, match="params is needed for a NumPyro guide, got None"):
        to_arviz(guide, model, Y, rng_key=KEY)
    with pytest.raises(ValueError, match="rng_key is needed for a NumPyro guide, got None"):
        to_arviz(guide, model, Y, params={"shift": 0.0})
    with pytest.raises(ValueError, match="one entry a guide, got 3 for 2 guides"):
        to_arviz([guide, guide], model, Y, params=[{}, {}, {}], rng_key=KEY)
    with pytest.raises(ValueError, match="params must be a mapping .* got float"):
        to_arviz(guide, model, Y, params=3.0, rng_key=KEY)
