"""Fits of conjugate models reach the analytic posterior, whatever the objective."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import optax
import pytest
from numpyro.distributions import constraints
from numpyro.infer import SVI
from numpyro.infer.autoguide import AutoMultivariateNormal

from bayesdiv.numpyro import objective
from bayesdiv.objectives import list_objectives

DATA = jnp.array([0.9, 1.4, 0.2, 1.1])
LOG_WEIGHT_OBJECTIVES = list_objectives()[: list_objectives().index("tail_adaptive") + 1]


def normal_model():
    z = numpyro.sample("z", dist.Normal(0.0, 2.0))
    with numpyro.plate("data", 4):
        numpyro.sample("x", dist.Normal(z, 0.8), obs=DATA)


def normal_guide():
    scale = numpyro.param("scale", 0.5, constraint=constraints.positive)
    numpyro.sample("z", dist.Normal(numpyro.param("loc", 0.6), scale))


def fits(loss, model, guide, num_steps, *args, num_seeds=4):
    """Fitted parameters of independent fits, one a row; the step size falls to a hundredth."""
    rate = optax.exponential_decay(0.1, num_steps, 0.01)
    svi = SVI(model, guide, optax.adam(rate), loss)
    state = svi.init(jax.random.key(0), *args)

    def run(key):
        first = state._replace(rng_key=key)
        last, _ = jax.lax.scan(lambda s, _: svi.update(s, *args), first, None, length=num_steps)
        return svi.get_params(last)

    return jax.jit(jax.vmap(run))(jax.random.split(jax.random.key(3), num_seeds))


def assert_near(rows, exact, unit):
    """Within five standard errors of independent fits, or a hundredth of a posterior sd."""
    rows, exact = np.asarray(rows), np.asarray(exact)
    error = np.abs(rows.mean(0) - exact) / unit
    noise = rows.std(0, ddof=1) / np.sqrt(len(rows)) / unit
    assert np.all(noise < 0.05)
    assert np.all(error < 5.0 * noise + 0.01), (error, noise)


@pytest.mark.parametrize("name", LOG_WEIGHT_OBJECTIVES)
def test_normal_mean(name):
    precision = 1 / 4 + 4 / 0.64
    exact_scale = precision**-0.5
    rows = fits(objective(name, num_particles=16), normal_model, normal_guide, 400)
    assert_near(rows["loc"], DATA.sum() / 0.64 / precision, exact_scale)
    if name == "total_variation":
        # sign(l) has no slope at the optimum, so that the scale is found coarsely.
        np.testing.assert_allclose(rows["scale"], exact_scale, rtol=0.2)
    else:
        assert_near(rows["scale"], exact_scale, exact_scale)


@pytest.mark.parametrize("name", ["reverse_kl", "forward_kl", "jensen_shannon"])
def test_gamma_rate_of_counts(name):
    counts = jnp.array([3.0, 5.0, 2.0, 4.0, 6.0])

    def model():
        rate = numpyro.sample("rate", dist.Gamma(2.0, 1.0))
        with numpyro.plate("data", 5):
            numpyro.sample("x", dist.Poisson(rate), obs=counts)

    def guide():
        shape = numpyro.param("shape", 16.0, constraint=constraints.positive)
        numpyro.sample(
            "rate", dist.Gamma(shape, numpyro.param("b", 5.0, constraint=constraints.positive))
        )

    rows = fits(objective(name, num_particles=16, gradient="path"), model, guide, 600)
    mean, deviation = 22.0 / 6.0, 22.0**0.5 / 6.0
    assert_near(rows["shape"] / rows["b"], mean, deviation)
    assert_near(rows["shape"] ** 0.5 / rows["b"], deviation, deviation)


@pytest.mark.parametrize("name", ["reverse_kl", "squared_hellinger"])
def test_linear_regression_with_full_rank_guide(name):
    design = jax.random.normal(jax.random.key(2), (12, 2)) @ jnp.array([[1.0, 0.6], [0.0, 0.8]])
    response = design @ jnp.array([0.7, -0.4]) + 0.5 * jax.random.normal(jax.random.key(4), (12,))

    def model():
        weight = numpyro.sample("weight", dist.Normal(jnp.zeros(2), 1.0).to_event(1))
        with numpyro.plate("data", 12):
            numpyro.sample("y", dist.Normal(design @ weight, 0.5), obs=response)

    covariance = jnp.linalg.inv(jnp.eye(2) + design.T @ design / 0.25)
    deviation = jnp.sqrt(jnp.diag(covariance))
    guide = AutoMultivariateNormal(model, init_scale=0.2)
    loss = objective(name, num_particles=8, gradient="path")
    rows = fits(loss, model, guide, 500)
    assert_near(rows["auto_loc"], covariance @ design.T @ response / 0.25, deviation)
    found = rows["auto_scale_tril"] @ jnp.swapaxes(rows["auto_scale_tril"], -1, -2)
    assert_near(found, covariance, jnp.outer(deviation, deviation))


def test_warm_start_reaches_what_a_cold_start_does_not():
    def far_guide():
        scale = numpyro.param("scale", 0.5, constraint=constraints.positive)
        numpyro.sample("z", dist.Normal(numpyro.param("loc", -4.0), scale))

    precision = 1 / 4 + 4 / 0.64
    exact = float(DATA.sum() / 0.64 / precision)
    error = {}
    for warmup in (0, 250):
        loss = objective("pearson_chi2", warmup=warmup)
        rows = fits(loss, normal_model, loss.stateful(far_guide), 500)
        error[warmup] = float(jnp.max(jnp.abs(rows["loc"] - exact))) * precision**0.5
    assert error[250] < 0.1
    assert error[0] > 1.0


def test_log_evidence_and_diagnostics_at_the_posterior():
    precision = 1 / 4 + 4 / 0.64
    params = {"loc": DATA.sum() / 0.64 / precision, "scale": precision**-0.5}
    covariance = 4.0 * jnp.ones((4, 4)) + 0.64 * jnp.eye(4)
    evidence = dist.MultivariateNormal(jnp.zeros(4), covariance).log_prob(DATA)
    loss = objective("forward_kl")

    @partial(jax.jit, static_argnames="num_particles")
    def estimate(params, num_particles):
        return loss.estimate(
            jax.random.key(0), params, normal_model, normal_guide, num_particles=num_particles
        )

    found = estimate(params, num_particles=64)
    assert found.log_weight.shape == (64,)
    np.testing.assert_allclose(found.log_evidence, evidence, rtol=1e-12)
    np.testing.assert_allclose(found.ess, 64.0, rtol=1e-10)
    wide = {**params, "scale": params["scale"] * 0.15}
    narrow = estimate(wide, num_particles=500)
    assert narrow.pareto_k > 0.7
