"""A density over the codes of an autoencoder's posterior draws, from which to generate."""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

__all__ = ["CODES", "FittedLatentMixture", "LatentDraws", "LatentMixture", "spread_ratio"]

CODES = ("mean", "paired")
WEIGHT_PRIORS = ("dirichlet_process", "dirichlet_distribution")


class LatentDraws(NamedTuple):
    """``codes`` ``(num, latent_dim)``, and ``draws`` ``(num,)``: the posterior draw that each code
    belongs to and has to be decoded with, or None where codes were averaged over draws."""

    codes: np.ndarray
    draws: np.ndarray | None


@dataclass(frozen=True)
class LatentMixture:
    """How to fit a mixture of Gaussians to codes by variational inference.

    Every posterior draw has its own encoder, and nothing ties their coordinates together.

    * ``codes="mean"`` fits one mixture to codes averaged over draws, as published. That means
      something only while all draws share one coordinate system, which `FittedLatentMixture`'s
      ``spread_ratio`` below 1 suggests.
    * ``codes="paired"`` fits one mixture for each draw, and a generated code carries the draw that
      it has to be decoded with. Safe whatever the coordinates.

    Attributes
    ----------
    codes : str
        ``"mean"`` or ``"paired"``.
    num_components : int
        Truncation of the Dirichlet process; fewer where there are fewer codes.
    concentration : float or None
        Of the Dirichlet process; 1 / num_components if None.
    weight_prior : str
        ``"dirichlet_process"`` (stick-breaking) or ``"dirichlet_distribution"``.
    tolerance : float
        Gain of the evidence bound at which a fit ends.
    max_iterations : int
        Of a fit; a fit that needs more warns.

    Raises
    ------
    ValueError
        If a setting is outside its domain.

    References
    ----------
    Tran et al. (2021), section 3.3; Blei and Jordan (2006). The fit is scikit-learn's
    ``BayesianGaussianMixture``, with full covariances.
    """

    codes: str = "mean"
    num_components: int = 20
    concentration: float | None = None
    weight_prior: str = "dirichlet_process"
    tolerance: float = 1e-3
    max_iterations: int = 2000

    def __post_init__(self) -> None:
        for name, allowed in (("codes", CODES), ("weight_prior", WEIGHT_PRIORS)):
            if getattr(self, name) not in allowed:
                raise ValueError(f"{name} must be one of {allowed}, got {getattr(self, name)!r}.")
        for name in ("num_components", "max_iterations"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise ValueError(f"{name} must be a positive whole number, got {value!r}.")
        for name in ("concentration", "tolerance"):
            value = getattr(self, name)
            optional = name == "concentration" and value is None
            if not optional and not 0.0 < value < math.inf:
                raise ValueError(f"{name} must be positive and finite, got {value!r}.")

    def fit(self, codes: Any, *, seed: int = 0) -> FittedLatentMixture:
        """Fit to ``codes``, ``(draw, n, latent_dim)``, of torch, JAX or NumPy.

        Warns if codes are averaged although they differ more between draws than between images.

        Parameters
        ----------
        codes
            Codes of the training images under every posterior draw; flatten chains into draws.
        seed
            Of the start of the fits.

        Raises
        ------
        ValueError
            If the shape is another, there are fewer than two images, or a code is not finite.
        """
        values = _checked(codes)
        ratio = spread_ratio(values)
        if self.codes == "mean" and ratio > 1.0:
            warnings.warn(
                f"codes differ {ratio:.2f} times as much between posterior draws as between "
                "images, so that their mean over draws means little; use codes='paired'.",
                UserWarning,
                stacklevel=2,
            )
        parts = values.mean(axis=0, keepdims=True) if self.codes == "mean" else values
        mixtures = tuple(self._fit_one(part, seed + index) for index, part in enumerate(parts))
        return FittedLatentMixture(self.codes, mixtures, ratio)

    def _fit_one(self, codes: np.ndarray, seed: int) -> Any:
        from sklearn.mixture import BayesianGaussianMixture

        count = min(self.num_components, len(codes))
        concentration = 1.0 / count if self.concentration is None else self.concentration
        mixture = BayesianGaussianMixture(
            n_components=count,
            covariance_type="full",
            weight_concentration_prior_type=self.weight_prior,
            weight_concentration_prior=concentration,
            tol=self.tolerance,
            max_iter=self.max_iterations,
            random_state=seed,
        )
        return mixture.fit(codes)


@dataclass(frozen=True, eq=False)
class FittedLatentMixture:
    """A density over codes.

    Attributes
    ----------
    codes : str
        As in `LatentMixture`.
    mixtures
        scikit-learn's, one, or one a posterior draw.
    spread_ratio : float
        See `spread_ratio`.
    """

    codes: str
    mixtures: tuple[Any, ...]
    spread_ratio: float

    def num_effective(self, threshold: float = 0.01) -> int:
        """Components of weight above ``threshold``; the median over draws where there are many."""
        counts = [(mixture.weights_ > threshold).sum() for mixture in self.mixtures]
        return int(np.median(counts))

    def sample(self, num: int, rng: int | np.random.Generator) -> LatentDraws:
        """``num`` independent codes; with ``"paired"``, of posterior draws taken uniformly.

        ``rng`` is a seed or a NumPy generator.
        """
        if isinstance(num, bool) or not isinstance(num, int) or num < 1:
            raise ValueError(f"num must be a positive whole number, got {num!r}.")
        generator = np.random.default_rng(rng)
        draws = generator.integers(len(self.mixtures), size=num)
        codes = np.empty((num, self.mixtures[0].means_.shape[1]))
        for index in np.unique(draws):
            rows = np.flatnonzero(draws == index)
            codes[rows] = _draw(self.mixtures[index], len(rows), generator)
        return LatentDraws(codes, draws if self.codes == "paired" else None)

    def log_prob(self, codes: Any) -> np.ndarray:
        """log density in nats: of ``(n, latent_dim)``, or paired, of ``(draw, n, latent_dim)``."""
        values = _as_numpy(codes)
        if self.codes == "mean":
            return self.mixtures[0].score_samples(values)
        if len(values) != len(self.mixtures):
            raise ValueError(
                f"codes must have one row of codes a posterior draw, {len(self.mixtures)}, got "
                f"shape {values.shape}."
            )
        pairs = zip(self.mixtures, values, strict=True)
        return np.stack([mixture.score_samples(rows) for mixture, rows in pairs])


def spread_ratio(codes: Any) -> float:
    """sd of codes over posterior draws, over their sd over images; ``(draw, n, latent_dim)``.

    Root mean squares over images and over coordinates; the sd over images is that of the codes
    averaged over draws. Above 1 the average over draws is mostly noise.
    """
    values = _checked(codes)
    between_draws = values.var(axis=0).mean()
    between_images = values.mean(axis=0).var(axis=0).mean()
    if between_images == 0.0:
        return math.inf if between_draws > 0.0 else 0.0
    return float(np.sqrt(between_draws / between_images))


def _draw(mixture: Any, num: int, generator: np.random.Generator) -> np.ndarray:
    weights = mixture.weights_ / mixture.weights_.sum()
    chosen = generator.choice(len(weights), size=num, p=weights)
    roots = np.linalg.cholesky(mixture.covariances_)[chosen]
    noise = generator.standard_normal((num, mixture.means_.shape[1]))
    return mixture.means_[chosen] + np.einsum("nij,nj->ni", roots, noise)


def _as_numpy(array: Any) -> np.ndarray:
    if hasattr(array, "detach"):
        array = array.detach().cpu()
    return np.asarray(array, dtype=np.float64)


def _checked(codes: Any) -> np.ndarray:
    values = _as_numpy(codes)
    if values.ndim != 3 or values.shape[1] < 2 or 0 in values.shape:
        raise ValueError(
            "codes must have shape (draw, n, latent_dim) with n at least 2, got "
            f"{values.shape}; flatten chains and draws into one axis."
        )
    if not np.isfinite(values).all():
        raise ValueError("codes must be finite, got NaN or infinity.")
    return values
