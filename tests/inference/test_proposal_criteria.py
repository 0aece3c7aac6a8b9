"""Criteria of importance weights: identities that hold for any weights."""

import jax.numpy as jnp
import numpy as np
import pytest

from bayesdiv.inference.proposal_criteria import (
    alpha_moment,
    coefficient_of_variation,
    divergence_of_weights,
    effective_sample_size,
    entropy_kl,
    log_ratios,
    perplexity,
)

CRITERIA = [
    entropy_kl,
    coefficient_of_variation,
    effective_sample_size,
    perplexity,
    lambda log_weights: alpha_moment(log_weights, 1.7),
    lambda log_weights: divergence_of_weights(log_weights, "jensen_shannon"),
]


@pytest.fixture
def log_weights():
    return jnp.asarray(np.random.default_rng(1).normal(size=(3, 200)) * 2.0)


def test_definitions(log_weights):
    weights = np.exp(np.asarray(log_weights))
    weights /= weights.sum(axis=1, keepdims=True)
    ess = 1.0 / (weights**2).sum(axis=1)
    np.testing.assert_allclose(effective_sample_size(log_weights), ess, rtol=1e-12)
    np.testing.assert_allclose(
        entropy_kl(log_weights), (weights * np.log(200 * weights)).sum(axis=1), rtol=1e-12
    )
    np.testing.assert_allclose(
        alpha_moment(log_weights, 0.5), 200**-0.5 * np.sqrt(weights).sum(axis=1), rtol=1e-12
    )
    np.testing.assert_allclose(np.exp(log_ratios(log_weights)).mean(axis=1), 1.0, rtol=1e-12)


def test_identities_between_criteria(log_weights):
    cv2 = coefficient_of_variation(log_weights)
    np.testing.assert_allclose(effective_sample_size(log_weights), 200 / (1 + cv2), rtol=1e-12)
    np.testing.assert_allclose(perplexity(log_weights), 200 * np.exp(-entropy_kl(log_weights)))
    np.testing.assert_allclose(alpha_moment(log_weights, 2.0), 1 + cv2, rtol=1e-12)
    np.testing.assert_allclose(alpha_moment(log_weights, 1.0), 1.0, rtol=1e-12)
    np.testing.assert_allclose(
        divergence_of_weights(log_weights, "forward_kl"), entropy_kl(log_weights), rtol=1e-10
    )
    np.testing.assert_allclose(divergence_of_weights(log_weights, "pearson_chi2"), cv2, rtol=1e-10)
    assert (entropy_kl(log_weights) > 0.1).all()


@pytest.mark.parametrize("criterion", CRITERIA)
def test_neither_order_nor_scale_matters(criterion, log_weights):
    shuffled = np.random.default_rng(2).permutation(np.asarray(log_weights), axis=1)
    np.testing.assert_allclose(criterion(log_weights), criterion(shuffled), rtol=1e-10)
    np.testing.assert_allclose(criterion(log_weights), criterion(log_weights - 1e3), rtol=1e-10)


def test_equal_weights_are_perfect():
    equal = jnp.full(50, -700.0)
    assert entropy_kl(equal) == pytest.approx(0.0, abs=1e-12)
    assert coefficient_of_variation(equal) == pytest.approx(0.0, abs=1e-12)
    assert effective_sample_size(equal) == pytest.approx(50.0)


def test_one_particle_with_all_the_weight():
    single = jnp.full(50, -jnp.inf).at[3].set(2.0)
    assert effective_sample_size(single) == pytest.approx(1.0)
    assert entropy_kl(single) == pytest.approx(np.log(50))


def test_divergences_between_samples_are_refused():
    with pytest.raises(ValueError, match=r"must be an f-divergence.*'sinkhorn'"):
        divergence_of_weights(jnp.zeros(3), "sinkhorn")
