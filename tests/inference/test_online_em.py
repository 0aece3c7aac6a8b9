"""EM for weighted mixtures of experts: its M-step, its ascent, and what it minimises."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.scipy.special import logsumexp
from scipy.optimize import minimize
from scipy.stats import norm

from bayesdiv._mixture_of_experts import MixtureOfExpertsParameters
from bayesdiv.divergences import Alpha, get_divergence
from bayesdiv.inference import _online_em as em

NUM_EXPERTS, DIM, NUM_FEATURES = 3, 2, 3


@pytest.fixture
def batch():
    """A weighted batch whose outcomes turn with the features."""
    rng = np.random.default_rng(0)
    inputs = rng.normal(size=(400, NUM_FEATURES - 1))
    features = np.concatenate([np.ones((400, 1)), inputs], axis=1)
    values = np.stack([np.abs(inputs[:, 0]), np.sin(2 * inputs[:, 1])], axis=1)
    values += 0.3 * rng.standard_t(4, size=values.shape)
    weights = rng.gamma(0.5, size=400)
    return jnp.asarray(values), jnp.asarray(features), jnp.asarray(weights / weights.sum())


@pytest.fixture
def parameters():
    rng = np.random.default_rng(1)
    factors = np.tril(rng.normal(size=(NUM_EXPERTS, DIM, DIM)) * 0.2) + np.eye(DIM)
    gate = rng.normal(size=(NUM_EXPERTS, NUM_FEATURES))
    return MixtureOfExpertsParameters(
        jnp.asarray(gate - gate[-1]),
        jnp.asarray(rng.normal(size=(NUM_EXPERTS, DIM, NUM_FEATURES))),
        jnp.asarray(factors),
    )


def objective(batch, parameters, freedom):
    values, features, weights = batch
    joint = em.joint_log_densities(values, features, parameters, freedom)
    return weights @ logsumexp(joint, axis=1)


@pytest.mark.parametrize("freedom", [None, 4.0])
@pytest.mark.parametrize("kappa", [0.0, 0.05])
def test_every_step_climbs(batch, parameters, freedom, kappa):
    start = parameters
    prior = em.prior_statistics(start.coefficients, start.scale)

    @jax.jit
    def value(parameters):
        height = objective(batch, parameters, freedom)
        return height + em.penalty(parameters, prior, start.gate, kappa)

    @jax.jit
    def step(parameters):
        statistics, _ = em.expectations(*batch, parameters, freedom)
        coefficients, scale = em.maximised(statistics, prior, kappa)
        parameters = parameters._replace(coefficients=coefficients, scale=scale)
        after_experts = value(parameters)
        statistics, gradient = em.expectations(*batch, parameters, freedom)
        gate = em.gate_step(
            parameters.gate, gradient, statistics.features, start=start.gate, kappa=kappa
        )
        return parameters._replace(gate=gate), after_experts

    heights = [value(parameters)]
    for _ in range(30):
        parameters, after_experts = step(parameters)
        heights += [after_experts, value(parameters)]
    rises = np.diff(np.array(heights))
    assert rises.min() > -1e-10
    assert rises[:4].min() > 1e-4


def test_one_expert_is_weighted_least_squares(batch):
    values, features, weights = (np.asarray(part) for part in batch)
    prior = em.prior_statistics(jnp.ones((1, DIM, NUM_FEATURES)), jnp.eye(DIM)[None])
    start = MixtureOfExpertsParameters(
        jnp.zeros((1, NUM_FEATURES)), jnp.ones((1, DIM, NUM_FEATURES)), jnp.eye(DIM)[None]
    )
    statistics, gradient = em.expectations(*batch, start)
    coefficients, scale = em.maximised(statistics, prior, 0.0)
    root = np.sqrt(weights)[:, None]
    expected = np.linalg.lstsq(root * features, root * values, rcond=None)[0]
    residual = values - features @ expected
    np.testing.assert_allclose(coefficients[0], expected.T, atol=1e-10)
    np.testing.assert_allclose(
        scale[0] @ scale[0].T, (weights[:, None] * residual).T @ residual, atol=1e-10
    )
    np.testing.assert_allclose(gradient, 0.0, atol=1e-14)


def test_pseudo_observations_are_observations(batch):
    """κ of the prior equals rows of data with that weight and those moments."""
    values, features, weights = batch
    kappa = 0.3
    coefficients, scale = jnp.full((1, DIM, NUM_FEATURES), 0.4), 0.7 * jnp.eye(DIM)[None]
    prior = em.prior_statistics(coefficients, scale)
    start = MixtureOfExpertsParameters(jnp.zeros((1, NUM_FEATURES)), coefficients, scale)
    found = em.maximised(em.expectations(*batch, start)[0], prior, kappa)
    # Signs of features and of noise that together have second moments I and ΣΣᵀ.
    signs = np.array(np.meshgrid(*[[-1, 1]] * (NUM_FEATURES + DIM))).reshape(5, -1).T
    more_features = jnp.asarray(signs[:, :NUM_FEATURES], float)
    more_values = more_features @ coefficients[0].T + 0.7 * signs[:, NUM_FEATURES:]
    more = jnp.full(len(signs), kappa / len(signs))
    pooled, _ = em.expectations(
        jnp.concatenate([values, more_values]),
        jnp.concatenate([features, more_features]),
        jnp.concatenate([weights, more]),
        start,
    )
    expected = em.maximised(pooled, prior, 0.0)
    np.testing.assert_allclose(found[0], expected[0], atol=1e-10)
    np.testing.assert_allclose(found[1], expected[1], atol=1e-10)


def test_gate_gradient_is_that_of_its_objective(batch, parameters):
    values, features, weights = batch
    joint = em.joint_log_densities(values, features, parameters, None)
    shares = weights[:, None] * jax.nn.softmax(joint, axis=1)

    def height(gate):
        return (shares * jax.nn.log_softmax(features @ gate.T, axis=1)).sum()

    _, gradient = em.expectations(*batch, parameters)
    np.testing.assert_allclose(gradient, jax.grad(height)(parameters.gate), atol=1e-12)


@pytest.mark.parametrize("size", [0.1, 1.0, 30.0])
def test_gate_step_never_descends(batch, size):
    """From anywhere, also where Newton's step overshoots."""
    features, weights = batch[1], batch[2]
    rng = np.random.default_rng(3)
    shares = weights[:, None] * jnp.asarray(rng.dirichlet(np.full(NUM_EXPERTS, 0.1), size=400))
    second = (weights[:, None] * features).T @ features

    def height(gate):
        return (shares * jax.nn.log_softmax(features @ gate.T, axis=1)).sum()

    for _ in range(20):
        gate = jnp.asarray(rng.normal(size=(NUM_EXPERTS, NUM_FEATURES))) * size
        after = em.gate_step(gate, jax.grad(height)(gate), second, start=gate)
        assert height(after) > height(gate)
        np.testing.assert_array_equal(after[-1], 0.0)


def test_labels_and_gate_baseline_do_not_matter(batch, parameters):
    order = jnp.array([2, 0, 1])
    shuffled = MixtureOfExpertsParameters(*(part[order] for part in parameters))
    shuffled = shuffled._replace(gate=shuffled.gate + jnp.array([0.3, -2.0, 5.0]))
    statistics, gradient = em.expectations(*batch, parameters)
    other, other_gradient = em.expectations(*batch, shuffled)
    np.testing.assert_allclose(other.moments, statistics.moments[order], atol=1e-12)
    np.testing.assert_allclose(other_gradient, gradient[order], atol=1e-12)
    settings = {"features": statistics.features, "kappa": 0.02, "step": 0.7}
    zeros = jnp.zeros_like(parameters.gate)
    gate = em.gate_step(parameters.gate, gradient, start=zeros, **settings)
    other_gate = em.gate_step(shuffled.gate, other_gradient, start=zeros, **settings)
    expected = gate[order] - gate[order][-1]
    np.testing.assert_allclose(other_gate, expected, atol=1e-11)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.float64])
def test_an_expert_without_particles_is_the_prior(dtype):
    coefficients = jnp.asarray([[[0.5, 1.0]], [[-0.5, 1.0]]], dtype)
    scale = jnp.full((2, 1, 1), 0.8, dtype)
    prior = em.prior_statistics(coefficients, scale)
    moments = jnp.zeros((2, 3, 3), dtype).at[0].set(jnp.eye(3, dtype=dtype))
    statistics = em.Statistics(jnp.asarray([1.0, 0.0], dtype), moments, jnp.eye(2, dtype=dtype))
    found = em.maximised(statistics, prior, 0.0)
    np.testing.assert_allclose(found[0][1], coefficients[1], rtol=1e-3)
    np.testing.assert_allclose(found[1][1], scale[1], rtol=1e-3)


@pytest.mark.parametrize(
    ("divergence", "weight"),
    [
        ("forward_kl", lambda u: u),
        ("pearson_chi2", lambda u: u**2),
        ("squared_hellinger", np.sqrt),
        ("jensen_shannon", np.log1p),
        ("total_variation", lambda u: u > 1.0),
        (Alpha(0.3), lambda u: u**0.3),
        (Alpha(2.0), lambda u: u**2),
    ],
)
def test_weights_of_members(divergence, weight):
    log_weights = np.random.default_rng(0).normal(size=100) * 3.0
    log_weights[7] = -np.inf
    ratios = np.exp(log_weights) / np.exp(log_weights).mean()
    expected = weight(ratios) / weight(ratios).sum()
    found = em.particle_weights(get_divergence(divergence), jnp.asarray(log_weights))
    np.testing.assert_allclose(found, expected, rtol=1e-9, atol=1e-15)


@pytest.mark.parametrize(
    "divergence",
    ["reverse_kl", "neyman_chi2", "jeffreys", "softened_reverse_kl", Alpha(-0.5)],
)
def test_divergences_without_weights_are_named(divergence):
    with pytest.raises(ValueError, match=r"has f\(0\) = ∞.*'forward_kl'"):
        em.particle_weights(get_divergence(divergence), jnp.zeros(3))


def target_log_density(x):
    """Skewed, and wider on one side."""
    return np.log(0.7 * norm.pdf(x, 0.0, 1.0) + 0.3 * norm.pdf(x, 2.0, 1.5))


# As many draws as quantiles of the proposal, so that "Monte Carlo" is quadrature.
QUANTILES = norm.ppf((np.arange(20_000) + 0.5) / 20_000)
MEMBERS = [
    "forward_kl",
    "pearson_chi2",
    "squared_hellinger",
    "jensen_shannon",
    Alpha(0.3),
    "generalized_jensen_shannon",
]


def em_fixed_point(weigh):
    weigh = jax.jit(weigh)
    mean, scale = 0.5, 2.0
    for _ in range(60):
        x = mean + scale * QUANTILES
        weights = np.asarray(
            weigh(jnp.asarray(target_log_density(x) - norm.logpdf(x, mean, scale)))
        )
        new_mean = weights @ x
        new_scale = np.sqrt(weights @ (x - new_mean) ** 2)
        mean, scale = 0.5 * (mean + new_mean), 0.5 * (scale + new_scale)
    return np.array([mean, scale])


def minimiser(divergence):
    grid, step = np.linspace(-14.0, 18.0, 6001, retstep=True)

    def value(theta):
        log_q = norm.logpdf(grid, theta[0], np.exp(theta[1]))
        terms = divergence.generator(jnp.asarray(target_log_density(grid) - log_q))
        # Where the proposal has no mass left the product is 0 · ∞.
        terms = np.asarray(jnp.where(log_q > -650.0, terms, 0.0))
        return step * np.sum(np.exp(log_q) * terms)

    found = minimize(value, [0.5, np.log(2.0)], method="Nelder-Mead", tol=1e-9)
    return np.array([found.x[0], np.exp(found.x[1])])


@pytest.mark.parametrize("member", MEMBERS)
def test_fixed_point_minimises_the_divergence(member):
    divergence = get_divergence(member)
    found = em_fixed_point(lambda log_weights: em.particle_weights(divergence, log_weights))
    np.testing.assert_allclose(found, minimiser(divergence), atol=1.5e-3)


def test_members_have_different_minimisers():
    """So that the test above tells them apart."""
    found = [minimiser(get_divergence(member))[1] for member in MEMBERS[:4]]
    assert np.diff(np.sort(found)).min() > 0.004


def test_path_weights_have_another_fixed_point():
    """They belong to gradients through the draws; for Jensen-Shannon the two differ."""
    divergence = get_divergence("jensen_shannon")

    def path_weights(log_weights):
        weights = divergence.path_weight(em.log_ratios(log_weights))
        return weights / weights.sum()

    difference = em_fixed_point(path_weights) - minimiser(divergence)
    assert np.abs(difference).max() > 0.02


def test_blending_forgets_at_the_rate_of_the_step():
    old = em.Statistics(jnp.zeros(1), jnp.zeros((1, 3, 3)), jnp.zeros((2, 2)))
    new = em.Statistics(jnp.ones(1), jnp.ones((1, 3, 3)), jnp.ones((2, 2)))
    assert all((part == 0.25).all() for part in em.blended(old, new, 0.25))
    for part, expected in zip(em.blended(old, new, 1.0), new, strict=True):
        np.testing.assert_array_equal(part, expected)
