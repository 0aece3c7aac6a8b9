"""State-space models: shapes that are held, draws, and the same model under NUTS."""

import dataclasses
from collections.abc import Iterator

import arviz as az
import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from linear_gaussian_joint import SCALAR, VECTOR, joint_law
from numpyro.infer import MCMC, NUTS, Predictive
from numpyro.infer.util import log_density
from scipy.stats import multivariate_normal

from bayesdiv.models._state_space_sites import Emissions, StatePath
from bayesdiv.models.kalman import kalman_smoother
from bayesdiv.models.state_space import StateSpaceModel
from bayesdiv.models.state_space_examples import linear_gaussian, tobit


@pytest.fixture(autouse=True, scope="module")
def quick_compilation() -> Iterator[None]:
    """XLA without most of its optimisations: the models are tiny."""
    before = jax.config.values["jax_disable_most_optimizations"]
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", before)


def plane(**changes) -> StateSpaceModel:
    """States (2,), observations (3,), with one function replaced."""
    functions = {
        "initial": lambda: dist.Normal(jnp.zeros(2), 1.0).to_event(1),
        "transition": lambda states, time: dist.Normal(0.5 * states, 1.0).to_event(1),
        "emission": lambda states, time: dist.Normal(
            jnp.concatenate([states, states[:, :1]], axis=1), 1.0
        ).to_event(1),
        "transition_mean": lambda states, time: 0.5 * states,
        "log_predictive": lambda states, time, y: -((states**2).sum(1)) + y.sum(),
        "log_lookahead": lambda states, time, y: states[:, 0],
        "log_emission_supremum": lambda time, y: jnp.zeros(()),
    }
    return StateSpaceModel(**(functions | changes))


@pytest.mark.parametrize("parameters", [SCALAR, VECTOR], ids=["scalar", "vector"])
def test_draws_have_the_joint_law(parameters):
    model, num_series = linear_gaussian(parameters), 20_000
    keys = jax.random.split(jax.random.key(0), num_series)
    drawn = jax.jit(jax.vmap(lambda key: model.simulate(key, 3)))(keys)
    values = np.concatenate([np.asarray(part).reshape(num_series, -1) for part in drawn], axis=1)
    mean, observed_mean, covariance, observed_covariance, cross = joint_law(parameters, 3)
    mean = np.concatenate([mean, observed_mean])
    covariance = np.block([[covariance, cross], [cross.T, observed_covariance]])
    scale = np.sqrt(np.diag(covariance))
    error = (values.mean(0) - mean) / scale * np.sqrt(num_series)
    assert abs(error).max() < 5.0
    # A product of centred normal numbers has variance C_ii C_jj + C_ij².
    spread = np.sqrt(np.outer(scale, scale) ** 2 + covariance**2)
    error = (np.cov(values.T) - covariance) / spread * np.sqrt(num_series)
    assert abs(error).max() < 5.0


def test_a_series_may_have_one_time():
    states, observations = plane().simulate(jax.random.key(0), 1)
    assert states.shape == (1, 2)
    assert observations.shape == (1, 3)


@pytest.mark.parametrize("parameters", [SCALAR, VECTOR], ids=["scalar", "vector"])
def test_the_numpyro_model_has_the_joint_density(parameters):
    model = linear_gaussian(parameters)
    path, observations = model.simulate(jax.random.key(1), 4)
    mean, observed_mean, covariance, observed_covariance, cross = joint_law(parameters, 4)
    width = len(observed_mean) // 4
    # The second row is missing, although only its last entry is not a number.
    observations = observations.at[(1, -1) if width > 1 else (1,)].set(jnp.nan)
    seen = np.repeat(np.arange(4) != 1, width)
    exact = multivariate_normal(
        np.concatenate([mean, observed_mean[seen]]),
        np.block(
            [
                [covariance, cross[:, seen]],
                [cross[:, seen].T, observed_covariance[np.ix_(seen, seen)]],
            ]
        ),
    )
    values = np.concatenate([np.ravel(path), np.ravel(observations)[seen]])

    @jax.jit
    @jax.value_and_grad
    def density(path):
        found, trace = log_density(model.numpyro_model, (observations,), {}, {"states": path})
        assert trace["observations"]["fn"].log_prob(observations).shape == (4,)
        return found

    found, gradient = density(path)
    np.testing.assert_allclose(found, exact.logpdf(values), rtol=1e-10)
    assert bool(jnp.isfinite(gradient).all())


def test_several_paths_have_a_density_each():
    model = plane()
    path, seen = StatePath(model, 3), Emissions(model, jnp.zeros((3, 2)))

    @jax.jit
    def draw(key):
        paths, series = path.sample(key, (5,)), seen.sample(key, (5,))
        densities = path.log_prob(paths), seen.log_prob(series)
        one = path.log_prob(paths[2]), seen.log_prob(series[2])
        return densities, one

    densities, one = draw(jax.random.key(0))
    assert [found.shape for found in densities] == [(5,), (5, 3)]
    for found, expected in zip(densities, one, strict=True):
        np.testing.assert_allclose(found[2], expected, rtol=1e-12)


def test_predictive_draws_follow_the_model():
    drawn = Predictive(tobit().numpyro_model, num_samples=4)(jax.random.key(0), num_times=6)
    assert drawn["states"].shape == (4, 6, 2)
    assert drawn["observations"].shape == (4, 6)
    assert float(drawn["observations"].min()) == 0.0


@pytest.mark.slow
def test_nuts_on_the_path_agrees_with_the_smoother():
    model = linear_gaussian(SCALAR)
    _, observations = model.simulate(jax.random.key(2), 8)
    observations = observations.at[3].set(jnp.nan)
    mcmc = MCMC(NUTS(model.numpyro_model), num_warmup=300, num_samples=2000, progress_bar=False)
    mcmc.run(jax.random.key(0), observations)
    container = az.from_numpyro(mcmc, log_likelihood=True)
    exact = kalman_smoother(SCALAR, observations)
    draws = container.posterior["states"].values[0]
    ess = az.ess(container.posterior)["states"].values
    assert ess.min() > 500.0
    scale = np.sqrt(exact.covariances)
    assert abs((draws.mean(0) - exact.means) / scale * np.sqrt(ess)).max() < 5.0
    second = az.ess(az.convert_to_dataset(((draws - exact.means) ** 2)[None]))["x"].values
    ratio = ((draws - exact.means) ** 2).mean(0) / scale**2
    assert abs((ratio - 1.0) * np.sqrt(second / 2.0)).max() < 5.0
    assert container.log_likelihood["observations"].dims == ("chain", "draw", "time")


def test_parameters_may_be_sampled_too():
    def joint(observations):
        rho = numpyro.sample("rho", dist.Uniform(-1.0, 1.0))
        parameters = SCALAR._replace(transition_matrix=rho)
        linear_gaussian(parameters).numpyro_model(observations)

    observations = jnp.ones(5)
    path = jnp.linspace(0.0, 1.0, 5)

    @jax.jit
    def density(rho):
        return log_density(joint, (observations,), {}, {"rho": rho, "states": path})[0]

    slope = (density(0.3 + 1e-5) - density(0.3 - 1e-5)) / 2e-5
    np.testing.assert_allclose(jax.grad(density)(0.3), slope, rtol=1e-6)


def wrong_event(states, time):
    return dist.Normal(states, 1.0)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"transition": wrong_event},
            r"transition\(states, time\) must return a distribution with batch_shape \(4,\) "
            r"and event_shape \(2,\), got batch_shape \(4, 2\) and event_shape \(\); add .to_event",
        ),
        (
            {"emission": wrong_event},
            r"emission\(states, time\).*event_shape \(\) or \(dim,\), got batch_shape \(4, 2\)",
        ),
        (
            {"emission": lambda states, time: dist.Normal(0.0, 1.0)},
            r"emission\(states, time\).*got batch_shape \(\) and.*the first axis of states is",
        ),
        (
            {"transition": lambda states, time: dist.Normal(jnp.zeros((4, 3)), 1.0).to_event(1)},
            r"transition\(states, time\).*event_shape \(2,\), got.*event_shape \(3,\)",
        ),
        (
            {"initial": lambda: dist.Normal(jnp.zeros(2), 1.0)},
            r"initial\(\) must return a distribution with batch_shape \(\).*got batch_shape \(2,\)",
        ),
        (
            {"transition_mean": lambda states, time: states[:, 0]},
            r"transition_mean\(states, time\) must return an array of shape \(4, 2\), got \(4,\)",
        ),
        (
            {"log_predictive": lambda states, time, y: states},
            r"log_predictive\(states, time, observation\).*of shape \(4,\), got \(4, 2\)",
        ),
        (
            {"log_emission_supremum": lambda time, y: y},
            r"log_emission_supremum\(time, observation\).*of shape \(\), got \(3,\)",
        ),
    ],
)
def test_wrong_shapes_name_the_function(changes, message):
    with pytest.raises(ValueError, match=message):
        plane(**changes).check()


def test_other_mistakes_name_the_function():
    covariates = np.arange(5.0)
    with pytest.raises(TypeError, match="transition must be a function, got int; transition"):
        plane(transition=3)
    with pytest.raises(TypeError, match="log_predictive must be a function, got str"):
        plane(log_predictive="exact")
    with pytest.raises(TypeError, match=r"emission\(states, time\) must return a numpyro.*, got"):
        plane(emission=lambda states, time: states).check()
    shifted = plane(
        transition=lambda states, time: dist.Normal(states + covariates[time], 1.0).to_event(1)
    )
    with pytest.raises(TypeError, match=r"transition\(states, time\).*jnp.asarray\(covariates\)"):
        shifted.simulate(jax.random.key(0), 5)
    with pytest.raises(ValueError, match=r"takes states \(num_particles,\).*got shape \(\)"):
        plane().transition(jnp.zeros(()), 1)
    with pytest.raises(ValueError, match="a series must have at least 1 time, got 0"):
        plane().simulate(jax.random.key(0), 0)
    with pytest.raises(ValueError, match="numpyro_model needs observations, or num_times"):
        plane().numpyro_model()


def test_functions_are_optional_and_a_model_can_be_changed():
    full = plane()
    full.check()
    bare = StateSpaceModel(full.initial, full.transition, full.emission)
    bare.check()
    assert bare.log_predictive is None
    other = dataclasses.replace(bare, log_lookahead=full.log_lookahead)
    other.check()
    assert other.log_lookahead is full.log_lookahead
    assert other.transition is bare.transition
