"""``estimate`` at the edges: overflow, no mass, shapes, dtypes, compilation, both backends."""

import functools
import math

import arviz
import jax
import numpy as np
import pytest
import torch
from helpers import gradient_of, make_array, to_numpy

from bayesdiv.divergences import Alpha, ForwardKL, get_divergence, list_divergences
from bayesdiv.objectives import RenyiBound, estimate, get_objective, pareto_k

NAMES = [*list_divergences("f"), "renyi", "iwae", "tail_adaptive"]
LOG_WEIGHT = np.random.default_rng(6).normal(-1.0, 2.0, size=(8, 2, 3))
LOG_Q = np.random.default_rng(7).normal(size=LOG_WEIGHT.shape)


def has_gradient(name, gradient):
    rule = get_objective(name)
    if gradient == "path":
        return rule.has_path_gradient
    return getattr(rule, "has_score_gradient", True)


CASES = [(n, g) for n in NAMES for g in ("path", "reparam", "score") if has_gradient(n, g)]


def loss_and_gradients(backend, rule, gradient, log_weight, log_q, dtype="float64", **options):
    """[loss, ∂loss/∂log_weight, ∂loss/∂log_q] as NumPy arrays."""

    def loss(x, y):
        extra = {"log_q": y} if gradient == "score" else {}
        # The zero keeps y in the graph of estimators that do not use it.
        return estimate(rule, x, gradient=gradient, **extra, **options).loss + 0.0 * y.sum()

    value = loss(make_array(backend, log_weight, dtype), make_array(backend, log_q, dtype))
    return [to_numpy(value), *gradient_of(backend, loss, log_weight, log_q, dtype=dtype)]


class TestParity:
    @pytest.mark.parametrize(("dtype", "tolerance"), [("float64", 1e-12), ("float32", 1e-6)])
    @pytest.mark.parametrize(("name", "gradient"), CASES)
    def test_backends_agree(self, name, gradient, dtype, tolerance):
        results = [
            loss_and_gradients(backend, name, gradient, LOG_WEIGHT, LOG_Q, dtype, scale=2.5)
            for backend in ("torch", "jax")
        ]
        for found, expected in zip(*results, strict=True):
            assert found.dtype == expected.dtype == dtype
            # Relative to what went in or came out: differences of bounds have fewer digits.
            size = max(np.abs(LOG_WEIGHT).max(), np.abs(expected).max())
            assert np.abs(found - expected).max() <= tolerance * size

    @pytest.mark.parametrize(("name", "gradient"), CASES)
    def test_float32_follows_float64(self, name, gradient):
        single = loss_and_gradients("torch", name, gradient, LOG_WEIGHT, LOG_Q, "float32")
        double = loss_and_gradients("torch", name, gradient, LOG_WEIGHT, LOG_Q)
        for found, expected in zip(single, double, strict=True):
            assert np.abs(found - expected).max() <= 2e-5 * max(1.0, np.abs(expected).max())


WIDE = {
    "wide": [-1e4, -3.0, 0.0, 2.0, 1e4],
    "all_low": [-1e4] * 5,
    "all_high": [1e4, 1e4, 1e4, 1e4, 1e4 - 1.0],
}
NO_MASS = {
    "one_without_mass": [-math.inf, 0.0, 1.0, -1.0, 2.0],
    "one_with_mass": [-math.inf, -math.inf, 1.0, -math.inf, -math.inf],
}
STEEP = {"alpha_4": Alpha(4.0), "alpha_-3": Alpha(-3.0), "chi2s": Alpha(3.0) + Alpha(-2.0)}


class TestExtremes:
    @pytest.mark.parametrize("dtype", ["float64", "float32"])
    @pytest.mark.parametrize("log_weight", WIDE.values(), ids=WIDE)
    @pytest.mark.parametrize(("name", "gradient"), CASES)
    def test_log_weights_of_ten_thousand_stay_finite(self, name, gradient, log_weight, dtype):
        for part in loss_and_gradients("torch", name, gradient, log_weight, [0.5] * 5, dtype):
            assert np.all(np.isfinite(part))

    @pytest.mark.parametrize("normalizer", [None, 0.0])
    @pytest.mark.parametrize("gradient", ["path", "reparam", "score"])
    @pytest.mark.parametrize("rule", STEEP.values(), ids=STEEP)
    def test_steep_divergences_stay_finite(self, rule, gradient, normalizer):
        for dtype in ("float32", "float64"):
            for part in loss_and_gradients(
                "torch", rule, gradient, WIDE["wide"], [0.5] * 5, dtype, log_normalizer=normalizer
            ):
                assert np.all(np.isfinite(part))

    # Reverse KL, and what reports it, is rightly infinite where q has mass and p has none.
    @pytest.mark.parametrize("log_weight", NO_MASS.values(), ids=NO_MASS)
    @pytest.mark.parametrize(
        ("name", "gradient"), [c for c in CASES if c[0] not in ("reverse_kl", "tail_adaptive")]
    )
    def test_particles_without_mass_leave_estimates_finite(
        self, name, gradient, log_weight, backend
    ):
        for part in loss_and_gradients(backend, name, gradient, log_weight, [0.5] * 5):
            assert np.all(np.isfinite(part))

    @pytest.mark.parametrize("name", ["reverse_kl", "tail_adaptive"])
    def test_reverse_kl_without_mass_is_infinite_rather_than_nan(self, name, backend):
        log_weight = NO_MASS["one_without_mass"]
        loss, slope, _ = loss_and_gradients(backend, name, "path", log_weight, [0.5] * 5)
        assert loss == math.inf
        assert np.all(np.isfinite(slope))

    @pytest.mark.parametrize("name", ["forward_kl", "iwae", "jensen_shannon"])
    def test_a_particle_without_mass_counts_in_the_mean(self, name, backend):
        """As the limit of ever smaller weights."""
        zero = np.array([-math.inf, 0.3, 1.0])
        small = np.array([-300.0, 0.3, 1.0])
        found, limit = (
            float(to_numpy(estimate(name, make_array(backend, x)).value)) for x in (zero, small)
        )
        assert found == pytest.approx(limit, rel=1e-12)

    @pytest.mark.parametrize("bad", [math.nan, math.inf])
    @pytest.mark.parametrize("name", ["reverse_kl", "forward_kl", "tail_adaptive", "iwae"])
    def test_broken_log_weights_are_not_hidden(self, name, bad, backend):
        value = estimate(name, make_array(backend, [0.0, bad, 1.0])).value
        assert not math.isfinite(float(to_numpy(value)))


class TestDiagnostics:
    def test_log_evidence_and_ess(self, backend):
        found = estimate("forward_kl", make_array(backend, LOG_WEIGHT), scale=2.5)
        weight = np.exp(LOG_WEIGHT)
        evidence = 2.5 * np.log(weight.mean(0)).sum()
        assert float(to_numpy(found.log_evidence)) == pytest.approx(evidence, rel=1e-12)
        np.testing.assert_allclose(
            to_numpy(found.ess), weight.sum(0) ** 2 / (weight**2).sum(0), rtol=1e-11
        )

    def test_ess_of_equal_and_of_single_weights(self, backend):
        log_weight = np.array([[700.0, 0.0], [700.0, -800.0], [700.0, -900.0]])
        ess = to_numpy(estimate("iwae", make_array(backend, log_weight)).ess)
        np.testing.assert_allclose(ess, [3.0, 1.0], rtol=1e-12)

    def test_pareto_k_of_each_plate(self, backend):
        log_weight = np.random.default_rng(8).normal(size=(400, 2)) * [0.3, 4.0]
        found = estimate("forward_kl", make_array(backend, log_weight)).pareto_k
        expected = [float(arviz.psislw(column - column.max())[1]) for column in log_weight.T]
        np.testing.assert_allclose(found, expected, rtol=1e-6)
        assert found[0] < 0.5 < 0.7 < found[1]

    def test_pareto_k_of_one_problem_is_a_number(self):
        assert np.ndim(pareto_k(np.random.default_rng(9).normal(size=100))) == 0

    @pytest.mark.parametrize(("count", "missing"), [(24, True), (25, False)])
    def test_pareto_k_needs_particles(self, count, missing):
        log_weight = np.random.default_rng(10).normal(size=(count, 2))
        np.testing.assert_array_equal(np.isnan(pareto_k(log_weight)), missing)

    def test_log_weight_is_kept_without_its_graph(self):
        log_weight = torch.tensor(LOG_WEIGHT, requires_grad=True)
        assert not estimate("forward_kl", log_weight).log_weight.requires_grad

    def test_loss_has_the_value_of_one_and_the_gradient_of_the_other(self, backend):
        found = estimate("forward_kl", make_array(backend, LOG_WEIGHT))
        assert float(to_numpy(found.loss)) == pytest.approx(float(to_numpy(found.value)))
        for attribute in ("loss", "surrogate"):
            slope = gradient_of(
                backend,
                lambda x, name=attribute: getattr(estimate("forward_kl", x), name),
                LOG_WEIGHT,
            )
            share = np.exp(LOG_WEIGHT) / np.exp(LOG_WEIGHT).sum(0)
            np.testing.assert_allclose(slope[0], -share, rtol=1e-11)


class TestCompilation:
    @pytest.mark.parametrize("name", ["alpha", "renyi"])
    def test_order_scale_and_normalizer_are_traced_once(self, name):
        traces = []

        @jax.jit
        def step(x, order, scale, log_normalizer):
            traces.append(order)
            rule = get_objective(name, order=order)
            return estimate(rule, x, scale=scale, log_normalizer=log_normalizer)

        x = jax.numpy.asarray(LOG_WEIGHT)
        for order, scale, log_z in ((0.3, 1.0, 0.0), (0.7, 2.0, 0.5), (1.8, 3.0, -1.0)):
            found = step(x, order, scale, log_z)
            expected = estimate(
                get_objective(name, order=order), x, scale=scale, log_normalizer=log_z
            )
            for attribute in ("value", "surrogate", "log_evidence"):
                np.testing.assert_allclose(
                    getattr(found, attribute), getattr(expected, attribute), rtol=1e-12
                )
        assert len(traces) == 1

    def test_weights_of_a_sum_may_be_traced(self):
        @jax.jit
        def value(x, weight):
            rule = weight * get_divergence("alpha", order=weight) + ForwardKL()
            return estimate(rule, x, gradient="reparam").value

        x = jax.numpy.asarray(LOG_WEIGHT)
        expected = estimate(0.4 * Alpha(0.4) + ForwardKL(), x, gradient="reparam").value
        np.testing.assert_allclose(value(x, 0.4), expected, rtol=1e-12)

    @pytest.mark.parametrize(("name", "gradient"), CASES)
    def test_gradients_compile(self, name, gradient):
        def loss(x, y):
            extra = {"log_q": y} if gradient == "score" else {}
            return estimate(name, x, gradient=gradient, **extra).loss

        x, y = jax.numpy.asarray(LOG_WEIGHT[:, 0]), jax.numpy.asarray(LOG_Q[:, 0])
        argnums = (0, 1) if gradient == "score" else 0
        found = jax.jit(jax.grad(loss, argnums))(x, y)
        torch_parts = loss_and_gradients("torch", name, gradient, LOG_WEIGHT[:, 0], LOG_Q[:, 0])
        for part, expected in zip(jax.tree.leaves(found), torch_parts[1:], strict=False):
            np.testing.assert_allclose(part, expected, rtol=1e-9, atol=1e-12)

    def test_vmap_over_problems_equals_plates(self):
        x = jax.numpy.asarray(LOG_WEIGHT[:, 0])
        single = jax.vmap(functools.partial(estimate, "forward_kl"), in_axes=1)(x)
        np.testing.assert_allclose(single.value.sum(), estimate("forward_kl", x).value, rtol=1e-12)


class TestErrors:
    @pytest.mark.parametrize(
        ("objective", "options", "error", "message"),
        [
            ("elbo", {}, ValueError, "objective must be one of .* got 'elbo'"),
            (None, {}, TypeError, "objective must be a name, .* got None of type NoneType"),
            ("sliced_wasserstein", {}, TypeError, "compares samples, not log-ratios"),
            (
                "forward_kl",
                {"gradient": "auto"},
                ValueError,
                "'path', 'reparam' or 'score', got 'a",
            ),
            ("forward_kl", {"gradient": "score"}, ValueError, "log_q is needed for gradient='sc"),
            ("total_variation", {}, ValueError, "gradient='path' does not exist for TotalVariat"),
            ("tail_adaptive", {"gradient": "reparam"}, ValueError, "has no 'reparam' gradient"),
        ],
    )
    def test_what_does_not_exist(self, objective, options, error, message, backend):
        with pytest.raises(error, match=message):
            estimate(objective, make_array(backend, LOG_WEIGHT), **options)

    def test_tail_adaptive_has_no_score_terms(self, backend):
        log_weight = make_array(backend, LOG_WEIGHT)
        with pytest.raises(ValueError, match="make every guide site reparameterised"):
            estimate("tail_adaptive", log_weight, log_q=log_weight)

    def test_shapes_that_differ(self, backend):
        log_weight = make_array(backend, LOG_WEIGHT)
        message = r"log_q must have the shape of log_weight, \(8, 2, 3\), got \(8, 2\)"
        with pytest.raises(ValueError, match=message):
            estimate("forward_kl", log_weight, gradient="score", log_q=log_weight[..., 0])

    def test_a_scalar_has_no_particles(self, backend):
        with pytest.raises(ValueError, match=r"shape \(num_particles, \*plates\), got a scalar"):
            estimate("forward_kl", make_array(backend, 0.5))

    @pytest.mark.parametrize(
        ("objective", "options", "reason"),
        [
            ("forward_kl", {"log_q": True}, "the leave-one-out baseline"),
            ("tail_adaptive", {}, "TailAd"),
        ],
    )
    def test_too_few_particles(self, objective, options, reason, backend):
        log_weight = make_array(backend, LOG_WEIGHT[:1])
        extra = {"log_q": log_weight} if options else {}
        with pytest.raises(
            ValueError, match=f"num_particles must be at least 2 for {reason}.*got 1"
        ):
            estimate(objective, log_weight, **extra)

    def test_bounds_keep_a_single_particle(self, backend):
        found = estimate(RenyiBound(0.5), make_array(backend, LOG_WEIGHT[:1]))
        assert float(to_numpy(found.value)) == pytest.approx(-LOG_WEIGHT[0].sum())
