"""Handwritten digits of 8×8 pixels, shipped with scikit-learn."""

from __future__ import annotations

import numpy as np

from bayesdiv.data._images import Images


def load_digits() -> Images:
    """1,797 digits of 8×8 pixels in [0, 1], levels of 1/16, with their labels 0 to 9.

    From scikit-learn's copy of the test part of Alpaydin and Kaynak (1998), "Optical recognition
    of handwritten digits". Some pixels of the border are 0 in every image.
    """
    from sklearn.datasets import load_digits as load

    table = load()
    return Images((table.data / 16.0).astype(np.float32), table.target.astype(np.int64), (8, 8))
