"""EM for mixtures of experts: steps against independent solvers, ascent, and the known truth."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from moe_simulator import simulate
from scipy.special import expit, log_expit, logsumexp

from bayesdiv import _mixture_of_experts as formulas
from bayesdiv._mixture_of_experts import MixtureOfExpertsParameters
from bayesdiv.inference import _moe_em_updates as updates
from bayesdiv.inference._moe_em_data import to_data_units
from bayesdiv.inference.moe_em import (
    EMSettings,
    em_data,
    em_init,
    em_start,
    em_step,
    fit_experts,
)

KEY = jax.random.key(0)


@pytest.fixture(autouse=True, scope="module")
def quick_compilation():
    """XLA without most of its optimisations: every test here is a compilation."""
    before = jax.config.values["jax_disable_most_optimizations"]
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", before)


def features_of(predictors):
    return np.concatenate([np.ones((len(predictors), 1)), predictors], axis=1)


def as_rows(blocks, num_rows):
    """``(blocks, experts, block)`` as ``(rows, experts)``, padding off."""
    blocks = np.asarray(blocks)
    return blocks.transpose(0, 2, 1).reshape(-1, blocks.shape[1])[:num_rows]


def log_likelihood(predictors, outcome, parameters, weights=1.0):
    """In NumPy, from the definition."""
    gate, coefficients, scale = (None if part is None else np.asarray(part) for part in parameters)
    features = features_of(predictors)
    logits, places = features @ gate.T, features @ coefficients.T
    if scale is None:
        densities = log_expit((2.0 * outcome[:, None] - 1.0) * places)
    else:
        densities = -0.5 * ((outcome[:, None] - places) / scale) ** 2
        densities = densities - np.log(scale * np.sqrt(2.0 * np.pi))
    joint = logits - logsumexp(logits, axis=1, keepdims=True) + densities
    return float(np.sum(weights * logsumexp(joint, axis=1)))


def random_state(num_rows=300, *, experts="normal", weights=None, **settings):
    """Rows in several blocks, and a state of three experts away from the optimum."""
    predictors, outcome, _ = simulate(num_rows, experts=experts, seed=3)
    options = EMSettings(3, experts, block_size=64, **settings)
    data = em_data(predictors, outcome, weights, settings=options)
    return predictors, outcome, data, em_init(KEY, data, settings=options), options


FAMILIES = ("normal", "bernoulli")


@pytest.mark.parametrize("gate_step", ["newton", "bound"])
@pytest.mark.parametrize("experts", FAMILIES)
def test_no_step_lowers_the_objective(experts, gate_step):
    weights = np.random.default_rng(1).gamma(1.0, size=300)
    *_, data, state, options = random_state(experts=experts, weights=weights, gate_step=gate_step)
    step = jax.jit(lambda state: em_step(state, data, settings=options))
    first, values = state.objective, [float(state.objective)]
    for _ in range(40):
        state, info = step(state)
        values.append(float(info.objective))
        assert float(info.log_likelihood) >= float(info.objective)
    assert (np.diff(values) >= -1e-10 * np.abs(values[1:])).all()
    assert values[-1] > float(first) + 10.0


def test_statistics_are_sums_over_the_rows():
    weights = np.random.default_rng(2).gamma(1.0, size=300)
    predictors, outcome, data, state, _ = random_state(weights=weights)
    features, rows = features_of((predictors - data.predictor_mean) / data.predictor_scale), 300
    residuals = np.asarray((outcome - data.outcome_mean) / data.outcome_scale)[:, None] - (
        features @ np.asarray(state.parameters.coefficients).T
    )
    found = state.statistics
    shares = weights[:, None] * as_rows(found.responsibilities, rows)
    gates = np.exp(as_rows(found.log_gates, rows))
    expected = {
        "counts": shares.sum(0),
        "residual_squares": (shares * residuals**2).sum(0),
        "expert_gradient": (shares * residuals).T @ features,
        "expert_gram": np.einsum("nk,nf,ng->kfg", shares, features, features),
        "gate_gradient": (shares - weights[:, None] * gates).T @ features,
    }
    for pair, (j, k) in enumerate([(0, 0), (0, 1), (1, 1)]):
        curved = weights * gates[:, j] * ((j == k) - gates[:, k])
        gram = np.einsum("n,nf,ng->fg", curved, features, features)
        np.testing.assert_allclose(found.gate_gram[pair], gram, rtol=1e-9, atol=1e-9)
    for name, value in expected.items():
        np.testing.assert_allclose(getattr(found, name), value, rtol=1e-9, atol=1e-9, err_msg=name)


def test_gradients_by_autodiff():
    *_, data, state, options = random_state()

    def value(parameters):
        return em_start_standard(parameters, data, options).statistics.log_likelihood

    slope = jax.grad(value)(state.parameters)
    np.testing.assert_allclose(slope.gate, state.statistics.gate_gradient, rtol=1e-8, atol=1e-8)
    variances = state.parameters.scale[:, None] ** 2
    np.testing.assert_allclose(
        slope.coefficients, state.statistics.expert_gradient / variances, rtol=1e-8, atol=1e-7
    )


@partial(jax.jit, static_argnames="options")
def em_start_standard(parameters, data, options):
    """`em_start` from standardised parameters."""
    return em_start(to_data_units(parameters, data), data, settings=options)


update_gate = jax.jit(updates.update_gate, static_argnames="ridge")


def test_experts_step_is_weighted_least_squares():
    predictors, outcome, data, state, options = random_state(coefficient_ridge=0.0)
    features = features_of((predictors - data.predictor_mean) / data.predictor_scale)
    standard = np.asarray((outcome - data.outcome_mean) / data.outcome_scale)
    shares = as_rows(state.statistics.responsibilities, 300)
    new, _ = em_step(state, data, settings=options)
    for index in range(3):
        root = np.sqrt(shares[:, index])
        solution = np.linalg.lstsq(root[:, None] * features, root * standard, rcond=None)[0]
        squares = shares[:, index] @ (standard - features @ solution) ** 2
        np.testing.assert_allclose(new.parameters.coefficients[index], solution, atol=1e-10)
        scale = np.sqrt(squares / shares[:, index].sum())
        np.testing.assert_allclose(new.parameters.scale[index], scale, rtol=1e-9)


@jax.jit
def gate_objective(gate, responsibilities, data, ridge):
    """Σ w τ log π − penalty, from the definition."""
    log_gates = jax.nn.log_softmax(jnp.einsum("kf,bfn->bkn", gate, data.features), axis=1)
    total = jnp.sum(data.weights[:, None] * responsibilities * log_gates)
    return total - updates.gate_penalty(gate, ridge)


@pytest.mark.parametrize("gate_step", ["newton", "bound"])
@pytest.mark.parametrize("size", [0.0, 3.0, 30.0, 1000.0])
def test_gate_steps_never_descend(gate_step, size):
    # Far out, where the gates are saturated, Newton's full step overshoots.
    *_, data, state, options = random_state(gate_step=gate_step)
    gate = size * jax.random.normal(jax.random.key(4), (3, 4))
    start = em_start_standard(state.parameters._replace(gate=gate - gate[-1]), data, options)
    new, fraction = update_gate(
        start.parameters.gate, start.statistics, data, ridge=options.gate_ridge
    )
    tau = start.statistics.responsibilities
    before = gate_objective(start.parameters.gate, tau, data, options.gate_ridge)
    after = gate_objective(new, tau, data, options.gate_ridge)
    assert after > before
    assert 0.0 < float(fraction) <= 1.0


def test_newton_needs_its_halving():
    # Eight experts that the gate is sure of and the outcomes contradict.
    predictors, outcome, _ = simulate(200, seed=5)
    options = EMSettings(8, block_size=64, gate_ridge=1e-6)
    data = em_data(predictors, outcome, settings=options)
    fractions = []
    state = em_init(KEY, data, settings=options)
    for seed in range(8):
        gate = 4.0 * jax.random.normal(jax.random.key(seed), (8, 4))
        start = em_start_standard(state.parameters._replace(gate=gate - gate[-1]), data, options)
        new, fraction = update_gate(
            start.parameters.gate, start.statistics, data, ridge=options.gate_ridge
        )
        tau = start.statistics.responsibilities
        before = gate_objective(start.parameters.gate, tau, data, options.gate_ridge)
        assert gate_objective(new, tau, data, options.gate_ridge) >= before
        fractions.append(float(fraction))
    assert min(fractions) < 1.0


def test_gates_own_maximum_is_where_newton_stays():
    *_, data, state, options = random_state()
    gate = state.parameters.gate
    for _ in range(20):
        start = em_start_standard(state.parameters._replace(gate=gate), data, options)
        # Responsibilities of the first state throughout: a logistic regression.
        held = start.statistics._replace(
            responsibilities=state.statistics.responsibilities,
            gate_gradient=jnp.einsum(
                "bkn,bfn,bn->kf",
                state.statistics.responsibilities - jnp.exp(start.statistics.log_gates),
                data.features,
                data.weights,
            ),
        )
        gate, _ = update_gate(gate, held, data, ridge=options.gate_ridge)
    tau = state.statistics.responsibilities
    slope = jax.grad(gate_objective)(gate, tau, data, options.gate_ridge)
    np.testing.assert_allclose(slope, 0.0, atol=1e-9)


def test_logistic_experts_that_are_sure_and_wrong_do_not_descend():
    # 1 − σ(100) is rounded to 0: a gain computed from it is infinite for any step.
    x = np.linspace(-1.0, 1.0, 60)[:, None]
    options = EMSettings(2, "bernoulli")
    data = em_data(x, (x[:, 0] > 0.0) * 1.0, settings=options)
    step = jax.jit(lambda state: em_step(state, data, settings=options)[0])
    for intercept in (100.0, -300.0):
        coefficients = jnp.array([[-9.0, 54.0], [intercept, 90.0]])
        parameters = MixtureOfExpertsParameters(jnp.zeros((2, 2)), coefficients)
        state = em_start_standard(parameters, data, options)
        for _ in range(5):
            before, state = state.objective, step(state)
            assert state.objective >= before


@pytest.mark.parametrize("experts", FAMILIES)
def test_log_likelihood_is_that_of_the_parameters(experts):
    predictors, outcome, _ = simulate(400, experts=experts, seed=6)
    weights = np.random.default_rng(7).gamma(1.0, size=400)
    fit = fit_experts(KEY, 5.0 + 3.0 * predictors, outcome, 2, experts=experts, weights=weights)
    expected = log_likelihood(5.0 + 3.0 * predictors, outcome, fit.parameters, weights)
    np.testing.assert_allclose(float(fit.log_likelihood), expected, rtol=1e-11)
    rows = fit.log_prob(5.0 + 3.0 * predictors, outcome)
    np.testing.assert_allclose(float(np.sum(weights * rows)), expected, rtol=1e-11)
    count = int(fit.num_iterations)
    trace = np.asarray(fit.trace)
    assert bool(fit.converged)
    assert np.isfinite(trace[: count + 1]).all()
    assert np.isnan(trace[count + 1 :]).all()
    assert (np.diff(trace[: count + 1]) >= -1e-9).all()
    assert 0.0 <= expected - trace[count] < 0.1
    tau = fit.responsibilities(5.0 + 3.0 * predictors, outcome)
    np.testing.assert_allclose(weights @ np.asarray(tau), fit.counts, rtol=1e-9)
    assert (np.asarray(fit.parameters.gate)[-1] == 0.0).all()
    expected_mean = formulas.mean(
        jnp.asarray(features_of(5.0 + 3.0 * predictors)), fit.parameters, experts=experts
    )
    np.testing.assert_allclose(fit.predict(5.0 + 3.0 * predictors), expected_mean, rtol=1e-12)


def test_simulated_truth_is_recovered():
    predictors, outcome, truth = simulate(6000, seed=8)
    fit = fit_experts(KEY, predictors, outcome, 3)
    # At the maximum no row of parameters is worse than the truth, and few are better.
    gain = float(fit.log_likelihood) - log_likelihood(predictors, outcome, truth)
    assert 0.0 < gain < 60.0
    found, (gate, coefficients, scale) = fit.parameters, truth
    slopes = np.asarray(found.coefficients)
    match = [int(np.argmin(np.abs(slopes - row).sum(1))) for row in coefficients]
    assert sorted(match) == [0, 1, 2]
    np.testing.assert_allclose(slopes[match], coefficients, atol=0.1)
    np.testing.assert_allclose(np.asarray(found.scale)[match], scale, atol=0.03)
    matched = np.asarray(found.gate)[match]
    np.testing.assert_allclose(matched - matched[-1], gate, atol=0.35)


def test_bernoulli_fit_reaches_what_the_truth_reaches():
    predictors, outcome, truth = simulate(4000, seed=9, num_experts=2, experts="bernoulli")
    fit = fit_experts(KEY, predictors, outcome, 2, experts="bernoulli")
    gain = float(fit.log_likelihood) - log_likelihood(predictors, outcome, truth)
    assert 0.0 < gain < 40.0
    single = fit_experts(KEY, predictors, outcome, 1, experts="bernoulli")
    assert float(fit.log_likelihood) > float(single.log_likelihood) + 100.0


def test_one_normal_expert_is_least_squares():
    predictors, outcome, _ = simulate(200, seed=10)
    weights = np.random.default_rng(11).gamma(1.0, size=200)
    fit = fit_experts(KEY, predictors, outcome, 1, weights=weights, coefficient_ridge=0.0)
    root, features = np.sqrt(weights), features_of(predictors)
    solution = np.linalg.lstsq(root[:, None] * features, root * outcome, rcond=None)[0]
    np.testing.assert_allclose(fit.parameters.coefficients[0], solution, atol=1e-10)
    variance = weights @ (outcome - features @ solution) ** 2 / weights.sum()
    np.testing.assert_allclose(fit.parameters.scale[0] ** 2, variance, rtol=1e-10)
    assert bool(fit.converged)
    assert int(fit.num_iterations) <= 2
    assert (np.asarray(fit.parameters.gate) == 0.0).all()


def test_one_bernoulli_expert_is_logistic_regression():
    predictors, outcome, _ = simulate(300, seed=12, experts="bernoulli")
    settings = {"coefficient_ridge": 0.0, "tolerance": 1e-14}
    fit = fit_experts(KEY, predictors, outcome, 1, experts="bernoulli", **settings)
    features = features_of(predictors)
    success = expit(features @ np.asarray(fit.parameters.coefficients[0]))
    np.testing.assert_allclose(features.T @ (outcome - success), 0.0, atol=1e-6)
