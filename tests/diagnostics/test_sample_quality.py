"""Metrics of generated samples, on Gaussians whose overlap is known."""

import math

import numpy as np
import pytest
import torch

from bayesdiv.diagnostics import (
    class_coverage,
    precision_recall,
    sample_quality,
    train_classifier_features,
)


def normal(seed, count=600, dim=2, *, shift=0.0, scale=1.0):
    return shift + scale * np.random.default_rng(seed).normal(size=(count, dim))


def brute_force(points, sample, k):
    """The definition, pair by pair."""
    inside = 0
    for point in points:
        hit = False
        for j, centre in enumerate(sample):
            others = np.delete(sample, j, axis=0)
            radius = np.sort(np.linalg.norm(others - centre, axis=1))[k - 1]
            hit |= np.linalg.norm(point - centre) <= radius
        inside += hit
    return inside / len(points)


@pytest.mark.parametrize("k", [1, 3])
def test_precision_and_recall_are_their_definition(k):
    x, y = normal(0, 40), normal(1, 50, shift=0.7)
    found = precision_recall(x, y, num_neighbors=k)
    assert found.precision == pytest.approx(brute_force(y, x, k))
    assert found.recall == pytest.approx(brute_force(x, y, k))


def test_blocks_of_rows_make_no_difference():
    """More rows than are looked at at once."""
    x, y = normal(0, 700), normal(1, 1100)
    whole = precision_recall(x, y)
    order = np.random.default_rng(2)
    shuffled = precision_recall(order.permutation(x), order.permutation(y))
    assert whole == shuffled


def test_a_sample_covers_itself_and_nothing_far():
    x = normal(0)
    assert precision_recall(x, x) == (1.0, 1.0)
    assert precision_recall(x, x + 100.0) == (0.0, 0.0)


def test_an_offset_makes_no_difference():
    x, y = normal(0), normal(1, shift=0.3)
    assert precision_recall(x + 1e6, y + 1e6) == precision_recall(x, y)


def test_narrow_samples_are_precise_and_wide_ones_cover():
    real = normal(0)
    narrow = precision_recall(real, normal(1, scale=0.3))
    wide = precision_recall(real, normal(2, scale=3.0))
    # Outlying real points have wide balls, which flatter a wide sample.
    assert narrow.precision > 0.95
    assert wide.recall > 0.95
    assert narrow.recall < wide.recall - 0.3
    assert wide.precision < narrow.precision - 0.3


def test_a_missed_mode_costs_its_share_of_recall():
    rows = normal(0, 900, dim=3)
    rows[:300] += 50.0
    generated = normal(1, 900, dim=3)
    found = precision_recall(rows, generated)
    alike = precision_recall(rows[300:], generated)
    assert found.recall == pytest.approx(alike.recall * 2.0 / 3.0)
    assert found.precision == alike.precision


def test_class_coverage_is_the_divergence_of_histograms():
    real = np.repeat([0, 1], [50_000, 50_000])
    generated = np.repeat([0, 1], [80_000, 20_000])
    found = class_coverage(real, torch.as_tensor(generated), 2)
    expected = 0.5 * math.log(0.5 / 0.8) + 0.5 * math.log(0.5 / 0.2)
    assert found.kl == pytest.approx(expected, rel=1e-3)
    assert found.smallest_share == pytest.approx(0.2)
    np.testing.assert_allclose(found.shares, [0.8, 0.2])


def test_class_coverage_of_one_histogram_is_zero_and_of_a_missed_class_is_finite():
    labels = np.arange(40) % 4
    assert class_coverage(labels, labels, 4).kl == 0.0
    missed = class_coverage(labels, labels[labels != 2], 4)
    assert missed.smallest_share == 0.0
    assert 0.1 < missed.kl < math.inf


def test_distances_of_gaussians_are_those_in_closed_form():
    """For N(0, I) and N(m, I): Fréchet |m|², sliced |m|/√dim, energy from E|X − Y|."""
    count, shift = 4000, 1.0
    found = sample_quality(normal(0, count), normal(1, count, shift=shift))
    error = 5.0 * math.sqrt(2.0 / count)
    assert found.frechet == pytest.approx(2.0 * shift**2, abs=4.0 * error)
    assert found.sliced_wasserstein == pytest.approx(shift, abs=0.1)
    # Of a normal in the plane with variance 2 each way and mean m: E|Z| by Rice's law.
    z = np.random.default_rng(3).normal(size=(400_000, 2))
    between = np.linalg.norm(math.sqrt(2.0) * z + shift, axis=1).mean()
    within = math.sqrt(math.pi)
    assert found.energy == pytest.approx(2.0 * (between - within), abs=0.05)
    assert found.precision == found.row_precision
    assert found.recall == found.row_recall


def test_all_distances_rank_a_near_sample_above_a_far_one():
    real = normal(0)
    near, far = (sample_quality(real, normal(1, shift=shift)).as_dict() for shift in (0.2, 1.5))
    for name in ("frechet", "energy", "sliced_wasserstein"):
        assert near[name] < far[name], name
    for name in ("precision", "recall", "row_precision", "row_recall"):
        assert near[name] > far[name], name


def test_features_take_the_place_of_rows():
    x, y = normal(0, 300), normal(1, 300, shift=0.5)
    found = sample_quality(x, y, features=lambda rows: rows[:, :1])
    first = sample_quality(x[:, :1], y[:, :1])
    both = sample_quality(x, y)
    assert (found.frechet, found.precision, found.recall) == (
        first.frechet,
        first.precision,
        first.recall,
    )
    assert (found.row_precision, found.row_recall) == (both.precision, both.recall)
    assert (found.energy, found.sliced_wasserstein) == (both.energy, both.sliced_wasserstein)


def test_features_of_a_classifier_fit():
    rows = np.concatenate([normal(0, 100), normal(1, 100, shift=4.0)])
    features = train_classifier_features(rows, np.repeat([0, 1], 100), num_features=8)
    assert sample_quality(rows, rows, features=features).frechet == pytest.approx(0.0, abs=1e-8)


BAD = {
    "real must have shape": lambda: precision_recall(np.zeros(4), np.zeros((4, 1))),
    "generated must be finite": lambda: precision_recall(np.zeros((4, 1)), np.full((4, 1), np.nan)),
    "the same dimension, got 2 and 3": lambda: sample_quality(np.zeros((9, 2)), np.zeros((9, 3))),
    "num_neighbors must be a whole number": lambda: precision_recall(
        np.zeros((4, 1)), np.zeros((4, 1)), num_neighbors=0
    ),
    "num_neighbors must be below the sizes of both samples, 4 and 3, got 3": lambda: (
        precision_recall(np.zeros((4, 1)), np.zeros((3, 1)))
    ),
    "num_classes must be a whole number of at least 2": lambda: class_coverage([0], [0], 1),
    "real_labels must have shape": lambda: class_coverage(np.zeros((2, 2)), [0], 2),
    "generated_labels must be whole numbers from 0 to 1, got values from 0 to 2": lambda: (
        class_coverage([0, 1], [0, 2], 2)
    ),
    "num_projections must be": lambda: sample_quality(
        np.zeros((9, 2)), np.zeros((9, 2)), num_projections=0
    ),
}


@pytest.mark.parametrize("message", BAD)
def test_bad_input_is_named(message):
    with pytest.raises(ValueError, match=message):
        BAD[message]()
