"""Bad input to particle filters: each error names the argument, what came and what to do."""

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpyro.distributions as dist
import pytest
from particle_models import linear_model, linear_series

from bayesdiv.inference.proposals import AuxiliaryProposal, GuidedProposal, Proposal
from bayesdiv.inference.smc import ParticleFilter

SERIES = jnp.asarray(linear_series(0.5, 12))
KEY = jax.random.key(0)


def changed(**functions):
    return SimpleNamespace(**{**vars(linear_model(0.5)), **functions})


MODELS = {
    "initial has a batch": (
        changed(initial=lambda: dist.Normal(jnp.zeros(3), 1.0)),
        r"model.initial must return a distribution with batch shape \(\), got batch shape \(3,\)",
    ),
    "transition lost the particles": (
        changed(transition=lambda states, time: dist.Normal(0.0, 1.0)),
        r"model.transition must return a distribution with batch shape \(7,\), got .* \(\)",
    ),
    "transition has another event": (
        changed(transition=lambda states, time: dist.Normal(states[:, None], 1.0).to_event(1)),
        r"model.transition must return .* event shape \(\), got event shape \(1,\)",
    ),
    "emission forgot to_event": (
        changed(emission=lambda states, time: dist.Normal(states[:, None], jnp.ones(2))),
        r"model.emission must return a distribution with batch shape \(7,\), got .*to_event\(1\)",
    ),
    "emission has another event": (
        changed(
            emission=lambda states, time: dist.Normal(states[:, None], jnp.ones(2)).to_event(1)
        ),
        r"observations must have shape \(num_times, \*\(2,\)\)",
    ),
    "transition changes the kind": (
        changed(initial=lambda: dist.Poisson(3.0)),
        "model.transition must return states of the kind that model.initial returns",
    ),
    "no distribution": (
        changed(transition=lambda states, time: states),
        "model.transition must return a NumPyro distribution, got",
    ),
}


@pytest.mark.parametrize(("model", "message"), MODELS.values(), ids=MODELS.keys())
def test_wrong_functions_are_named(model, message):
    with pytest.raises((ValueError, TypeError), match=message):
        ParticleFilter(model, num_particles=7).run(KEY, SERIES)


def test_wrong_proposals_are_named():
    def run(proposal, **settings):
        return ParticleFilter(linear_model(0.5), proposal, num_particles=7, **settings).run(
            KEY, SERIES
        )

    with pytest.raises(ValueError, match=r"proposal.distribution must .* batch shape \(7,\)"):
        run(GuidedProposal(lambda states, time, row: dist.Normal(row, 1.0)))
    with pytest.raises(ValueError, match=r"proposal.initial_distribution must .* shape \(\)"):
        run(GuidedProposal(lambda *_: None, lambda row: dist.Normal(jnp.zeros(7), 1.0)))
    with pytest.raises(ValueError, match=r"log_lookahead must return shape \(7,\)"):
        run(AuxiliaryProposal(log_lookahead=lambda states, time, row: row))
    model = changed(log_predictive=None)
    with pytest.raises(ValueError, match="AuxiliaryProposal needs log_lookahead, or a model"):
        ParticleFilter(model, AuxiliaryProposal(), num_particles=7).run(KEY, SERIES)
    with pytest.raises(TypeError, match="function must be callable as function"):
        GuidedProposal(3)
    with pytest.raises(TypeError, match="initial must be callable as initial"):
        GuidedProposal(lambda *_: None, 3)
    with pytest.raises(TypeError, match="log_lookahead must be callable"):
        AuxiliaryProposal(log_lookahead=3)
    with pytest.raises(TypeError, match="proposal must be a proposal with a method init"):
        AuxiliaryProposal(3)
    with pytest.raises(NotImplementedError, match="Bare must define distribution"):
        run(type("Bare", (Proposal,), {})())


SETTINGS = {
    "particles": ({"num_particles": 0}, ValueError, "num_particles must be 1 or more, got 0"),
    "particle type": ({"num_particles": 1e3}, TypeError, "num_particles must be an integer"),
    "threshold": ({"ess_threshold": 1.5}, ValueError, r"ess_threshold must be in \[0, 1\], got 1"),
    "threshold type": ({"ess_threshold": "1"}, TypeError, "ess_threshold must be a number"),
    "scheme": ({"resampling": "none"}, ValueError, "resampling must be one of systematic"),
    "proposal": ({"proposal": None}, TypeError, "proposal must be a proposal, such as"),
}


@pytest.mark.parametrize(("settings", "error", "message"), SETTINGS.values(), ids=SETTINGS.keys())
def test_wrong_settings_are_named(settings, error, message):
    with pytest.raises(error, match=message):
        ParticleFilter(linear_model(0.5), **settings)


def test_wrong_data_and_models_are_named():
    particle_filter = ParticleFilter(linear_model(0.5), num_particles=7)
    for observations in (SERIES[:, None], jnp.zeros(()), jnp.zeros((0,))):
        with pytest.raises(ValueError, match=r"observations must have shape \(num_times, \*\(\)\)"):
            particle_filter.run(KEY, observations)
    with pytest.raises(ValueError, match=r"observation must have shape \(\).*got \(12,\)"):
        particle_filter.init(KEY, SERIES)
    with pytest.raises(TypeError, match="model must have a function emission"):
        ParticleFilter(SimpleNamespace(initial=print, transition=print))
