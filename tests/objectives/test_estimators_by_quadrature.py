"""Every objective and gradient estimator against integrals: values and gradients of θ.

θ is copied to each independent plate, so that a plate's gradient is one draw of the estimator and
standard errors are measured rather than assumed.
"""

import functools
import itertools
import math

import pytest
import torch
from helpers import assert_within_standard_errors
from torch.distributions import Bernoulli, Categorical, MixtureSameFamily, Normal

from bayesdiv.divergences import FDivergence, list_divergences
from bayesdiv.objectives import estimate, get_objective

LOG_Z = 0.7
THETA = torch.tensor([0.2, math.log(1.1)], dtype=torch.float64)
RULES = {name: get_objective(name) for name in list_divergences("f")}
RULES |= {
    "alpha_1.5": get_objective("alpha", order=1.5),
    "reverse_kl_scaled": 0.3 * get_objective("reverse_kl"),
    "custom": FDivergence.from_generator(lambda u: (u - 1.0) ** 2 / (u + 1.0), name="triangular"),
    "with_total_variation": get_objective("forward_kl") + get_objective("total_variation"),
}
BOUNDS = {
    "iwae": get_objective("iwae"),
    "renyi": get_objective("renyi", order=0.4),
    "renyi_above_one": get_objective("renyi", order=1.5),
}
TARGETS = {
    # Tails of the guide's order: the second moments of every estimator exist.
    "gaussian": Normal(torch.tensor(0.6, dtype=torch.float64), 1.05),
    "skewed": MixtureSameFamily(
        Categorical(torch.tensor([0.7, 0.3], dtype=torch.float64)),
        Normal(torch.tensor([-0.4, 1.2], dtype=torch.float64), torch.tensor([0.8, 1.1])),
    ),
}


def existing(rules, gradients):
    """Pairs of a rule's name and an estimator that it has."""
    return [
        (name, gradient)
        for name, rule in rules.items()
        for gradient in gradients
        if gradient != "path" or rule.has_path_gradient
    ]


def guide(theta):
    return Normal(theta[..., 0], theta[..., 1].exp())


def copies(count, theta=THETA):
    return theta.expand(count, theta.shape[0]).clone().requires_grad_()


def generator(seed):
    return torch.Generator().manual_seed(seed)


def normal_noise(*shape, seed=1):
    return torch.randn(*shape, dtype=torch.float64, generator=generator(seed))


def differentiable_parts(gradient, log_p, theta, noise):
    """``(log_weight, log_q)`` with the graph that ``gradient`` asks for."""
    z = guide(theta).mean + guide(theta).stddev * noise
    if gradient == "score":
        z = z.detach()
        return log_p(z) - guide(theta.detach()).log_prob(z), guide(theta).log_prob(z)
    inside = theta.detach() if gradient == "path" else theta
    return log_p(z) - guide(inside).log_prob(z), None


@functools.cache
def exact_divergence(rule_name, target_name):
    """D_f(p‖q) and its gradient in θ, by the trapezoidal rule."""
    z = torch.linspace(-15.0, 16.0, 40_001, dtype=torch.float64)
    theta = THETA.clone().requires_grad_()
    log_q = guide(theta).log_prob(z)
    log_ratio = TARGETS[target_name].log_prob(z) - log_q
    value = torch.trapezoid(log_q.exp() * RULES[rule_name].generator(log_ratio), z)
    return value.item(), torch.autograd.grad(value, theta)[0]


@pytest.mark.parametrize("target_name", TARGETS)
@pytest.mark.parametrize(("rule_name", "gradient"), existing(RULES, ["path", "reparam", "score"]))
def test_value_and_gradient_with_a_known_normalizer(rule_name, target_name, gradient):
    rule = RULES[rule_name]
    count = 20_000
    theta = copies(count)
    log_weight, log_q = differentiable_parts(
        gradient,
        lambda z: TARGETS[target_name].log_prob(z) + LOG_Z,
        theta,
        normal_noise(count),
    )
    found = estimate(rule, log_weight, gradient=gradient, log_q=log_q, log_normalizer=LOG_Z)
    value, slope = exact_divergence(rule_name, target_name)
    rows = torch.autograd.grad(found.loss, theta)[0] * count
    assert_within_standard_errors(rows, slope)

    if rule.needs_normalizer:
        terms = rule.generator(log_weight.detach() - LOG_Z)
        expected = value
    else:
        # Reverse KL reports minus the ELBO, times its factor.
        terms = -rule.pseudo_reward(log_weight.detach())
        expected = value - rule.second_derivative_at_one * LOG_Z
    torch.testing.assert_close(found.value, terms.mean())
    assert_within_standard_errors(terms, expected)


def log_mean(power, log_weight, axis):
    count = log_weight.shape[axis]
    return (torch.logsumexp(power * log_weight, axis) - math.log(count)) / power


@pytest.mark.parametrize("gradient", ["path", "reparam", "score"])
@pytest.mark.parametrize("rule_name", BOUNDS)
def test_bounds_of_two_particles(rule_name, gradient):
    rule = BOUNDS[rule_name]
    log_p = lambda z: TARGETS["skewed"].log_prob(z) + LOG_Z  # noqa: E731
    z = torch.linspace(-8.0, 9.0, 701, dtype=torch.float64)
    theta = THETA.clone().requires_grad_()
    log_q = guide(theta).log_prob(z)
    log_weight = log_p(z) - log_q
    pairs = torch.stack(torch.broadcast_tensors(log_weight[:, None], log_weight[None]))
    density = (log_q[:, None] + log_q[None]).exp()
    bound = torch.trapezoid(torch.trapezoid(density * log_mean(1.0 - rule.order, pairs, 0), z), z)
    slope = torch.autograd.grad(-bound, theta)[0]

    count = 20_000
    theta = copies(count)
    log_weight, log_q = differentiable_parts(gradient, log_p, theta, normal_noise(2, count))
    found = estimate(rule, log_weight, gradient=gradient, log_q=log_q)
    assert_within_standard_errors(torch.autograd.grad(found.loss, theta)[0], slope)
    values = -log_mean(1.0 - rule.order, log_weight.detach(), 0)
    torch.testing.assert_close(found.value, values.sum())
    assert_within_standard_errors(values, -bound.detach())


@pytest.mark.parametrize("num_particles", [2, 3])
@pytest.mark.parametrize("rule_name", [*RULES, *BOUNDS])
def test_score_gradient_of_a_categorical_is_exact(rule_name, num_particles):
    """All tuples of particles are enumerated: the baselines must not bias anything."""
    rule = (RULES | BOUNDS)[rule_name]
    log_p = torch.log(torch.tensor([0.1, 0.35, 0.05, 0.5], dtype=torch.float64)) + LOG_Z
    logits = torch.tensor([0.5, -0.2, 0.1, 0.9], dtype=torch.float64)
    tuples = torch.tensor(list(itertools.product(range(4), repeat=num_particles))).T

    theta = copies(tuples.shape[1], logits)
    log_q = torch.log_softmax(theta, -1).gather(1, tuples.T).T
    log_weight = log_p[tuples] - log_q.detach()
    found = estimate(rule, log_weight, gradient="score", log_q=log_q, log_normalizer=LOG_Z)
    rows = torch.autograd.grad(found.loss, theta)[0]
    probability = log_q.detach().sum(0).exp()

    theta = logits.clone().requires_grad_()
    log_q = torch.log_softmax(theta, -1)
    if rule_name in BOUNDS:
        values = -log_mean(1.0 - rule.order, (log_p - log_q)[tuples], 0)
        exact = (log_q[tuples].sum(0).exp() * values).sum()
    else:
        exact = (log_q.exp() * rule.generator(log_p - LOG_Z - log_q)).sum()
    torch.testing.assert_close(
        probability @ rows, torch.autograd.grad(exact, theta)[0], rtol=1e-10, atol=1e-12
    )


MIXED_THETA = torch.tensor([0.2, math.log(1.1), 0.3, -0.5], dtype=torch.float64)


def mixed_log_p(z, s):
    """Normal z, and s given z."""
    return (
        Normal(0.5, 1.05).log_prob(z)
        + Bernoulli(logits=0.4 + 0.8 * z, validate_args=False).log_prob(s)
        + LOG_Z
    )


def discrete_log_q(theta, z, s):
    """The guide's s given z."""
    logits = theta[..., 2] + theta[..., 3] * z
    return Bernoulli(logits=logits, validate_args=False).log_prob(s)


@pytest.mark.parametrize(("rule_name", "gradient"), existing(RULES | BOUNDS, ["path", "reparam"]))
def test_mixed_guide_of_a_normal_and_a_bernoulli_given_it(rule_name, gradient):
    rule = (RULES | BOUNDS)[rule_name]
    slope = exact_mixed_gradient(rule_name)

    count = 20_000
    theta = copies(count, MIXED_THETA)
    z = guide(theta).mean + guide(theta).stddev * normal_noise(2, count)
    uniform = torch.rand(2, count, dtype=torch.float64, generator=generator(2))
    s = (uniform < torch.sigmoid(theta[:, 2] + theta[:, 3] * z)).double()
    inside = theta.detach() if gradient == "path" else theta
    log_weight = mixed_log_p(z, s) - guide(inside).log_prob(z) - discrete_log_q(inside, z, s)
    found = estimate(
        rule,
        log_weight,
        gradient=gradient,
        log_q=discrete_log_q(theta, z, s),
        log_normalizer=LOG_Z,
    )
    assert_within_standard_errors(torch.autograd.grad(found.loss, theta)[0], slope)


def exact_mixed_gradient(rule_name):
    rule = (RULES | BOUNDS)[rule_name]
    theta = MIXED_THETA.clone().requires_grad_()
    z = torch.linspace(-8.0, 9.0, 401, dtype=torch.float64)
    weight = torch.full_like(z, z[1] - z[0])
    s = torch.tensor([[0.0], [1.0]], dtype=torch.float64)
    log_q = (guide(theta).log_prob(z) + discrete_log_q(theta, z, s)).flatten()
    log_weight = mixed_log_p(z, s).flatten() - log_q
    mass = log_q.exp() * weight.repeat(2)
    if rule_name in BOUNDS:
        pairs = torch.stack(torch.broadcast_tensors(log_weight[:, None], log_weight[None]))
        value = -(mass[:, None] * mass * log_mean(1.0 - rule.order, pairs, 0)).sum()
    else:
        value = (mass * rule.generator(log_weight - LOG_Z)).sum()
    return torch.autograd.grad(value, theta)[0]


@pytest.mark.parametrize("rule_name", ["forward_kl", "jensen_shannon", "squared_hellinger"])
def test_self_normalized_gradient_is_consistent(rule_name):
    """One plate of many particles: the bias of the normaliser is far below the standard error."""
    rule = RULES[rule_name]
    groups, count = 40, 5_000
    theta = copies(groups)
    log_weight, _ = differentiable_parts(
        "path", lambda z: TARGETS["skewed"].log_prob(z) + LOG_Z, theta, normal_noise(count, groups)
    )
    found = estimate(rule, log_weight)
    _, slope = exact_divergence(rule_name, "skewed")
    assert_within_standard_errors(torch.autograd.grad(found.loss, theta)[0], slope)
