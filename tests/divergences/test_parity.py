"""Torch and JAX give the same numbers: to 1e-6 in single precision, 1e-12 in double."""

import numpy as np
import pytest
from divergence_cases import CASES
from helpers import gradient_of, make_array, to_numpy

from bayesdiv._array import array_namespace
from bayesdiv.divergences import CustomDivergence

TOLERANCE = {"float32": 1e-6, "float64": 1e-12}
every = pytest.mark.parametrize("member", CASES.values(), ids=CASES.keys())
precise = pytest.mark.parametrize("dtype", TOLERANCE)
POINTS = np.concatenate([np.linspace(-3.0, 3.0, 25), [-np.inf, np.inf]])


def assert_close(found, expected, dtype, size=1.0):
    """Equal to the tolerance relative to the terms that were added, ``size``."""
    assert found.dtype == expected.dtype == dtype
    infinite = np.isinf(expected)
    assert np.array_equal(np.where(infinite, expected, 0.0), np.where(np.isinf(found), found, 0.0))
    gap = np.abs(np.where(infinite, 0.0, found) - np.where(infinite, 0.0, expected))
    scale = np.maximum(np.maximum(np.where(infinite, 0.0, np.abs(expected)), size), 1.0)
    assert np.max(gap / scale) <= TOLERANCE[dtype]


@precise
@every
def test_functions_of_the_log_ratio(member, dtype):
    names = ["generator", "derivative", "pseudo_reward"]
    if member.has_path_gradient:
        names += ["path_weight", "log_path_weight"]
    # At infinity a user's own terms cancel up to rounding, in which libraries differ.
    points = POINTS[np.isfinite(POINTS)] if isinstance(member, CustomDivergence) else POINTS
    u = np.exp(np.clip(points, -3.0, 3.0))
    # u and 1/u are terms of most members, even where these are small.
    size = np.maximum(u, 1.0 / u)
    for name in names:
        torch_values, jax_values = (
            to_numpy(getattr(member, name)(make_array(backend, points, dtype)))
            for backend in ("torch", "jax")
        )
        assert_close(torch_values, jax_values, dtype, size)


@precise
@every
def test_conjugates(member, dtype):
    t = np.linspace(-1.5, 0.75, 19)
    torch_values, jax_values = (
        to_numpy(member.conjugate(make_array(backend, t, dtype))) for backend in ("torch", "jax")
    )
    # Without a closed form the root is as exact as the derivative that is inverted.
    assert_close(torch_values, jax_values, dtype, 10.0)


@precise
@every
def test_closed_form_between_categoricals_and_its_gradients(member, dtype):
    generator = np.random.default_rng(1)
    p, q = generator.normal(size=(2, 5, 7))
    torch_values, jax_values = (
        to_numpy(
            member.between_logits(make_array(backend, p, dtype), make_array(backend, q, dtype))
        )
        for backend in ("torch", "jax")
    )
    assert_close(torch_values, jax_values, dtype, 10.0)

    def total(first, second):
        xp = array_namespace(first)
        return xp.sum(member.between_logits(first, second))

    for found, expected in zip(
        gradient_of("torch", total, p, q, dtype=dtype),
        gradient_of("jax", total, p, q, dtype=dtype),
        strict=True,
    ):
        assert_close(found, expected, dtype, 100.0)
