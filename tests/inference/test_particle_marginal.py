"""Particle-marginal Metropolis: exact laws under noise, filters against NUTS, the host's tools."""

import pickle

import arviz as az
import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from numpyro.infer import MCMC, NUTS, init_to_value

from bayesdiv.diagnostics import to_arviz
from bayesdiv.inference._marginal_target import evaluate
from bayesdiv.inference.particle_marginal import PMMH
from bayesdiv.inference.particle_smoothing import backward_trajectories
from bayesdiv.inference.smc import ParticleFilter, log_evidence
from bayesdiv.models.kalman import LinearGaussianParameters, kalman_filter, kalman_smoother
from bayesdiv.models.state_space_examples import linear_gaussian


def noise_scale(level):
    return 0.2 + 1.3 * jax.nn.sigmoid(2.0 * level)


def noisy_normal():
    """level ~ N(0, 1), 1 ~ N(level, 1): N(1/2, 1/2); the estimate's noise grows with the level."""
    level = numpyro.sample("level", dist.Normal(0.0, 1.0))
    scale = noise_scale(level)
    noise = scale * jax.random.normal(numpyro.prng_key()) - 0.5 * scale**2
    numpyro.deterministic("noise", noise)
    numpyro.factor("estimate", dist.Normal(level, 1.0).log_prob(1.0) + noise)


def run_chains(kernel, *args, num_warmup=500, num_samples=2000, num_chains=8, seed=0, **settings):
    mcmc = MCMC(
        kernel,
        num_warmup=num_warmup,
        num_samples=num_samples,
        num_chains=num_chains,
        progress_bar=False,
        **({"chain_method": "vectorized"} | settings),
    )
    mcmc.run(jax.random.key(seed), *args)
    return mcmc


def errors_off(draws: np.ndarray, exact: float) -> float:
    """Distance of the mean of ``(chain, draw)`` from a number, in Monte Carlo errors."""
    ess = float(az.ess(az.convert_to_dataset(draws))["x"])
    assert ess > 200.0, f"effective sample size {ess:.0f}"
    return abs(draws.mean() - exact) / (draws.std() / np.sqrt(ess))


@pytest.fixture(scope="module")
def noisy_run():
    return run_chains(PMMH(noisy_normal), num_samples=6000)


def test_noise_without_bias_leaves_the_law_exact(noisy_run):
    draws = noisy_run.get_samples(group_by_chain=True)
    level = np.asarray(draws["level"])
    assert errors_off(level, 0.5) < 5.0
    assert errors_off((level - 0.5) ** 2, 0.5) < 5.0


def test_the_estimates_kept_have_the_tilted_law(noisy_run):
    """Given the level, noise e with density n(e) is kept with density exp(e) n(e)."""
    draws = noisy_run.get_samples(group_by_chain=True)
    scale = noise_scale(draws["level"])
    standard = np.asarray((draws["noise"] - 0.5 * scale**2) / scale)
    assert errors_off(standard, 0.0) < 5.0
    assert errors_off(standard**2, 1.0) < 5.0
    # What is reported is what was kept.
    fields = noisy_run.get_extra_fields(group_by_chain=True)
    exact = dist.Normal(draws["level"], 1.0).log_prob(1.0)
    np.testing.assert_allclose(fields["log_evidence"], exact + draws["noise"], atol=1e-10)
    prior = dist.Normal(0.0, 1.0).log_prob(draws["level"])
    np.testing.assert_allclose(
        fields["potential_energy"], -prior - fields["log_evidence"], atol=1e-10
    )


class Recomputing(PMMH):
    """What the kernel must not do: a new estimate of the current point at each comparison."""

    def _iterate(self, state, args, kwargs):
        key, estimate_key = jax.random.split(state.rng_key)
        found = evaluate(self._model, state.position, estimate_key, args, kwargs)
        state = state._replace(rng_key=key, potential_energy=found.potential_energy)
        return super()._iterate(state, args, kwargs)


def test_a_recomputed_estimate_gives_another_law():
    run = run_chains(Recomputing(noisy_normal), num_samples=6000)
    assert errors_off(np.asarray(run.get_samples(group_by_chain=True)["level"]), 0.5) > 10.0


def coefficients():
    rho = numpyro.sample("rho", dist.Uniform(-1.0, 1.0))
    scale = numpyro.sample("scale", dist.HalfNormal(1.0))
    return LinearGaussianParameters(rho, scale, 1.0, 0.5)


def exact_model(observations):
    numpyro.factor("evidence", kalman_filter(coefficients(), observations).log_evidence)


def particle_model(observations):
    model = linear_gaussian(coefficients())
    numpyro.factor(
        "evidence", log_evidence(numpyro.prng_key(), model, observations, num_particles=64)
    )


@pytest.mark.slow
def test_a_particle_filter_gives_the_posterior_of_the_exact_likelihood():
    _, observations = linear_gaussian(LinearGaussianParameters(0.8, 0.6, 1.0, 0.5)).simulate(
        jax.random.key(3), 30
    )
    found = run_chains(PMMH(particle_model), observations, num_samples=3000)
    exact = run_chains(
        NUTS(exact_model), observations, num_warmup=300, num_samples=1000, num_chains=2
    )
    # 64 particles are few: the estimate is noisy, and the law exact all the same.
    draws, reference = (run.get_samples(group_by_chain=True) for run in (found, exact))
    for name in ("rho", "scale"):
        values, spread, counts = [], [], []
        centre = float(reference[name].mean())
        for part in (draws, reference):
            value = np.asarray(part[name]) - centre
            counts.append([float(az.ess(az.convert_to_dataset(v))["x"]) for v in (value, value**2)])
            values.append([value.mean(), (value**2).mean()])
            spread.append([value.std(), (value**2).std()])
        counts, values, spread = (np.array(part) for part in (counts, values, spread))
        assert counts.min() > 200.0, f"{name}: effective sample sizes {counts}"
        error = np.sqrt((spread**2 / counts).sum(0))
        assert (abs(values[0] - values[1]) < 5.0 * error).all(), name
        assert float(az.rhat(az.convert_to_dataset(np.asarray(draws[name])))["x"]) < 1.03


@pytest.mark.slow
def test_paths_of_the_runs_accepted_have_the_smoothing_law():
    """From a filter of four particles, whose own paths are far from it."""
    parameters = LinearGaussianParameters(0.9, 0.5, 1.0, 0.4)
    observations = jnp.array([1.5, 0.2, jnp.nan, -1.0])
    model = linear_gaussian(parameters)

    def filtered(key):
        filter_key, path_key = jax.random.split(key)
        found = ParticleFilter(model, num_particles=4).run(
            filter_key, observations, store="particles"
        )
        path = backward_trajectories(path_key, model, found, num_trajectories=1)[0]
        return found.log_evidence, path

    def with_path():
        numpyro.sample("nothing", dist.Normal(0.0, 1.0))
        estimate, path = filtered(numpyro.prng_key())
        numpyro.factor("evidence", estimate)
        numpyro.deterministic("path", path)

    run = run_chains(PMMH(with_path), num_warmup=200, num_samples=4000)
    paths = np.asarray(run.get_samples(group_by_chain=True)["path"])
    exact = kalman_smoother(parameters, observations)
    for time in range(4):
        centred = paths[..., time] - float(exact.means[time])
        assert errors_off(centred, 0.0) < 5.0
        assert errors_off(centred**2, float(exact.covariances[time])) < 5.0
    alone = jax.jit(jax.vmap(filtered))(jax.random.split(jax.random.key(0), 8 * 2000))[1]
    alone = np.asarray(alone).reshape(8, 2000, 4)[..., 1]
    assert errors_off(alone, float(exact.means[1])) > 10.0


def short(num_samples=20, **settings):
    return run_chains(
        PMMH(noisy_normal), num_warmup=30, num_samples=num_samples, num_chains=2, **settings
    )


@pytest.mark.slow
def test_chain_methods_agree_and_chains_go_on():
    whole = short(40)
    first = short()
    np.testing.assert_array_equal(
        whole.get_samples(group_by_chain=True)["level"],
        short(40, chain_method="sequential").get_samples(group_by_chain=True)["level"],
    )
    # A state pickles, and goes on in an MCMC that has not run before.
    state = first.last_state
    stored = pickle.dumps(state._replace(rng_key=jax.random.key_data(state.rng_key)))
    state = pickle.loads(stored)
    state = state._replace(rng_key=jax.random.wrap_key_data(state.rng_key))
    second = MCMC(
        PMMH(noisy_normal),
        num_warmup=30,
        num_samples=20,
        num_chains=2,
        chain_method="vectorized",
        progress_bar=False,
    )
    second.post_warmup_state = state
    second.run(state.rng_key)
    joined = np.concatenate(
        [run.get_samples(group_by_chain=True)["level"] for run in (first, second)], axis=1
    )
    np.testing.assert_array_equal(joined, whole.get_samples(group_by_chain=True)["level"])
    np.testing.assert_array_equal(state.walk.root, second.last_state.walk.root)


def test_bridges_to_arviz_carry_the_statistics(noisy_run):
    for container in (az.from_numpyro(noisy_run), to_arviz(noisy_run)):
        assert {"lp", "acceptance_rate", "log_evidence"} <= set(container.sample_stats.data_vars)
        np.testing.assert_allclose(
            container.sample_stats["lp"],
            -noisy_run.get_extra_fields(group_by_chain=True)["potential_energy"],
        )
        summary = az.summary(container, var_names=["level"])
        assert summary.loc["level", "r_hat"] < 1.02


def test_the_walk_learns_the_covariance_and_then_stays():
    covariance = np.array([[1.0, 0.95 * 0.05], [0.95 * 0.05, 0.0025]])

    def correlated():
        numpyro.sample("z", dist.MultivariateNormal(jnp.zeros(2), covariance))

    kernel = PMMH(correlated, target_accept_prob=0.3)
    run = run_chains(kernel, num_warmup=2000, num_samples=1000, num_chains=4)
    walk = run.last_state.walk
    relative = np.asarray(walk.covariance) / covariance
    assert 0.5 < relative.min()
    assert relative.max() < 2.0
    rate = run.get_extra_fields()["accept_prob"].mean()
    assert abs(rate - 0.3) < 0.06
    np.testing.assert_allclose(run.last_state.mean_accept_prob.mean(), rate, rtol=1e-6)
    run.post_warmup_state = run.last_state
    run.run(run.last_state.rng_key)
    np.testing.assert_array_equal(run.last_state.walk.root, walk.root)


def test_estimates_that_are_no_numbers_are_refused():
    def partly():
        level = numpyro.sample("level", dist.Normal(0.0, 1.0))
        numpyro.factor("estimate", jnp.where(level < 0.0, jnp.nan, 0.0))

    level = np.asarray(run_chains(PMMH(partly)).get_samples(group_by_chain=True)["level"])
    assert level.min() >= 0.0
    assert errors_off(level, np.sqrt(2.0 / np.pi)) < 5.0


def test_starts_are_given_or_searched():
    kernel = PMMH(noisy_normal, init_strategy=init_to_value(values={"level": 0.3}))
    state = kernel.init(jax.random.key(0), 10, None)
    np.testing.assert_allclose(state.position["level"], 0.3)
    given = {"level": jnp.array([0.1, 0.2])}
    state = kernel.init(jax.random.split(jax.random.key(0)), 10, given)
    np.testing.assert_allclose(state.z["level"], [0.1, 0.2])
    with pytest.raises(ValueError, match=r"init_params must have the latent sites \['level'\]"):
        kernel.init(jax.random.key(0), 10, {"slope": 0.1})
    with pytest.raises(ValueError, match=r"'level'\] must have shape \(\), got \(2,\)"):
        kernel.init(jax.random.key(0), 10, given)
    assert "acc. prob" in kernel.get_diagnostics_str(kernel.init(jax.random.key(0), 10, None))


def hopeless():
    numpyro.factor("estimate", -jnp.inf * numpyro.sample("level", dist.HalfNormal(1.0)))


def discrete():
    numpyro.sample("kind", dist.Bernoulli(0.5))


def minibatch():
    level = numpyro.sample("level", dist.Normal(0.0, 1.0))
    with numpyro.plate("data", 10, subsample_size=5):
        numpyro.sample("y", dist.Normal(level, 1.0), obs=jnp.zeros(5))


def with_param():
    numpyro.sample("level", dist.Normal(numpyro.param("mean", 0.0), 1.0))


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (hopeless, "no start with a finite density was found in 100 tries"),
        (discrete, "site 'kind' is discrete"),
        (minibatch, "plate 'data' is subsampled"),
        (with_param, "site 'mean' is a param; give it a prior"),
        (lambda: numpyro.factor("estimate", 0.0), "model has no latent sites"),
    ],
)
def test_models_that_cannot_be_sampled_say_why(model, message):
    with pytest.raises(ValueError, match=message):
        PMMH(model).init(jax.random.key(0), 10, None)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"step_size": 0.0}, "step_size must be positive and finite, got 0.0"),
        ({"step_size": float("nan")}, "step_size must be positive and finite, got nan"),
        ({"target_accept_prob": 1.0}, "target_accept_prob must be between 0 and 1, got 1.0"),
    ],
)
def test_settings_outside_their_domain_are_named(settings, message):
    with pytest.raises(ValueError, match=message):
        PMMH(noisy_normal, **settings)


def test_a_model_must_be_callable():
    with pytest.raises(TypeError, match="model must be a callable, got int"):
        PMMH(3)
