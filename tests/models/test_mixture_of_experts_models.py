"""The mixture-of-experts models of both hosts: one joint density, SVI, NUTS, subsampling."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import pyro
import pytest
import torch
from helpers import to_numpy
from moe_simulator import simulate
from numpyro.infer import MCMC, NUTS, Predictive
from numpyro.infer.autoguide import AutoNormal
from numpyro.infer.util import log_density
from pyro.infer.autoguide import AutoNormal as PyroAutoNormal
from scipy import stats

from bayesdiv import _mixture_of_experts as formulas
from bayesdiv import numpyro as bayesdiv_numpyro
from bayesdiv import pyro as bayesdiv_pyro
from bayesdiv.inference.moe_em import fit_experts
from bayesdiv.models import mixture_of_experts_numpyro, mixture_of_experts_pyro

CASES = {
    "normal": {"num_experts": 3},
    "student_t": {"num_experts": 2, "experts": "student_t", "degrees_of_freedom": 4.0},
    "bernoulli": {"num_experts": 2, "experts": "bernoulli"},
    "one expert": {"num_experts": 1},
}


def rows_and_parameters(case, num_rows=30):
    settings = CASES[case]
    num_experts, experts = settings["num_experts"], settings.get("experts", "normal")
    rng = np.random.default_rng(1)
    predictors = rng.normal(size=(num_rows, 2))
    outcome = rng.normal(size=num_rows)
    if experts == "bernoulli":
        outcome = (outcome > 0.0).astype(float)
    values = {"coefficients": rng.normal(size=(num_experts, 3))}
    if num_experts > 1:
        values["gate"] = rng.normal(size=(num_experts - 1, 3))
    if experts != "bernoulli":
        values["scale"] = np.exp(rng.normal(size=num_experts))
    return predictors, outcome, values


def log_joint(predictors, outcome, values, num_experts, experts="normal", degrees_of_freedom=None):
    """Priors by SciPy, the likelihood by the functions that have tests of their own."""
    total = stats.norm(0.0, 10.0).logpdf(values["coefficients"]).sum()
    gate = np.zeros((num_experts, 3))
    if num_experts > 1:
        total += stats.norm(0.0, 5.0).logpdf(values["gate"]).sum()
        gate[:-1] = values["gate"]
    scale = values.get("scale")
    if scale is not None:
        total += stats.halfnorm(scale=1.0).logpdf(scale).sum()
        scale = jnp.asarray(scale)
    features = jnp.concatenate([jnp.ones((len(predictors), 1)), jnp.asarray(predictors)], axis=1)
    parameters = formulas.MixtureOfExpertsParameters(
        jnp.asarray(gate), jnp.asarray(values["coefficients"]), scale
    )
    rows = formulas.log_prob(
        jnp.asarray(outcome),
        features,
        parameters,
        experts=experts,
        degrees_of_freedom=degrees_of_freedom,
    )
    return total + float(rows.sum())


@pytest.mark.parametrize("case", CASES)
def test_joint_densities_of_both_hosts(case):
    predictors, outcome, values = rows_and_parameters(case)
    expected = log_joint(predictors, outcome, values, **CASES[case])
    numpyro_model = partial(mixture_of_experts_numpyro.mixture_of_experts, **CASES[case])
    arrays = {name: jnp.asarray(value) for name, value in values.items()}
    found, _ = log_density(
        numpyro_model, (jnp.asarray(predictors), jnp.asarray(outcome)), {}, arrays
    )
    np.testing.assert_allclose(float(found), expected, rtol=1e-12)
    pyro_model = partial(mixture_of_experts_pyro.mixture_of_experts, **CASES[case])
    tensors = {name: torch.tensor(value) for name, value in values.items()}
    conditioned = pyro.condition(pyro_model, data=tensors)
    trace = pyro.poutine.trace(conditioned).get_trace(
        torch.tensor(predictors), torch.tensor(outcome)
    )
    np.testing.assert_allclose(float(trace.log_prob_sum()), expected, rtol=1e-12)


def test_subsampled_likelihoods_average_to_the_whole():
    # Three rows, one at a time: every subsample by name, so that the mean is exact.
    predictors, outcome, values = rows_and_parameters("normal", num_rows=3)
    whole = log_joint(predictors, outcome, values, **CASES["normal"])
    settings = {**CASES["normal"], "subsample_size": 1}
    parts, tensor_parts = [], []
    for row in range(3):
        chosen = jnp.array([row])
        model = numpyro.handlers.substitute(
            partial(mixture_of_experts_numpyro.mixture_of_experts, **settings), {"data": chosen}
        )
        arrays = {name: jnp.asarray(value) for name, value in values.items()}
        seeded = numpyro.handlers.seed(model, 0)
        found, _ = log_density(seeded, (jnp.asarray(predictors), jnp.asarray(outcome)), {}, arrays)
        parts.append(float(found))
        tensors = {name: torch.tensor(value) for name, value in values.items()}
        conditioned = pyro.condition(
            partial(mixture_of_experts_pyro.mixture_of_experts, **settings),
            data={**tensors, "data": torch.tensor([row])},
        )
        trace = pyro.poutine.trace(conditioned).get_trace(
            torch.tensor(predictors), torch.tensor(outcome)
        )
        tensor_parts.append(float(trace.log_prob_sum()))
    np.testing.assert_allclose(parts, tensor_parts, rtol=1e-12)
    np.testing.assert_allclose(np.mean(parts), whole, rtol=1e-12)


@pytest.mark.parametrize("divergence", ["reverse_kl", "jensen_shannon"])
def test_numpyro_svi_improves_on_one_expert(divergence):
    predictors, outcome, _ = simulate(200, dim=1, num_experts=2, seed=2)
    outcome = (outcome - outcome.mean()) / outcome.std()
    rows = jnp.asarray(predictors), jnp.asarray(outcome)
    model = partial(mixture_of_experts_numpyro.mixture_of_experts, num_experts=2)
    # SVI starts where EM ends: from afar it would have to find the labels first.
    fit = fit_experts(jax.random.key(0), *rows, 2)
    start = {
        "gate": fit.parameters.gate[:-1],
        "coefficients": fit.parameters.coefficients,
        "scale": fit.parameters.scale,
    }
    guide = AutoNormal(
        model, init_loc_fn=numpyro.infer.init_to_value(values=start), init_scale=0.05
    )
    svi = numpyro.infer.SVI(
        model,
        guide,
        numpyro.optim.Adam(0.01),
        bayesdiv_numpyro.objective(divergence, num_particles=8),
    )
    result = svi.run(jax.random.key(1), 300, *rows, progress_bar=False)
    median = guide.median(result.params)
    parameters = formulas.assembled(median["gate"], median["coefficients"], median["scale"])
    features = jnp.concatenate([jnp.ones_like(rows[0]), rows[0]], axis=1)
    found = float(formulas.log_prob(rows[1], features, parameters).sum())
    # The posterior's centre is near the maximum in likelihood: it has seven parameters.
    assert abs(found - float(fit.log_likelihood)) < 10.0
    single = fit_experts(jax.random.key(0), *rows, 1)
    assert found > float(single.log_likelihood) + 20.0


def test_pyro_svi_vectorises_particles_and_subsamples():
    predictors, outcome, truth = simulate(200, dim=1, num_experts=2, seed=2)
    rows = torch.tensor(predictors), torch.tensor(outcome / outcome.std())
    model = partial(mixture_of_experts_pyro.mixture_of_experts, num_experts=2, subsample_size=100)
    gate, coefficients, scale = (torch.tensor(part) for part in truth)
    start = {
        "gate": gate[:-1],
        "coefficients": coefficients / outcome.std(),
        "scale": scale / outcome.std(),
    }
    guide = PyroAutoNormal(model, init_loc_fn=pyro.infer.autoguide.init_to_value(values=start))
    elbo = bayesdiv_pyro.objective(
        "reverse_kl", num_particles=4, vectorize_particles=True, max_plate_nesting=1
    )
    svi = pyro.infer.SVI(model, guide, pyro.optim.Adam({"lr": 0.02}), elbo)
    losses = [svi.step(*rows) for _ in range(150)]
    assert np.isfinite(losses).all()
    assert np.mean(losses[-20:]) < np.mean(losses[:20])
    draws = pyro.infer.Predictive(
        partial(mixture_of_experts_pyro.mixture_of_experts, num_experts=2),
        guide=guide,
        num_samples=3,
    )(rows[0])
    assert draws["outcome"].shape == (3, 200)


@pytest.mark.slow
def test_nuts_finds_the_predictive_mean():
    predictors, outcome, truth = simulate(150, dim=1, num_experts=2, seed=2)
    outcome = (outcome - outcome.mean()) / outcome.std()
    rows = jnp.asarray(predictors), jnp.asarray(outcome)
    fit = fit_experts(jax.random.key(0), *rows, 2)
    start = {
        "gate": fit.parameters.gate[:-1],
        "coefficients": fit.parameters.coefficients,
        "scale": fit.parameters.scale,
    }
    model = partial(mixture_of_experts_numpyro.mixture_of_experts, num_experts=2)
    kernel = NUTS(model, init_strategy=numpyro.infer.init_to_value(values=start), max_tree_depth=5)
    mcmc = MCMC(kernel, num_warmup=150, num_samples=200, progress_bar=False)
    mcmc.run(jax.random.key(2), *rows)
    samples = mcmc.get_samples()
    features = jnp.concatenate([jnp.ones_like(rows[0]), rows[0]], axis=1)

    def mean(sample):
        return formulas.mean(features, formulas.assembled(**sample))

    draws = jax.vmap(mean)(
        {
            "free_gate": samples["gate"],
            "coefficients": samples["coefficients"],
            "scale": samples["scale"],
        }
    )
    # No permutation of labels changes a predictive mean, hence EM's answer is inside.
    spread = np.asarray(draws.std(0)) + 0.02
    gap = np.abs(np.asarray(draws.mean(0)) - np.asarray(fit.predict(rows[0])))
    assert np.mean(gap < 4.0 * spread) > 0.9
    predictive = Predictive(model, samples)(jax.random.key(3), rows[0])
    assert predictive["outcome"].shape == (200, 150)


def test_bad_arguments_are_named():
    for module, make in (
        (mixture_of_experts_numpyro, jnp.asarray),
        (mixture_of_experts_pyro, torch.tensor),
    ):
        with pytest.raises(ValueError, match=r"predictors must be \(n, dim\), got shape \(5,\)"):
            module.mixture_of_experts(make(np.zeros(5)))
        with pytest.raises(ValueError, match="num_experts must be at least 1, got 0"):
            module.mixture_of_experts(make(np.zeros((5, 1))), num_experts=0)


def test_returned_parameters_have_the_reference_row():
    predictors = np.random.default_rng(0).normal(size=(10, 2))
    with numpyro.handlers.seed(rng_seed=0):
        found = mixture_of_experts_numpyro.mixture_of_experts(
            jnp.asarray(predictors), num_experts=3
        )
    assert found.gate.shape == found.coefficients.shape == (3, 3)
    assert (np.asarray(found.gate[-1]) == 0.0).all()
    found = mixture_of_experts_pyro.mixture_of_experts(torch.tensor(predictors), num_experts=3)
    assert (to_numpy(found.gate[-1]) == 0.0).all()
    assert found.gate.dtype == torch.float64
