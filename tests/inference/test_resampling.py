"""Resampling: exact counts, no ancestor of weight zero, right in float32 at many particles."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import assert_within_standard_errors
from particle_models import keys

from bayesdiv.inference.resampling import (
    _prefix_sums,
    get_resampling,
    multinomial,
    residual,
    stratified,
    systematic,
)

SCHEMES = {
    "systematic": systematic,
    "stratified": stratified,
    "residual": residual,
    "multinomial": multinomial,
}


@pytest.fixture(params=SCHEMES.values(), ids=SCHEMES.keys())
def scheme(request):
    return request.param


@pytest.fixture(params=["float32", "float64"])
def dtype(request):
    return request.param


def single_precision():
    return jax.enable_x64(False)  # noqa: FBT003 - JAX takes it by position only


def counts(ancestors, count):
    return np.bincount(np.asarray(ancestors), minlength=count)


def resampled(scheme, weights, draws, seed=0):
    """``(draws, num_particles)`` ancestors."""
    return np.asarray(compiled(scheme)(keys(draws, seed), weights))


@functools.cache
def compiled(scheme):
    return jax.jit(jax.vmap(scheme, in_axes=(0, None)))


def skewed_weights(count, dtype, seed=0):
    """Over thirty orders of magnitude, 90 per cent of them zero."""
    rng = np.random.default_rng(seed)
    weights = np.exp(8.0 * rng.normal(size=count))
    weights[rng.random(count) < 0.9] = 0.0
    return jnp.asarray(weights, dtype)


def test_expected_offspring_are_proportional_to_weights(scheme, dtype):
    rng = np.random.default_rng(3)
    weights = jnp.asarray(rng.gamma(1.5, size=17), dtype)
    offspring = np.stack([counts(row, 17) for row in resampled(scheme, weights, 8000)])
    wanted = np.asarray(weights, np.float64)
    assert_within_standard_errors(offspring, 17 * wanted / wanted.sum())
    assert (offspring.sum(1) == 17).all()


def test_dither_leaves_tiny_weights_their_chance():
    # An offspring owns 2¹⁴ units here, so that each of the odd particles has a quarter of a unit.
    # Stratified, because the teeth of one comb would meet all of these particles or none.
    count, ratio = 2**16, 2.0**-17
    weights = jnp.where(jnp.arange(count) % 2 == 0, 1.0, ratio).astype(jnp.float32)
    number_of_odd = jax.jit(jax.vmap(lambda key: jnp.sum(stratified(key, weights) % 2)))(keys(200))
    assert_within_standard_errors(np.asarray(number_of_odd, float), count * ratio / (1.0 + ratio))


@pytest.mark.parametrize("count", [1, 3, 4097])
def test_systematic_offspring_are_the_two_nearest_integers(count, dtype):
    weights = jnp.asarray(np.random.default_rng(count).gamma(0.5, size=count), dtype)
    exact = np.asarray(weights, np.float64)
    exact = count * exact / exact.sum()
    for ancestors in resampled(systematic, weights, 20):
        assert (np.diff(ancestors) >= 0).all()
        # Rounding moves a boundary by 2⁻¹⁷ of an offspring at most here, never by a whole one.
        offspring = counts(ancestors, count)
        assert (offspring >= np.floor(exact - 1e-4)).all()
        assert (offspring <= np.ceil(exact + 1e-4)).all()


@pytest.mark.parametrize("count", [1000, 100_000])
def test_systematic_matches_a_reference_search_in_float64(count):
    weights = np.random.default_rng(1).gamma(0.2, size=count)
    cumulative = np.cumsum(weights) / weights.sum()
    ancestors = resampled(systematic, jnp.asarray(weights), 1)[0]
    # One offset explains all: the reference, given it, differs at most where a tooth hits a step.
    low = np.max(np.r_[0.0, cumulative][ancestors] * count - np.arange(count))
    high = np.min(cumulative[ancestors] * count - np.arange(count))
    assert low <= high + 1e-4
    teeth = (np.arange(count) + np.clip(0.5 * (low + high), 0.0, 1.0)) / count
    reference = np.searchsorted(cumulative, teeth, side="right")
    assert np.mean(reference != ancestors) < 1e-4


def test_all_offspring_of_the_only_weight(scheme, dtype):
    for index in (0, 7, 99):
        weights = jnp.asarray(1e-30 * (np.arange(100) == index), dtype)
        assert (resampled(scheme, weights, 2) == index).all()


def test_no_ancestor_has_weight_zero(scheme, dtype):
    count = 100_000
    weights = skewed_weights(count, dtype)
    draw = jax.jit(lambda key: jnp.min(weights[scheme(key, weights)]))
    smallest = [float(draw(key)) for key in keys(100 if scheme is systematic else 10)]
    assert min(smallest) > 0.0


def test_plain_float32_prefix_sums_pick_what_this_does_not():
    """The trap itself: the textbook algorithm fails on weights on which `systematic` is right."""
    count = 2**18
    rng = np.random.default_rng(0)
    weights = rng.random(count).astype(np.float32)
    weights[rng.random(count) < 0.9] = 0.0
    weights = jnp.asarray(weights)

    @jax.jit
    def textbook(key):
        cumulative = jnp.cumsum(weights)
        ends = jnp.ceil(cumulative * (count / cumulative[-1]) - jax.random.uniform(key))
        ends = ends.astype(jnp.int32)
        places = jnp.zeros((count,), jnp.int32).at[ends].add(1, mode="drop")
        return jnp.sum(weights[jnp.minimum(jnp.cumsum(places), count - 1)] == 0.0)

    ours = jax.jit(lambda key: jnp.sum(weights[systematic(key, weights)] == 0.0))
    draws = keys(20)
    with single_precision():
        assert sum(int(textbook(key)) for key in draws) > 0
        assert sum(int(ours(key)) for key in draws) == 0


def test_equal_weights_keep_every_particle(dtype):
    for count in (5, 1000):
        weights = jnp.full((count,), 1.0 / count, dtype)
        assert np.array_equal(resampled(systematic, weights, 1)[0], np.arange(count))


def test_residual_gives_the_certain_offspring(dtype):
    weights = jnp.asarray(np.random.default_rng(4).gamma(0.5, size=200), dtype)
    exact = np.asarray(weights, np.float64)
    exact = 200 * exact / exact.sum()
    for ancestors in resampled(residual, weights, 20):
        assert (counts(ancestors, 200) >= np.floor(exact - 1e-3)).all()


def test_variances_are_ordered():
    """Of a mean after resampling: systematic and stratified below residual below multinomial."""
    rng = np.random.default_rng(5)
    points = np.sort(rng.normal(size=200))
    weights = jnp.asarray(rng.gamma(2.0, size=200))

    def spread(chosen):
        return points[resampled(chosen, weights, 2000)].mean(1).var()

    variances = [spread(chosen) for chosen in (systematic, stratified, residual, multinomial)]
    assert max(variances[:2]) < 0.5 * variances[2]
    assert variances[2] < 0.8 * variances[3]


def test_multinomial_draws_as_many_as_asked():
    draws = multinomial(jax.random.key(0), jnp.asarray([0.0, 1.0, 0.0]), num_draws=7)
    assert draws.tolist() == [1] * 7


def test_weights_that_are_not_numbers_stay_in_range(scheme):
    for value in (jnp.nan, jnp.inf, 0.0):
        ancestors = resampled(scheme, jnp.full((50,), value, jnp.float32), 1)
        assert ((ancestors >= 0) & (ancestors < 50)).all()


def test_bad_weights_are_named():
    key = jax.random.key(0)
    with pytest.raises(ValueError, match=r"weights must be a JAX array of shape \(num_particles,"):
        systematic(key, jnp.ones((3, 2)))
    with pytest.raises(ValueError, match="weights must be a JAX array"):
        stratified(key, np.ones(3))
    with pytest.raises(ValueError, match="floating dtype, got int"):
        residual(key, jnp.ones(3, int))
    with pytest.raises(ValueError, match="resolve at most 67108864 particles"):
        jax.eval_shape(lambda weights: systematic(key, weights), _huge())


def _huge():
    return jax.ShapeDtypeStruct((2**26 + 1,), jnp.float32)


def test_names_resolve():
    assert get_resampling("stratified") is stratified
    assert get_resampling(systematic) is systematic
    with pytest.raises(
        ValueError, match="resampling must be one of systematic, .* got 'bootstrap'"
    ):
        get_resampling("bootstrap")
    with pytest.raises(TypeError, match="resampling must be a name or a function"):
        get_resampling(3)


@pytest.mark.slow
def test_a_million_particles_in_float32(scheme):
    count = 10**6
    with single_precision():
        for seed in range(3):
            weights = skewed_weights(count, "float32", seed)
            ancestors = np.asarray(jax.jit(scheme)(jax.random.key(seed), weights))
            assert ancestors.min() >= 0
            assert ancestors.max() < count
            assert np.asarray(weights)[ancestors].min() > 0.0
            if scheme in (systematic, stratified):
                exact = np.asarray(weights, np.float64)
                exact = count * np.cumsum(exact) / exact.sum()
                found = np.cumsum(counts(ancestors, count))
                # A boundary may lie up to one offspring off, or two with an offset of its own.
                assert np.abs(found - exact).max() < (1.1 if scheme is systematic else 2.1)


@pytest.mark.parametrize("count", [1, 511, 512, 1000, 4097])
@pytest.mark.parametrize("kind", ["int32", "int64"])
def test_sums_within_blocks_are_prefix_sums(count, kind):
    values = jax.random.randint(jax.random.key(count), (count,), 0, 2**20, kind)
    found = jax.jit(_prefix_sums)(values)
    assert found.dtype == values.dtype
    np.testing.assert_array_equal(found, np.cumsum(np.asarray(values)))
    twice = jax.vmap(_prefix_sums)(jnp.stack([values, values[::-1]]))
    np.testing.assert_array_equal(twice[1], np.cumsum(np.asarray(values)[::-1]))
