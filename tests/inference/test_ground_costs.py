"""Costs between experts: values against formulas and quadrature, updates against an optimiser."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.optimize import minimize

from bayesdiv.divergences import Alpha, ForwardKL, SoftenedReverseKL, TotalVariation
from bayesdiv.inference._ground_cost_updates import (
    Experts,
    TransportPlan,
    mass_by_expert,
    planned_cost,
)
from bayesdiv.inference._ground_costs import (
    GaussianForwardKL,
    GaussianRenyi,
    get_ground_cost,
    list_ground_costs,
)

ROWS, LOCAL, REDUCED, WIDTH = 60, 6, 2, 3


def value(cost, local, reduced):
    """The cost of two Gaussians given by mean and variance."""
    numbers = [local[0], local[1] ** 0.5, reduced[0], reduced[1] ** 0.5]
    return float(cost.between(*(jnp.asarray(float(number)) for number in numbers)))


# By quadrature over the densities on a fine grid.
@pytest.mark.parametrize(
    ("cost", "expected"),
    [
        (GaussianRenyi(0.5), 0.19740120),
        (GaussianRenyi(2.0), 0.41059815),
        (get_ground_cost("pearson_chi2"), 0.50771936),
    ],
)
def test_cost_matches_reference(cost, expected):
    assert value(cost, (0.3, 0.8), (-0.5, 1.7)) == pytest.approx(expected, abs=1e-8)


def test_renyi_tends_to_forward_kl_and_is_infinite_where_it_diverges():
    pair = (0.3, 0.8), (-0.5, 1.7)
    limit = value(get_ground_cost("forward_kl"), *pair)
    assert value(GaussianRenyi(1.0 + 1e-6), *pair) == pytest.approx(limit, abs=1e-5)
    assert value(GaussianRenyi(2.0), (0.0, 4.0), (0.0, 1.0)) == np.inf


def jensen_shannon_on_grid(local, reduced):
    (m1, v1), (m2, v2) = local, reduced
    reach = 12.0 * max(v1, v2) ** 0.5 + abs(m1 - m2)
    y = np.linspace(min(m1, m2) - reach, max(m1, m2) + reach, 400_001)
    p, q = (
        np.exp(-0.5 * (y - m) ** 2 / v) / np.sqrt(2.0 * np.pi * v) for m, v in ((m1, v1), (m2, v2))
    )
    middle = 0.5 * (p + q)
    with np.errstate(divide="ignore", invalid="ignore"):
        terms = [np.where(law > 1e-200, law * np.log(law / middle), 0.0) for law in (p, q)]
    return 0.5 * np.sum(terms) * (y[1] - y[0])


@pytest.mark.parametrize(
    ("local", "reduced", "tolerance"),
    [
        ((0.3, 0.8), (-0.5, 1.7), 1e-6),
        ((0.0, 1.0), (3.0, 1.0), 2e-4),
        ((0.0, 1.0), (0.0, 9.0), 1e-5),
        ((0.0, 0.09), (1.0, 4.0), 5e-5),
        # Nodes under the wide law alone would miss the narrow one.
        ((0.0, 1e-4), (1.0, 4.0), 2e-3),
        ((0.0, 1.0), (40.0, 1.0), 1e-6),
    ],
)
def test_jensen_shannon_matches_a_grid_both_ways(local, reduced, tolerance):
    cost = get_ground_cost("jensen_shannon")
    expected = jensen_shannon_on_grid(local, reduced)
    assert value(cost, local, reduced) == pytest.approx(expected, abs=tolerance)
    assert value(cost, reduced, local) == pytest.approx(expected, abs=tolerance)


@pytest.mark.parametrize("experts", ["normal", "bernoulli"])
def test_costs_vanish_only_between_equal_experts(experts):
    for name in list_ground_costs(experts):
        cost = get_ground_cost(name, experts=experts)
        place, other = jnp.asarray(0.4), jnp.asarray(0.9)
        scale = jnp.asarray(0.7) if experts == "normal" else None
        assert abs(float(cost.between(place, scale, place, scale))) < 1e-12, name
        assert float(cost.between(place, scale, other, scale)) > 1e-3, name


@pytest.fixture(scope="module")
def problem():
    """A random plan from six local experts to two."""
    rng = np.random.default_rng(3)
    features = np.concatenate([np.ones((ROWS, 1)), rng.normal(size=(ROWS, WIDTH - 1))], axis=1)
    coefficients = rng.normal(size=(LOCAL, WIDTH))
    plan = TransportPlan(
        jnp.asarray(rng.dirichlet(np.ones(LOCAL), ROWS)),
        jnp.asarray(rng.integers(REDUCED, size=(ROWS, LOCAL))),
        jnp.arange(LOCAL),
        REDUCED,
    )
    # Scales near each other keep both chi-squares finite.
    local = Experts(
        jnp.asarray(coefficients),
        jnp.asarray(rng.uniform(0.9, 1.1, LOCAL)),
        jnp.asarray(features @ coefficients.T),
    )
    start = Experts(jnp.asarray(coefficients[:REDUCED]), jnp.full(REDUCED, 1.05))
    return jnp.asarray(features), plan, local, start


def planned(cost, features, plan, local):
    """The planned cost by reduced expert, compiled."""
    return jax.jit(lambda now: planned_cost(cost.between, features, plan, local, now))


def optimum(total, start):
    """The least total that BFGS with differences finds, and where."""
    split = REDUCED * WIDTH

    def experts(vector):
        coefficients = jnp.asarray(vector[:split].reshape(REDUCED, WIDTH))
        return Experts(
            coefficients, None if start.scale is None else jnp.exp(jnp.asarray(vector[split:]))
        )

    parts = [np.ravel(start.coefficients)]
    if start.scale is not None:
        parts.append(np.log(start.scale))
    found = minimize(
        # A step too far may overflow; differences of two infinities are no gradient.
        lambda vector: min(float(total(experts(vector)).sum()), 1e12),
        np.concatenate(parts),
        jac="3-point",
        method="BFGS",
    )
    return found.fun, experts(found.x)


@pytest.mark.parametrize("name", ["forward_kl", "reverse_kl", "wasserstein2"])
def test_closed_update_is_the_optimum(name, problem):
    cost = get_ground_cost(name)
    features, plan, local, start = problem
    found = cost.update(features, plan, local, start)
    _, best = optimum(planned(cost, features, plan, local), start)
    np.testing.assert_allclose(found.coefficients, best.coefficients, atol=5e-6)
    np.testing.assert_allclose(found.scale, best.scale, atol=5e-6)


@pytest.mark.parametrize(
    "name",
    ["jensen_shannon", "renyi", "squared_hellinger", "pearson_chi2"],
)
def test_steps_go_down_to_the_optimum(name, problem):
    features, plan, local, start = problem
    if name == "pearson_chi2":
        # A chi-square between experts far apart is astronomical; keep it in reach.
        local = local._replace(places=0.3 * local.places)
    check_descent(get_ground_cost(name), features, plan, local, start)


@pytest.mark.parametrize("name", ["forward_kl", "jensen_shannon"])
def test_logistic_steps_go_down_to_the_optimum(name, problem):
    features, plan, local, start = problem
    cost = get_ground_cost(name, experts="bernoulli")
    check_descent(cost, features, plan, local._replace(scale=None), start._replace(scale=None))


def check_descent(cost, features, plan, local, start):
    update = jax.jit(lambda now: cost.update(features, plan, local, now))
    total = planned(cost, features, plan, local)
    now, costs = start, total(start)
    for _ in range(60):
        now = update(now)
        new = total(now)
        # Every reduced expert is searched for by itself.
        assert (new <= costs + 1e-12 * jnp.abs(costs)).all()
        costs = new
    best, _ = optimum(total, start)
    assert float(costs.sum()) <= best + 1e-6 * (1.0 + abs(best))


def test_forward_kl_keeps_the_spread_between_experts(problem):
    """Without the second term the variance is that of the local experts alone, and costs more."""
    features, plan, local, start = problem
    cost = GaussianForwardKL()
    found = cost.update(features, plan, local, start)
    within = mass_by_expert(plan, local.scale[plan.local] ** 2) / mass_by_expert(plan, 1.0)
    assert (found.scale**2 > 1.5 * within).all()
    without = found._replace(scale=jnp.sqrt(within))
    right, wrong = (
        planned_cost(cost.between, features, plan, local, experts) for experts in (found, without)
    )
    assert (wrong > right + 0.1).all()


def test_divergences_of_the_layer_become_costs():
    assert get_ground_cost(ForwardKL()) == GaussianForwardKL()
    assert get_ground_cost(Alpha(0.3)) == get_ground_cost("alpha", order=0.3)
    assert get_ground_cost("renyi", order=2.0) == GaussianRenyi(2.0)


def test_bad_costs_are_named():
    with pytest.raises(ValueError, match=r"one of forward_kl, .*got 'kullback'"):
        get_ground_cost("kullback")
    with pytest.raises(TypeError, match=r"name, an FDivergence or a GroundCost, got 3"):
        get_ground_cost(3)
    with pytest.raises(ValueError, match=r"SoftenedReverseKL.*bounded divergences only"):
        get_ground_cost(SoftenedReverseKL())
    with pytest.raises(ValueError, match=r"TotalVariation.*is not smooth"):
        get_ground_cost(TotalVariation(), experts="bernoulli")
    with pytest.raises(ValueError, match=r"not one between bernoulli experts"):
        get_ground_cost(GaussianForwardKL(), experts="bernoulli")
    with pytest.raises(ValueError, match=r"order must be positive and not 1, got 1"):
        GaussianRenyi(1.0)
