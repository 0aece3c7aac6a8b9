"""Parameters learnt by NumPyro's SVI through the particle filter's evidence."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from jax.flatten_util import ravel_pytree
from numpyro.infer import SVI, Trace_ELBO, init_to_value
from numpyro.infer.autoguide import AutoDelta
from numpyro.optim import Adam

from bayesdiv.inference.proposals import AuxiliaryProposal, GuidedProposal
from bayesdiv.inference.smc import log_evidence
from bayesdiv.models.kalman import LinearGaussianParameters, kalman_filter
from bayesdiv.models.state_space_examples import linear_gaussian


def coefficients():
    """Unconstrained coordinates under a flat prior, so that the mode is maximum likelihood."""
    rho = numpyro.sample("rho", dist.ImproperUniform(dist.constraints.real, (), ()))
    log_scale = numpyro.sample("log_scale", dist.ImproperUniform(dist.constraints.real, (), ()))
    return LinearGaussianParameters(jnp.tanh(rho), jnp.exp(log_scale), 1.0, 0.5)


def optimal_proposal(parameters: LinearGaussianParameters) -> AuxiliaryProposal:
    """p(x_t | x_{t−1}, y_t) with the exact first stage: all weights are equal."""
    noise = parameters.transition_scale**2
    variance = 1.0 / (1.0 / noise + 4.0)

    def move(states, time, observation):
        mean = variance * (4.0 * observation + parameters.transition_matrix * states / noise)
        return dist.Normal(mean, jnp.sqrt(variance))

    def start(observation):
        return dist.Normal(4.0 * observation / 5.0, jnp.sqrt(1.0 / 5.0))

    return AuxiliaryProposal(GuidedProposal(move, start))


@pytest.mark.slow
def test_svi_learns_what_maximum_likelihood_does():
    _, observations = linear_gaussian(LinearGaussianParameters(0.8, 0.6, 1.0, 0.5)).simulate(
        jax.random.key(3), 40
    )

    def model():
        parameters = coefficients()
        estimate = log_evidence(
            numpyro.prng_key(),
            linear_gaussian(parameters),
            observations,
            proposal=optimal_proposal(parameters),
            num_particles=64,
            differentiable=True,
        )
        numpyro.factor("evidence", estimate)

    start = {"rho": jnp.array(0.5), "log_scale": jnp.array(0.0)}
    guide = AutoDelta(model, init_loc_fn=init_to_value(values=start))
    svi = SVI(model, guide, Adam(0.05), Trace_ELBO())
    result = svi.run(jax.random.key(0), 250, progress_bar=False)
    found = {name: result.params[f"{name}_auto_loc"] for name in start}
    flat, unravel = ravel_pytree(found)

    def exact(flat):
        values = unravel(flat)
        parameters = LinearGaussianParameters(
            jnp.tanh(values["rho"]), jnp.exp(values["log_scale"]), 1.0, 0.5
        )
        return kalman_filter(parameters, observations).log_evidence

    best = flat
    slope, curvature = jax.jit(jax.grad(exact)), jax.jit(jax.hessian(exact))
    for _ in range(8):
        best = best - jnp.linalg.solve(curvature(best), slope(best))
    np.testing.assert_allclose(slope(best), 0.0, atol=1e-8)
    standard_errors = jnp.sqrt(jnp.diag(jnp.linalg.inv(-curvature(best))))
    off = abs(flat - best) / standard_errors
    assert off.max() < 0.25, f"{off} standard errors of the estimate"
    away = abs(ravel_pytree(start)[0] - best) / standard_errors
    assert away.max() > 1.0, "the start would pass"


@pytest.mark.parametrize(
    ("proposal", "ess_threshold"),
    [(None, 1.0), pytest.param(AuxiliaryProposal(), 0.5, marks=pytest.mark.slow)],
)
def test_score_of_resampling_makes_the_gradient_unbiased(proposal, ess_threshold):
    """E ∇Ẑ = ∇Z from twenty particles; with fixed ancestors a bootstrap filter's is far from it."""
    parameters = LinearGaussianParameters(0.8, 0.6, 1.0, 0.5)
    _, observations = linear_gaussian(parameters).simulate(jax.random.key(3), 8)

    def estimate(slope, key, differentiable):
        return log_evidence(
            key,
            linear_gaussian(parameters._replace(transition_matrix=slope)),
            observations,
            proposal=proposal,
            num_particles=20,
            ess_threshold=ess_threshold,
            differentiable=differentiable,
        )

    def exact(slope):
        return kalman_filter(
            parameters._replace(transition_matrix=slope), observations
        ).log_evidence

    log_z, wanted = jax.value_and_grad(exact)(0.8)
    keys = jax.random.split(jax.random.key(0), 6_000)
    off = {}
    for kind in (True, "score"):
        gradient = jax.value_and_grad(lambda slope, key, kind=kind: estimate(slope, key, kind))
        value, slope = jax.jit(jax.vmap(gradient, in_axes=(None, 0)))(0.8, keys)
        # ∇Ẑ / Z.
        samples = np.asarray(jnp.exp(value - log_z) * slope)
        off[kind] = (samples.mean() - wanted) / (samples.std(ddof=1) / np.sqrt(len(keys)))
    assert abs(off["score"]) < 5.0
    if proposal is None:
        assert abs(off[True]) > 8.0


def test_kinds_of_gradient_are_named():
    with pytest.raises(
        ValueError, match="differentiable must be True, False or 'score', got 'ibis'"
    ):
        log_evidence(
            jax.random.key(0),
            linear_gaussian(LinearGaussianParameters(0.8, 0.6, 1.0, 0.5)),
            jnp.ones(3),
            differentiable="ibis",
        )
