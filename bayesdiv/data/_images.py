"""Images with labels, and their division into parts that share nothing."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np


class Images(NamedTuple):
    """``pixels`` ``(n, height · width)`` in [0, 1], float32; ``labels`` ``(n,)``; ``shape``."""

    pixels: np.ndarray
    labels: np.ndarray
    shape: tuple[int, int]

    def __len__(self) -> int:  # the number of images, not of fields
        return self.pixels.shape[0]

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
        The same seed gives the same split, and a larger training part contains a smaller one: the
        test part is drawn before it.

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


def check_disjoint(**parts: np.ndarray) -> None:
    """Raise a ValueError if two of the named parts, ``(n, dim)``, share a row.

    A prior chosen on images that the model is then trained on has seen them twice.
    """
    names = list(parts)
    rows = {
        name: {np.ascontiguousarray(row).tobytes() for row in np.asarray(part)}
        for name, part in parts.items()
    }
    for position, first in enumerate(names):
        for second in names[position + 1 :]:
            common = len(rows[first] & rows[second])
            if common:
                raise ValueError(
                    f"{first} and {second} must share no image, got {common} in both; split the "
                    "data once, for example with bayesdiv.data.split_images."
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
