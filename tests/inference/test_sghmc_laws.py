"""Stationary laws of SGHMC: exact for quadratic potentials, posteriors of conjugate models."""

import numpy as np
import pytest
from helpers import assert_within_standard_errors, make_array, to_numpy
from sampler_chains import advance, quadratic, sghmc_covariance, started

from bayesdiv._random import next_rng, standard_normal
from bayesdiv.inference.sghmc import SGHMCDynamics

STEP, FRICTION = 0.1, 0.05
# Precision, frozen V and the gradient's noise, by coordinate; each with its exact variance.
COORDINATES = {
    "exact gradient": (1.0, 1.0, 0.0, 0.9023),
    "steep": (4.0, 16.0, 0.0, 0.1504),
    "steep, noise that V knows": (4.0, 16.0, 4.0, 0.2506),
    "dead": (1.0, 100.0, 0.0, 0.0),
}


def variances(rate, second_moment, noise, step, friction, *, subtract):
    """Stationary Var(w) and Var(v) of one coordinate in closed form."""
    pull = step**2 * rate / np.sqrt(second_moment)
    injected = np.maximum(
        2.0 * friction * step**2 / np.sqrt(second_moment) - subtract * step**4, 1e-16
    )
    total = injected + step**4 * noise**2 / second_moment
    position = total / (pull * friction * (2.0 - pull / (2.0 - friction)))
    return position, 2.0 * pull * position / (2.0 - friction)


@pytest.fixture(scope="module", params=["torch", "jax"])
def table_run(request):
    rate, second_moment, noise, _ = np.array(list(COORDINATES.values())).T
    dynamics = SGHMCDynamics(STEP, FRICTION)
    state = started(request.param, dynamics, np.zeros((4000, 4)))
    state = state._replace(
        second_moment=make_array(request.param, np.broadcast_to(second_moment, (4000, 4)).copy())
    )
    target = quadratic(request.param, rate, noise)
    return advance(dynamics, state, target, drop=400, steps=1200, every=20)


def test_variance_of_positions_follows_the_closed_form(table_run):
    rate, second_moment, noise, golden = np.array(list(COORDINATES.values())).T
    exact, _ = variances(rate, second_moment, noise, STEP, FRICTION, subtract=True)
    np.testing.assert_allclose(exact, golden, atol=6e-5)
    assert_within_standard_errors((table_run.draws**2).mean(0), exact)
    assert exact[3] < 1e-11


def test_kinetic_temperature_is_variance_times_precision(table_run):
    rate, second_moment, noise, _ = np.array(list(COORDINATES.values())).T
    exact, _ = variances(rate, second_moment, noise, STEP, FRICTION, subtract=True)
    temperature = table_run.info["kinetic_temperature"]
    assert temperature.shape == (60, 4000)
    assert_within_standard_errors(temperature.mean(0), (rate * exact).mean())


def test_variance_of_velocities_follows_the_closed_form(table_run):
    rate, second_moment, noise, _ = np.array(list(COORDINATES.values())).T
    _, exact = variances(rate, second_moment, noise, STEP, FRICTION, subtract=True)
    assert_within_standard_errors(to_numpy(table_run.state.velocity) ** 2, exact)


def test_only_the_dead_coordinate_is_clamped(table_run):
    assert (table_run.info["clamped_fraction"] == 0.25).all()


@pytest.mark.parametrize("friction", [0.05, 0.4, 1.0])
def test_without_the_correction_exact_gradients_leave_the_discretisation_only(backend, friction):
    dynamics = SGHMCDynamics(0.2, friction, subtract_gradient_noise=False)
    # The last two come close to the largest stable step, where the variance is 10 times too large.
    limit = 2.0 * (2.0 - friction) / 0.2**2
    rate = np.array([1.0, 4.0, 0.5 * limit, 0.9 * limit])
    run = advance(
        dynamics,
        started(backend, dynamics, np.zeros((2000, 4))),
        quadratic(backend, rate),
        drop=600,
        steps=400,
        every=20,
    )
    exact, _ = variances(rate, 1.0, 0.0, 0.2, friction, subtract=False)
    np.testing.assert_allclose(
        exact * rate, 1.0 / (1.0 - np.array([*(rate[:2] / limit), 0.5, 0.9]))
    )
    assert_within_standard_errors((run.draws**2).mean(0), exact)


def test_positions_grow_without_bound_beyond_the_stable_step(backend):
    dynamics = SGHMCDynamics(0.2, 0.3, subtract_gradient_noise=False)
    limit = 2.0 * (2.0 - 0.3) / 0.2**2
    run = advance(
        dynamics,
        started(backend, dynamics, np.ones((50, 2))),
        quadratic(backend, [0.95 * limit, 1.05 * limit]),
        steps=400,
        every=400,
    )
    assert np.abs(run.draws[..., 0]).max() < 10.0
    assert np.abs(run.draws[..., 1]).min() > 1e6


# Covariances of the law with adapted scales, found once in simulation at 0.5 %.
GOLDEN = {
    0.05: [[0.992, 0.791], [0.791, 1.983]],
    0.1: [[0.957, 0.769], [0.769, 1.930]],
    0.2: [[0.835, 0.696], [0.696, 1.725]],
}


@pytest.mark.parametrize("step_size", GOLDEN)
def test_correlated_target_with_noisy_gradients(backend, step_size):
    covariance = np.array([[1.0, 0.8], [0.8, 2.0]])
    precision = np.linalg.inv(covariance)
    dynamics = SGHMCDynamics(step_size, FRICTION, num_burn_in=2000)
    run = advance(
        dynamics,
        started(backend, dynamics, np.zeros((400, 2))),
        quadratic(backend, precision, gradient_noise=2.0),
        drop=2500,
        steps=2500,
        every=25,
    )
    products = (run.draws[..., :, None] * run.draws[..., None, :]).mean(0)
    exact = np.stack(
        [
            sghmc_covariance(
                precision,
                second_moment,
                np.full(2, 4.0),
                step_size=step_size,
                friction=FRICTION,
                subtract=True,
            )[:2, :2]
            for second_moment in to_numpy(run.state.second_moment)
        ]
    )
    assert_within_standard_errors(products - exact, np.zeros((2, 2)))
    np.testing.assert_allclose(exact.mean(0), GOLDEN[step_size], rtol=0.02)
    assert_within_standard_errors(run.draws.mean(0), np.zeros(2))


class Regression:
    """y = X β + noise with N = 500, unequal scales, and its exact posterior."""

    num_data, batch_size, noise_variance = 500, 32, 0.25

    def __init__(self):
        rng = np.random.default_rng(3)
        mixing = np.eye(4) + 0.5 * np.eye(4, k=1)
        self.inputs = rng.normal(size=(500, 4)) @ mixing * np.array([1.0, 3.0, 0.3, 1.0])
        truth = rng.normal(size=4)
        self.outputs = self.inputs @ truth + 0.5 * rng.normal(size=500)
        precision = self.inputs.T @ self.inputs / self.noise_variance + np.eye(4)
        self.covariance = np.linalg.inv(precision)
        self.mean = self.covariance @ self.inputs.T @ self.outputs / self.noise_variance

    def target(self, backend):
        """The potential from minibatches, drawn for each chain by itself."""
        inputs, outputs = make_array(backend, self.inputs), make_array(backend, self.outputs)
        scale = self.num_data / self.batch_size / self.noise_variance

        def target(position, rng):
            rows = self.rows(backend, rng, position.shape[0])
            x, y = inputs[rows], outputs[rows]
            error = (x @ position[..., None])[..., 0] - y
            potential = 0.5 * (scale * (error**2).sum(-1) + (position**2).sum(-1))
            return potential, scale * (error[..., None] * x).sum(-2) + position

        return target

    def rows(self, backend, rng, num_chains):
        shape = (num_chains, self.batch_size)
        if backend == "torch":
            import torch

            generator = torch.Generator().manual_seed(rng)
            return torch.randint(self.num_data, shape, generator=generator)
        import jax

        return jax.random.randint(rng, shape, 0, self.num_data)

    def run(self, backend, step_size, *, num_burn_in, drop, steps):
        dynamics = SGHMCDynamics(step_size, FRICTION, num_burn_in)
        state = started(backend, dynamics, np.zeros((64, 4)))
        target = self.target(backend)
        return advance(dynamics, state, target, drop=drop, steps=steps, every=50)


@pytest.mark.parametrize("steps", [5000, pytest.param(25_000, marks=pytest.mark.slow)])
def test_posterior_of_linear_regression_from_minibatches(backend, steps):
    problem = Regression()
    run = problem.run(backend, 0.01, num_burn_in=3000, drop=5000, steps=steps)
    # The drift is linear in the weights, so that minibatches leave the mean as it is.
    assert_within_standard_errors(run.draws.mean(0), problem.mean)
    ratio = run.draws.std((0, 1)) / np.sqrt(np.diag(problem.covariance))
    assert ratio.min() > 0.93
    assert ratio.max() < 1.03
    assert run.info["clamped_fraction"].max() == 0.0
    assert abs(run.info["kinetic_temperature"].mean() - 1.0) < 0.06


def test_large_steps_on_minibatches_show_in_the_clamped_fraction(backend):
    problem = Regression()
    shares = [
        problem.run(backend, step, num_burn_in=1000, drop=1000, steps=50)
        .info["clamped_fraction"]
        .mean()
        for step in (0.02, 0.1)
    ]
    assert 0.1 < shares[0] < 0.4
    assert shares[1] == 1.0


def test_linear_autoencoder_with_a_frozen_encoder(backend):
    rng = np.random.default_rng(5)
    data = rng.normal(size=(60, 3)) @ np.array([[1.0, 0.5, 0.0], [0.0, 1.0, -1.0], [0.2, 0.0, 0.4]])
    codes = data @ rng.normal(size=(3, 2))
    noise_variance, prior_variance = 0.5, 2.0
    precision = codes.T @ codes / noise_variance + np.eye(2) / prior_variance
    mean = np.linalg.solve(precision, codes.T @ data / noise_variance).T

    x, z = make_array(backend, data), make_array(backend, codes)

    def target(position, rng):
        decoder = position.reshape(position.shape[0], 3, 2)
        error = z @ decoder.mT - x
        potential = 0.5 * (
            (error**2).sum((-2, -1)) / noise_variance + (position**2).sum(-1) / prior_variance
        )
        gradient = error.mT @ z / noise_variance + decoder / prior_variance
        return potential, gradient.reshape(position.shape)

    dynamics = SGHMCDynamics(0.05, 0.1, num_burn_in=1000, subtract_gradient_noise=False)
    state = started(backend, dynamics, np.zeros((300, 6)))
    run = advance(dynamics, state, target, drop=1500, steps=2000, every=20)
    assert_within_standard_errors(run.draws.mean(0), mean.reshape(-1))
    deviation = (run.draws - mean.reshape(-1)).reshape(100, 300, 3, 2)
    products = (deviation[..., :, None] * deviation[..., None, :]).mean(0)
    exact = np.stack(
        [
            sghmc_covariance(
                precision, row, np.zeros(2), step_size=0.05, friction=0.1, subtract=False
            )[:2, :2]
            for row in to_numpy(run.state.second_moment).reshape(-1, 2)
        ]
    ).reshape(300, 3, 2, 2)
    assert_within_standard_errors(products - exact, np.zeros((3, 2, 2)))
    wanted = np.linalg.inv(precision)
    assert np.abs(exact.mean((0, 1)) / wanted - 1.0).max() < 0.03


def test_a_rescaled_coordinate_has_rescaled_samples(backend):
    scales = np.array([0.1, 1.0, 10.0, 100.0])
    adapted = SGHMCDynamics(0.03, 0.1, num_burn_in=3000, subtract_gradient_noise=False)
    start = np.random.default_rng(0).normal(size=(200, 4)) / scales
    target = quadratic(backend, scales**2)
    run = advance(
        adapted, started(backend, adapted, start), target, drop=4000, steps=4000, every=40
    )
    standardised = (run.draws * scales) ** 2
    pull = 0.03**2 * scales**2 / np.sqrt(to_numpy(run.state.second_moment))
    exact = 1.0 / (1.0 - pull / (2.0 * (2.0 - 0.1)))
    assert exact.mean(0).max() < 1.1
    assert_within_standard_errors(standardised.mean(0) - exact, np.zeros(4))

    # The same step without adaptation leaves the steepest coordinate at once.
    fixed = SGHMCDynamics(0.03, 0.1, subtract_gradient_noise=False)
    run = advance(fixed, started(backend, fixed, start), target, steps=200, every=200)
    assert np.abs(run.draws[0, :, 3]).min() > 1e6


def test_scales_stay_after_burn_in(backend):
    dynamics = SGHMCDynamics(0.05, num_burn_in=20)
    target = quadratic(backend, [1.0, 3.0], gradient_noise=1.0)
    before = advance(
        dynamics, started(backend, dynamics, np.ones((5, 2))), target, steps=19, every=19
    ).state
    at_end = advance(dynamics, before, target, steps=1).state
    after = advance(dynamics, at_end, target, steps=30, every=30).state
    for name in ("window", "mean_gradient", "second_moment"):
        assert not np.array_equal(to_numpy(getattr(before, name)), to_numpy(getattr(at_end, name)))
        np.testing.assert_array_equal(
            to_numpy(getattr(after, name)), to_numpy(getattr(at_end, name))
        )
    assert int(after.step) == 50


def test_noise_and_minibatches_are_independent_across_steps_and_chains(backend):
    like = make_array(backend, np.zeros((3, 2000)))
    rng = 7 if backend == "torch" else started(backend, SGHMCDynamics(0.1), np.zeros(1), 7).rng
    drawn = []
    for _ in range(3):
        rng, first, second = next_rng(rng, like, 2)
        drawn += [to_numpy(standard_normal(one, (3, 2000), like)) for one in (first, second)]
    correlation = np.corrcoef(np.concatenate(drawn)) - np.eye(18)
    assert np.abs(correlation).max() < 5.0 / np.sqrt(2000)
