"""jit, scan and vmap; parameters of a divergence as arguments of a compiled function."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from numpyro.infer import SVI, Trace_ELBO
from numpyro.infer.autoguide import AutoBNAFNormal, AutoDelta

from bayesdiv.divergences import (
    Alpha,
    FDivergence,
    GeneralizedJensenShannon,
    SlicedWasserstein,
    get_divergence,
    list_divergences,
)
from bayesdiv.numpyro import objective, register_divergence
from bayesdiv.objectives import RenyiBound

KEY = jax.random.key(5)
PARAMS = {"loc": jnp.array(0.3)}


def model():
    z = numpyro.sample("z", dist.Normal(0.0, 1.0))
    numpyro.sample("x", dist.Normal(z, 1.0), obs=0.8)


def guide():
    numpyro.sample("z", dist.Normal(numpyro.param("loc", 0.3), 0.6))


def test_a_float_parameter_does_not_compile_again():
    traces = []

    @jax.jit
    def loss(order):
        traces.append(order)
        return objective("alpha", order=order, num_particles=3).loss(KEY, PARAMS, model, guide)

    found = [loss(order) for order in (0.3, 0.7, 2.0)]
    assert len(traces) == 1
    for order, value in zip((0.3, 0.7, 2.0), found, strict=True):
        fixed = objective("alpha", order=order, num_particles=3)
        np.testing.assert_allclose(value, fixed.loss(KEY, PARAMS, model, guide), rtol=1e-10)


def test_a_divergence_is_an_argument_of_a_compiled_function():
    traces = []

    @jax.jit
    def gradient(divergence):
        traces.append(divergence)
        loss = objective(divergence, num_particles=3)
        return jax.grad(lambda p: loss.loss(KEY, p, model, guide))(PARAMS)["loc"]

    values = [float(gradient(Alpha(order))) for order in (0.2, 0.4)]
    assert len(traces) == 1
    assert values[0] != values[1]
    gradient(0.5 * Alpha(0.2) + 1.5 * get_divergence("forward_kl"))
    gradient(0.1 * Alpha(0.9) + 0.7 * get_divergence("forward_kl"))
    assert len(traces) == 2
    gradient(RenyiBound(0.3))
    gradient(RenyiBound(0.4))
    assert len(traces) == 3


def test_a_divergence_is_differentiable_in_its_parameter():
    def value(divergence):
        return objective(divergence, num_particles=3).loss(KEY, PARAMS, model, guide)

    slope = jax.jit(jax.grad(value))(Alpha(0.4))
    assert isinstance(slope, Alpha)
    step = 1e-5
    numeric = (value(Alpha(0.4 + step)) - value(Alpha(0.4 - step))) / (2 * step)
    np.testing.assert_allclose(slope.order, numeric, rtol=1e-6)


@pytest.mark.parametrize("name", list_divergences())
def test_every_divergence_survives_flattening(name):
    divergence = get_divergence(name)
    leaves, structure = jax.tree.flatten(divergence)
    assert jax.tree.unflatten(structure, leaves) == divergence
    # JAX puts placeholders where numbers were.
    assert jax.tree.structure(jax.tree.unflatten(structure, [object()] * len(leaves))) == structure


@pytest.mark.parametrize("name", list_divergences("two_sample"))
def test_two_sample_divergence_is_an_argument_of_a_compiled_function(name):
    x = jax.random.normal(KEY, (6, 2))
    divergence = get_divergence(name)
    found = jax.jit(lambda d: d(x, x + 1.0, rng=KEY))(divergence)
    np.testing.assert_allclose(found, divergence(x, x + 1.0, rng=KEY), rtol=1e-6)


def test_nested_divergences_flatten_to_their_numbers():
    nested = 0.5 * GeneralizedJensenShannon(0.25) + 2.0 * Alpha(0.3).reversed()
    assert sorted(jax.tree.leaves(nested)) == [0.25, 0.5, 0.7, 2.0]
    assert jax.tree.leaves(SlicedWasserstein()) == []
    custom = FDivergence.from_generator(lambda u: (u - 1.0) ** 2)
    assert jax.tree.leaves(custom) == []
    assert jax.tree.leaves(Alpha(0.3)) == [0.3]


def test_ones_own_class_can_be_registered():
    @register_divergence
    @dataclasses.dataclass(frozen=True)
    class Tempered(Alpha):
        order: float = 0.5
        label: str = "mine"

    assert register_divergence(Tempered) is Tempered
    assert jax.tree.leaves(Tempered(0.2)) == [0.2]
    assert jax.tree.map(lambda x: 2 * x, Tempered(0.2)) == Tempered(0.4)
    with pytest.raises(TypeError, match="must be a dataclass"):
        register_divergence(int)


def test_vmap_over_seeds_and_scan_over_steps():
    loss = objective("jensen_shannon", num_particles=3)
    keys = jax.random.split(KEY, 3)
    one_by_one = [loss.loss(key, PARAMS, model, guide) for key in keys]
    mapped = jax.vmap(lambda key: loss.loss(key, PARAMS, model, guide))(keys)
    _, scanned = jax.lax.scan(lambda c, key: (c, loss.loss(key, PARAMS, model, guide)), 0, keys)
    np.testing.assert_allclose(mapped, one_by_one, rtol=1e-10)
    np.testing.assert_allclose(scanned, one_by_one, rtol=1e-10)


def test_reverse_kl_compiles_to_the_hosts_program():
    costs = []
    for loss in (objective("reverse_kl", num_particles=4), Trace_ELBO(num_particles=4)):
        gradient = jax.grad(lambda p, key, loss=loss: loss.loss(key, p, model, guide))
        compiled = jax.jit(gradient).lower(PARAMS, KEY).compile()
        costs.append(compiled.cost_analysis()["flops"])
    assert costs[0] <= 1.05 * costs[1]


def test_a_target_without_mass_gives_an_infinite_loss():
    def impossible():
        z = numpyro.sample("z", dist.Normal(0.0, 1.0))
        numpyro.factor("never", jnp.where(z == z, -jnp.inf, 0.0))

    assert objective("reverse_kl").loss(KEY, PARAMS, impossible, guide) == jnp.inf


def test_estimate_can_be_compiled():
    loss = objective("forward_kl")
    run = jax.jit(lambda p: loss.estimate(KEY, p, model, guide, num_particles=40))
    found = run(PARAMS)
    eager = loss.estimate(KEY, PARAMS, model, guide, num_particles=40)
    np.testing.assert_allclose(found.log_weight, eager.log_weight, rtol=1e-10)
    assert found.log_evidence.shape == ()


@pytest.mark.slow
def test_a_flow_without_inverse_falls_back_to_reparameterisation():
    def pair_model():
        z = numpyro.sample("z", dist.Normal(jnp.zeros(2), 1.0).to_event(1))
        numpyro.sample("x", dist.Normal(z.sum(), 1.0), obs=0.8)

    flow = AutoBNAFNormal(pair_model, num_flows=1, hidden_factors=[2])
    svi = SVI(pair_model, flow, numpyro.optim.SGD(0.0), objective("forward_kl"))
    params = svi.get_params(svi.init(KEY))
    gradients = {}
    for gradient in ("auto", "reparam"):
        loss = objective("forward_kl", gradient=gradient, num_particles=2)
        gradients[gradient] = jax.grad(lambda p, loss=loss: loss.loss(KEY, p, pair_model, flow))(
            params
        )
    for a, b in zip(*map(jax.tree.leaves, gradients.values()), strict=True):
        np.testing.assert_array_equal(a, b)
    for gradient in ("path", "score"):
        loss = objective("forward_kl", gradient=gradient, num_particles=2)
        with pytest.raises(ValueError, match="'_auto_latent' is needed at a given value"):
            jax.eval_shape(lambda p, loss=loss: loss.loss(KEY, p, pair_model, flow), params)
    with pytest.raises(ValueError, match="TailAdaptive"):
        objective("tail_adaptive").loss(KEY, params, pair_model, flow)


def test_point_guide_is_maximum_a_posteriori():
    point = AutoDelta(model)
    svi = SVI(model, point, numpyro.optim.SGD(0.1), objective("jensen_shannon"))
    params = svi.run(KEY, 400, progress_bar=False).params
    np.testing.assert_allclose(params["z_auto_loc"], 0.4, atol=1e-4)
