"""The built-in guides of ``fit`` in NumPyro: flows and whitened coordinates."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from numpyro.infer import SVI, Trace_ELBO
from scipy import integrate

from bayesdiv.fitting import Start
from bayesdiv.numpyro import fit
from bayesdiv.numpyro._flow import AffineCoupling, SinhArcsinh, build_layers, initial_parameters
from bayesdiv.numpyro._whitened import WhitenedGuide, mirrored_particles

ROOT = np.array([[2.0, 0.0, 0.0], [1.0, 0.5, 0.0], [-3.0, 0.2, 10.0]])
START = Start(np.array([1.0, -2.0, 300.0]), ROOT, 0.0)


def normal_model():
    numpyro.sample("a", dist.Normal(0.0, 1.0))
    numpyro.sample("b", dist.Normal(jnp.zeros(2), 1.0).to_event(1))


def _random_parameters(dim, rng):
    return {
        name: jnp.asarray(value + 0.3 * rng.standard_normal(value.shape))
        for name, value in initial_parameters(dim, rng).items()
    }


class TestFlow:
    @pytest.mark.parametrize("dim", [1, 2, 5])
    def test_layers_invert_and_know_their_volume(self, dim):
        rng = np.random.default_rng(dim)
        x = jnp.asarray(rng.standard_normal((4, dim)))
        for layer in build_layers(_random_parameters(dim, rng)):
            y, kept = layer.call_with_intermediates(x)
            np.testing.assert_allclose(layer(x), y, rtol=1e-12)
            np.testing.assert_allclose(layer.inv(y), x, rtol=1e-8, atol=1e-8)
            jacobian = jax.vmap(jax.jacobian(layer))(x)
            expected = np.linalg.slogdet(np.asarray(jacobian))[1]
            for found in (
                layer.log_abs_det_jacobian(x, y),
                layer.log_abs_det_jacobian(x, y, kept),
            ):
                np.testing.assert_allclose(found, expected, atol=1e-8)
            x = y

    @pytest.mark.parametrize("dim", [1, 2, 5])
    def test_it_starts_near_the_identity(self, dim):
        rng = np.random.default_rng(dim)
        x = rng.standard_normal((100, dim))
        y = x
        for layer in build_layers(initial_parameters(dim, rng)):
            y = layer(y)
        np.testing.assert_allclose(y, x, atol=0.05)

    def test_layers_are_pytrees(self):
        rng = np.random.default_rng(0)
        for layer in build_layers(_random_parameters(3, rng)):
            if isinstance(layer, AffineCoupling | SinhArcsinh):
                leaves, tree = jax.tree.flatten(layer)
                x = jnp.asarray(rng.standard_normal(3))
                np.testing.assert_array_equal(jax.tree.unflatten(tree, leaves)(x), layer(x))

    @pytest.mark.slow
    def test_one_dimension_takes_skewness(self):
        # A log-gamma density: skew to the left, and its evidence known.
        def model():
            log_rate = numpyro.sample("log_rate", dist.Normal(0.0, 3.0))
            numpyro.sample("y", dist.Poisson(jnp.exp(log_rate)), obs=1)

        flow = fit(model, guide="flow", num_restarts=1, progress_bar=False)
        normal = fit(model, guide="full_rank", num_restarts=1, progress_bar=False)

        def density(z):
            return np.exp(-0.5 * z**2 / 9.0 + z - np.exp(z)) / np.sqrt(2.0 * np.pi * 9.0)

        evidence = integrate.quad(density, -20.0, 6.0)[0]
        mean = integrate.quad(lambda z: z * density(z), -20.0, 6.0)[0] / evidence
        elbo = {result.guide_name: -np.mean(result.losses[0][-200:]) for result in (flow, normal)}
        assert np.log(evidence) - elbo["flow"] < 0.5 * (np.log(evidence) - elbo["full_rank"])
        draws = flow.to_arviz(num_draws=4000).posterior["log_rate"].values.ravel()
        assert draws.mean() == pytest.approx(mean, abs=0.1 * draws.std())

    @pytest.mark.slow
    def test_a_flow_bends(self):
        def banana():
            x = numpyro.sample("x", dist.Normal(0.0, 1.0))
            numpyro.sample("y", dist.Normal(x**2, 0.5))

        lost, bent = {}, {}
        for guide in ("flow", "full_rank"):
            result = fit(banana, guide=guide, num_restarts=1, max_steps=3000, progress_bar=False)
            # The evidence is one.
            lost[guide] = np.mean(result.losses[0][-200:])
            draws = result.to_arviz(num_draws=4000).posterior
            x, y = draws["x"].values.ravel(), draws["y"].values.ravel()
            bent[guide] = np.corrcoef(x**2, y)[0, 1]
        assert lost["flow"] < 0.3 * lost["full_rank"]
        # Of the model itself: sqrt(2 / 2.25).
        assert 0.7 < bent["flow"] < np.sqrt(2.0 / 2.25) + 0.02
        assert abs(bent["full_rank"]) < 0.3


@pytest.fixture(scope="module", params=["mean_field", "full_rank", "flow"])
def whitened(request):
    guide = WhitenedGuide(normal_model, request.param)
    guide.set_up(jax.random.key(0))
    guide.start = START
    params = guide.initial_parameters(np.random.default_rng(1))
    return guide, params


class TestWhitenedGuide:
    def test_it_starts_half_a_standard_deviation_from_the_start(self, whitened):
        guide, params = whitened
        loc, scale = guide.loc_and_scale(params)
        covariance = ROOT @ ROOT.T
        if guide.family == "mean_field":
            expected = np.diag(np.linalg.inv(covariance)) ** -0.5
        else:
            expected = np.sqrt(np.diag(covariance))
        assert np.all(np.abs(np.asarray(scale) / expected - 1.0) < 0.8)
        assert 0.0 < np.linalg.norm(np.linalg.solve(ROOT, loc - START.location)) < 2.0

    def test_transform_and_posterior_agree(self, whitened):
        guide, params = whitened
        noise = jax.random.normal(jax.random.key(1), (5, 3))
        transform, posterior = guide.get_transform(params), guide.get_posterior(params)
        z = transform(noise)
        density = guide.get_base_dist().log_prob(noise)
        density = density - transform.log_abs_det_jacobian(noise, z)
        np.testing.assert_allclose(posterior.log_prob(z), density, rtol=1e-8, atol=1e-8)

    def test_quantiles_are_those_of_draws(self, whitened):
        guide, params = whitened
        draws = guide.sample_posterior(jax.random.key(2), params, sample_shape=(4000,))
        quantiles = guide.quantiles(params, [0.25, 0.5])
        median = guide.median(params)
        for name, values in draws.items():
            below = np.mean(np.asarray(values) < np.asarray(quantiles[name])[0], axis=0)
            # A flow's own quantiles come from as many draws.
            np.testing.assert_allclose(below, 0.25, atol=5.0 * np.sqrt(2 * 0.25 * 0.75 / 4000))
            np.testing.assert_allclose(quantiles[name][1], median[name], rtol=1e-6)

    def test_mirrored_particles_come_in_pairs(self, whitened):
        guide, params = whitened

        def draw(key):
            return guide.get_posterior(params).sample(key)

        keys = jax.random.split(jax.random.key(3), 6)
        z = mirrored_particles(guide)(draw, keys)
        alone = jax.vmap(draw)(keys[:3])
        np.testing.assert_allclose(z[:3], alone, rtol=1e-10)
        if guide.family != "flow":
            loc = guide.loc_and_scale(params)[0]
            np.testing.assert_allclose(z[:3] + z[3:], 2.0 * jnp.tile(loc, (3, 1)), rtol=1e-8)
        assert mirrored_particles(guide)(draw, keys[:5]).shape == (5, 3)

    def test_it_goes_into_svi(self, whitened):
        guide, params = whitened
        svi = SVI(normal_model, guide, numpyro.optim.Adam(0.01), Trace_ELBO())
        state = svi.init(jax.random.key(0), init_params=params)
        _, loss = svi.update(state)
        assert np.isfinite(loss)
        assert set(svi.get_params(state)) == set(params)


def test_a_guide_without_a_start_says_so():
    guide = WhitenedGuide(normal_model, "full_rank")
    with pytest.raises(ValueError, match=r"no start yet; bayesdiv.numpyro.fit sets it"):
        guide.get_posterior({})
