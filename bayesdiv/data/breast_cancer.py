"""Breast tumours, Wisconsin: real, correlated, and shipped with scikit-learn."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

PREDICTORS = ("radius", "texture", "smoothness", "compactness", "concavity", "symmetry")


class BreastCancer(NamedTuple):
    """``predictors`` (569, 6), standardised; ``malignant`` (569,), 0 or 1; names of the columns."""

    predictors: np.ndarray
    malignant: np.ndarray
    names: tuple[str, ...]


def load_breast_cancer() -> BreastCancer:
    """Six measurements (means over cells) of 569 tumours and whether each is malignant.

    From scikit-learn's copy of the Wisconsin diagnostic table (Street, Wolberg and Mangasarian
    1993); compactness and concavity correlate at 0.88.
    """
    from sklearn.datasets import load_breast_cancer as load

    table = load()
    columns = [list(table.feature_names).index(f"mean {name}") for name in PREDICTORS]
    raw = table.data[:, columns]
    scaled = (raw - raw.mean(axis=0)) / raw.std(axis=0)
    return BreastCancer(scaled, (table.target == 0).astype(np.float64), PREDICTORS)
