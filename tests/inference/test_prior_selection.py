"""Prior selection: the closed-form optimum under every divergence, state, resumption, refusals."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from helpers import make_array, to_numpy

from bayesdiv.divergences import (
    SlicedWasserstein,
    TwoSampleDivergence,
    get_divergence,
    list_divergences,
)
from bayesdiv.inference import prior_selection_jax, prior_selection_torch
from bayesdiv.inference.prior_selection import PriorPredictiveObjective
from bayesdiv.objectives import LearnedRatio, linear_schedule
from bayesdiv.training import EarlyStopping

HOSTS = {"torch": prior_selection_torch, "jax": prior_selection_jax}
F_MEMBERS = [name for name in list_divergences("f") if get_divergence(name).has_path_gradient]
NOISE, VARIANCE, MEAN = 0.1, 2.89, np.array([1.0, -0.5])
CRITIC = {"hidden": (), "quadratic": True, "num_steps": 4, "learning_rate": 0.03}
INNER = {
    "distributional_sliced_wasserstein": {"num_steps": 3, "num_projections": 16},
    "max_sliced_wasserstein": {"num_steps": 3, "num_starts": 4},
    "sliced_wasserstein": {"num_projections": 16},
    "sinkhorn": {"epsilon": 0.1},
}


def key(backend, seed=0):
    return seed if backend == "torch" else jax.random.key(seed)


def gaussian_data(count=128):
    """Points whose mean and variances are exactly those that the optimum must reproduce."""
    draws = np.random.default_rng(1).normal(size=(count, 2))
    whitened = np.linalg.solve(np.linalg.cholesky(np.cov(draws.T, bias=True)), draws.T).T
    return MEAN + math.sqrt(VARIANCE) * (whitened - whitened.mean(0))


def gaussian_sample(parameters, batch, num_draws, rng):
    """x = w + ε with an own w ~ N(μ, τ²) for every row."""
    shape = (num_draws * len(batch), 2)
    if torch.is_tensor(batch):
        noise = torch.randn(
            2, *shape, generator=torch.Generator().manual_seed(rng), dtype=batch.dtype
        )
        spread = torch.exp(0.5 * parameters["w.log_variance"])
    else:
        noise = jax.random.normal(rng, (2, *shape), dtype=batch.dtype)
        spread = jnp.exp(0.5 * parameters["w.log_variance"])
    return parameters["w.mean"] + spread * noise[0] + NOISE * noise[1]


def gaussian_start(backend, log_variance=0.0):
    return {
        "w.mean": make_array(backend, [0.0, 0.0]),
        "w.log_variance": make_array(backend, log_variance),
    }


def select(backend, objective, *, log_variance=0.0, **settings):
    return HOSTS[backend].select_prior(
        gaussian_sample,
        gaussian_start(backend, log_variance),
        make_array(backend, gaussian_data()),
        objective,
        **{"batch_size": 128, "num_inner_only": 10, "progress_bar": False, **settings},
    )


GOLDEN = [("torch", name) for name in (*list_divergences("two_sample"), *F_MEMBERS)]
# The other routine with one of each kind: without state, with learnt slices, with a critic.
GOLDEN += [
    ("jax", name)
    for name in ("energy_distance", "distributional_sliced_wasserstein", "jensen_shannon")
]
GOLDEN += [
    pytest.param("jax", name, marks=pytest.mark.slow)
    for name in (*list_divergences("two_sample"), "reverse_kl")
    if ("jax", name) not in GOLDEN
]


@pytest.mark.parametrize(("backend", "name"), GOLDEN)
def test_every_divergence_finds_the_closed_form_optimum(backend, name):
    """x ~ N(m, v I) and x = w + ε: the optimum is μ = m and τ² = v − σ², for all of them.

    What remains is the finite-sample bias of matching 128 points with 128 points, which is largest
    for exact transport, and the noise of the last steps. The data are not in [0, 1].
    """
    settings = CRITIC if name in F_MEMBERS else INNER.get(name, {})
    found = select(
        backend,
        PriorPredictiveObjective(name, 1, settings),
        # Pearson's χ² is infinite where the data's variance is more than twice the prediction's.
        log_variance=1.5 if name == "pearson_chi2" else 0.0,
        num_steps=160,
        learning_rate=0.08,
        schedule=linear_schedule(1.0, 0.02, 140),
        log_every=40,
    )
    mean = to_numpy(found.parameters["w.mean"])
    variance = math.exp(float(found.parameters["w.log_variance"]))
    np.testing.assert_allclose(mean, MEAN, atol=0.15)
    assert variance == pytest.approx(VARIANCE - NOISE**2, rel=0.2)
    assert (found.num_steps, found.stopped) == (160, "completed")


class Counter(TwoSampleDivergence):
    """Energy of the means, with an adversary that counts its steps."""

    def init(self, x, y, *, rng=None):
        return (0.0 * x[0, 0],)

    def step(self, state, x, y, *, x_weights=None, y_weights=None, rng=None):
        return (state[0] + 1.0,), None

    def _value(self, state, samples, rng):
        return ((samples.x.mean(0) - samples.y.mean(0)) ** 2).sum() + 1000.0 * state[0]


def test_the_adversary_keeps_its_state_and_moves_first(backend):
    """The counter's value shows which step the adversary is in; parameters wait for it."""
    found = select(backend, Counter(), num_steps=8, num_inner_only=5, log_every=3)
    steps = np.floor(found.history["loss"] / 1000.0)
    np.testing.assert_array_equal(steps, np.arange(1, 9))
    moving = found.history["gradient_norm"] > 0
    np.testing.assert_array_equal(moving, np.arange(8) >= 5)
    still = select(backend, Counter(), num_steps=5, num_inner_only=5)
    np.testing.assert_array_equal(to_numpy(still.parameters["w.mean"]), 0.0)


def test_without_an_adversary_parameters_move_at_once(backend):
    found = select(backend, "energy_distance", num_steps=1, num_inner_only=50)
    assert np.abs(to_numpy(found.parameters["w.mean"])).min() > 0


SLICES = PriorPredictiveObjective("distributional_sliced_wasserstein", 2, {"num_steps": 2})
CRITICS = PriorPredictiveObjective("forward_kl", 2, {"hidden": (4,), "num_steps": 2})


@pytest.mark.parametrize(
    ("backend", "objective"), [("torch", SLICES), ("torch", CRITICS), ("jax", CRITICS)]
)
def test_a_resumed_run_has_the_same_numbers(backend, objective, tmp_path):
    settings = {"batch_size": 16, "num_inner_only": 3, "log_every": 4}
    whole = select(backend, objective, num_steps=10, **settings)
    path = tmp_path / "prior"
    select(backend, objective, num_steps=6, checkpoint=path, **settings)
    torch.manual_seed(5)
    resumed = select(backend, objective, num_steps=10, checkpoint=path, **settings)
    for name in ("loss", "gradient_norm"):
        np.testing.assert_allclose(resumed.history[name], whole.history[name], rtol=1e-12)
    for name, value in whole.parameters.items():
        np.testing.assert_allclose(to_numpy(resumed.parameters[name]), to_numpy(value), rtol=1e-12)


def test_early_stopping(backend):
    found = select(
        backend,
        "energy_distance",
        num_steps=200,
        log_every=5,
        learning_rate=1e-9,
        early_stopping=EarlyStopping(patience=15),
    )
    assert found.stopped == "early_stopping"
    assert len(found.history["loss"]) == found.num_steps < 200


def test_learning_rates_by_pattern(backend):
    rates = {"*.mean": 0.01, "*.log_variance": 0.1}
    found = select(backend, "energy_distance", num_steps=1, learning_rate=rates)
    moved = {name: np.abs(to_numpy(value)).max() for name, value in found.parameters.items()}
    # Adam's first step is the learning rate.
    assert moved == pytest.approx({"w.mean": 0.01, "w.log_variance": 0.1}, rel=1e-4)


def test_the_objective_repeats_the_batch_in_law(backend):
    """Unequal counts compare laws: repeating the batch by hand changes nothing."""
    x = make_array(backend, gaussian_data(6))
    y = make_array(backend, np.random.default_rng(2).normal(size=(18, 2)))
    repeated = make_array(backend, np.concatenate([gaussian_data(6)] * 3))
    mean, total = (
        PriorPredictiveObjective("sliced_wasserstein", 3, {"reduction": reduction})
        for reduction in ("mean", "sum")
    )
    value = float(mean.value(None, x, y, key(backend)))
    by_hand = float(SlicedWasserstein()(repeated, y, rng=key(backend)))
    assert value == pytest.approx(by_hand, rel=1e-9)
    summed = float(total.value(None, x, y, key(backend)))
    assert summed == pytest.approx(math.sqrt(18) * value, rel=1e-9)


def test_names_of_f_divergences_get_a_critic():
    objective = PriorPredictiveObjective("reverse_kl", parameters={"hidden": (3,)})
    assert objective.divergence == LearnedRatio("reverse_kl", hidden=(3,))
    assert objective.learns
    assert not PriorPredictiveObjective("mmd").learns


def test_distances_for_reports_are_the_divergence_of_the_same_draws(backend):
    host = HOSTS[backend]
    data = make_array(backend, gaussian_data(16))
    arguments = gaussian_sample, gaussian_start(backend), data
    first = host.prior_predictive_distance(*arguments, "energy_distance", num_draws=2)
    again = host.prior_predictive_distance(*arguments, "energy_distance", num_draws=2)
    other = host.prior_predictive_distance(*arguments, "energy_distance", num_draws=2, seed=1)
    assert first == again != other
    root = host.prior_predictive_distance(*arguments, "energy_distance", num_draws=2, root=True)
    assert root**2 == pytest.approx(first, rel=1e-9)


def test_refused_objectives():
    with pytest.raises(ValueError, match="num_draws must be at least 1, got 0"):
        PriorPredictiveObjective(num_draws=0)
    with pytest.raises(ValueError, match="divergence must be one of"):
        PriorPredictiveObjective("wassersein")
    with pytest.raises(ValueError, match="must have a path gradient"):
        PriorPredictiveObjective("total_variation")


def test_refused_samplers(backend):
    def short(parameters, batch, num_draws, rng):
        return gaussian_sample(parameters, batch, 1, rng)

    start, data = gaussian_start(backend), make_array(backend, gaussian_data(8))
    arguments = {"num_steps": 1, "progress_bar": False}
    with pytest.raises(ValueError, match="sample must return num_draws . rows = 64 rows of 2 numb"):
        HOSTS[backend].select_prior(short, start, data, "mmd", **arguments)
    with pytest.raises(ValueError, match=r"matches no parameter of w\..*, w\."):
        HOSTS[backend].select_prior(
            gaussian_sample, start, data, "mmd", learning_rate={"*.scale": 0.1}, **arguments
        )
    with pytest.raises(ValueError, match="got none for 'w.log_variance'; add"):
        HOSTS[backend].select_prior(
            gaussian_sample, start, data, "mmd", learning_rate={"*.mean": 0.1}, **arguments
        )
    with pytest.raises(ValueError, match="mapping of names to arrays, at least one"):
        HOSTS[backend].select_prior(gaussian_sample, {}, data, "mmd", **arguments)
    with pytest.raises(TypeError, match=r"parameters\['w.mean'\] must be a torch tensor or a JAX"):
        HOSTS[backend].select_prior(gaussian_sample, {"w.mean": 0.0}, data, "mmd", **arguments)


def test_samplers_must_be_differentiable_in_torch():
    start, data = gaussian_start("torch"), torch.tensor(gaussian_data(8))
    arguments = {"num_steps": 1, "progress_bar": False}

    def constant(*given):
        return gaussian_sample(*given).detach()

    with pytest.raises(ValueError, match="differentiable in parameters, got a constant"):
        prior_selection_torch.select_prior(constant, start, data, "mmd", **arguments)
    with pytest.raises(ValueError, match="'unused'. has no influence on what sample returns"):
        prior_selection_torch.select_prior(
            gaussian_sample, {**start, "unused": torch.zeros(1)}, data, "mmd", **arguments
        )


def test_checkpoints_of_another_run_are_refused(backend, tmp_path):
    path = tmp_path / "prior"
    select(backend, "mmd", num_steps=1, checkpoint=path)
    start = {name: make_array(backend, np.zeros(3)) for name in gaussian_start(backend)}
    with pytest.raises(ValueError, match="another model|with other shapes"):
        HOSTS[backend].select_prior(
            lambda parameters, *given: gaussian_sample(gaussian_start(backend), *given),
            start,
            make_array(backend, gaussian_data()),
            "mmd",
            num_steps=2,
            checkpoint=path,
            progress_bar=False,
        )


def test_a_loss_that_is_not_finite_keeps_the_last_good_parameters():
    """In JAX; torch leaves it to its loop. The spread overflows at the first step."""
    with pytest.warns(RuntimeWarning, match="not finite at step 1; the state after step 0 is kept"):
        found = prior_selection_jax.select_prior(
            gaussian_sample,
            {"w.mean": jnp.zeros(2), "w.log_variance": jnp.array(1500.0)},
            jnp.asarray(gaussian_data()),
            "sliced_wasserstein",
            num_steps=20,
            progress_bar=False,
        )
    assert (found.stopped, found.num_steps) == ("not_finite", 0)
    assert float(found.parameters["w.log_variance"]) == 1500.0
