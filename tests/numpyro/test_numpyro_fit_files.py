"""``fit`` in NumPyro over time: seeds, interruptions, more steps, files and precision."""

import pickle

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest

from bayesdiv.fitting import _progress, _result
from bayesdiv.numpyro import FitResult, fit
from bayesdiv.numpyro._fit import _as_number


def normal_mean(y):
    mean = numpyro.sample("mean", dist.Normal(0.0, 3.0))
    with numpyro.plate("rows", len(y)):
        numpyro.sample("y", dist.Normal(mean, 1.0), obs=y)


Y_SMALL = np.array([0.5, 1.5, 2.5])


@pytest.mark.slow
def test_a_seed_is_a_number_or_a_key():
    one, same, key = (
        fit(normal_mean, Y_SMALL, seed=seed, max_steps=100, num_restarts=1, progress_bar=False)
        for seed in (3, np.int64(3), jax.random.key(3))
    )
    np.testing.assert_array_equal(one.losses, same.losses)
    assert np.any(one.losses[0] != key.losses[0])
    assert key.seed == _as_number(jax.random.PRNGKey(3)) != _as_number(jax.random.key(4))


# With a warm start and restarts it takes three whole fits.
@pytest.mark.parametrize(
    ("limits", "options"),
    [
        ((2,), {"max_steps": 200}),
        pytest.param((2, 11), {"objective": "jensen_shannon"}, marks=pytest.mark.slow),
    ],
    ids=["one_stage", "two_stages"],
)
def test_an_interrupted_fit_resumes_to_the_same_numbers(limits, options, tmp_path, monkeypatch):
    options = {"guide": "mean_field", "progress_bar": False, **options}
    whole = fit(normal_mean, Y_SMALL, **options)
    path = tmp_path / "fit.pickle"
    update = _progress.FitProgress.update
    for limit in limits:
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
        jax.tree.map(np.testing.assert_array_equal, resumed.params, whole.params)
        assert FitResult.load(path).verdict == resumed.verdict


def test_too_few_steps_are_said_and_can_be_added():
    result = fit(normal_mean, Y_SMALL, max_steps=100, progress_bar=False)
    assert not result.converged
    assert "Not converged: call resume()" in str(result)
    assert "NOT converged" in str(result)
    result.resume(2000, progress_bar=False)
    assert result.converged
    assert all(len(losses) > 100 for losses in result.losses)
    assert result.verdict.log_evidence == pytest.approx(
        float(
            dist.MultivariateNormal(jnp.zeros(3), np.eye(3) + 9.0).log_prob(jnp.asarray(Y_SMALL))
        ),
        abs=0.01,
    )


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
    with pytest.raises(TypeError, match="holds a builtins.list, expected a bayesdiv.numpyro"):
        FitResult.load(path)


def test_a_model_that_is_tied_to_float32_is_fitted_in_it():
    def model(y):
        mean = numpyro.sample("mean", dist.Normal(jnp.float32(0.0), jnp.float32(3.0)))
        total, _ = jax.lax.scan(
            lambda carry, row: (carry + row * mean, None), jnp.zeros((), jnp.float32), y
        )
        numpyro.sample("y", dist.Normal(total, jnp.float32(1.0)), obs=jnp.float32(4.0))

    with jax.enable_x64(new_val=False):
        y = jnp.ones(2, jnp.float32)
        result = fit(model, y, num_restarts=1, progress_bar=False)
        posterior = result.guide.get_posterior(result.params)
    assert not result.double
    # Two times the mean is observed at 4 with unit noise.
    variance = 1.0 / (4.0 + 1.0 / 9.0)
    assert float(posterior.mean[0]) == pytest.approx(8.0 * variance, abs=0.02)
    assert float(posterior.variance[0]) == pytest.approx(variance, rel=0.05)


def test_the_progress_bar_shows_stages(capsys):
    fit(normal_mean, Y_SMALL, max_steps=100, num_restarts=1)
    assert "full_rank, reverse_kl (1)" in capsys.readouterr().out
