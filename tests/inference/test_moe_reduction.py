"""Reduction of mixtures of experts: closed forms, invariances, descent, flags and bad input."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from expert_models import permuted, perturbed, random_model
from scipy.optimize import linear_sum_assignment, minimize
from scipy.special import log_softmax

from bayesdiv._mixture_of_experts import MixtureOfExpertsParameters, log_prob
from bayesdiv.inference._soft_gate import fit_gate
from bayesdiv.inference.moe_reduction import (
    TransportReduction,
    expected_divergence,
    pool_experts,
)

KEY = jax.random.key(0)
FOUR = [(-2.0, 0.5), (0.0, 1.0), (1.0, 2.0), (5.0, 0.1)]
FOUR_WEIGHTS = [0.1, 0.4, 0.3, 0.2]


def support(num_rows=400, dim=3, seed=0):
    return np.random.default_rng(seed).normal(1.0, 2.0, size=(num_rows, dim))


def with_intercept(predictors):
    return jnp.asarray(np.concatenate([np.ones((len(predictors), 1)), predictors], axis=1))


def intercepts_only(moments):
    """One expert a model, N(mean, variance) whatever the predictors."""
    return [
        MixtureOfExpertsParameters(np.zeros((1, 1)), np.array([[m]]), np.array([v**0.5]))
        for m, v in moments
    ]


def density(model, rows=50):
    """log density at some rows and outcomes, which neither labels nor gauge change."""
    predictors = support(rows, np.shape(model.gate)[1] - 1, seed=9)
    outcome = np.random.default_rng(10).normal(scale=6.0, size=rows)
    return np.asarray(log_prob(jnp.asarray(outcome), with_intercept(predictors), as_jax(model)))


def as_jax(model):
    return MixtureOfExpertsParameters(*(None if p is None else jnp.asarray(p) for p in model))


def descends(trace):
    return (np.diff(trace) <= 1e-12 * np.maximum(1.0, np.abs(trace[1:]))).all()


def test_one_model_is_returned():
    model = random_model(1)
    found = TransportReduction().run(KEY, [model], support(), start=model)
    assert abs(found.objective) < 1e-12
    np.testing.assert_allclose(found.parameters.coefficients, model.coefficients, atol=1e-11)
    np.testing.assert_allclose(found.parameters.scale, model.scale, atol=1e-14)
    np.testing.assert_allclose(found.parameters.gate, model.gate, atol=1e-6)
    assert found.num_distinct == 3


def test_copies_in_any_order_reduce_to_the_model():
    model, rng = random_model(2), np.random.default_rng(0)
    copies = [permuted(model, rng.permutation(3)) for _ in range(6)]
    # A row added to all gates is the same gate.
    copies[2] = copies[2]._replace(gate=copies[2].gate + np.array([1.0, -2.0, 0.5, 3.0]))
    found = TransportReduction(num_starts=1).run(KEY, copies, support())
    assert abs(found.objective) < 1e-12
    assert not found.distances.flags.any()
    np.testing.assert_allclose(density(found.parameters), density(model), atol=1e-5)
    order = np.lexsort(np.asarray(found.parameters.coefficients).T[:1])
    expected = permuted(model, np.lexsort(model.coefficients.T[:1]))
    found_sorted = permuted(found.parameters, order)
    np.testing.assert_allclose(found_sorted.coefficients, expected.coefficients, atol=4e-12)


def test_a_permuted_start_permutes_the_answer():
    models = [random_model(seed) for seed in range(4)]
    start, order = random_model(7), np.array([2, 0, 1])
    first, second = (
        TransportReduction().run(KEY, models, support(), start=begin)
        for begin in (start, permuted(start, order))
    )
    assert second.objective == pytest.approx(first.objective, rel=1e-12)
    np.testing.assert_allclose(
        second.parameters.coefficients, np.asarray(first.parameters.coefficients)[order], atol=1e-9
    )
    np.testing.assert_allclose(density(second.parameters), density(first.parameters), atol=1e-7)


def test_moments_of_four_gaussians_are_matched():
    """The spread between experts is most of this variance: 1.07 without it, 5.56 with it."""
    found = TransportReduction().run(
        KEY, intercepts_only(FOUR), np.empty((5, 0)), weights=FOUR_WEIGHTS, num_experts=1
    )
    assert float(found.parameters.coefficients[0, 0]) == pytest.approx(1.1, abs=1e-12)
    assert float(found.parameters.scale[0] ** 2) == pytest.approx(5.56, abs=1e-12)
    assert found.objective == pytest.approx(1.018742845375, abs=1e-11)
    np.testing.assert_array_equal(found.parameters.gate, np.zeros((1, 1)))
    assert len(found.trace) <= 3


def test_one_expert_with_predictors_has_its_closed_form():
    rows, weights = support(200), np.array([0.2, 0.5, 0.3])
    models = [random_model(seed, num_experts=1) for seed in range(3)]
    found = TransportReduction().run(KEY, models, rows, weights=weights, num_experts=1)
    features = np.asarray(with_intercept(rows))
    coefficients = np.concatenate([model.coefficients for model in models])
    mean = weights @ coefficients
    gap = coefficients - mean
    spread = np.einsum("mf,fg,mg->m", gap, features.T @ features / len(rows), gap)
    variance = weights @ (np.concatenate([model.scale for model in models]) ** 2 + spread)
    np.testing.assert_allclose(found.parameters.coefficients[0], mean, atol=1e-11)
    assert float(found.parameters.scale[0] ** 2) == pytest.approx(variance, rel=1e-12)


@pytest.mark.parametrize("plan", ["hard", "entropic"])
@pytest.mark.parametrize("cost", ["forward_kl", "wasserstein2"])
def test_steps_descend(cost, plan):
    models = [random_model(seed) for seed in range(4)]
    reduction = TransportReduction(cost=cost, plan=plan, epsilon=0.5, num_starts=2)
    found = reduction.run(KEY, models, support(), num_experts=2)
    assert len(found.trace) > 3
    assert found.trace[-1] < found.trace[0]
    assert descends(found.trace)
    assert found.objective == found.trace[-1]


def test_init_and_step_do_what_run_does():
    models, start = [random_model(seed) for seed in range(4)], random_model(7)
    reduction = TransportReduction(tolerance=0.0, max_steps=4)
    pooled = pool_experts(models, None, support())
    state = reduction.init(pooled, start)
    objectives = [float(state.objective)]
    for _ in range(4):
        state, info = reduction.step(state, pooled)
        objectives.append(float(info.objective))
    found = reduction.run(KEY, models, support(), start=start)
    np.testing.assert_allclose(found.trace, objectives, rtol=1e-10)


def test_objective_bounds_the_divergence_of_the_mixtures():
    """KL(f_W‖g), on a grid, for a gate that is where the mass arrives (joint convexity)."""
    models = [random_model(seed) for seed in range(4)]
    rows = support(60)
    found = TransportReduction().run(KEY, models, rows, num_experts=2)
    y = np.linspace(-80.0, 80.0, 16_001)
    features = np.asarray(with_intercept(rows))
    total = 0.0
    for row, phi in enumerate(features):
        repeated = jnp.asarray(np.broadcast_to(phi, (len(y), len(phi))))
        pooled = np.mean(
            [np.exp(log_prob(jnp.asarray(y), repeated, as_jax(model))) for model in models], axis=0
        )
        means = np.asarray(found.parameters.coefficients) @ phi
        scales = np.asarray(found.parameters.scale)
        laws = np.exp(-0.5 * ((y[:, None] - means) / scales) ** 2) / (scales * np.sqrt(2.0 * np.pi))
        mixture = laws @ np.asarray(found.gate_targets)[row]
        inside = pooled > 1e-14
        ratio = np.log(pooled[inside] / np.maximum(mixture[inside], 1e-300))
        total += np.sum(pooled[inside] * ratio) * (y[1] - y[0])
    divergence = total / len(rows)
    assert 0.05 < divergence <= found.objective


def test_shift_and_scale_of_the_outcome_pass_through():
    models, start, a, b = [random_model(seed) for seed in range(4)], random_model(7), -3.0, 40.0

    def moved(model):
        coefficients = a * model.coefficients
        coefficients[:, 0] += b
        return MixtureOfExpertsParameters(model.gate, coefficients, abs(a) * model.scale)

    first = TransportReduction().run(KEY, models, support(), start=start)
    second = TransportReduction().run(
        KEY, [moved(model) for model in models], support(), start=moved(start)
    )
    assert second.objective == pytest.approx(first.objective, rel=1e-10)
    expected = moved(first.parameters._replace(coefficients=np.array(first.parameters[1])))
    for part, wanted in zip(second.parameters, expected, strict=True):
        np.testing.assert_allclose(part, wanted, atol=1e-8)


def test_units_of_the_predictors_do_not_matter():
    models, start, rows = [random_model(seed) for seed in range(4)], random_model(7), support()
    size, centre = np.array([100.0, 1e-3, 1.0]), np.array([5e3, 0.0, -2.0])

    def moved(model):
        """The same law of x' = size · x + centre."""
        gate, coefficients, scale = model
        parts = []
        for part in (gate, coefficients):
            slopes = part[:, 1:] / size
            parts.append(np.concatenate([part[:, :1] - slopes @ centre[:, None], slopes], axis=1))
        return MixtureOfExpertsParameters(*parts, scale)

    first = TransportReduction().run(KEY, models, rows, start=start)
    second = TransportReduction().run(
        KEY, [moved(model) for model in models], rows * size + centre, start=moved(start)
    )
    assert second.objective == pytest.approx(first.objective, rel=1e-9)
    expected = moved(MixtureOfExpertsParameters(*(np.array(part) for part in first.parameters)))
    for part, wanted in zip(second.parameters, expected, strict=True):
        np.testing.assert_allclose(part, wanted, rtol=1e-6, atol=1e-6)


def test_a_shard_counted_in_two_halves_is_the_shard():
    models, start = [random_model(seed) for seed in range(3)], random_model(7)
    whole = TransportReduction().run(KEY, models, support(), weights=[0.5, 0.3, 0.2], start=start)
    halves = TransportReduction().run(
        KEY, [models[0], *models], support(), weights=[0.25, 0.25, 0.3, 0.2], start=start
    )
    assert halves.objective == pytest.approx(whole.objective, rel=1e-13)
    np.testing.assert_allclose(
        halves.parameters.coefficients, whole.parameters.coefficients, atol=1e-10
    )


@pytest.mark.parametrize("plan", ["hard", "entropic"])
def test_plans_move_all_mass(plan):
    models = [random_model(0, num_experts=2), random_model(1, num_experts=3)]
    reduction = TransportReduction(plan=plan, num_starts=1)
    found = reduction.run(KEY, models, support(), weights=[0.3, 0.7], num_experts=2)
    pooled = np.asarray(pool_experts(models, [0.3, 0.7], support()).mass)
    sent = np.zeros_like(pooled)
    for column, local in enumerate(np.asarray(found.plan.local)):
        sent[:, local] += np.asarray(found.plan.mass)[:, column]
    np.testing.assert_allclose(sent, pooled, atol=1e-14)
    np.testing.assert_allclose(found.plan.received().sum(axis=1), 1.0, atol=1e-12)


def test_a_cold_entropic_plan_is_the_hard_one():
    models, start = [random_model(seed) for seed in range(4)], random_model(7)
    hard = TransportReduction().run(KEY, models, support(), start=start)
    gaps = []
    for epsilon in (1.0, 1e-4):
        soft = TransportReduction(plan="entropic", epsilon=epsilon).run(
            KEY, models, support(), start=hard.parameters
        )
        gaps.append(abs(soft.objective - hard.objective))
    # ε log K is what a plan without choice would pay.
    assert gaps[1] < 2e-4 < 0.05 < gaps[0]


def test_models_of_different_sizes_reduce():
    model = random_model(3, num_experts=3)
    part = permuted(model, np.array([0, 2]))
    found = TransportReduction().run(KEY, [model, model, part], support(), num_experts=3)
    assert abs(found.objective) < 1e-10
    by_greedy = TransportReduction(num_starts=1).run(
        KEY, perturbed(model, 5, 1e-3), support(), num_experts=2
    )
    assert by_greedy.start == "greedy"
    assert by_greedy.parameters.coefficients.shape == (2, 4)


def test_superfluous_experts_are_reported():
    model = random_model(4, num_experts=2)
    found = TransportReduction(num_starts=1).run(
        KEY, [model, permuted(model, np.array([1, 0]))], support(), num_experts=3
    )
    assert found.num_distinct == 2
    assert abs(found.objective) < 1e-10


def test_bad_models_are_flagged_and_left_out():
    model = random_model(5)
    good = perturbed(model, 12, 0.02)
    bad = perturbed(model, 4, 4.0, seed=1)
    mixed = [*good[:5], *bad, *good[5:]]
    kept = TransportReduction().run(KEY, mixed, support())
    assert np.flatnonzero(kept.distances.flags).tolist() == [5, 6, 7, 8]
    assert (kept.model_costs[kept.distances.flags] > kept.model_costs[0]).all()
    trimmed = TransportReduction(trim=True).run(KEY, mixed, support())
    clean = TransportReduction().run(KEY, good, support())
    assert trimmed.used.sum() == 12
    assert trimmed.model_costs.shape == (16,)
    assert trimmed.objective == pytest.approx(clean.objective, rel=1e-8)
    distances = [
        expected_divergence(model, found.parameters, support(seed=5)) for found in (trimmed, kept)
    ]
    assert 100.0 * distances[0] < distances[1]


def simulated_outcome(model, rows, seed):
    rng = np.random.default_rng(seed)
    gates = np.exp(log_softmax(rows @ model.gate[:, 1:].T + model.gate[:, 0], axis=1))
    labels = (rng.uniform(size=(len(rows), 1)) > np.cumsum(gates, axis=1)).sum(axis=1)
    means = model.coefficients[labels, 0] + np.sum(rows * model.coefficients[labels, 1:], axis=1)
    return means + model.scale[labels] * rng.normal(size=len(rows))


def test_plan_is_a_better_target_of_the_gate_than_the_posterior():
    """Outcomes of the support add their own noise to gates that many more rows have fitted."""
    model, rows = random_model(6), support()
    models = perturbed(model, 8, 0.03)
    outcome = simulated_outcome(model, rows, seed=0)
    errors = {}
    for target in ("plan", "posterior"):
        reduction = TransportReduction(gate_target=target, num_starts=1)
        found = reduction.run(KEY, models, rows, outcome=outcome)
        gate = matched(found.parameters, model).gate
        errors[target] = np.mean((gate - model.gate) ** 2)
    assert 5.0 * errors["plan"] < errors["posterior"]


def matched(model, reference):
    """``model`` in the order of ``reference``."""
    gap = np.asarray(model.coefficients)[:, None] - reference.coefficients
    _, order = linear_sum_assignment(np.sum(gap**2, axis=-1).T)
    return permuted(model, order)


def test_gate_is_the_regression_that_an_optimiser_finds():
    rng = np.random.default_rng(0)
    features, targets = np.asarray(with_intercept(support(150))), rng.dirichlet(np.ones(3), 150)
    ridge = 0.5

    def loss(vector):
        gate = vector.reshape(3, 4)
        penalty = 0.5 * ridge * np.sum((gate - gate.mean(axis=0)) ** 2)
        return -np.sum(targets * log_softmax(features @ gate.T, axis=1)) + penalty

    best = minimize(loss, np.zeros(12), jac="3-point", method="BFGS").x.reshape(3, 4)
    found = fit_gate(jnp.asarray(features), jnp.asarray(targets), ridge=ridge)
    np.testing.assert_allclose(found.gate, best - best[-1:], atol=1e-5)
    assert int(found.num_steps) < 20
    # No expert is special, not even the one whose row is 0.
    order = np.array([2, 0, 1])
    other = fit_gate(jnp.asarray(features), jnp.asarray(targets[:, order]), ridge=ridge).gate
    expected = np.asarray(found.gate)[order]
    np.testing.assert_allclose(other, expected - expected[-1:], atol=1e-9)


def test_gate_survives_targets_that_a_hyperplane_separates():
    rows = support(100, 1)
    targets = np.stack([rows[:, 0] > 1.0, rows[:, 0] <= 1.0], axis=1).astype(np.float32)
    features = with_intercept(rows).astype(jnp.float32)
    found = fit_gate(features, jnp.asarray(targets), ridge=1e-3)
    assert np.isfinite(found.gate).all()
    assert float(found.loss) < 0.05 * 100.0 * np.log(2.0)


def test_logistic_experts_reduce():
    model = random_model(8)._replace(scale=None)
    model = model._replace(coefficients=0.3 * model.coefficients)
    reduction = TransportReduction(experts="bernoulli", num_starts=1)
    copies = [model, permuted(model, np.array([1, 2, 0]))]
    found = reduction.run(KEY, copies, support())
    assert found.parameters.scale is None
    assert abs(found.objective) < 1e-9
    np.testing.assert_allclose(
        matched(found.parameters, model).coefficients, model.coefficients, atol=1e-5
    )
    from_afar = reduction.run(KEY, copies, support(), start=random_model(9)._replace(scale=None))
    assert descends(from_afar.trace)
    assert from_afar.objective < 0.1 * from_afar.trace[0]


def test_extreme_logits_stay_finite():
    rows = support(50, 1)
    models = [
        MixtureOfExpertsParameters(np.zeros((1, 2)), np.array([[0.0, slope]]), None)
        for slope in (400.0, -300.0)
    ]
    found = TransportReduction(experts="bernoulli").run(KEY, models, rows, num_experts=1)
    assert np.isfinite(found.objective)
    assert np.isfinite(found.parameters.coefficients).all()
