"""One step in full: against NumPy with the same noise, single chains, resuming, no history."""

import pickle

import jax
import numpy as np
import pytest
import torch
from helpers import make_array, to_numpy
from sampler_chains import advance, quadratic, seed_of, started

from bayesdiv.inference import sghmc, sgld
from bayesdiv.inference.sghmc import SGHMCDynamics
from bayesdiv.inference.sgld import SGLDDynamics

DYNAMICS = {
    "sghmc": SGHMCDynamics(0.1, num_burn_in=5),
    "sghmc, no burn-in": SGHMCDynamics(0.1, subtract_gradient_noise=False),
    "sgld": SGLDDynamics(0.1, num_burn_in=5),
}


@pytest.fixture(params=DYNAMICS)
def dynamics(request):
    return DYNAMICS[request.param]


def by_hand(fields, gradient, noise, dynamics, *, warm):
    """One SGHMC step in NumPy, as the dossier's recursion has it."""
    w, v, tau, g, squares = fields
    if warm:
        rate = 1.0 / (tau + 1.0)
        tau, g, squares = (
            tau + 1.0 - tau * g**2 / squares,
            g + rate * (gradient - g),
            squares + rate * (gradient**2 - squares),
        )
    step, friction = dynamics.step_size, dynamics.friction
    mass = 1.0 / np.sqrt(squares)
    free = 2.0 * step**2 * friction * mass - step**4 * dynamics.subtract_gradient_noise
    v = v - step**2 * mass * gradient - friction * v + np.sqrt(np.maximum(free, 1e-16)) * noise
    temperature = (1.0 - friction / 2.0) * (v**2 / mass).mean(-1) / step**2
    return (w + v, v, tau, g, squares), temperature, (free <= 1e-16).mean(-1)


@pytest.mark.parametrize("warm", [True, False])
@pytest.mark.parametrize("subtract", [True, False])
def test_a_step_of_sghmc_is_the_recursion(backend, monkeypatch, warm, subtract):
    rng = np.random.default_rng(0)
    fields = [*rng.normal(size=(2, 3, 4)), rng.uniform(1.0, 9.0, (3, 4)), rng.normal(size=(3, 4))]
    # √V on either side of 2 α / ε² = 4, above which the noise is clamped.
    fields.append(rng.uniform(0.2, 60.0, (3, 4)))
    gradient, noise = rng.normal(size=(2, 3, 4))
    dynamics = SGHMCDynamics(0.5, 0.5, num_burn_in=4, subtract_gradient_noise=subtract)
    monkeypatch.setattr(sghmc, "standard_normal", lambda *_: make_array(backend, noise))
    state = started(backend, dynamics, fields[0])
    count = 3 if warm else 4
    state = state._replace(
        **{
            name: make_array(backend, field)
            for name, field in zip(sghmc.SGHMCState._fields, fields, strict=False)
        },
        step=count if backend == "torch" else jax.numpy.asarray(count, dtype="int32"),
    )
    arrays = make_array(backend, np.array([1.0, 2.0, 3.0])), make_array(backend, gradient)
    found, info = dynamics.step(state, lambda position, rng: arrays)
    wanted, temperature, clamped = by_hand(fields, gradient, noise, dynamics, warm=warm)
    for name, value in zip(sghmc.SGHMCState._fields, wanted, strict=False):
        np.testing.assert_allclose(to_numpy(getattr(found, name)), value, rtol=1e-12, err_msg=name)
    np.testing.assert_allclose(to_numpy(info.kinetic_temperature), temperature, rtol=1e-12)
    np.testing.assert_allclose(to_numpy(info.gradient_norm), np.linalg.norm(gradient, axis=-1))
    np.testing.assert_array_equal(to_numpy(info.potential), [1.0, 2.0, 3.0])
    np.testing.assert_allclose(to_numpy(info.clamped_fraction), clamped)
    assert 0.0 < clamped.max() or not subtract
    assert int(found.step) == count + 1


def test_a_step_of_sgld_is_the_recursion(backend, monkeypatch):
    rng = np.random.default_rng(1)
    w, gradient, noise = rng.normal(size=(3, 3, 4))
    squares = rng.uniform(0.2, 60.0, (3, 4))
    dynamics = SGLDDynamics(0.5)
    monkeypatch.setattr(sgld, "standard_normal", lambda *_: make_array(backend, noise))
    state = started(backend, dynamics, w)._replace(second_moment=make_array(backend, squares))
    arrays = make_array(backend, np.zeros(3)), make_array(backend, gradient)
    found, _ = dynamics.step(state, lambda position, rng: arrays)
    mobility = 0.25 / np.sqrt(squares)
    wanted = w - mobility * gradient + np.sqrt(2.0 * mobility) * noise
    np.testing.assert_allclose(to_numpy(found.position), wanted, rtol=1e-12)


@pytest.mark.parametrize("taken", [3, 8])
def test_a_pickled_state_goes_on_to_the_same_numbers(backend, dynamics, taken):
    target = quadratic(backend, np.array([1.0, 4.0]), gradient_noise=1.0)
    state = started(backend, dynamics, np.ones((3, 2)))
    whole = advance(dynamics, state, target, steps=taken + 10)
    half = advance(dynamics, state, target, steps=taken).state
    rest = advance(dynamics, pickle.loads(pickle.dumps(half)), target, steps=10)
    np.testing.assert_array_equal(rest.draws, whole.draws[taken:])
    for name in rest.info:
        np.testing.assert_array_equal(rest.info[name], whole.info[name][taken:])


def test_other_settings_take_effect_on_a_running_state(backend):
    """A state holds no constants of the settings that made it."""
    first = SGHMCDynamics(0.1, num_burn_in=2, subtract_gradient_noise=False)
    second = SGHMCDynamics(0.4, 0.2, num_burn_in=2, subtract_gradient_noise=False)
    target = quadratic(backend, np.array([1.0, 4.0]))
    state = advance(first, started(backend, first, np.ones((2, 2))), target, steps=4).state
    fresh = second.init(state.position, state.rng)._replace(
        **{name: getattr(state, name) for name in sghmc.SGHMCState._fields[1:6]}
    )
    np.testing.assert_array_equal(
        advance(second, state, target, steps=3).draws, advance(second, fresh, target, steps=3).draws
    )


def test_equal_seeds_repeat_and_others_do_not(backend, dynamics):
    target = quadratic(backend, np.ones(2))
    first, again, other = (
        advance(dynamics, started(backend, dynamics, np.ones(2), seed), target, steps=3).draws
        for seed in (1, 1, 2)
    )
    np.testing.assert_array_equal(first, again)
    assert (np.abs(first - other) > 1e-6).all()


def test_one_chain_needs_no_chain_axis(backend, dynamics):
    state = started(backend, dynamics, np.ones(3))
    state, info = dynamics.step(state, quadratic(backend, np.ones(3)))
    assert state.position.shape == (3,)
    assert all(getattr(info, name).shape == () for name in info._fields)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_dtype_is_kept(backend, dynamics, dtype):
    state = dynamics.init(make_array(backend, np.ones((2, 3)), dtype), seed_of(backend, 0))
    for _ in range(7):
        state, info = dynamics.step(state, lambda position, rng: (position.sum(-1), position))
    arrays = [value for value in (*state, *info) if hasattr(value, "dtype") and value.ndim == 2]
    assert arrays
    assert {str(value.dtype).removeprefix("torch.") for value in arrays} == {dtype}


def test_a_step_leaves_its_state_alone(backend, dynamics):
    target = quadratic(backend, np.ones(2), gradient_noise=1.0)
    state = started(backend, dynamics, np.ones((3, 2)))
    for _ in range(7):
        before = [to_numpy(value).copy() for value in state[:-2]]
        following, _ = dynamics.step(state, target)
        for value, kept in zip(state[:-2], before, strict=True):
            np.testing.assert_array_equal(to_numpy(value), kept)
        state = following


def test_torch_states_carry_no_history():
    dynamics = SGHMCDynamics(0.1, num_burn_in=5)

    def target(position, rng):
        position = position.detach().requires_grad_()
        potential = (position**2).sum(-1)
        return potential, torch.autograd.grad(potential.sum(), position, create_graph=True)[0]

    state = dynamics.init(torch.ones(2, 3, requires_grad=True), rng=0)
    for _ in range(7):
        state, info = dynamics.step(state, target)
    tensors = [value for value in (*state, *info) if isinstance(value, torch.Tensor)]
    assert not any(tensor.requires_grad for tensor in tensors)


def test_jax_steps_compile_with_a_traced_step_size():
    target = quadratic("jax", np.ones(2))

    @jax.jit
    def moved(step_size):
        dynamics = SGHMCDynamics(step_size, num_burn_in=5)
        state = dynamics.init(jax.numpy.ones((3, 2)), jax.random.key(0))
        return dynamics.step(state, target)[0].position

    wanted = SGHMCDynamics(0.3, num_burn_in=5)
    state = wanted.init(jax.numpy.ones((3, 2)), jax.random.key(0))
    np.testing.assert_allclose(moved(0.3), wanted.step(state, target)[0].position, rtol=1e-12)


@pytest.mark.slow
def test_jax_chains_may_be_mapped():
    dynamics = SGHMCDynamics(0.1, num_burn_in=2)
    target = quadratic("jax", np.ones(2), gradient_noise=1.0)
    keys = jax.random.split(jax.random.key(0), 3)
    starts = jax.numpy.ones((3, 2))

    def last(start, key):
        state = dynamics.init(start, key)
        for _ in range(4):
            state, _ = dynamics.step(state, target)
        return state.position

    mapped = jax.vmap(last)(starts, keys)
    one_by_one = jax.numpy.stack([last(*pair) for pair in zip(starts, keys, strict=True)])
    np.testing.assert_allclose(mapped, one_by_one, rtol=1e-12)
