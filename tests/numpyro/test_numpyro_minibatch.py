"""Minibatches of NumPyro models: exact frequencies, unbiased potentials and gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from helpers import assert_within_standard_errors
from minibatch_models import X, Y, crossed, potential_of, regression
from numpyro.infer.util import initialize_model

from bayesdiv.numpyro._minibatch import draw_indices


def host_potential(model, *args):
    info = initialize_model(jax.random.key(1), model, model_args=args, dynamic_args=False)
    return info.potential_fn, info.param_info.z


@pytest.mark.parametrize(("size", "count"), [(7, 3), (6, 6), (12, 5), (10, 1), (5, 4)])
def test_every_index_is_drawn_equally_often(size, count, monkeypatch):
    drawn = []
    for value in range(size):
        # Every value that the uniform draw can take, once.
        monkeypatch.setattr(jax.random, "randint", lambda *_, v=value, **__: jnp.full(count, v))
        drawn.append(np.asarray(draw_indices(jax.random.key(0), size, count)))
    np.testing.assert_array_equal(np.bincount(np.concatenate(drawn), minlength=size), count)


@pytest.mark.parametrize(("count", "stretch"), [(1, 50), (60, 1), (13, 7)])
def test_indices_of_equal_stretches_are_distinct_and_ordered(count, stretch):
    keys = jax.random.split(jax.random.key(0), 50)
    found = np.asarray(jax.vmap(lambda key: draw_indices(key, count * stretch, count))(keys))
    np.testing.assert_array_equal(found // stretch, np.broadcast_to(np.arange(count), found.shape))


def test_large_indices_are_exact():
    size, count = 2**31 - 5, 1000
    found = np.asarray(draw_indices(jax.random.key(0), size, count)).astype(np.int64)
    assert found.dtype == np.int64
    np.testing.assert_array_equal(found * count // size, np.arange(count))
    assert len(set(found % 2)) == 2


def test_sums_over_a_draw_vary_less_than_over_a_simple_random_sample():
    values, count = jnp.sort(jnp.asarray(np.random.default_rng(0).normal(size=100))), 20
    keys = jax.random.split(jax.random.key(0), 4000)
    sums = jax.vmap(lambda key: values[draw_indices(key, 100, count)].sum())(keys)
    simple = count * float(values.var(ddof=1)) * (1.0 - count / 100)
    assert_within_standard_errors(sums, values.mean() * count)
    assert float(sums.var()) < 0.2 * simple


@pytest.mark.parametrize(
    ("model", "args"), [(regression, (X, Y)), (crossed, (np.outer(X, Y),))], ids=["one", "crossed"]
)
def test_the_potential_on_the_full_data_is_the_hosts(model, args):
    args = tuple(map(jnp.asarray, args))
    reference, z = host_potential(model, *args)
    ours = potential_of(model, *args)

    def value(z):
        return ours(z, jax.random.key(5), args, {})

    found, slopes = jax.jit(jax.value_and_grad(value))(z)
    expected, expected_slopes = jax.jit(jax.value_and_grad(reference))(z)
    np.testing.assert_allclose(found, expected, rtol=1e-12)
    for name in z:
        np.testing.assert_allclose(slopes[name], expected_slopes[name], rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(
    ("model", "args", "batch"),
    [(regression, (X, Y), 5), (crossed, (np.outer(X, Y),), (4, 5))],
    ids=["one", "crossed"],
)
def test_minibatch_gradients_are_unbiased(model, args, batch):
    args = tuple(map(jnp.asarray, args))
    reference, z = host_potential(model, *args)
    ours = potential_of(model, *args, batch)
    keys = jax.random.split(jax.random.key(0), 3000)

    @jax.jit
    def gradients(keys):
        return jax.vmap(jax.grad(lambda z, key: ours(z, key, (*args, batch), {})), (None, 0))(
            z, keys
        )

    expected, found = jax.jit(jax.grad(reference))(z), gradients(keys)
    for name, draws in found.items():
        assert_within_standard_errors(draws, expected[name])
    likelihood_site = next(iter(set(z) & {"weight", "level"}))
    assert len(np.unique(np.round(found[likelihood_site].reshape(len(keys), -1)[:, 0], 9))) > 100


def test_parameters_and_keys_of_a_model_are_its_own():
    """Random initial values of parameters stay; ``prng_key`` differs from call to call."""

    def model():
        start = numpyro.param("start", lambda key: jax.random.normal(key))
        x = numpyro.sample("x", dist.Normal(start, 1.0))
        noise = jax.random.normal(numpyro.prng_key())
        numpyro.factor("noise", noise)
        numpyro.deterministic("twice", 2.0 * x)

    potential = potential_of(model)
    fixed = float(potential.fixed["start"])
    keys = jax.random.split(jax.random.key(0), 2000)
    z = {"x": jnp.array(0.3)}
    found = jax.vmap(lambda key: potential(z, key, (), {}))(keys)
    assert len(np.unique(found)) == len(keys)
    assert_within_standard_errors(found, -dist.Normal(fixed, 1.0).log_prob(0.3))
    assert potential.constrain(z, (), {}).keys() == {"x", "twice"}
