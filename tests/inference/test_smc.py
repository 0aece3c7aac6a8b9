"""Particle filters: what a step does, missing data, what a result holds, and bad input."""

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest
from particle_models import keys, linear_model, linear_series, optimal_proposal

from bayesdiv.inference.proposals import (
    AuxiliaryProposal,
    BootstrapProposal,
    GuidedProposal,
    Proposal,
)
from bayesdiv.inference.smc import ParticleFilter, log_evidence

SERIES = jnp.asarray(linear_series(0.5, 12)).at[5].set(jnp.nan)
KEY = jax.random.key(0)


def prior_proposal():
    """r = q through the general path: a ratio of densities that is 1."""
    model = linear_model(0.5)
    return GuidedProposal(
        lambda states, time, observation: model.transition(states, time),
        lambda observation: model.initial(),
    )


@pytest.fixture(scope="module")
def stored():
    """One run with everything kept, of a filter that resamples now and then."""
    particle_filter = ParticleFilter(linear_model(0.5), num_particles=200)
    return particle_filter.run(KEY, SERIES, store=("moments", "particles"))


def test_init_and_step_are_what_run_does():
    particle_filter = ParticleFilter(
        linear_model(0.5), AuxiliaryProposal(optimal_proposal(0.5)), num_particles=50
    )
    result = particle_filter.run(KEY, SERIES, store=("moments", "particles"))
    step = jax.jit(particle_filter.step)
    state, info = jax.jit(particle_filter.init)(KEY, SERIES[0])
    for time in range(len(SERIES)):
        if time:
            state, info = step(state, SERIES[time])
        np.testing.assert_allclose(state.states, result.particles[time], rtol=1e-12)
        np.testing.assert_allclose(info.ess, result.ess[time], rtol=1e-12)
        np.testing.assert_array_equal(info.ancestors, result.ancestors[time])
    assert float(state.log_evidence) == pytest.approx(float(result.log_evidence), rel=1e-12)
    assert int(state.time) == 11


def test_prior_as_a_guided_proposal_is_the_bootstrap_filter(stored):
    """T4: log-weights are log g to rounding."""
    guided = ParticleFilter(linear_model(0.5), prior_proposal(), num_particles=200)
    expected, found = stored, guided.run(KEY, SERIES, store="particles")
    np.testing.assert_array_equal(found.particles, expected.particles)
    np.testing.assert_allclose(found.log_weights, expected.log_weights, atol=1e-12)
    gauss = dist.Normal(expected.particles[0], 0.5).log_prob(SERIES[0])
    np.testing.assert_allclose(
        expected.log_weights[0] - gauss, (expected.log_weights[0] - gauss)[0], atol=1e-12
    )


@pytest.mark.parametrize("value", [-700.0, -np.inf])
def test_constant_lookahead_changes_nothing(value, stored):
    """Not even one that gives everybody up."""
    constant = AuxiliaryProposal(log_lookahead=lambda states, time, row: jnp.full(200, value))
    found = ParticleFilter(linear_model(0.5), constant, num_particles=200).run(KEY, SERIES)
    np.testing.assert_allclose(
        found.log_evidence_increments, stored.log_evidence_increments, atol=1e-10
    )


def test_statistics_of_the_weights_obey_their_identities(stored):
    """T8, on the stored weights."""
    weights = np.exp(np.asarray(stored.log_weights))
    np.testing.assert_allclose(weights.sum(1), 1.0, rtol=1e-12)
    np.testing.assert_allclose(stored.ess, 1.0 / (weights**2).sum(1), rtol=1e-10)
    np.testing.assert_allclose(stored.cv2, 200 * (weights**2).sum(1) - 1.0, rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(
        stored.kl, (weights * np.log(200 * weights)).sum(1), rtol=1e-9, atol=1e-12
    )
    np.testing.assert_allclose(stored.max_weight, weights.max(1), rtol=1e-12)
    assert (np.asarray(stored.kl) >= -1e-12).all()
    # KL is below the logarithm of one plus χ², by Jensen.
    assert (stored.kl <= np.log1p(stored.cv2) + 1e-12).all()
    mean = (weights * np.asarray(stored.particles)).sum(1)
    np.testing.assert_allclose(stored.mean, mean, rtol=1e-10)
    square = (weights * np.asarray(stored.particles) ** 2).sum(1)
    np.testing.assert_allclose(stored.variance, square - mean**2, rtol=1e-8)


def test_resampling_happens_below_the_threshold_only(stored):
    before = np.asarray(stored.ess)[:-1]
    np.testing.assert_array_equal(np.asarray(stored.resampled)[1:], before < 100)
    assert 0 < stored.resampled.sum() < 11
    kept = ~np.asarray(stored.resampled)
    assert (np.asarray(stored.ancestors)[kept] == np.arange(200)).all()


def test_increments_add_up(stored):
    total = np.asarray(stored.log_evidence_increments).sum()
    assert float(stored.log_evidence) == pytest.approx(total, rel=1e-12)


@pytest.mark.parametrize(
    "proposal",
    [BootstrapProposal(), optimal_proposal(0.5), AuxiliaryProposal(optimal_proposal(0.5))],
    ids=["bootstrap", "guided", "auxiliary"],
)
def test_missing_observations_move_particles_by_the_transition(proposal):
    """T11: first, inner, last and consecutive rows; increments are exactly zero."""
    missing = [0, 3, 4, 7]
    series = jnp.asarray(linear_series(0.5, 8)).at[jnp.asarray(missing)].set(jnp.nan)
    particle_filter = ParticleFilter(linear_model(0.5), proposal, num_particles=4000)
    result = particle_filter.run(KEY, series, store=("moments", "particles"))
    assert (np.asarray(result.log_evidence_increments)[missing] == 0.0).all()
    assert (np.asarray(result.log_evidence_increments)[[1, 2, 5, 6]] < 0.0).all()
    for time in (3, 4, 7):
        parents = np.asarray(result.particles[time - 1])[np.asarray(result.ancestors[time])]
        noise = np.asarray(result.particles[time]) - 0.9 * parents
        assert abs(noise.mean()) < 5 / np.sqrt(4000)
        assert abs(noise.var() - 1.0) < 5 * np.sqrt(2 / 4000)


def test_one_missing_entry_makes_its_row_missing():
    model = SimpleNamespace(
        initial=lambda: dist.Normal(jnp.zeros(2), 1.0).to_event(1),
        transition=lambda states, time: dist.Normal(states, 1.0).to_event(1),
        emission=lambda states, time: dist.Normal(states, 1.0).to_event(1),
    )
    rows = jnp.ones((4, 2)).at[2, 1].set(jnp.nan)
    result = ParticleFilter(model, num_particles=20).run(KEY, rows)
    assert result.log_evidence_increments[2] == 0.0
    assert result.mean.shape == result.variance.shape == (4, 2)


def test_gradient_passes_missing_rows():
    def evidence(slope):
        return log_evidence(
            KEY, linear_model(0.5, slope), SERIES, num_particles=20, differentiable=True
        )

    assert np.isfinite(jax.jit(jax.grad(evidence))(0.8))


def test_time_reaches_the_model():
    """Covariates and a time-varying emission; T = 3."""
    shift = jnp.array([10.0, -20.0, 30.0])
    model = SimpleNamespace(
        initial=lambda: dist.Normal(0.0, 1e-6),
        transition=lambda states, time: dist.Normal(states + time, 1e-6),
        emission=lambda states, time: dist.Normal(states + shift[time], 1.0),
    )
    result = ParticleFilter(model, num_particles=5).run(KEY, jnp.array([10.0, -19.0, 33.0]))
    np.testing.assert_allclose(result.log_evidence, 3 * dist.Normal(0.0, 1.0).log_prob(0.0))


def test_one_time_and_one_particle():
    model = linear_model(0.5)
    result = ParticleFilter(model, num_particles=1).run(KEY, SERIES[:1], store=("particles",))
    expected = dist.Normal(result.particles[0, 0], 0.5).log_prob(SERIES[0])
    assert float(result.log_evidence) == pytest.approx(float(expected))
    assert result.ess.tolist() == [1.0]
    longer = ParticleFilter(model, num_particles=1, ess_threshold=1.0).run(KEY, SERIES)
    assert np.isfinite(longer.log_evidence)


class Counting(Proposal):
    """Learns nothing but how often, and from what, it was asked to."""

    adjusts_weights = False

    def init(self, model, num_particles):
        return jnp.zeros((), jnp.int32)

    def adapt_initial(self, key, proposal_state, model, observation):
        return proposal_state + 1, {"calls": proposal_state + 1}

    def adapt(self, key, proposal_state, model, time, states, weights, adjustments, observation):
        report = {"calls": proposal_state + 1, "weight": jnp.exp(weights).sum()}
        return proposal_state + 1, report

    def distribution(self, proposal_state, model, time, states, observation):
        return model.transition(states, time)


def test_adaptation_is_carried_and_reported():
    result = ParticleFilter(linear_model(0.5), Counting(), num_particles=10).run(KEY, SERIES)
    # Time 5 is missing: nothing is learnt there, and nothing reported.
    assert result.adaptation["calls"].tolist() == [1, 2, 3, 4, 5, 0, 6, 7, 8, 9, 10, 11]
    weight = np.asarray(result.adaptation["weight"])
    assert np.isnan(weight[[0, 5]]).all()
    np.testing.assert_allclose(np.delete(weight, [0, 5]), 1.0)
    wrapped = AuxiliaryProposal(Counting())
    again = ParticleFilter(linear_model(0.5), wrapped, num_particles=10).run(KEY, SERIES)
    assert again.adaptation["calls"].tolist() == result.adaptation["calls"].tolist()


def test_only_what_is_asked_for_is_stored():
    particle_filter = ParticleFilter(linear_model(0.5), num_particles=10)
    nothing = particle_filter.run(KEY, SERIES, store=())
    assert nothing.mean is None
    assert nothing.particles is None
    assert nothing.state.states.shape == (10,)
    assert particle_filter.run(KEY, SERIES, store="particles").particles.shape == (12, 10)
    with pytest.raises(ValueError, match="store must hold names of .*'moments'.* got 'mean'"):
        particle_filter.run(KEY, SERIES, store=("mean",))


def box_model():
    """Emissions on an interval about the state: far observations are impossible."""
    return SimpleNamespace(
        initial=lambda: dist.Uniform(-1.0, 1.0),
        transition=lambda states, time: dist.Normal(states, 0.1),
        emission=lambda states, time: dist.Uniform(states - 1.0, states + 1.0, validate_args=False),
    )


def test_death_of_all_particles_names_the_time():
    series = jnp.array([0.0, 0.1, 50.0, 0.2])
    particle_filter = ParticleFilter(box_model(), num_particles=50)
    with pytest.raises(RuntimeError, match="all particles have zero likelihood at t=2"):
        particle_filter.run(KEY, series)
    many = jax.vmap(lambda key: particle_filter.run(key, series))(keys(2))
    assert np.isneginf(many.log_evidence).all()
    # It goes on with equal weights and stays a number.
    assert np.isfinite(many.log_evidence_increments[:, 3]).all()
    with pytest.raises(RuntimeError, match=r"at t=2 of run \(0,\)"):
        many.check()


def test_density_is_zero_outside_of_a_support():
    """NumPyro's formulas go on beyond it: by them a uniform law is flat everywhere."""
    observation = jnp.array([1.5])
    result = ParticleFilter(box_model(), num_particles=400).run(KEY, observation, store="particles")
    inside = np.asarray(result.particles[0]) > 0.5
    np.testing.assert_array_equal(np.isfinite(result.log_weights[0]), inside)
    assert float(result.log_evidence) == pytest.approx(np.log(0.5 * inside.mean()))


def test_density_that_is_not_a_number_names_the_time():
    model = linear_model(0.5)
    model.emission = lambda states, time: dist.Normal(
        states, jnp.where(time == 3, jnp.nan, 0.5), validate_args=False
    )
    with pytest.raises(RuntimeError, match="not a finite number at t=3"):
        ParticleFilter(model, num_particles=50).run(KEY, SERIES)


def test_lookahead_that_is_not_a_number_is_found():
    proposal = AuxiliaryProposal(
        log_lookahead=lambda states, time, row: jnp.where(time == 4, jnp.nan, 0.0 * states)
    )
    model = SimpleNamespace(**vars(linear_model(0.5)))
    model.log_emission_supremum = None
    with pytest.raises(RuntimeError, match="not a finite number at t=4"):
        ParticleFilter(model, proposal, num_particles=50).run(KEY, SERIES)
