"""The kernel under ``pyro.infer.MCMC``: chains, schedule, resuming, warnings and errors."""

import pickle
import runpy
import signal
import subprocess
import sys
import time
import warnings
from types import SimpleNamespace

import arviz
import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import MCMC
from pyro.infer.autoguide.initialization import init_to_value

from bayesdiv.diagnostics import compare_posteriors, to_arviz
from bayesdiv.inference.sghmc import SGHMCDynamics
from bayesdiv.inference.sgld import SGLDDynamics
from bayesdiv.pyro import NonFinitePotentialError, StochasticGradientKernel

Y = 0.5 + torch.randn(20, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


@pytest.fixture(autouse=True)
def double_precision():
    torch.set_default_dtype(torch.float64)


def model(batch=5):
    scale = pyro.sample("scale", dist.HalfNormal(2.0))
    mean = pyro.sample("mean", dist.Normal(0.0, 1.0).expand([2]).to_event(1))
    with pyro.plate("data", len(Y), subsample_size=batch) as i:
        pyro.sample("y", dist.Normal(mean.sum(), scale), obs=Y[i])


START = {
    "scale": torch.tensor(1.0, dtype=torch.float64),
    "mean": torch.tensor([0.2, 0.4], dtype=torch.float64),
}


def make_kernel(model=model, **settings):
    dynamics = SGHMCDynamics(step_size=0.01, num_burn_in=settings.pop("num_burn_in", 5))
    defaults = {"seed": 0, "init_strategy": init_to_value(values=START)}
    return StochasticGradientKernel(model, dynamics, **(defaults | settings))


def run(kernel, num_samples=8, warmup_steps=5, *args, **kwargs):
    mcmc = MCMC(kernel, num_samples, warmup_steps, disable_progbar=True, **kwargs)
    mcmc.run(*args)
    return mcmc


def test_chains_come_before_draws():
    kernel = make_kernel(num_chains=3, steps_per_sample=2)
    mcmc = run(kernel)
    raw = mcmc.get_samples()
    assert raw["scale"].shape == (8, 3)
    assert raw["mean"].shape == (8, 3, 2)
    assert bool((raw["scale"] > 0).all())
    draws = kernel.get_samples(group_by_chain=True)
    torch.testing.assert_close(draws["scale"], raw["scale"].T)
    torch.testing.assert_close(kernel.get_samples()["mean"], draws["mean"].flatten(0, 1))
    assert compare_posteriors(mcmc, kernel.get_samples()).sliced_wasserstein < 1e-6
    found = to_arviz(mcmc)
    assert found.posterior["mean"].dims == ("chain", "draw", "mean_dim_0")
    np.testing.assert_allclose(found.posterior["mean"], draws["mean"])
    stats = found.sample_stats
    assert stats["lp"].shape == (3, 8)
    for name in ("gradient_norm", "kinetic_temperature", "clamped_fraction", "step_size"):
        assert stats[name].dims == ("chain", "draw")
    np.testing.assert_array_equal(stats["step_size"], 0.01)
    assert len(arviz.summary(found)) == 3
    assert len(np.unique(draws["scale"][:, -1])) == 3


def test_one_chain_is_like_any_kernel():
    mcmc = run(make_kernel())
    assert mcmc.get_samples()["mean"].shape == (8, 2)
    assert mcmc.diagnostics()["divergences"] == {"chain 0": []}
    found = arviz.from_pyro(mcmc, log_likelihood=False)
    assert found.posterior["mean"].shape == (1, 8, 2)
    assert to_arviz(mcmc).sample_stats["lp"].shape == (1, 8)


def test_lp_is_minus_the_potential_that_the_step_saw():
    kernel = make_kernel(lambda: model(None), num_chains=2, num_burn_in=0)
    mcmc = run(kernel, 6, 0)
    # Without subsampling the potential at a draw is what the next draw's step reports.
    positions = kernel._record.positions
    found = to_arviz(mcmc).sample_stats
    for draw in range(5):
        value, gradient = kernel._potential(positions[draw], 0)
        stats = found.isel(draw=draw + 1)
        np.testing.assert_allclose(stats["lp"], -value)
        np.testing.assert_allclose(stats["gradient_norm"], gradient.norm(dim=-1))


def test_an_iteration_is_so_many_gradient_steps():
    kernel = make_kernel(num_chains=2, steps_per_sample=3)
    run(kernel, 4, 2)
    assert kernel.state.step == 18
    by_hand = make_kernel(num_chains=2)
    thinned = run(by_hand, 12, 6).get_samples()["mean"][2::3]
    found = kernel.get_samples(group_by_chain=True)["mean"]
    torch.testing.assert_close(found.transpose(0, 1), thinned)


def test_seeds_repeat_and_differ():
    first = run(make_kernel()).get_samples()["mean"]
    torch.testing.assert_close(run(make_kernel()).get_samples()["mean"], first, rtol=0, atol=0)
    other = run(make_kernel(seed=1)).get_samples()["mean"]
    assert not torch.equal(other, first)
    pyro.set_rng_seed(4)
    drawn = run(make_kernel(seed=None)).get_samples()["mean"]
    pyro.set_rng_seed(4)
    again = run(make_kernel(seed=None)).get_samples()["mean"]
    torch.testing.assert_close(again, drawn, rtol=0, atol=0)


def test_chains_of_mcmc_are_batches_of_their_own(monkeypatch):
    monkeypatch.setattr("pyro.infer.mcmc.api.mp.cpu_count", lambda: 1)
    with pytest.warns(UserWarning, match="Chains will be drawn sequentially"):
        mcmc = run(make_kernel(num_chains=2), num_chains=2)
    assert mcmc.get_samples(group_by_chain=True)["mean"].shape == (2, 8, 2, 2)
    found = to_arviz(mcmc)
    assert found.posterior["mean"].shape == (4, 8, 2)
    assert found.sample_stats["kinetic_temperature"].shape == (4, 8)
    assert len(np.unique(found.posterior["scale"][:, -1])) == 4


def test_processes_of_mcmc_draw_for_themselves(monkeypatch):
    # MCMC copies the kernel into processes that it names after their chains.
    draws = []
    for name in ("0", "1", "MainProcess"):
        process = SimpleNamespace(name=name)
        monkeypatch.setattr("multiprocessing.current_process", lambda process=process: process)
        monkeypatch.setattr("multiprocessing.parent_process", lambda: "a parent")
        kernel = make_kernel()
        kernel.setup(5)
        draws.append(float(kernel.sample(kernel.initial_params)["scale"]))
    assert draws[0] == draws[2] != draws[1]


def test_starts_can_be_given_for_all_chains_or_each():
    start = {"scale": torch.tensor(0.1), "mean": torch.tensor([1.0, 2.0])}
    each = {name: torch.stack([value, value + 1.0]) for name, value in start.items()}
    for given, expected in ((start, start["mean"].expand(2, 2)), (each, each["mean"])):
        kernel = make_kernel(num_chains=2)
        kernel.initial_params = given
        kernel.setup(5)
        torch.testing.assert_close(kernel.initial_params["mean"], expected)
    wrong = {"scale": torch.zeros(3), "mean": torch.zeros(2)}
    with pytest.raises(
        ValueError, match=r"initial_params\['scale'\] must have .*\(2,\), got \(3,\)"
    ):
        run(make_kernel(num_chains=2), initial_params=wrong)
    with pytest.raises(
        ValueError, match=r"must have the sites \['mean', 'scale'\], got \['mean'\]"
    ):
        run(make_kernel(), initial_params={"mean": torch.zeros(2)})


def test_samples_can_be_moved_by_hand():
    kernel = make_kernel()
    kernel.setup(5)
    kernel.sample(kernel.initial_params)
    elsewhere = {"scale": torch.tensor(0.0), "mean": torch.tensor([3.0, 3.0])}
    moved = kernel.sample(elsewhere)
    assert (moved["mean"] - elsewhere["mean"]).abs().max() < 1.0


def test_a_loaded_state_goes_on_to_the_same_numbers():
    expected = run(make_kernel(num_chains=2), 10, 6)
    interrupted = make_kernel(num_chains=2)
    run(interrupted, 4, 6)
    saved = pickle.loads(pickle.dumps(interrupted.state_dict()))
    resumed = make_kernel(num_chains=2)
    resumed.load_state_dict(saved)
    found = run(resumed, 10, 6)
    for name, value in expected.get_samples().items():
        torch.testing.assert_close(found.get_samples()[name], value, rtol=0, atol=0)
    stats = to_arviz(found, seed=0).sample_stats
    for name, value in to_arviz(expected, seed=0).sample_stats.items():
        np.testing.assert_array_equal(stats[name], value)
    other = make_kernel(num_chains=3)
    other.load_state_dict(saved)
    with pytest.raises(ValueError, match="another run: its num_chains was 2, now 3"):
        run(other, 10, 6)


SCRIPT = """
import sys, time
import pyro, pyro.distributions as dist, torch
from pyro.infer import MCMC
from pyro.infer.autoguide.initialization import init_to_value
from bayesdiv.inference.sghmc import SGHMCDynamics
from bayesdiv.pyro import StochasticGradientKernel

def model(y):
    scale = pyro.sample("scale", dist.HalfNormal(2.0))
    with pyro.plate("data", len(y), subsample_size=3) as i:
        pyro.sample("y", dist.Normal(0.0, scale), obs=y[i])

def main(checkpoint, pause):
    torch.set_default_dtype(torch.float64)
    kernel = StochasticGradientKernel(
        model, SGHMCDynamics(0.01, num_burn_in=20), num_chains=3, seed=1,
        checkpoint=checkpoint, checkpoint_every=7,
        init_strategy=init_to_value(values={"scale": torch.tensor(4.0)}),
    )
    mcmc = MCMC(kernel, 60, 20, disable_progbar=True, hook_fn=lambda *_: time.sleep(pause))
    mcmc.run(torch.arange(10.0))
    return mcmc.get_samples()["scale"]

if __name__ == "__main__":
    main(sys.argv[1], 0.05)
"""


def test_a_killed_run_goes_on_to_the_same_numbers(tmp_path):
    script, path = tmp_path / "run.py", tmp_path / "run.pt"
    script.write_text(SCRIPT)
    main = runpy.run_path(str(script))["main"]
    with subprocess.Popen([sys.executable, script, path]) as victim:
        try:
            expected = main(None, 0.0)
            # The victim imports everything first, which a busy machine makes long.
            deadline = time.monotonic() + 400
            # Killed while sampling, past the warm-up of 20 iterations.
            while not path.exists() or torch.load(path, weights_only=True)["iteration"] < 35:
                assert victim.poll() is None
                assert time.monotonic() < deadline
                time.sleep(0.05)
        finally:
            victim.kill()
    assert victim.returncode == -signal.SIGKILL
    assert 35 <= torch.load(path, weights_only=True)["iteration"] < 80
    assert expected.shape == (60, 3)
    torch.testing.assert_close(main(path, 0.0), expected, rtol=0, atol=0)


def test_a_finished_checkpoint_is_read_not_run(tmp_path):
    path = tmp_path / "run.pt"
    kernel = make_kernel(checkpoint=path)
    expected = run(kernel).get_samples()["mean"]
    again = make_kernel(checkpoint=path)
    torch.testing.assert_close(run(again).get_samples()["mean"], expected, rtol=0, atol=0)
    more = run(make_kernel(checkpoint=path), 12).get_samples()["mean"]
    torch.testing.assert_close(more[:8], expected, rtol=0, atol=0)
    assert len(more) == 12


def test_files_that_are_no_checkpoint_are_refused(tmp_path):
    for name, write in (("text", "nothing"), ("other", {"a": 1})):
        path = tmp_path / name
        if isinstance(write, str):
            path.write_text(write)
        else:
            torch.save(write, path)
        with pytest.raises(ValueError, match=f"checkpoint .*{name}.*remove it"):
            run(make_kernel(checkpoint=path))


def test_kernels_pickle_between_runs():
    kernel = make_kernel(num_chains=2)
    run(kernel)
    copy = pickle.loads(pickle.dumps(kernel))
    torch.testing.assert_close(copy.state.position, kernel.state.position)
    assert run(copy).get_samples()["mean"].shape == (8, 2, 2)


def bounded(limit):
    """Finite only below ``limit``, and pushed up towards it."""
    weight = pyro.sample("weight", dist.Normal(0.0, 100.0))
    pyro.factor("push", 20.0 * weight)
    pyro.factor("wall", torch.log(limit - weight))


@pytest.mark.parametrize("steps_per_sample", [1, 7])
def test_a_potential_that_is_not_finite_stops_the_run(steps_per_sample):
    kernel = make_kernel(
        bounded,
        num_burn_in=0,
        num_chains=2,
        steps_per_sample=steps_per_sample,
        init_strategy=init_to_value(values={"weight": torch.tensor(0.0)}),
    )
    with pytest.raises(NonFinitePotentialError, match=r"site 'wall' is nan.*lower step_size") as e:
        run(kernel, 2000, 0, torch.tensor(3.0))
    assert f"gradient step {e.value.step} of chain {e.value.chain}" in str(e.value)
    # The state before the failing gradient: over the wall already, where U has just been asked for.
    assert kernel.state.step == e.value.step
    assert bool(torch.isfinite(kernel.state.position).all())
    assert kernel.state.position[e.value.chain] > 3.0
    draws = kernel.get_samples(group_by_chain=True)["weight"]
    assert draws.shape == (2, e.value.step // steps_per_sample)
    assert bool((draws[:, :-1] < 3.0).all())
    restored = pickle.loads(pickle.dumps(e.value))
    assert (restored.step, restored.chain) == (e.value.step, e.value.chain)


def hot(batch=1):
    """Data far apart, so that minibatch gradients are noise."""
    mean = pyro.sample("mean", dist.Normal(0.0, 10.0))
    with pyro.plate("data", 50, subsample_size=batch) as i:
        pyro.sample("y", dist.Normal(mean, 0.1), obs=torch.linspace(-5.0, 5.0, 50)[i])


def test_missing_noise_is_told_once():
    dynamics = SGHMCDynamics(step_size=0.5, num_burn_in=50)
    kernel = StochasticGradientKernel(hot, dynamics, seed=0)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        run(kernel, 5, 50)
    clamped = [str(found.message) for found in caught if "injected noise" in str(found.message)]
    assert len(clamped) == 1
    assert "100% of the coordinates" in clamped[0]
    assert "lower step_size" in clamped[0]


def test_a_hot_chain_is_told():
    # V stays 1 without burn-in, far below the noise of these gradients.
    dynamics = SGHMCDynamics(step_size=0.01, subtract_gradient_noise=False)
    kernel = StochasticGradientKernel(hot, dynamics, seed=0, num_chains=4)
    with pytest.warns(UserWarning, match="temperature over the draws is .*minibatch noise heats"):
        run(kernel, 500, 100)


def test_a_cold_chain_is_told():
    def exact():
        pyro.sample("z", dist.Normal(0.0, 1.0).expand([5]).to_event(1))

    dynamics = SGHMCDynamics(step_size=0.2, friction=0.05)
    kernel = StochasticGradientKernel(exact, dynamics, seed=0, num_chains=8)
    with pytest.warns(UserWarning, match="subtract_gradient_noise=False if the gradients"):
        run(kernel, 500, 200)


def test_a_chain_in_equilibrium_is_silent():
    def exact():
        pyro.sample("z", dist.Normal(0.0, 1.0).expand([5]).to_event(1))

    dynamics = SGHMCDynamics(step_size=0.2, friction=0.05, subtract_gradient_noise=False)
    run(StochasticGradientKernel(exact, dynamics, seed=0, num_chains=8), 500, 200)


def test_bad_settings_are_refused():
    with pytest.raises(TypeError, match="dynamics must have init and step, .* got float"):
        StochasticGradientKernel(model, 0.1)
    with pytest.raises(TypeError, match="model must be callable, got dict"):
        StochasticGradientKernel({}, SGLDDynamics(0.1))
    for name, value in (
        ("num_chains", 0),
        ("steps_per_sample", True),
        ("collect_after", -1),
        ("checkpoint_every", 1.5),
        ("seed", "a"),
    ):
        with pytest.raises(ValueError, match=f"{name} must be an integer"):
            make_kernel(**{name: value})
    with pytest.raises(ValueError, match="no model yet"):
        make_kernel().sample({})
    with pytest.raises(ValueError, match="no state yet"):
        make_kernel().state_dict()


def test_sampling_before_the_end_of_burn_in_is_refused():
    with pytest.raises(
        ValueError, match=r"steps_per_sample=3 .* num_burn_in=20; pass warmup_steps=7"
    ):
        run(make_kernel(num_burn_in=20, steps_per_sample=3), 8, 6)
    with pytest.raises(ValueError, match=r"warmup_steps=0 .* fewer than num_burn_in=5"):
        run(make_kernel(), 8, 0)
    with pytest.raises(ValueError, match=r"collect_after=4 with num_burn_in=5"):
        run(make_kernel(collect_after=4), 8, 9)
    with pytest.raises(ValueError, match=r"fewer than collect_after=11; pass warmup_steps=11"):
        run(make_kernel(collect_after=11), 8, 10)
    assert run(make_kernel(collect_after=10), 8, 10).num_samples == 8
