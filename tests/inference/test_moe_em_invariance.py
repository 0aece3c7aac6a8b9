"""What must not change a fit of EM, where it must not break, and what it refuses."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from moe_simulator import simulate

from bayesdiv._mixture_of_experts import MixtureOfExpertsParameters
from bayesdiv.inference.moe_em import EMSettings, em_data, em_init, em_start, em_step, fit_experts

KEY = jax.random.key(0)
QUICK = {"num_starts": 1, "max_iterations": 60}
STARTS = {"num_starts": 2, "short_iterations": 3, "max_iterations": 60}


@pytest.fixture(autouse=True, scope="module")
def quick_compilation():
    """XLA without most of its optimisations: every test here is a compilation."""
    before = jax.config.values["jax_disable_most_optimizations"]
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", before)


def assert_same_fit(first, second, *, rtol=1e-7, atol=1e-8):
    np.testing.assert_allclose(first.log_likelihood, second.log_likelihood, rtol=1e-9)
    for name in ("gate", "coefficients", "scale"):
        one, other = getattr(first.parameters, name), getattr(second.parameters, name)
        if one is not None:
            np.testing.assert_allclose(one, other, rtol=rtol, atol=atol, err_msg=name)


@pytest.mark.parametrize("experts", ["normal", "bernoulli"])
def test_weights_are_repeated_rows(experts):
    predictors, outcome, _ = simulate(150, experts=experts, seed=1)
    weights = np.random.default_rng(2).integers(4, size=150)
    weighted = fit_experts(KEY, predictors, outcome, 2, experts=experts, weights=weights, **QUICK)
    index = np.repeat(np.arange(150), weights)
    repeated = fit_experts(KEY, predictors[index], outcome[index], 2, experts=experts, **QUICK)
    assert_same_fit(weighted, repeated)
    assert int(weighted.num_iterations) == int(repeated.num_iterations)


@pytest.mark.parametrize("filler", [1e6, np.nan])
def test_padding_changes_nothing(filler):
    predictors, outcome, _ = simulate(150, seed=3)
    plain = fit_experts(KEY, predictors, outcome, 2, **QUICK)
    padded = fit_experts(
        KEY,
        np.concatenate([predictors, np.full((61, 3), filler)]),
        np.concatenate([outcome, np.full(61, filler)]),
        2,
        weights=np.concatenate([np.ones(150), np.zeros(61)]),
        **QUICK,
    )
    assert_same_fit(plain, padded)


def test_blocks_do_not_matter():
    predictors, outcome, _ = simulate(150, seed=3)
    fits = [
        fit_experts(KEY, predictors, outcome, 2, block_size=size, **QUICK) for size in (16, 1024)
    ]
    assert_same_fit(*fits)


def test_shift_and_scale_go_through():
    predictors, outcome, _ = simulate(150, seed=4)
    plain = fit_experts(KEY, predictors, outcome, 2, **QUICK)
    rates, shifts = np.array([10.0, 0.1, 3.0]), np.array([5.0, -2.0, 100.0])
    moved = fit_experts(KEY, rates * predictors + shifts, 7.0 * outcome - 30.0, 2, **QUICK)
    np.testing.assert_allclose(
        moved.log_likelihood, plain.log_likelihood - 150.0 * np.log(7.0), rtol=1e-9
    )
    gate, coefficients, scale = plain.parameters

    def moved_rows(rows):
        slopes = rows[:, 1:] / rates
        return np.concatenate([rows[:, :1] - (slopes @ shifts)[:, None], slopes], axis=1)

    expected = 7.0 * moved_rows(coefficients)
    expected[:, 0] -= 30.0
    np.testing.assert_allclose(moved.parameters.coefficients, expected, rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(moved.parameters.gate, moved_rows(gate), rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(moved.parameters.scale, 7.0 * scale, rtol=1e-7)
    np.testing.assert_allclose(
        moved.predict(rates * predictors + shifts),
        7.0 * np.asarray(plain.predict(predictors)) - 30.0,
        rtol=1e-6,
        atol=1e-6,
    )


def test_labels_of_the_start_only_name_the_answer():
    predictors, outcome, truth = simulate(150, seed=5)
    order = np.array([2, 0, 1])
    start = MixtureOfExpertsParameters(*truth)
    permuted = MixtureOfExpertsParameters(*(part[order] for part in truth))
    first = fit_experts(KEY, predictors, outcome, 3, start=start, **QUICK)
    second = fit_experts(KEY, predictors, outcome, 3, start=permuted, **QUICK)
    np.testing.assert_allclose(first.log_likelihood, second.log_likelihood, rtol=1e-10)
    np.testing.assert_allclose(
        np.asarray(first.parameters.coefficients)[order], second.parameters.coefficients, atol=1e-6
    )
    gate = np.asarray(first.parameters.gate)[order]
    np.testing.assert_allclose(gate - gate[-1], second.parameters.gate, atol=1e-5)


def test_units_go_there_and_back():
    predictors, outcome, truth = simulate(100, seed=6)
    settings = EMSettings(3)
    data = em_data(3.0 * predictors + 1.0, 2.0 * outcome + 5.0, settings=settings)
    parameters = MixtureOfExpertsParameters(*map(jnp.asarray, truth))
    state = em_start(parameters, data, settings=settings)
    fit = fit_experts(
        KEY, 3.0 * predictors + 1.0, 2.0 * outcome + 5.0, 3, start=truth, tolerance=1e9
    )
    # One step, after which any gain is below the tolerance; the start's objective is in the trace.
    shift = 100.0 * float(np.log(data.outcome_scale))
    np.testing.assert_allclose(float(fit.trace[0]), float(state.objective) - shift, rtol=1e-12)
    assert int(fit.num_iterations) == 1


@pytest.mark.slow
def test_shards_in_one_vmap_are_shards_one_by_one():
    shards = [simulate(size, seed=seed)[:2] for seed, size in enumerate((150, 90, 120))]
    padded = [
        (
            np.pad(predictors, ((0, 150 - len(outcome)), (0, 0))),
            np.pad(outcome, (0, 150 - len(outcome))),
            (np.arange(150) < len(outcome)).astype(float),
        )
        for predictors, outcome in shards
    ]
    keys = jax.random.split(KEY, 3)
    together = jax.jit(
        jax.vmap(lambda key, x, y, w: fit_experts(key, x, y, 2, weights=w, **STARTS))
    )(keys, *map(np.stack, zip(*padded, strict=True)))
    counts = set()
    for index, (predictors, outcome) in enumerate(shards):
        alone = fit_experts(keys[index], predictors, outcome, 2, **STARTS)
        one = jax.tree.map(lambda leaf, index=index: leaf[index], together)
        assert_same_fit(one, alone, rtol=1e-6, atol=1e-6)
        assert int(one.num_iterations) == int(alone.num_iterations)
        counts.add(int(alone.num_iterations))
    assert len(counts) > 1, "all stop at once, so that freezing is not tested"


@pytest.mark.parametrize("experts", ["normal", "bernoulli"])
def test_separable_rows_end_at_finite_parameters(experts):
    x = np.linspace(-1.0, 1.0, 60)[:, None]
    # Both the gate and, for Bernoulli experts, the outcome are a step in x.
    outcome = (x[:, 0] > 0.0) * 1.0 if experts == "bernoulli" else np.abs(x[:, 0])
    fit = fit_experts(KEY, x, outcome, 2, experts=experts, num_starts=1)
    for part in fit.parameters:
        assert part is None or np.isfinite(part).all()
    assert np.isfinite(fit.log_likelihood)
    if experts == "bernoulli":
        assert (np.abs(np.asarray(fit.predict(x)) - outcome) < 0.05).all()
    else:
        # Two exact lines: the variances stop at the floor, and say so.
        assert bool(np.any(fit.at_floor))
        np.testing.assert_allclose(fit.predict(x), outcome, atol=0.02)


def test_float32_is_usable_far_from_zero():
    predictors, outcome, truth = simulate(3000, seed=7)
    far = (100.0 + predictors).astype(np.float32)
    y = (1000.0 + outcome).astype(np.float32)
    start = truth[0], truth[1] + [[1000.0, 0.0, 0.0, 0.0]], truth[2]
    shifted = tuple(np.array(part) for part in start)
    for rows in shifted[:2]:
        rows[:, 0] -= 100.0 * rows[:, 1:].sum(1)
    single = fit_experts(KEY, far, y, 3, start=shifted, **QUICK)
    double = fit_experts(KEY, far.astype(float), y.astype(float), 3, start=shifted, **QUICK)
    assert single.parameters.gate.dtype == jnp.float32
    assert bool(single.converged)
    trace = np.asarray(single.trace)[: int(single.num_iterations) + 1]
    assert (np.diff(trace) > -1e-6 * np.abs(trace[1:])).all()
    np.testing.assert_allclose(single.log_likelihood, double.log_likelihood, rtol=2e-6)
    np.testing.assert_allclose(single.predict(far), double.predict(far.astype(float)), atol=2e-2)


def test_an_expert_without_rows_harms_nothing():
    predictors, outcome, truth = simulate(200, seed=8)
    gate, coefficients, scale = (np.array(part) for part in truth)
    gate[0, 0] = -1e4
    settings = EMSettings(3)
    data = em_data(predictors, outcome, settings=settings)
    parameters = MixtureOfExpertsParameters(*map(jnp.asarray, (gate, coefficients, scale)))
    state = em_start(parameters, data, settings=settings)
    assert float(state.statistics.counts[0]) == 0.0
    new, _ = em_step(state, data, settings=settings)
    np.testing.assert_allclose(new.parameters.scale[0], state.parameters.scale[0], rtol=1e-12)
    assert all(np.isfinite(part).all() for part in new.parameters)
    assert float(new.objective) >= float(state.objective)


def test_random_starts_differ_and_the_best_goes_on():
    predictors, outcome, _ = simulate(150, seed=9)
    fit = fit_experts(KEY, predictors, outcome, 3, num_starts=4, short_iterations=2)
    starts = np.asarray(fit.start_objectives)
    assert len(np.unique(starts)) == 4
    np.testing.assert_allclose(fit.trace[0], starts.max(), rtol=1e-12)
    # Even where outcome and predictors are unrelated on average, experts start apart.
    data = em_data(predictors, np.abs(predictors[:, 0]), settings=EMSettings(3))
    state = em_init(KEY, data, settings=EMSettings(3))
    assert float(jnp.std(state.parameters.coefficients, axis=0).min()) > 0.01


X, Y = simulate(40, seed=10)[:2]
HOLED = X.copy()
HOLED[7, 1] = np.inf
MISSING = np.where(np.arange(40) == 3, np.nan, Y)
BAD = {
    "predictors' rank": ((X[:, 0], Y), {}, r"predictors must be \(n, dim\) .* got \(40,\)"),
    "lengths": ((X, Y[:-1]), {}, r"outcome \(n,\), got \(40, 3\) and \(39,\)"),
    "weights' shape": ((X, Y), {"weights": np.ones(3)}, r"weights must be \(40,\) like outcome"),
    "negative weight": ((X, Y), {"weights": -np.ones(40)}, "weights must be finite .* -1.0 in row"),
    "no weight": ((X, Y), {"weights": np.zeros(40)}, "at least 5 rows, got 0 of positive weight"),
    "few rows": ((X[:4], Y[:4]), {}, "4 coefficients and a variance needs at least 5 rows, got 4"),
    "infinite predictor": ((HOLED, Y), {}, r"predictors must be finite, got .*inf.* in row 7"),
    "missing outcome": ((X, MISSING), {}, "outcome must be finite, got nan in row 3"),
    "not binary": ((X, Y), {"experts": "bernoulli"}, "outcome must be 0 or 1 .* in row 0"),
    "family": ((X, Y), {"experts": "student_t"}, r"experts must be one of .* got 'student_t'"),
    "gate step": ((X, Y), {"gate_step": "adam"}, r"gate_step must be one of \('newton', 'bound'\)"),
    "starts": ((X, Y), {"num_starts": 0}, "num_starts must be a positive whole number, got 0"),
    "short run": ((X, Y), {"short_iterations": -1}, "short_iterations must be a whole number from"),
    "ridge": ((X, Y), {"gate_ridge": -1.0}, "gate_ridge must be at least 0 and finite, got -1.0"),
    "floor": ((X, Y), {"variance_floor": 0.0}, r"variance_floor must be in \(0, 1\), got 0.0"),
    "start's experts": (
        (X, Y),
        {"start": (np.zeros((3, 4)), np.zeros((3, 4)), np.ones(3))},
        r"start must have 2 experts .* got a gate of shape \(3, 4\)",
    ),
    "start's features": (
        (X, Y),
        {"start": (np.zeros((2, 3)), np.zeros((2, 4)), np.ones(2))},
        r"gate must end in \(2, 4\)",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_named(name):
    arrays, settings, message = BAD[name]
    with pytest.raises(ValueError, match=message):
        fit_experts(KEY, *arrays, 2, **settings)


def test_no_expert_unknown_settings_and_wrong_widths_are_named():
    with pytest.raises(ValueError, match="num_experts must be a positive whole number, got 0"):
        fit_experts(KEY, X, Y, 0)
    with pytest.raises(TypeError, match="num_stars"):
        fit_experts(KEY, X, Y, 2, num_stars=3)
    fit = fit_experts(KEY, X, Y, 1, **QUICK)
    with pytest.raises(ValueError, match=r"predictors must be \(n, 3\), without intercept"):
        fit.predict(X[:, :2])


def test_little_data_and_constant_predictors_warn():
    with pytest.warns(UserWarning, match="8 experts with 4 features have 68 parameters.* are 40"):
        fit_experts(KEY, X, Y, 8, **QUICK)
    constant = np.concatenate([X, np.full((40, 1), 0.1)], axis=1)
    with pytest.warns(UserWarning, match=r"predictors \[3\] are constant"):
        fit = fit_experts(KEY, constant, Y, 2, **QUICK)
    np.testing.assert_allclose(fit.parameters.coefficients[:, 4], 0.0, atol=1e-9)
    np.testing.assert_allclose(fit.parameters.gate[:, 4], 0.0, atol=1e-9)
    assert np.isfinite(fit.log_likelihood)
