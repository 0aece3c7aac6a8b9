"""The stochastic-gradient kernel: minibatches, chain methods, resuming, failures, bad input."""

import os
import pickle
import signal
import subprocess
import sys
import textwrap
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from minibatch_models import X, Y, crossed, potential_of, regression
from numpyro import handlers
from numpyro.infer import MCMC, NUTS, init_to_uniform

from bayesdiv.diagnostics._chain_checks import chain_problems
from bayesdiv.inference.sghmc import SGHMCDynamics
from bayesdiv.numpyro import StochasticGradientKernel, check_chains

DYNAMICS = SGHMCDynamics(step_size=0.01, num_burn_in=20)


def run(num_samples=8, num_chains=2, method="vectorized", state=None, **settings):
    settings = {"dynamics": DYNAMICS, "steps_per_sample": 2} | settings
    model, args = settings.pop("model", regression), settings.pop("args", (X, Y, 5))
    kernel = StochasticGradientKernel(model, **settings)
    mcmc = MCMC(
        kernel,
        num_warmup=12,
        num_samples=num_samples,
        num_chains=num_chains,
        chain_method=method,
        progress_bar=False,
    )
    if state is None:
        mcmc.run(jax.random.key(3), *args)
    else:
        mcmc.post_warmup_state = state
        mcmc.run(state.rng_key, *args)
    return mcmc


@pytest.fixture(scope="module")
def whole():
    return run()


def test_chain_methods_agree_number_by_number(whole):
    sequential = run(method="sequential")
    for name, values in sequential.get_samples(group_by_chain=True).items():
        found = whole.get_samples(group_by_chain=True)[name]
        np.testing.assert_allclose(found, values, rtol=1e-7, err_msg=name)
    assert not np.allclose(*whole.get_samples(group_by_chain=True)["weight"])
    stats, others = whole.get_extra_fields(), sequential.get_extra_fields()
    np.testing.assert_allclose(stats["gradient_norm"], others["gradient_norm"], rtol=1e-7)


def test_samples_are_constrained_and_without_what_belongs_to_a_minibatch(whole):
    samples = whole.get_samples()
    assert set(samples) == {"scale", "weight", "simplex", "shift", "total"}
    assert samples["scale"].min() > 0
    np.testing.assert_allclose(samples["simplex"].sum(-1), 1.0)
    total = samples["weight"].sum(-1) + samples["simplex"][:, 0]
    np.testing.assert_allclose(samples["total"], total)


def test_steps_of_an_iteration_are_those_of_the_dynamics():
    """The kernel's chain is the dynamics' own, step by step; statistics are the averages."""
    kernel = StochasticGradientKernel(regression, DYNAMICS, steps_per_sample=3)
    args = (jnp.asarray(X), jnp.asarray(Y), 5)
    state = kernel.init(jax.random.key(0), 12, None, args, {})
    potential = potential_of(regression, *args)
    _, unravel = jax.flatten_util.ravel_pytree(state.z)

    def value(position, key):
        return potential(unravel(position), key, args, {})

    @jax.jit
    def step(inner):
        return DYNAMICS.step(inner, jax.value_and_grad(value))

    inner, reports = state.dynamics._replace(rng=state.rng_key), []
    for _ in range(3):
        inner, report = step(inner)
        reports.append(report)
    after = jax.jit(lambda state: kernel.sample(state, args, {}))(state)
    np.testing.assert_allclose(after.dynamics.position, inner.position, rtol=1e-9)
    np.testing.assert_allclose(after.potential_energy, reports[-1].potential, rtol=1e-9)
    norms = [report.gradient_norm for report in reports]
    np.testing.assert_allclose(after.gradient_norm, np.mean(norms), rtol=1e-9)
    assert after.dynamics.step == 3
    with pytest.raises(AttributeError, match="no field 'accept_prob'"):
        after.accept_prob  # noqa: B018


@pytest.fixture(scope="module")
def halves():
    """The same run, interrupted after 3 of its 8 draws; the first part before it went on."""
    first = run(num_samples=3)
    kept = pickle.dumps(first)
    second = run(num_samples=5, state=pickle.loads(pickle.dumps(first.last_state)))
    return kept, second


def assert_ends_like(mcmc, whole):
    """The draws of ``mcmc`` are the last of ``whole``, to the last bit."""
    for name, found in mcmc.get_samples(group_by_chain=True).items():
        expected = whole.get_samples(group_by_chain=True)[name][:, -found.shape[1] :]
        np.testing.assert_array_equal(found, expected, err_msg=name)


def test_a_resumed_run_gives_the_numbers_of_an_uninterrupted_one(whole, halves):
    assert_ends_like(halves[1], whole)
    found = np.asarray(halves[1].last_state.dynamics.position)
    np.testing.assert_array_equal(found, whole.last_state.dynamics.position)


def test_a_run_pickles_and_goes_on(whole, halves):
    again = pickle.loads(halves[0])
    again.post_warmup_state, again.num_samples = again.last_state, 5
    again.run(again.last_state.rng_key, X, Y, 5)
    assert_ends_like(again, whole)


# Pyro's test of the same kills a process in the quick suite too.
@pytest.mark.slow
def test_a_killed_run_resumes_to_the_same_numbers(whole, halves, tmp_path):
    script = textwrap.dedent(f"""
        import importlib.util, os, pickle, signal, sys
        sys.path[:0] = {sys.path!r}
        import jax
        spec = importlib.util.spec_from_file_location("case", {__file__!r})
        case = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(case)
        mcmc = case.run(num_samples=3)
        with open("state.pickle", "wb") as file:
            pickle.dump(mcmc.last_state, file)
        mcmc.post_warmup_state = mcmc.last_state
        mcmc.run(mcmc.last_state.rng_key, case.X, case.Y, 5)
        print("lost", flush=True)
        os.kill(os.getpid(), signal.SIGKILL)
    """)
    values = jax.config.values
    flags = {
        name.upper(): str(int(values[name]))
        for name in ("jax_enable_x64", "jax_disable_most_optimizations")
    }
    killed = subprocess.run(
        [sys.executable, "-c", script],
        cwd=tmp_path,
        env=os.environ | flags,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert killed.stdout.endswith("lost\n")
    state = pickle.loads((tmp_path / "state.pickle").read_bytes())
    resumed = halves[1]
    resumed.post_warmup_state = state
    resumed.run(state.rng_key, X, Y, 5)
    assert_ends_like(resumed, whole)


def cliff(edge=1.0):
    """The potential is not a number beyond ``edge``."""
    x = numpyro.sample("x", dist.Normal(0.0, 1.0))
    numpyro.factor("cliff", jnp.where(x > edge, jnp.nan, 0.0))


@pytest.fixture(scope="module")
def fallen():
    dynamics = SGHMCDynamics(step_size=0.3, subtract_gradient_noise=False)
    kernel = StochasticGradientKernel(cliff, dynamics, steps_per_sample=2)
    mcmc = MCMC(
        kernel,
        num_warmup=0,
        num_samples=400,
        num_chains=2,
        chain_method="vectorized",
        progress_bar=False,
    )
    mcmc.run(jax.random.key(0), init_params={"x": jnp.array([0.0, -3.0])}, edge=1.0)
    return mcmc


def test_a_chain_stops_at_its_last_good_state(fallen):
    failed = np.asarray(fallen.last_state.failed_step)
    draws = np.asarray(fallen.get_samples(group_by_chain=True)["x"])
    fields = fallen.get_extra_fields(group_by_chain=True)
    assert (failed > 0).all()
    assert failed[0] != failed[1]
    for chain, step in enumerate(failed):
        # Two gradient steps a draw; the step that found the cliff started beyond it.
        first_lost = (step - 1) // 2
        assert (draws[chain, first_lost:] == draws[chain, -1]).all()
        assert len(set(draws[chain, : max(first_lost, 1)])) == max(first_lost, 1)
        np.testing.assert_array_equal(fields["diverging"][chain], np.arange(400) >= first_lost)
    assert np.isfinite(draws).all()
    assert all(np.isfinite(np.asarray(values)).all() for values in fields.values())


def test_a_stopped_chain_is_reported_with_its_step(fallen):
    step = int(fallen.last_state.failed_step[1])
    with pytest.warns(UserWarning, match="stopped at gradient step") as caught:
        problems = check_chains(fallen)
    # What a stopped chain repeats says nothing about temperature.
    assert len(problems) == len(caught) == 2
    assert f"chain 1 stopped at gradient step {step}," in problems[1]


def test_the_progress_bar_says_what_matters(fallen, whole):
    one = jax.tree.map(lambda leaf: leaf[0] if leaf.ndim else leaf, fallen.last_state)
    assert "stopped at gradient step" in fallen.sampler.get_diagnostics_str(one)
    one = jax.tree.map(lambda leaf: leaf[0] if leaf.ndim else leaf, whole.last_state)
    assert whole.sampler.get_diagnostics_str(one).startswith("potential ")
    assert "clamped 0." in whole.sampler.get_diagnostics_str(one)


def test_clamped_noise_is_reported():
    def narrow():
        numpyro.sample("x", dist.Normal(0.0, 1e-6))

    kernel = StochasticGradientKernel(narrow, SGHMCDynamics(step_size=0.1, num_burn_in=500))
    mcmc = MCMC(kernel, num_warmup=1000, num_samples=50, progress_bar=False)
    mcmc.run(jax.random.key(0))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        clamped, cold = check_chains(mcmc)
    assert clamped.startswith("100% of the coordinates get no injected noise")
    assert "kinetic temperature over the draws is 0.00 where it should be 1" in cold


def test_single_precision():
    with jax.enable_x64(False):  # noqa: FBT003 - the only way to call it
        table = np.outer(X, Y)
        mcmc = run(num_samples=4, num_chains=1, model=crossed, args=(table, (4, 5)))
        assert mcmc.last_state.dynamics.position.dtype == jnp.float32
        assert all(value.dtype == jnp.float32 for value in mcmc.get_samples().values())
        assert np.isfinite(np.asarray(mcmc.get_samples()["level"])).all()


def test_what_statistics_say():
    """Only what exceeds its own noise; hot and cold chains get different advice."""
    noise = np.random.default_rng(0).normal(size=(2, 100))
    clean = {"kinetic_temperature": 1.0 + 0.5 * noise, "clamped_fraction": np.full((2, 100), 0.04)}
    assert chain_problems(clean) == chain_problems({}) == []
    assert chain_problems({"kinetic_temperature": 1.3 + 5.0 * noise}) == []
    assert chain_problems({"kinetic_temperature": np.full((2, 9), 9.0)}) == []
    (hot,) = chain_problems({"kinetic_temperature": 1.4 + 0.1 * noise})
    assert hot.startswith("the kinetic temperature over the draws is 1.4")
    assert "minibatch noise heats the chains" in hot
    (cold,) = chain_problems({"kinetic_temperature": 0.7 + 0.1 * noise})
    assert "subtract_gradient_noise=False" in cold
    (clamped,) = chain_problems({"clamped_fraction": np.full((2, 3), 0.06)})
    assert clamped.startswith("6% of the coordinates")


def test_wrapping_the_model_starts_afresh(whole):
    kernel = whole.sampler.wrap_model(lambda model: handlers.block(model, hide=["total"]))
    assert kernel._sample_fn is None
    assert whole.sampler._sample_fn is not None
    with pytest.raises(ValueError, match="call init before sample"):
        kernel.sample(whole.last_state, (X, Y, 5), {})


def discrete():
    numpyro.sample("kind", dist.Bernoulli(0.3))


def local(x):
    with numpyro.plate("data", len(x), subsample_size=2) as rows:
        numpyro.sample("y", dist.Normal(numpyro.sample("u", dist.Normal()), 1.0), obs=x[rows])


def observed(x):
    numpyro.sample("y", dist.Normal(), obs=x)


@pytest.mark.parametrize(
    ("model", "args", "message"),
    [
        (discrete, (), "site 'kind' is discrete .*sum the site out"),
        (local, (X,), "latent site 'u' lies in the subsampled plate 'data'"),
        (observed, (1.0,), "no latent sites"),
    ],
)
def test_models_that_cannot_be_sampled(model, args, message):
    with pytest.raises(ValueError, match=message):
        run(model=model, args=args, num_chains=1)


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"model": 3}, TypeError, "model must be a callable, got int"),
        ({"dynamics": print}, TypeError, "dynamics must have methods init and step"),
        ({"steps_per_sample": 0}, ValueError, "steps_per_sample must be .* at least 1, got 0"),
        ({"steps_per_sample": True}, ValueError, "steps_per_sample must be .* got True"),
        (
            {"dynamics": SGHMCDynamics(step_size=0.1, num_burn_in=25)},
            ValueError,
            "sampling would start before burn-in ended: num_burn_in is 25 .* has 24 .* to 13 or",
        ),
    ],
)
def test_bad_settings(settings, error, message):
    with pytest.raises(error, match=message):
        run(num_chains=1, **settings)


@pytest.mark.parametrize(
    ("init_params", "message"),
    [
        ({"y": jnp.zeros(())}, r"init_params must have the latent sites \['x'\].* got \['y'\]"),
        (jnp.zeros(1), "init_params must have the latent sites"),
        ({"x": jnp.zeros(3)}, r"init_params\['x'\] must have shape \(\), got \(3,\)"),
    ],
)
def test_bad_starting_values(init_params, message):
    kernel = StochasticGradientKernel(cliff, DYNAMICS, init_strategy=init_to_uniform)
    with pytest.raises(ValueError, match=message):
        kernel.init(jax.random.key(0), 20, init_params)


def test_only_runs_of_the_kernel_can_be_checked():
    with pytest.raises(TypeError, match="stochastic-gradient kernel such as SGHMC, got NUTS"):
        check_chains(MCMC(NUTS(cliff), num_warmup=1, num_samples=1))
    kernel = StochasticGradientKernel(cliff, DYNAMICS)
    with pytest.raises(ValueError, match="has not run yet"):
        check_chains(MCMC(kernel, num_warmup=1, num_samples=1))
