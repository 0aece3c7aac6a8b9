"""The transportation divergence between fitted models, and other ways to combine them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from expert_models import permuted, perturbed, random_model

from bayesdiv._mixture_of_experts import MixtureOfExpertsParameters, log_prob
from bayesdiv.inference.moe_reduction import (
    BASELINES,
    baseline,
    expected_divergence,
)

KEY = jax.random.key(0)
FOUR = [(-2.0, 0.5), (0.0, 1.0), (1.0, 2.0), (5.0, 0.1)]
FOUR_WEIGHTS = [0.1, 0.4, 0.3, 0.2]


def support(num_rows=400, dim=3, seed=0):
    return np.random.default_rng(seed).normal(1.0, 2.0, size=(num_rows, dim))


def with_intercept(predictors):
    return jnp.asarray(np.concatenate([np.ones((len(predictors), 1)), predictors], axis=1))


def intercepts_only(moments):
    """One expert a model, N(mean, variance) whatever the predictors."""
    return [
        MixtureOfExpertsParameters(np.zeros((1, 1)), np.array([[m]]), np.array([v**0.5]))
        for m, v in moments
    ]


def density(model, rows=50):
    """log density at some rows and outcomes, which neither labels nor gauge change."""
    predictors = support(rows, np.shape(model.gate)[1] - 1, seed=9)
    outcome = np.random.default_rng(10).normal(scale=6.0, size=rows)
    return np.asarray(log_prob(jnp.asarray(outcome), with_intercept(predictors), as_jax(model)))


def as_jax(model):
    return MixtureOfExpertsParameters(*(None if p is None else jnp.asarray(p) for p in model))


def test_divergence_counts_gates_where_marginals_are_coupled():
    model, rows = random_model(1), support(80)
    same = model._replace(gate=np.zeros_like(model.gate))
    assert expected_divergence(model, same, rows) == pytest.approx(0.0, abs=1e-12)
    assert expected_divergence(model, model, rows, coupling="exact") == pytest.approx(0.0, abs=1e-9)
    exact = expected_divergence(model, same, rows, coupling="exact")
    assert exact > 1.0
    other = random_model(2)
    for cost in ("forward_kl", "wasserstein2"):
        relaxed, coupled = (
            expected_divergence(model, other, rows, cost=cost, coupling=coupling)
            for coupling in ("relaxed", "exact")
        )
        assert 0.0 < relaxed < coupled


def test_divergence_of_single_experts_is_the_cost():
    first, second = intercepts_only([(0.0, 1.0), (1.0, 2.0)])
    rows = np.empty((3, 0))
    expected = 0.5 * (np.log(2.0) + 0.5 + 0.5 - 1.0)
    for coupling in ("relaxed", "exact"):
        found = expected_divergence(first, second, rows, coupling=coupling)
        assert found == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("name", BASELINES)
def test_baselines_return_what_all_models_are(name):
    model = permuted(random_model(2), np.argsort(random_model(2).coefficients[:, 0]))
    copies = [model, permuted(model, np.array([1, 2, 0])), permuted(model, np.array([2, 1, 0]))]
    found = baseline(name, copies, support())
    np.testing.assert_allclose(density(found), density(model), atol=2e-6)


def test_averages_are_of_matched_experts_and_variances():
    first = random_model(2)
    second = permuted(first._replace(scale=2.0 * first.scale), np.array([1, 2, 0]))
    found = baseline("aligned_average", [first, second], support(), weights=[0.75, 0.25])
    np.testing.assert_allclose(
        density(found),
        density(first._replace(scale=first.scale * np.sqrt(0.75 + 0.25 * 4.0))),
        atol=1e-9,
    )


def test_equal_intercepts_mislead_the_naive_average():
    model = random_model(2)
    model.coefficients[:, 0] = 0.0
    models = perturbed(model, 8, 0.02)
    divergence = {
        name: expected_divergence(model, baseline(name, models, support()), support())
        for name in ("naive_average", "aligned_average")
    }
    assert divergence["naive_average"] > 100.0 * divergence["aligned_average"]
