"""Fréchet distance of Gaussians fitted to features, and a small classifier that makes features."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Any

import numpy as np

from bayesdiv.diagnostics._groups import as_numpy


def frechet_distance(features_x: Any, features_y: Any) -> float:
    r"""Squared 2-Wasserstein distance between Gaussians fitted to two samples.

    .. math:: |m_x - m_y|^2 + \mathrm{tr}\,(C_x + C_y - 2 (C_x^{1/2} C_y C_x^{1/2})^{1/2})

    with means m and covariances C (divided by n). The square, as "FID" is. For n samples of one law
    it does not fall below about the trace of C over n.

    Parameters
    ----------
    features_x, features_y
        ``(n, dim)`` and ``(m, dim)``, of torch, JAX or NumPy; fewer samples than dimensions are
        allowed.

    Raises
    ------
    ValueError
        If a sample is not ``(n ≥ 2, dim)``, dimensions differ, or a value is not finite.

    References
    ----------
    Dowson and Landau (1982), equation 4; Heusel et al. (2017), equation 6.
    """
    x, y = (
        _checked(name, sample)
        for name, sample in (("features_x", features_x), ("features_y", features_y))
    )
    if x.shape[1] != y.shape[1]:
        raise ValueError(
            f"features must have the same dimension, got {x.shape[1]} in features_x and "
            f"{y.shape[1]} in features_y."
        )
    gap = x.mean(axis=0) - y.mean(axis=0)
    x, y = (sample - sample.mean(axis=0) for sample in (x, y))
    # tr (Cx^½ Cy Cx^½)^½ is the nuclear norm of X Yᵀ / √(n m): no root of a matrix that rounding
    # has made indefinite, and exact for covariances without full rank. QR makes the product small.
    left, right = (np.asarray(np.linalg.qr(sample, mode="r")) for sample in (x, y))
    cross = np.linalg.norm(left @ right.T, "nuc") / np.sqrt(len(x) * len(y))
    spread = (x**2).sum() / len(x) + (y**2).sum() / len(y)
    return float(max(gap @ gap + spread - 2.0 * cross, 0.0))


@dataclass(frozen=True, eq=False)
class ClassifierFeatures:
    """Hidden activations of a small classifier: features in which to compare images.

    Not Inception's: numbers are comparable only between images scored by the same object, and the
    name to print is "Fréchet distance in a small classifier's features".

    Attributes
    ----------
    weight, bias
        Of the hidden layer, ``(data_dim, num_features)`` and ``(num_features,)``.
    accuracy : float
        On the training images.
    output_weight, output_bias
        Of the layer of classes, ``(num_features, classes)`` and ``(classes,)``; one column where
        there are two classes.
    classes
        The labels, in the order of the columns.
    """

    weight: np.ndarray
    bias: np.ndarray
    accuracy: float
    output_weight: np.ndarray
    output_bias: np.ndarray
    classes: np.ndarray

    def __call__(self, images: Any) -> np.ndarray:
        """max(0, images · weight + bias), ``(n, num_features)``."""
        rows = as_numpy(images).astype(np.float64)
        if rows.ndim != 2 or rows.shape[1] != len(self.weight):
            raise ValueError(
                f"images must have shape (n, {len(self.weight)}), got {rows.shape}; flatten them."
            )
        return np.maximum(rows @ self.weight + self.bias, 0.0)

    def classify(self, images: Any) -> np.ndarray:
        """The likeliest label of each image, ``(n,)``."""
        scores = self(images) @ self.output_weight + self.output_bias
        if scores.shape[1] == 1:
            return self.classes[(scores[:, 0] > 0.0).astype(int)]
        return self.classes[scores.argmax(axis=1)]

    def distance(self, images_x: Any, images_y: Any) -> float:
        """`frechet_distance` between the features of two sets of images."""
        return frechet_distance(self(images_x), self(images_y))


def train_classifier_features(
    images: Any, labels: Any, *, num_features: int = 64, max_passes: int = 100, seed: int = 0
) -> ClassifierFeatures:
    """Train scikit-learn's ``MLPClassifier`` with one hidden layer of ReLUs.

    Parameters
    ----------
    images, labels
        ``(n, data_dim)`` and ``(n,)``; at least two labels.
    num_features
        Width of the hidden layer.
    max_passes
        Passes over the images at most.
    seed
        Of the start and of the minibatches.

    Raises
    ------
    ValueError
        If there is one label only, or lengths differ.
    """
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.neural_network import MLPClassifier

    rows, labels = as_numpy(images), as_numpy(labels)
    if len(rows) != len(labels) or len(np.unique(labels)) < 2:
        raise ValueError(
            f"labels must have one entry an image, {len(rows)}, and at least two values, got "
            f"{len(labels)} with {len(np.unique(labels))}."
        )
    classifier = MLPClassifier((num_features,), max_iter=max_passes, random_state=seed)
    with warnings.catch_warnings():
        # Features need no optimum, and the number of passes is the caller's choice.
        warnings.simplefilter("ignore", ConvergenceWarning)
        classifier.fit(rows, labels)
    weights, biases = classifier.coefs_, classifier.intercepts_
    accuracy = float(classifier.score(rows, labels))
    return ClassifierFeatures(
        weights[0], biases[0], accuracy, weights[1], biases[1], classifier.classes_
    )


def _checked(name: str, sample: Any) -> np.ndarray:
    values = as_numpy(sample).astype(np.float64)
    if values.ndim != 2 or len(values) < 2 or values.shape[1] == 0:
        raise ValueError(f"{name} must have shape (n, dim) with n at least 2, got {values.shape}.")
    if not np.isfinite(values).all():
        raise ValueError(f"{name} must be finite, got NaN or infinity.")
    return values
