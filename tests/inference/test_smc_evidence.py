"""Evidence of particle filters: exact answers, unbiasedness, and what goes wrong elsewhere."""

import math
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from helpers import assert_within_standard_errors
from particle_models import (
    KALMAN,
    kalman,
    keys,
    linear_model,
    linear_series,
    optimal_proposal,
    volatility_model,
    volatility_series,
)

from bayesdiv.inference.proposals import AuxiliaryProposal, BootstrapProposal, GuidedProposal
from bayesdiv.inference.smc import ParticleFilter, log_evidence


def runs(model, proposal, observations, count, *, seed=0, store=(), **settings):
    """``count`` independent runs."""
    particle_filter = ParticleFilter(model, proposal, **settings)
    return jax.jit(
        jax.vmap(lambda key: particle_filter.run(key, jnp.asarray(observations), store=store))
    )(keys(count, seed))


def proposals(emission_scale):
    guided = optimal_proposal(emission_scale)
    return {
        "bootstrap": BootstrapProposal(),
        "guided": guided,
        # A poor lookahead, since with a perfect one some wrong weights have the right mean.
        "auxiliary": AuxiliaryProposal(log_lookahead=lambda states, *_: jnp.tanh(states) - 2.0),
        "fully adapted": AuxiliaryProposal(guided),
    }


@pytest.mark.parametrize("scale", [0.1, 0.5])
def test_reference_filter_has_the_golden_evidence(scale):
    exact = kalman(linear_series(scale), scale)
    assert exact.log_evidence == pytest.approx(KALMAN[scale], abs=1e-9)


@pytest.mark.parametrize(
    ("scale", "name", "ess", "within", "spread"),
    [
        (0.1, "guided", 0.98, 0.05, 0.12),
        (0.5, "fully adapted", 0.99, 0.06, 0.2),
        (0.5, "bootstrap", 0.37, 0.4, 1.0),
    ],
)
def test_linear_gaussian_evidence(scale, name, ess, within, spread):
    result = runs(
        linear_model(scale),
        proposals(scale)[name],
        linear_series(scale),
        64,
        num_particles=1000,
        ess_threshold=1.0,
    )
    values = np.asarray(result.log_evidence)
    assert abs(values.mean() - KALMAN[scale]) < within
    assert values.std(ddof=1) < spread
    assert ess <= float(result.ess.mean()) / 1000 <= 1.0


@pytest.mark.parametrize(
    ("name", "threshold"),
    [
        ("bootstrap", 0.0),
        ("bootstrap", 0.5),
        ("guided", 0.9),
        ("auxiliary", 0.5),
        ("auxiliary", 1.0),
        ("fully adapted", 0.95),
    ],
)
def test_evidence_is_unbiased_whenever_it_resamples(name, threshold):
    """T2 and T10: never, now and then, or always resampling; each proposal, one missing time."""
    observations = linear_series(0.5, 6)
    observations[3] = np.nan
    exact = kalman(observations, 0.5).log_evidence
    result = runs(
        linear_model(0.5),
        proposals(0.5)[name],
        observations,
        4000,
        num_particles=64,
        ess_threshold=threshold,
    )
    share = float(result.resampled[:, 1:].mean())
    assert (share == threshold) if threshold in (0.0, 1.0) else 0.0 < share < 1.0
    assert_within_standard_errors(np.exp(np.asarray(result.log_evidence) - exact), 1.0)


@pytest.mark.parametrize("scheme", ["stratified", "multinomial"])
def test_evidence_is_unbiased_by_every_scheme(scheme):
    observations = linear_series(0.5, 6)
    exact = kalman(observations, 0.5).log_evidence
    result = runs(
        linear_model(0.5),
        BootstrapProposal(),
        observations,
        2000,
        num_particles=64,
        ess_threshold=1.0,
        resampling=scheme,
    )
    assert_within_standard_errors(np.exp(np.asarray(result.log_evidence) - exact), 1.0)


def test_one_run_and_many_take_different_branches_to_the_same_numbers():
    """``cond`` is a branch in one run and a choice of both under ``vmap``."""
    observations = jnp.asarray(linear_series(0.5, 20))
    particle_filter = ParticleFilter(
        linear_model(0.5), AuxiliaryProposal(optimal_proposal(0.5)), num_particles=50
    )
    many = jax.vmap(lambda key: particle_filter.run(key, observations))(keys(3))
    for index, key in enumerate(keys(3)):
        one = particle_filter.run(key, observations)
        np.testing.assert_allclose(
            one.log_evidence_increments, many.log_evidence_increments[index], rtol=1e-10
        )
        np.testing.assert_array_equal(one.resampled, many.resampled[index])


def test_moments_follow_the_exact_filter():
    observations = linear_series(0.5, 30)
    observations[[0, 7, 8]] = np.nan
    exact = kalman(observations, 0.5)
    result = runs(
        linear_model(0.5),
        optimal_proposal(0.5),
        observations,
        100,
        num_particles=500,
        store="moments",
    )
    # Ratios of sums are biased by 1/N, far below the spread of 100 runs.
    assert_within_standard_errors(result.mean, exact.mean)
    assert_within_standard_errors(result.variance, exact.variance, gate=6.0)
    assert_within_standard_errors(result.log_evidence_increments, exact.increments, gate=6.0)


def vector_model(slopes, scale):
    """Two independent copies of the scalar model, as vectors."""
    slopes = jnp.asarray(slopes)
    return SimpleNamespace(
        initial=lambda: dist.Normal(jnp.zeros(2), 1.0).to_event(1),
        transition=lambda states, time: dist.Normal(slopes * states, 1.0).to_event(1),
        emission=lambda states, time: dist.Normal(states, scale).to_event(1),
    )


def test_vector_states_give_the_product_of_evidences():
    series = linear_series(0.5, 8), linear_series(0.5, 9)[1:]
    exact = [kalman(rows, 0.5, slope) for rows, slope in zip(series, (0.9, 0.3), strict=True)]
    result = runs(
        vector_model([0.9, 0.3], 0.5),
        BootstrapProposal(),
        np.stack(series, 1),
        2000,
        num_particles=200,
        store="moments",
    )
    total = sum(entry.log_evidence for entry in exact)
    assert_within_standard_errors(np.exp(np.asarray(result.log_evidence) - total), 1.0)
    assert result.mean.shape == (2000, 8, 2)
    assert np.abs(result.mean[:, -1, 1].mean() - exact[1].mean[-1]) < 0.02


@pytest.mark.slow
def test_uncapped_lookahead_collapses_as_particles_are_added():
    """The cap at sup log g is what keeps an auxiliary filter right; more particles do not."""
    observations = volatility_series(5, seed=1, outlier=3.5)

    def errors(count, *, capped):
        model = volatility_model(capped=capped)
        settings = {"num_particles": count, "ess_threshold": 1.0}
        found = runs(model, AuxiliaryProposal(), observations, 9, **settings).log_evidence
        return np.asarray(found) - reference

    reference = float(
        runs(
            volatility_model(capped=True),
            BootstrapProposal(),
            observations,
            4,
            num_particles=40_000,
        ).log_evidence.mean()
    )
    few, many = errors(200, capped=False), errors(20_000, capped=False)
    assert np.abs(np.median(few)) < 0.5
    assert np.median(many) < -2.0
    assert np.abs(errors(20_000, capped=True)).max() < 0.2


def test_parameters_may_be_traced():
    """vmap over parameters, grid of evidence against the exact one."""
    observations = linear_series(0.5, 40)
    slopes = jnp.linspace(0.5, 0.95, 4)
    found = jax.jit(
        jax.vmap(
            lambda slope, key: log_evidence(
                key,
                linear_model(0.5, slope),
                observations,
                proposal=AuxiliaryProposal(),
                num_particles=3000,
            )
        )
    )(slopes, keys(4))
    exact = [kalman(observations, 0.5, float(slope)).log_evidence for slope in slopes]
    np.testing.assert_allclose(found, exact, atol=0.6)


def test_evidence_is_a_numpyro_factor():
    observations = linear_series(0.5, 10)

    def model(key):
        slope = numpyro.sample("slope", dist.Normal(0.5, 1.0))
        evidence = log_evidence(key, linear_model(0.5, slope), observations, num_particles=30)
        numpyro.factor("evidence", evidence)

    key = jax.random.key(3)
    joint, _ = numpyro.infer.util.log_density(model, (key,), {}, {"slope": jnp.asarray(0.7)})
    alone = log_evidence(key, linear_model(0.5, 0.7), observations, num_particles=30)
    prior = dist.Normal(0.5, 1.0).log_prob(0.7)
    assert float(joint) == pytest.approx(float(prior + alone), rel=1e-10)


def test_gradient_is_an_error_unless_asked_for():
    def evidence(slope, *, differentiable):
        return log_evidence(
            jax.random.key(0),
            linear_model(0.5, slope),
            linear_series(0.5, 5),
            num_particles=20,
            differentiable=differentiable,
        )

    with pytest.raises(TypeError, match="not differentiable as they are.*differentiable=True"):
        jax.grad(lambda slope: evidence(slope, differentiable=False))(0.9)
    gradient = jax.grad(lambda slope: evidence(slope, differentiable=True))(0.9)
    assert np.isfinite(gradient)


def test_gradient_is_exact_where_nothing_is_resampled():
    """One time, or no resampling: the gradient of log Ẑ is that of a sum of smooth weights."""
    observations = linear_series(0.5, 6)

    @jax.jit
    def evidence(slope):
        return log_evidence(
            jax.random.key(1),
            linear_model(0.5, slope),
            observations,
            num_particles=40,
            ess_threshold=0.0,
            differentiable=True,
        )

    step = 1e-5
    numeric = (evidence(0.8 + step) - evidence(0.8 - step)) / (2.0 * step)
    assert float(jax.grad(evidence)(0.8)) == pytest.approx(float(numeric), rel=1e-6)


def test_gradient_learns_a_proposal():
    """SVI's use: ascending E log Ẑ moves a guided proposal's scale to the optimum."""
    observations = jnp.asarray(linear_series(0.5, 25))
    best = 1.0 / (1.0 + 1.0 / 0.25)

    def bound(log_scale, key):
        def law(states, time, observation):
            mean = best * (observation / 0.25 + 0.9 * states)
            return dist.Normal(mean, jnp.exp(log_scale))

        return log_evidence(
            key,
            linear_model(0.5),
            observations,
            proposal=GuidedProposal(law),
            num_particles=50,
            differentiable=True,
        )

    slope = jax.jit(jax.vmap(jax.grad(bound), in_axes=(None, 0)))
    log_scale = math.log(1.5)
    for step in range(40):
        log_scale += 0.06 * float(slope(log_scale, keys(16, step)).mean())
    assert math.exp(log_scale) == pytest.approx(math.sqrt(best), rel=0.12)


def test_differentiable_needs_reparameterised_draws():
    model = SimpleNamespace(
        initial=lambda: dist.Poisson(3.0),
        transition=lambda states, time: dist.Poisson(1.0 + states),
        emission=lambda states, time: dist.Normal(states, 1.0),
    )
    assert np.isfinite(log_evidence(jax.random.key(0), model, jnp.ones(4), num_particles=50))
    with pytest.raises(ValueError, match="model.initial returned a Poisson"):
        log_evidence(jax.random.key(0), model, jnp.ones(4), num_particles=50, differentiable=True)


@pytest.mark.slow
@pytest.mark.parametrize("proposal", [BootstrapProposal(), AuxiliaryProposal()])
def test_a_million_particles_in_float32(proposal):
    with jax.enable_x64(False):  # noqa: FBT003 - JAX takes it by position only
        observations = jnp.asarray(linear_series(0.5), jnp.float32)
        particle_filter = ParticleFilter(linear_model(0.5), proposal, num_particles=10**6)
        result = particle_filter.run(jax.random.key(0), observations)
        assert result.log_evidence.dtype == jnp.float32
        assert np.isfinite(result.log_evidence_increments).all()
        # The spread at a thousand particles is 0.6.
        assert abs(float(result.log_evidence) - KALMAN[0.5]) < 5 * 0.6 / math.sqrt(1000)


@pytest.mark.slow
def test_float32_auxiliary_filter_does_not_jump():
    """Zero-weight ancestors divide by ψ ≈ 0, and the evidence of long series jumps upwards."""
    with jax.enable_x64(False):  # noqa: FBT003 - JAX takes it by position only
        observations = jnp.asarray(linear_series(0.1), jnp.float32)
        found = [
            ParticleFilter(
                linear_model(0.1),
                AuxiliaryProposal(),
                num_particles=10**5,
                ess_threshold=1.0,
            )
            .run(key, observations)
            .log_evidence
            for key in keys(3)
        ]
        assert np.abs(np.asarray(found) - KALMAN[0.1]).max() < 1.0
