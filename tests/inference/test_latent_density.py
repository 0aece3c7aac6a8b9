"""The latent mixture: known clusters are found, sampled and scored; averaging is warned about."""

import numpy as np
import pytest
import torch
from helpers import assert_within_standard_errors
from scipy.stats import multivariate_normal, norm

from bayesdiv.inference.latent_density import LatentMixture, spread_ratio

CENTRES = np.array([[0.0, 0.0], [5.0, 0.0], [0.0, 5.0]])


def clusters(seed: int) -> np.ndarray:
    """Three clusters of 150 with sd 0.3, as the codes of one posterior draw."""
    noise = 0.3 * np.random.default_rng(seed).normal(size=(3, 150, 2))
    return (CENTRES[:, None] + noise).reshape(1, 450, 2)


def rotation(angle: float) -> np.ndarray:
    return np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("weight_prior", ["dirichlet_process", "dirichlet_distribution"])
@pytest.mark.parametrize("num_components", [10, 20])
def test_three_clusters_take_three_components(num_components, weight_prior, seed):
    settings = LatentMixture(num_components=num_components, weight_prior=weight_prior)
    fitted = settings.fit(clusters(seed), seed=seed)
    assert fitted.num_effective() == 3
    weights = np.sort(fitted.mixtures[0].weights_)
    np.testing.assert_allclose(weights[-3:], 1.0 / 3.0, atol=0.025)
    # Stick-breaking leaves a little on each component that holds no code.
    assert weights[:-3].max() < 0.003


def test_draws_follow_the_density():
    codes = np.random.default_rng(0).multivariate_normal([1.0, -2.0], [[2.0, 0.9], [0.9, 1.0]], 400)
    fitted = LatentMixture(num_components=1).fit(codes[None])
    mixture = fitted.mixtures[0]
    draws, owner = fitted.sample(20_000, 0)
    assert owner is None
    assert_within_standard_errors(draws, mixture.means_[0])
    centred = draws - mixture.means_[0]
    assert_within_standard_errors(centred[:, 0] * centred[:, 1], mixture.covariances_[0, 0, 1])
    # The mean log density of own draws is minus the entropy of a Gaussian.
    entropy = multivariate_normal(mixture.means_[0], mixture.covariances_[0]).entropy()
    assert_within_standard_errors(fitted.log_prob(draws), -entropy)


def test_clusters_are_drawn_in_their_shares():
    fitted = LatentMixture(weight_prior="dirichlet_distribution").fit(clusters(0))
    draws, _ = fitted.sample(6_000, 1)
    nearest = np.argmin(((draws[:, None] - CENTRES) ** 2).sum(-1), axis=1)
    for index, centre in enumerate(CENTRES):
        assert_within_standard_errors((nearest == index).astype(float), 1.0 / 3.0)
        component = np.argmin(((fitted.mixtures[0].means_ - centre) ** 2).sum(-1))
        width = np.sqrt(np.diagonal(fitted.mixtures[0].covariances_[component]))
        # Quantiles, because components without codes are as wide as all of them together.
        low, middle, high = np.quantile(draws[nearest == index], norm.cdf([-1, 0, 1]), axis=0)
        np.testing.assert_allclose((high - low) / 2.0, width, rtol=0.1)
        np.testing.assert_allclose(middle, centre, atol=0.08)


def test_the_same_seed_draws_the_same():
    fitted = LatentMixture(num_components=4).fit(clusters(0))
    first, again, other = (fitted.sample(50, rng).codes for rng in (3, 3, 4))
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, other)
    generator = np.random.default_rng(3)
    np.testing.assert_array_equal(first, fitted.sample(50, generator).codes)


def test_paired_codes_stay_in_the_coordinates_of_their_draw():
    turned = np.concatenate([clusters(0) @ rotation(angle) for angle in (0.0, 2.0, 4.0)])
    with pytest.warns(
        UserWarning, match=r"codes differ \d+\.\d+ times as much.*use codes='paired'"
    ):
        averaged = LatentMixture(num_components=5).fit(turned)
    assert averaged.spread_ratio > 1.0
    fitted = LatentMixture(codes="paired", num_components=5).fit(torch.tensor(turned))
    draws, owner = fitted.sample(900, 0)
    assert_within_standard_errors((owner == 0).astype(float), 1.0 / 3.0)
    for index, angle in enumerate((0.0, 2.0, 4.0)):
        back = draws[owner == index] @ rotation(angle).T
        away = np.sqrt(((back[:, None] - CENTRES) ** 2).sum(-1)).min(1)
        assert np.quantile(away, 0.95) < 1.2
    assert fitted.log_prob(turned).shape == (3, 450)
    wrong = fitted.log_prob(turned[[1, 2, 0]])
    assert fitted.log_prob(turned).mean() > wrong.mean() + 5.0


def test_spread_ratio_is_that_of_its_definition():
    rng = np.random.default_rng(0)
    images, draws = rng.normal(size=(200, 3)), rng.normal(size=(50, 200, 3))
    ratio = spread_ratio(2.0 * images + 0.5 * draws)
    assert ratio == pytest.approx(0.25, rel=0.05)
    assert spread_ratio(np.broadcast_to(images, (4, 200, 3))) == pytest.approx(0.0, abs=1e-12)
    assert spread_ratio(np.arange(8.0).reshape(2, 1, 4).repeat(3, 1)) == np.inf
    assert spread_ratio(np.ones((2, 3, 1))) == 0.0
    codes = 2.0 * images + 0.5 * draws
    np.testing.assert_allclose(spread_ratio(codes @ (3.0 * np.eye(3))), ratio, rtol=1e-12)


def test_few_codes_shorten_the_truncation():
    fitted = LatentMixture().fit(np.random.default_rng(1).normal(size=(1, 7, 3)))
    assert len(fitted.mixtures[0].weights_) == 7


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"codes": "median"}, r"codes must be one of \('mean', 'paired'\), got 'median'"),
        ({"weight_prior": "gamma"}, "weight_prior must be one of .*, got 'gamma'"),
        ({"num_components": 0}, "num_components must be a positive whole number, got 0"),
        ({"max_iterations": 1.5}, "max_iterations must be a positive whole number, got 1.5"),
        ({"concentration": -1.0}, "concentration must be positive and finite, got -1.0"),
        ({"tolerance": 0.0}, "tolerance must be positive and finite, got 0.0"),
    ],
)
def test_bad_settings_are_named(settings, message):
    with pytest.raises(ValueError, match=message):
        LatentMixture(**settings)


def test_bad_codes_are_named():
    with pytest.raises(
        ValueError, match=r"codes must have shape \(draw, n, latent_dim\).*\(5, 2\)"
    ):
        LatentMixture().fit(np.zeros((5, 2)))
    with pytest.raises(ValueError, match="codes must be finite"):
        LatentMixture().fit(np.full((1, 5, 2), np.nan))
    fitted = LatentMixture(num_components=2).fit(clusters(0))
    with pytest.raises(ValueError, match="num must be a positive whole number, got 0"):
        fitted.sample(0, 0)
    paired = LatentMixture(codes="paired", num_components=2).fit(clusters(0))
    with pytest.raises(ValueError, match="one row of codes a posterior draw, 1, got shape"):
        paired.log_prob(np.zeros((2, 4, 2)))
