"""Images with labels, and their division into parts that share nothing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np


@dataclass(frozen=True, eq=False)
class Images:
    """Grey images as flat rows.

    Attributes
    ----------
    pixels
        ``(n, height * width)``, float32 in [0, 1].
    labels
        ``(n,)``, integers.
    shape
        (height, width).

    Raises
    ------
    ValueError
        If the three do not fit together.
    """

    pixels: np.ndarray
    labels: np.ndarray
    shape: tuple[int, int]

    def __post_init__(self) -> None:
        height, width = self.shape
        if self.pixels.shape != (len(self.labels), height * width):
            raise ValueError(
                f"pixels must have shape ({len(self.labels)}, {height * width}), one row a label, "
                f"got {self.pixels.shape}."
            )

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, rows: np.ndarray) -> Images:
        """The images at ``rows``."""
        return Images(self.pixels[rows], self.labels[rows], self.shape)


class ImageSplit(NamedTuple):
    """Disjoint parts of one data set: to choose a prior, to train, to test."""

    tuning: Images
    training: Images
    test: Images


def split_images(
    images: Images,
    *,
    num_tuning: int,
    num_training: int,
    num_test: int | None = None,
    tuning_labels: Sequence[int] | None = None,
    training_labels: Sequence[int] | None = None,
    seed: int = 0,
) -> ImageSplit:
    """Draw disjoint tuning, training and test parts.

    Parameters
    ----------
    images
        What to draw from.
    num_tuning, num_training, num_test
        Sizes; ``num_test=None`` takes all that is left with a training label.
    tuning_labels
        Labels of the tuning part, for example ``(0,)``; any by default.
    training_labels
        Labels of the training and test parts, for example ``range(1, 10)``; any by default.
    seed
        The same seed gives the same split. A larger training part contains a smaller one, and where
        ``num_test`` is given the test part does not depend on it.

    Raises
    ------
    ValueError
        If a size is negative or too large, or a label does not occur.
    """
    sizes = {"num_tuning": num_tuning, "num_training": num_training, "num_test": num_test}
    for name, size in sizes.items():
        optional = name == "num_test" and size is None
        if not optional and (isinstance(size, bool) or not isinstance(size, int) or size < 0):
            raise ValueError(f"{name} must be a whole number, 0 or more, got {size!r}.")
    order = np.random.default_rng(seed).permutation(len(images))
    may_tune = order[_has_label(images.labels[order], tuning_labels, "tuning_labels")]
    _check_enough("num_tuning", num_tuning, len(may_tune))
    tuning = may_tune[:num_tuning]
    rest = order[~np.isin(order, tuning)]
    rest = rest[_has_label(images.labels[rest], training_labels, "training_labels")]
    _check_enough("num_training", num_training, len(rest) - (num_test or 0))
    # Test from the end, so that neither part changes when the other grows.
    start = num_training if num_test is None else len(rest) - num_test
    return ImageSplit(
        images.take(tuning), images.take(rest[:num_training]), images.take(rest[start:])
    )


def _has_label(labels: np.ndarray, wanted: Sequence[int] | None, name: str) -> np.ndarray:
    if wanted is None:
        return np.ones(len(labels), dtype=bool)
    missing = sorted(set(wanted) - set(labels.tolist()))
    if missing or not len(wanted):
        raise ValueError(
            f"{name} must be labels of the data, {sorted(set(labels.tolist()))}, got "
            f"{list(wanted)}."
        )
    return np.isin(labels, list(wanted))


def _check_enough(name: str, wanted: int, available: int) -> None:
    if wanted > available:
        raise ValueError(
            f"{name} must be at most {max(available, 0)}, the images left for it, got {wanted}."
        )
