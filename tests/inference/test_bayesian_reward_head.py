"""The posterior of a reward head: against a grid and a normal law, its bounds, its ArviZ object."""

import arviz
import jax
import numpy as np
import pytest

from bayesdiv.inference.bayesian_reward_head import BayesianRewardHead


def make_rows(num_p=400, num_q=400, seed=0, width=2):
    generator = np.random.default_rng(seed)
    p = generator.normal(size=(num_p, width)) + np.array([0.5] + [0.0] * (width - 1))
    return p, generator.normal(size=(num_q, width))


@pytest.fixture(scope="module")
def fitted():
    return BayesianRewardHead().fit(*make_rows(), rng_key=jax.random.key(0))


def test_posterior_of_one_weight_against_a_grid():
    """One feature, so that intercept and weight can be integrated on a grid: mean and spread."""
    p, q = make_rows(60, 40, width=1)
    head = BayesianRewardHead(prior_scale=0.7, num_samples=500, num_warmup=200)
    found = head.fit(p, q, rng_key=jax.random.key(0))
    rows = np.concatenate([p, q])[:, 0]
    x = (rows - rows.mean()) / rows.std()
    labels = np.concatenate([np.ones(60), np.zeros(40)])
    weight, intercept = np.meshgrid(np.linspace(-1, 2.5, 181), np.linspace(-2, 3, 181))
    logits = intercept[..., None] + weight[..., None] * x
    log_density = (labels * logits - np.logaddexp(0, logits)).sum(-1)
    log_density += -0.5 * (weight / 0.7) ** 2 - 0.5 * (intercept / 5.0) ** 2
    mass = np.exp(log_density - log_density.max())
    mass /= mass.sum()
    mean = (mass * weight).sum()
    spread = np.sqrt((mass * (weight - mean) ** 2).sum())
    draws = found.samples["weights"][..., 0]
    ess = arviz.ess(draws)
    assert ess > 200
    assert abs(draws.mean() - mean) < 5.0 * spread / np.sqrt(ess)
    assert draws.std() == pytest.approx(spread, rel=0.2)


def test_counts_do_not_shift_the_reward():
    """Thrice as many positives: the mean reward of a point is that of equal classes, nearly."""
    many = BayesianRewardHead().fit(*make_rows(3000, 1000), rng_key=jax.random.key(0))
    point = np.array([[0.25, 0.0]])
    # N(½, 1) against N(0, 1) have equal density at ¼.
    draws = many.reward_draws(point)[:, 0]
    assert abs(draws.mean()) < 5.0 * draws.std()
    assert draws.std() < 0.1
    assert abs(many.offset - np.log(3.0)) < 1e-12


def test_bounds_are_quantiles_that_widen_away_from_the_data(fitted):
    near, far = np.array([[0.2, 0.0]]), np.array([[8.0, -8.0]])
    gaps = []
    for point in (near, far):
        draws = fitted.reward_draws(point)[:, 0]
        assert draws.shape == (600,)
        bound = fitted.lower_confidence_bound(point, level=0.1)[0]
        assert np.mean(draws < bound) == pytest.approx(0.1, abs=0.01)
        gaps.append(fitted.mean_reward(point)[0] - bound)
    assert gaps[1] > 5.0 * gaps[0] > 0.0


def test_shapes_of_candidates(fitted):
    candidates = np.zeros((3, 4, 2))
    assert fitted.reward_draws(candidates).shape == (600, 3, 4)
    assert fitted.mean_reward(candidates).shape == (3, 4)
    assert fitted.lower_confidence_bound(candidates).shape == (3, 4)


def test_features_without_spread_are_left_out():
    p, q = (
        np.concatenate([rows, np.full((len(rows), 1), 3.0)], axis=1) for rows in make_rows(50, 50)
    )
    head = BayesianRewardHead(num_warmup=50, num_samples=20)
    found = head.fit(p, q, rng_key=jax.random.key(0))
    assert found.samples["weights"].shape == (2, 20, 2)
    assert np.isfinite(found.reward_draws(p)).all()


def test_predictions_are_calibrated(fitted):
    predicted, observed = fitted.predictive_calibration(*make_rows(4000, 4000, seed=1), num_bins=5)
    assert (np.diff(predicted) > 0.0).all()
    error = np.sqrt(observed * (1.0 - observed) / 1600)
    # Five standard errors of the share, and as much for the posterior's own width.
    assert (np.abs(predicted - observed) < 5.0 * error + 0.06).all()


def test_chains_agree_and_go_to_arviz(fitted):
    container = fitted.to_arviz(kind="init_sft")
    assert dict(container.posterior["weights"].sizes) == {"chain": 2, "draw": 300, "feature": 2}
    assert set(container.sample_stats) >= {"diverging", "lp", "n_steps", "acceptance_rate"}
    summary = arviz.summary(container)
    assert (summary["r_hat"] < 1.05).all()
    assert (summary["ess_bulk"] > 200).all()
    assert int(container.sample_stats["diverging"].sum()) == 0
    assert container.posterior.attrs["kind"] == "init_sft"


SETTINGS = {
    "prior": (dict(prior_scale=0.0), "prior_scale must be positive and finite, got 0.0"),
    "samples": (dict(num_samples=0), "num_samples must be a whole number of at least 1, got 0"),
    "accept": (dict(target_accept=1.0), r"target_accept must be in \(0, 1\), got 1.0"),
}


@pytest.mark.parametrize(("settings", "message"), SETTINGS.values(), ids=SETTINGS)
def test_refused_settings(settings, message):
    with pytest.raises(ValueError, match=message):
        BayesianRewardHead(**settings)


def test_refused_rows(fitted):
    p, q = make_rows(20, 20)
    head, key = BayesianRewardHead(), jax.random.key(0)
    with pytest.raises(ValueError, match=r"negatives must be features of shape \(n, width\)"):
        head.fit(p, q[0], rng_key=key)
    with pytest.raises(ValueError, match="features of one width, got 2 and 1"):
        head.fit(p, q[:, :1], rng_key=key)
    q[3, 1] = np.nan
    with pytest.raises(ValueError, match="negatives must be finite, got otherwise in row 3"):
        head.fit(p, q, rng_key=key)
    with pytest.raises(ValueError, match="features must have spread, got the same row everywhere"):
        head.fit(np.ones((5, 2)), np.ones((5, 2)), rng_key=key)
    with pytest.raises(ValueError, match="may differ by at most 10 times"):
        head.fit(p, np.ones((1, 2)), rng_key=key)
    with pytest.raises(ValueError, match=r"level must be in \(0, 1\), got 0.0"):
        fitted.lower_confidence_bound(p, level=0.0)
    with pytest.raises(
        ValueError, match="features must have width 2, as the head was fitted on, g"
    ):
        fitted.reward_draws(p[:, :1])
    with pytest.raises(ValueError, match="num_bins must be a whole number of at least 1, got 0"):
        fitted.predictive_calibration(p, p, num_bins=0)
