"""Imitation's objectives and gradients, exactly, on policies that can be enumerated."""

import math

import pytest
import torch
from imitation_cases import CategoricalPolicy, Scored, random_chain, step_of

from bayesdiv.divergences import FDivergence, between_logits, get_divergence, list_divergences
from bayesdiv.inference.imitation import (
    AdversarialImitation,
    OracleImitation,
    SupervisedFineTuning,
    get_imitation,
    position_weights,
)
from bayesdiv.objectives import DensityRatio, RatioCritic
from bayesdiv.training import train

MEMBERS = list_divergences("f")
COUNTS = [6, 3, 20, 11, 9, 11]
EXPERT = torch.tensor([0.3, 0.07, 0.15, 0.2, 0.1, 0.18], dtype=torch.float64).log()


def own_divergence():
    return FDivergence.from_generator(lambda u: (u - 1.0) ** 2 / (u + 1.0), name="triangular")


class ExactCritic(RatioCritic):
    """A critic whose logit is right and stays right."""

    def __init__(self, policy, expert):
        table = torch.nn.Embedding(1, 1)
        ratio = DensityRatio(max_log_ratio=50.0)
        super().__init__(table, torch.optim.SGD(table.parameters(), lr=1.0), ratio=ratio)
        self.policy, self.expert = policy, expert

    def step(self, batch):
        zero = torch.zeros(())
        return {"loss": zero, "implied_jensen_shannon": zero}

    def log_ratio(self, rows):
        exact = self.expert.log_prob(rows) - self.policy.log_prob(rows).detach()
        return self.ratio.log_ratio(exact)


def exact_gradient(divergence, policy):
    value = between_logits(divergence, EXPERT, policy.logits)
    return torch.autograd.grad(value, policy.logits)[0]


# The table of rewards

REWARDS = {
    "reverse_kl": lambda h: h,
    "jensen_shannon": lambda h: 0.5 * (torch.nn.functional.softplus(h) - math.log(2.0)),
    "forward_kl": lambda h: h.exp() - 1.0,
    "total_variation": lambda h: 0.5 * h.sign(),
    "pearson_chi2": lambda h: (2.0 * h).exp() - 1.0,
    "squared_hellinger": lambda h: (0.5 * h).exp() - 1.0,
}


@pytest.mark.parametrize("name", REWARDS)
def test_rewards_of_the_table(name):
    h = torch.linspace(-4.0, 4.0, 41, dtype=torch.float64)
    found = get_divergence(name).pseudo_reward(h)
    torch.testing.assert_close(found, REWARDS[name](h), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("divergence", [*MEMBERS, pytest.param(own_divergence(), id="own")])
@pytest.mark.parametrize("kind", ["adversarial", "oracle"])
def test_policy_gradient_is_that_of_the_divergence(kind, divergence):
    """A sample with exactly the policy's frequencies: no noise, only the baseline's n/(n − 1)."""
    policy, expert = CategoricalPolicy(COUNTS), Scored(EXPERT)
    optimizer = torch.optim.SGD([policy.logits], lr=1.0)
    partner = ExactCritic(policy, expert) if kind == "adversarial" else expert
    expected = exact_gradient(divergence, policy)
    routine = get_imitation(
        kind, policy, optimizer, partner, divergence=divergence, num_samples=policy.size
    )
    (found,) = step_of(routine, [policy.logits], policy.sample((policy.size,)))
    share = (policy.size - 1.0) / policy.size
    torch.testing.assert_close(share * found, expected, rtol=1e-9, atol=1e-12)


def reward_gradient(policy, reward):
    """−E_π[reward ∇log π], exactly."""
    log_q = policy.logits.log_softmax(0)
    surrogate = -(log_q.detach().exp() * reward * log_q).sum()
    return torch.autograd.grad(surrogate, policy.logits)[0]


def test_popular_rewards_that_are_no_gradients():
    """Non-saturating GAIL is near Jensen–Shannon and not it; FAIRL's is not forward KL's."""
    policy = CategoricalPolicy(COUNTS)
    h = EXPERT - policy.logits.detach().log_softmax(0)
    pairs = {
        "jensen_shannon": -torch.nn.functional.softplus(-h),
        "forward_kl": -h * h.exp(),
    }
    cosines = {}
    for name, reward in pairs.items():
        found = reward_gradient(policy, reward)
        cosines[name] = float(torch.cosine_similarity(found, exact_gradient(name, policy), dim=0))
    assert 0.9 < cosines["jensen_shannon"] < 0.9999
    assert cosines["forward_kl"] < 0.0


@pytest.mark.parametrize("name", ["reverse_kl", "jensen_shannon", "forward_kl"])
def test_oracle_imitation_converges_to_the_expert(name):
    expert = random_chain(1)
    policy = random_chain(2)
    torch.manual_seed(0)
    optimizer = torch.optim.Adam(policy.network.parameters(), lr=0.05)
    routine = OracleImitation(policy, optimizer, expert, divergence=name, num_samples=400)
    train(routine, None, num_steps=350, progress_bar=False)
    rows = policy.enumerate_support()
    found, truth = policy.log_prob(rows).exp(), expert.log_prob(rows).exp()
    assert float((found - truth).detach().abs().max()) < 0.02


def test_an_unnormalised_expert_needs_a_normaliser():
    """Log Z = 1.5 too much: the running mean finds it, and the gradient is the exact one."""
    policy, expert = CategoricalPolicy(COUNTS), Scored(EXPERT + 1.5)
    routine = OracleImitation(
        policy,
        torch.optim.SGD([policy.logits], lr=1.0),
        expert,
        divergence="forward_kl",
        num_samples=policy.size,
        normalizer="running",
    )
    expected = exact_gradient("forward_kl", policy)
    (found,) = step_of(routine, [policy.logits])
    share = (policy.size - 1.0) / policy.size
    torch.testing.assert_close(share * found, expected, rtol=1e-9, atol=1e-12)
    assert routine.state_dict()["log_normalizer"][0] == pytest.approx(1.5, abs=1e-12)


def test_anchor_adds_its_kl():
    policy, expert = CategoricalPolicy(COUNTS), Scored(EXPERT)
    anchor = Scored(EXPERT.flip(0))
    routine = AdversarialImitation(
        policy,
        torch.optim.SGD([policy.logits], lr=1.0),
        ExactCritic(policy, expert),
        divergence="jensen_shannon",
        num_samples=policy.size,
        anchor=anchor,
        anchor_weight=0.7,
    )
    pull = between_logits("reverse_kl", anchor.log_probs, policy.logits)
    expected = exact_gradient("jensen_shannon", policy)
    expected = expected + 0.7 * torch.autograd.grad(pull, policy.logits)[0]
    (found,) = step_of(routine, [policy.logits], policy.sample((policy.size,)))
    share = (policy.size - 1.0) / policy.size
    torch.testing.assert_close(share * found, expected, rtol=1e-9, atol=1e-12)


# Identities of supervised fine-tuning


def expected_loss(routine, expert):
    """L_SFT of every sequence with the expert's probability, and the expert's entropy."""
    rows = routine.policy.enumerate_support()
    weights = expert.log_prob(rows).exp().detach()
    losses = torch.stack([routine.loss(row[None]) for row in rows])
    return (weights * losses).sum(), -(weights * weights.log()).sum()


def chain_kl(p, q, weights=None):
    """Σ_t w_t E_{s ∼ p} KL(p(·|s)‖q(·|s)) by enumeration."""
    rows = p.enumerate_support()
    probability = p.log_prob(rows).exp()
    gaps = p.token_log_probs(rows) - q.token_log_probs(rows)
    return (probability[:, None] * gaps * (1.0 if weights is None else weights)).sum()


def prefix_kl(p, q, length):
    """KL between the laws of the first ``length`` tokens; ended rows stay where they are."""
    rows = p.enumerate_support()
    prefixes, index = torch.unique(rows[:, :length], dim=0, return_inverse=True)
    masses = []
    for law in (p, q):
        mass = torch.zeros(len(prefixes), dtype=torch.float64)
        masses.append(mass.index_add(0, index, law.log_prob(rows).detach().exp()))
    return (masses[0] * (masses[0] / masses[1]).log()).sum()


def test_loss_less_the_entropy_is_the_forward_kl():
    expert, policy = random_chain(3), random_chain(4)
    routine = SupervisedFineTuning(policy, torch.optim.SGD(policy.network.parameters(), lr=1.0))
    loss, entropy = expected_loss(routine, expert)
    rows = policy.enumerate_support()
    kl = between_logits("forward_kl", expert.log_prob(rows), policy.log_prob(rows))
    assert (loss - entropy).item() == pytest.approx(kl.item(), abs=1e-12)
    assert chain_kl(expert, policy).item() == pytest.approx(kl.item(), abs=1e-12)
    found = torch.autograd.grad(loss, policy.network.logits, retain_graph=True)[0]
    expected = torch.autograd.grad(kl, policy.network.logits)[0]
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-13)


def test_reverse_kl_is_a_sum_over_the_students_states():
    expert, policy = random_chain(3), random_chain(4)
    rows = policy.enumerate_support()
    kl = between_logits("reverse_kl", expert.log_prob(rows), policy.log_prob(rows))
    assert chain_kl(policy, expert).item() == pytest.approx(kl.item(), abs=1e-12)


@pytest.mark.parametrize("length", [3, 4])
def test_occupancies_are_matched_by_position_weights(length):
    """KL(ρ̄^E‖ρ̄^π) = Σ_t (T − t)/T E KL(π_E‖π), and the weighted loss is that up to a constant."""
    expert, policy = random_chain(5, max_length=length), random_chain(6, max_length=length)
    weights = position_weights(length)
    occupancy = sum(prefix_kl(expert, policy, k) for k in range(1, length + 1)) / length
    weighted = chain_kl(expert, policy, weights)
    assert weighted.item() == pytest.approx(occupancy.item(), abs=1e-12)

    parameters = policy.network.parameters()
    routine = SupervisedFineTuning(policy, torch.optim.SGD(parameters, lr=1.0), weights="occupancy")
    loss, _ = expected_loss(routine, expert)
    constant = -chain_entropy(expert, weights)
    assert (loss + constant).item() == pytest.approx(occupancy.item(), abs=1e-12)


def chain_entropy(p, weights):
    rows = p.enumerate_support()
    return -(p.log_prob(rows).exp()[:, None] * p.token_log_probs(rows) * weights).sum().detach()


def test_discounted_occupancies():
    """Weight of position t ∝ Σ_{k ≥ t} γ^k, against prefixes weighted γ^k."""
    expert, policy = random_chain(5), random_chain(6)
    discount = 0.6
    powers = torch.tensor([discount**k for k in range(3)], dtype=torch.float64)
    prefixes = torch.stack([prefix_kl(expert, policy, k + 1) for k in range(3)])
    expected = (powers * prefixes).sum() / powers.sum()
    weights = position_weights(3, discount=discount)
    assert chain_kl(expert, policy, weights).item() == pytest.approx(expected.item(), abs=1e-12)


def test_loss_sums_over_tokens_and_averages_over_sequences():
    """A mean over all tokens would count long demonstrations less."""
    policy = random_chain(0)
    routine = SupervisedFineTuning(policy, torch.optim.SGD(policy.network.parameters(), lr=1.0))
    rows = torch.tensor([[1, 0, 0], [1, 2, 1]])
    expected = -policy.log_prob(rows).mean()
    torch.testing.assert_close(routine.loss(rows), expected, rtol=0, atol=1e-14)
    token_mean = -policy.token_log_probs(rows).sum() / policy.mask(rows).sum()
    assert abs((token_mean - expected).item()) > 0.1


def test_a_memoryless_student_ends_at_the_marginals():
    """Independent positions: the forward-KL optimum is the product of the expert's marginals."""
    expert = random_chain(7)
    torch.manual_seed(0)
    demonstrations = expert.sample((50_000,))

    class Memoryless:
        logits = torch.nn.Parameter(torch.zeros(3, 3, dtype=torch.float64))

        def token_log_probs(self, tokens):
            return self.logits.log_softmax(-1)[torch.arange(3), tokens]

        def mask(self, tokens):
            return torch.ones_like(tokens, dtype=torch.bool)

    policy = Memoryless()
    routine = SupervisedFineTuning(policy, torch.optim.Adam([policy.logits], lr=0.1))
    train(routine, [demonstrations], num_steps=150, progress_bar=False)
    rows = expert.enumerate_support()
    probability = expert.log_prob(rows).exp()
    one_hot = torch.nn.functional.one_hot(rows, 3).double()
    marginals = (probability[:, None, None] * one_hot).sum(0)
    found = policy.logits.softmax(-1)
    assert ((found - marginals).detach().abs().max()).item() < 0.01


def test_two_modes_and_a_student_that_can_express_one():
    """p(00) = p(11) = (1 − ε)/2: supervised stays in the middle, reverse KL takes a mode.

    Golden values at ε = 0.05: |m| = 0.84774 by reverse KL, with mass 0.141 on the bad corners;
    below ε = 0.119203 only.
    """
    corners = torch.tensor([[0, 0], [0, 1], [1, 0], [1, 1]])
    for epsilon, expected in ((0.05, 0.84774), (0.15, 0.0)):
        p = torch.tensor([1 - epsilon, epsilon, epsilon, 1 - epsilon], dtype=torch.float64) / 2

        def law(field):
            log_bits = torch.nn.functional.logsigmoid(torch.stack([-field, field]))
            return log_bits[corners].sum(1)

        for name, target in (
            ("forward_kl", 0.0),
            ("jensen_shannon", 0.0),
            ("reverse_kl", expected),
        ):
            field = torch.tensor(0.4, dtype=torch.float64, requires_grad=True)
            optimizer = torch.optim.LBFGS([field], max_iter=100, tolerance_grad=1e-12)

            def closure(field=field, optimizer=optimizer, name=name, p=p):
                optimizer.zero_grad()
                value = between_logits(name, p.log(), law(field))
                value.backward()
                return value

            optimizer.step(closure)
            mean = math.tanh(abs(field.item()) / 2.0)
            assert mean == pytest.approx(target, abs=2e-3), (name, epsilon)
            if name == "reverse_kl" and epsilon == 0.05:
                assert law(field).exp()[1:3].sum().item() == pytest.approx(0.141, abs=1e-3)


# The loop


def test_adversarial_imitation_improves_on_its_warm_start():
    """A learnt critic over all outcomes: the divergence falls by half in a hundred steps."""
    expert, policy = random_chain(1), random_chain(2)
    torch.manual_seed(0)
    rows = policy.enumerate_support()
    index = {tuple(row): k for k, row in enumerate(rows.tolist())}
    table = torch.nn.Embedding(len(rows), 1).double()
    torch.nn.init.zeros_(table.weight)
    critic = RatioCritic(
        lambda tokens: table(torch.tensor([index[tuple(r)] for r in tokens.tolist()]))[:, 0],
        torch.optim.Adam(table.parameters(), lr=0.05),
        parameters=table,
    )
    optimizer = torch.optim.Adam(policy.network.parameters(), lr=0.03)
    routine = AdversarialImitation(
        policy, optimizer, critic, num_samples=500, num_critic_steps=2, num_critic_only=20
    )

    def divergence():
        value = between_logits("jensen_shannon", expert.log_prob(rows), policy.log_prob(rows))
        return value.item()

    before = divergence()
    demonstrations = [expert.sample((500,)) for _ in range(10)]
    result = train(routine, demonstrations, num_steps=20, progress_bar=False)
    assert divergence() == pytest.approx(before, abs=1e-12)
    result = train(routine, demonstrations, num_steps=120, progress_bar=False)
    assert divergence() < 0.5 * before
    assert result.history["implied_jensen_shannon"].shape == (120,)
    assert (result.history["saturated"] == 0.0).all()


def test_state_goes_on_where_it_was():
    def make():
        policy = random_chain(2)
        table = torch.nn.Linear(3, 1).double()
        torch.nn.init.zeros_(table.weight)
        critic = RatioCritic(
            lambda rows: table(rows.double())[:, 0],
            torch.optim.Adam(table.parameters(), lr=0.1),
            parameters=table,
        )
        optimizer = torch.optim.Adam(policy.network.parameters(), lr=0.1)
        return AdversarialImitation(policy, optimizer, critic, num_samples=30)

    torch.manual_seed(0)
    demonstrations = random_chain(1).sample((40,))
    one, other = make(), make()
    for _ in range(4):
        one.step(demonstrations)
    other.load_state_dict(one.state_dict())
    found = []
    for routine in (one, other):
        torch.manual_seed(1)
        for _ in range(3):
            metrics = routine.step(demonstrations)
        found.append({name: float(value) for name, value in metrics.items()})
    assert found[0] == found[1]
    torch.testing.assert_close(
        one.policy.network.logits, other.policy.network.logits, rtol=0, atol=0
    )
