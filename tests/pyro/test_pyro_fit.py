"""``fit`` in Pyro: exact posteriors, restarts, files and errors."""

import pickle

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch

from bayesdiv.fitting import _progress, _result
from bayesdiv.pyro import FitResult, fit
from bayesdiv.pyro._target import PyroTarget

NOISE = 5.0
PRIOR = 1000.0


def regression_table():
    """Raw predictors: an intercept, a score in the hundreds, and a year."""
    rng = np.random.default_rng(0)
    x = np.c_[np.ones(40), rng.normal(500.0, 20.0, 40), rng.uniform(1990.0, 2020.0, 40)]
    y = x @ np.array([-300.0, 0.4, 0.2]) + NOISE * rng.standard_normal(40)
    return torch.tensor(x), torch.tensor(y)


X, Y = regression_table()
PRECISION = X.T @ X / NOISE**2 + torch.eye(3) / PRIOR**2
COVARIANCE = torch.linalg.inv(PRECISION)
MEAN = COVARIANCE @ X.T @ Y / NOISE**2
SD = COVARIANCE.diagonal().sqrt()


def regression(x, y):
    slopes = pyro.sample("slopes", dist.Normal(torch.zeros(3), PRIOR).to_event(1))
    with pyro.plate("rows", len(x)):
        pyro.sample("y", dist.Normal((x * slopes).sum(-1), NOISE), obs=y)


def matrix_regression(x, y):
    """The same with a product that does not take particles on the left of plates."""
    slopes = pyro.sample("slopes", dist.Normal(torch.zeros(3), PRIOR).to_event(1))
    with pyro.plate("rows", len(x)):
        pyro.sample("y", dist.Normal(x @ slopes, NOISE), obs=y)


def normal_mean(y):
    mean = pyro.sample("mean", dist.Normal(0.0, 3.0))
    with pyro.plate("rows", len(y)):
        pyro.sample("y", dist.Normal(mean, 1.0), obs=y)


def schools(y, sigma):
    centre = pyro.sample("centre", dist.Normal(0.0, 5.0))
    spread = pyro.sample("spread", dist.HalfNormal(5.0))
    with pyro.plate("schools", len(y)):
        offset = pyro.sample("offset", dist.Normal(0.0, 1.0))
        effect = pyro.deterministic("effect", centre + spread * offset)
        pyro.sample("y", dist.Normal(effect, sigma), obs=y)


def correlated(correlation):
    covariance = torch.tensor([[1.0, correlation], [correlation, 1.0]])
    pyro.sample("z", dist.MultivariateNormal(torch.zeros(2), covariance))


Y_SMALL = torch.tensor([0.5, 1.5, 2.5])


@pytest.fixture(autouse=True)
def empty_store():
    pyro.clear_param_store()


@pytest.fixture(scope="module")
def full_rank():
    return fit(regression, X, Y, progress_bar=False)


@pytest.fixture(scope="module")
def mean_field():
    return fit(regression, X, Y, guide="mean_field", progress_bar=False)


def _moments(result):
    loc, scale = result.guide._loc_scale(*result.args, **result.kwargs)
    return loc.detach(), scale.detach()


def test_full_rank_is_the_posterior(full_rank):
    assert full_rank.converged
    assert full_rank.verdict.trustworthy
    for guide in full_rank.guides:
        posterior = guide.get_posterior()
        torch.testing.assert_close((posterior.mean - MEAN) / SD, 0.0 * SD, atol=0.01, rtol=0.0)
        scale = torch.outer(SD, SD)
        found = posterior.covariance_matrix / scale
        torch.testing.assert_close(found, COVARIANCE / scale, atol=0.02, rtol=0.0)


def test_the_evidence_is_exact(full_rank):
    joint = NOISE**2 * torch.eye(len(Y)) + PRIOR**2 * X @ X.T
    exact = dist.MultivariateNormal(torch.zeros(len(Y)), joint.double()).log_prob(Y)
    assert full_rank.verdict.log_evidence == pytest.approx(float(exact), abs=0.01)


def test_restarts_are_chains(full_rank):
    data = full_rank.to_arviz(num_draws=500)
    assert data.posterior["slopes"].shape == (2, 500, 3)
    assert data.sample_stats["log_q"].shape == (2, 500)
    assert data.posterior.attrs["objective"] == "reverse_kl"
    draws = data.posterior["slopes"].values.reshape(-1, 3)
    np.testing.assert_allclose((draws.mean(0) - MEAN.numpy()) / SD.numpy(), 0.0, atol=5 / 1000**0.5)
    again = full_rank.to_arviz(num_draws=500)
    np.testing.assert_array_equal(data.posterior["slopes"], again.posterior["slopes"])
    other = full_rank.to_arviz(num_draws=500, seed=1)
    assert np.any(data.posterior["slopes"].values != other.posterior["slopes"].values)


def test_losses_are_kept_for_every_step(full_rank):
    assert [len(losses) % 100 for losses in full_rank.losses] == [0, 0]
    assert all(losses[0] > losses[-1] for losses in full_rank.losses)


def test_predictive_takes_new_arguments(full_rank):
    new = X[:2].float()
    draws = full_rank.predictive(new, None, num_samples=4000)["y"]
    assert draws.shape == (4000, 2)
    exact = X[:2] @ MEAN
    variance = torch.einsum("ij,jk,ik->i", X[:2], COVARIANCE, X[:2]) + NOISE**2
    assert torch.all((draws.mean(0) - exact).abs() < 5.0 * (variance / 4000).sqrt())
    np.testing.assert_allclose(draws.var(0) / variance, 1.0, atol=5.0 * np.sqrt(2.0 / 4000))
    observed = full_rank.predictive(num_samples=3)["y"]
    torch.testing.assert_close(observed, Y.expand(3, -1))


def test_mean_field_has_the_conditional_scales(mean_field):
    loc, scale = _moments(mean_field)
    np.testing.assert_allclose((loc - MEAN) / SD, 0.0, atol=0.01)
    np.testing.assert_allclose(scale * PRECISION.diagonal().sqrt(), 1.0, atol=0.1)
    assert not mean_field.verdict.trustworthy
    assert "guide='full_rank'" in str(mean_field)
    assert str(mean_field).startswith("mean_field guide, reverse_kl, 2 restarts: ")


def test_mass_covering_is_wider_than_reverse_kl():
    covering = fit(
        correlated, 0.9, guide="mean_field", objective="jensen_shannon", progress_bar=False
    )
    _, scale = _moments(covering)
    assert [name for name, _ in covering.stages] == ["reverse_kl", "jensen_shannon"]
    assert covering.converged
    assert torch.all(scale > 1.2 * np.sqrt(1.0 - 0.9**2))
    assert torch.all(scale < 1.0)


def test_psis_resample_repairs_what_mean_field_misses():
    result = fit(correlated, 0.6, guide="mean_field", num_restarts=1, progress_bar=False)
    raw = result.to_arviz(num_draws=10_000).posterior["z"].values[0]
    repaired = result.psis_resample(num_draws=10_000).posterior["z"].values[0]
    assert abs(np.corrcoef(raw.T)[0, 1]) < 5.0 / 100
    assert np.corrcoef(repaired.T)[0, 1] == pytest.approx(0.6, abs=0.1)
    assert "one restart" in str(result)


@pytest.mark.slow
def test_a_hierarchical_model_with_constrained_sites():
    y = torch.tensor([28.0, 8.0, -3.0, 7.0, -1.0, 1.0, 18.0, 12.0])
    sigma = torch.tensor([15.0, 10.0, 16.0, 11.0, 9.0, 11.0, 10.0, 18.0])
    result = fit(schools, y, sigma, progress_bar=False)
    assert result.converged
    assert result.verdict.agreement < 0.1
    posterior = result.to_arviz(num_draws=200).posterior
    assert np.all(posterior["spread"].values > 0.0)
    expected = posterior["centre"] + posterior["spread"] * posterior["offset"]
    np.testing.assert_allclose(posterior["effect"], expected.transpose(*posterior["effect"].dims))


def test_a_flow_reaches_a_normal_posterior():
    result = fit(regression, X, Y, guide="flow", num_restarts=1, progress_bar=False)
    loc, scale = _moments(result)
    # Moments are those of 4000 draws, after a fit whose own error is a few per cent.
    np.testing.assert_allclose((loc - MEAN) / SD, 0.0, atol=0.15)
    np.testing.assert_allclose(scale / SD, 1.0, atol=0.1)
    assert result.verdict.pareto_k < 0.7


def test_a_flow_in_one_dimension():
    result = fit(normal_mean, Y_SMALL, guide="flow", num_restarts=1, progress_bar=False)
    loc, scale = _moments(result)
    variance = 1.0 / (3.0 + 1.0 / 9.0)
    assert float(loc) == pytest.approx(4.5 * variance, abs=0.1 * variance**0.5)
    assert float(scale) == pytest.approx(variance**0.5, rel=0.1)


def test_a_model_that_does_not_broadcast_is_looped():
    assert PyroTarget(regression, (X, Y), {}).vectorizes
    result = fit(
        matrix_regression,
        X,
        Y,
        guide="mean_field",
        num_restarts=1,
        num_particles=2,
        max_steps=300,
        progress_bar=False,
    )
    assert not result.vectorizes
    loc, _ = _moments(result)
    # Pairs ±ε leave a normal target's means without noise, looped particles included.
    np.testing.assert_allclose((loc - MEAN) / SD, 0.0, atol=0.1)


def test_a_seed_decides_everything_and_leaves_the_users_alone():
    def losses(seed):
        result = fit(
            normal_mean, Y_SMALL, seed=seed, max_steps=100, num_restarts=1, progress_bar=False
        )
        return result.losses[0]

    torch.manual_seed(5)
    before = torch.get_rng_state()
    first = losses(3)
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.get_default_dtype() == torch.float32
    torch.manual_seed(6)
    np.testing.assert_array_equal(first, losses(3))
    assert np.any(first != losses(4))


def test_an_interrupted_fit_resumes_to_the_same_numbers(tmp_path, monkeypatch):
    options = {"objective": "jensen_shannon", "guide": "mean_field", "progress_bar": False}
    whole = fit(normal_mean, Y_SMALL, **options)
    path = tmp_path / "fit.pickle"
    update = _progress.FitProgress.update
    for limit in (2, 11):
        seen = []

        def stop(self, *args, seen=seen, limit=limit):
            seen.append(args)
            if len(seen) > limit:
                raise KeyboardInterrupt
            update(self, *args)

        with monkeypatch.context() as patch:
            patch.setattr(_result.FitProgress, "update", stop)
            with pytest.raises(KeyboardInterrupt):
                fit(normal_mean, Y_SMALL, checkpoint=path, **options)
        part = FitResult.load(path)
        assert not part.converged
        assert part.verdict is None
        resumed = part.resume(progress_bar=False)
        assert resumed is part
        for found, expected in zip(resumed.losses, whole.losses, strict=True):
            np.testing.assert_array_equal(found, expected)
        for found, expected in zip(resumed.guides, whole.guides, strict=True):
            for name, value in expected.state_dict().items():
                torch.testing.assert_close(found.state_dict()[name], value, rtol=0.0, atol=0.0)
        assert FitResult.load(path).converged


def test_too_few_steps_are_said_and_can_be_added():
    result = fit(normal_mean, Y_SMALL, max_steps=100, progress_bar=False)
    assert not result.converged
    assert "Not converged: call resume()" in str(result)
    result.resume(2000, progress_bar=False)
    assert result.converged
    assert all(len(losses) > 100 for losses in result.losses)
    covariance = torch.eye(3, dtype=torch.float64) + 9.0
    exact = dist.MultivariateNormal(torch.zeros(3).double(), covariance).log_prob(Y_SMALL.double())
    assert result.verdict.log_evidence == pytest.approx(float(exact), abs=0.01)


def test_a_result_pickles_and_still_draws(full_rank):
    copy = pickle.loads(pickle.dumps(full_rank))
    found = copy.to_arviz(num_draws=50).posterior["slopes"].values
    np.testing.assert_array_equal(found, full_rank.to_arviz(num_draws=50).posterior["slopes"])
    assert str(copy) == str(full_rank)


def test_saving_a_local_model_is_refused_with_advice(tmp_path):
    def local(y):
        normal_mean(y)

    result = fit(local, Y_SMALL, max_steps=100, num_restarts=1, progress_bar=False)
    with pytest.raises(TypeError, match="does not pickle.*top level of a module"):
        result.save(tmp_path / "fit.pickle")
    assert not list(tmp_path.iterdir())


def test_loading_something_else_is_refused(tmp_path):
    path = tmp_path / "list.pickle"
    path.write_bytes(pickle.dumps([1, 2]))
    with pytest.raises(TypeError, match="holds a builtins.list, expected a bayesdiv.pyro"):
        FitResult.load(path)


def test_arguments_in_single_precision_are_fitted_in_double(full_rank):
    result = fit(regression, X.float(), Y.float(), progress_bar=False)
    assert result.guide.shift.dtype == torch.float64
    loc, _ = _moments(result)
    np.testing.assert_allclose((loc - MEAN) / SD, 0.0, atol=0.02)


def test_a_model_that_is_tied_to_float32_is_fitted_in_it():
    weight = torch.full((1, 1), 2.0)

    def model():
        mean = pyro.sample("mean", dist.Normal(torch.zeros(1), 3.0).to_event(1))
        pyro.sample("y", dist.Normal((mean @ weight).squeeze(-1), 1.0), obs=torch.tensor(4.0))

    result = fit(model, num_restarts=1, progress_bar=False)
    assert not result.double
    assert result.guide.shift.dtype == torch.float32
    loc, scale = _moments(result)
    variance = 1.0 / (4.0 + 1.0 / 9.0)
    assert float(loc) == pytest.approx(8.0 * variance, abs=0.02)
    assert float(scale) == pytest.approx(variance**0.5, rel=0.05)


def test_the_progress_bar_shows_stages(capsys):
    fit(normal_mean, Y_SMALL, max_steps=100, num_restarts=1)
    assert "full_rank, reverse_kl (1)" in capsys.readouterr().out
