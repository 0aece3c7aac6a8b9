"""Rows from a mixture of experts with known parameters, for tests of EM."""

import numpy as np


def simulate(
    num_rows: int,
    *,
    dim: int = 3,
    num_experts: int = 3,
    noise: float = 0.5,
    seed: int = 0,
    experts: str = "normal",
) -> tuple:
    """``predictors, outcome, (gate, coefficients, scale)``.

    As in the experiments of Chamroukhi and Pham (2023): predictors are a mixture of normals, then
    standardised; slopes are whole numbers; intercepts are 0, so that no order of the experts by
    intercept exists.
    """
    rng = np.random.default_rng(seed)
    centres = rng.integers(-2, 3, size=(num_experts, dim))
    predictors = centres[rng.integers(num_experts, size=num_rows)] + rng.normal(
        size=(num_rows, dim)
    )
    predictors = (predictors - predictors.mean(0)) / predictors.std(0)
    coefficients = np.zeros((num_experts, dim + 1))
    coefficients[:, 1:] = rng.permutation(np.arange(-4, 5))[: num_experts * dim].reshape(
        num_experts, dim
    )
    gate = np.zeros((num_experts, dim + 1))
    gate[:-1, 1:] = rng.normal(size=(num_experts - 1, dim))
    features = np.concatenate([np.ones((num_rows, 1)), predictors], axis=1)
    # The largest of logits plus Gumbel noise is a draw from the softmax.
    label = np.argmax(features @ gate.T + rng.gumbel(size=(num_rows, num_experts)), axis=1)
    places = np.sum(features * coefficients[label], axis=1)
    if experts == "bernoulli":
        outcome = (rng.random(num_rows) < 1.0 / (1.0 + np.exp(-places))).astype(float)
        return predictors, outcome, (gate, coefficients, None)
    outcome = places + noise * rng.normal(size=num_rows)
    return predictors, outcome, (gate, coefficients, np.full(num_experts, noise))
