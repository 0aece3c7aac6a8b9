"""f-DPG as NumPyro's SVI: gradient identities, and optima where all sequences are written down."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import pytest
from numpyro.infer import SVI

from bayesdiv.divergences import get_divergence, list_divergences
from bayesdiv.models.sequence_targets_numpyro import MarkovTarget, hidden_markov_target
from bayesdiv.numpyro import objective
from bayesdiv.objectives import estimate

NAMES = list_divergences("f")
INITIAL = jnp.array([0.5, 0.3, 0.2])
TRANSITION = jnp.array([[0.6, 0.3, 0.1], [0.2, 0.5, 0.3], [0.3, 0.3, 0.4]])


def count_twos(value):
    return jnp.sum(value == 2) / 1.0


def preference(beta=0.7):
    return MarkovTarget(INITIAL, TRANSITION, 3, lambda value: count_twos(value) / beta)


def divergence_of(member, target, logits):
    value = target.support()
    log_p = target.log_joint(value) - target.log_normalizer()
    log_q = target.log_policy(logits, value)
    return jnp.sum(jnp.exp(log_q) * member.generator(log_p - log_q))


def moved(target):
    return target.start() + 0.3 * jnp.sin(jnp.arange(12.0)).reshape(4, 3)


def test_golden_values_of_the_bigram_chain():
    target = preference(0.5)
    assert float(jnp.exp(target.log_normalizer())) == pytest.approx(22.693336, abs=1e-6)
    value = target.support()
    share = jnp.exp(target.log_joint(value) - target.log_normalizer())
    assert float(share @ jax.vmap(count_twos)(value)) == pytest.approx(2.422180, abs=1e-6)
    constrained = MarkovTarget(
        INITIAL, TRANSITION, 3, lambda value: jnp.where(count_twos(value) > 0, 0.0, -jnp.inf)
    )
    assert float(jnp.exp(constrained.log_normalizer())) == pytest.approx(0.466, abs=1e-9)
    kl = divergence_of(get_divergence("forward_kl"), constrained, target.start())
    assert float(kl) == pytest.approx(0.763570, abs=1e-6)


@pytest.mark.parametrize("name", NAMES)
def test_gradient_is_the_policy_gradient_of_the_pseudo_reward(name):
    member, target = get_divergence(name), preference()
    logits = moved(target)
    exact = jax.grad(lambda point: divergence_of(member, target, point))(logits)
    value = target.support()
    log_q = target.log_policy(logits, value)
    reward = member.pseudo_reward(target.log_joint(value) - target.log_normalizer() - log_q)

    def surrogate(point):
        return -jnp.sum(jnp.exp(log_q) * (reward + 0.9) * target.log_policy(point, value))

    np.testing.assert_allclose(jax.grad(surrogate)(logits), exact, rtol=1e-9, atol=1e-12)


def score_gradient(target, name, logits, value, **settings):
    """Of ``estimate`` at given sequences, as SVI would differentiate it."""

    def loss(point):
        log_q = target.log_policy(point, value)
        log_weight = target.log_joint(value) - jax.lax.stop_gradient(log_q)
        return estimate(name, log_weight, gradient="score", log_q=log_q, **settings).loss

    return jax.grad(loss)(logits)


@pytest.mark.parametrize("name", NAMES)
def test_batch_gradient_is_unbiased(name):
    member, target, count = get_divergence(name), preference(), 50_000
    logits = moved(target)
    exact = jax.grad(lambda point: divergence_of(member, target, point))(logits)
    support = target.support()
    log_q = target.log_policy(logits, support)
    log_z = target.log_normalizer()
    reward = member.pseudo_reward(target.log_joint(support) - log_z - log_q)
    scores = jax.jacobian(lambda point: target.log_policy(point, support))(logits)
    terms = (reward - jnp.exp(log_q) @ reward)[:, None, None] * scores
    spread = jnp.sqrt(jnp.einsum("n,nij->ij", jnp.exp(log_q), terms**2) / count)
    drawn = jax.random.categorical(jax.random.key(1), log_q, shape=(count,))
    found = score_gradient(target, name, logits, support[drawn], log_normalizer=log_z)
    assert bool(jnp.all(jnp.abs(found - exact) < 5.0 * spread))
    assert bool(jnp.any(jnp.abs(exact) > 10.0 * spread))


def test_reverse_kl_is_penalised_reinforce():
    beta, count = 0.7, 64
    target = preference(beta)
    logits = moved(target)
    support = target.support()
    drawn = jax.random.categorical(
        jax.random.key(2), target.log_policy(logits, support), shape=(count,)
    )
    value = support[drawn]
    log_q = target.log_policy(logits, value)
    reward = jax.vmap(count_twos)(value) - beta * (log_q - target.log_policy(target.start(), value))
    advantage = (count * reward - reward.sum()) / (count - 1)
    reinforce = jax.grad(lambda point: -jnp.mean(advantage * target.log_policy(point, value)))(
        logits
    )
    found = beta * score_gradient(target, "reverse_kl", logits, value)
    np.testing.assert_allclose(found, reinforce, rtol=1e-9, atol=1e-12)


def optimum(target, name, logits):
    """The least divergence over chains, by Newton's method on the exact value."""
    member = get_divergence(name)

    def value(point):
        return divergence_of(member, target, point.reshape(4, 3))

    def step(point, _):
        gradient, hessian = jax.grad(value)(point), jax.hessian(value)(point)
        # Logits that differ by a constant are one chain; damping picks one of them.
        move = jnp.linalg.solve(hessian + 1e-6 * jnp.eye(12), gradient)
        return point - move, None

    best, _ = jax.lax.scan(step, logits.reshape(-1), None, length=20)
    return value(best)


# The gradients of all of them have their own test; whole fits of the others are slow.
FITTED = ("reverse_kl", "forward_kl", "jensen_shannon", "total_variation")


@pytest.mark.parametrize(
    "name",
    [name if name in FITTED else pytest.param(name, marks=pytest.mark.slow) for name in NAMES],
)
def test_svi_finds_the_best_chain(name):
    target = preference(1.0)
    loss = objective(name, gradient="score", normalizer="running", num_particles=400)

    def rate(step):
        return jnp.where(step < 300, 0.05, 0.01)

    svi = SVI(target.model, loss.stateful(target.guide), numpyro.optim.Adam(rate), loss)
    result = svi.run(jax.random.key(0), 400, progress_bar=False)
    member = get_divergence(name)
    start = divergence_of(member, target, target.start())
    found = divergence_of(member, target, result.params["logits"])
    if name == "total_variation":
        # Its optimum is no zero of a gradient; it must only have come down.
        assert float(found) < 0.35 * float(start)
        return
    best = optimum(target, name, result.params["logits"])
    assert -1e-9 < float(found - best) < 0.02 * float(start)


EMISSION = jnp.array([[0.7, 0.2, 0.1], [0.2, 0.2, 0.6], [0.1, 0.6, 0.3]])
OBSERVATIONS = jnp.array([0, 2, 1])


def test_evidence_of_a_hidden_chain():
    target = hidden_markov_target(INITIAL, TRANSITION, EMISSION, OBSERVATIONS)
    forward = INITIAL * EMISSION[:, OBSERVATIONS[0]]
    for seen in OBSERVATIONS[1:]:
        forward = (forward @ TRANSITION) * EMISSION[:, seen]
    assert float(target.log_normalizer()) == pytest.approx(float(jnp.log(forward.sum())), abs=1e-12)


@pytest.mark.slow
def test_posterior_of_a_hidden_chain_and_its_evidence():
    target = hidden_markov_target(INITIAL, TRANSITION, EMISSION, OBSERVATIONS)
    loss = objective("jensen_shannon", gradient="score", normalizer="running", num_particles=300)
    svi = SVI(target.model, loss.stateful(target.guide), numpyro.optim.Adam(0.03), loss)
    result = svi.run(jax.random.key(0), 300, progress_bar=False)
    member = get_divergence("jensen_shannon")
    start = divergence_of(member, target, target.start())
    assert float(divergence_of(member, target, result.params["logits"])) < 0.3 * float(start)
    log_z = result.state.mutable_state["bayesdiv_state"]["log_mean"]
    assert float(log_z) == pytest.approx(float(target.log_normalizer()), abs=0.02)
