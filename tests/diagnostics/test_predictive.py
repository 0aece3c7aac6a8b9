"""Scores of averaged predictions, the Fréchet distance and R-hat of predictions."""

import numpy as np
import pytest
import torch
from helpers import make_array, to_numpy
from scipy.integrate import quad
from scipy.linalg import sqrtm
from scipy.stats import norm

from bayesdiv.data import load_digits
from bayesdiv.diagnostics import (
    frechet_distance,
    plug_in_log_likelihood,
    proper_log_likelihood,
    rhat_of_predictions,
    train_classifier_features,
)
from bayesdiv.nn import PixelLikelihood

IMAGES = np.random.default_rng(0).uniform(size=(5, 4))
OUTPUTS = 3.0 * np.random.default_rng(1).normal(size=(6, 5, 4))
LIKELIHOODS = [PixelLikelihood(), PixelLikelihood("gaussian", noise=0.7)]


@pytest.mark.parametrize("likelihood", LIKELIHOODS)
def test_the_two_scores_agree_for_one_draw(backend, likelihood):
    images, outputs = make_array(backend, IMAGES), make_array(backend, OUTPUTS[:1])
    plug_in = plug_in_log_likelihood(images, outputs, likelihood)
    proper = proper_log_likelihood(likelihood.log_prob(images, outputs))
    assert plug_in.shape == (5,)
    np.testing.assert_allclose(plug_in, proper, rtol=1e-9)


def test_one_clamp_serves_both_scores(backend):
    images = make_array(backend, [[0.0, 1.0, 0.5]])
    outputs = make_array(backend, [[[-50.0, 80.0, 30.0]]])
    plug_in = plug_in_log_likelihood(images, outputs, PixelLikelihood())
    proper = proper_log_likelihood(PixelLikelihood().log_prob(images, outputs))
    np.testing.assert_allclose(plug_in, proper, rtol=1e-6)


def test_proper_score_is_the_density_of_the_mixture():
    likelihood = PixelLikelihood("gaussian", noise=0.7)
    rows = to_numpy(likelihood.log_prob(torch.tensor(IMAGES), torch.tensor(OUTPUTS)))
    densities = norm.pdf(IMAGES, OUTPUTS, 0.7).prod(-1)
    np.testing.assert_allclose(proper_log_likelihood(rows), np.log(densities.mean(0)), rtol=1e-10)
    chains = rows.reshape(2, 3, 5)
    np.testing.assert_allclose(proper_log_likelihood(chains), np.log(densities.mean(0)), rtol=1e-10)
    # A density in x whatever the draws disagree about; the plug-in score is one as well.
    means = torch.tensor([[[-3.0]], [[0.5]], [[4.0]]], dtype=torch.float64)

    def density(x):
        at = torch.tensor([[x]], dtype=torch.float64)
        return float(np.exp(proper_log_likelihood(likelihood.log_prob(at, means)))[0])

    assert quad(density, -10, 12, limit=200)[0] == pytest.approx(1.0, abs=1e-8)


def test_plug_in_score_averages_the_sigmoids():
    outputs = torch.tensor([[[-1.0]], [[3.0]]], dtype=torch.float64)
    image = torch.tensor([[0.3]], dtype=torch.float64)
    average = np.mean(1.0 / (1.0 + np.exp([1.0, -3.0])))
    logit = np.log(average / (1.0 - average))
    expected = 0.3 * logit + np.log(logit / np.expm1(logit))
    found = plug_in_log_likelihood(image, outputs, PixelLikelihood())
    np.testing.assert_allclose(found, [expected], rtol=1e-12)
    chains = plug_in_log_likelihood(image, outputs[None], PixelLikelihood())
    np.testing.assert_allclose(chains, found)


def test_scores_survive_densities_that_underflow():
    rows = np.array([[-2_000.0, -5.0], [-2_001.0, -np.inf]])
    expected = [-2_000.0 + np.log1p(np.exp(-1.0)) - np.log(2.0), -5.0 - np.log(2.0)]
    np.testing.assert_allclose(proper_log_likelihood(rows), expected)


def test_frechet_distance_of_fitted_gaussians_is_its_formula():
    rng = np.random.default_rng(0)
    x = rng.normal(size=(300, 4)) @ rng.normal(size=(4, 4)) + 1.0
    y = rng.normal(size=(200, 4)) @ rng.normal(size=(4, 4))
    covariances = [np.cov(sample.T, bias=True) for sample in (x, y)]
    exact = ((x.mean(0) - y.mean(0)) ** 2).sum() + np.trace(
        covariances[0] + covariances[1] - 2.0 * sqrtm(covariances[0] @ covariances[1]).real
    )
    assert frechet_distance(x, y) == pytest.approx(exact, rel=1e-9)
    assert frechet_distance(torch.tensor(y), x) == pytest.approx(exact, rel=1e-9)


def test_frechet_distance_knows_its_closed_forms():
    x = np.random.default_rng(0).normal(size=(50, 6))
    assert frechet_distance(x, x) == pytest.approx(0.0, abs=1e-10)
    assert frechet_distance(x, x + 2.0) == pytest.approx(24.0, rel=1e-10)
    scaled = 3.0 * (x - x.mean(0)) + x.mean(0)
    assert frechet_distance(x, scaled) == pytest.approx(4.0 * x.var(0).sum(), rel=1e-10)
    turn = np.linalg.qr(np.random.default_rng(1).normal(size=(6, 6)))[0]
    y = np.random.default_rng(2).normal(size=(40, 6)) * np.arange(6.0)
    assert frechet_distance(x @ turn, y @ turn) == pytest.approx(frechet_distance(x, y), rel=1e-9)


def test_frechet_distance_needs_no_full_rank():
    x = np.random.default_rng(0).normal(size=(3, 40))
    y = np.concatenate([x, x])
    assert frechet_distance(x, y) == pytest.approx(0.0, abs=1e-10)
    wide = np.zeros((5, 40))
    assert frechet_distance(x, wide) == pytest.approx(
        (x.mean(0) ** 2).sum() + x.var(0).sum(), rel=1e-12
    )


def test_classifier_features_order_images_by_likeness():
    digits = load_digits()
    features = train_classifier_features(digits.pixels[:800], digits.labels[:800], max_passes=40)
    assert features.accuracy > 0.9
    held_out = digits.pixels[800:1797]
    assert (features.classify(digits.pixels[:800]) == digits.labels[:800]).mean() == (
        features.accuracy
    )
    assert features(held_out).shape == (997, 64)
    assert features(held_out).min() == 0.0
    rng = np.random.default_rng(0)
    same = features.distance(held_out[:498], held_out[498:])
    blurred = features.distance(held_out[:498], 0.7 * held_out[498:] + 0.3 * held_out.mean(0))
    shuffled = features.distance(held_out[:498], rng.permuted(held_out[498:], axis=0))
    noise = features.distance(held_out[:498], rng.uniform(size=(499, 64)))
    assert same < blurred < shuffled < noise
    again = train_classifier_features(digits.pixels[:800], digits.labels[:800], max_passes=40)
    np.testing.assert_array_equal(again.weight, features.weight)


def test_two_classes_have_one_column():
    rows = np.random.default_rng(0).normal(size=(200, 3))
    labels = np.where(rows[:, 0] > 0.0, 7, 2)
    features = train_classifier_features(rows, labels, num_features=8, max_passes=600)
    assert features.output_weight.shape == (8, 1)
    assert (features.classify(rows) == labels).mean() == features.accuracy > 0.9


def test_rhat_tells_chains_that_agree_from_chains_that_do_not():
    rng = np.random.default_rng(0)
    draws = rng.normal(size=(4, 200, 3, 2))
    draws[0, :, 1, 0] += 5.0
    draws[:, :, 2, 1] = 7.0
    found = rhat_of_predictions(draws)
    assert found.shape == (3, 2)
    assert found[1, 0] > 1.5
    assert np.isnan(found[2, 1])
    agree = np.delete(found.ravel(), [2, 5])
    assert agree.max() < 1.05
    # Ranks, so a monotone change of scale leaves the rank part; a shift of all leaves everything.
    np.testing.assert_allclose(rhat_of_predictions(draws + 3.0), found, rtol=1e-12)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: proper_log_likelihood(np.zeros(3)),
            r"log_likelihood must have shape \(draw, n\) or \(chain, draw, n\).*got \(3,\)",
        ),
        (
            lambda: proper_log_likelihood(np.array([[0.0, np.nan]])),
            "log_likelihood must not be NaN, got 1 of 2",
        ),
        (
            lambda: plug_in_log_likelihood(
                torch.zeros(5, 4), torch.zeros(6, 4, 4), PixelLikelihood()
            ),
            r"outputs must have shape \(draw, \*\(5, 4\)\).*got \(6, 4, 4\)",
        ),
        (
            lambda: frechet_distance(np.zeros((1, 2)), np.zeros((3, 2))),
            "features_x must have shape",
        ),
        (
            lambda: frechet_distance(np.zeros((3, 2)), np.zeros((3, 4))),
            "same dimension, got 2 in features_x and 4 in features_y",
        ),
        (
            lambda: frechet_distance(np.zeros((3, 2)), np.full((3, 2), np.inf)),
            "features_y must be finite",
        ),
        (
            lambda: train_classifier_features(np.zeros((3, 2)), np.zeros(3)),
            "at least two values, got 3 with 1",
        ),
        (
            lambda: rhat_of_predictions(np.zeros((2, 3, 4))),
            r"at least 4 draws, got \(2, 3, 4\)",
        ),
    ],
)
def test_bad_input_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_features_of_other_images_are_refused():
    rng = np.random.default_rng(0)
    features = train_classifier_features(
        rng.uniform(size=(20, 3)), np.arange(20) % 2, num_features=4, max_passes=1
    )
    with pytest.raises(ValueError, match=r"images must have shape \(n, 3\), got \(2, 4\)"):
        features(np.zeros((2, 4)))
