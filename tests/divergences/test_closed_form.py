"""Closed forms between distribution objects of torch, Pyro and NumPyro."""

import jax.numpy as jnp
import numpy as np
import numpyro.distributions as numpyro_dist
import pyro.distributions as pyro_dist
import pytest
import torch
from helpers import to_numpy

from bayesdiv.divergences import (
    FDivergence,
    between_gaussians,
    between_logits,
    closed_form,
    get_divergence,
)

HOSTS = {"torch": torch.distributions, "pyro": pyro_dist, "numpyro": numpyro_dist}
hosts = pytest.mark.parametrize("host", HOSTS)


def array(host, values):
    plain = np.asarray(values, dtype=np.float64)
    return jnp.asarray(plain) if host == "numpyro" else torch.tensor(plain)


P_LOGITS, Q_LOGITS = [[0.1, -0.4, 2.0], [0.0, 0.0, 1.0]], [0.5, 0.0, -1.0]


@hosts
@pytest.mark.parametrize("name", ["jensen_shannon", "forward_kl", "total_variation"])
def test_categoricals_serve_every_divergence(host, name):
    package = HOSTS[host]
    p, q = (package.Categorical(logits=array(host, x)) for x in (P_LOGITS, Q_LOGITS))
    expected = between_logits(name, array(host, P_LOGITS), array(host, Q_LOGITS))
    np.testing.assert_allclose(to_numpy(closed_form(name, p, q)), to_numpy(expected), rtol=1e-12)
    # The other parameterisation.
    r = package.Categorical(probs=array(host, [0.2, 0.3, 0.5]))
    by_logits = package.Categorical(logits=array(host, np.log([0.2, 0.3, 0.5])))
    np.testing.assert_allclose(
        to_numpy(closed_form(name, r, q)), to_numpy(closed_form(name, by_logits, q)), rtol=1e-12
    )


@hosts
def test_bernoulli_is_a_categorical_of_two(host):
    package = HOSTS[host]
    p, q = package.Bernoulli(logits=array(host, [0.4, -2.0])), package.Bernoulli(array(host, 0.3))
    expected = between_logits(
        "squared_hellinger",
        array(host, [[0.0, 0.4], [0.0, -2.0]]),
        array(host, np.log([0.7, 0.3])),
    )
    found = closed_form("squared_hellinger", p, q)
    np.testing.assert_allclose(to_numpy(found), to_numpy(expected), rtol=1e-10)


@hosts
def test_normals_keep_their_batch_shape(host):
    package = HOSTS[host]
    p = package.Normal(array(host, [0.0, 1.0]), array(host, 1.0))
    q = package.Normal(array(host, [[0.5], [1.0], [2.0]]), array(host, 1.3))
    found = closed_form("alpha", p, q)
    assert tuple(found.shape) == (3, 2)
    expected = between_gaussians(
        "alpha",
        array(host, [1.0]),
        array(host, [2.0]),
        p_scale=array(host, [1.0]),
        q_scale=array(host, [1.3]),
    )
    assert float(found[2, 1]) == pytest.approx(float(expected), rel=1e-12)


@hosts
def test_independent_multivariate_and_expanded_gaussians_agree(host):
    package = HOSTS[host]
    zeros, ones = array(host, np.zeros(3)), array(host, np.ones(3))
    mean, scale = array(host, [0.3, -0.2, 0.1]), array(host, [1.1, 1.2, 0.9])
    eye = array(host, np.eye(3))
    p_forms = [
        package.Independent(package.Normal(zeros, ones), 1),
        package.Independent(package.Normal(array(host, 0.0), array(host, 1.0)).expand((3,)), 1),
        package.MultivariateNormal(zeros, scale_tril=eye),
    ]
    q_forms = [
        package.Independent(package.Normal(mean, scale), 1),
        package.MultivariateNormal(mean, scale_tril=scale[:, None] * eye),
    ]
    for name in ("pearson_chi2", "jeffreys"):
        expected = float(between_gaussians(name, zeros, mean, p_scale=ones, q_scale=scale))
        for p in p_forms:
            for q in q_forms:
                assert float(closed_form(name, p, q)) == pytest.approx(expected, rel=1e-10)


@hosts
def test_expanded_gaussians_and_two_reinterpreted_axes(host):
    package = HOSTS[host]
    p = package.Independent(package.Normal(array(host, np.zeros((4, 2, 3))), 1.0), 2)
    q = package.Independent(package.Normal(array(host, 0.1 * np.ones((4, 2, 3))), 1.0), 2)
    found = closed_form("forward_kl", p, q)
    np.testing.assert_allclose(to_numpy(found), np.full(4, 0.5 * 6 * 0.01), rtol=1e-10)
    eye = array(host, np.eye(2))
    wide = package.MultivariateNormal(array(host, np.zeros(2)), scale_tril=eye).expand((5,))
    far = package.MultivariateNormal(array(host, np.ones(2)), scale_tril=eye)
    np.testing.assert_allclose(to_numpy(closed_form("reverse_kl", wide, far)), np.ones(5))
    row = package.Independent(package.Normal(array(host, np.zeros(2)), 1.0), 1).expand((5,))
    np.testing.assert_allclose(to_numpy(closed_form("reverse_kl", row, far)), np.ones(5))


def test_numpyro_distributions_made_from_plain_numbers():
    found = closed_form("jeffreys", numpyro_dist.Normal(0, 1), numpyro_dist.Normal(1, 2))
    assert float(found) == pytest.approx(1.75)
    p = numpyro_dist.Categorical(logits=np.zeros(3)).expand((2,))
    assert tuple(closed_form("alpha", p, p).shape) == (2,)


@hosts
def test_kl_of_other_families_comes_from_the_host(host):
    package = HOSTS[host]
    p = package.Gamma(array(host, 2.0), array(host, 1.0))
    q = package.Gamma(array(host, 3.0), array(host, 1.0))
    # KL between Gammas of one rate: (a − b) ψ(a) − log Γ(a) + log Γ(b).
    digamma_2, digamma_3 = 0.42278433509846713, 0.9227843350984671
    forward = -digamma_2 + np.log(2.0)
    reverse = digamma_3 - np.log(2.0)
    assert float(closed_form("forward_kl", p, q)) == pytest.approx(forward, rel=1e-6)
    assert float(closed_form("reverse_kl", p, q)) == pytest.approx(reverse, rel=1e-6)
    mixed = 2.0 * get_divergence("forward_kl") + get_divergence("jeffreys")
    expected = 3.0 * forward + reverse
    assert float(closed_form(mixed, p, q)) == pytest.approx(expected, rel=1e-6)


@hosts
def test_gradients_reach_the_parameters(host):
    package = HOSTS[host]

    def value(mean):
        p = package.Normal(array(host, 0.0), array(host, 1.0))
        return closed_form("forward_kl", p, package.Normal(mean, array(host, 1.0)))

    if host == "numpyro":
        import jax

        slope = jax.grad(value)(array(host, 0.7))
    else:
        mean = array(host, 0.7).requires_grad_()
        slope = torch.autograd.grad(value(mean), mean)[0]
    assert float(slope) == pytest.approx(0.7, rel=1e-12)


@hosts
def test_unsupported_pairs_say_what_is_supported(host):
    package = HOSTS[host]
    p = package.Gamma(array(host, 2.0), array(host, 1.0))
    normal = package.Normal(array(host, 0.0), array(host, 1.0))
    pattern = r"no closed form between Gamma and Gamma.*Categorical.*objective\(\.\.\.\) estimates"
    with pytest.raises(NotImplementedError, match=pattern):
        closed_form("jensen_shannon", p, p)
    with pytest.raises(NotImplementedError, match="no closed form between Normal and Normal"):
        closed_form("total_variation", normal, normal)
    mine = FDivergence.from_generator(lambda u: u * u - 1.0, name="mine")
    with pytest.raises(NotImplementedError, match="name='mine'"):
        closed_form(mine, normal, normal)
    student = package.StudentT(array(host, 3.0))
    with pytest.raises(NotImplementedError, match="between Gamma and StudentT"):
        closed_form("forward_kl", p, student)


def test_independent_categoricals_use_the_kl_registry_only():
    """A product of categoricals is no categorical: only KL adds up over its axes."""
    p, q = (
        torch.distributions.Independent(torch.distributions.Categorical(logits=x), 1)
        for x in (torch.tensor(P_LOGITS), torch.tensor(Q_LOGITS).expand(2, 3))
    )
    found = closed_form("forward_kl", p, q)
    expected = between_logits("forward_kl", torch.tensor(P_LOGITS), torch.tensor(Q_LOGITS)).sum()
    torch.testing.assert_close(found, expected)
    with pytest.raises(NotImplementedError, match="no closed form between Independent"):
        closed_form("jensen_shannon", p, q)


def test_what_is_no_pair_of_distributions_is_refused():
    gamma = torch.distributions.Gamma(2.0, 1.0)
    with pytest.raises(TypeError, match="p must be a distribution.*between_logits"):
        closed_form("forward_kl", torch.zeros(3), gamma)
    with pytest.raises(TypeError, match="distributions of one host"):
        closed_form("forward_kl", gamma, numpyro_dist.Gamma(2.0, 1.0))
    with pytest.raises(TypeError, match="must be an f-divergence"):
        closed_form("wasserstein", gamma, gamma)


def test_product_of_multivariate_normals_uses_the_kl_registry_only():
    eye = torch.eye(2)
    p, q = (
        torch.distributions.MultivariateNormal(mean * torch.ones(3, 2), eye) for mean in (0.0, 1.0)
    )
    wrapped = [torch.distributions.Independent(x, 1) for x in (p, q)]
    torch.testing.assert_close(closed_form("forward_kl", *wrapped), torch.tensor(3.0))
    with pytest.raises(NotImplementedError, match="no closed form between Independent"):
        closed_form("pearson_chi2", *wrapped)
    # Wrapped around no axis, the pair is the one inside.
    plain = [torch.distributions.Independent(x, 0) for x in (p, q)]
    torch.testing.assert_close(
        closed_form("pearson_chi2", *plain), closed_form("pearson_chi2", p, q)
    )
