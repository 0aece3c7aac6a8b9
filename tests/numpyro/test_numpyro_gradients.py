"""Gradients against enumeration and quadrature: discrete, mixed and reparameterised guides."""

import itertools

import jax
import jax.numpy as jnp
import numpyro
import numpyro.distributions as dist
import pytest
from helpers import assert_within_standard_errors
from jax.scipy.special import logsumexp
from numpyro.distributions import constraints

from bayesdiv.divergences import get_divergence
from bayesdiv.numpyro import objective

OBSERVED = jnp.array(0.9)


def gradients(loss, params, model, guide, num_draws):
    """Independent gradient estimates, one a row."""
    keys = jax.random.split(jax.random.key(5), num_draws)
    one = jax.grad(lambda p, key: loss.loss(key, p, model, guide))
    return jax.jit(jax.vmap(lambda key: one(params, key)))(keys)


def assert_unbiased(draws, exact):
    assert set(draws) == set(exact)
    for name in exact:
        assert_within_standard_errors(draws[name], exact[name])
        assert float(jnp.max(jnp.abs(exact[name]))) > 1e-3


def coin_model():
    z = numpyro.sample("z", dist.Bernoulli(0.3).expand([2]).to_event(1))
    numpyro.sample("x", dist.Normal(z[0] - 0.5 * z[1], 0.8), obs=OBSERVED)


def coin_guide():
    logits = numpyro.param("logits", jnp.zeros(2))
    numpyro.sample("z", dist.Bernoulli(logits=logits).to_event(1))


STATES = jnp.array(list(itertools.product([0, 1], repeat=2)))
COIN_PARAMS = {"logits": jnp.array([0.4, -0.7])}


def coin_logs(params):
    log_p = dist.Bernoulli(0.3).log_prob(STATES).sum(-1) + dist.Normal(
        STATES[:, 0] - 0.5 * STATES[:, 1], 0.8
    ).log_prob(OBSERVED)
    return log_p, dist.Bernoulli(logits=params["logits"]).log_prob(STATES).sum(-1)


COIN_EVIDENCE = float(logsumexp(coin_logs(COIN_PARAMS)[0]))


@pytest.mark.parametrize(
    "name", ["reverse_kl", "forward_kl", "jensen_shannon", "pearson_chi2", "total_variation"]
)
def test_discrete_guide_against_enumeration(name):
    def exact(params):
        log_p, log_q = coin_logs(params)
        f = get_divergence(name).generator(log_p - COIN_EVIDENCE - log_q)
        return jnp.sum(jnp.exp(log_q) * f)

    loss = objective(name, num_particles=4, normalizer=COIN_EVIDENCE)
    draws = gradients(loss, COIN_PARAMS, coin_model, coin_guide, 4000)
    assert_unbiased(draws, jax.grad(exact)(COIN_PARAMS))


@pytest.mark.parametrize("order", [0.0, 0.5])
def test_discrete_guide_of_a_bound_against_enumeration(order):
    def exact(params):
        log_p, log_q = coin_logs(params)
        pairs = jnp.stack(jnp.meshgrid(jnp.arange(4), jnp.arange(4)), -1).reshape(-1, 2)
        log_weight = (log_p - log_q)[pairs]
        power = 1.0 - order
        bound = (logsumexp(power * log_weight, -1) - jnp.log(2.0)) / power
        return -jnp.sum(jnp.exp(log_q[pairs].sum(-1)) * bound)

    loss = objective("renyi", order=order, num_particles=2)
    draws = gradients(loss, COIN_PARAMS, coin_model, coin_guide, 8000)
    assert_unbiased(draws, jax.grad(exact)(COIN_PARAMS))


def test_plates_of_discrete_sites_keep_their_scale_out_of_the_score():
    def model(size):
        with numpyro.plate("data", 10, subsample_size=size):
            z = numpyro.sample("z", dist.Bernoulli(0.3))
            numpyro.sample("x", dist.Normal(1.0 * z, 0.8), obs=OBSERVED)

    def guide(size):
        logit = numpyro.param("logit", 0.4)
        with numpyro.plate("data", 10, subsample_size=size):
            numpyro.sample("z", dist.Bernoulli(logits=logit))

    def exact(params):
        state = jnp.arange(2)
        log_p = dist.Bernoulli(0.3).log_prob(state) + dist.Normal(state, 0.8).log_prob(OBSERVED)
        log_q = dist.Bernoulli(logits=params["logit"]).log_prob(state)
        divergence = get_divergence("jensen_shannon")
        return 10 * jnp.sum(jnp.exp(log_q) * divergence.generator(log_p - logsumexp(log_p) - log_q))

    params = {"logit": jnp.array(0.4)}
    states = jnp.arange(2)
    log_p = dist.Bernoulli(0.3).log_prob(states) + dist.Normal(states, 0.8).log_prob(OBSERVED)
    loss = objective("jensen_shannon", num_particles=4, normalizer=float(logsumexp(log_p)))
    keys = jax.random.split(jax.random.key(5), 2000)
    one = jax.grad(lambda p, key: loss.loss(key, p, model, guide, 5))
    draws = jax.jit(jax.vmap(lambda key: one(params, key)))(keys)
    assert_unbiased(draws, jax.grad(exact)(params))


def mixed_model():
    z = numpyro.sample("z", dist.Bernoulli(0.4))
    w = numpyro.sample("w", dist.Normal(1.0 * z, 1.0))
    numpyro.sample("x", dist.Normal(w, 0.7), obs=OBSERVED)


def discrete_first():
    z = numpyro.sample("z", dist.Bernoulli(logits=numpyro.param("logit", 0.2)))
    loc = numpyro.param("loc", 0.1) + numpyro.param("shift", 0.6) * z
    scale = numpyro.param("scale", 0.9, constraint=constraints.positive)
    numpyro.sample("w", dist.Normal(loc, scale))


def continuous_first():
    scale = numpyro.param("scale", 0.9, constraint=constraints.positive)
    w = numpyro.sample("w", dist.Normal(numpyro.param("loc", 0.1), scale))
    logit = numpyro.param("logit", 0.2) + numpyro.param("shift", 0.6) * w
    numpyro.sample("z", dist.Bernoulli(logits=logit))


MIXED_PARAMS = {
    "logit": jnp.array(0.2),
    "loc": jnp.array(0.1),
    "shift": jnp.array(0.6),
    "scale": jnp.array(0.9),
}
GRID = jnp.linspace(-9.0, 9.0, 4001)
STEP = float(GRID[1] - GRID[0])


def mixed_logs(params, guide):
    """log p and log q on {0, 1} × grid."""
    z, w = jnp.arange(2)[:, None], GRID[None]
    log_p = dist.Bernoulli(0.4).log_prob(z) + dist.Normal(z, 1.0).log_prob(w)
    log_p = log_p + dist.Normal(w, 0.7).log_prob(OBSERVED)
    if guide is discrete_first:
        loc, logit = params["loc"] + params["shift"] * z, params["logit"]
    else:
        loc, logit = params["loc"], params["logit"] + params["shift"] * w
    log_q = dist.Normal(loc, params["scale"]).log_prob(w)
    return log_p, log_q + dist.Bernoulli(logits=logit).log_prob(z)


MIXED_EVIDENCE = float(logsumexp(mixed_logs(MIXED_PARAMS, discrete_first)[0])) + float(
    jnp.log(STEP)
)


@pytest.mark.parametrize("guide", [discrete_first, continuous_first])
@pytest.mark.parametrize("name", ["reverse_kl", "jensen_shannon", "total_variation"])
def test_mixed_guide_against_quadrature(name, guide):
    def exact(params):
        log_p, log_q = mixed_logs(params, guide)
        f = get_divergence(name).generator(log_p - MIXED_EVIDENCE - log_q)
        return STEP * jnp.sum(jnp.exp(log_q) * f)

    loss = objective(name, num_particles=4, normalizer=MIXED_EVIDENCE)
    draws = gradients(loss, MIXED_PARAMS, mixed_model, guide, 8000)
    assert_unbiased(draws, jax.grad(exact)(MIXED_PARAMS))


def smooth_model():
    w = numpyro.sample("w", dist.Gamma(2.0, 1.0))
    v = numpyro.sample("v", dist.Normal(0.0, 1.0))
    numpyro.sample("x", dist.Normal(w + v, 0.7), obs=OBSERVED)


def smooth_guide():
    """A constrained site and one that depends on it."""
    w = numpyro.sample("w", dist.LogNormal(numpyro.param("loc", 0.1), 0.5))
    numpyro.sample("v", dist.Normal(numpyro.param("slope", -0.4) * w, 0.8))


@pytest.mark.parametrize("gradient", ["path", "reparam", "score"])
def test_every_estimator_of_a_dependent_guide_against_quadrature(gradient):
    w = jnp.exp(jnp.linspace(-4.0, 3.0, 401))[:, None]
    v = jnp.linspace(-6.0, 6.0, 401)[None]
    area = w * (7.0 / 400) * (12.0 / 400)
    log_p = dist.Gamma(2.0, 1.0).log_prob(w) + dist.Normal(0.0, 1.0).log_prob(v)
    log_p = log_p + dist.Normal(w + v, 0.7).log_prob(OBSERVED)
    evidence = float(logsumexp(log_p + jnp.log(area)))

    def exact(params):
        log_q = dist.LogNormal(params["loc"], 0.5).log_prob(w)
        log_q = log_q + dist.Normal(params["slope"] * w, 0.8).log_prob(v)
        f = get_divergence("jensen_shannon").generator(log_p - evidence - log_q)
        return jnp.sum(area * jnp.exp(log_q) * f)

    params = {"loc": jnp.array(0.1), "slope": jnp.array(-0.4)}
    loss = objective("jensen_shannon", gradient=gradient, num_particles=4, normalizer=evidence)
    draws = gradients(loss, params, smooth_model, smooth_guide, 8000)
    assert_unbiased(draws, jax.grad(exact)(params))


def test_path_gradient_vanishes_at_the_posterior_and_others_do_not():
    def model():
        z = numpyro.sample("z", dist.Normal(0.0, 1.0))
        numpyro.sample("x", dist.Normal(z, 1.0), obs=1.0)

    def guide():
        scale = numpyro.param("scale", 0.5, constraint=constraints.positive)
        numpyro.sample("z", dist.Normal(numpyro.param("loc", 0.0), scale))

    params = {"loc": jnp.array(0.5), "scale": jnp.array(0.5) ** 0.5}
    spread = {}
    for gradient in ("path", "reparam"):
        loss = objective("forward_kl", gradient=gradient, num_particles=4)
        draws = gradients(loss, params, model, guide, 50)
        spread[gradient] = max(float(jnp.std(value)) for value in draws.values())
    assert spread["path"] < 1e-12
    assert spread["reparam"] > 1e-3
