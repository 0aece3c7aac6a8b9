"""SGHMC and SGLD under NumPyro's MCMC: posteriors against NUTS and exact laws; settings."""

import warnings
from collections.abc import Iterator

import arviz as az
import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from numpyro.infer import MCMC, NUTS

from bayesdiv.diagnostics import to_arviz
from bayesdiv.inference.sghmc_numpyro import SGHMC
from bayesdiv.inference.sgld_numpyro import SGLD
from bayesdiv.numpyro import check_chains

GROUPS, SIZE, BATCH = 5, 400, 40
STATISTICS = {"lp", "gradient_norm", "kinetic_temperature", "clamped_fraction", "diverging"}


@pytest.fixture(autouse=True, scope="module")
def quick_compilation() -> Iterator[None]:
    """XLA without most of its optimisations: the models are tiny."""
    before = jax.config.values["jax_disable_most_optimizations"]
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", before)


def hierarchy(x, y, group, batch=None):
    """Groups around a common level, with two positive scales; data in a plate."""
    level = numpyro.sample("level", dist.Normal(0.0, 2.0))
    spread = numpyro.sample("spread", dist.HalfNormal(1.0))
    noise = numpyro.sample("noise", dist.LogNormal(0.0, 1.0))
    slope = numpyro.sample("slope", dist.Normal(0.0, 1.0))
    with numpyro.plate("groups", GROUPS):
        effect = numpyro.sample("effect", dist.Normal(level, spread))
    numpyro.deterministic("ratio", spread / noise)
    with numpyro.plate("data", SIZE, subsample_size=batch) as rows:
        mean = effect[group[rows]] + slope * x[rows]
        numpyro.sample("y", dist.Normal(mean, noise), obs=y[rows])


@pytest.fixture(scope="module")
def data():
    rng = np.random.default_rng(0)
    group = np.arange(SIZE) % GROUPS
    x, effect = rng.normal(size=SIZE), rng.normal(1.0, 0.7, GROUPS)
    y = effect[group] + 0.5 * x + 0.6 * rng.normal(size=SIZE)
    return jnp.asarray(x), jnp.asarray(y), jnp.asarray(group)


@pytest.fixture(scope="module")
def run(data):
    kernel = SGHMC(hierarchy, step_size=0.025, steps_per_sample=30)
    mcmc = MCMC(
        kernel,
        num_warmup=150,
        num_samples=600,
        num_chains=4,
        chain_method="vectorized",
        progress_bar=False,
    )
    fields = ("potential_energy", "gradient_norm", "kinetic_temperature", "clamped_fraction")
    mcmc.run(jax.random.key(0), *data, batch=BATCH, extra_fields=fields)
    return mcmc


def assert_same_law(found, reference, *, gate=5.0, least_ess=200.0):
    """Means and standard deviations within ``gate`` Monte Carlo errors, given enough draws."""
    for name in reference.data_vars:
        ess = min(float(az.ess(draws[[name]]).to_array().min()) for draws in (found, reference))
        assert ess > least_ess, f"{name}: effective sample size {ess:.0f}"
        for method, statistic in (("mean", "mean"), ("sd", "std")):
            values, errors = [], []
            for draws in (found, reference):
                values.append(getattr(draws[name], statistic)(("chain", "draw")).values)
                errors.append(az.mcse(draws[[name]], method=method)[name].values)
            limit = gate * np.hypot(*errors)
            off = np.abs(values[0] - values[1]) / limit
            assert (off < 1.0).all(), f"{method} of {name}: {off.max() * gate:.1f} errors off"


@pytest.mark.slow
def test_the_posterior_of_a_hierarchy_is_that_of_nuts(run, data):
    nuts = MCMC(NUTS(hierarchy), num_warmup=300, num_samples=1500, progress_bar=False)
    nuts.run(jax.random.key(1), *data)
    reference = to_arviz(nuts)
    assert_same_law(to_arviz(run).posterior, reference.posterior)


def test_good_chains_are_quiet(run):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert check_chains(run) == []
    temperature = float(run.get_extra_fields()["kinetic_temperature"].mean())
    assert 0.9 < temperature < 1.1


def test_defaults_follow_the_run_and_the_model(run, data):
    """Half of the warm-up adapts; the noise correction is for minibatches."""
    assert run.sampler.dynamics.num_burn_in == 150 * 30 // 2
    assert run.sampler.dynamics.subtract_gradient_noise
    whole = SGHMC(hierarchy, step_size=0.01)
    whole.init(jax.random.key(0), 31, None, data)
    assert whole.dynamics.num_burn_in == 15
    assert not whole.dynamics.subtract_gradient_noise
    kept = SGHMC(hierarchy, step_size=0.01, num_burn_in=7, subtract_gradient_noise=True)
    kept.init(jax.random.key(0), 31, None, data)
    assert kept.dynamics.num_burn_in == 7
    assert kept.dynamics.subtract_gradient_noise


def test_both_bridges_to_arviz_carry_the_statistics(run):
    ours = to_arviz(run)
    # Its pointwise likelihood would need every observation.
    theirs = az.from_numpyro(run, log_likelihood=False)
    for container in (ours, theirs):
        assert set(container.sample_stats.data_vars) >= STATISTICS
        assert container.posterior.sizes["chain"] == 4
        assert container.posterior["effect"].dims == ("chain", "draw", "groups")
        potential = np.asarray(run.get_extra_fields(group_by_chain=True)["potential_energy"])
        np.testing.assert_array_equal(container.sample_stats["lp"], -potential)
    summary = az.summary(ours, var_names=["level", "spread"])
    assert (summary["r_hat"] < 1.05).all()


def conjugate(y, batch):
    mean = numpyro.sample("mean", dist.Normal(0.0, 2.0))
    with numpyro.plate("data", len(y), subsample_size=batch) as rows:
        numpyro.sample("y", dist.Normal(mean, 1.0), obs=y[rows])


@pytest.mark.parametrize("sampler", [SGLD, SGHMC])
def test_the_posterior_of_a_normal_mean_is_exact(sampler):
    """Every draw in the batch: exact gradients, so that only the step's own bias is left."""
    y = np.random.default_rng(1).normal(0.7, 1.0, 20)
    settings = {"step_size": 0.25} if sampler is SGLD else {"step_size": 0.1, "friction": 0.2}
    mcmc = MCMC(
        sampler(conjugate, steps_per_sample=10, **settings),
        num_warmup=200,
        num_samples=3000,
        thinning=3,
        num_chains=2,
        chain_method="vectorized",
        progress_bar=False,
    )
    mcmc.run(jax.random.key(0), y, 20)
    draws = mcmc.get_samples(group_by_chain=True)["mean"]
    assert draws.shape == (2, 1000)
    variance = 1.0 / (1.0 / 4.0 + 20.0)
    posterior = az.convert_to_dataset({"mean": np.asarray(draws)})
    assert float(az.ess(posterior)["mean"]) > 400
    error = float(az.mcse(posterior)["mean"])
    assert abs(float(draws.mean()) - variance * y.sum()) < 5.0 * error
    error = float(az.mcse(posterior, method="sd")["mean"])
    assert abs(float(draws.std()) - variance**0.5) < 5.0 * error + 0.02 * variance**0.5


@pytest.mark.parametrize(
    ("sampler", "settings", "message"),
    [
        (SGHMC, {"step_size": -1.0}, "step_size must be positive and finite, got -1.0"),
        (SGHMC, {"step_size": 0.1, "friction": 0.0}, r"friction must be in \(0, 1\], got 0.0"),
        (SGHMC, {"step_size": 0.1, "num_burn_in": 0}, "num_burn_in must be at least 1 or None"),
        (SGHMC, {"step_size": 0.1, "num_burn_in": 1.5}, "num_burn_in must be a whole number"),
        (SGLD, {"step_size": 0.1, "memory": 0.0}, r"memory must be in \(0, 1\], got 0.0"),
        (SGLD, {"step_size": 0.1, "num_burn_in": -1}, "num_burn_in must be a whole number"),
    ],
)
def test_bad_settings(sampler, settings, message):
    with pytest.raises(ValueError, match=message):
        sampler(conjugate, **settings)


@pytest.mark.parametrize(
    ("sampler", "num_burn_in", "num_warmup", "message"),
    [
        (SGHMC, None, 0, "num_warmup must leave steps for burn-in, got 0 gradient steps"),
        (SGHMC, 50, 4, "num_burn_in is 50 gradient steps, the warm-up has 40 .*num_warmup to 5 or"),
        (SGLD, 50, 4, "sampling would start before burn-in ended"),
    ],
)
def test_warmup_has_to_cover_burn_in(sampler, num_burn_in, num_warmup, message):
    kernel = sampler(conjugate, step_size=0.1, num_burn_in=num_burn_in, steps_per_sample=10)
    mcmc = MCMC(kernel, num_warmup=num_warmup, num_samples=10, progress_bar=False)
    with pytest.raises(ValueError, match=message):
        mcmc.run(jax.random.key(0), jnp.ones(20), 5)


def test_sgld_needs_no_warmup():
    kernel = SGLD(conjugate, step_size=0.05)
    mcmc = MCMC(kernel, num_warmup=0, num_samples=5, progress_bar=False)
    mcmc.run(jax.random.key(0), jnp.ones(20), 5)
    assert kernel.dynamics.num_burn_in == 0
    assert set(mcmc.get_extra_fields()) == {"potential_energy", "gradient_norm", "diverging"}
    assert np.isfinite(np.asarray(mcmc.get_samples()["mean"])).all()
