"""Two-sample divergences as NumPyro objectives: posteriors, predictive fits, codes, state."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import optax
import pytest
from numpyro import handlers
from numpyro.infer import SVI, init_to_median
from numpyro.infer.autoguide import AutoDelta, AutoMultivariateNormal, AutoNormal
from scipy.special import ndtri

from bayesdiv.numpyro import objective
from bayesdiv.numpyro._sample_objective import SampleObjective

KEY = jax.random.key(0)
DATA = jnp.array([0.4, 1.9, 1.1, 2.3, 0.8])
POSTERIOR_SD = (1 / (0.25 + len(DATA))) ** 0.5
POSTERIOR_MEAN = float(DATA.sum()) * POSTERIOR_SD**2


def normal_model(data=DATA):
    mean = numpyro.sample("mean", dist.Normal(0.0, 2.0))
    with numpyro.plate("n", len(data)):
        numpyro.sample("x", dist.Normal(mean, 1.0), obs=data)


X = np.stack([np.ones(20), np.linspace(0.0, 2.0, 20)], 1)
Y = X @ np.array([0.5, -1.0]) + 0.5 * np.cos(3.0 * np.arange(20))
COVARIANCE = np.linalg.inv(X.T @ X / 0.25 + np.eye(2))
MEAN = COVARIANCE @ X.T @ Y / 0.25


def regression():
    weights = numpyro.sample("w", dist.Normal(jnp.zeros(2), 1.0).to_event(1))
    with numpyro.plate("n", 20):
        numpyro.sample("y", dist.Normal(X @ weights, 0.5), obs=Y)


def fit(model, guide, loss, num_steps, *args, rate=0.03, stateful=True):
    # A short memory of squared gradients: those of reverse KL are thousands of times larger.
    optimiser = optax.adam(optax.exponential_decay(rate, num_steps, 0.03), b2=0.95)
    svi = SVI(model, loss.stateful(guide, model) if stateful else guide, optimiser, loss)
    return svi, svi.run(jax.random.key(1), num_steps, *args, progress_bar=False)


@pytest.mark.slow
def test_latent_finds_the_conjugate_posterior():
    guide = AutoNormal(normal_model, init_loc_fn=init_to_median)
    loss = objective("energy_distance", warmup=100, num_particles=32)
    assert isinstance(loss, SampleObjective)
    svi, result = fit(normal_model, guide, loss, 400, DATA)
    found = result.params
    assert float(found["mean_auto_loc"]) == pytest.approx(POSTERIOR_MEAN, abs=0.05 * POSTERIOR_SD)
    assert float(found["mean_auto_scale"]) == pytest.approx(POSTERIOR_SD, rel=0.05)
    size = loss.effective_size(jax.random.key(0), found, normal_model, svi.guide, DATA)
    assert 30.0 < float(size) <= 32.0
    # Evaluation has no state and reports the objective after the warm start.
    assert float(svi.evaluate(result.state, DATA)) < 0.01
    assert int(result.state.mutable_state["bayesdiv_state"]["step"]) == 400


@pytest.mark.slow
def test_learnt_slices_find_a_correlated_posterior():
    guide = AutoMultivariateNormal(regression, init_loc_fn=init_to_median)
    loss = objective(
        "max_sliced_wasserstein",
        warmup=200,
        num_particles=48,
        num_steps=2,
        num_starts=4,
        root=False,
    )
    _, result = fit(regression, guide, loss, 700)
    _assert_posterior(guide.get_posterior(result.params), mean=0.05, spread=0.05)
    state = result.state.mutable_state["bayesdiv_state"]
    # 500 steps after the warm start, two updates each.
    assert float(state["inner"]["latent"].ascent.num_steps) == 1000.0


def test_latent_approaches_reference_draws():
    draws = np.random.default_rng(0).multivariate_normal(MEAN, COVARIANCE, 400)
    guide = AutoMultivariateNormal(regression, init_loc_fn=init_to_median)
    loss = objective("energy_distance", num_particles=64, reference={"w": draws})
    _, result = fit(regression, guide, loss, 1500, stateful=False)
    # 400 draws miss the mean by 0.05 sd; a sample of 64 points is fitted best somewhat narrower.
    _assert_posterior(guide.get_posterior(result.params), mean=0.15, spread=0.12)


def _assert_posterior(found, *, mean, spread):
    deviations = np.sqrt(np.diag(COVARIANCE))
    covariance = np.asarray(found.covariance_matrix)
    spreads = np.sqrt(np.diag(covariance))
    assert np.max(np.abs(found.mean - MEAN) / deviations) < mean
    assert np.max(np.abs(spreads / deviations - 1)) < spread
    assert covariance[0, 1] / spreads.prod() == pytest.approx(
        COVARIANCE[0, 1] / deviations.prod(), abs=0.05
    )


def _mean_field(data=DATA):
    location = numpyro.param("location", 0.3)
    spread = numpyro.param("spread", 0.6, constraint=dist.constraints.positive)
    numpyro.sample("mean", dist.Normal(location, spread))


PARAMS = {"location": jnp.array(0.3), "spread": jnp.array(0.6)}


def test_ways_to_map_over_particles_agree_and_the_loss_is_pure():
    found = []
    for vectorize in (True, False):
        loss = objective("energy_distance", num_particles=6, vectorize_particles=vectorize)

        def value(params, loss=loss):
            return loss.loss(KEY, params, normal_model, _mean_field, DATA)

        found.append(jax.jit(jax.value_and_grad(value))(PARAMS))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-8), *found)


def test_warm_start_is_reverse_kl_on_the_given_particles():
    loss = objective("energy_distance", warmup=1, num_particles=4)
    guide = loss.stateful(_mean_field)
    plain = objective("reverse_kl", num_particles=4)

    def stepper(each, guide):
        def value(params, number):
            state = {"bayesdiv_state": {"step": number}}
            return each.loss(jax.random.key(2), {**params, **state}, normal_model, guide, DATA)

        return jax.jit(jax.value_and_grad(value))

    step = stepper(loss, guide)
    first = step(PARAMS, jnp.array(0))
    reference = stepper(plain, _mean_field)(PARAMS, jnp.array(0))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-10), first, reference)
    assert float(step(PARAMS, jnp.array(1))[0]) < 1.0 < float(first[0])


def test_stateless_learnt_slices_start_afresh():
    loss = objective("max_sliced_wasserstein", num_particles=8, num_steps=2, num_starts=2)

    @jax.jit
    def evaluate(params):
        return loss.loss_with_mutable_state(KEY, params, normal_model, _mean_field, DATA)

    result = evaluate(PARAMS)
    assert result["mutable_state"] is None
    assert np.isfinite(result["loss"])


def test_stable_update_keeps_the_state_of_a_failed_step():
    def model(data):
        mean = numpyro.sample("mean", dist.Normal(0.0, 1.0))
        numpyro.factor("switch", data * mean)

    loss = objective("energy_distance", num_particles=4, warmup=1)
    svi = SVI(model, loss.stateful(_mean_field), optax.adam(0.1), loss)
    state = svi.init(jax.random.key(0), 1.0)
    update = jax.jit(svi.stable_update)
    good, _ = update(state, 1.0)
    bad, _ = update(good, jnp.nan)
    assert jax.tree.all(
        jax.tree.map(lambda a, b: bool(jnp.all(a == b)), svi.get_params(good), svi.get_params(bad))
    )
    assert float(svi.get_params(good)["location"]) != 0.3


def test_model_parameters_get_the_wake_gradient():
    def model():
        scale = numpyro.param("scale", 1.5)
        mean = numpyro.sample("mean", dist.Normal(0.0, scale))
        numpyro.sample("x", dist.Normal(mean, 1.0), obs=2.0)

    def guide():
        # The draws are read off a deterministic network of themselves.
        numpyro.sample("mean", dist.Normal(numpyro.param("location", 0.5), 0.8))

    drawn = []

    def recording(*args, **kwargs):
        with handlers.trace() as trace:
            guide()
        jax.debug.callback(lambda value: drawn.append(float(value)), trace["mean"]["value"])

    loss = objective("energy_distance", num_particles=5, vectorize_particles=False)
    params = {"location": jnp.array(0.5), "scale": jnp.array(1.5)}

    @jax.jit
    @jax.grad
    def slope(scale):
        return loss.loss(jax.random.key(3), {**params, "scale": scale}, model, recording)

    gradient = slope(jnp.array(1.5))
    jax.effects_barrier()
    draws = jnp.array(sorted(set(drawn)))
    assert len(draws) == 5

    def wake(scale):
        prior = dist.Normal(0.0, scale).log_prob(draws)
        joint = prior + dist.Normal(draws, 1.0).log_prob(2.0)
        log_weight = joint - dist.Normal(0.5, 0.8).log_prob(draws)
        return -jnp.sum(jax.nn.softmax(jax.lax.stop_gradient(log_weight)) * prior)

    assert float(gradient) == pytest.approx(float(jax.grad(wake)(1.5)), rel=1e-6)


# "data"

SAMPLE = jnp.asarray(1.5 + 0.7 * ndtri((np.arange(40) + 0.5) / 40))


def location_scale(data, mask=None):
    mean = numpyro.sample("mean", dist.Normal(0.0, 5.0))
    spread = numpyro.sample("spread", dist.LogNormal(0.0, 1.0))
    with numpyro.plate("n", len(data)), handlers.mask(mask=True if mask is None else mask):
        numpyro.sample("x", dist.Normal(mean, spread), obs=data)


@pytest.mark.parametrize(
    ("name", "parameters"),
    [("energy_distance", {}), ("sliced_wasserstein", {"num_projections": 1})],
)
def test_data_space_recovers_location_and_scale(name, parameters):
    guide = AutoDelta(location_scale, init_loc_fn=init_to_median)
    loss = objective(name, space="data", num_particles=4, **parameters)
    _, result = fit(location_scale, guide, loss, 300, SAMPLE, rate=0.05, stateful=False)
    found = guide.median(result.params)
    deviation = float(SAMPLE.std())
    assert float(found["mean"]) == pytest.approx(float(SAMPLE.mean()), abs=0.1 * deviation)
    assert float(found["spread"]) == pytest.approx(deviation, rel=0.1)


def _point(data, mask=None):
    numpyro.sample("mean", dist.Delta(jnp.array(1.5)))
    numpyro.sample("spread", dist.Delta(jnp.array(0.7)))


def test_masks_priors_and_context_in_data_space():
    def loss_of(**options):
        each = objective("energy_distance", space="data", num_particles=3, **options)

        @jax.jit
        def loss(data, mask=None):
            return each.loss(KEY, {}, location_scale, _point, data, mask)

        return loss

    loss = loss_of()
    mask, all_rows = jnp.arange(43) < 40, jnp.arange(43) < 43
    missing = jnp.concatenate([SAMPLE, jnp.full(3, jnp.nan)])
    outliers = jnp.concatenate([SAMPLE, jnp.full(3, 99.0)])
    assert loss(missing, mask) == loss(outliers, mask)
    assert loss(outliers, all_rows) > 3.0 * loss(outliers, mask)

    plain = float(loss(SAMPLE))
    log_prior = dist.Normal(0.0, 5.0).log_prob(1.5) + dist.LogNormal(0.0, 1.0).log_prob(0.7)
    assert loss_of(prior_scale=0.3)(SAMPLE) - plain == pytest.approx(-0.3 * float(log_prior))

    context = np.linspace(0.0, 1.0, 40)[:, None]
    joined = float(loss_of(context=context)(SAMPLE))
    # Sorted outcomes go with the covariate and drawn ones do not.
    assert joined > 2.0 * plain
    found = loss_of(context=lambda data, mask: jnp.asarray(context))(SAMPLE)
    assert float(found) == pytest.approx(joined, rel=1e-12)


# "codes"

LOADINGS = np.array([[1.0, 0.5], [-0.5, 1.0], [0.8, -0.3]])


def _autoencoder_data():
    rng = np.random.default_rng(0)
    return jnp.asarray(rng.normal(size=(100, 2)) @ LOADINGS.T + 0.1 * rng.normal(size=(100, 3)))


def decoder(rows):
    loadings = numpyro.param("loadings", jnp.asarray(LOADINGS))
    with numpyro.plate("data", len(rows)):
        code = numpyro.sample("code", dist.Normal(jnp.zeros(2), 1.0).to_event(1))
        numpyro.sample("row", dist.Normal(code @ loadings.T, 0.1).to_event(1), obs=rows)


def encoder(rows):
    # Scaled and shifted away from the prior: reconstruction alone would not bring it back.
    matrix = numpyro.param("encoder", jnp.asarray(3.0 * np.linalg.pinv(LOADINGS).T))
    shift = numpyro.param("shift", jnp.array([2.0, -1.0]))
    with numpyro.plate("data", len(rows)):
        numpyro.sample("code", dist.Delta(rows @ matrix + shift, event_dim=1))


def test_penalty_brings_the_aggregated_codes_to_the_prior():
    rows = _autoencoder_data()
    loss = objective("energy_distance", space="codes", penalty=300.0)
    _, result = fit(decoder, encoder, loss, 600, rows, rate=0.05, stateful=False)
    codes = np.asarray(rows @ result.params["encoder"] + result.params["shift"])
    # 100 draws of the prior have a mean of 0.1 and a relative sd error of 0.07 themselves.
    assert np.max(np.abs(codes.mean(0))) < 0.25
    assert np.max(np.abs(codes.std(0) - 1)) < 0.2
    assert abs(np.corrcoef(codes.T)[0, 1]) < 0.25
    rebuilt = codes @ np.asarray(result.params["loadings"]).T
    assert np.mean((rebuilt - rows) ** 2) < 0.05 * np.mean(rows**2)


def test_codes_loss_is_reconstruction_plus_penalty_for_each_datum():
    rows = _autoencoder_data()[:8]

    def model(part):
        shift = numpyro.sample("shift", dist.Normal(0.0, 1.0))
        with numpyro.plate("data", 40, subsample_size=8):
            code = numpyro.sample("code", dist.Delta(jnp.full((8, 1), 3.0), event_dim=1))
            mean = 0.0 * code + jnp.zeros(3) + shift
            numpyro.sample("row", dist.Normal(mean, 0.5).to_event(1), obs=part)

    def guide(part):
        numpyro.sample("shift", dist.Delta(jnp.array(0.2)))
        with numpyro.plate("data", 40, subsample_size=8):
            numpyro.sample("code", dist.Delta(jnp.full((8, 1), 3.0), event_dim=1))

    def far(part):
        numpyro.sample("shift", dist.Delta(jnp.array(0.2)))
        with numpyro.plate("data", 40, subsample_size=8):
            numpyro.sample("code", dist.Normal(jnp.full((8, 1), 5.0), 1e-9).to_event(1))

    def loss(guide, penalty):
        each = objective("wasserstein", space="codes", penalty=penalty, num_particles=2)
        return float(jax.jit(each.loss, static_argnums=(2, 3))(KEY, {}, model, guide, rows))

    log_likelihood = dist.Normal(0.2, 0.5).log_prob(rows).sum()
    expected = -5.0 * float(log_likelihood) - float(dist.Normal(0.0, 1.0).log_prob(0.2))
    assert loss(guide, 2.0) == pytest.approx(expected, rel=1e-9)
    # The codes lie two away from the prior's: 40 data, penalty 2.
    assert loss(far, 2.0) == pytest.approx(expected + 40 * 2.0 * 2.0, rel=1e-6)


# What is refused


def _coin(data):
    numpyro.sample("mean", dist.Bernoulli(0.5))


def _counts(data):
    rate = numpyro.sample("mean", dist.Normal(0.0, 1.0))
    with numpyro.plate("n", len(data)):
        numpyro.sample("count", dist.Poisson(jnp.exp(rate)), obs=jnp.round(data))


def _local(data):
    with numpyro.plate("n", 5, subsample_size=2) as index:
        mean = numpyro.sample("mean", dist.Normal(0.0, 1.0))
        numpyro.sample("x", dist.Normal(mean, 1.0), obs=data[index])


def _local_guide(data):
    with numpyro.plate("n", 5, subsample_size=2):
        numpyro.sample("mean", dist.Normal(0.0, 1.0))


def _prior_only(data):
    numpyro.sample("mean", dist.Normal(0.0, 1.0))


WRONG_REFERENCE = {"reference": {"mean": jnp.zeros((7, 3))}}
WRONG_CONTEXT = {"space": "data", "context": np.zeros((3, 1))}


@pytest.mark.parametrize(
    ("model", "guide", "arguments", "message"),
    [
        (_counts, _mean_field, {"space": "data"}, "likelihood 'count' .* is not reparameterised"),
        (_coin, _coin, {}, "guide site 'mean' .* is not reparameterised"),
        (normal_model, _mean_field, {"space": "codes"}, "needs a latent site and an observed site"),
        (_local, _local_guide, {}, "'mean' stands in plate 'n', of which 2 of 5 are subsampled"),
        (_prior_only, _mean_field, {"space": "data"}, "the model has none"),
        (normal_model, _mean_field, WRONG_REFERENCE, r"reference\['mean'\] must have shape"),
        (normal_model, _mean_field, WRONG_CONTEXT, r"context must have shape \(5, c\)"),
        (normal_model, _mean_field, {"warmup": 3}, r"keeps the step of its warm start.*stateful"),
    ],
)
def test_a_step_refuses(model, guide, arguments, message):
    loss = objective("energy_distance", num_particles=4, **arguments)
    with pytest.raises(ValueError, match=message):
        loss.loss(jax.random.key(0), PARAMS, model, guide, DATA)


def test_state_that_needs_the_model_asks_for_it():
    with pytest.raises(ValueError, match=r"loss.stateful\(guide, model\)"):
        objective("max_sliced_wasserstein").stateful(_mean_field)


def test_effective_size_needs_importance_weights():
    loss = objective("energy_distance", space="data", num_particles=2)
    with pytest.raises(ValueError, match="effective_size is that of importance weights"):
        loss.effective_size(jax.random.key(0), PARAMS, normal_model, _mean_field, DATA)
