"""Settings, models and sizes that an adaptive proposal refuses or has to bear."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
import pytest
from adaptive_learning import learn
from particle_models import linear_model

from bayesdiv.inference.adaptive_proposal import AdaptiveProposal
from bayesdiv.inference.smc import ParticleFilter
from bayesdiv.models.state_space_examples import (
    stochastic_volatility,
)

# The fit alone: nothing added for safety.
BARE = {"kappa": 1e-4, "defensive_fraction": 0.0}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_experts": 0}, "num_experts must be 1 or more, got 0"),
        ({"num_iterations": 0}, "num_iterations must be 1 or more"),
        ({"defensive_fraction": 1.0}, r"defensive_fraction must be in \[0, 1\), got 1.0"),
        ({"defensive_fraction": -0.1}, "defensive_fraction must be in"),
        ({"degrees_of_freedom": 2.0}, r"degrees_of_freedom must be in \(2, inf\)"),
        ({"kappa": -1.0}, "kappa must be in"),
        ({"kappa": float("nan")}, "kappa must be in"),
        ({"step_exponent": 0.5}, r"step_exponent must be in \(0.5, 1\]"),
        ({"experts": "cauchy"}, "experts must be one of .*'cauchy'"),
        ({"lookahead": "both"}, "lookahead must be one of"),
        ({"adapt_when": "sometimes"}, "adapt_when must be one of"),
        ({"start": "hot"}, "start must be one of"),
        ({"features": "position"}, "features must be 'transition_mean', 'state' or a function"),
        ({"offset": 0.0}, "all experts start alike"),
        ({"divergence": "reverse_kl"}, r"has f\(0\) = ∞"),
        ({"divergence": "sinkhorn"}, "must be an f-divergence"),
        ({"divergence": "kullback"}, "divergence must be one of"),
    ],
)
def test_values_out_of_range(settings, message):
    with pytest.raises(ValueError, match=message):
        AdaptiveProposal(**settings)


@pytest.mark.parametrize("name", ["num_experts", "kappa"])
def test_values_of_the_wrong_type(name):
    with pytest.raises(TypeError, match=f"{name} must be"):
        AdaptiveProposal(**{name: "3"})


def test_models_that_experts_cannot_follow():
    def check(initial, transition=None):
        model = linear_model(0.1)
        model.initial = lambda: initial
        model.transition = lambda states, time: transition
        proposal = AdaptiveProposal(num_experts=1)
        if transition is None:
            proposal.init(model, 10)
        else:
            learn(proposal, model, 0.0, state=proposal.init(linear_model(0.1), 10))

    with pytest.raises(ValueError, match="model.initial has support.*transform the state"):
        check(dist.Exponential(1.0))
    with pytest.raises(ValueError, match="model.initial has event shape"):
        check(dist.Normal(jnp.zeros((2, 2)), 1.0).to_event(2))
    with pytest.raises(ValueError, match="model.transition has no density: Delta"):
        check(dist.Normal(0.0, 1.0), dist.Delta(jnp.zeros(400)))


def test_batches_smaller_than_the_parameters():
    proposal = AdaptiveProposal(num_experts=4, num_adaptation_particles=7)
    with pytest.raises(ValueError, match="at least num_experts x features = 8"):
        proposal.init(linear_model(0.1), 100)


def test_lookahead_that_the_model_lacks():
    model = stochastic_volatility(-1.0, 0.97, 0.18)
    proposal = AdaptiveProposal(lookahead="exact")
    with pytest.raises(ValueError, match="lookahead='exact' needs a model with log_predictive"):
        ParticleFilter(model, proposal, num_particles=10).run(jax.random.key(0), jnp.zeros(3))


def test_features_without_rows():
    proposal = AdaptiveProposal(features=lambda states, time, observation: states.sum())
    with pytest.raises(ValueError, match="features must return one row a particle"):
        proposal.init(linear_model(0.1), 100)


@pytest.mark.parametrize(("num_particles", "num_times"), [(1, 3), (300, 1)])
def test_smallest_runs(num_particles, num_times):
    proposal = AdaptiveProposal(num_experts=1, num_iterations=2)
    particle_filter = ParticleFilter(linear_model(0.5), proposal, num_particles=num_particles)
    result = particle_filter.run(jax.random.key(0), jnp.zeros(num_times))
    assert np.isfinite(result.log_evidence)
