"""``fit`` in NumPyro: exact posteriors, restarts, files and errors."""

import pickle

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest

from bayesdiv.numpyro import fit

NOISE = 5.0
PRIOR = 1000.0


def regression_table():
    """Raw predictors: an intercept, a score in the hundreds, and a year."""
    rng = np.random.default_rng(0)
    x = np.c_[np.ones(40), rng.normal(500.0, 20.0, 40), rng.uniform(1990.0, 2020.0, 40)]
    y = x @ np.array([-300.0, 0.4, 0.2]) + NOISE * rng.standard_normal(40)
    return x, y


X, Y = regression_table()
PRECISION = X.T @ X / NOISE**2 + np.eye(3) / PRIOR**2
COVARIANCE = np.linalg.inv(PRECISION)
MEAN = COVARIANCE @ X.T @ Y / NOISE**2
SD = np.sqrt(np.diag(COVARIANCE))


def regression(x, y):
    slopes = numpyro.sample("slopes", dist.Normal(jnp.zeros(3), PRIOR).to_event(1))
    with numpyro.plate("rows", len(x)):
        numpyro.sample("y", dist.Normal(x @ slopes, NOISE), obs=y)


def normal_mean(y):
    mean = numpyro.sample("mean", dist.Normal(0.0, 3.0))
    with numpyro.plate("rows", len(y)):
        numpyro.sample("y", dist.Normal(mean, 1.0), obs=y)


def schools(y, sigma):
    centre = numpyro.sample("centre", dist.Normal(0.0, 5.0))
    spread = numpyro.sample("spread", dist.HalfNormal(5.0))
    with numpyro.plate("schools", len(y)):
        offset = numpyro.sample("offset", dist.Normal(0.0, 1.0))
        effect = numpyro.deterministic("effect", centre + spread * offset)
        numpyro.sample("y", dist.Normal(effect, sigma), obs=y)


Y_SMALL = np.array([0.5, 1.5, 2.5])
SMALL_VARIANCE = 1.0 / (3.0 + 1.0 / 9.0)
SMALL_MEAN = SMALL_VARIANCE * Y_SMALL.sum()


@pytest.fixture(scope="module")
def full_rank():
    return fit(regression, X, Y, progress_bar=False)


@pytest.fixture(scope="module")
def mean_field():
    return fit(regression, X, Y, guide="mean_field", progress_bar=False)


def test_full_rank_is_the_posterior(full_rank):
    assert full_rank.converged
    assert full_rank.verdict.trustworthy
    for params in full_rank.all_params:
        posterior = full_rank.guide.get_posterior(params)
        np.testing.assert_allclose((posterior.mean - MEAN) / SD, 0.0, atol=0.01)
        correlation = np.asarray(posterior.covariance_matrix) / np.outer(SD, SD)
        np.testing.assert_allclose(correlation, COVARIANCE / np.outer(SD, SD), atol=0.02)


def test_the_evidence_is_exact(full_rank):
    joint = NOISE**2 * np.eye(len(Y)) + PRIOR**2 * X @ X.T
    _, log_det = np.linalg.slogdet(2.0 * np.pi * joint)
    exact = -0.5 * (log_det + Y @ np.linalg.solve(joint, Y))
    assert full_rank.verdict.log_evidence == pytest.approx(exact, abs=0.01)


def test_restarts_are_chains(full_rank):
    data = full_rank.to_arviz(num_draws=500)
    assert data.posterior["slopes"].shape == (2, 500, 3)
    assert data.sample_stats["log_q"].shape == (2, 500)
    assert data.posterior.attrs["objective"] == "reverse_kl"
    draws = data.posterior["slopes"].values.reshape(-1, 3)
    np.testing.assert_allclose((draws.mean(0) - MEAN) / SD, 0.0, atol=5.0 / np.sqrt(1000))
    again = full_rank.to_arviz(num_draws=500)
    np.testing.assert_array_equal(data.posterior["slopes"], again.posterior["slopes"])
    other = full_rank.to_arviz(num_draws=500, seed=1)
    assert np.any(data.posterior["slopes"].values != other.posterior["slopes"].values)


def test_losses_are_kept_for_every_step(full_rank):
    assert [len(losses) % 100 for losses in full_rank.losses] == [0, 0]
    assert all(losses[0] > losses[-1] for losses in full_rank.losses)


def test_predictive_takes_new_arguments(full_rank):
    new = X[:2]
    draws = full_rank.predictive(new, None, num_samples=4000)["y"]
    assert draws.shape == (4000, 2)
    exact = new @ MEAN
    variance = np.einsum("ij,jk,ik->i", new, COVARIANCE, new) + NOISE**2
    assert np.all(np.abs(draws.mean(0) - exact) < 5.0 * np.sqrt(variance / 4000))
    np.testing.assert_allclose(draws.var(0) / variance, 1.0, atol=5.0 * np.sqrt(2.0 / 4000))
    # Observed values stand where the fit's own arguments are used.
    np.testing.assert_array_equal(full_rank.predictive(num_samples=3)["y"], [Y] * 3)


def test_mean_field_has_the_conditional_scales(mean_field):
    posterior = mean_field.guide.get_posterior(mean_field.params)
    scale = np.sqrt(np.asarray(posterior.variance))
    np.testing.assert_allclose((posterior.mean - MEAN) / SD, 0.0, atol=0.01)
    np.testing.assert_allclose(scale * np.sqrt(np.diag(PRECISION)), 1.0, atol=0.1)
    assert not mean_field.verdict.trustworthy
    assert "guide='full_rank'" in str(mean_field)
    assert str(mean_field).startswith("mean_field guide, reverse_kl, 2 restarts: ")


# Here and below, what is slow are whole fits whose like Pyro has in the quick suite.
@pytest.mark.slow
def test_mass_covering_is_wider_than_reverse_kl():
    # Correlation 0.9: the two optima differ by a factor that restarts cannot blur.
    def model():
        covariance = jnp.array([[1.0, 0.9], [0.9, 1.0]])
        numpyro.sample("z", dist.MultivariateNormal(jnp.zeros(2), covariance))

    covering = fit(model, guide="mean_field", objective="jensen_shannon", progress_bar=False)
    scale = np.sqrt(np.asarray(covering.guide.get_posterior(covering.params).variance))
    assert [name for name, _ in covering.stages] == ["reverse_kl", "jensen_shannon"]
    assert covering.converged
    assert np.all(scale > 1.2 * np.sqrt(1.0 - 0.9**2))
    assert np.all(scale < 1.0)


@pytest.mark.slow
def test_psis_resample_repairs_what_mean_field_misses():
    def model():
        covariance = jnp.array([[1.0, 0.6], [0.6, 1.0]])
        numpyro.sample("z", dist.MultivariateNormal(jnp.zeros(2), covariance))

    result = fit(model, guide="mean_field", num_restarts=1, progress_bar=False)
    raw = result.to_arviz(num_draws=10_000).posterior["z"].values[0]
    repaired = result.psis_resample(num_draws=10_000).posterior["z"].values[0]
    assert abs(np.corrcoef(raw.T)[0, 1]) < 5.0 / 100
    assert np.corrcoef(repaired.T)[0, 1] == pytest.approx(0.6, abs=0.1)
    assert "one restart" in str(result)


@pytest.mark.slow
def test_a_hierarchical_model_with_constrained_sites():
    y = np.array([28.0, 8.0, -3.0, 7.0, -1.0, 1.0, 18.0, 12.0])
    sigma = np.array([15.0, 10.0, 16.0, 11.0, 9.0, 11.0, 10.0, 18.0])
    result = fit(schools, y, sigma, progress_bar=False)
    assert result.converged
    assert result.verdict.agreement < 0.1
    posterior = result.to_arviz(num_draws=200).posterior
    assert np.all(posterior["spread"].values > 0.0)
    expected = posterior["centre"] + posterior["spread"] * posterior["offset"]
    np.testing.assert_allclose(posterior["effect"], expected.transpose(*posterior["effect"].dims))


def test_a_result_pickles_and_still_draws(full_rank):
    copy = pickle.loads(pickle.dumps(full_rank))
    found = copy.to_arviz(num_draws=50).posterior["slopes"].values
    np.testing.assert_array_equal(found, full_rank.to_arviz(num_draws=50).posterior["slopes"])
    assert copy.verdict == full_rank.verdict


def test_single_precision_settings_do_not_matter(full_rank):
    with jax.enable_x64(new_val=False):
        result = fit(
            regression,
            X.astype(np.float32),
            jnp.asarray(Y, jnp.float32),
            num_restarts=1,
            progress_bar=False,
        )
        assert jnp.ones(1).dtype == jnp.float32
        draws = result.predictive(X.astype(np.float32), None, num_samples=2)["y"]
        # The user's own loop goes on in single precision.
        own = result.guide.sample_posterior(jax.random.key(0), result.params, sample_shape=(3,))
    assert all(value.dtype == np.float64 for value in jax.tree.leaves(result.params))
    assert draws.dtype == np.float64
    assert own["slopes"].dtype == jnp.float32
    mean = np.asarray(result.guide.get_posterior(result.params).mean)
    np.testing.assert_allclose((mean - MEAN) / SD, 0.0, atol=0.02)


class TestErrors:
    def _refuse(self, model, message, *args, error=ValueError, **options):
        with pytest.raises(error, match=message):
            fit(model, *args, progress_bar=False, **options)

    def test_unknown_guide(self):
        self._refuse(normal_mean, "guide must be one of mean_field.*'fullrank'", guide="fullrank")

    def test_no_guide(self):
        self._refuse(normal_mean, "guide must be one of.*got int", guide=3, error=TypeError)

    def test_unknown_objective(self):
        self._refuse(normal_mean, "reverse_kl.*'kl'", Y_SMALL, objective="kl")

    def test_no_restarts(self):
        self._refuse(normal_mean, "num_restarts must be at least 1, got 0", num_restarts=0)

    def test_less_than_a_window(self):
        self._refuse(normal_mean, "max_steps must be at least 100.*got 99", max_steps=99)

    def test_discrete_sites(self):
        def model():
            numpyro.sample("flip", dist.Bernoulli(0.5))

        self._refuse(model, "site 'flip' is discrete.*marginalise it")

    def test_nothing_latent(self):
        def model():
            numpyro.sample("y", dist.Normal(0.0, 1.0), obs=0.0)

        self._refuse(model, "model has no latent sites")

    def test_subsampled_plates(self):
        def model():
            mean = numpyro.sample("mean", dist.Normal(0.0, 1.0))
            with numpyro.plate("rows", 10, subsample_size=5):
                numpyro.sample("y", dist.Normal(mean, 1.0), obs=jnp.zeros(5))

        self._refuse(model, r"plate 'rows' is subsampled \(5 of 10\).*numpyro.infer.SVI")

    def test_no_finite_start(self):
        with pytest.warns(UserWarning, match="Out-of-support"):
            self._refuse(normal_mean, "no starting point has a finite", np.array([1.0, np.nan]))
