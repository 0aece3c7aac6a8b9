"""The same draws give NumPyro's own losses and gradients; exact identities of the family."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from numpyro import handlers
from numpyro.distributions import constraints
from numpyro.infer import SVI, RenyiELBO, Trace_ELBO
from numpyro.infer.autoguide import AutoIAFNormal, AutoMultivariateNormal, AutoNormal

from bayesdiv.divergences import get_divergence, list_divergences
from bayesdiv.numpyro import objective

KEY = jax.random.key(11)
DATA = jnp.array([0.3, -1.2, 0.8, 2.1, 0.4, -0.7])


def regression(data):
    """Constrained and unconstrained latents, a parameter of the model's own, a mask and a scale."""
    offset = numpyro.param("offset", 0.2)
    weight = numpyro.sample("weight", dist.Normal(jnp.zeros(2), 1.0).to_event(1))
    noise = numpyro.sample("noise", dist.HalfNormal(1.0))
    with numpyro.plate("data", 6), handlers.scale(scale=0.7), handlers.mask(mask=data < 2.0):
        numpyro.sample("x", dist.Normal(offset + weight[0] + data * weight[1], noise), obs=data)


def local(data, subsample_size=None):
    """Every site inside the data plate, as Rényi bounds want it."""
    with numpyro.plate("data", 6, subsample_size=subsample_size) as index:
        z = numpyro.sample("z", dist.Normal(0.0, 1.0))
        numpyro.sample("x", dist.Normal(z, 0.5), obs=data[index])


def local_guide(data, subsample_size=None):
    loc = numpyro.param("loc", 0.3)
    scale = numpyro.param("scale", 0.8, constraint=constraints.positive)
    with numpyro.plate("data", 6, subsample_size=subsample_size) as index:
        numpyro.sample("z", dist.Normal(loc * data[index], scale))


LOCAL_PARAMS = {"loc": jnp.array(0.3), "scale": jnp.array(0.8)}


def value_and_gradient(loss, model, guide, *args, key=KEY, params=None):
    if guide in (local_guide, exchangeable_guide):
        params = params or LOCAL_PARAMS
    if params is None:
        svi = SVI(model, guide, numpyro.optim.Adam(0.1), loss)
        params = svi.get_params(svi.init(jax.random.key(1), *args))
    return jax.jit(jax.value_and_grad(lambda p: loss.loss(key, p, model, guide, *args)))(params)


def assert_same(found, expected, rtol=1e-10):
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, rtol=rtol, atol=rtol)


@pytest.mark.parametrize("num_particles", [1, 5])
@pytest.mark.parametrize("autoguide", [AutoNormal, AutoMultivariateNormal])
def test_reverse_kl_is_trace_elbo(autoguide, num_particles):
    guide = autoguide(regression)
    host = Trace_ELBO(num_particles=num_particles)
    expected = value_and_gradient(host, regression, guide, DATA)
    assert set(expected[1]) >= {"offset"}
    ours = objective("reverse_kl", num_particles=num_particles)
    assert_same(value_and_gradient(ours, regression, guide, DATA), expected)


def test_reverse_kl_is_trace_elbo_in_float32():
    data = DATA.astype(jnp.float32)
    params = {
        "loc": jnp.float32(0.3),
        "scale": jnp.float32(0.8),
    }
    ours, host = (
        value_and_gradient(loss, local, local_guide, data, params=params)
        for loss in (objective("reverse_kl", gradient="reparam", num_particles=3), Trace_ELBO(3))
    )
    assert_same(ours, host, rtol=1e-5)


@pytest.mark.parametrize("vectorize_particles", [False, jax.vmap], ids=["loop", "callable"])
def test_how_particles_are_mapped_does_not_matter(vectorize_particles):
    if callable(vectorize_particles):
        mapped = objective(
            "alpha", order=0.4, vectorize_particles=lambda f, keys: jax.vmap(f)(keys)
        )
    else:
        mapped = objective("alpha", order=0.4, vectorize_particles=False)
    expected = value_and_gradient(objective("alpha", order=0.4), local, local_guide, DATA)
    assert_same(value_and_gradient(mapped, local, local_guide, DATA), expected)


def test_reverse_kl_is_trace_elbo_under_subsampling():
    for count in (1, 3):
        ours, host = (
            value_and_gradient(loss, local, local_guide, DATA, 2)
            for loss in (objective("reverse_kl", num_particles=count), Trace_ELBO(count))
        )
        assert_same(ours, host)


def test_flow_reparameterised_is_trace_elbo():
    guide = AutoIAFNormal(regression, num_flows=1, hidden_dims=[4])
    svi = SVI(regression, guide, numpyro.optim.Adam(0.1), Trace_ELBO())
    svi.init(jax.random.key(0), DATA)
    params = svi.get_params(svi.init(jax.random.key(1), DATA))
    ours, host = (
        value_and_gradient(loss, regression, guide, DATA, params=params)
        for loss in (objective("reverse_kl"), Trace_ELBO())
    )
    assert_same(ours, host, rtol=1e-8)


@pytest.mark.parametrize(("order", "subsample_size"), [(-0.5, None), (0.0, 2), (0.6, 2), (2.0, 2)])
def test_renyi_is_renyi_elbo(order, subsample_size):
    ours = objective("renyi", order=order, num_particles=4, gradient="reparam")
    host = RenyiELBO(order, num_particles=4)
    found, expected = (
        value_and_gradient(loss, local, local_guide, DATA, subsample_size) for loss in (ours, host)
    )
    assert_same(found, expected)


def test_renyi_is_renyi_elbo_with_global_latents():
    guide = AutoNormal(regression)
    ours = objective("renyi", order=0.3, num_particles=4, gradient="reparam")
    assert_same(
        value_and_gradient(ours, regression, guide, DATA),
        value_and_gradient(RenyiELBO(0.3, num_particles=4), regression, guide, DATA),
    )


def test_iwae_is_renyi_of_order_zero():
    names = [("iwae", {}), ("renyi", {"order": 0.0})]
    iwae, renyi = (
        value_and_gradient(objective(name, num_particles=4, **kw), local, local_guide, DATA)
        for name, kw in names
    )
    assert_same(iwae, renyi, rtol=1e-14)


def test_renyi_tends_to_the_elbo():
    near = objective("renyi", order=1.0 - 1e-6, num_particles=4, gradient="reparam")
    # The ELBO with the draws of a non-linear objective: plates have a key of their own.
    plate_key, key = jax.random.split(KEY)
    found = value_and_gradient(near, local, local_guide, DATA)
    expected = value_and_gradient(Trace_ELBO(4), local, local_guide, DATA, key=key)
    assert_same(found, expected, rtol=1e-4)


WITH_PATH = [name for name in list_divergences("f") if get_divergence(name).has_path_gradient]


@pytest.mark.parametrize("name", WITH_PATH)
def test_one_particle_gives_the_elbos_path_gradient(name):
    divergence = get_divergence(name)
    # Reverse KL splits no key for plates: give it the rest of the key that the others leave.
    _, rest = jax.random.split(KEY)
    linear = objective("reverse_kl", gradient="path")
    key = KEY if name == "reverse_kl" else jax.random.split(rest, 1)[0]
    _, elbo = value_and_gradient(linear, local, local_guide, DATA, key=key)
    ours = objective(divergence, gradient="path", num_particles=1)
    _, found = value_and_gradient(ours, local, local_guide, DATA)
    curvature = divergence.second_derivative_at_one
    assert_same(found, jax.tree.map(lambda g: curvature * g, elbo))


def exchangeable(data, subsample_size=None):
    with numpyro.plate("data", 6, subsample_size=subsample_size):
        z = numpyro.sample("z", dist.Normal(0.0, 1.0))
        numpyro.sample("x", dist.Normal(z, 0.5), obs=data)


def exchangeable_guide(data, subsample_size=None):
    """Each element gets the same draw, so that a subsample is like any other."""
    loc = numpyro.param("loc", 0.3)
    scale = numpyro.param("scale", 0.8, constraint=constraints.positive)
    noise = jax.random.normal(numpyro.prng_key())
    value = loc + scale * noise
    density = dist.Normal(loc, scale).log_prob(value)
    with numpyro.plate("data", 6, subsample_size=subsample_size):
        numpyro.sample("z", dist.Delta(value, log_density=density))


@pytest.mark.parametrize("name", [*WITH_PATH, "renyi", "tail_adaptive"])
def test_subsampled_equals_full_on_exchangeable_data(name):
    gradient = "auto" if name == "tail_adaptive" else "reparam"
    loss = objective(name, num_particles=4, gradient=gradient)
    full = value_and_gradient(loss, exchangeable, exchangeable_guide, 0.7)
    assert abs(full[0]) > 1e-3
    part = value_and_gradient(loss, exchangeable, exchangeable_guide, 0.7, 2)
    assert_same(part, full, rtol=1e-12)


def test_a_divergence_of_ones_own_gives_the_same_fit():
    def fit(divergence):
        svi = SVI(local, local_guide, numpyro.optim.Adam(0.05), objective(divergence))
        return svi.run(KEY, 100, DATA, progress_bar=False)

    mine = get_divergence("forward_kl").from_generator(lambda u: u * jnp.log(u) - u + 1.0)
    own, built_in = fit(mine), fit("forward_kl")
    assert_same((own.losses, own.params), (built_in.losses, built_in.params), rtol=1e-9)
    assert not np.allclose(own.losses[:10], own.losses[-10:])
