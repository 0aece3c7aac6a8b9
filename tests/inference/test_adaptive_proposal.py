"""The adaptive auxiliary particle filter, against exact answers and where it could go wrong."""

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest
from adaptive_cases import growth_series, ring_series, tobit_series
from adaptive_learning import cloud, kl_of, learner
from jax.scipy.special import logsumexp
from particle_models import KALMAN, linear_model, linear_series

from bayesdiv.inference.adaptive_proposal import AdaptiveProposal, AdaptiveProposalState
from bayesdiv.inference.proposal_criteria import entropy_kl
from bayesdiv.inference.proposals import BootstrapProposal
from bayesdiv.inference.smc import ParticleFilter
from bayesdiv.models.state_space_examples import (
    growth,
    norm_observed_walk,
    tobit,
)
from bayesdiv.numpyro.distributions import MixtureOfExpertsParameters

# The fit alone: nothing added for safety.
BARE = {"kappa": 1e-4, "defensive_fraction": 0.0}


def run(model, proposal, observations, *, num_runs, num_particles=1000, seed=0, **settings):
    """Results of independent runs, runs first; resampled at every step."""
    particle_filter = ParticleFilter(
        model, proposal, num_particles=num_particles, ess_threshold=1.0
    )
    keys = jax.random.split(jax.random.key(seed), num_runs)
    observations = jnp.asarray(observations)
    return jax.vmap(lambda key: particle_filter.run(key, observations, **settings))(keys)


@pytest.fixture(scope="module")
def sharp():
    """One expert with exact lookahead where the observation is sharp."""
    proposal = AdaptiveProposal(
        num_experts=1, lookahead="exact", kappa=1e-5, defensive_fraction=0.0
    )
    return run(linear_model(0.1), proposal, linear_series(0.1), num_runs=16)


def test_evidence_of_the_linear_gaussian_model(sharp):
    assert sharp.ess.mean() > 0.98 * 1000
    assert sharp.ess.min(axis=1).mean() > 0.9 * 1000
    assert abs(sharp.log_evidence.mean() - KALMAN[0.1]) < 0.05
    assert sharp.log_evidence.std(ddof=1) < 0.1


def test_the_optimal_proposal_is_recovered(sharp):
    variance = 1.0 / (1.0 + 1.0 / 0.1**2)
    parameters = sharp.state.proposal.parameters
    assert np.mean(parameters.scale) / np.sqrt(variance) == pytest.approx(1.0, abs=0.01)
    # Of (1, transition mean): intercept s² y / r² and slope s².
    intercept = variance * linear_series(0.1)[-1] / 0.1**2
    means = parameters.coefficients[:, 0, 0].mean(axis=0)
    spread = parameters.coefficients[:, 0, 0].std(axis=0, ddof=1) / np.sqrt(16)
    np.testing.assert_allclose(means, [intercept, variance], atol=5 * spread.max() + 0.02)


def test_the_fit_is_traced(sharp):
    trace = np.asarray(sharp.adaptation["kl_trace"]).mean(axis=(0, 1))
    assert trace.shape == (8,)
    assert trace[0] > 1.5
    assert trace[-1] < 0.02
    assert np.asarray(sharp.adaptation["adapted"]).all()
    assert (np.asarray(sharp.adaptation["active_experts"]) == 1).all()


@pytest.mark.parametrize("experts", ["normal", pytest.param("student_t", marks=pytest.mark.slow)])
def test_evidence_is_unbiased(experts):
    """E[Ẑ / Z] = 1 while the proposal learns from few particles; 5 standard errors."""
    observations = linear_series(0.1)[:10]
    proposal = AdaptiveProposal(
        num_experts=2,
        experts=experts,
        num_adaptation_particles=32,
        num_iterations=3,
        lookahead="exact",
        defensive_fraction=0.1,
        kappa=0.01,
    )
    model = linear_model(0.1)
    found = run(model, proposal, observations, num_runs=4000, num_particles=64)
    # The joint law of the series in one normal density.
    times = np.arange(10)
    lag = np.abs(times[:, None] - times)
    first = np.minimum(times[:, None], times)
    variances = np.array([sum(0.81**k for k in range(time + 1)) for time in times])
    covariance = 0.9**lag * variances[first] + 0.01 * np.eye(10)
    exact = dist.MultivariateNormal(jnp.zeros(10), jnp.asarray(covariance)).log_prob(observations)
    ratios = np.exp(np.asarray(found.log_evidence) - float(exact))
    error = ratios.std(ddof=1) / np.sqrt(len(ratios))
    assert error < 0.01
    assert abs(ratios.mean() - 1.0) < 5 * error


@pytest.fixture(scope="module")
def growth_bootstrap():
    return run(
        growth(1.0),
        BootstrapProposal(),
        growth_series(1.0),
        num_runs=8,
        store=("particles",),
    )


@pytest.mark.slow
def test_growth_lies_between_floor_and_bootstrap(growth_bootstrap):
    """No kernel gets below the floor that ψ = 1 leaves; the fit closes most of the way to it."""
    model, observations = growth(1.0), jnp.asarray(growth_series(1.0))

    def floor(states, log_weights, time):
        log_predictive = model.log_lookahead(states, time, observations[time])
        log_target = jax.nn.log_softmax(log_weights + log_predictive)
        total = logsumexp(log_weights + log_predictive)
        return jnp.exp(log_target) @ log_predictive - total

    times = jnp.arange(1, len(observations))
    floors = jax.vmap(jax.vmap(floor, (0, 0, 0)), (0, 0, None))(
        growth_bootstrap.particles[:, :-1], growth_bootstrap.log_weights[:, :-1], times
    )
    proposal = AdaptiveProposal(num_experts=2, kappa=1e-4, defensive_fraction=0.02)
    fitted = run(model, proposal, observations, num_runs=16)
    kl = fitted.kl[:, 1:].mean()
    assert growth_bootstrap.kl[:, 1:].mean() > 1.1
    assert floors.mean() - 0.03 < kl < 0.45
    assert fitted.ess.min(axis=1).mean() > 5 * growth_bootstrap.ess.min(axis=1).mean()


@pytest.mark.slow
def test_lookahead_on_growth():
    proposal = AdaptiveProposal(
        num_experts=2, lookahead="lookahead", kappa=1e-4, defensive_fraction=0.02
    )
    found = run(growth(1.0), proposal, growth_series(1.0), num_runs=16)
    assert found.kl.mean() < 0.16


@pytest.mark.slow
def test_states_of_the_plane():
    proposal = AdaptiveProposal(num_experts=1, kappa=1e-4, defensive_fraction=0.02)
    found = run(tobit(0.3), proposal, tobit_series(0.3), num_runs=8)
    assert found.ess.mean() > 0.86 * 1000


def overfit(**guards):
    proposal = AdaptiveProposal(
        num_experts=8,
        gate_strength=2.0,
        lookahead="exact",
        num_adaptation_particles=200,
        **guards,
    )
    return run(norm_observed_walk(0.1), proposal, ring_series(0.1), num_runs=24)


@pytest.mark.slow
def test_overfitted_experts_lower_kl_and_ruin_the_evidence():
    """Hence the two guards: with them the weights look worse and the evidence is far better."""
    bare = overfit(kappa=1e-6, defensive_fraction=0.0)
    guarded = overfit(kappa=1e-2, defensive_fraction=0.1)
    assert bare.kl.mean() < guarded.kl.mean() - 0.2
    assert guarded.log_evidence.std(ddof=1) < 0.8
    assert bare.log_evidence.std(ddof=1) > 1.5 * guarded.log_evidence.std(ddof=1)
    # Both are unbiased before the logarithm: who is usually lower is sometimes far too high.
    assert bare.log_evidence.mean() < guarded.log_evidence.mean() - 1.0
    assert guarded.ess.min(axis=1).mean() > 2 * bare.ess.min(axis=1).mean()


def test_the_transition_as_expert_is_the_bootstrap():
    model = linear_model(0.1)
    proposal = AdaptiveProposal(num_experts=1, **BARE)
    state = AdaptiveProposalState(
        MixtureOfExpertsParameters(
            jnp.zeros((1, 2)), jnp.array([[[0.0, 0.9]]]), jnp.ones((1, 1, 1))
        ),
        MixtureOfExpertsParameters(jnp.zeros((1, 1)), jnp.zeros((1, 1, 1)), jnp.ones((1, 1, 1))),
        jnp.zeros(()),
    )
    states, moved = jax.random.normal(jax.random.key(0), (2, 50))
    features_are_states = AdaptiveProposal(num_experts=1, features="state", **BARE)
    law = features_are_states.distribution(state, model, 1, states, 0.0)
    transition = model.transition(states, 1)
    np.testing.assert_allclose(law.log_prob(moved), transition.log_prob(moved), atol=1e-12)
    first = proposal.initial_distribution(state, model, 0.0)
    np.testing.assert_allclose(first.log_prob(moved), model.initial().log_prob(moved), atol=1e-12)


def test_never_adapting_is_the_bootstrap_exactly():
    model, observations, key = linear_model(0.5), linear_series(0.5)[:20], jax.random.key(3)
    plain = ParticleFilter(model, num_particles=100).run(key, observations)
    never = ParticleFilter(model, AdaptiveProposal(adapt_when="never"), num_particles=100).run(
        key, observations
    )
    np.testing.assert_array_equal(plain.log_evidence_increments, never.log_evidence_increments)


@pytest.mark.slow
def test_labels_do_not_matter():
    model = norm_observed_walk(0.2)
    proposal = AdaptiveProposal(num_experts=3, gate_strength=1.0)
    state, _ = learner(proposal, norm_observed_walk)(0.2, 1.5)
    order = jnp.array([1, 2, 0])
    parameters = MixtureOfExpertsParameters(*(part[order] for part in state.parameters))
    shifted = parameters._replace(gate=parameters.gate + jnp.array([0.4, 2.0, -1.0]))
    states, _ = cloud(model)
    moved = states + 1.0
    laws = [
        proposal.distribution(found, model, 1, states, 1.5).log_prob(moved)
        for found in (state, state._replace(parameters=shifted))
    ]
    np.testing.assert_allclose(laws[0], laws[1], atol=1e-12)
    # Experts that had stayed alike would make this test empty.
    assert np.abs(np.diff(np.asarray(state.parameters.coefficients[:, 0, 0]))).min() > 0.05


@pytest.mark.parametrize(
    "divergence",
    [
        "jensen_shannon",
        pytest.param("pearson_chi2", marks=pytest.mark.slow),
        pytest.param("squared_hellinger", marks=pytest.mark.slow),
    ],
)
def test_every_divergence_gets_near_the_optimum(divergence):
    model = linear_model(0.3)
    proposal = AdaptiveProposal(num_experts=1, divergence=divergence, **BARE)
    before = kl_of(BootstrapProposal(), (), 0.3, 1.0)
    state, _ = learner(proposal)(0.3, 1.0)
    # ψ = 1 leaves a floor of its own: weights L(x_{t−1}), whatever the kernel.
    states, log_weights = cloud(model, 4000)
    floor = entropy_kl(log_weights + model.log_predictive(states, 1, 1.0))
    assert before > floor + 0.5
    assert kl_of(proposal, state, 0.3, 1.0) < floor + 0.05


def test_warm_start_goes_on_from_the_last_kernel():
    """Two short fits in a row, the second warm, against the second fresh."""
    settings = {"num_iterations": 2, "num_adaptation_particles": 200, **BARE}
    fresh = learner(AdaptiveProposal(num_experts=1, **settings))
    warm = learner(AdaptiveProposal(num_experts=1, start="warm", **settings))
    state, _ = fresh(0.02, 0.5)
    _, warm_report = warm(0.02, 0.5, time=2, state=state)
    _, fresh_report = fresh(0.02, 0.5, time=2, state=state)
    assert warm_report["kl_trace"][0] < 0.5 * fresh_report["kl_trace"][0]


@pytest.mark.parametrize("rule", ["kl", pytest.param("ess", marks=pytest.mark.slow)])
def test_when_to_adapt(rule):
    """At a sharp observation, and not at one that says nothing."""
    proposal = AdaptiveProposal(num_experts=1, adapt_when=rule, num_iterations=3)
    state, report = learner(proposal)(0.1, 0.3)
    assert report["adapted"]
    assert state.fraction == proposal.defensive_fraction
    state, report = learner(proposal)(30.0, 0.3)
    assert not report["adapted"]
    assert np.isnan(report["kl_trace"]).all()
    model = linear_model(30.0)
    states, _ = cloud(model)
    law = proposal.distribution(state, model, 1, states, 0.3)
    np.testing.assert_array_equal(
        law.log_prob(states), model.transition(states, 1).log_prob(states)
    )


@pytest.mark.slow
def test_an_interval_keeps_the_kernel_in_between():
    proposal = AdaptiveProposal(num_experts=1, adapt_when="every", interval=3, num_iterations=2)
    fit = learner(proposal)
    state, report = fit(0.1, 0.3, time=3)
    assert report["adapted"]
    kept, report = fit(0.1, 2.0, time=4, state=state)
    assert not report["adapted"]
    np.testing.assert_array_equal(kept.parameters.coefficients, state.parameters.coefficients)
    assert kept.fraction == proposal.defensive_fraction
    _, report = fit(0.1, 2.0, time=6, state=kept)
    assert report["adapted"]


def test_missing_observations():
    observations = np.array([0.2, np.nan, 0.4, 1.1])
    proposal = AdaptiveProposal(num_experts=1, num_iterations=3)
    particle_filter = ParticleFilter(linear_model(0.2), proposal, num_particles=500)
    result = particle_filter.run(jax.random.key(1), observations)
    assert result.log_evidence_increments[1] == 0.0
    assert np.isfinite(result.log_evidence)
    # Without an observation particles spread as the transition says.
    assert float(result.variance[1]) == pytest.approx(
        0.81 * float(result.variance[0]) + 1.0, rel=0.2
    )


def test_an_outlying_observation():
    """Nine deviations out, one draw of the transition carries all: tempering finds the place."""
    tempered = AdaptiveProposal(num_experts=1, **BARE)
    bare = AdaptiveProposal(num_experts=1, tempering_ess=0.0, **BARE)

    def forgetful(scale):
        # All ancestors predict alike, so that a perfect kernel has equal weights.
        return linear_model(scale, 0.0)

    kls = []
    for proposal in (tempered, bare):
        _, report = learner(proposal, forgetful)(0.1, 9.0)
        assert report["kl_trace"][0] > np.log(500) - 0.5
        kls.append(report["kl_trace"][-1])
    assert kls[0] < 0.1
    assert kls[1] > 1.0


def test_impossible_draws_leave_the_transition():
    """Where no draw of a batch can be the state, nothing is learnt and nothing breaks."""
    model = linear_model(0.1)
    model.emission = lambda states, time: dist.Normal(jnp.full_like(states, jnp.nan), 1.0)
    state, _ = learner(AdaptiveProposal(num_experts=2), lambda scale: model)(0.1, 0.0)
    assert all(np.isfinite(part).all() for part in state.parameters)
    np.testing.assert_allclose(state.parameters.scale[:, 0, 0], 1.0, rtol=1e-6)


def test_single_precision():
    """In units of 10⁻⁴, as velocities of ships come."""
    with jax.enable_x64(new_val=False):
        unit = jnp.float32(1e-4)
        model = SimpleNamespace(
            initial=lambda: dist.Normal(0.5, unit),
            transition=lambda states, time: dist.Normal(states, unit),
            emission=lambda states, time: dist.Normal(states, 0.1 * unit),
        )
        observations = jnp.float32(0.5) + unit * jnp.asarray(linear_series(0.1)[:15], jnp.float32)
        proposal = AdaptiveProposal(num_experts=2)
        result = ParticleFilter(model, proposal, num_particles=500).run(
            jax.random.key(0), observations
        )
        assert result.log_evidence.dtype == jnp.float32
        assert result.ess[1:].mean() > 0.5 * 500


def test_features_of_the_user():
    proposal = AdaptiveProposal(
        num_experts=1,
        features=lambda states, time, observation: jnp.stack([states, jnp.abs(states)], axis=1),
        **BARE,
    )
    state, _ = learner(proposal)(0.3, 0.4)
    assert state.parameters.coefficients.shape == (1, 1, 3)
    variance = 1.0 / (1.0 + 1.0 / 0.3**2)
    np.testing.assert_allclose(
        state.parameters.coefficients[0, 0], [variance * 0.4 / 0.09, 0.9 * variance, 0.0], atol=0.1
    )


def test_defensive_share_bounds_the_weights():
    model = linear_model(0.1)
    proposal = AdaptiveProposal(num_experts=1, defensive_fraction=0.2)
    state, _ = learner(proposal)(0.1, 0.5)
    states, _ = cloud(model)
    law = proposal.distribution(state, model, 1, states, 0.5)
    moved = jnp.linspace(-20.0, 20.0, len(states))
    log_ratio = model.transition(states, 1).log_prob(moved) - law.log_prob(moved)
    assert log_ratio.max() <= -np.log(0.2) + 1e-12
    # The sample has that share: about one fifth of it is where the learnt expert never goes.
    drawn = law.sample(jax.random.key(1), (50,))
    far = np.abs(np.asarray(drawn) - 0.5).ravel() > 0.8
    defensive = model.transition(states, 1).sample(jax.random.key(2), (50,))
    expected = 0.2 * np.mean(np.abs(defensive - 0.5) > 0.8)
    assert far.mean() == pytest.approx(expected, abs=0.02)
