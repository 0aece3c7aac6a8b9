"""A catalogue of plate structures × objectives: accepted, warned about or refused."""

import warnings

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from numpyro import handlers
from numpyro.infer.util import log_density

from bayesdiv.numpyro import objective

KEY = jax.random.key(2)
OBSERVED = jnp.linspace(-1.0, 1.0, 12).reshape(3, 4)


def latent(name, *, model):
    """A latent site with the model's or the guide's distribution."""
    return numpyro.sample(name, dist.Normal(0.0, 1.0) if model else dist.Normal(0.2, 0.7))


def no_plate(*, model):
    z = latent("z", model=model)
    if model:
        numpyro.sample("x", dist.Normal(z, 1.0), obs=0.3)


def global_latent(size=None, *, model):
    z = latent("z", model=model)
    if model:
        with numpyro.plate("data", 4, subsample_size=size) as index:
            numpyro.sample("x", dist.Normal(z, 1.0), obs=OBSERVED[0][index])


def global_latent_subsampled(*, model):
    global_latent(2, model=model)


def local_latents(size=None, *, model):
    with numpyro.plate("data", 4, subsample_size=size) as index:
        z = latent("z", model=model)
        if model:
            numpyro.sample("x", dist.Normal(z, 1.0), obs=OBSERVED[0][index])


def local_latents_subsampled(*, model):
    local_latents(2, model=model)


def global_and_local(size=None, *, model):
    a = latent("a", model=model)
    with numpyro.plate("data", 4, subsample_size=size) as index:
        z = latent("z", model=model)
        if model:
            numpyro.sample("x", dist.Normal(a + z, 1.0), obs=OBSERVED[0][index])


def global_and_local_subsampled(*, model):
    global_and_local(2, model=model)


def nested(*, model):
    with numpyro.plate("group", 3, dim=-2):
        a = latent("a", model=model)
        with numpyro.plate("data", 4, dim=-1):
            z = latent("z", model=model)
            if model:
                numpyro.sample("x", dist.Normal(a + z, 1.0), obs=OBSERVED)


def inner_of_two_common(*, model):
    """The common plate is not the leftmost one."""
    a = None
    with numpyro.plate("data", 4, dim=-1):
        a = latent("a", model=model)
        with numpyro.plate("group", 3, dim=-2):
            if model:
                numpyro.sample("x", dist.Normal(a, 1.0), obs=OBSERVED)


def crossed(*, model):
    with numpyro.plate("group", 3, dim=-2):
        a = latent("a", model=model)
    with numpyro.plate("data", 4, dim=-1):
        b = latent("b", model=model)
    if model:
        with numpyro.plate("group", 3, dim=-2), numpyro.plate("data", 4, dim=-1):
            numpyro.sample("x", dist.Normal(a + b, 1.0), obs=OBSERVED)


def scaled_and_masked(*, model):
    with handlers.scale(scale=0.5), numpyro.plate("data", 4):
        with handlers.mask(mask=jnp.array([True, True, False, True])):
            z = latent("z", model=model)
            if model:
                numpyro.sample("x", dist.Normal(z, 1.0), obs=OBSERVED[0])


def missing_plate(*, model):
    with numpyro.plate("data", 4, dim=-1):
        z = latent("z", model=model)
        if model:
            numpyro.sample("x", dist.Normal(z, 1.0), obs=OBSERVED)


OBJECTIVES = ["reverse_kl", "forward_kl", "total_variation", "renyi", "tail_adaptive"]
# Structure: shape of the independent plates, their scale.
ACCEPTED = {
    no_plate: ((), 1.0),
    global_latent: ((), 1.0),
    local_latents: ((4,), 1.0),
    local_latents_subsampled: ((2,), 2.0),
    global_and_local: ((), 1.0),
    nested: ((3,), 1.0),
    inner_of_two_common: ((4,), 1.0),
    crossed: ((), 1.0),
    scaled_and_masked: ((4,), 1.0),
}
LINEAR_ONLY = [global_latent_subsampled, global_and_local_subsampled]


def loss_shape(name, structure):
    loss = objective(name, num_particles=3)
    return jax.eval_shape(lambda key: loss.loss(key, {}, *pair(structure)), KEY)


def pair(structure):
    return (lambda: structure(model=True)), (lambda: structure(model=False))


@pytest.mark.parametrize("structure", ACCEPTED, ids=lambda f: f.__name__)
@pytest.mark.parametrize("name", OBJECTIVES)
def test_accepted(name, structure):
    assert loss_shape(name, structure).shape == ()


@pytest.mark.parametrize("structure", LINEAR_ONLY, ids=lambda f: f.__name__)
@pytest.mark.parametrize("name", OBJECTIVES)
def test_subsampling_that_only_a_linear_objective_may(name, structure):
    if name == "reverse_kl":
        assert loss_shape(name, structure).shape == ()
    else:
        with pytest.raises(ValueError, match=r"plate 'data' is subsampled \(2 of 4\)"):
            loss_shape(name, structure)


@pytest.mark.parametrize("name", OBJECTIVES)
def test_missing_plate_is_warned_about(name):
    with pytest.warns(UserWarning, match="site 'x' has size 3 at batch dimension -2"):
        loss_shape(name, missing_plate)


@pytest.mark.parametrize("structure", ACCEPTED, ids=lambda f: f.__name__)
def test_log_weights_are_those_of_the_hosts_densities(structure):
    shape, scale = ACCEPTED[structure]
    model, guide = pair(structure)
    found = objective("forward_kl").estimate(KEY, {}, model, guide, num_particles=2)
    assert found.log_weight.shape == (2, *shape)
    assert found.scale == scale
    plate_key, rest = jax.random.split(KEY)
    hidden = {"hide_types": ["sample", "prng_key", "control_flow"]}
    for key, row in zip(jax.random.split(rest, 2), found.log_weight, strict=True):
        model_key, guide_key = jax.random.split(key)
        seeded = handlers.seed(handlers.seed(guide, plate_key, **hidden), guide_key)
        log_q, trace = log_density(seeded, (), {}, {})
        replayed = handlers.replay(
            handlers.seed(handlers.seed(model, plate_key, **hidden), model_key), trace
        )
        log_p, _ = log_density(replayed, (), {}, {})
        np.testing.assert_allclose(scale * row.sum(), log_p - log_q, rtol=1e-10)


def test_particles_of_a_nonlinear_objective_share_their_subsample():
    seen = []

    def model():
        with numpyro.plate("data", 100, subsample_size=5) as index:
            numpyro.sample("x", dist.Normal(0.01 * index, 1.0), obs=0.0)

    def guide():
        with numpyro.plate("data", 100, subsample_size=5):
            pass

    loss = objective("renyi", num_particles=4)
    seen = loss.estimate(KEY, {}, model, guide, num_particles=4).log_weight
    assert np.ptp(seen, axis=0).max() == 0.0
    assert np.ptp(seen, axis=1).min() > 0.0


def test_no_structure_warns_by_itself():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for structure in ACCEPTED:
            loss_shape("jensen_shannon", structure)
