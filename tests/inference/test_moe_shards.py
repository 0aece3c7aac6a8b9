"""Mixtures of experts on shards: one answer from every backend, and through a lost worker."""

import os
import signal
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from distributed import Client, LocalCluster
from distributed.client import FutureCancelledError

from bayesdiv._mixture_of_experts import MixtureOfExpertsParameters, log_prob, mean
from bayesdiv.inference import _shard_backends as backends
from bayesdiv.inference.moe_reduction import TransportReduction
from bayesdiv.inference.moe_shards import (
    _check_agreement,
    _support_counts,
    density_weights,
    fit_distributed,
)

KEY = jax.random.key(3)
SETTINGS = {"num_starts": 2, "short_iterations": 8, "max_iterations": 60}
NUM_SHARDS = 4


def make_rows(seed, num_rows=300):
    """Two regressions, told apart by the first predictor."""
    rng = np.random.default_rng(seed)
    predictors = rng.normal(size=(num_rows, 2))
    first = rng.uniform(size=num_rows) < 1.0 / (1.0 + np.exp(-2.0 * predictors[:, 0]))
    means = np.where(first, 4.0 + predictors @ [1.0, -2.0], -predictors @ [3.0, 0.5])
    return predictors, means + 0.5 * rng.normal(size=num_rows)


SHARDS = [make_rows(seed) for seed in range(NUM_SHARDS)]


def fit(backend, shards=None, **arguments):
    arguments = {"support_size": 200, **SETTINGS, **arguments}
    return fit_distributed(
        KEY, SHARDS if shards is None else shards, 2, backend=backend, **arguments
    )


@pytest.fixture(scope="module")
def client():
    """Two workers in processes of their own, as a user's default."""
    cluster = LocalCluster(
        n_workers=2,
        threads_per_worker=1,
        processes=True,
        dashboard_address=None,
        # One of them is killed while it compiles.
        env={**backends.ONE_THREAD, "JAX_ENABLE_COMPILATION_CACHE": "0"},
    )
    with cluster, Client(cluster) as client:
        yield client


@pytest.fixture(scope="module")
def undisturbed(client):
    return fit(client)


@pytest.fixture(scope="module")
def in_process():
    return fit("vmap")


def assert_same(first, second, tolerance=0.0):
    for one, other in zip(first.parameters, second.parameters, strict=True):
        np.testing.assert_allclose(one, other, atol=tolerance, rtol=0.0)
    np.testing.assert_array_equal(first.support, second.support)


def test_reduction_predicts_almost_as_the_truth_does(in_process):
    truth = MixtureOfExpertsParameters(
        jnp.array([[0.0, 2.0, 0.0], [0.0, 0.0, 0.0]]),
        jnp.array([[4.0, 1.0, -2.0], [0.0, -3.0, -0.5]]),
        jnp.array([0.5, 0.5]),
    )
    predictors, outcome = make_rows(99, 2000)
    features = jnp.asarray(np.concatenate([np.ones((2000, 1)), predictors], axis=1))
    best = float(jnp.mean(log_prob(jnp.asarray(outcome), features, truth)))
    found = float(jnp.mean(in_process.log_prob(predictors, outcome)))
    # Eleven parameters from 1200 rows.
    assert best - 0.03 < found < best + 0.01
    predictions = [in_process.predict(predictors), mean(features, truth)]
    assert float(np.corrcoef(*predictions)[0, 1]) > 0.99


def test_support_and_weights_follow_the_sizes(in_process):
    np.testing.assert_allclose(in_process.weights, 0.25)
    assert in_process.support.shape == (200, 2)
    every = np.concatenate([predictors for predictors, _ in SHARDS])
    owners = [np.flatnonzero((every == row).all(axis=1))[0] // 300 for row in in_process.support]
    assert np.bincount(owners).tolist() == [50] * NUM_SHARDS
    assert len(in_process.local_fits) == NUM_SHARDS
    assert in_process.seconds["local_sum"] >= in_process.seconds["local_max"] > 0.0


def test_workers_find_what_one_process_finds(undisturbed, in_process):
    assert_same(undisturbed, in_process, tolerance=1e-5)
    assert [f.num_iterations for f in undisturbed.local_fits] == [
        f.num_iterations for f in in_process.local_fits
    ]


def test_any_executor_serves(in_process):
    with ThreadPoolExecutor(1) as executor:
        assert_same(fit(executor), in_process, tolerance=1e-5)


def test_rows_may_be_loaded_where_they_are_fitted(client, undisturbed, tmp_path):
    def loader(path):
        def load():
            with np.load(path) as rows:
                return rows["predictors"], rows["outcome"]

        return load

    loaders = []
    for index, (predictors, outcome) in enumerate(SHARDS):
        np.savez(tmp_path / f"{index}.npz", predictors=predictors, outcome=outcome)
        loaders.append(loader(tmp_path / f"{index}.npz"))
    assert_same(fit(client, loaders), undisturbed)


def kill_first_worker_that_fits(client, killed):
    """Wait for a fit to run, and end its process without warning."""
    deadline = time.monotonic() + 60.0
    while time.monotonic() < deadline:
        for address, keys in client.processing().items():
            if any(str(key).startswith("fit_shard") for key in keys):
                (process,) = client.run(os.getpid, workers=[address]).values()
                time.sleep(0.05)
                os.kill(process, signal.SIGKILL)
                killed.append(process)
                return
        time.sleep(0.002)


def test_a_killed_worker_changes_nothing(client, undisturbed):
    """Its rows were there alone: they are sent again, and its task is run by another."""
    killed: list[int] = []
    killer = threading.Thread(target=kill_first_worker_that_fits, args=(client, killed))
    killer.start()
    # A setting of its own, so that the workers compile, and fits last long enough.
    found = fit(client, max_iterations=61)
    killer.join()
    assert len(killed) == 1
    assert_same(found, undisturbed)


class LosesFirst:
    """A client whose first results of every shard are lost with their worker."""

    def __init__(self, losses):
        self.losses, self.sent, self.num_sent = losses, {}, 0

    def scatter(self, shard, *, hash):  # noqa: A002 - Dask's name
        self.num_sent += 1
        return shard

    def submit(self, function, shard, *rest, pure, key):
        client = self

        class Future:
            def result(self):
                count = client.sent.setdefault(key.rsplit("-", 1)[0], 0)
                client.sent[key.rsplit("-", 1)[0]] += 1
                if count < client.losses:
                    raise FutureCancelledError(key, "lost")
                return function(shard, *rest)

        return Future()


def make_backend(losses):
    backend = object.__new__(backends.OnDask)
    backend.shards, backend.remote = SHARDS, {}
    backend.client = LosesFirst(losses)
    return backend


def test_lost_rows_are_sent_again_but_not_for_ever():
    backend = make_backend(losses=2)
    descriptions = backends.describe(backend, [2] * NUM_SHARDS, "normal")
    assert [description.num_rows for description in descriptions] == [300] * NUM_SHARDS
    assert backend.client.num_sent == 3 * NUM_SHARDS
    with pytest.raises(RuntimeError, match=r"shards \[0, 1, 2, 3\] were lost .* 4 times"):
        backends.describe(make_backend(losses=9), [2] * NUM_SHARDS, "normal")


def test_flagged_shards_are_fitted_again_from_the_others():
    """A shard whose outcomes are nonsense is left out, then started from the reduction."""
    rng = np.random.default_rng(0)
    shards = [*SHARDS, (SHARDS[0][0], 20.0 * rng.normal(size=300))]
    with ThreadPoolExecutor(1) as executor:
        found = fit(executor, shards, refit=True, reduction=TransportReduction(trim=True))
    assert found.refitted == (4,)
    assert not found.reduction.used[4]
    assert len(found.models) == 5


def test_shards_may_have_models_of_different_sizes():
    with ThreadPoolExecutor(1) as executor:
        found = fit(executor, SHARDS[:3], num_local_experts=[2, 2, 1])
    assert [len(model.gate) for model in found.models] == [2, 2, 1]
    assert len(found.parameters.gate) == 2


def test_support_is_shared_out_by_size():
    assert _support_counts(np.array([100.0, 50.0, 49.0]), 20).tolist() == [10, 5, 5]
    assert _support_counts(np.array([3.0, 4.0]), 100).tolist() == [3, 4]


def test_density_weights_are_those_of_the_regions():
    means = np.array([[-1.0], [2.0]])
    covariances = np.array([[[1.0]], [[4.0]]])
    rows = np.array([[-1.0], [0.0], [5.0]])
    found = density_weights(rows, means, covariances, np.array([0.25, 0.75]))
    variances = np.array([1.0, 4.0]) + 1e-3 * 2.5
    densities = np.exp(-0.5 * (rows - means.T) ** 2 / variances) / np.sqrt(variances)
    expected = densities * [0.25, 0.75]
    np.testing.assert_allclose(found, expected / expected.sum(axis=1, keepdims=True), rtol=1e-12)


def spoilt(index, row):
    predictors, outcome = (part.copy() for part in SHARDS[index])
    predictors[row, 0] = np.nan
    return [*SHARDS[:index], (predictors, outcome), *SHARDS[index + 1 :]]


@pytest.mark.parametrize(
    ("shards", "arguments", "error", "message"),
    [
        ([], {}, ValueError, r"at least one pair"),
        (spoilt(2, 7), {}, ValueError, r"shard 2: predictors must be finite.*in row 7"),
        (
            [*SHARDS, tuple(part[:3] for part in SHARDS[0])],
            {},
            ValueError,
            r"shard 4: an expert of 3 coefficients.*at least 4 rows, got 3",
        ),
        (
            [*SHARDS, (SHARDS[0][0][:, :1], SHARDS[0][1])],
            {},
            ValueError,
            r"most have 2, shards \[4\] have \[1\]",
        ),
        ([SHARDS[0], 3], {}, TypeError, r"shard 1 must be a pair .*got int"),
        ([SHARDS[0], (SHARDS[0][0], SHARDS[0][1][:9])], {}, ValueError, r"shard 1: .*\(300, 2\)"),
        (SHARDS, {"num_local_experts": [2, 2]}, ValueError, r"one for each of the 4 .*got 2"),
        (SHARDS, {"weighting": "size"}, ValueError, r"'rows' or 'density', got 'size'"),
        (SHARDS, {"support_size": 0}, ValueError, r"support_size must be a positive.*got 0"),
        (SHARDS, {"backend": "spark"}, ValueError, r"backend must be .*got 'spark'"),
        (SHARDS, {"scheduler": "tcp://x:1"}, ValueError, r"goes with backend='dask' alone"),
        (SHARDS, {"tolerance": -1.0}, ValueError, r"tolerance must be at least 0"),
        (SHARDS, {"iterations": 5}, TypeError, r"iterations"),
        (
            SHARDS,
            {"reduction": TransportReduction(gate_target="posterior")},
            ValueError,
            r"outcomes, which do not travel",
        ),
    ],
)
def test_bad_input_is_named(shards, arguments, error, message):
    with pytest.raises(error, match=message):
        fit_distributed(KEY, shards, 2, **{"backend": "vmap", **arguments})


def test_small_shards_are_warned_of_once():
    backend = backends.InProcess([tuple(part[:8] for part in shard) for shard in SHARDS])
    descriptions = backends.describe(backend, [2] * NUM_SHARDS, "normal")
    with pytest.warns(UserWarning, match=r"shard 0: 2 experts.*and 3 more such warnings"):
        _check_agreement(descriptions)
