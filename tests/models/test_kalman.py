"""Kalman's filter and smoother against the joint normal law, and their transformations."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from linear_gaussian_joint import SCALAR, VECTOR, joint_law
from scipy.stats import multivariate_normal

from bayesdiv.models.kalman import LinearGaussianParameters, kalman_filter, kalman_smoother


def autoregression(emission_scale: float) -> np.ndarray:
    rng = np.random.default_rng(0)
    states = np.zeros(100)
    states[0] = rng.normal()
    for time in range(1, 100):
        states[time] = 0.9 * states[time - 1] + rng.normal()
    return states + emission_scale * rng.normal(size=100)


@pytest.mark.parametrize(
    ("emission_scale", "log_evidence"), [(0.1, -141.31366772722137), (0.5, -161.34059152153986)]
)
def test_golden_evidence(emission_scale, log_evidence):
    parameters = LinearGaussianParameters(0.9, 1.0, 1.0, emission_scale)
    found = kalman_filter(parameters, autoregression(emission_scale))
    np.testing.assert_allclose(found.log_evidence, log_evidence, rtol=1e-13)
    np.testing.assert_allclose(found.log_evidence_increments.sum(), log_evidence, rtol=1e-13)


def series(parameters: LinearGaussianParameters, *, missing: tuple[int, ...]) -> np.ndarray:
    observations = np.random.default_rng(1).normal(size=(6, 3))
    observations[list(missing)] = np.nan
    if missing:
        # One entry is enough to make a row missing.
        observations[missing[0], 1:] = 0.0
    return observations[:, 0] if parameters.is_scalar else observations


@pytest.mark.parametrize("missing", [(), (0, 3), (2, 5)])
@pytest.mark.parametrize("parameters", [SCALAR, VECTOR], ids=["scalar", "vector"])
def test_evidence_and_moments_are_those_of_the_joint_law(parameters, missing):
    observations = series(parameters, missing=missing)
    mean, observed_mean, covariance, observed_covariance, cross = joint_law(parameters, 6)
    width = len(observed_mean) // 6
    rows = observations.reshape(6, width)
    dim = len(mean) // 6

    def conditional(until: int) -> tuple[np.ndarray, np.ndarray]:
        is_seen = ~np.isnan(rows).any(1) & (np.arange(6) < until)
        seen = np.repeat(is_seen, width)
        gain = cross[:, seen] @ np.linalg.inv(observed_covariance[np.ix_(seen, seen)])
        residual = rows.ravel()[seen] - observed_mean[seen]
        return mean + gain @ residual, covariance - gain @ cross[:, seen].T

    filtered, smoothed = (f(parameters, observations) for f in (kalman_filter, kalman_smoother))
    seen = np.repeat(~np.isnan(rows).any(1), width)
    exact = multivariate_normal(observed_mean[seen], observed_covariance[np.ix_(seen, seen)])
    for found in (filtered, smoothed):
        np.testing.assert_allclose(found.log_evidence, exact.logpdf(rows.ravel()[seen]), rtol=1e-12)
        assert found.means.shape == ((6,) if parameters.is_scalar else (6, 2))
        for time in missing:
            assert found.log_evidence_increments[time] == 0.0
    for time in range(6):
        block = slice(time * dim, (time + 1) * dim)
        for found, until in ((filtered, time + 1), (smoothed, 6)):
            exact_mean, exact_covariance = conditional(until)
            np.testing.assert_allclose(found.means[time].ravel(), exact_mean[block], atol=1e-12)
            np.testing.assert_allclose(
                found.covariances[time].reshape(dim, dim),
                exact_covariance[block, block],
                atol=1e-12,
            )


def test_transformations_compose():
    observations = jnp.asarray(series(SCALAR, missing=(2,)))

    def log_evidence(scale):
        return kalman_filter(SCALAR._replace(emission_scale=scale), observations).log_evidence

    scales = jnp.array([0.3, 0.4, 0.8])
    together = jax.jit(jax.vmap(jax.value_and_grad(log_evidence)))(scales)
    for place, scale in enumerate(scales):
        slope = (log_evidence(scale + 1e-5) - log_evidence(scale - 1e-5)) / 2e-5
        np.testing.assert_allclose(together[0][place], log_evidence(scale), rtol=1e-12)
        np.testing.assert_allclose(together[1][place], slope, rtol=1e-7)


def test_float32_stays_positive_where_observations_are_sharp():
    sharp = LinearGaussianParameters(
        np.array([[1.0, 1.0], [0.0, 1.0]]), 1e-3, np.array([[1.0, 0.5]]), 1e-3, 0.0, 1.0
    )
    observations = np.arange(200.0)[:, None] * 0.01
    single = jax.tree.map(np.float32, sharp)
    found = kalman_filter(single, observations.astype(np.float32))
    exact = kalman_filter(sharp, observations)
    assert found.covariances.dtype == jnp.float32
    assert np.linalg.eigvalsh(np.asarray(found.covariances, np.float64)).min() > 0.0
    np.testing.assert_allclose(found.log_evidence, exact.log_evidence, rtol=1e-3)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"transition_matrix": np.ones((2, 3))}, r"transition_matrix must.*got \(2, 3\)"),
        ({"emission_matrix": np.ones((3, 1))}, r"emission_matrix must be.*got \(3, 1\)"),
        ({"emission_scale": np.ones(3)}, r"emission_scale must.*\(3, 3\), got \(3,\)"),
        ({"initial_mean": np.ones(3)}, r"initial_mean must be a number or \(2,\), got \(3,\)"),
    ],
)  # fmt: skip
def test_shapes_that_do_not_fit_are_named(change, message):
    with pytest.raises(ValueError, match=message):
        kalman_filter(VECTOR._replace(**change), np.zeros((4, 3)))


@pytest.mark.parametrize("observations", [np.zeros((4, 2)), np.zeros((0, 3)), np.zeros(4)])
def test_observations_that_do_not_fit_are_named(observations):
    with pytest.raises(ValueError, match=r"observations must be \(num_times, 3\) with at least"):
        kalman_filter(VECTOR, observations)
