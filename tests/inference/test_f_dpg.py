"""The f-DPG routine: every member finds the optimum; proposals, contexts, checkpoints."""

import copy
import math

import pytest
import torch
from sequence_cases import (
    P_A,
    POLICY_A,
    GivenTarget,
    bigram_chain,
    categorical,
    count_twos,
    fixture_a,
    frozen,
    has_two,
)

from bayesdiv.divergences import FDivergence, get_divergence, list_divergences
from bayesdiv.inference.f_dpg import BASELINES, FDPG
from bayesdiv.models.sequence_targets import (
    ConditionalTarget,
    HiddenMarkovPosterior,
    PointwiseConstraint,
    ScalarPreference,
    enumerate_target,
)
from bayesdiv.nn.sequences_torch import CharacterGRU, MarkovTable
from bayesdiv.pyro.distributions import AutoregressiveSequence
from bayesdiv.training import train

NAMES = list_divergences("f")
UNIFORM = [0.25] * 4


def run(routine, num_steps, rates=(0.05, 0.01)):
    """Steps with two learning rates, the first for three quarters."""
    for step in range(num_steps):
        rate = rates[0] if step < 0.75 * num_steps else rates[1]
        for group in routine.optimiser.param_groups:
            group["lr"] = rate
        routine.step()
    return routine


def error_of(target, policy):
    found = enumerate_target(target)
    return (policy.log_prob(found.value).exp() - found.log_prob.exp()).abs().max().item()


@pytest.mark.parametrize("name", NAMES)
def test_every_member_converges_to_the_target(name):
    target, policy = fixture_a(), categorical(POLICY_A)
    run(FDPG(target, policy, name, num_samples=200), 300)
    # Total variation has steps of constant size however near it is.
    assert error_of(target, policy) < (0.05 if name == "total_variation" else 0.02)


def test_own_divergence_converges_too():
    own = FDivergence.from_generator(lambda u: (u - 1.0) ** 2 / (u + 1.0), name="triangular")
    target, policy = fixture_a(), categorical(POLICY_A)
    run(FDPG(target, policy, 0.5 * own + 0.5 * get_divergence("reverse_kl"), num_samples=200), 300)
    assert error_of(target, policy) < 0.02


@pytest.mark.parametrize("name", [name for name in NAMES if name != "total_variation"])
def test_members_find_the_best_chain_for_a_preference(name):
    """Fixture C: the target is no chain, so that each member has an optimum of its own."""
    member = get_divergence(name)
    target = ScalarPreference(frozen(bigram_chain()), count_twos, 1.0)
    found = enumerate_target(target)
    best = bigram_chain()
    optimiser = torch.optim.LBFGS(
        best.network.parameters(), max_iter=200, line_search_fn="strong_wolfe"
    )

    def value_of(law):
        return member.between_logits(found.log_prob, law.log_prob(found.value))

    def closure():
        optimiser.zero_grad()
        value = value_of(best)
        value.backward()
        return value

    optimiser.step(closure)
    policy = bigram_chain()
    start = value_of(policy).item()
    run(FDPG(target, policy, name, num_samples=400), 250)
    gap = value_of(policy).item() - value_of(best).item()
    assert -1e-9 < gap < 0.02 * start


def test_forward_kl_ends_at_the_projection_with_its_price():
    target = PointwiseConstraint(frozen(bigram_chain()), lambda value: has_two(value) > 0)
    policy = bigram_chain()
    run(FDPG(target, policy, "forward_kl", num_samples=1000), 400)
    found = enumerate_target(target)
    log_q = policy.log_prob(found.value)
    reached = (log_q.exp() @ has_two(found.value)).item()
    divergence = get_divergence("forward_kl").between_logits(found.log_prob, log_q).item()
    assert divergence == pytest.approx(0.228490, abs=2e-3)
    assert reached == pytest.approx(0.892955, abs=0.015)


def test_posterior_of_a_hidden_chain_is_found_with_its_evidence():
    generator = torch.Generator().manual_seed(4)
    rows = torch.rand(7, 3, generator=generator, dtype=torch.float64) + 0.1
    rows = rows / rows.sum(1, keepdim=True)
    target = HiddenMarkovPosterior(rows[0], rows[1:4], rows[4:7], torch.tensor([0, 2, 2, 1]))
    policy = AutoregressiveSequence(MarkovTable(torch.zeros(4, 4, 3).double()), 4, end=None)
    routine = run(FDPG(target, policy, "jensen_shannon", num_samples=500), 300)
    found = enumerate_target(target)
    nearness = get_divergence("forward_kl").between_logits(
        found.log_prob, policy.log_prob(found.value)
    )
    assert nearness.item() < 0.005
    assert routine.log_normalizer.item() == pytest.approx(target.log_evidence().item(), abs=0.01)


# Proposals


@pytest.mark.parametrize("proposal", ["adaptive", "fixed"])
def test_off_policy_converges_too(proposal):
    target, policy = fixture_a(), categorical(POLICY_A)
    given = frozen(categorical(UNIFORM)) if proposal == "fixed" else proposal
    routine = FDPG(target, policy, proposal=given, num_samples=300, adapt_every=8)
    run(routine, 300)
    assert error_of(target, policy) < 0.02
    metrics = routine.step()
    assert metrics["mean_weight"].item() == pytest.approx(1.0, abs=0.2)
    assert (metrics["proposal_updates"].item() > 0) is (proposal == "adaptive")


def test_a_proposal_moves_only_to_a_better_policy():
    target, policy = fixture_a(), categorical(POLICY_A)
    routine = FDPG(target, policy, proposal="adaptive", num_samples=2000, adapt_every=1)
    with torch.no_grad():
        policy.network.logits[-1] = torch.tensor([-3.0, 0.0, 0.0, 3.0])
    routine.step()
    assert routine.proposal.network.logits[-1, 3] < 2.0
    with torch.no_grad():
        policy.network.logits[-1] = torch.tensor(P_A).double().log()
    routine.step()
    torch.testing.assert_close(routine.proposal.network.logits, policy.network.logits)


@pytest.mark.parametrize("baseline", BASELINES)
def test_every_baseline_converges(baseline):
    target, policy = fixture_a(), categorical(POLICY_A)
    run(FDPG(target, policy, "reverse_kl", baseline=baseline, num_samples=200), 300)
    assert error_of(target, policy) < 0.02


# Contexts


def conditional(num_contexts=4, *, impossible=True):
    prompts = torch.arange(num_contexts)[:, None] % 3
    network = CharacterGRU(3, 4, 8, seed=0).double().requires_grad_(requires_grad=False)
    base = AutoregressiveSequence(network, 2, end=0, prompts=prompts)

    def log_factor(value, contexts):
        wanted = (value[..., 0] == contexts % 3).double()
        # Nothing satisfies the last context.
        never = (contexts == num_contexts - 1) & impossible
        return torch.where(never, -math.inf, 2.0 * wanted)

    return ConditionalTarget(base, log_factor)


def test_contexts_have_normalisers_of_their_own_and_empty_ones_are_skipped():
    target = conditional()
    policy = target.base.trainable_copy()
    routine = FDPG(target, policy, "jensen_shannon", num_samples=300)
    for _ in range(40):
        metrics = routine.step()
    truth = enumerate_target(target).log_normalizer
    torch.testing.assert_close(routine.log_normalizer[:3], truth[:3], atol=0.05, rtol=0)
    assert routine.log_normalizer[3] == -math.inf
    assert metrics["skipped_contexts"].item() == 0.25
    assert all(math.isfinite(value.item()) for value in metrics.values())


def test_a_step_on_some_contexts_leaves_the_others_normaliser():
    target = conditional()
    routine = FDPG(target, target.base.trainable_copy(), num_samples=50)
    routine.step(torch.tensor([0, 2]))
    first = routine.log_normalizer
    assert first.isfinite().tolist() == [True, False, True, False]
    routine.step(torch.tensor([2]))
    assert routine.log_normalizer[0] == first[0]
    assert routine.log_normalizer[2] != first[2]


def test_conditional_policy_converges():
    target = conditional(3, impossible=False)
    policy = target.base.trainable_copy()
    routine = run(FDPG(target, policy, "forward_kl", num_samples=200), 150, rates=(0.03, 0.005))
    found = enumerate_target(target)
    before, after = (
        get_divergence("forward_kl")
        .between_logits(found.log_prob.T, law.log_prob(found.value).T)
        .detach()
        for law in (target.base, policy)
    )
    assert (after < 0.05 * before).all()
    assert routine.step()["skipped_contexts"] == 0.0


def test_off_policy_steps_work_on_contexts():
    target = conditional(3, impossible=False)
    policy = target.base.trainable_copy()
    routine = FDPG(
        target, policy, "forward_kl", proposal="adaptive", num_samples=400, adapt_every=2
    )
    for _ in range(30):
        metrics = routine.step(torch.tensor([0, 2]))
    assert metrics["proposal_updates"] > 0.0
    assert routine.log_normalizer.isfinite().tolist() == [True, False, True]
    truth = enumerate_target(target).log_normalizer
    torch.testing.assert_close(routine.log_normalizer[[0, 2]], truth[[0, 2]], atol=0.05, rtol=0)


# Numbers that are far from 1


@pytest.mark.parametrize("shift", [-5000.0, 5000.0])
def test_log_z_never_leaves_log_space(shift):
    """e^±5000 is no number; the scale of P must not change a step."""
    factors = [math.log(p) for p in P_A]
    found = []
    for extra in (0.0, shift):
        torch.manual_seed(0)
        policy = categorical(POLICY_A)
        routine = FDPG(GivenTarget([value + extra for value in factors]), policy, "jensen_shannon")
        for _ in range(5):
            routine.step()
        found.append((policy.network.logits.detach(), routine.log_normalizer))
    torch.testing.assert_close(found[0][0], found[1][0], rtol=1e-8, atol=1e-8)
    torch.testing.assert_close(found[0][1] + shift, found[1][1], rtol=1e-12, atol=1e-8)


def test_a_step_is_the_same_in_single_precision():
    found = []
    for dtype in (torch.float64, torch.float32):
        torch.manual_seed(0)
        policy = categorical(POLICY_A)
        policy.network.to(dtype)
        value = policy.enumerate_support().repeat(8, 1)

        class Listed:
            batch_shape = torch.Size()
            sample = staticmethod(lambda shape, value=value: value)
            log_prob = staticmethod(lambda value: torch.full((len(value),), -math.log(4.0)))

        routine = FDPG(fixture_a(), policy, "pearson_chi2", proposal=Listed(), num_samples=32)
        routine.step()
        found.append(policy.network.logits.detach().double())
    torch.testing.assert_close(found[0], found[1], rtol=1e-4, atol=1e-5)


# Checkpoints


@pytest.mark.parametrize("proposal", ["policy", "adaptive"])
def test_a_resumed_run_has_the_same_numbers(tmp_path, proposal):
    def routine():
        policy = categorical(POLICY_A)
        return FDPG(
            fixture_a(), policy, "squared_hellinger", proposal=proposal, baseline="ema",
            num_samples=20, adapt_every=2, learning_rate=0.05,
        )  # fmt: skip

    def run_to(num_steps, part, path):
        torch.manual_seed(0)
        settings = {"checkpoint": path, "progress_bar": False}
        return train(part, None, num_steps=num_steps, **settings)

    whole = routine()
    history = run_to(12, whole, tmp_path / "whole").history
    run_to(5, routine(), tmp_path / "parts")
    parts = routine()
    resumed = run_to(12, parts, tmp_path / "parts").history
    assert torch.equal(parts.policy.network.logits, whole.policy.network.logits)
    assert torch.equal(parts.log_normalizer, whole.log_normalizer)
    assert (resumed["divergence"] == history["divergence"]).all()


def test_runs_share_no_state():
    """A baseline or normaliser kept in a class or a default would leak from run to run."""

    def numbers():
        torch.manual_seed(3)
        routine = FDPG(fixture_a(), categorical(POLICY_A), "reverse_kl", baseline="ema")
        return [routine.step()["gradient_norm"].item() for _ in range(3)]

    assert numbers() == numbers()


def test_optimiser_is_the_one_asked_for():
    routine = FDPG(fixture_a(), categorical(POLICY_A), optimiser=torch.optim.AdamW)
    assert type(routine.optimiser) is torch.optim.AdamW


def test_state_of_an_unseen_context_is_finite():
    target = conditional()
    routine = FDPG(target, target.base.trainable_copy(), num_samples=50)
    routine.step()
    state = routine.state_dict()
    assert all(value.isfinite().all() for value in state["normalizer"].values())
    again = FDPG(target, target.base.trainable_copy(), num_samples=50)
    again.load_state_dict(copy.deepcopy(state))
    assert torch.equal(again.log_normalizer, routine.log_normalizer)
