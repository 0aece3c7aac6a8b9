"""When a stage lowers its step size and when it stops."""

import numpy as np
import pytest

from bayesdiv.fitting import StageSchedule, WindowSummary


def _window(rng, level, average, *, noise=1.0, whitened=True):
    losses = level + noise * rng.standard_normal(100)
    return WindowSummary(losses, np.atleast_1d(np.asarray(average, dtype=float)), whitened)


def test_the_step_size_stays_while_the_loss_falls():
    rng, schedule = np.random.default_rng(0), StageSchedule()
    for index in range(10):
        schedule.update(_window(rng, 100.0 - 5.0 * index, -index))
    assert schedule.step_size == schedule.initial
    assert not schedule.done


def test_a_plateau_lowers_the_step_size_once_for_two_windows():
    rng, schedule = np.random.default_rng(0), StageSchedule(factor=0.5)
    schedule.update(_window(rng, 3.0, 0.0, noise=0.0))
    assert schedule.step_size == schedule.initial
    schedule.update(_window(rng, 3.0, 0.0, noise=0.0))
    assert schedule.step_size == 0.5 * schedule.initial


def test_it_converges_when_averages_agree_between_step_sizes():
    rng, schedule = np.random.default_rng(0), StageSchedule(tolerance=0.02)
    while not schedule.done:
        schedule.update(_window(rng, 0.0, 0.001 * rng.standard_normal(3), noise=0.0))
    assert schedule.converged
    assert schedule.change < 0.02
    assert schedule.windows == 4


def test_it_goes_on_while_averages_differ_and_the_step_size_never_vanishes():
    rng, schedule = np.random.default_rng(0), StageSchedule(max_windows=40, smallest=1e-3)
    while not schedule.done:
        schedule.update(_window(rng, 0.0, float(schedule.windows), noise=0.0))
    assert not schedule.converged
    assert schedule.windows == 40
    assert schedule.step_size == pytest.approx(1e-3)


def test_parameters_without_a_unit_are_run_to_the_smallest_step_size():
    rng, schedule = np.random.default_rng(0), StageSchedule(factor=0.1, smallest=1e-3)
    sizes = []
    while not schedule.done:
        sizes.append(schedule.step_size)
        schedule.update(_window(rng, 0.0, float(schedule.windows), noise=0.0, whitened=False))
    assert schedule.converged
    assert sizes[-1] == pytest.approx(1e-3)


def test_the_average_is_that_of_the_two_windows_of_a_plateau():
    rng, schedule = np.random.default_rng(0), StageSchedule()
    schedule.update(_window(rng, 0.0, [1.0, 5.0], noise=0.0))
    np.testing.assert_array_equal(schedule.average, [1.0, 5.0])
    schedule.update(_window(rng, 0.0, [3.0, 7.0], noise=0.0))
    np.testing.assert_array_equal(schedule.average, [2.0, 6.0])


def test_noise_alone_is_seldom_taken_for_a_fall():
    rng = np.random.default_rng(0)
    kept = 0
    for _ in range(400):
        schedule = StageSchedule()
        for _ in range(2):
            schedule.update(_window(rng, 0.0, 0.0))
        kept += schedule.step_size == schedule.initial
    # Two standard errors on one side: 2.3 %, a little more as they are estimated from ten blocks.
    assert kept / 400 < 0.023 + 5.0 * np.sqrt(0.023 / 400)
