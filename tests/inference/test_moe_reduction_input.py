"""Input that the reduction of mixtures of experts names, and what it warns of."""

import jax
import numpy as np
import pytest
from expert_models import random_model

from bayesdiv.inference.moe_reduction import (
    TransportReduction,
    baseline,
    expected_divergence,
)

KEY = jax.random.key(0)
FOUR = [(-2.0, 0.5), (0.0, 1.0), (1.0, 2.0), (5.0, 0.1)]
FOUR_WEIGHTS = [0.1, 0.4, 0.3, 0.2]


def support(num_rows=400, dim=3, seed=0):
    return np.random.default_rng(seed).normal(1.0, 2.0, size=(num_rows, dim))


GOOD = random_model(1)


def call(models=None, rows=None, settings=None, **arguments):
    settings = settings or {}
    models = [GOOD, GOOD] if models is None else models
    rows = support(50) if rows is None else rows
    return TransportReduction(**settings).run(KEY, models, rows, **arguments)


def spoilt(part, value):
    array = np.array(getattr(GOOD, part))
    array.flat[0] = value
    return GOOD._replace(**{part: array})


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"models": []}, ValueError, r"at least one fitted model, got none"),
        ({"models": [GOOD, "x"]}, TypeError, r"got str for model 1"),
        (
            {"models": [GOOD, random_model(1, dim=2), GOOD]},
            ValueError,
            r"4 features, the intercept and the 3 columns.*got \[3\] in models \[1\]",
        ),
        (
            {"models": [GOOD, spoilt("coefficients", np.nan)]},
            ValueError,
            r"model 1 has parameters that are not finite",
        ),
        ({"models": [spoilt("scale", -1.0)]}, ValueError, r"scale must be positive, got -1"),
        ({"models": [GOOD._replace(scale=None)]}, ValueError, r"model 0: scale must be None"),
        ({"rows": np.zeros(5)}, ValueError, r"shape \(rows, dim\).*got shape \(5,\)"),
        (
            {"rows": np.where(np.arange(150).reshape(50, 3) == 20, np.nan, 1.0)},
            ValueError,
            r"NaN or infinity in 1 rows, first in row 6",
        ),
        ({"num_experts": 7}, ValueError, r"num_experts must be from 1 to 6.*got 7"),
        ({"weights": [1.0]}, ValueError, r"weights must have shape \(2,\).*got \(1,\)"),
        ({"weights": [1.0, -1.0]}, ValueError, r"not negative, got values from -1"),
        ({"weights": [0.0, 0.0]}, ValueError, r"must not all be zero"),
        ({"start": random_model(0, dim=5)}, ValueError, r"coefficients of shape \(3, 4\)"),
        ({"settings": {"gate_target": "posterior"}}, ValueError, r"needs the outcome.*got None"),
        (
            {"settings": {"gate_target": "posterior"}, "outcome": np.zeros(3)},
            ValueError,
            r"outcome must be finite and of shape \(50,\), got shape \(3,\)",
        ),
        ({"settings": {"experts": "student_t"}}, ValueError, r"experts must be one of.*student_t"),
        ({"settings": {"plan": "soft"}}, ValueError, r"plan must be one of.*'soft'"),
        ({"settings": {"epsilon": 0.0}}, ValueError, r"epsilon must be positive, got 0"),
        ({"settings": {"num_starts": 0}}, ValueError, r"num_starts must be a positive whole"),
        ({"settings": {"tolerance": -1.0}}, ValueError, r"tolerance must be at least 0"),
        ({"settings": {"cost": "kl"}}, ValueError, r"cost between normal experts must be one of"),
    ],
)
def test_bad_input_is_named(arguments, error, message):
    with pytest.raises(error, match=message):
        call(**arguments)


def test_bad_baselines_and_couplings_are_named():
    with pytest.raises(ValueError, match=r"name must be one of aligned_average.*'mean'"):
        baseline("mean", [GOOD], support())
    with pytest.raises(ValueError, match=r"one number of experts, got \[3, 2\]"):
        baseline("naive_average", [GOOD, random_model(1, num_experts=2)], support())
    with pytest.raises(ValueError, match=r"from 1 to 3, the experts of all models, got 4"):
        baseline("greedy_merge", [GOOD], support(), num_experts=4)
    with pytest.raises(ValueError, match=r"'relaxed' or 'exact', got 'both'"):
        expected_divergence(GOOD, GOOD, support(), coupling="both")


def test_too_few_rows_and_saturated_gates_are_warned_of():
    with pytest.warns(UserWarning, match=r"support has 2 rows for 4 features"):
        TransportReduction(num_starts=1).run(KEY, [GOOD], support(2))
    sure = GOOD._replace(gate=50.0 * GOOD.gate)
    with pytest.warns(UserWarning, match=r"of the support's rows most models put all weight"):
        TransportReduction(num_starts=1).run(KEY, [sure, sure], support())
