"""``fit`` in Pyro: guides of one's own, files between processes, and errors."""

import subprocess
import sys
import textwrap

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer.autoguide import AutoNormal
from torch.distributions import constraints

from bayesdiv.pyro import FitResult, fit

Y_SMALL = torch.tensor([0.5, 1.5, 2.5])


def normal_mean(y):
    mean = pyro.sample("mean", dist.Normal(0.0, 3.0))
    with pyro.plate("rows", len(y)):
        pyro.sample("y", dist.Normal(mean, 1.0), obs=y)


@pytest.fixture(autouse=True)
def empty_store():
    pyro.clear_param_store()


def gamma_model(y):
    rate = pyro.sample("rate", dist.Gamma(2.0, 1.0))
    with pyro.plate("rows", len(y)):
        pyro.sample("y", dist.Poisson(rate), obs=y)


def gamma_guide(y):
    shape = pyro.param("shape", torch.tensor(1.0), constraint=constraints.positive)
    scale = pyro.param("scale", torch.tensor(1.0), constraint=constraints.positive)
    pyro.sample("rate", dist.Gamma(shape, 1.0 / scale))


COUNTS = torch.tensor([2.0, 3.0, 1.0])


class TestOwnGuide:
    def test_a_function_and_its_place_in_the_store(self, tmp_path):
        result = fit(gamma_model, COUNTS, guide=gamma_guide, progress_bar=False)
        store = pyro.get_param_store()
        shape, scale = store["shape"].item(), store["scale"].item()
        # Gamma is conjugate: shape 2 + Σy, rate 1 + n.
        assert result.converged
        assert shape == pytest.approx(8.0, rel=0.15)
        assert shape * scale == pytest.approx(2.0, rel=0.03)
        assert result.guide_name == "gamma_guide"
        path = tmp_path / "fit.pickle"
        result.save(path)
        expected = result.to_arviz(num_draws=20).posterior["rate"].values
        pyro.clear_param_store()
        copy = FitResult.load(path)
        assert store["shape"].item() == shape
        np.testing.assert_array_equal(copy.to_arviz(num_draws=20).posterior["rate"], expected)

    def test_a_module_resumes(self, tmp_path):
        result = fit(
            gamma_model, COUNTS, guide=AutoNormal(gamma_model), max_steps=100, progress_bar=False
        )
        path = tmp_path / "fit.pickle"
        result.save(path)
        pyro.clear_param_store()
        copy = FitResult.load(path).resume(3000, progress_bar=False)
        assert copy.converged
        assert float(copy.guide.median()["rate"]) == pytest.approx(1.9, abs=0.2)
        # What took steps is what the guide draws from.
        expected = np.exp(copy.guide.locs.rate.item())
        assert float(copy.guide.median()["rate"]) == pytest.approx(expected, rel=1e-6)

    def test_what_fails_is_told(self):
        def model():
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.factor("broken", (-1.0 - z**2).log())

        def guide():
            loc = pyro.param("loc", torch.tensor(0.0))
            pyro.sample("z", dist.Normal(loc, 1.0))

        with pyro.validation_enabled(is_validate=False):
            result = fit(model, guide=guide, progress_bar=False)
        assert not result.converged
        assert result.losses[0].size == 0
        assert any("Steps were taken back" in line for line in result.verdict.advice)
        assert not result.verdict.trustworthy


def test_a_fit_in_one_process_is_read_in_another(tmp_path, monkeypatch):
    (tmp_path / "own_model.py").write_text(
        textwrap.dedent("""
        import pyro, torch
        import pyro.distributions as dist
        def model(y):
            mean = pyro.sample("mean", dist.Normal(0.0, 3.0))
            with pyro.plate("rows", len(y)):
                pyro.sample("y", dist.Normal(mean, 1.0), obs=y)
        def guide(y):
            loc = pyro.param("loc", torch.tensor(0.0))
            pyro.sample("mean", dist.Normal(loc, 0.5))
        """)
    )
    write = (
        "import torch, own_model; from bayesdiv.pyro import fit;"
        "fit(own_model.model, torch.ones(3), guide=own_model.guide, max_steps=200,"
        "progress_bar=False).save('fit.pickle')"
    )
    done = subprocess.run(
        [sys.executable, "-c", write], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    monkeypatch.syspath_prepend(tmp_path)
    result = FitResult.load(tmp_path / "fit.pickle")
    assert result.to_arviz(num_draws=7).posterior["mean"].shape == (1, 7)


class TestErrors:
    def _refuse(self, model, message, *args, error=ValueError, **options):
        with pytest.raises(error, match=message):
            fit(model, *args, progress_bar=False, **options)

    def test_unknown_guide(self):
        self._refuse(normal_mean, "guide must be one of mean_field.*'fullrank'", guide="fullrank")

    def test_no_guide(self):
        self._refuse(normal_mean, "guide must be one of.*got int", guide=3, error=TypeError)

    def test_unknown_objective(self):
        self._refuse(normal_mean, "reverse_kl.*'kl'", Y_SMALL, objective="kl")

    def test_no_restarts(self):
        self._refuse(normal_mean, "num_restarts must be at least 1, got 0", num_restarts=0)

    def test_less_than_a_window(self):
        self._refuse(normal_mean, "max_steps must be at least 100.*got 99", max_steps=99)

    def test_discrete_sites(self):
        def model():
            pyro.sample("flip", dist.Bernoulli(0.5))

        self._refuse(model, "site 'flip' is discrete.*marginalise it")

    def test_nothing_latent(self):
        def model():
            pyro.sample("y", dist.Normal(0.0, 1.0), obs=torch.tensor(0.0))

        self._refuse(model, "model has no latent sites")

    def test_subsampled_plates(self):
        def model():
            mean = pyro.sample("mean", dist.Normal(0.0, 1.0))
            with pyro.plate("rows", 10, subsample_size=5):
                pyro.sample("y", dist.Normal(mean, 1.0), obs=torch.zeros(5))

        self._refuse(model, r"plate 'rows' is subsampled \(5 of 10\).*pyro.infer.SVI")

    def test_no_finite_start(self):
        broken = torch.tensor([1.0, float("nan")])
        with pyro.validation_enabled(is_validate=False):
            self._refuse(normal_mean, "no starting point has a finite", broken)
