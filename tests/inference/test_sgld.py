"""Stationary laws of SGLD, exact for quadratic potentials, where its chain is an AR(1)."""

import numpy as np
import pytest
from helpers import assert_within_standard_errors, make_array, to_numpy
from sampler_chains import advance, quadratic, started

from bayesdiv.inference.sgld import SGLDDynamics


def variance(rate, second_moment, noise, step):
    """w ← (1 − k) w + noise with k = ε² P / √V: Var = variance of the noise / (1 − (1 − k)²)."""
    mobility = step**2 / np.sqrt(second_moment)
    injected = 2.0 * mobility + (mobility * noise) ** 2
    return injected / (1.0 - (1.0 - mobility * rate) ** 2)


@pytest.mark.parametrize("step_size", [0.1, 0.5])
def test_variance_of_an_autoregression(backend, step_size):
    rate, second_moment, noise = np.array(
        [[1.0, 1.0, 0.0], [4.0, 1.0, 0.0], [4.0, 1.0, 3.0], [4.0, 16.0, 3.0], [0.5, 0.25, 1.0]]
    ).T
    dynamics = SGLDDynamics(step_size)
    state = started(backend, dynamics, np.zeros((2000, 5)))
    state = state._replace(
        second_moment=make_array(backend, np.broadcast_to(second_moment, (2000, 5)).copy())
    )
    # Forgetting takes 1 / k steps.
    run = advance(
        dynamics,
        state,
        quadratic(backend, rate, noise),
        drop=int(6.0 / step_size**2),
        steps=600,
        every=20,
    )
    assert_within_standard_errors(
        (run.draws**2).mean(0), variance(rate, second_moment, noise, step_size)
    )
    assert_within_standard_errors(run.draws.mean(0), np.zeros(5))


def test_error_of_exact_gradients_falls_with_the_squared_step():
    rate = np.array([0.5, 2.0])
    exact = variance(rate, 1.0, 0.0, 0.1)
    # 1 / (P (1 − k / 2)): what is wrong falls with the square of the step.
    np.testing.assert_allclose(exact, 1.0 / rate / (1.0 - 0.005 * rate))


def test_steps_of_twice_the_inverse_curvature_are_unstable(backend):
    dynamics = SGLDDynamics(0.1)
    run = advance(
        dynamics,
        started(backend, dynamics, np.ones((20, 2))),
        quadratic(backend, [195.0, 205.0]),
        steps=400,
        every=400,
    )
    assert np.abs(run.draws[..., 0]).max() < 10.0
    assert np.abs(run.draws[..., 1]).min() > 1e6


def test_preconditioner_evens_out_scales(backend):
    scales = np.array([1.0, 10.0, 100.0])
    dynamics = SGLDDynamics(0.2, num_burn_in=1500)
    start = np.random.default_rng(0).normal(size=(400, 3)) / scales
    target = quadratic(backend, scales**2, scales)
    run = advance(
        dynamics, started(backend, dynamics, start), target, drop=2000, steps=2000, every=20
    )
    second_moment = to_numpy(run.state.second_moment)
    exact = variance(scales**2, second_moment, scales, 0.2)
    assert_within_standard_errors((run.draws**2).mean(0) / exact - 1.0, np.zeros(3))

    plain = SGLDDynamics(0.2)
    run = advance(plain, started(backend, plain, start), target, steps=100, every=100)
    assert np.abs(run.draws[..., 2]).min() > 1e6


def test_memory_averages_squares_of_gradients(backend):
    dynamics = SGLDDynamics(0.1, num_burn_in=3, memory=0.9)
    constant = make_array(backend, np.array([2.0, -3.0]))
    state = started(backend, dynamics, np.zeros(2))
    found = []
    for _ in range(5):
        state, _ = dynamics.step(state, lambda position, rng: (constant[0], constant))
        found.append(to_numpy(state.second_moment))
    kept = 0.9 ** np.array([1.0, 2.0, 3.0, 3.0, 3.0])[:, None]
    np.testing.assert_allclose(found, kept + (1.0 - kept) * np.array([4.0, 9.0]), rtol=1e-12)
    assert int(state.step) == 5


def test_info_reports_potential_and_gradient(backend):
    dynamics = SGLDDynamics(0.1)
    state = started(backend, dynamics, np.array([[3.0, 4.0], [0.0, -2.0]]))
    _, info = dynamics.step(state, quadratic(backend, np.ones(2)))
    np.testing.assert_allclose(to_numpy(info.potential), [12.5, 2.0])
    np.testing.assert_allclose(to_numpy(info.gradient_norm), [5.0, 2.0])
