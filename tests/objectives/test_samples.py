"""Pairs of samples, their weights and units, inner state, and what settings refuse."""

import numpy as np
import pytest
from helpers import gradient_of, make_array, to_numpy

from bayesdiv._array import array_namespace
from bayesdiv.divergences import get_divergence
from bayesdiv.objectives._plates import Plate
from bayesdiv.objectives._sample_spaces import check_outside_codes, check_whole_plates, find_codes
from bayesdiv.objectives._samples import (
    Pair,
    compare,
    effective_size,
    flatten_reference,
    posterior_pair,
    predictive_pair,
    row_weights,
    sample_settings,
    standardize,
)

RNG = np.random.default_rng(3)
DRAWS = RNG.normal(size=(12, 2))
LOG_WEIGHT = RNG.normal(size=12)


def _rng(backend: str, seed: int = 0):
    if backend == "torch":
        return seed
    import jax

    return jax.random.key(seed)


@pytest.mark.parametrize("name", ["energy_distance", "sliced_wasserstein", "wasserstein"])
def test_loss_and_gradient_vanish_where_the_guide_is_the_posterior(backend, name):
    divergence = get_divergence(name, **({"root": False} if "wasserstein" in name else {}))

    def loss(values):
        pair = posterior_pair(values, 0.0 * values[:, 0] + 3.0)
        return compare(divergence, pair, rng=(_rng(backend), None))[0]

    assert abs(float(to_numpy(loss(make_array(backend, DRAWS))))) < 1e-10
    (gradient,) = gradient_of(backend, loss, DRAWS)
    assert np.max(np.abs(gradient)) < 1e-10


def test_translating_the_guide_moves_it_towards_the_weighted_mean(backend):
    # d W₂² / d shift = 2 (mean of y − Σ w x), whatever the plan: its marginals fix it.
    divergence = get_divergence("wasserstein", order=2, root=False)

    def loss(shift):
        pair = posterior_pair(make_array(backend, DRAWS), make_array(backend, LOG_WEIGHT))
        return compare(divergence, pair._replace(y=pair.y + shift[None, :]))[0]

    (gradient,) = gradient_of(backend, loss, np.zeros(2))
    weights = np.exp(LOG_WEIGHT) / np.exp(LOG_WEIGHT).sum()
    np.testing.assert_allclose(gradient, 2 * (DRAWS.mean(0) - weights @ DRAWS), rtol=1e-6)


def test_posterior_side_and_weights_are_constants(backend):
    def loss(values, log_weight):
        pair = posterior_pair(values, log_weight)
        xp = array_namespace(values)
        return xp.sum(pair.x_weights[:, None] * pair.x) + 0.0 * xp.sum(values + log_weight[:, None])

    for gradient in gradient_of(backend, loss, DRAWS, LOG_WEIGHT):
        assert not gradient.any()


def test_effective_size_is_one_over_the_sum_of_squared_weights(backend):
    weights = np.exp(LOG_WEIGHT) / np.exp(LOG_WEIGHT).sum()
    value = to_numpy(effective_size(make_array(backend, LOG_WEIGHT + 500.0)))
    assert value == pytest.approx(1.0 / np.sum(weights**2), rel=1e-10)


def test_weights_of_rows_multiply_masks_and_scales(backend):
    mask = make_array(backend, [True, False, True], "bool")
    scale = make_array(backend, [1.0, 5.0, 3.0])
    np.testing.assert_allclose(to_numpy(row_weights(mask, scale, rows=3)), [0.25, 0.0, 0.75])
    np.testing.assert_allclose(to_numpy(row_weights(mask, None, 2.0, rows=3)), [0.5, 0.0, 0.5])
    assert row_weights(None, 4.0, rows=3) is None
    with pytest.raises(ValueError, match=r"weights of rows must have shape \(4,\), got \(3,\)"):
        row_weights(scale, rows=4)


def test_missing_rows_weigh_nothing(backend):
    observed = make_array(backend, [[1.0], [np.nan], [2.0]])
    predicted = make_array(backend, RNG.normal(size=(6, 1)))
    weights = make_array(backend, [0.5, 0.0, 0.5])
    pair = predictive_pair(observed, predicted, weights=weights)
    np.testing.assert_allclose(to_numpy(pair.y_weights), [0.25, 0, 0.25, 0.25, 0, 0.25])
    kept = Pair(observed[[0, 2]], predicted[[0, 2, 3, 5]]) if backend == "torch" else None
    value, _ = compare(get_divergence("energy_distance"), pair)
    assert np.isfinite(to_numpy(value))
    if kept is not None:
        expected, _ = compare(get_divergence("energy_distance"), kept)
        assert float(value) == pytest.approx(float(expected), rel=1e-12)


def test_context_is_joined_to_both_sides(backend):
    observed = make_array(backend, [[1.0], [2.0]])
    predicted = make_array(backend, [[3.0], [4.0], [5.0], [6.0]])
    context = make_array(backend, [[10.0], [20.0]])
    pair = predictive_pair(observed, predicted, context=context)
    np.testing.assert_allclose(to_numpy(pair.x), [[10, 1], [20, 2]])
    np.testing.assert_allclose(to_numpy(pair.y), [[10, 3], [20, 4], [10, 5], [20, 6]])
    for wrong in (context[:1], context[:, 0], 3.0):
        with pytest.raises(ValueError, match=r"context must have shape \(2, c\).*site 'y'"):
            predictive_pair(observed, predicted, context=wrong, site="y")


def test_standardised_pairs_do_not_know_units(backend):
    x, y = make_array(backend, DRAWS), make_array(backend, DRAWS[:5] + 1.0)
    units = make_array(backend, [1e3, 1e-3])
    divergence = get_divergence("energy_distance")
    one, _ = compare(divergence, standardize(Pair(x, y), x))
    other, _ = compare(divergence, standardize(Pair(x * units, y * units), x * units))
    assert float(one) == pytest.approx(float(other), rel=1e-9)
    weights = make_array(backend, np.r_[[0.5, 0.5], np.zeros(10)])
    scaled = standardize(Pair(x, y, weights), x, weights)
    np.testing.assert_allclose(to_numpy(scaled.x) * DRAWS[:2].std(0), DRAWS)
    constant = standardize(Pair(0.0 * x, y), 0.0 * x)
    np.testing.assert_allclose(to_numpy(constant.y), to_numpy(y))


def test_reference_is_laid_out_in_the_order_of_the_sites(backend):
    reference = {
        "b": make_array(backend, np.arange(6.0).reshape(3, 2)),
        "a": make_array(backend, [10.0, 20.0, 30.0]),
        "unused": make_array(backend, [0.0]),
    }
    shapes = {"a": (), "b": (2,)}
    rows = flatten_reference(reference, shapes, lambda name, value: value + (name == "a"))
    np.testing.assert_allclose(to_numpy(rows), [[11, 0, 1], [21, 2, 3], [31, 4, 5]])
    with pytest.raises(ValueError, match=r"\['c'\] are missing"):
        flatten_reference(reference, {"c": ()}, lambda _, value: value)
    with pytest.raises(ValueError, match=r"reference\['b'\] must have shape \(n, 3\).*\(3, 2\)"):
        flatten_reference(reference, {"b": (3,)}, lambda _, value: value)
    with pytest.raises(ValueError, match=r"same n at every site, got \(2,\)"):
        flatten_reference(
            {**reference, "a": reference["a"][:2]}, {"b": (2,), "a": ()}, lambda _, v: v
        )


def test_kept_inner_state_climbs_from_step_to_step(backend):
    # Points moved by one shift: no line tells them apart by more than its length.
    shift = np.array([0.3, -0.4])
    pair = Pair(make_array(backend, DRAWS), make_array(backend, DRAWS + shift))
    divergence = get_divergence(
        "distributional_sliced_wasserstein", num_steps=2, regularization=0.01, learning_rate=0.05
    )
    state = divergence.init(pair.x, pair.y, rng=_rng(backend))
    values = []
    for step in range(40):
        rng = (_rng(backend, 2 * step), _rng(backend, 2 * step + 1))
        value, state = compare(divergence, pair, state=state, rng=rng)
        values.append(float(to_numpy(value)))
    assert values[0] < 0.42
    assert 0.48 < values[-1] <= 0.5 + 1e-9
    frozen, same = compare(divergence, pair, state=state, advance=False, rng=(None, _rng(backend)))
    assert same is state
    assert float(to_numpy(frozen)) > 0.48


def test_settings_fill_defaults_by_space():
    counts = [sample_settings("mmd", space=s).count for s in ("latent", "data", "codes")]
    assert counts == [64, 8, 1]
    assert sample_settings("sliced_wasserstein", num_projections=7).divergence.num_projections == 7
    assert not sample_settings("energy_distance").has_inner_state
    assert sample_settings("max_sliced_wasserstein").has_inner_state


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (
            {"divergence": "mmd", "space": "prior"},
            ValueError,
            "space must be 'latent'.*got 'prior'",
        ),
        ({"divergence": "reverse_kl"}, TypeError, "must compare two samples.*an f-divergence"),
        ({"divergence": "mdd"}, ValueError, "divergence must be one of"),
        ({"divergence": "mmd", "depth": 3}, ValueError, "'mmd' has no parameter 'depth'"),
        ({"divergence": "mmd", "num_particles": 1}, ValueError, "at least 2 in space='latent'"),
        (
            {"divergence": "mmd", "num_particles": 2.0},
            ValueError,
            "num_particles must be an integer",
        ),
        ({"divergence": "mmd", "warmup": -1}, ValueError, "warmup must be an integer >= 0, got -1"),
        (
            {"divergence": "mmd", "penalty": 2.0},
            ValueError,
            "penalty is an option of space='codes'",
        ),
        (
            {"divergence": "mmd", "space": "codes", "standardize": True},
            ValueError,
            "standardize is an option of space='latent' or space='data'",
        ),
        (
            {"divergence": "mmd", "space": "data", "prior_scale": -1.0},
            ValueError,
            "prior_scale must be finite and at least 0, got -1.0",
        ),
    ],
)
def test_settings_refuse(arguments, error, message):
    with pytest.raises(error, match=message):
        sample_settings(**arguments)


def test_codes_are_the_latent_sites_beside_observations():
    data = Plate("data", -1, 10, 50)
    codes = find_codes({"z": frozenset({data}), "w": frozenset()}, [frozenset({data}), frozenset()])
    assert codes == (["z"], frozenset({"data"}), 50)
    with pytest.raises(ValueError, match="needs a latent site and an observed site in one"):
        find_codes({"w": frozenset()}, [frozenset({data})])
    inner = Plate("inner", -2, 3, 3)
    with pytest.raises(ValueError, match=r"all codes in the same plates.*'inner'"):
        find_codes({"z": frozenset({data}), "u": frozenset({data, inner})}, [frozenset({data})])


def test_plates_and_sites_that_spaces_refuse():
    with pytest.raises(ValueError, match="'z' stands in plate 'data', of which 10 of 50"):
        check_whole_plates({"z": frozenset({Plate("data", -1, 10, 50)})})
    check_outside_codes("w_unconstrained", ["z"], {"w"})
    with pytest.raises(ValueError, match="'joint' stands outside the data plate"):
        check_outside_codes("joint", ["z"], {"w"})
