"""The continuous Bernoulli: quadrature, golden values, slopes across 0, both hosts' classes."""

import jax
import jax.numpy as jnp
import numpy as np
import pyro
import pyro.distributions as pyro_dist
import pytest
import torch
from helpers import assert_within_standard_errors, gradient_of, make_array, to_numpy
from numpyro.distributions import kl_divergence as numpyro_kl
from scipy.integrate import quad
from scipy.special import logit

from bayesdiv import _continuous_bernoulli as formulas
from bayesdiv.numpyro.distributions import ContinuousBernoulli as NumPyroLaw
from bayesdiv.pyro.distributions import ContinuousBernoulli as PyroLaw

# Both sides of every switch between a series and a closed form, and of the limit.
EDGES = [0.0, 1e-12, 1e-6, 1e-3, 0.0499, 0.05, 0.0501, 0.3, 0.9999, 1.0, 1.0001, 2.0, 7.0, 15.8]
LOGITS = np.array(sorted({sign * value for value in EDGES for sign in (-1.0, 1.0)}))
PROBABILITIES = np.linspace(0.0, 1.0, 21)


def unnormalised_moments(logit_value: float) -> tuple[float, float, float]:
    """Normaliser, mean and variance of e^(ℓx) on [0, 1] by quadrature."""
    total = quad(lambda x: np.exp(logit_value * (x - 0.5)), 0, 1, epsabs=1e-13, epsrel=1e-13)[0]
    mean = quad(lambda x: x * np.exp(logit_value * (x - 0.5)), 0, 1, epsabs=1e-13)[0] / total
    variance = quad(
        lambda x: (x - mean) ** 2 * np.exp(logit_value * (x - 0.5)), 0, 1, epsabs=1e-13
    )[0]
    return total, mean, variance / total


def test_density_and_moments_against_quadrature(backend):
    logits = make_array(backend, LOGITS)
    total, mean, variance = np.array([unnormalised_moments(value) for value in LOGITS]).T
    middle = to_numpy(formulas.log_prob(0.0 * logits + 0.5, logits))
    np.testing.assert_allclose(middle, -np.log(total), rtol=1e-11, atol=1e-12)
    np.testing.assert_allclose(to_numpy(formulas.mean(logits)), mean, rtol=1e-11)
    np.testing.assert_allclose(to_numpy(formulas.variance(logits)), variance, rtol=1e-10)


@pytest.mark.parametrize(
    ("probability", "log_normaliser", "mean"),
    [
        (1e-4, 2.22051597, None),
        (0.01, 1.54519755, 0.20741810),
        (0.1, 1.01033856, 0.33011961),
        (0.5, 0.69314718, 0.5),
        (0.9, 1.01033856, 0.66988039),
        (0.999, 1.93450189, None),
    ],
)
def test_golden_values(backend, probability, log_normaliser, mean):
    logits = make_array(backend, logit(probability))
    # In the authors' form log p(0) = log C(λ) + log(1 − λ).
    at_zero = float(formulas.log_prob(0.0 * logits, logits))
    assert abs(at_zero - np.log1p(-probability) - log_normaliser) < 1e-8
    if mean is not None:
        assert abs(float(formulas.mean(logits)) - mean) < 1e-8


@pytest.mark.parametrize(("probability", "expected"), [(0.1, 0.245811), (0.9, -0.633079), (0.5, 0)])
def test_golden_log_density(backend, probability, expected):
    value = formulas.log_prob(make_array(backend, 0.3), make_array(backend, logit(probability)))
    assert abs(float(value) - expected) < 1e-6


def test_gradients_across_zero_by_finite_differences(backend):
    step = 1e-4
    points = LOGITS[np.abs(LOGITS) < 15.0]
    at = 0.3

    functions = {
        "log_prob": lambda x: formulas.log_prob(0.0 * x + at, x),
        "mean": formulas.mean,
        "variance": formulas.variance,
        "cdf": lambda x: formulas.cdf(0.0 * x + at, x),
        "icdf": lambda x: formulas.icdf(0.0 * x + at, x),
        "entropy": formulas.entropy,
    }
    for name, function in functions.items():
        (slope,) = gradient_of(backend, lambda x, f=function: f(x).sum(), points)

        def number(shift, function=function):
            return to_numpy(function(make_array(backend, points + shift)))

        # Five-point rule: error of order step⁴.
        difference = (8 * (number(step) - number(-step)) - number(2 * step) + number(-2 * step)) / (
            12 * step
        )
        np.testing.assert_allclose(slope, difference, rtol=1e-7, atol=2e-11, err_msg=name)


def test_score_is_value_minus_mean(backend):
    (slope,) = gradient_of(backend, lambda x: formulas.log_prob(0.0 * x + 0.2, x).sum(), LOGITS)
    mean = to_numpy(formulas.mean(make_array(backend, LOGITS)))
    np.testing.assert_allclose(slope, 0.2 - mean, atol=1e-13)


def test_distribution_function_and_its_inverse(backend):
    logits = make_array(backend, LOGITS[:, None])
    uniform = make_array(backend, PROBABILITIES)
    values = formulas.icdf(uniform, logits)
    assert float(values.min()) == 0.0
    assert float(values.max()) == 1.0
    np.testing.assert_allclose(
        to_numpy(formulas.cdf(values, logits)), np.broadcast_to(PROBABILITIES, values.shape),
        atol=1e-12,
    )  # fmt: skip
    for value in (-3.0, -0.2, 1e-4, 0.4, 6.0):
        below, total = (quad(lambda x, v=value: np.exp(v * x), 0, end)[0] for end in (0.35, 1.0))
        found = formulas.cdf(make_array(backend, 0.35), make_array(backend, value))
        assert abs(float(found) - below / total) < 1e-12


def test_float32_is_as_exact_as_float32_can_be(backend):
    def both(function):
        single = function(make_array(backend, LOGITS.astype(np.float32), "float32"))
        exact = function(make_array(backend, LOGITS.astype(np.float32).astype(np.float64)))
        return to_numpy(single), to_numpy(exact)

    for function, tolerance in (
        (lambda x: formulas.log_prob(0.0 * x + 0.3, x), 2e-6),
        (formulas.mean, 2e-7),
        (formulas.variance, 3e-7),
        (lambda x: formulas.icdf(0.0 * x + (1.0 - 2.0**-13), x), 2e-6),
        (lambda x: formulas.cdf(0.0 * x + 0.6, x), 3e-7),
    ):
        single, exact = both(function)
        assert single.dtype == np.float32
        np.testing.assert_allclose(single, exact, atol=tolerance)
    (single,) = gradient_of(
        backend, lambda x: formulas.icdf(0.0 * x + 0.3, x).sum(), LOGITS, dtype="float32"
    )
    (exact,) = gradient_of(backend, lambda x: formulas.icdf(0.0 * x + 0.3, x).sum(), LOGITS)
    np.testing.assert_allclose(single, exact, atol=1e-5)


def test_logits_beyond_the_limit_count_as_the_limit(backend):
    far = make_array(backend, [-1e4, -20.0, 20.0, 1e4])
    limit = make_array(backend, [-15.9, -15.9, 15.9, 15.9])
    for function in (
        lambda x: formulas.log_prob(0.0 * limit + 0.2, x),
        formulas.mean,
        formulas.variance,
        formulas.entropy,
        lambda x: formulas.icdf(0.0 * limit + 0.2, x),
    ):
        np.testing.assert_array_equal(to_numpy(function(far)), to_numpy(function(limit)))
    (slope,) = gradient_of(backend, lambda x: formulas.mean(x).sum(), [-1e4, 1e4])
    np.testing.assert_array_equal(slope, [0.0, 0.0])


def test_entropy_and_divergence_against_quadrature(backend):
    p, q = 2.5, -0.7

    def density(x, value):
        return np.exp(value * x) * (value / np.expm1(value))

    entropy = quad(lambda x: -density(x, p) * np.log(density(x, p)), 0, 1)[0]
    divergence = quad(lambda x: density(x, p) * np.log(density(x, p) / density(x, q)), 0, 1)[0]
    assert abs(float(formulas.entropy(make_array(backend, p))) - entropy) < 1e-12
    found = formulas.kl_divergence(make_array(backend, p), make_array(backend, q))
    assert abs(float(found) - divergence) < 1e-12


def test_pyro_class_draws_expands_and_has_gradients():
    logits = torch.tensor([-6.0, -0.01, 0.0, 3.0], dtype=torch.float64, requires_grad=True)
    law = PyroLaw(logits=logits)
    assert law.has_rsample
    draws = law.rsample((40_000,))
    assert_within_standard_errors(draws, law.mean)
    assert_within_standard_errors((draws - law.mean) ** 2, law.variance)
    (pathwise,) = torch.autograd.grad(draws.sum(0).sum() / 40_000, logits)
    # d E[x] / dℓ is the variance.
    np.testing.assert_allclose(to_numpy(pathwise), to_numpy(law.variance), atol=5e-3)
    wide = law.expand((3, 4))
    assert wide.batch_shape == (3, 4)
    assert wide.to_event(1).log_prob(torch.full((3, 4), 0.5, dtype=torch.float64)).shape == (3,)
    other = PyroLaw(logits=torch.tensor(1.0, dtype=torch.float64))
    np.testing.assert_allclose(
        to_numpy(torch.distributions.kl_divergence(law, other)),
        to_numpy(formulas.kl_divergence(law.logits, other.logits)),
    )
    with pyro.plate("data", 4):
        pyro.sample("x", PyroLaw(logits=logits), obs=torch.full((4,), 0.5, dtype=torch.float64))


def test_pyro_class_agrees_with_the_host_away_from_zero():
    logits = torch.tensor([-8.0, -2.0, 0.7, 5.0], dtype=torch.float64)
    ours, host = PyroLaw(logits=logits), pyro_dist.ContinuousBernoulli(logits=logits)
    value = torch.tensor([0.1, 0.3, 0.9, 1.0], dtype=torch.float64)
    np.testing.assert_allclose(ours.log_prob(value), host.log_prob(value), rtol=1e-10)
    np.testing.assert_allclose(ours.mean, host.mean, rtol=1e-10)
    np.testing.assert_allclose(ours.icdf(value), host.icdf(value), rtol=1e-10)


def test_numpyro_class_is_a_pytree_and_draws():
    law = NumPyroLaw(logits=jnp.array([-6.0, -0.01, 0.0, 3.0]))
    draws = law.sample(jax.random.key(0), (40_000,))
    assert_within_standard_errors(draws, law.mean)
    assert_within_standard_errors((draws - law.mean) ** 2, law.variance)
    rows = jax.vmap(lambda x: NumPyroLaw(logits=x))(jnp.zeros((3, 2)))
    assert jax.vmap(lambda d: d.log_prob(0.3))(rows).shape == (3, 2)
    through = jax.jit(lambda d: d.expand((2, 4)).to_event(1).log_prob(jnp.full((2, 4), 0.5)))(law)
    assert through.shape == (2,)
    observed = jax.jit(lambda x: NumPyroLaw(logits=x, validate_args=True).log_prob(np.ones(2)))
    assert observed(jnp.zeros(2)).tolist() == [0.0, 0.0]
    other = NumPyroLaw(logits=1.0)
    np.testing.assert_allclose(
        numpyro_kl(law, other), formulas.kl_divergence(law.logits, other.logits)
    )


@pytest.mark.parametrize("bad", [[0.5, 1.25], [-0.5, 0.5], [0.5, float("nan")]])
def test_values_outside_the_unit_interval_are_named(bad):
    extremes = rf"value must lie in \[0, 1\].*from {min(bad):g}|from nan"
    with pytest.raises(ValueError, match=extremes):
        PyroLaw(logits=torch.zeros(2), validate_args=True).log_prob(torch.tensor(bad))
    with pytest.raises(ValueError, match=extremes):
        NumPyroLaw(logits=jnp.zeros(2), validate_args=True).log_prob(jnp.array(bad))
    with pytest.raises(ValueError, match=r"images must lie in \[0, 1\]"):
        formulas.check_unit_interval(np.array(bad))


def test_empty_data_and_wrong_keys_are_named():
    with pytest.raises(ValueError, match=r"images must not be empty, got shape \(0, 3\)"):
        formulas.check_unit_interval(np.zeros((0, 3)))
    with pytest.raises(TypeError, match="key must be a JAX key, got int"):
        NumPyroLaw(logits=0.0).sample(3)
