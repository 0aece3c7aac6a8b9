"""Random draws behind one ``rng`` argument: torch generators and seeds, JAX keys."""

import threading
from typing import Any

from bayesdiv._array import Array, array_namespace, is_torch_array


def _torch_generator(rng: Any, like: Array) -> Any:
    import torch

    if rng is None or isinstance(rng, torch.Generator):
        return rng
    if isinstance(rng, int) and not isinstance(rng, bool):
        return torch.Generator(device=like.device).manual_seed(rng)
    raise TypeError(
        "rng must be a torch.Generator, an integer seed or None for torch samples, "
        f"got {type(rng).__name__}; pass for example rng=0."
    )


_MOMENTARY = threading.local()


def _momentary_generator(rng: Any, like: Array) -> Any:
    """A generator for one draw; for seeds always the same one, cheaper than another."""
    if type(rng) is not int:
        return _torch_generator(rng, like)
    known = _MOMENTARY.__dict__
    generator = known.get(like.device)
    if generator is None:
        generator = known[like.device] = _torch_generator(rng, like)
    return generator.manual_seed(rng)


def _check_jax_key(rng: Any) -> None:
    import jax

    if rng is None:
        raise ValueError(
            "rng must be a JAX key for JAX samples, got None; pass for example "
            "rng=jax.random.key(0), split anew for every call."
        )
    is_typed_key = isinstance(rng, jax.Array) and jax.numpy.issubdtype(
        rng.dtype, jax.dtypes.prng_key
    )
    is_raw_key = getattr(rng, "dtype", None) == "uint32" and getattr(rng, "ndim", 0) == 1
    if not (is_typed_key or is_raw_key):
        raise TypeError(
            f"rng must be a JAX key for JAX samples, got {type(rng).__name__}; "
            "pass for example rng=jax.random.key(0)."
        )


def split_rng(rng: Any, like: Array, count: int) -> list[Any]:
    """``count`` sources of independent draws; in torch, one generator ``count`` times over."""
    if is_torch_array(like):
        return [_torch_generator(rng, like)] * count
    _check_jax_key(rng)
    import jax

    return list(jax.random.split(rng, count))


def standard_normal(rng: Any, shape: tuple[int, ...], like: Array) -> Array:
    """N(0, 1) draws of the library, dtype and device of ``like``."""
    if is_torch_array(like):
        import torch

        generator = _momentary_generator(rng, like)
        return torch.randn(shape, generator=generator, dtype=like.dtype, device=like.device)
    _check_jax_key(rng)
    import jax

    return jax.random.normal(rng, shape, dtype=like.dtype)


def standard_uniform(rng: Any, shape: tuple[int, ...], like: Array) -> Array:
    """Draws from [0, 1) of the library, dtype and device of ``like``."""
    if is_torch_array(like):
        import torch

        generator = _momentary_generator(rng, like)
        return torch.rand(shape, generator=generator, dtype=like.dtype, device=like.device)
    _check_jax_key(rng)
    import jax

    return jax.random.uniform(rng, shape, dtype=like.dtype)


def unit_directions(rng: Any, count: int, dim: int, like: Array) -> Array:
    """Uniform draws from the unit sphere, shape ``(count, dim)``."""
    draws = standard_normal(rng, (count, dim), like)
    xp = array_namespace(like)
    return draws / xp.sqrt(xp.sum(draws * draws, axis=1, keepdims=True))


def next_rng(rng: Any, like: Array, count: int) -> tuple[Any, ...]:
    """The ``rng`` to keep and ``count`` to use now: JAX keys, or integers for torch.

    A sampler's state holds the first, so that going on from a state gives the same numbers. Torch
    integers are mixed by the finaliser of SplitMix64 (Steele, Lea and Flood 2014, figure 16).
    """
    if is_torch_array(like):
        if type(rng) is not int:
            raise TypeError(
                f"rng must be an integer seed for torch samplers, got {type(rng).__name__}; "
                "pass for example rng=0."
            )
        kept = _mixed(rng)
        return (kept, *[kept ^ (number * _STRIDE & _SEEDS) for number in range(1, count + 1)])
    _check_jax_key(rng)
    import jax

    return tuple(jax.random.split(rng, count + 1))


_ALL_BITS, _SEEDS = 2**64 - 1, 2**63 - 1
# Odd, with ones and zeros mixed in every byte, so that streams differ in many bits of their seeds.
_STRIDE = 0x2545F4914F6CDD1D


def _mixed(seed: int) -> int:
    word = (seed * 0x9E3779B97F4A7C15 + 0x9E3779B97F4A7C15) & _ALL_BITS
    word = ((word ^ (word >> 30)) * 0xBF58476D1CE4E5B9) & _ALL_BITS
    word = ((word ^ (word >> 27)) * 0x94D049BB133111EB) & _ALL_BITS
    return (word ^ (word >> 31)) >> 1
