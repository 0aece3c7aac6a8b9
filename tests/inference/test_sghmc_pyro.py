"""SGHMC and SGLD on Pyro models: against NUTS, against a conjugate posterior, their defaults."""

import arviz
import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from helpers import assert_within_standard_errors
from pyro.infer import MCMC, NUTS

from bayesdiv.diagnostics import to_arviz
from bayesdiv.inference.sghmc_pyro import SGHMC
from bayesdiv.inference.sgld_pyro import SGLD

NUM_GROUPS, GROUP_SIZE = 6, 40
GROUP = torch.arange(NUM_GROUPS).repeat_interleave(GROUP_SIZE)
EFFECTS = torch.tensor([-1.5, -0.5, 0.2, 0.8, 1.4, 2.0], dtype=torch.float64)
Y = EFFECTS[GROUP] + 0.7 * torch.randn(
    len(GROUP), generator=torch.Generator().manual_seed(1), dtype=torch.float64
)


@pytest.fixture(autouse=True)
def double_precision():
    torch.set_default_dtype(torch.float64)


def groups(batch=None):
    """Centred effects of groups, with two scales to infer."""
    mean = pyro.sample("mean", dist.Normal(0.0, 3.0))
    spread = pyro.sample("spread", dist.HalfNormal(2.0))
    noise = pyro.sample("noise", dist.HalfNormal(1.0))
    with pyro.plate("groups", NUM_GROUPS):
        effect = pyro.sample("effect", dist.Normal(mean, spread))
    with pyro.plate("data", len(Y), subsample_size=batch) as i:
        pyro.sample("y", dist.Normal(effect[GROUP[i]], noise), obs=Y[i])


def conjugate(batch=None):
    mean = pyro.sample("mean", dist.Normal(0.0, 1.0))
    with pyro.plate("data", 40, subsample_size=batch) as i:
        pyro.sample("y", dist.Normal(mean, 1.0), obs=Y[:40][i])


def run(kernel, num_samples, warmup_steps, *args):
    mcmc = MCMC(kernel, num_samples, warmup_steps, disable_progbar=True)
    mcmc.run(*args)
    return mcmc


def moments(mcmc):
    """Means and standard deviations of each entry, and their standard errors."""
    found = to_arviz(mcmc).posterior[["mean", "spread", "noise", "effect"]]
    parts = {}
    for name, function in {"mean": np.mean, "sd": np.std}.items():
        values = [function(found[v].values, axis=(0, 1)) for v in found]
        errors = [arviz.mcse(found[[v]], method=name)[v].values for v in found]
        parts[name] = np.hstack([*values]), np.hstack([*errors])
    least = min(float(arviz.ess(found)[v].min()) for v in found)
    return parts, least


@pytest.mark.slow
def test_sghmc_finds_the_posterior_of_nuts():
    pyro.set_rng_seed(0)
    expected, num_effective = moments(run(NUTS(groups, max_tree_depth=5), 600, 200))
    assert num_effective > 200
    kernel = SGHMC(
        groups, step_size=0.03, num_chains=32, steps_per_sample=20, seed=0, jit_compile=True
    )
    mcmc = run(kernel, 150, 100, 60)
    found, num_effective = moments(mcmc)
    assert num_effective > 200
    for name, (value, error) in found.items():
        truth, truth_error = expected[name]
        # Mean and sd of nine quantities; the step's own bias is a few per cent of an sd.
        assert np.all(np.abs(value - truth) < 5.0 * np.hypot(error, truth_error)), name
    stats = to_arviz(mcmc).sample_stats
    assert 0.9 < float(stats["kinetic_temperature"].mean()) < 1.1
    assert float(stats["clamped_fraction"].max()) == 0.0


def test_sgld_finds_a_conjugate_posterior():
    # A thousand chains, of which the last draws are independent; ε² / 4 is below their error.
    mcmc = run(SGLD(conjugate, step_size=0.03, num_chains=1000, seed=0), 1, 250, None)
    draws = mcmc.kernel.get_samples()["mean"]
    variance = 1.0 / 41.0
    assert_within_standard_errors(draws, variance * Y[:40].sum())
    assert_within_standard_errors((draws - variance * Y[:40].sum()) ** 2, variance)


def test_burn_in_is_half_of_the_warm_up_unless_given():
    kernel = SGHMC(conjugate, step_size=0.01, steps_per_sample=3)
    run(kernel, 2, 11)
    assert kernel.dynamics.num_burn_in == 16
    run(kernel, 2, 21)
    assert kernel.dynamics.num_burn_in == 31
    given = SGHMC(conjugate, step_size=0.01, num_burn_in=4)
    run(given, 2, 11)
    assert given.dynamics.num_burn_in == 4


def test_minibatch_noise_is_taken_off_where_there_is_any():
    for batch, expected in ((None, False), (10, True)):
        kernel = SGHMC(conjugate, step_size=0.01)
        run(kernel, 2, 4, batch)
        assert kernel.dynamics.subtract_gradient_noise is expected
    kept = SGHMC(conjugate, step_size=0.01, subtract_gradient_noise=True)
    run(kept, 2, 4)
    assert kept.dynamics.subtract_gradient_noise is True


def test_the_papers_schedule_is_checked():
    with pytest.raises(ValueError, match="num_burn_in must be at least 1 .*plain SGHMC"):
        SGHMC(conjugate, step_size=0.01, num_burn_in=0)
    schedule = {"num_burn_in": 2000, "collect_after": 6000, "steps_per_sample": 1000}
    with pytest.raises(ValueError, match="fewer than collect_after=6000; pass warmup_steps=6 "):
        run(SGHMC(conjugate, step_size=0.003, **schedule), 32, 5)
    with pytest.raises(ValueError, match="collect_after=100 with num_burn_in=200"):
        run(SGHMC(conjugate, step_size=0.01, num_burn_in=200, collect_after=100), 1, 300)
    with pytest.raises(ValueError, match="warmup_steps=0"):
        run(SGHMC(conjugate, step_size=0.01), 2, 0)
    with pytest.raises(ValueError, match="step_size must be positive"):
        SGHMC(conjugate, step_size=-1.0)
    with pytest.raises(ValueError, match="memory must be in"):
        SGLD(conjugate, step_size=0.01, memory=2.0)
