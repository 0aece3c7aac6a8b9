"""A normal law given by its log-variance is the normal law."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest

from bayesdiv.models._log_variance_normal import LogVarianceNormal

LOG_VARIANCES = jnp.linspace(-12.0, 8.0, 41)


def test_density_and_moments_are_those_of_the_normal_law():
    law, normal = LogVarianceNormal(LOG_VARIANCES), dist.Normal(0.0, jnp.exp(0.5 * LOG_VARIANCES))
    values = jnp.asarray([-3.0, 0.0, 0.7])[:, None]
    np.testing.assert_allclose(law.log_prob(values), normal.log_prob(values), rtol=1e-12)
    np.testing.assert_allclose(law.variance, normal.variance, rtol=1e-12)
    np.testing.assert_array_equal(law.mean, normal.mean)


def test_draws_have_the_variance():
    law = LogVarianceNormal(jnp.asarray([-2.0, 0.0, 3.0]))
    draws = law.sample(jax.random.key(0), (20_000,))
    assert draws.shape == (20_000, 3)
    scaled = draws**2 / law.variance
    # Squares of standard normals have mean 1 and variance 2.
    assert np.all(np.abs(scaled.mean(0) - 1.0) < 5.0 * np.sqrt(2.0 / 20_000))
    assert np.all(np.abs(draws.mean(0) / jnp.sqrt(law.variance)) < 5.0 / np.sqrt(20_000))


def test_density_is_differentiable_and_survives_small_variances():
    gradient = jax.grad(lambda h: LogVarianceNormal(h).log_prob(2.0))(1.0)
    assert gradient == pytest.approx(-0.5 + 2.0 * np.exp(-1.0))
    single = LogVarianceNormal(jnp.float32(-100.0)).log_prob(jnp.float32(1e-3))
    assert np.isfinite(single)
