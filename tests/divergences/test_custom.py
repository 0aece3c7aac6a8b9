"""A divergence from its generator alone equals the built-in one, and what is refused."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from helpers import gradient_of, make_array, to_numpy

from bayesdiv._array import array_namespace, softplus
from bayesdiv.divergences import CustomDivergence, FDivergence, get_divergence

# f in u; all but the last leave out or add linear terms, which changes no divergence.
IN_U = {
    "reverse_kl": {"torch": lambda u: -torch.log(u), "jax": lambda u: -jnp.log(u)},
    "forward_kl": {"torch": lambda u: u * torch.log(u), "jax": lambda u: u * jnp.log(u)},
    "jensen_shannon": {
        "torch": lambda u: 0.5 * (u * torch.log(u) - (1 + u) * torch.log(0.5 * (1 + u))),
        "jax": lambda u: 0.5 * (u * jnp.log(u) - (1 + u) * jnp.log(0.5 * (1 + u))),
    },
    "pearson_chi2": {"torch": lambda u: u * u - 1.0, "jax": lambda u: u * u - 1.0},
    "neyman_chi2": {"torch": lambda u: 1.0 / u - 1.0, "jax": lambda u: 1.0 / u - 1.0},
    "squared_hellinger": {
        "torch": lambda u: 2.0 - 2.0 * torch.sqrt(u),
        "jax": lambda u: 2.0 - 2.0 * jnp.sqrt(u),
    },
}


def in_log_space(name):
    """f as a function of log u on either library."""

    def reverse_kl(x):
        return -x

    def jensen_shannon(x):
        u = array_namespace(x).exp(x)
        return 0.5 * (u * x - (1.0 + u) * (softplus(x) - math.log(2.0)))

    return {"reverse_kl": reverse_kl, "jensen_shannon": jensen_shannon}[name]


PARTS = ("generator", "derivative", "pseudo_reward", "path_weight", "log_path_weight")


def assert_equal_functions(backend, mine, name, dtype, tolerance):
    built_in = get_divergence(name)
    x = make_array(backend, np.linspace(-4.0, 4.0, 17), dtype)
    u = np.exp(np.linspace(-4.0, 4.0, 17))
    size = np.maximum(u, 1.0 / u) ** 2 if name.endswith("chi2") else np.maximum(u, 1.0 / u)
    for part in PARTS:
        found, expected = (to_numpy(getattr(member, part)(x)) for member in (mine, built_in))
        assert found.dtype == dtype
        assert np.all(np.abs(found - expected) <= tolerance * (1.0 + 4.0 * size)), part


@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-6), ("float64", 1e-14)])
@pytest.mark.parametrize("name", IN_U)
def test_generator_in_u_gives_the_built_in_divergence(backend, name, dtype, tolerance):
    mine = FDivergence.from_generator(IN_U[name][backend], name=f"my_{name}")
    assert_equal_functions(backend, mine, name, dtype, tolerance)


@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-6), ("float64", 1e-14)])
@pytest.mark.parametrize("name", ["reverse_kl", "jensen_shannon"])
def test_generator_in_log_space_gives_the_built_in_divergence(backend, name, dtype, tolerance):
    mine = FDivergence.from_generator(in_log_space(name), log_space=True)
    assert_equal_functions(backend, mine, name, dtype, tolerance)


@pytest.mark.parametrize("name", IN_U)
def test_gradient_of_the_value_is_the_built_in_one(backend, name):
    points = np.linspace(-3.0, 3.0, 13)
    slopes = [
        gradient_of(backend, lambda x, m=member: array_namespace(x).sum(m.generator(x)), points)[0]
        for member in (FDivergence.from_generator(IN_U[name][backend]), get_divergence(name))
    ]
    np.testing.assert_allclose(*slopes, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("name", IN_U)
def test_limits_are_found(name):
    built_in = get_divergence(name)
    for backend in ("torch", "jax"):
        mine = FDivergence.from_generator(IN_U[name][backend])
        for limit in ("value_at_zero", "slope_at_infinity", "second_derivative_at_one"):
            assert getattr(mine, limit) == pytest.approx(getattr(built_in, limit), rel=1e-6)


def test_one_function_of_operators_serves_every_library():
    mine = FDivergence.from_generator(lambda u: u * u - 1.0)
    for backend in ("torch", "jax"):
        assert float(mine.path_weight(make_array(backend, [0.0]))[0]) == pytest.approx(2.0)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_reward_of_a_far_particle_keeps_growing(dtype):
    """Log-weights of −1000 are ordinary at the start of a fit."""
    mine = FDivergence.from_generator(lambda u: -torch.log(u))
    far = torch.tensor([-5000.0, -60.0], dtype=getattr(torch, dtype), requires_grad=True)
    np.testing.assert_allclose(mine.pseudo_reward(far).detach(), [-5000.0, -60.0], rtol=1e-6)
    slope = torch.autograd.grad(mine.generator(far).sum(), far)[0]
    np.testing.assert_allclose(slope, [-1.0, -1.0], rtol=1e-6)
    np.testing.assert_allclose(mine.path_weight(far).detach(), [1.0, 1.0], rtol=1e-6)


def test_scalar_log_ratios_and_no_grad():
    mine = FDivergence.from_generator(lambda u: u * torch.log(u))
    with torch.no_grad():
        found = mine.path_weight(torch.tensor(0.5, dtype=torch.float64))
    assert found.shape == ()
    assert float(found) == pytest.approx(math.exp(0.5))


def test_compiles_once_and_may_be_built_while_traced():
    traces = []

    @jax.jit
    def weight(x):
        traces.append(1)
        return FDivergence.from_generator(lambda u: u * jnp.log(u)).path_weight(x)

    for shift in (0.0, 1.0):
        x = jnp.linspace(-1.0, 1.0, 5) + shift
        np.testing.assert_allclose(weight(x), np.exp(x), rtol=1e-12)
    assert len(traces) == 1


def test_value_at_one_has_to_vanish():
    with pytest.raises(
        ValueError, match=r"'mine' must have f\(1\) = 0, got f\(1\) = 0\.5; subtract"
    ):
        FDivergence.from_generator(lambda u: (u - 1.0) ** 2 + 0.5, name="mine")


def test_concave_generator_is_told_where():
    def bent(u):
        return np.where(u < 2.0, (u - 1.0) ** 2, 1.0 + 2.0 * np.sqrt(np.abs(u - 2.0)))

    with pytest.raises(
        ValueError, match=r"'bent' must be convex.*between u = (\S+) and u = (\S+) "
    ) as caught:
        FDivergence.from_generator(bent, name="bent")
    words = str(caught.value).split("u = ")
    low, high = float(words[1].split()[0]), float(words[2].split()[0])
    assert 1.9 < low < high < 2.4


def test_generator_that_is_not_a_number_is_told_where():
    with pytest.raises(ValueError, match=r"must be finite for u > 0, got f\(0\.0003355\) = nan"):
        FDivergence.from_generator(lambda u: np.sqrt(u - 0.5) - np.sqrt(0.5))


def test_generator_has_to_be_an_elementwise_function():
    with pytest.raises(TypeError, match="generator must be a function of u, got 3.0"):
        FDivergence.from_generator(3.0)
    with pytest.raises(ValueError, match="must act elementwise: it turned shape"):
        FDivergence.from_generator(lambda u: ((u - 1.0) ** 2).sum())
    with pytest.raises(TypeError, match="accepts neither NumPy, torch nor JAX arrays"):
        FDivergence.from_generator(lambda u: u.no_such_method())


def test_check_can_be_left_out():
    unchecked = FDivergence.from_generator(lambda u: (u - 1.0) ** 2 + 0.5, check=False)
    assert isinstance(unchecked, CustomDivergence)
    # The constant shifts the value and no weight.
    x = torch.tensor([0.3], dtype=torch.float64)
    expected = get_divergence("pearson_chi2").path_weight(x)
    torch.testing.assert_close(unchecked.path_weight(x), expected)


def test_kinked_generator_still_has_a_score():
    """Total variation from its generator: the reward is right on either side of the kink."""
    mine = FDivergence.from_generator(lambda u: 0.5 * abs(u - 1.0))
    x = torch.tensor([-2.0, 2.0], dtype=torch.float64)
    torch.testing.assert_close(
        mine.pseudo_reward(x), torch.tensor([-0.5, 0.5], dtype=torch.float64)
    )
