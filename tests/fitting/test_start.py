"""Where fits start, on targets whose modes and covariances are known."""

import numpy as np
import pytest
from scipy import linalg

from bayesdiv.fitting import find_starts
from bayesdiv.fitting._start import scale_tril_of


class NormalTarget:
    """Minus log N(mean, covariance), with its constant, so that the best ELBO is zero."""

    def __init__(self, mean, covariance):
        self.mean, self.precision = np.asarray(mean), np.linalg.inv(covariance)
        self.dim = len(self.mean)
        self.constant = 0.5 * np.linalg.slogdet(2.0 * np.pi * np.asarray(covariance))[1]

    def value_and_gradient(self, z):
        pull = self.precision @ (z - self.mean)
        return 0.5 * (z - self.mean) @ pull + self.constant, pull

    def hessian(self, z):
        return self.precision

    def values(self, z):
        return np.array([self.value_and_gradient(row)[0] for row in z])

    def gradients(self, z):
        return np.array([self.value_and_gradient(row)[1] for row in z])


class FunnelTarget:
    """Neal's funnel: log-scale v ~ N(0, 1.5²), x_i ~ N(0, exp(v)²). The joint mode is a spike."""

    dim = 11

    def value_and_gradient(self, z):
        v, x = z[0], z[1:]
        mass = 0.5 * np.sum(x**2) * np.exp(-2.0 * v)
        gradient = np.concatenate([[v / 2.25 + len(x) - 2.0 * mass], x * np.exp(-2.0 * v)])
        return v**2 / 4.5 + len(x) * v + mass, gradient

    def hessian(self, z):
        v, x = z[0], z[1:]
        scale = np.exp(-2.0 * v)
        result = np.diag(np.concatenate([[1 / 2.25 + 2.0 * np.sum(x**2) * scale], 0 * x + scale]))
        result[0, 1:] = result[1:, 0] = -2.0 * x * scale
        return result

    def values(self, z):
        return np.array([self.value_and_gradient(row)[0] for row in z])

    def gradients(self, z):
        return np.array([self.value_and_gradient(row)[1] for row in z])


def _ill_conditioned(dim=6):
    rng = np.random.default_rng(1)
    units = 10.0 ** np.linspace(-3, 4, dim)
    root = rng.standard_normal((dim, dim)) + 0.1 * np.eye(dim)
    covariance = units[:, None] * (root @ root.T) * units[None, :]
    return NormalTarget(units * rng.standard_normal(dim) * 5.0, covariance), covariance


def test_a_normal_target_is_found_whatever_its_units():
    target, covariance = _ill_conditioned()
    start = find_starts(target, [np.zeros(6)], np.random.default_rng(0))[0]
    sd = np.sqrt(np.diag(covariance))
    np.testing.assert_allclose((start.location - target.mean) / sd, 0.0, atol=1e-4)
    found = start.scale_tril @ start.scale_tril.T / np.outer(sd, sd)
    np.testing.assert_allclose(found, covariance / np.outer(sd, sd), atol=1e-6)


def test_the_elbo_of_the_exact_posterior_is_the_log_evidence():
    target, _ = _ill_conditioned()
    start = find_starts(target, [np.zeros(6)], np.random.default_rng(0), num_draws=4000)[0]
    # Entropy and energy: their difference is −χ²/2 + dim/2, with variance dim/2 a draw.
    assert abs(start.elbo) < 5.0 * np.sqrt(6 / 2 / 4000)


def test_starts_come_best_first():
    target, _ = _ill_conditioned()
    starts = find_starts(
        target, [np.zeros(6), np.ones(6), -np.ones(6)], np.random.default_rng(0), max_iterations=3
    )
    assert [start.elbo for start in starts] == sorted((s.elbo for s in starts), reverse=True)


def test_a_spike_does_not_win():
    target, rng = FunnelTarget(), np.random.default_rng(0)
    point = np.concatenate([[0.5], rng.standard_normal(10)])
    start = find_starts(target, [point], rng)[0]
    mode = np.array([-2.25 * 10] + [0.0] * 10)
    noise = rng.standard_normal((2000, 11))

    def elbo(location):
        root = scale_tril_of(target.hessian(location))
        entropy = np.log(np.diag(root)).sum() + 0.5 * 11 * np.log(2 * np.pi * np.e)
        return entropy - target.values(location + noise @ root.T).mean()

    assert start.elbo > elbo(mode) + 1.0


@pytest.mark.parametrize("scale", [1.0, 1e-8, 1e8])
def test_an_indefinite_hessian_gets_a_factor_with_positive_curvature(scale):
    hessian = scale * np.array([[2.0, 3.0], [3.0, 2.0]])
    root = scale_tril_of(hessian)
    assert np.all(np.diag(root) > 0.0)
    assert root[0, 1] == 0.0
    covariance = root @ root.T
    # |H| has the same eigenvectors, and eigenvalues 5 and 1 instead of 5 and −1.
    values, vectors = linalg.eigh(hessian)
    expected = vectors @ np.diag(1.0 / np.abs(values)) @ vectors.T
    np.testing.assert_allclose(covariance, expected, rtol=1e-10)


def test_a_flat_direction_is_wide_but_finite():
    root = scale_tril_of(np.diag([1.0, 0.0]))
    assert np.all(np.isfinite(root))
    assert root[1, 1] > 1e3 * root[0, 0]


def test_nothing_finite_is_an_error_with_advice():
    class Broken(NormalTarget):
        def value_and_gradient(self, z):
            return np.nan, np.full(self.dim, np.nan)

    broken = Broken(np.zeros(2), np.eye(2))
    with pytest.raises(ValueError, match=r"no starting point has a finite.*Check the model's arg"):
        find_starts(broken, [np.zeros(2), np.ones(2)], np.random.default_rng(0))


class Cut(NormalTarget):
    """Not finite where the first coordinate is above ``limit``."""

    def __init__(self, limit):
        super().__init__(np.zeros(2), np.eye(2))
        self.limit = limit

    def value_and_gradient(self, z):
        value, gradient = super().value_and_gradient(z)
        return (np.inf, gradient) if z[0] > self.limit else (value, gradient)


def test_one_bad_path_does_not_matter():
    points = [np.array([60.0, 0.0]), np.array([-1.0, 1.0])]
    assert len(find_starts(Cut(1e-5), points, np.random.default_rng(0))) == 1


def test_a_point_far_out_is_brought_closer():
    starts = find_starts(Cut(50.0), [np.array([60.0, 0.0])], np.random.default_rng(0))
    np.testing.assert_allclose(starts[0].location, 0.0, atol=1e-3)
