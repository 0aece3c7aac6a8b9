"""Comparison of objectives: optima in closed form, failures as rows, table, figure, bad input."""

import math

import arviz
import numpy as np
import pytest

from bayesdiv.diagnostics import Comparison, compare
from bayesdiv.diagnostics._compare import name_objectives
from bayesdiv.diagnostics._plots import plot_comparison
from bayesdiv.divergences import JensenShannon, ReverseKL

CORRELATION = 0.8
COVARIANCE = np.array([[1.0, CORRELATION], [CORRELATION, 1.0]])
LOG_EVIDENCE = -1.5
NUM_STEPS = 600


def pyro_parts():
    import pyro
    import pyro.distributions as dist
    import torch
    from pyro.infer.autoguide import AutoNormal

    torch.set_default_dtype(torch.float64)
    covariance = torch.tensor(COVARIANCE)

    def model():
        z = pyro.sample("z", dist.MultivariateNormal(torch.zeros(2), covariance))
        pyro.deterministic("twice", 2.0 * z)
        pyro.factor("evidence", torch.tensor(LOG_EVIDENCE))

    return model, AutoNormal


def numpyro_parts():
    import numpyro
    import numpyro.distributions as dist
    from numpyro.infer.autoguide import AutoNormal

    def model():
        z = numpyro.sample("z", dist.MultivariateNormal(np.zeros(2), COVARIANCE))
        numpyro.deterministic("twice", 2.0 * z)
        numpyro.factor("evidence", LOG_EVIDENCE)

    return model, AutoNormal


PARTS = {"pyro": pyro_parts, "numpyro": numpyro_parts}


@pytest.fixture(scope="module", params=list(PARTS))
def compared(request):
    """Mean-field fits of a correlated normal, one of which fails."""
    import torch

    dtype = torch.get_default_dtype()
    model, guide = PARTS[request.param]()
    objectives = {
        "reverse_kl": "reverse_kl",
        "forward": {"divergence": "forward_kl", "num_particles": 32},
        "sliced": {"divergence": "sliced_wasserstein", "warmup": 100},
        "broken": "no_such",
    }
    reference = {"z": np.random.default_rng(0).multivariate_normal(np.zeros(2), COVARIANCE, 4_000)}
    result = compare(
        model,
        guide,
        objectives,
        reference=reference,
        num_steps=NUM_STEPS,
        num_seeds=2,
        learning_rate=0.05,
        num_draws=2_000,
        progress_bar=False,
    )
    torch.set_default_dtype(dtype)
    assert result.backend == request.param
    return result


def rows_of(compared):
    return {row["objective"]: row for row in compared.rows}


def test_reverse_kl_is_too_narrow_as_theory_says(compared):
    row = rows_of(compared)["reverse_kl"]
    # The optimum has the conditional standard deviations, the square roots of 1 − ρ².
    assert abs(row["sd_ratio"] - math.sqrt(1 - CORRELATION**2)) < 0.05
    assert row["coverage_90"] < 0.75
    assert row["fits"] == 2
    assert row["failed"] == 0
    assert row["error"] is None


def test_forward_kl_has_the_marginal_sds(compared):
    row = rows_of(compared)["forward"]
    assert abs(row["sd_ratio"] - 1.0) < 0.1
    assert abs(row["coverage_90"] - 0.9) < 0.05
    assert row["mean_error"] < 0.15
    assert abs(row["log_evidence"] - LOG_EVIDENCE) < 0.15
    assert row["verdict"] in {"good", "ok"}
    # A product of standard normals and the target: SW₂ is that of N(0, λ) against N(0, 1), λ on a
    # direction (1 + ρ sin 2θ).
    angle = np.linspace(0.0, np.pi, 10_001)
    exact = np.mean((np.sqrt(1 + CORRELATION * np.sin(2 * angle)) - 1) ** 2) ** 0.5
    assert abs(row["sliced_wasserstein"] - exact) < 0.1


def test_wide_fits_have_better_weights_than_narrow_ones(compared):
    rows = rows_of(compared)
    assert rows["forward"]["pareto_k"] < rows["reverse_kl"]["pareto_k"]
    assert rows["forward"]["ess"] > rows["reverse_kl"]["ess"]


def test_two_sample_objectives_take_part(compared):
    row = rows_of(compared)["sliced"]
    assert row["error"] is None
    assert np.isfinite(row["sd_ratio"])


def test_a_failed_fit_is_a_row(compared):
    row = rows_of(compared)["broken"]
    assert row["failed"] == 2
    assert row["verdict"] == "failed"
    assert row["error"].startswith("ValueError: objective must be one of reverse_kl")
    assert "no_such" in compared.fits["broken"][0].traceback
    assert np.isnan(row["sd_ratio"])
    with pytest.raises(ValueError, match="'broken' has no fit to convert"):
        compared.to_arviz("broken")
    with pytest.raises(ValueError, match="label must be one of"):
        compared.to_arviz("unknown")


def test_table_and_markdown_have_every_objective(compared):
    text, markdown = str(compared), compared.to_markdown()
    for label in compared.labels:
        assert label in text
        assert sum(line.startswith(f"| {label} |") for line in markdown.splitlines()) == 1
    assert "mean ± sd over 2 seeds" in text
    assert "broken: 2 of 2 failed, ValueError" in text
    ratio = rows_of(compared)["reverse_kl"]["sd_ratio"]
    assert f"{ratio:.2f} ±" in text
    lengths = {line.count("|") for line in markdown.splitlines()}
    assert len(lengths) == 1


def test_seeds_are_chains(compared):
    found = compared.to_arviz("forward")
    assert found.posterior["z"].shape == (2, 2_000, 2)
    assert found.attrs["objective"] == "forward"
    assert len(found.attrs["loss_history"]) == 2 * NUM_STEPS
    np.testing.assert_allclose(found.posterior["twice"], 2 * found.posterior["z"])
    # The same optimum from both seeds, hence one posterior.
    assert float(arviz.rhat(found, var_names=["z"])["z"].max()) < 1.05


def test_figure_shows_marginals_and_the_panels(compared):
    figure = compared.plot()
    axes = figure.axes
    titles = [axis.get_title() for axis in axes]
    assert titles[:2] == ["z[0]", "z[1]"]
    labels = [axis.get_xlabel() for axis in axes[2:]]
    assert labels == ["sd / reference sd", "reference draws covered", "Pareto k"]
    assert [t.get_text() for t in axes[2].get_yticklabels()] == compared.labels
    assert any(text.get_text() == "failed" for text in axes[2].texts)
    chosen = compared.plot(["z[1]"], highlight=["forward"])
    assert [axis.get_title() for axis in chosen.axes[:1]] == ["z[1]"]
    assert len(chosen.axes[0].lines) == 1


def test_figure_refuses_what_it_does_not_have(compared):
    with pytest.raises(ValueError, match=r"variables must name one to 4 coordinates out of z\[0\]"):
        compared.plot(["z[2]"])
    with pytest.raises(ValueError, match=r"highlight must name one to 4 of .* got \['broken'\]"):
        compared.plot(highlight=["broken"])
    broken = Comparison({"broken": compared.fits["broken"]}, None, compared.backend)
    with pytest.raises(ValueError, match="every fit failed"):
        plot_comparison(broken)
    elsewhere = Comparison(compared.fits, {"other": np.zeros(5)}, compared.backend)
    with pytest.raises(ValueError, match="no latent variable that all fits and the reference"):
        elsewhere.plot()


def test_without_a_reference_the_weights_are_what_is_left(compared):
    alone = Comparison(compared.fits, None, compared.backend)
    assert "sd ratio" not in str(alone)
    assert "Pareto k" in str(alone)
    assert [axis.get_xlabel() for axis in alone.plot().axes[2:]] == [
        "effective sample size",
        "Pareto k",
    ]


def test_seeds_repeat_and_leave_the_store_alone():
    import pyro
    import torch
    from pyro.infer.autoguide import AutoNormal

    model, _ = pyro_parts()
    pyro.param("mine", torch.tensor(1.0))
    torch.manual_seed(5)
    options = {"num_steps": 20, "num_seeds": 1, "num_draws": 30, "progress_bar": False}
    first, again = (compare(model, AutoNormal, [ReverseKL()], **options) for _ in range(2))
    following = torch.rand(2)
    torch.manual_seed(5)
    assert torch.equal(following, torch.rand(2))
    assert list(pyro.get_param_store().keys()) == ["mine"]
    assert first.labels == ["ReverseKL()"]
    assert first.rows[0]["log_evidence"] == again.rows[0]["log_evidence"]


def test_losses_models_and_optimisers_of_the_host_are_taken(capsys):
    import pyro
    import pyro.distributions as dist
    import torch
    from pyro.infer import Trace_ELBO
    from pyro.infer.autoguide import AutoNormal

    from bayesdiv.pyro import objective

    class Model(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.location = torch.nn.Parameter(torch.zeros(()))

        def forward(self, y):
            pyro.module("model", self)
            z = pyro.sample("z", dist.Normal(self.location, 1.0))
            pyro.sample("y", dist.Normal(z, 1.0), obs=y)

    model = Model()
    loss = objective("jensen_shannon", num_particles=8)
    found = compare(
        model,
        AutoNormal,
        {"host": Trace_ELBO(), "ours": loss, "name": "reverse_kl"},
        torch.tensor(2.0),
        optimizer=pyro.optim.Adam({"lr": 0.05}),
        num_steps=30,
        num_seeds=1,
        num_draws=30,
        num_particles=4,
    )
    assert [row["error"] for row in found.rows] == [None, None, None]
    assert loss.step == 0
    assert model.location.item() == 0.0
    assert "done" in capsys.readouterr().out


def test_a_loss_that_is_not_finite_is_a_failure():
    from pyro.infer import Trace_ELBO

    class Diverging(Trace_ELBO):
        def loss_and_grads(self, model, guide, *args, **kwargs):
            super().loss_and_grads(model, guide, *args, **kwargs)
            return math.inf

    model, guide = pyro_parts()
    options = {"num_steps": 5, "num_seeds": 1, "num_draws": 5, "progress_bar": False}
    found = compare(model, guide, [Diverging()], **options)
    assert found.rows[0]["error"] == "ValueError: the loss at step 0 is inf."


def test_a_loss_that_is_not_finite_is_a_failure_in_numpyro():
    import jax.numpy as jnp
    import numpyro
    import numpyro.distributions as dist
    from numpyro.infer import Trace_ELBO

    def broken():
        z = numpyro.sample("z", dist.Normal(0.0, 1.0))
        numpyro.factor("undefined", jnp.log(-jnp.exp(z)))

    def guide():
        numpyro.sample("z", dist.Normal(numpyro.param("location", 0.0), 1.0))

    options = {"num_steps": 6, "num_seeds": 1, "num_draws": 5, "progress_bar": False}
    found = compare(broken, lambda model: guide, [Trace_ELBO()], **options)
    assert found.backend == "numpyro"
    assert "the loss at step 0 is nan" in found.rows[0]["error"]


def test_labels_and_entries():
    named = name_objectives(["renyi", JensenShannon(), {"divergence": "alpha", "order": 0.5}])
    assert list(named) == ["renyi", "JensenShannon()", "alpha (order=0.5)"]
    assert named["alpha (order=0.5)"] == ("alpha", {"order": 0.5})
    with pytest.raises(ValueError, match="different labels, got 'renyi' twice"):
        name_objectives(["renyi", "renyi"])
    with pytest.raises(ValueError, match="at least one entry"):
        name_objectives([])
    with pytest.raises(ValueError, match=r"must have 'divergence' among them, got \['order'\]"):
        name_objectives([{"order": 0.5}])
    with pytest.raises(TypeError, match="objectives must be a list or a mapping"):
        name_objectives("renyi")


def test_what_compare_cannot_use_is_refused():
    def model():
        return None

    def guide(model):
        return model

    with pytest.raises(ValueError, match="num_steps must be an integer of at least 1, got 0"):
        compare(model, guide, ["renyi"], num_steps=0)
    with pytest.raises(ValueError, match="backend must be given"):
        compare(model, guide, ["renyi"])
    with pytest.raises(ValueError, match="backend must be 'pyro' or 'numpyro', got 'stan'"):
        compare(model, guide, ["renyi"], backend="stan")
    pyro_model, auto = pyro_parts()
    with pytest.raises(TypeError, match="guide must be what makes a guide .* got AutoNormal"):
        compare(pyro_model, auto(pyro_model), ["renyi"])
