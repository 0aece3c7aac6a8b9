"""Properties of every two-sample member on generated samples, with POT as the oracle."""

import functools

import jax
import numpy as np
import ot
import pytest
import torch
from helpers import make_array
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from bayesdiv.divergences._distributional_sliced import DistributionalSlicedWasserstein
from bayesdiv.divergences._energy import EnergyDistance
from bayesdiv.divergences._max_sliced import MaxSlicedWasserstein
from bayesdiv.divergences._mmd import MMD
from bayesdiv.divergences._sinkhorn import Sinkhorn
from bayesdiv.divergences._sliced import SlicedWasserstein
from bayesdiv.divergences._two_sample import TwoSampleDivergence
from bayesdiv.divergences._wasserstein import Wasserstein

# Sizes are few, so that JAX compiles few shapes; values are on a grid, so that ties happen.
SIZES = [(4, 4), (5, 3)]
GRID = st.integers(-12, 12).map(lambda value: value / 4.0)
MEMBERS = [
    Wasserstein(order=1),
    Wasserstein(),
    Sinkhorn(epsilon=2.0),
    SlicedWasserstein(num_projections=8),
    MaxSlicedWasserstein(num_steps=2, num_starts=2),
    DistributionalSlicedWasserstein(num_steps=2, num_projections=8),
    EnergyDistance(),
    MMD(bandwidth=1.0),
]


@st.composite
def weighted_clouds(draw, dim=None):
    n, m = draw(st.sampled_from(SIZES))
    dim = draw(st.sampled_from([1, 2])) if dim is None else dim
    counts = st.integers(0, 5)
    weights = []
    for size in (n, m):
        raw = draw(arrays(np.int64, size, elements=counts)).astype(float)
        raw[0] += 1.0
        weights.append(raw / raw.sum())
    x = draw(arrays(np.float64, (n, dim), elements=GRID))
    y = draw(arrays(np.float64, (m, dim), elements=GRID))
    return x, y, *weights


def key(backend):
    return 0 if backend == "torch" else jax.random.key(0)


@functools.lru_cache
def function_of(divergence, backend):
    """Of samples, weights and rng; in JAX compiled, as loops otherwise are at every call."""

    def value(x, y, a, b, rng):
        return divergence(x, y, x_weights=a, y_weights=b, rng=rng)

    return value if backend == "torch" else jax.jit(value)


def evaluate(divergence, backend, *sample):
    arrays = (make_array(backend, part) for part in sample)
    return float(function_of(divergence, backend)(*arrays, key(backend)))


@given(sample=weighted_clouds(), order=st.sampled_from([1.0, 2.0]))
@settings(max_examples=40)
def test_exact_transport_is_the_library_value(backend, sample, order):
    x, y, a, b = sample
    expected = ot.emd2(a, b, np.linalg.norm(x[:, None] - y[None], axis=-1) ** order)
    found = evaluate(Wasserstein(order=order, root=False), backend, x, y, a, b)
    assert found == pytest.approx(expected, abs=1e-10)


@given(sample=weighted_clouds(dim=2), order=st.sampled_from([1.0, 2.0]))
@settings(max_examples=40)
def test_sliced_transport_is_the_library_value(backend, sample, order):
    x, y, a, b = sample
    lines = np.array([[1.0, 0.0], [0.6, 0.8], [0.0, 1.0], [-0.8, 0.6]])
    expected = ot.sliced_wasserstein_distance(x, y, a, b, p=order, projections=lines.T)
    found = SlicedWasserstein(order=order).along(
        *(make_array(backend, z) for z in (x, y, lines)),
        x_weights=make_array(backend, a),
        y_weights=make_array(backend, b),
    )
    # The root magnifies what rounding leaves of equal samples.
    assert float(found) ** order == pytest.approx(expected**order, abs=1e-10)


@functools.lru_cache
def regularized(backend):
    def value(x, y, a, b, epsilon):
        divergence = Sinkhorn(epsilon=epsilon, debias=False, tolerance=1e-10)
        return divergence(x, y, x_weights=a, y_weights=b)

    if backend == "jax":
        return jax.jit(value)
    return lambda *sample: value(*sample[:-1], float(sample[-1]))


@given(sample=weighted_clouds(), fraction=st.sampled_from([0.2, 1.0]))
@settings(max_examples=30)
def test_sinkhorn_is_the_library_value(backend, sample, fraction):
    x, y, a, b = sample
    # In units of the largest cost: ties on the grid converge slowly, in either library, below that.
    epsilon = fraction * max(1.0, float(ot.dist(x, y).max()))
    arrays = (make_array(backend, part) for part in (x, y, a, b, np.asarray(epsilon)))
    found = float(regularized(backend)(*arrays))
    kept_a, kept_b = a > 0, b > 0
    cost = ot.dist(x[kept_a], y[kept_b])
    plan = ot.sinkhorn(
        a[kept_a], b[kept_b], cost, epsilon, method="sinkhorn_log", stopThr=1e-12, numItermax=5000
    )
    reference = np.outer(a[kept_a], b[kept_b])
    entropy = np.sum(plan * np.log(np.maximum(plan, 1e-300) / reference))
    assert found == pytest.approx(np.sum(plan * cost) + epsilon * entropy, abs=1e-8)


@pytest.mark.parametrize("divergence", MEMBERS, ids=repr)
@given(sample=weighted_clouds())
@settings(max_examples=15)
def test_members_are_not_negative_and_symmetric(backend, divergence, sample):
    x, y, a, b = sample
    forward = evaluate(divergence, backend, x, y, a, b)
    assert forward >= -1e-9
    if not isinstance(divergence, MaxSlicedWasserstein | DistributionalSlicedWasserstein):
        assert evaluate(divergence, backend, y, x, b, a) == pytest.approx(forward, abs=1e-6)


@pytest.mark.parametrize("divergence", MEMBERS, ids=repr)
@given(sample=weighted_clouds())
@settings(max_examples=15)
def test_members_vanish_at_equal_samples(backend, divergence, sample):
    x, _, a, _ = sample
    assert evaluate(divergence, backend, x, x, a, a) == pytest.approx(0.0, abs=1e-6)


@given(sample=weighted_clouds(dim=2))
@settings(max_examples=25)
def test_slices_do_not_exceed_the_exact_distance(backend, sample):
    exact = evaluate(Wasserstein(), backend, *sample)
    for divergence in MEMBERS[3:6]:
        assert evaluate(divergence, backend, *sample) <= exact + 1e-7


def test_a_member_of_the_users_own_needs_one_method():
    class MeanDistance(TwoSampleDivergence):
        def _value(self, state, samples, rng):
            return abs(samples.x.mean() - samples.y.mean())

    x, y = torch.zeros(3, 1), torch.ones(2, 1)
    divergence = MeanDistance()
    assert divergence.step(divergence.init(x, y), x, y) == (None, None)
    assert divergence(x, y) == 1.0
    with pytest.raises(NotImplementedError, match="TwoSampleDivergence must implement _value"):
        TwoSampleDivergence()(x, y)
