"""Bad input is refused in words that say what to do."""

import jax
import jax.numpy as jnp
import numpyro
import numpyro.distributions as dist
import pytest

from bayesdiv.numpyro import DivergenceELBO, objective

KEY = jax.random.key(1)


def model():
    z = numpyro.sample("z", dist.Normal(0.0, 1.0))
    numpyro.sample("x", dist.Normal(z, 1.0), obs=0.8)


def guide():
    numpyro.sample("z", dist.Normal(0.0, 1.0))


def coin_model():
    z = numpyro.sample("z", dist.Bernoulli(0.3))
    numpyro.sample("x", dist.Normal(1.0 * z, 1.0), obs=0.8)


def coin_guide():
    numpyro.sample("z", dist.Bernoulli(logits=numpyro.param("logit", 0.0)))


def trace(loss, model, guide):
    return jax.eval_shape(lambda key: loss.loss(key, {}, model, guide), KEY)


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("backward_kl", {}, "must be one of reverse_kl, forward_kl"),
        ("alpha", {"order": 1.0}, "order must be neither 0 nor 1"),
        ("renyi", {"order": 1.0}, "use 'reverse_kl'"),
        ("forward_kl", {"order": 1.0}, "has no parameter 'order'"),
        ("total_variation", {"gradient": "path"}, "use gradient='score'"),
        ("forward_kl", {"gradient": "exact"}, "gradient must be"),
        ("forward_kl", {"num_particles": 0}, "num_particles must be an integer >= 1"),
        ("tail_adaptive", {"num_particles": 1}, "num_particles must be at least 2"),
        ("forward_kl", {"gradient": "score", "num_particles": 1}, "at least 2"),
        ("forward_kl", {"warmup": -1}, "warmup must be a number of steps"),
        ("forward_kl", {"normalizer": "none"}, "normalizer must be"),
        ("forward_kl", {"vectorize_particles": 3}, "vectorize_particles"),
    ],
)
def test_construction(name, arguments, message):
    with pytest.raises(ValueError, match=message):
        objective(name, **arguments)


def test_an_objective_of_the_wrong_type():
    with pytest.raises(TypeError, match="must be a name"):
        objective(3.5)


@pytest.mark.parametrize("gradient", ["path", "reparam"])
def test_site_without_reparameterisation(gradient):
    loss = objective("forward_kl", gradient=gradient)
    with pytest.raises(ValueError, match=r"guide site 'z' \(Bernoulli.*use gradient='auto'"):
        trace(loss, coin_model, coin_guide)


def test_score_terms_need_two_particles_but_for_reverse_kl():
    with pytest.raises(ValueError, match="at least 2 for the leave-one-out baseline, got 1"):
        trace(objective("forward_kl", num_particles=1), coin_model, coin_guide)
    assert trace(objective("reverse_kl", num_particles=1), coin_model, coin_guide).shape == ()


def test_discrete_sites_draw_no_warning_from_svi():
    svi = numpyro.infer.SVI(coin_model, coin_guide, numpyro.optim.SGD(0.1), objective("alpha"))
    assert svi.init(KEY).mutable_state is None
    assert DivergenceELBO.can_infer_discrete


def test_enumerated_site():
    def enumerated():
        numpyro.sample("z", dist.Bernoulli(0.3), infer={"enumerate": "parallel"})

    with pytest.raises(ValueError, match=r"model site 'z' is enumerated.*TraceEnum_ELBO"):
        trace(objective("alpha"), enumerated, lambda: None)
    with pytest.raises(ValueError, match=r"guide site 'z' is enumerated.*TraceEnum_ELBO"):
        trace(objective("alpha"), coin_model, enumerated)


def test_latent_site_that_the_guide_lacks():
    with pytest.raises(ValueError, match=r"lacks the model's latent sites \['z'\]"):
        trace(objective("alpha"), model, lambda: None)


def test_guide_site_that_the_model_lacks():
    def extra():
        guide()
        numpyro.sample("y", dist.Normal(0.0, 1.0))

    with pytest.raises(ValueError, match="guide site 'y' is not a latent site of the model"):
        trace(objective("alpha"), model, extra)

    def auxiliary():
        guide()
        numpyro.sample("y", dist.Normal(0.0, 1.0), infer={"is_auxiliary": True})

    assert trace(objective("alpha"), model, auxiliary).shape == ()


def test_shapes_that_differ():
    def vector():
        numpyro.sample("z", dist.Normal(jnp.zeros(3), 1.0))

    def event():
        numpyro.sample("z", dist.Normal(jnp.zeros(3), 1.0).to_event(1))

    def padded():
        numpyro.sample("z", dist.Normal(jnp.zeros((1, 1)), 1.0))

    with pytest.raises(ValueError, match=r"shape of site 'z': \(\) and \(3,\)"):
        trace(objective("alpha"), model, vector)
    with pytest.raises(ValueError, match="event dimensions of site 'z': 0 and 1"):
        trace(objective("alpha"), model, event)
    assert trace(objective("alpha"), model, padded).shape == ()


def broken_model():
    z = numpyro.sample("z", dist.Normal(0.0, 1.0))
    numpyro.factor("cliff", jnp.where(z > 0.0, -jnp.inf, 0.0))


def test_check_names_the_particle_and_the_site():
    loss = objective("forward_kl", num_particles=8)
    assert loss.check(KEY, {}, model, guide) is None
    draws = loss.estimate(KEY, {}, model, guide, num_particles=8)
    assert draws.log_weight.shape == (8,)
    with pytest.raises(
        ValueError, match=r"of 8 particles are not finite: at particle \d, model site 'cliff'.*-inf"
    ):
        loss.check(KEY, {}, broken_model, guide)
    with pytest.raises(ValueError, match="1 of 1 particles .* particle 0, guide site 'z'.*nan"):
        objective("reverse_kl").check(KEY, {}, model, lambda: _sampled_nan())


def _sampled_nan():
    noise = jax.random.normal(numpyro.prng_key())
    numpyro.sample("z", dist.Delta(0.1, log_density=jnp.nan * noise))
