"""Estimates of log Z: the step's own, running, given."""

import math

import jax
import numpy as np
import pytest
import torch
from helpers import make_array, to_numpy

from bayesdiv.objectives import (
    GivenNormalizer,
    RunningNormalizer,
    RunningNormalizerState,
    SelfNormalizer,
    estimate,
)
from bayesdiv.objectives._normalizer import get_normalizer

STEPS = np.random.default_rng(0).normal(-2.0, 3.0, size=(6, 4, 3))


def brute_log_mean(weights, axis):
    return np.log(np.exp(weights).mean(axis))


def test_self_normalizer_acts_on_each_plate(backend):
    found, state = SelfNormalizer()(None, make_array(backend, STEPS[0]))
    np.testing.assert_allclose(to_numpy(found), brute_log_mean(STEPS[0], 0), rtol=1e-13)
    assert state is None


def test_estimate_without_a_normalizer_normalizes_itself(backend):
    log_weight = make_array(backend, STEPS[0])
    given, _ = SelfNormalizer()(None, log_weight)
    alone = estimate("forward_kl", log_weight)
    told = estimate("forward_kl", log_weight, log_normalizer=given)
    assert float(to_numpy(alone.value)) == float(to_numpy(told.value))


def test_running_normalizer_is_the_mean_of_every_weight_so_far(backend):
    normalizer = RunningNormalizer()
    state = normalizer.init()
    for step in range(len(STEPS)):
        found, state = normalizer(state, make_array(backend, STEPS[step]))
        np.testing.assert_allclose(
            to_numpy(found), brute_log_mean(STEPS[: step + 1], (0, 1)), rtol=1e-12
        )
    assert state.count == len(STEPS)


def test_decay_weights_recent_steps_without_a_biased_start(backend):
    normalizer = RunningNormalizer(decay=0.8)
    state = normalizer.init()
    for step in range(len(STEPS)):
        found, state = normalizer(state, make_array(backend, STEPS[step]))
        age = 0.8 ** np.arange(step, -1, -1.0)
        means = np.exp(STEPS[: step + 1]).mean(1)
        expected = np.log(np.average(means, axis=0, weights=age))
        np.testing.assert_allclose(to_numpy(found), expected, rtol=1e-12)


def test_running_normalizer_survives_weights_far_outside_the_range_of_exp(backend):
    normalizer = RunningNormalizer()
    _, state = normalizer(normalizer.init(), make_array(backend, [[-5000.0], [-5000.0]]))
    found, _ = normalizer(state, make_array(backend, [[-5000.0], [-5000.0]]))
    assert to_numpy(found)[0] == pytest.approx(-5000.0, rel=1e-14)


def test_a_step_without_any_mass_is_averaged_in(backend):
    normalizer = RunningNormalizer()
    _, state = normalizer(normalizer.init(), make_array(backend, [-math.inf, -math.inf]))
    found, _ = normalizer(state, make_array(backend, [1.0, 1.0]))
    assert float(to_numpy(found)) == pytest.approx(1.0 - math.log(2.0), rel=1e-14)


@pytest.mark.parametrize("decay", [None, 0.8])
def test_running_normalizer_runs_in_a_scan(decay):
    normalizer = RunningNormalizer(decay=decay)
    start = RunningNormalizerState(jax.numpy.full(3, -math.inf), jax.numpy.zeros(()))

    def advance(state, log_weight):
        log_z, state = normalizer(state, log_weight)
        return state, log_z

    _, found = jax.jit(lambda steps: jax.lax.scan(advance, start, steps))(jax.numpy.asarray(STEPS))
    state = normalizer.init()
    for step in range(len(STEPS)):
        expected, state = normalizer(state, jax.numpy.asarray(STEPS[step]))
        np.testing.assert_allclose(found[step], expected, rtol=1e-12)


def test_given_normalizer_takes_what_the_user_has(backend):
    log_weight = make_array(backend, STEPS[0], "float32")
    number, _ = GivenNormalizer(0.5)(None, log_weight)
    assert number == 0.5
    array, _ = GivenNormalizer(np.array([0.5, 1.0, 2.0]))(None, log_weight)
    assert array.dtype == log_weight.dtype
    assert type(array) is type(log_weight)
    np.testing.assert_array_equal(to_numpy(array), [0.5, 1.0, 2.0])


def test_no_normalizer_carries_a_gradient():
    log_weight = torch.tensor([0.1, 0.4], dtype=torch.float64, requires_grad=True)
    log_z = torch.tensor([0.3], dtype=torch.float64, requires_grad=True)
    for normalizer in (SelfNormalizer(), RunningNormalizer(), GivenNormalizer(log_z)):
        state = normalizer.init() if normalizer.is_stateful else None
        found, _ = normalizer(state, log_weight)
        assert not found.requires_grad


def test_names_numbers_and_objects_are_normalizers():
    assert get_normalizer("self") == SelfNormalizer()
    assert get_normalizer("running") == RunningNormalizer()
    assert get_normalizer(1.5) == GivenNormalizer(1.5)
    mine = RunningNormalizer(decay=0.9)
    assert get_normalizer(mine) is mine
    array = torch.zeros(3)
    assert get_normalizer(array).log_normalizer is array


@pytest.mark.parametrize(
    ("normalizer", "error", "message"),
    [
        ("mean", ValueError, "normalizer must be 'self', 'running' or a known log Z, got 'mean'"),
        (math.nan, ValueError, "normalizer must be finite, got nan"),
        (None, TypeError, "normalizer must be a number, got None of type NoneType"),
        (True, TypeError, "normalizer must be a number, got True of type bool"),
    ],
)
def test_other_normalizers_are_refused(normalizer, error, message):
    with pytest.raises(error, match=message):
        get_normalizer(normalizer)


@pytest.mark.parametrize("decay", [0.0, 1.0, -0.5, 2.0])
def test_decay_must_lie_between_zero_and_one(decay):
    with pytest.raises(ValueError, match=rf"decay must be in \(0, 1\) .* got {decay}"):
        RunningNormalizer(decay=decay)
