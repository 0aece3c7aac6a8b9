"""One adaptation of a proposal outside a filter, and how good what it learnt is."""

import functools

import jax
import jax.numpy as jnp
from particle_models import linear_model

from bayesdiv.inference.proposal_criteria import entropy_kl


def cloud(model, count=400):
    """A weighted cloud at time 0, as the filter would hand it to ``adapt``."""
    states = model.initial().sample(jax.random.key(5), (count,))
    log_weights = jax.nn.log_softmax(jax.random.normal(jax.random.key(6), (count,)))
    return states, log_weights


def learn(proposal, model, observation, *, time=1, state=None):
    """State and report of one call of ``adapt`` on `cloud`."""
    states, log_weights = cloud(model)
    state = proposal.init(model, len(states)) if state is None else state
    zeros = jnp.zeros(len(states))
    return proposal.adapt(
        jax.random.key(7), state, model, time, states, log_weights, zeros, observation
    )


@functools.cache
def learner(proposal, make_model=linear_model):
    """`learn`, compiled once for all scales and observations."""
    return jax.jit(
        lambda scale, observation, **more: learn(proposal, make_model(scale), observation, **more)
    )


@functools.partial(jax.jit, static_argnums=0)
def kl_of(proposal, state, scale, observation):
    """Of fresh draws from what was learnt of `linear_model`."""
    model = linear_model(scale)
    states, log_weights = cloud(model, 4000)
    law = proposal.distribution(state, model, 1, states, observation)
    moved = law.sample(jax.random.key(8))
    ratio = model.transition(states, 1).log_prob(moved) - law.log_prob(moved)
    return entropy_kl(log_weights + ratio + model.emission(moved, 1).log_prob(observation))
