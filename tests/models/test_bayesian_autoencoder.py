"""The Bayesian autoencoder: host potentials, parity of hosts, batches of weights, bad input."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import pyro
import pytest
import torch
from helpers import BACKENDS, assert_within_standard_errors, make_array, to_numpy
from numpyro.infer.util import log_density
from pyro import poutine
from pyro.infer import MCMC, SVI, Predictive
from pyro.infer.autoguide import AutoNormal
from pyro.optim import Adam

from bayesdiv.inference.sghmc_pyro import SGHMC
from bayesdiv.models.bayesian_autoencoder_numpyro import BayesianAutoencoder as NumPyroModel
from bayesdiv.models.bayesian_autoencoder_pyro import BayesianAutoencoder as PyroModel
from bayesdiv.nn import MLPAutoencoder, PixelLikelihood, WeightPrior
from bayesdiv.nn.convolutional_torch import ConvAutoencoder, ConvLayer
from bayesdiv.pyro import objective

NETWORK = MLPAutoencoder(data_dim=6, hidden=(5, 4), latent_dim=2)
IMAGES = np.random.default_rng(0).uniform(size=(7, 6))
MODELS = {"torch": PyroModel, "jax": NumPyroModel}
SETTINGS = [
    {},
    {"likelihood": "gaussian"},
    {"likelihood": PixelLikelihood("gaussian", noise=0.3), "likelihood_temperature": 0.5},
    {"prior_temperature": 0.25, "likelihood_temperature": 2.0},
]


def some_weights(batch: tuple[int, ...] = ()) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(1)
    return {
        name: rng.normal(size=(*batch, *shape)) for name, shape in NETWORK.weight_shapes().items()
    }


def on(backend: str, weights: dict[str, np.ndarray]) -> dict:
    return {name: make_array(backend, weight) for name, weight in weights.items()}


def some_prior(backend: str) -> WeightPrior:
    rng = np.random.default_rng(2)
    shapes = NETWORK.weight_shapes()
    mean = {name: make_array(backend, rng.normal(size=shape)) for name, shape in shapes.items()}
    log_variance = {
        # One number for weights, one for each entry of biases.
        name: make_array(backend, rng.normal(size=() if name.endswith("weight") else shape))
        for name, shape in shapes.items()
    }
    return WeightPrior(shapes, mean, log_variance)


def plain_potential(weights, images, prior, model) -> float:
    """U from its definition, in NumPy."""

    def layers(part, rows):
        for layer in range(3):
            rows = rows @ weights[f"{part}_{layer}_weight"] + weights[f"{part}_{layer}_bias"]
            if layer < 2:
                rows = np.where(rows > 0, rows, 0.01 * rows)
        return rows

    outputs = layers("decoder", layers("encoder", images))
    if model.likelihood.name == "gaussian":
        noise = model.likelihood.noise
        fit = -0.5 * ((images - outputs) / noise) ** 2 - np.log(noise * np.sqrt(2 * np.pi))
    else:
        fit = images * outputs + np.log(outputs / np.expm1(outputs))
    log_prior = sum(
        np.sum(
            -0.5 * (weight - to_numpy(prior.mean[name])) ** 2 / np.exp(variance)
            - 0.5 * (variance + np.log(2 * np.pi))
        )
        for name, weight in weights.items()
        for variance in [to_numpy(prior.log_variance[name])]
    )
    return -fit.sum() / model.likelihood_temperature - log_prior / model.prior_temperature


@pytest.mark.parametrize("settings", SETTINGS)
def test_potential_of_the_function_and_of_the_host_is_the_definition(backend, settings):
    prior = some_prior(backend)
    model = MODELS[backend](NETWORK, prior, **settings)
    weights, images = on(backend, some_weights()), make_array(backend, IMAGES)
    exact = plain_potential(some_weights(), IMAGES, prior, model)
    potential = model.negative_log_joint
    potential = potential if backend == "torch" else jax.jit(potential)
    np.testing.assert_allclose(float(potential(weights, images)), exact, rtol=1e-10)
    if backend == "torch":
        host = -poutine.trace(poutine.condition(model, weights)).get_trace(images).log_prob_sum()
    else:
        host = -jax.jit(lambda values: log_density(model, (images,), {}, values)[0])(weights)
    np.testing.assert_allclose(float(host), exact, rtol=1e-10)


def test_weights_pass_from_one_library_to_the_other():
    outputs = [
        to_numpy(NETWORK(on(backend, some_weights((3,))), make_array(backend, IMAGES)))
        for backend in BACKENDS
    ]
    np.testing.assert_allclose(*outputs, rtol=1e-12)
    assert outputs[0].shape == (3, 7, 6)


@pytest.mark.parametrize("batch", [(3,), (2, 3)])
def test_batches_of_weights_are_evaluated_one_by_one(backend, batch):
    weights, images = some_weights(batch), make_array(backend, IMAGES)
    model = MODELS[backend](NETWORK, some_prior(backend))

    def both(values):
        return model.negative_log_joint(values, images), model.log_likelihood(values, images)

    both = both if backend == "torch" else jax.jit(both)
    together, densities = (to_numpy(found) for found in both(on(backend, weights)))
    assert together.shape == batch
    assert densities.shape == (*batch, 7)
    for index in np.ndindex(*batch):
        one = on(backend, {name: weight[index] for name, weight in weights.items()})
        for found, alone in zip((together, densities), both(one), strict=True):
            np.testing.assert_allclose(found[index], alone)


def test_rows_and_named_weights_are_inverse(backend):
    weights = on(backend, some_weights((2, 3)))
    rows = NETWORK.flatten(weights)
    assert rows.shape == (2, 3, NETWORK.num_weights())
    for name, weight in NETWORK.unflatten(rows).items():
        np.testing.assert_array_equal(to_numpy(weight), to_numpy(weights[name]))
    with pytest.raises(ValueError, match="rows must have 142 entries on the last axis"):
        NETWORK.unflatten(rows[..., 1:])


def test_minibatches_estimate_the_potential_without_bias(backend):
    model = MODELS[backend](NETWORK, some_prior(backend), likelihood_temperature=0.5)
    weights = on(backend, some_weights())
    full = float(model.negative_log_joint(weights, make_array(backend, IMAGES)))
    single = [
        float(model.negative_log_joint(weights, make_array(backend, IMAGES[[row]]), num_data=7))
        for row in range(7)
    ]
    np.testing.assert_allclose(np.mean(single), full, rtol=1e-10)


@pytest.mark.slow
def test_plates_supply_the_scale_of_a_minibatch():
    prior, jax_prior = some_prior("torch"), some_prior("jax")
    torch_images, jax_images = make_array("torch", IMAGES), make_array("jax", IMAGES)
    weights, jax_weights = on("torch", some_weights()), on("jax", some_weights())
    full = float(PyroModel(NETWORK, prior).negative_log_joint(weights, torch_images))
    model = PyroModel(NETWORK, prior, subsample_size=2)
    conditioned = poutine.condition(model, weights)
    draws = [-conditioned_trace(conditioned, torch_images) for _ in range(400)]
    assert_within_standard_errors(np.array(draws), full)
    jax_model = NumPyroModel(NETWORK, jax_prior, subsample_size=2)

    def potential(key):
        seeded = numpyro.handlers.seed(jax_model, key)
        return -log_density(seeded, (jax_images,), {}, jax_weights)[0]

    assert_within_standard_errors(
        jax.vmap(potential)(jax.random.split(jax.random.key(0), 400)), full
    )


def conditioned_trace(model, images) -> float:
    return float(poutine.trace(model).get_trace(images).log_prob_sum())


@pytest.mark.parametrize("num_particles", [1, 4])
def test_objectives_of_the_package_train_it(num_particles):
    images = torch.tensor(IMAGES, dtype=torch.float32)
    model = PyroModel(NETWORK, WeightPrior.standard(NETWORK, like=images), subsample_size=5)
    loss = objective("reverse_kl", num_particles=num_particles, vectorize_particles=True)
    svi = SVI(model, AutoNormal(model, init_scale=0.05), Adam({"lr": 0.03}), loss)
    losses = [svi.step(images) for _ in range(150)]
    assert np.mean(losses[-20:]) < np.mean(losses[:20]) - 5.0


def test_the_model_works_under_function_transforms():
    images = make_array("torch", IMAGES)
    batch = on("torch", some_weights((50,)))

    def potential(model, weights):
        with pyro.validation_enabled(is_validate=False):
            trace = poutine.trace(poutine.condition(model, weights)).get_trace(images)
            return -trace.log_prob_sum()

    full, part = (
        PyroModel(NETWORK, some_prior("torch"), subsample_size=size) for size in (None, 2)
    )
    found = torch.func.vmap(lambda weights: potential(full, weights))(batch)
    np.testing.assert_allclose(found, full.negative_log_joint(batch, images), rtol=1e-10)
    gradient = torch.func.grad(lambda weights: potential(full, weights))
    one = {name: weight[3] for name, weight in batch.items()}
    together = torch.func.vmap(gradient)(batch)
    np.testing.assert_allclose(
        together["encoder_1_bias"][3], gradient(one)["encoder_1_bias"], rtol=1e-10
    )
    same = {name: weight[:1].expand_as(weight) for name, weight in batch.items()}
    own = torch.func.vmap(lambda weights: potential(part, weights), randomness="different")(same)
    assert len(own.unique()) > 10


def test_predictive_draws_have_the_reconstruction_as_mean():
    images = make_array("torch", IMAGES)
    model = PyroModel(NETWORK, some_prior("torch"))
    weights = on("torch", some_weights((2,)))
    many = {name: weight.repeat_interleave(2_000, 0) for name, weight in weights.items()}
    draws = Predictive(model, posterior_samples=many, parallel=True)(images, observe=False)
    assert draws["image"].shape == (4_000, 7, 6)
    mean = model.reconstruct(weights, images)
    np.testing.assert_allclose(draws["reconstruction"][[0, -1]], mean, rtol=1e-10)
    assert_within_standard_errors(draws["image"][:2_000], mean[0])
    jax_model = NumPyroModel(NETWORK, some_prior("jax"))
    predictive = numpyro.infer.Predictive(jax_model, on("jax", some_weights((2,))))
    found = predictive(jax.random.key(0), make_array("jax", IMAGES), observe=False)
    np.testing.assert_allclose(found["reconstruction"], mean, rtol=1e-10)


def test_prior_draws_have_its_moments_and_its_gradients(backend):
    prior = some_prior(backend)
    rng = 0 if backend == "torch" else jax.random.key(0)
    sample = prior.sample if backend == "torch" else jax.jit(prior.sample, static_argnums=1)
    draws = sample(rng, 4_000)
    for name, draw in draws.items():
        assert draw.shape == (4_000, *prior.shapes[name])
        assert_within_standard_errors(draw, prior.mean[name])
        variance = np.broadcast_to(np.exp(to_numpy(prior.log_variance[name])), prior.shapes[name])
        assert_within_standard_errors((draw - prior.mean[name]) ** 2, variance)
    if backend == "torch":
        start = {name: torch.zeros((), requires_grad=True) for name in prior.shapes}
        tied = WeightPrior(prior.shapes, start, dict(start)).sample(0, 3)
        sum(draw.sum() for draw in tied.values()).backward()
        assert all(value.grad is not None for value in start.values())


def test_named_priors_have_the_variances_they_name(backend):
    like = make_array(backend, 0.0)
    fan_in = WeightPrior.fan_in(NETWORK, like=like)
    assert float(fan_in.scale("encoder_0_weight")) == pytest.approx(6**-0.5)
    assert float(fan_in.scale("decoder_0_bias")) == pytest.approx(2**-0.5)
    assert float(WeightPrior.standard(NETWORK, like=like).scale("encoder_0_bias")) == 1.0
    weights = on(backend, some_weights())
    for per, shape in (("weight", (6, 5)), ("layer", ())):
        centred = WeightPrior.centred(weights, -4.0, per=per)
        assert centred.scale("encoder_0_weight").shape == shape
        np.testing.assert_allclose(to_numpy(centred.scale("encoder_0_weight")), np.exp(-2.0))
        np.testing.assert_array_equal(
            to_numpy(centred.mean["encoder_0_weight"]), to_numpy(weights["encoder_0_weight"])
        )


def test_fresh_weights_keep_the_size_of_the_signal(backend):
    network = MLPAutoencoder(data_dim=200, hidden=(400, 400), latent_dim=300)
    like = make_array(backend, np.random.default_rng(3).normal(size=(50, 200)))
    rng = 0 if backend == "torch" else jax.random.key(0)
    weights = network.init_weights(rng, like=like, batch=(2,))
    # Encoder and decoder each begin with a layer that no ReLU feeds, which doubles the variance.
    assert 1.8 < to_numpy(network(weights, like)).std() < 2.2
    assert not np.allclose(*to_numpy(weights["encoder_0_weight"]))
    assert not to_numpy(weights["decoder_1_bias"]).any()


def test_average_of_one_draw_is_that_draw(backend):
    outputs = make_array(backend, np.linspace(-15.0, 15.0, 11)[None])
    for likelihood in (PixelLikelihood(), PixelLikelihood("gaussian")):
        np.testing.assert_allclose(
            to_numpy(likelihood.average(outputs)), to_numpy(outputs[0]), atol=1e-9
        )
    two = make_array(backend, [[-1.0], [3.0]])
    mean = np.mean(1.0 / (1.0 + np.exp([1.0, -3.0])))
    found = to_numpy(PixelLikelihood().average(two))
    np.testing.assert_allclose(found, np.log(mean / (1.0 - mean)))


SMALL_CONVOLUTION = ConvAutoencoder(
    (2, 8, 8), (ConvLayer(3, 3, 2, 1),), (4, 4, 4), (ConvLayer(2, 2, 2),), latent_dim=2
)


@pytest.mark.parametrize("network", [ConvAutoencoder.digits(latent_dim=3), SMALL_CONVOLUTION])
def test_convolutional_batches_are_evaluated_one_by_one(network):
    like = torch.zeros((), dtype=torch.float64)
    weights = network.init_weights(0, like=like, batch=(3,))
    assert {name: weight.shape[1:] for name, weight in weights.items()} == network.weight_shapes()
    images = torch.rand(4, network.data_dim, dtype=torch.float64)
    codes = network.encode(weights, images)
    outputs = network.decode(weights, codes)
    assert codes.shape == (3, 4, network.latent_dim)
    assert outputs.shape == (3, 4, network.data_dim)
    shared = network.decode(weights, codes[0])
    for index in range(3):
        one = {name: weight[index] for name, weight in weights.items()}
        np.testing.assert_allclose(outputs[index], network(one, images), atol=1e-10)
        np.testing.assert_allclose(shared[index], network.decode(one, codes[0]), atol=1e-10)
    model = PyroModel(network, WeightPrior.fan_in(network, like=like))
    assert model.negative_log_joint(weights, images).shape == (3,)


def test_published_convolutions_have_the_published_sizes():
    digits, faces, large = (
        ConvAutoencoder.digits(),
        ConvAutoencoder.faces(),
        ConvAutoencoder.large(),
    )
    assert digits.weight_shapes()["decoder_0_weight"] == (50, 6272)
    assert faces.weight_shapes()["decoder_0_weight"] == (50, 12544)
    assert large.weight_shapes()["decoder_0_weight"] == (50, 32768)
    assert digits.weight_shapes()["encoder_4_weight"] == (128, 50)
    assert large.weight_shapes()["encoder_4_weight"] == (512, 50)
    assert large.data_dim == 3 * 64 * 64


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: MLPAutoencoder(data_dim=0), "data_dim must be positive whole numbers, got 0"),
        (lambda: MLPAutoencoder(hidden=(3, 2.5)), "hidden must be positive whole numbers, got 2.5"),
        (lambda: MLPAutoencoder(slope=2.0), r"slope must be in \[0, 1\], got 2.0"),
        (lambda: PixelLikelihood("bernoulli"), "likelihood must be one of .*, got 'bernoulli'"),
        (lambda: PixelLikelihood(noise=0.0), "noise must be positive and finite, got 0.0"),
        (
            lambda: ConvAutoencoder((1, 28, 20), (), (1, 28, 28), ()),
            r"image_shape must be \(channels, size, size\), got \(1, 28, 20\)",
        ),
        (
            lambda: ConvAutoencoder((1, 4, 4), (ConvLayer(2, 9),), (1, 4, 4), ()),
            "encoder must leave at least one pixel, got a size of -4",
        ),
        (
            lambda: ConvAutoencoder((1, 4, 4), (), (2, 2, 2), (ConvLayer(1, 2),)),
            r"decoder must end in image_shape \(1, 4, 4\), got \(1, 3, 3\)",
        ),
        (
            lambda: WeightPrior({"a": (2,)}, {}, {"a": torch.zeros(())}),
            r"mean must name the weights \['a'\], got \[\]",
        ),
        (
            lambda: WeightPrior({"a": (2,)}, {"a": torch.zeros(())}, {"a": torch.zeros(3)}),
            r"log_variance\['a'\] must broadcast against shape \(2,\), got \(3,\)",
        ),
        (lambda: WeightPrior.centred({}, per="pixel"), "per must be 'weight' or 'layer'"),
        (lambda: WeightPrior.centred({}, float("nan")), "log_variance must be finite, got nan"),
    ],
)
def test_bad_settings_are_named(build, message):
    with pytest.raises(ValueError, match=message):
        build()


def test_weights_of_another_kind_are_named():
    with pytest.raises(TypeError, match=r"weights\['a'\] must be a torch tensor or a JAX array"):
        WeightPrior.centred({"a": np.zeros(2)})


def test_bad_models_and_images_are_named():
    prior = some_prior("torch")
    other = MLPAutoencoder(data_dim=6, hidden=(5, 3), latent_dim=2)
    with pytest.raises(ValueError, match=r"other names or shapes for \['decoder_0_bias', "):
        PyroModel(other, prior)
    for settings, message in (
        ({"subsample_size": 0}, "subsample_size must be a positive whole number or None, got 0"),
        ({"prior_temperature": 0.0}, "prior_temperature must be positive and finite, got 0.0"),
        ({"likelihood": "poisson"}, "likelihood must be one of"),
    ):
        with pytest.raises(ValueError, match=message):
            PyroModel(NETWORK, prior, **settings)
    model = NumPyroModel(NETWORK, some_prior("jax"), subsample_size=9)
    with pytest.raises(ValueError, match=r"images must lie in \[0, 1\].* from 0 to 1.5"):
        model.check(jnp.linspace(0.0, 1.5, 12).reshape(2, 6))
    with pytest.raises(ValueError, match=r"images must have shape \(n, 6\), got \(3, 2\)"):
        model.check(np.zeros((3, 2)))
    with pytest.raises(ValueError, match="at most the number of images, 7, got 9"):
        model.check(IMAGES)
    PyroModel(NETWORK, prior, likelihood="gaussian").check(IMAGES - 3.0)


@pytest.mark.parametrize("bad", [1.5, float("nan")])
def test_hosts_refuse_images_that_the_likelihood_cannot_have(bad):
    torch_images, jax_images = torch.full((2, 6), bad), jnp.full((2, 6), bad)
    with pytest.raises(ValueError, match=r"images must lie in \[0, 1\]"):
        poutine.trace(PyroModel(NETWORK, some_prior("torch"))).get_trace(torch_images)
    with pytest.raises(ValueError, match=r"images must lie in \[0, 1\]"):
        log_density(NumPyroModel(NETWORK, some_prior("jax")), (jax_images,), {}, {})
    kernel = SGHMC(PyroModel(NETWORK, some_prior("torch")), step_size=0.01)
    with pytest.raises(ValueError, match=r"images must lie in \[0, 1\]"):
        MCMC(kernel, num_samples=1, warmup_steps=1, disable_progbar=True).run(torch_images)


def test_new_images_at_an_old_address_are_looked_at_again():
    model = PyroModel(NETWORK, some_prior("torch"))
    for _ in range(20):
        model(torch.rand(2, 6, dtype=torch.float64))
        with pytest.raises(ValueError, match="images must lie in"):
            model(torch.rand(2, 6, dtype=torch.float64) + 1.5)
