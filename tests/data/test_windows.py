"""Windows and their overlap-add: identity, edges, and a plain loop."""

import numpy as np
import pytest

from bayesdiv.data import overlap_add, pad_for_windows, strided_windows

SIZES = [
    (50, 10, 1),
    (50, 10, 3),
    (53, 10, 4),
    (40, 10, 10),
    (10, 10, 7),
    (23, 5, 2),
    (400, 200, 2),
]


@pytest.mark.parametrize(("count", "length", "stride"), SIZES)
def test_windows_are_counted_and_not_copied(count, length, stride):
    signal = np.random.default_rng(0).standard_normal(count)
    windows = strided_windows(signal, length, stride)
    assert windows.shape == ((count - length) // stride + 1, length)
    assert np.shares_memory(windows, signal)
    assert not windows.flags.writeable
    for index in (0, len(windows) - 1):
        np.testing.assert_array_equal(windows[index], signal[index * stride :][:length])


@pytest.mark.parametrize("method", ["mean", "median"])
@pytest.mark.parametrize("kind", [np.float32, np.float64])
@pytest.mark.parametrize(("count", "length", "stride"), SIZES)
def test_windows_of_a_signal_give_it_back_exactly(count, length, stride, kind, method):
    signal = np.random.default_rng(0).standard_normal(count).astype(kind)
    windows = strided_windows(pad_for_windows(signal, length, stride), length, stride)
    found = overlap_add(windows, stride, num_samples=count, method=method)
    assert found.dtype == kind
    np.testing.assert_array_equal(found, signal)


@pytest.mark.parametrize("method", ["mean", "median"])
@pytest.mark.parametrize(("count", "length", "stride"), SIZES)
def test_each_sample_is_combined_over_all_windows_that_cover_it(count, length, stride, method):
    num_windows = (count - length) // stride + 1
    windows = np.random.default_rng(0).standard_normal((num_windows, length))
    covering = [[] for _ in range((num_windows - 1) * stride + length)]
    for index, window in enumerate(windows):
        for offset, value in enumerate(window):
            covering[index * stride + offset].append(value)
    wanted = [getattr(np, method)(values) for values in covering]
    np.testing.assert_allclose(overlap_add(windows, stride, method=method), wanted, atol=1e-12)


def test_a_median_in_parts_is_the_same(monkeypatch):
    windows = np.random.default_rng(0).standard_normal((60, 20))
    whole = overlap_add(windows, 3, method="median")
    monkeypatch.setattr("bayesdiv.data.windows._VALUES_AT_ONCE", 100)
    np.testing.assert_array_equal(overlap_add(windows, 3, method="median"), whole)


def test_one_bad_window_moves_the_mean_and_not_the_median():
    windows = np.ones((11, 10))
    windows[5] = 100.0
    assert overlap_add(windows, 1, method="mean")[9] > 5.0
    assert overlap_add(windows, 1, method="median")[9] == 1.0


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: strided_windows(np.ones(5), 10), "at least one window long, 10 samples, got 5"),
        (lambda: strided_windows(np.ones((50, 2)), 10), r"one channel.*\(50, 2\); choose the"),
        (lambda: strided_windows(np.ones(50), 0), "length must be a whole number of at least 1"),
        (lambda: strided_windows(np.ones(50), 5, 0), "stride must be a whole number of at least"),
        (lambda: pad_for_windows(np.ones((5, 2)), 5), r"signal must be one channel.*\(5, 2\)"),
        (lambda: overlap_add(np.ones(5), 1), r"shape \(windows, length\), neither 0, got \(5,\)"),
        (lambda: overlap_add(np.ones((0, 5)), 1), r"neither 0, got \(0, 5\)"),
        (lambda: overlap_add(np.ones((3, 5)), 6), "stride must be at most the windows' length, 5"),
        (lambda: overlap_add(np.ones((3, 5)), 0), "stride must be a whole number of at least 1"),
        (lambda: overlap_add(np.ones((3, 5)), 5, num_samples=16), "from 1 to the 15 that are cov"),
        (lambda: overlap_add(np.ones((3, 5)), 5, method="max"), "mean or median, got 'max'"),
        (lambda: overlap_add(np.full((3, 5), np.nan), 5), "windows must be finite, got NaN"),
    ],
    ids=range(12),
)
def test_what_does_not_fit_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()
