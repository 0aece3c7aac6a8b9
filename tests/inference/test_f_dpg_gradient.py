"""f-DPG's gradient: the host's, REINFORCE's, the exact one; golden values; statistics of Z."""

import math

import pyro
import pytest
import torch
from pyro.infer import SVI
from sequence_cases import (
    DOSSIER_NAMES,
    P_A,
    POLICY_A,
    bigram_chain,
    categorical,
    count_twos,
    frozen,
    has_two,
    start_gradient,
)

from bayesdiv.divergences import get_divergence, list_divergences
from bayesdiv.inference.f_dpg import FDPG, policy_guide
from bayesdiv.models.sequence_targets import (
    PointwiseConstraint,
    ScalarPreference,
    SequenceTarget,
    enumerate_target,
)
from bayesdiv.pyro import objective

NAMES = [name for name in list_divergences("f") if name != "generalized_jensen_shannon"]
P_B, POLICY_B = [0.5, 0.5, 0.0], [0.2, 0.5, 0.3]
# By dossier name: D, pseudo-reward, gradient with respect to the policy's logits.
FIXTURE_A = {
    "kl": (0.605677, [5, 1.25, 0.416667, 0.3125], [-0.4, -0.05, 0.175, 0.275]),
    "rkl": (
        0.522328,
        [0.609438, -0.776856, -1.875469, -2.163151],
        [-0.21318, -0.14909, 0.10594, 0.25633],
    ),
    "tv": (0.45, [0.5, 0.5, -0.5, -0.5], [-0.07, -0.14, 0.09, 0.12]),
    "js": (
        0.261202,
        [1.098612, 0.117783, -0.344840, -0.421213],
        [-0.12371, -0.05126, 0.06190, 0.11308],
    ),
    "chi2_fwd": (
        1.903646,
        [24, 0.5625, -0.826389, -0.902344],
        [-2.20964, 0.26823, 0.81901, 1.12240],
    ),
    "chi2_rev": (1.18, [1.6, 0.4, -2.8, -4.4], [-0.396, -0.552, 0.132, 0.816]),
    "hellinger": (
        0.271061,
        [1.236068, 0.118034, -0.354503, -0.440983],
        [-0.13716, -0.05071, 0.06569, 0.12218],
    ),
    "jeffreys": (
        1.128006,
        [5.609438, 0.473144, -1.458802, -1.850651],
        [-0.61318, -0.19909, 0.28094, 0.53133],
    ),
}
FIXTURE_B = {
    "kl": (0.458145, [-0.3, 0, 0.3]),
    "js": (0.274358, [-0.13113, -0.04801, 0.17914]),
    "tv": (0.3, None),
    "chi2_fwd": (0.75, [-0.9, 0.375, 0.525]),
    "hellinger": (0.367544, [-0.15298, -0.09189, 0.24487]),
}
HALVED = {"js"}


class Listed(SequenceTarget):
    """The categorical with given probabilities times ``scale``."""

    def __init__(self, probabilities, scale=1.0):
        super().__init__(categorical([1 / len(probabilities)] * len(probabilities)))
        frozen(self.base)
        self.listed = (torch.tensor(probabilities, dtype=torch.float64) * scale).log()

    def log_factor(self, value, contexts=None):
        return self.listed[value[..., 0]] - self.base.log_prob(value)


def make(name):
    """A divergence of each kind; α needs an order that is finite at zeros of the policy."""
    return get_divergence(name, order=0.5) if name == "alpha" else get_divergence(name)


def exact_gradient(target, policy, member):
    """Of D(p‖π) with respect to the first symbol's logits, by enumeration."""
    found = enumerate_target(target)
    policy.network.zero_grad()
    log_q = policy.log_prob(found.value)
    u = found.log_prob - log_q
    value = (log_q.exp() * member.generator(torch.where(u > -torch.inf, u, -300.0))).sum()
    value.backward()
    return start_gradient(policy).clone(), value.item()


class AllSequences:
    """A "sample" with every sequence as often as its probability says, in units of 1/count."""

    def __init__(self, law, count):
        value = law.enumerate_support()
        times = (law.log_prob(value).exp().detach() * count).round().long()
        self.rows, self.law = value.repeat_interleave(times, 0), law
        self.batch_shape = torch.Size()

    def sample(self, shape):
        assert shape == (len(self.rows),)
        return self.rows

    def log_prob(self, value):
        return self.law.log_prob(value).detach()


@pytest.mark.parametrize("key", FIXTURE_A)
def test_golden_fixture_a(key):
    value, reward, gradient = FIXTURE_A[key]
    member = make(DOSSIER_NAMES[key])
    factor = 0.5 if key in HALVED else 1.0
    p, q = torch.tensor(P_A).double().log(), torch.tensor(POLICY_A).double().log()
    ours = member.pseudo_reward(p - q)
    # The dossier's generator may differ by a multiple of t − 1, which shifts every reward alike.
    theirs = factor * torch.tensor(reward, dtype=torch.float64)
    torch.testing.assert_close(ours - ours[0], theirs - theirs[0], atol=2e-6, rtol=0)
    policy = categorical(POLICY_A)
    sample = AllSequences(policy, 10)
    routine = FDPG(Listed(P_A), policy, member, proposal=sample, num_samples=10, learning_rate=0.0)
    metrics = routine.step()
    expected = factor * torch.tensor(gradient, dtype=torch.float64)
    # Leave-one-out baselines multiply a gradient over all sequences by n/(n − 1).
    scale = 1.0 if routine.baseline == "analytic" else 0.9
    torch.testing.assert_close(scale * start_gradient(policy), expected, atol=1e-5, rtol=0)
    assert metrics["divergence"].item() == pytest.approx(factor * value, abs=1e-6)
    assert metrics["log_normalizer"].item() == pytest.approx(0.0, abs=1e-12)


@pytest.mark.parametrize("key", FIXTURE_B)
def test_golden_fixture_b(key):
    value, gradient = FIXTURE_B[key]
    factor = 0.5 if key in HALVED else 1.0
    policy = categorical(POLICY_B)
    sample = AllSequences(policy, 10)
    settings = {"proposal": sample, "num_samples": 10, "baseline": "none", "learning_rate": 0.0}
    routine = FDPG(Listed(P_B), policy, DOSSIER_NAMES[key], **settings)
    metrics = routine.step()
    assert metrics["divergence"].item() == pytest.approx(factor * value, abs=1e-6)
    assert metrics["supported"].item() == pytest.approx(0.7)
    if gradient is not None:
        expected = factor * torch.tensor(gradient, dtype=torch.float64)
        torch.testing.assert_close(start_gradient(policy), expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", ["reverse_kl", "neyman_chi2", "jeffreys", "softened_reverse_kl"])
def test_zeros_of_the_target_need_a_floor(name):
    policy = categorical(POLICY_B)
    before = policy.network.logits.detach().clone()
    routine = FDPG(Listed(P_B), policy, name, num_samples=50)
    with pytest.raises(ValueError, match=r"infinite where the target has no mass.*\[2\].*zero_flo"):
        routine.step()
    assert torch.equal(policy.network.logits, before)
    floored = FDPG(Listed(P_B), policy, name, num_samples=50, zero_floor=0.01)
    assert math.isfinite(floored.step()["divergence"].item())


def test_orders_of_alpha_that_are_infinite_at_zeros_are_refused():
    routine = FDPG(Listed(P_B), categorical(POLICY_B), "alpha", parameters={"order": -0.5})
    with pytest.raises(ValueError, match="Alpha is infinite where the target has no mass"):
        routine.step()


# The host


@pytest.mark.parametrize("name", NAMES)
def test_gradient_is_that_of_svi(name):
    target = ScalarPreference(frozen(bigram_chain()), count_twos, 0.7)
    ours, hosts = bigram_chain(), bigram_chain()
    settings = {"order": 0.5} if name == "alpha" else {}
    loss = objective(
        name,
        gradient="score",
        normalizer="running",
        num_particles=32,
        max_plate_nesting=0,
        **settings,
    )
    routine = FDPG(
        target,
        ours,
        name,
        parameters=settings,
        num_samples=32,
        baseline="mean",
        optimiser=lambda parameters: torch.optim.SGD(parameters, lr=0.02),
    )
    svi = SVI(target, policy_guide(hosts), pyro.optim.SGD({"lr": 0.02}), loss)
    for step in range(4):
        torch.manual_seed(step)
        routine.step()
        torch.manual_seed(step)
        svi.step()
        torch.testing.assert_close(
            ours.network.logits, hosts.network.logits, rtol=1e-10, atol=1e-10
        )
    assert routine.log_normalizer.item() == pytest.approx(
        loss.normalizer_state.log_mean.item(), abs=1e-10
    )


def test_reverse_kl_is_penalised_reinforce():
    """∇ of −E[r − β(log π − log a)] by REINFORCE, with a leave-one-out baseline, is β ∇."""
    beta, count = 0.7, 64
    base = frozen(bigram_chain())
    target = ScalarPreference(base, count_twos, beta)
    policy = bigram_chain()
    with torch.no_grad():
        policy.network.logits.add_(0.3 * torch.randn(4, 3))
    torch.manual_seed(5)
    value = policy.sample((count,))
    log_q = policy.log_prob(value)
    reward = count_twos(value) - beta * (log_q.detach() - base.log_prob(value))
    advantage = (count * reward - reward.sum()) / (count - 1)
    (reinforce,) = torch.autograd.grad(-(advantage * log_q).mean(), policy.network.logits)
    loss = objective("reverse_kl", gradient="score", num_particles=count, max_plate_nesting=0)
    torch.manual_seed(5)
    loss.loss_and_grads(target, policy_guide(policy))
    torch.testing.assert_close(beta * policy.network.logits.grad, reinforce, rtol=1e-9, atol=1e-12)


# Statistics


def drift(policy):
    with torch.no_grad():
        policy.network.logits.add_(torch.tensor([[0.3, -0.2, 0.1]]).double())
    return policy


@pytest.mark.parametrize("baseline", ["none", "mean"])
@pytest.mark.parametrize("is_off_policy", [False, True])
@pytest.mark.parametrize("name", NAMES)
def test_gradient_is_unbiased(name, is_off_policy, baseline):
    member, count = make(name), 50_000
    target = ScalarPreference(frozen(bigram_chain()), has_two, 1.0)
    policy = drift(bigram_chain())
    expected, _ = exact_gradient(target, policy, member)
    proposal = frozen(bigram_chain()) if is_off_policy else policy
    log_z = enumerate_target(target).log_normalizer
    generator_state = torch.get_rng_state()
    # The spread of single terms, then the routine's own mean over the same draws.
    value = proposal.sample((count,))
    log_q, log_pi = proposal.log_prob(value).detach(), policy.log_prob(value).detach()
    weight = (log_pi - log_q).exp()
    reward = member.pseudo_reward(target.log_prob(value) - log_pi - log_z)
    shift = (weight * reward).mean() if baseline == "mean" else 0.0
    first = value[:, :1] == torch.arange(3)
    score = first.double() - policy.network.logits[-1].softmax(-1).detach()
    spread = ((weight * (reward - shift))[:, None] * score).std(0) / count**0.5
    torch.set_rng_state(generator_state)
    routine = FDPG(
        target,
        policy,
        member,
        proposal=proposal if is_off_policy else "policy",
        baseline=baseline,
        num_samples=count,
        learning_rate=0.0,
    )
    routine.step()
    found = start_gradient(policy)
    # Reverse KL's constant log Z moves the gradient only through the noise of a baseline of 0.
    assert ((found - expected).abs() < 5 * spread + 0.02 * expected.abs().max()).all()
    assert ((found - expected).abs() < 0.1 * expected.abs().max()).all()


def test_baseline_outside_the_bracket_would_be_found():
    """Off-policy, b must be multiplied by π/q: subtracting it from w·r is biased."""
    target = ScalarPreference(frozen(bigram_chain()), has_two, 1.0)
    policy, proposal = drift(bigram_chain()), frozen(bigram_chain())
    member = get_divergence("reverse_kl")
    expected, _ = exact_gradient(target, policy, member)
    value = proposal.enumerate_support()
    q = proposal.log_prob(value).exp()
    log_pi = policy.log_prob(value)
    reward = member.pseudo_reward(target.log_prob(value) - log_pi.detach())
    weight = log_pi.detach().exp() / q
    for inside, is_right in ((weight * (reward - 3.0), True), (weight * reward - 3.0, False)):
        (found,) = torch.autograd.grad(
            -(q * inside * log_pi).sum(), policy.network.logits, retain_graph=True
        )
        assert torch.allclose(found[-1], expected, atol=1e-9) is is_right


def test_log_z_is_unbiased_for_a_moving_policy():
    estimates = []
    target = ScalarPreference(frozen(bigram_chain()), has_two, 0.8)
    truth = enumerate_target(target).log_normalizer.exp().item()
    for seed in range(60):
        torch.manual_seed(seed)
        routine = FDPG(target, bigram_chain(), num_samples=16, learning_rate=0.02)
        for _ in range(50):
            routine.step()
        estimates.append(routine.log_normalizer.exp().item())
    estimates = torch.tensor(estimates).double()
    error = estimates.std() / len(estimates) ** 0.5
    assert abs(estimates.mean().item() - truth) < 4 * error
    assert estimates.std() < 0.05 * truth


@pytest.mark.parametrize("name", NAMES)
def test_no_variance_is_left_at_the_target(name):
    target = Listed(P_A)
    policy = categorical(P_A)
    routine = FDPG(target, policy, make(name), baseline="analytic", num_samples=30)
    routine.step()
    assert start_gradient(policy).abs().max() < 1e-12


def test_batch_estimate_of_forward_kl_agrees_with_enumeration():
    target = PointwiseConstraint(frozen(bigram_chain()), lambda value: has_two(value) > 0)
    policy = drift(bigram_chain())
    found = enumerate_target(target)
    truth = get_divergence("forward_kl").between_logits(
        found.log_prob, policy.log_prob(found.value)
    )
    routine = FDPG(target, policy, num_samples=100_000, learning_rate=0.0)
    assert routine.step()["forward_kl"].item() == pytest.approx(truth.item(), abs=0.01)
