"""Equalities between objectives that hold for every draw, not only on average."""

import numpy as np
import pytest
import torch
from helpers import gradient_of, make_array, to_numpy
from torch.distributions import Normal

from bayesdiv._array import array_namespace
from bayesdiv.divergences import Alpha, FDivergence, list_divergences
from bayesdiv.objectives import RenyiBound, TailAdaptive, estimate, get_objective

F_DIVERGENCES = [name for name in list_divergences("f") if name != "total_variation"]
OBJECTIVES = [*F_DIVERGENCES, "renyi", "iwae", "tail_adaptive"]
ALL_GRADIENTS = [*F_DIVERGENCES, "renyi", "iwae"]
LOG_WEIGHT = np.random.default_rng(3).normal(0.4, 1.3, size=(7, 3))


def surrogate_gradient(backend, rule, log_weight=LOG_WEIGHT, **options):
    """∂surrogate/∂log_weight: the coefficient of each particle."""
    return gradient_of(backend, lambda x: estimate(rule, x, **options).surrogate, log_weight)[0]


def value(backend, rule, log_weight=LOG_WEIGHT, **options):
    return float(to_numpy(estimate(rule, make_array(backend, log_weight), **options).value))


@pytest.mark.parametrize("gradient", ["path", "reparam"])
@pytest.mark.parametrize("name", F_DIVERGENCES)
def test_one_particle_gives_the_gradient_of_the_elbo(name, gradient):
    """Self-normalised, u = 1: the gradient is f''(1) times reverse KL's by the same estimator."""
    theta = torch.tensor([0.3, -0.2], dtype=torch.float64, requires_grad=True)

    def gradient_in_theta(rule):
        z = theta[0] + theta[1].exp() * torch.tensor([[0.7, -1.1]], dtype=torch.float64)
        inside = theta.detach() if gradient == "path" else theta
        log_p = Normal(1.0, 1.5).log_prob(z) - 0.1 * z**4
        log_weight = log_p - Normal(inside[0], inside[1].exp()).log_prob(z)
        return torch.autograd.grad(estimate(rule, log_weight, gradient=gradient).loss, theta)[0]

    rule = get_objective(name)
    torch.testing.assert_close(
        gradient_in_theta(rule),
        rule.second_derivative_at_one * gradient_in_theta(get_objective("reverse_kl")),
        rtol=1e-12,
        atol=1e-13,
    )


@pytest.mark.parametrize("gradient", ["path", "reparam"])
@pytest.mark.parametrize("name", ["renyi", "iwae"])
def test_one_particle_makes_a_bound_the_elbo(backend, name, gradient):
    single = LOG_WEIGHT[:1]
    assert value(backend, get_objective(name), single) == pytest.approx(-single.sum(), rel=1e-14)
    np.testing.assert_allclose(
        surrogate_gradient(backend, name, single, gradient=gradient),
        surrogate_gradient(backend, "reverse_kl", single, gradient=gradient),
        rtol=1e-14,
    )


def test_reverse_kl_is_minus_the_elbo(backend):
    assert value(backend, "reverse_kl") == pytest.approx(-LOG_WEIGHT.mean(0).sum(), rel=1e-14)
    for gradient in ("path", "reparam"):
        np.testing.assert_allclose(
            surrogate_gradient(backend, "reverse_kl", gradient=gradient), -1.0 / 7.0, rtol=1e-14
        )


@pytest.mark.parametrize("gradient", ["path", "reparam"])
def test_renyi_tends_to_the_elbo_as_its_order_tends_to_one(backend, gradient):
    """The gap is linear in the distance of the order from 1."""

    def gaps(distance):
        rule = RenyiBound(order=1.0 - distance)
        return (
            value(backend, rule) - value(backend, "reverse_kl"),
            surrogate_gradient(backend, rule, gradient=gradient)
            - surrogate_gradient(backend, "reverse_kl", gradient=gradient),
        )

    for far, near in zip(gaps(2e-4), gaps(1e-4), strict=True):
        assert np.all(np.abs(near) < 1e-3)
        np.testing.assert_allclose(far, 2.0 * np.asarray(near), rtol=2e-3)


def test_iwae_is_renyi_of_order_zero_and_the_log_mean_weight(backend):
    assert get_objective("iwae") == RenyiBound(order=0.0)
    brute = -np.log(np.exp(LOG_WEIGHT).mean(0)).sum()
    assert value(backend, "iwae") == pytest.approx(brute, rel=1e-13)


def test_path_gradient_of_iwae_is_the_doubly_reparameterized_one(backend):
    """Squared normalised weights (Tucker et al. 2019, eq. 8)."""
    share = np.exp(LOG_WEIGHT) / np.exp(LOG_WEIGHT).sum(0)
    np.testing.assert_allclose(
        surrogate_gradient(backend, "iwae", gradient="path"), -(share**2), rtol=1e-12
    )


@pytest.mark.parametrize("order", [-0.5, 0.0, 0.5, 1.5, 2.0])
def test_reparam_gradient_of_a_bound_is_its_derivative(backend, order):
    def bound(x):
        xp = array_namespace(x)
        return -xp.sum(xp.log(xp.mean(xp.exp((1.0 - order) * x), axis=0)) / (1.0 - order))

    np.testing.assert_allclose(
        surrogate_gradient(backend, RenyiBound(order=order), gradient="reparam"),
        gradient_of(backend, bound, LOG_WEIGHT)[0],
        rtol=1e-11,
    )


@pytest.mark.parametrize("name", [n for n in list_divergences("f") if n != "reverse_kl"])
def test_reparam_gradient_of_a_divergence_is_its_derivative_up_to_a_control_variate(backend, name):
    rule = get_objective(name)
    shift = rule.second_derivative_at_one if rule.has_path_gradient else 0.0

    def mean_of_f(x):
        xp = array_namespace(x)
        # E_q[u − 1] = 0 whatever the guide.
        return xp.sum(xp.mean(rule.generator(x) - shift * xp.expm1(x), axis=0))

    np.testing.assert_allclose(
        surrogate_gradient(backend, rule, gradient="reparam", log_normalizer=0.0),
        gradient_of(backend, mean_of_f, LOG_WEIGHT)[0],
        rtol=1e-10,
        atol=1e-13,
    )


@pytest.mark.parametrize("name", OBJECTIVES)
def test_a_guide_that_equals_the_target_gets_exactly_no_path_gradient(name):
    theta = torch.tensor([0.4, -0.3], dtype=torch.float64, requires_grad=True)
    z = theta[0] + theta[1].exp() * torch.randn(
        9, dtype=torch.float64, generator=torch.Generator().manual_seed(0)
    )
    target = Normal(theta[0].detach(), theta[1].detach().exp()).log_prob(z) + 2.5
    fixed = Normal(theta[0].detach(), theta[1].detach().exp())
    result = estimate(name, target - fixed.log_prob(z), gradient="path")
    gradient = torch.autograd.grad(result.loss, theta)[0]
    assert gradient.abs().max() < 1e-12


@pytest.mark.parametrize("gradient", ["path", "reparam", "score"])
def test_jensen_shannon_and_the_softened_kl_share_out_reverse_kl(backend, gradient):
    """σ(l) + σ(−l) = 1, and the generators differ from −l by multiples of u − 1."""
    parts = 2.0 * get_objective("jensen_shannon") + get_objective("softened_reverse_kl")
    extra = {"log_q": make_array(backend, np.zeros_like(LOG_WEIGHT))} if gradient == "score" else {}
    np.testing.assert_allclose(
        surrogate_gradient(backend, parts, gradient=gradient, log_normalizer=0.0, **extra),
        surrogate_gradient(backend, "reverse_kl", gradient=gradient, **extra),
        rtol=1e-11,
    )


@pytest.mark.parametrize("gradient", ["path", "reparam", "score"])
def test_scaled_reverse_kl_scales_value_and_gradient(backend, gradient):
    rule = 0.25 * get_objective("reverse_kl") + 0.5 * get_objective("reverse_kl")
    log_q = np.random.default_rng(4).normal(size=LOG_WEIGHT.shape)

    def parts(rule):
        def surrogate(log_weight, log_q):
            extra = {"log_q": log_q} if gradient == "score" else {}
            return (
                estimate(rule, log_weight, gradient=gradient, **extra).surrogate + 0.0 * log_q[0, 0]
            )

        return [value(backend, rule), *gradient_of(backend, surrogate, LOG_WEIGHT, log_q)]

    for found, whole in zip(parts(rule), parts(get_objective("reverse_kl")), strict=True):
        np.testing.assert_allclose(found, 0.75 * np.asarray(whole), rtol=1e-13, atol=1e-15)


def test_alpha_of_one_half_is_twice_the_squared_hellinger(backend):
    for gradient in ("path", "reparam"):
        np.testing.assert_allclose(
            surrogate_gradient(backend, Alpha(0.5), gradient=gradient),
            2.0 * surrogate_gradient(backend, "squared_hellinger", gradient=gradient),
            rtol=1e-12,
        )
    assert value(backend, Alpha(0.5)) == pytest.approx(2.0 * value(backend, "squared_hellinger"))


def test_a_divergence_from_its_generator_gives_the_same_estimate(backend):
    mine = FDivergence.from_generator(lambda u: (u - 1.0) ** 2)
    assert value(backend, mine) == pytest.approx(value(backend, "pearson_chi2"), rel=1e-12)
    for gradient in ("path", "reparam"):
        np.testing.assert_allclose(
            surrogate_gradient(backend, mine, gradient=gradient),
            surrogate_gradient(backend, "pearson_chi2", gradient=gradient),
            rtol=1e-5 if gradient == "reparam" else 1e-11,
        )


@pytest.mark.parametrize("name", [*OBJECTIVES, "total_variation"])
def test_rescaling_the_target_changes_no_gradient(backend, name):
    """A constant in log p̃ is absorbed by the normaliser; bounds move by it."""
    gradient = "reparam" if name == "total_variation" else "path"
    np.testing.assert_allclose(
        surrogate_gradient(backend, name, LOG_WEIGHT + 3.0, gradient=gradient),
        surrogate_gradient(backend, name, gradient=gradient),
        rtol=1e-10,
        atol=1e-13,
    )
    moved = value(backend, name, LOG_WEIGHT + 3.0, gradient=gradient)
    still = value(backend, name, gradient=gradient)
    is_bound = name in ("reverse_kl", "renyi", "iwae", "tail_adaptive")
    assert moved == pytest.approx(still - 9.0 if is_bound else still, rel=1e-10)


@pytest.mark.parametrize(
    ("name", "gradient"),
    [
        *((name, gradient) for name in ALL_GRADIENTS for gradient in ("path", "reparam", "score")),
        ("total_variation", "reparam"),
        ("total_variation", "score"),
        ("tail_adaptive", "path"),
    ],
)
def test_particles_are_exchangeable(backend, name, gradient):
    order = np.random.default_rng(5).permutation(7)
    log_q = np.zeros_like(LOG_WEIGHT)

    def coefficients(log_weight):
        def surrogate(x, y):
            extra = {"log_q": y} if gradient == "score" else {}
            return estimate(name, x, gradient=gradient, **extra).surrogate + 0.0 * y[0, 0]

        return gradient_of(backend, surrogate, log_weight, log_q)

    for shuffled, plain in zip(
        coefficients(LOG_WEIGHT[order]), coefficients(LOG_WEIGHT), strict=True
    ):
        np.testing.assert_allclose(shuffled, plain[order], rtol=1e-10, atol=1e-13)


class TestTailAdaptive:
    """The share of particles at least as large, against its definition."""

    TIED = np.array([[1.0, 1.0, 3.0, 0.0, 3.0, -2.0, 3.0], [5.0, 5.0, 5.0, 5.0, 5.0, 5.0, 5.0]]).T

    @staticmethod
    def brute(log_weight, exponent):
        result = np.empty_like(log_weight)
        for column in range(log_weight.shape[1]):
            w = log_weight[:, column]
            share = np.array([np.mean(w >= one) for one in w])
            result[:, column] = share**exponent / np.sum(share**exponent)
        return result

    @pytest.mark.parametrize("exponent", [-1.0, -0.3])
    @pytest.mark.parametrize("log_weight", [LOG_WEIGHT, TIED], ids=["distinct", "tied"])
    def test_weights_follow_the_ranks(self, backend, log_weight, exponent):
        found = -surrogate_gradient(backend, TailAdaptive(exponent), log_weight)
        np.testing.assert_allclose(found, self.brute(log_weight, exponent), rtol=1e-13)

    def test_every_order_of_the_particles_gives_each_its_own_rank(self, backend):
        """One argsort in place of two agrees on some orders only (Pyro issue 3170)."""
        column = np.array([0.3, -1.0, 2.0, 0.9])
        orders = np.stack([np.roll(column, k) for k in range(4)] + [column[[1, 3, 0, 2]]], axis=1)
        found = -surrogate_gradient(backend, "tail_adaptive", orders)
        share = {2.0: 1.0, 0.9: 1.0 / 2.0, 0.3: 1.0 / 3.0, -1.0: 1.0 / 4.0}
        total = sum(share.values())
        for row, column in np.ndindex(*orders.shape):
            assert found[row, column] == pytest.approx(share[orders[row, column]] / total)

    def test_a_larger_weight_never_counts_less(self, backend):
        found = -surrogate_gradient(backend, "tail_adaptive")
        for column in range(LOG_WEIGHT.shape[1]):
            assert np.all(np.diff(found[np.argsort(LOG_WEIGHT[:, column]), column]) > 0.0)

    def test_value_is_minus_the_elbo(self, backend):
        assert value(backend, "tail_adaptive") == pytest.approx(-LOG_WEIGHT.mean(0).sum())
