"""What the samplers refuse, and the sentence they say."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from helpers import make_array
from sampler_chains import quadratic, seed_of, started

from bayesdiv.inference.sghmc import SGHMCDynamics
from bayesdiv.inference.sgld import SGLDDynamics

BOTH = pytest.mark.parametrize("kind", [SGHMCDynamics, SGLDDynamics])


def one_step(dynamics, position, rng):
    return dynamics.step(dynamics.init(position, rng), lambda w, rng: (w.sum(-1), w))


@BOTH
@pytest.mark.parametrize("step_size", [0.0, -0.1, float("inf"), float("nan")])
def test_step_size_must_be_positive(kind, step_size):
    with pytest.raises(ValueError, match=r"step_size must be positive and finite, got "):
        kind(step_size)


@BOTH
@pytest.mark.parametrize("count", [-1, 2.5, True, None])
def test_burn_in_must_be_a_whole_number(kind, count):
    with pytest.raises(ValueError, match="num_burn_in must be a whole number of steps, 0 or more"):
        kind(0.1, num_burn_in=count)


@pytest.mark.parametrize("friction", [0.0, -1.0, 1.5, float("nan")])
def test_friction_must_be_a_fraction(friction):
    with pytest.raises(ValueError, match=r"friction must be in \(0, 1\], got "):
        SGHMCDynamics(0.1, friction)


@pytest.mark.parametrize("memory", [0.0, 1.5])
def test_memory_must_be_a_fraction(memory):
    with pytest.raises(ValueError, match=r"memory must be in \(0, 1\], got "):
        SGLDDynamics(0.1, memory=memory)


@BOTH
def test_settings_that_are_not_numbers(kind):
    with pytest.raises(TypeError, match="step_size must be a number, got str 'big'"):
        kind("big")


@BOTH
def test_position_must_be_an_array(kind):
    with pytest.raises(TypeError, match="position must be a torch tensor or a JAX array, got list"):
        kind(0.1).init([0.0, 1.0], rng=0)
    with pytest.raises(TypeError, match="got ndarray"):
        kind(0.1).init(np.zeros(3), rng=0)


@BOTH
@pytest.mark.parametrize("shape", [(), (0,), (2, 0), (2, 3, 4)])
def test_position_must_be_rows(backend, kind, shape):
    with pytest.raises(ValueError, match=r"\(dim,\) or \(num_chains, dim\).*flatten"):
        kind(0.1).init(make_array(backend, np.zeros(shape)), seed_of(backend, 0))


@BOTH
def test_position_must_be_floating(backend, kind):
    with pytest.raises(ValueError, match="position must have a floating dtype, got .*int64"):
        kind(0.1).init(make_array(backend, [1, 2], "int64"), seed_of(backend, 0))


@BOTH
@pytest.mark.parametrize("rng", [None, 1.5, True, torch.Generator()])
def test_torch_wants_an_integer_seed(kind, rng):
    with pytest.raises(TypeError, match="rng must be an integer seed for torch samplers, got"):
        one_step(kind(0.1), torch.zeros(2), rng)


@BOTH
def test_jax_wants_a_key(kind):
    with pytest.raises(ValueError, match="rng must be a JAX key for JAX samples, got None"):
        one_step(kind(0.1), jnp.zeros(2), None)
    with pytest.raises(TypeError, match="rng must be a JAX key for JAX samples, got int"):
        one_step(kind(0.1), jnp.zeros(2), 0)


@BOTH
def test_gradient_must_have_the_shape_of_the_position(backend, kind):
    dynamics = kind(0.1)
    state = started(backend, dynamics, np.zeros((3, 2)))
    row = make_array(backend, np.zeros(2))
    with pytest.raises(ValueError, match=r"gradient.*shape of the position, \(3, 2\), got \(2,\)"):
        dynamics.step(state, lambda position, rng: (position.sum(-1), row))


@BOTH
def test_potential_must_have_one_entry_a_chain(backend, kind):
    dynamics = kind(0.1)
    state = started(backend, dynamics, np.zeros((3, 2)))
    with pytest.raises(ValueError, match=r"one potential a chain, shape \(3,\), got \(\)"):
        dynamics.step(state, lambda position, rng: (position.sum(), position))


@BOTH
def test_torch_and_jax_numbers_agree_on_what_is_refused(kind):
    """A traced step size is not looked at; its value is the caller's affair."""
    moved = jax.jit(lambda step: kind(step).init(jnp.zeros(2), jax.random.key(0)).position)
    assert moved(-1.0).shape == (2,)


@BOTH
def test_settings_compare_and_hash(kind):
    assert kind(0.1) == kind(0.1)
    assert hash(kind(0.1)) == hash(kind(0.1))
    assert kind(0.1) != kind(0.2)
    state = started("torch", kind(0.1), np.zeros(2))
    kind(0.1).step(state, quadratic("torch", np.ones(2)))
    assert kind(0.1) == kind(0.1)
