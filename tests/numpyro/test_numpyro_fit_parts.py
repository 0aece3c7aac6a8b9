"""The parts of ``fit`` in NumPyro: flows, whitened guides, targets, and guides of one's own."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from numpyro.distributions import constraints
from numpyro.infer import SVI, Trace_ELBO
from numpyro.infer.autoguide import AutoNormal
from scipy import integrate, special

from bayesdiv.fitting import Start
from bayesdiv.numpyro import fit
from bayesdiv.numpyro._flow import AffineCoupling, SinhArcsinh, build_layers, initial_parameters
from bayesdiv.numpyro._target import NumPyroTarget
from bayesdiv.numpyro._whitened import WhitenedGuide, mirrored_particles

ROOT = np.array([[2.0, 0.0, 0.0], [1.0, 0.5, 0.0], [-3.0, 0.2, 10.0]])
START = Start(np.array([1.0, -2.0, 300.0]), ROOT, 0.0)


def normal_model():
    numpyro.sample("a", dist.Normal(0.0, 1.0))
    numpyro.sample("b", dist.Normal(jnp.zeros(2), 1.0).to_event(1))


def positive_model(y):
    rate = numpyro.sample("rate", dist.Gamma(2.0, 1.0))
    with numpyro.plate("rows", len(y)):
        numpyro.sample("y", dist.Poisson(rate), obs=y)


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


class TestTarget:
    def test_it_is_the_log_density_of_unconstrained_values(self):
        y = np.array([2, 3, 1])
        target = NumPyroTarget(
            WhitenedGuide(positive_model, "full_rank"), jax.random.key(0), (y,), {}
        )
        z = np.array([[0.3], [-1.0]])

        def potential(z):
            return -(2.0 + y.sum()) * z + 4.0 * np.exp(z) + special.gammaln(y + 1.0).sum()

        np.testing.assert_allclose(target.values(z), potential(z[:, 0]), rtol=1e-10)
        slope = -(2.0 + y.sum()) + 4.0 * np.exp(z)
        np.testing.assert_allclose(target.gradients(z), slope, rtol=1e-10)
        value, gradient = target.value_and_gradient(z[0])
        assert value == pytest.approx(potential(0.3), rel=1e-10)
        np.testing.assert_allclose(gradient, slope[0], rtol=1e-10)
        np.testing.assert_allclose(target.hessian(z[1]), [[4.0 * np.exp(-1.0)]], rtol=1e-10)

    def test_a_derivative_rule_of_ones_own_has_curvature(self):
        @jax.custom_vjp
        def square(x):
            return x**2

        square.defvjp(lambda x: (x**2, x), lambda x, pull: (2.0 * x * pull,))

        def model():
            x = numpyro.sample("x", dist.Normal(jnp.zeros(2), 1.0).to_event(1))
            numpyro.factor("term", -3.0 * square(x).sum())

        target = NumPyroTarget(WhitenedGuide(model, "full_rank"), jax.random.key(0), (), {})
        np.testing.assert_allclose(target.hessian(np.ones(2)), 7.0 * np.eye(2), atol=1e-10)


def gamma_guide(y):
    shape = numpyro.param("shape", 1.0, constraint=constraints.positive)
    scale = numpyro.param("scale", 1.0, constraint=constraints.positive)
    numpyro.sample("rate", dist.Gamma(shape, 1.0 / scale))


class TestOwnGuide:
    @pytest.mark.parametrize("name", ["reverse_kl", "forward_kl"])
    def test_a_function_with_constrained_parameters(self, name):
        y = np.array([2, 3, 1])
        result = fit(positive_model, y, guide=gamma_guide, objective=name, progress_bar=False)
        # Gamma is conjugate: shape 2 + Σy, rate 1 + n.
        assert result.converged
        assert result.params["shape"] == pytest.approx(8.0, rel=0.15)
        assert result.params["shape"] * result.params["scale"] == pytest.approx(2.0, rel=0.03)
        assert result.guide_name == "gamma_guide"
        assert result.to_arviz(num_draws=10).posterior["rate"].shape == (1, 10)

    def test_an_automatic_guide_and_a_schedule(self):
        def order(step):
            return 0.2 + 0.3 * jnp.minimum(step / 100.0, 1.0)

        result = fit(
            positive_model,
            np.array([2, 3, 1]),
            guide=AutoNormal(positive_model),
            objective="alpha",
            order=order,
            max_steps=2000,
            progress_bar=False,
        )
        assert result.guide_name == "AutoNormal"
        assert "bayesdiv_state" not in result.params
        assert np.exp(result.params["rate_auto_loc"]) == pytest.approx(2.0, abs=0.2)

    def test_what_fails_is_named(self):
        def model():
            z = numpyro.sample("z", dist.Normal(0.0, 1.0))
            numpyro.factor("broken", jnp.log(-1.0 - z**2))

        def guide():
            loc = numpyro.param("loc", 0.0)
            numpyro.sample("z", dist.Normal(loc, 1.0))

        result = fit(model, guide=guide, progress_bar=False)
        assert not result.converged
        assert result.losses[0].size == 0
        assert any("site 'broken'" in line for line in result.verdict.advice)
        assert result.verdict.pareto_k == np.inf
        assert not result.verdict.trustworthy

    def test_a_window_that_fails_is_taken_back(self):
        # Not finite above 3, where the first steps, which are too large, lead.
        def model():
            z = numpyro.sample("z", dist.Normal(2.0, 0.01))
            numpyro.factor("wall", jnp.where(z > 3.0, jnp.nan, 0.0))

        def guide():
            loc = numpyro.param("loc", 2.9)
            numpyro.sample("z", dist.Normal(loc, numpyro.param("scale", 0.03)))

        result = fit(model, guide=guide, progress_bar=False)
        assert result.runs[0].failures
        assert result.params["loc"] == pytest.approx(2.0, abs=0.05)


def test_forward_and_reverse_meet_where_the_guide_is_exact():
    reverse, forward = (
        fit(normal_model, guide="full_rank", objective=name, num_restarts=1, progress_bar=False)
        for name in ("reverse_kl", "forward_kl")
    )
    for result, tolerance in ((reverse, 0.01), (forward, 0.1)):
        posterior = result.guide.get_posterior(result.params)
        np.testing.assert_allclose(posterior.mean, 0.0, atol=tolerance)
        np.testing.assert_allclose(posterior.covariance_matrix, np.eye(3), atol=2 * tolerance)


def test_a_two_sample_divergence_after_the_warm_start():
    result = fit(
        normal_model,
        guide="mean_field",
        objective="energy_distance",
        num_restarts=1,
        max_steps=1000,
        progress_bar=False,
    )
    assert [name for name, _ in result.stages] == ["reverse_kl", "energy_distance"]
    posterior = result.guide.get_posterior(result.params)
    np.testing.assert_allclose(posterior.mean, 0.0, atol=0.15)
    np.testing.assert_allclose(posterior.variance, 1.0, atol=0.3)
