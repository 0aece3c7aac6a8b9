r"""How good generated samples are, without a fixed network: fidelity, coverage, distances."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from bayesdiv.diagnostics._frechet import _checked, frechet_distance
from bayesdiv.diagnostics._groups import as_numpy
from bayesdiv.divergences import EnergyDistance, SlicedWasserstein

# Rows whose distances to all others are held at once.
_ROWS_AT_ONCE = 512


class PrecisionRecall(NamedTuple):
    """``precision`` is the share of generated points among the real, ``recall`` the reverse."""

    precision: float
    recall: float


def precision_recall(real: Any, generated: Any, *, num_neighbors: int = 3) -> PrecisionRecall:
    """Improved precision and recall: is a point in the other sample's neighbourhood?

    A sample's neighbourhood is the union of balls around its points, each reaching to the
    ``num_neighbors``-th nearest of the others. Precision falls with points where no data are,
    recall with data that are not generated. Two samples of one law do not reach 1: in few
    dimensions about one point in ten lies outside.

    Parameters
    ----------
    real, generated
        ``(n, dim)`` and ``(m, dim)``, of torch, JAX or NumPy: pixels, or features of them.
    num_neighbors
        k, below the size of either sample.

    Raises
    ------
    ValueError
        If shapes do not fit, values are not finite, or k is not below both sizes.

    References
    ----------
    Kynkäänniemi et al. (2019), Improved precision and recall metric, equations 1 and 2.
    """
    x, y = _pair(real, generated)
    if isinstance(num_neighbors, bool) or not isinstance(num_neighbors, int) or num_neighbors < 1:
        raise ValueError(
            f"num_neighbors must be a whole number of at least 1, got {num_neighbors!r}."
        )
    if num_neighbors >= min(len(x), len(y)):
        raise ValueError(
            f"num_neighbors must be below the sizes of both samples, {len(x)} and {len(y)}, got "
            f"{num_neighbors}."
        )
    return PrecisionRecall(
        precision=_share_inside(y, x, num_neighbors), recall=_share_inside(x, y, num_neighbors)
    )


class ClassCoverage(NamedTuple):
    """Shares of classes in generated samples against real ones.

    ``kl`` is KL(real‖generated) in nats, ``smallest_share`` that of the rarest class among the
    generated, and ``shares``, ``(classes,)``, are all of theirs.
    """

    kl: float
    smallest_share: float
    shares: np.ndarray


def class_coverage(real_labels: Any, generated_labels: Any, num_classes: int) -> ClassCoverage:
    """Mode coverage by a classifier's labels: the KL of the two histograms.

    Half a count is added to every class on both sides, so that a class that is never generated
    costs a finite amount.

    Parameters
    ----------
    real_labels, generated_labels
        Whole numbers from 0 to ``num_classes`` − 1, ``(n,)`` and ``(m,)``.
    num_classes
        At least 2.

    Raises
    ------
    ValueError
        Labels of another shape or outside the range, or too few classes.
    """
    if isinstance(num_classes, bool) or not isinstance(num_classes, int) or num_classes < 2:
        raise ValueError(f"num_classes must be a whole number of at least 2, got {num_classes!r}.")
    counts = [
        _histogram(name, labels, num_classes)
        for name, labels in (
            ("real_labels", real_labels),
            ("generated_labels", generated_labels),
        )
    ]
    real, generated = ((each + 0.5) / (each + 0.5).sum() for each in counts)
    shares = counts[1] / counts[1].sum()
    kl = float((real * np.log(real / generated)).sum())
    return ClassCoverage(max(kl, 0.0), float(shares.min()), shares)


@dataclass(frozen=True)
class SampleQuality:
    """What `sample_quality` finds; ``as_dict()`` is a row of a table.

    ``frechet`` is squared and in the features' units, ``energy`` and ``sliced_wasserstein`` are in
    those of the rows; precision and recall are in the features, ``row_precision`` and
    ``row_recall`` in the rows themselves.
    """

    frechet: float
    precision: float
    recall: float
    row_precision: float
    row_recall: float
    energy: float
    sliced_wasserstein: float

    def as_dict(self) -> dict[str, float]:
        """By name, for a table or a file."""
        return {name: float(getattr(self, name)) for name in self.__dataclass_fields__}


def sample_quality(
    real: Any,
    generated: Any,
    *,
    features: Any = None,
    num_neighbors: int = 3,
    num_projections: int = 512,
    seed: int = 0,
) -> SampleQuality:
    r"""Every distance between real and generated rows that needs no network of others.

    Parameters
    ----------
    real, generated
        Rows, ``(n, dim)`` and ``(m, dim)``; flatten images.
    features
        A function from rows to ``(n, num_features)``, such as
        `bayesdiv.diagnostics.ClassifierFeatures`; None compares the rows themselves.
    num_neighbors
        k of precision and recall.
    num_projections, seed
        Directions of the sliced Wasserstein distance of order 2, and what draws them.

    Raises
    ------
    ValueError
        If shapes do not fit, values are not finite, or a setting is outside its domain.
    """
    x, y = _pair(real, generated)
    sliced = SlicedWasserstein(num_projections=num_projections)
    inner = (x, y) if features is None else (features(x), features(y))
    found = precision_recall(*inner, num_neighbors=num_neighbors)
    plain = found if features is None else precision_recall(x, y, num_neighbors=num_neighbors)
    return SampleQuality(
        frechet=frechet_distance(*inner),
        precision=found.precision,
        recall=found.recall,
        row_precision=plain.precision,
        row_recall=plain.recall,
        energy=_divergence(EnergyDistance(), x, y),
        sliced_wasserstein=_divergence(sliced, x, y, seed),
    )


def _pair(real: Any, generated: Any) -> tuple[np.ndarray, np.ndarray]:
    x, y = _checked("real", real), _checked("generated", generated)
    if x.shape[1] != y.shape[1]:
        raise ValueError(
            f"real and generated must have the same dimension, got {x.shape[1]} and {y.shape[1]}."
        )
    return x, y


def _squared_distances(rows: np.ndarray, others: np.ndarray) -> np.ndarray:
    squares = (rows**2).sum(1)[:, None] + (others**2).sum(1) - 2.0 * rows @ others.T
    return np.maximum(squares, 0.0)


def _share_inside(points: np.ndarray, sample: np.ndarray, num_neighbors: int) -> float:
    """The share of ``points`` within any ball of ``sample``."""
    # Distances are differences of squares, which a large common offset would spoil.
    center = sample.mean(axis=0)
    points, sample = points - center, sample - center
    radii = np.empty(len(sample))
    for start in range(0, len(sample), _ROWS_AT_ONCE):
        squares = _squared_distances(sample[start : start + _ROWS_AT_ONCE], sample)
        # The nearest of all is the point itself.
        np.fill_diagonal(squares[:, start:], -1.0)
        radii[start : start + _ROWS_AT_ONCE] = np.partition(squares, num_neighbors, axis=1)[
            :, num_neighbors
        ]
    inside = 0
    for start in range(0, len(points), _ROWS_AT_ONCE):
        squares = _squared_distances(points[start : start + _ROWS_AT_ONCE], sample)
        inside += int((squares <= radii).any(axis=1).sum())
    return inside / len(points)


def _histogram(name: str, labels: Any, num_classes: int) -> np.ndarray:
    values = np.asarray(as_numpy(labels))
    if values.ndim != 1 or not len(values):
        raise ValueError(f"{name} must have shape (n,) with n at least 1, got {values.shape}.")
    whole = values.astype(np.int64)
    if (whole != values).any() or whole.min() < 0 or whole.max() >= num_classes:
        raise ValueError(
            f"{name} must be whole numbers from 0 to {num_classes - 1}, got values from "
            f"{values.min()} to {values.max()}."
        )
    return np.bincount(whole, minlength=num_classes).astype(np.float64)


def _divergence(divergence: Any, x: np.ndarray, y: np.ndarray, seed: int = 0) -> float:
    import torch

    rng = torch.Generator().manual_seed(seed)
    return float(divergence(torch.as_tensor(x), torch.as_tensor(y), rng=rng))
