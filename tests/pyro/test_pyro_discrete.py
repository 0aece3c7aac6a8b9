"""Guides with discrete sites, alone or among reparameterised ones, against enumeration."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.distributions import constraints
from pyro.infer import SVI, Trace_ELBO, config_enumerate
from pyro.optim import Adam
from pyro_steps import assert_same_mean, gradient_draws, leaves, step

from bayesdiv.pyro import objective

PRIOR = torch.tensor([0.2, 0.5, 0.3], dtype=torch.float64)
CENTRES = torch.tensor([-1.5, 0.0, 1.5], dtype=torch.float64)
OBSERVED = torch.tensor(0.8, dtype=torch.float64)
LOG_EVIDENCE = -2.0
GRID = torch.linspace(-9.0, 9.0, 3001, dtype=torch.float64)


@pytest.fixture(autouse=True)
def _float64():
    torch.set_default_dtype(torch.float64)


def model():
    choice = pyro.sample("choice", dist.Categorical(PRIOR))
    position = pyro.sample("position", dist.Normal(CENTRES[choice], 1.0))
    pyro.sample("x", dist.Normal(position, 0.8), obs=OBSERVED)


def log_joint(choice, position):
    log_p = PRIOR.log()[choice] + dist.Normal(CENTRES[choice], 1.0).log_prob(position)
    return log_p + dist.Normal(position, 0.8).log_prob(OBSERVED)


def parameters():
    return (
        pyro.param("logits", torch.tensor([0.1, -0.2, 0.3])),
        pyro.param("locations", torch.tensor([-0.5, 0.2, 0.9])),
        pyro.param("scale", torch.tensor(0.9), constraint=constraints.positive),
    )


def choice_first():
    logits, locations, scale = parameters()
    choice = pyro.sample("choice", dist.Categorical(logits=logits))
    pyro.sample("position", dist.Normal(locations[choice], scale))


def choice_first_density(choice, position):
    logits, locations, scale = parameters()
    log_q = logits.log_softmax(-1)[choice]
    return log_q + dist.Normal(locations[choice], scale).log_prob(position)


def choice_last():
    logits, locations, scale = parameters()
    position = pyro.sample("position", dist.Normal(locations[0], scale))
    raw = logits + locations * position[..., None]
    pyro.sample("choice", dist.Categorical(logits=raw))


def choice_last_density(choice, position):
    logits, locations, scale = parameters()
    raw = logits + locations * position[:, None]
    log_q = dist.Normal(locations[0], scale).log_prob(position)
    return log_q + raw.log_softmax(-1)[:, choice]


GUIDES = {
    "choice_first": (choice_first, choice_first_density),
    "choice_last": (choice_last, choice_last_density),
}


def exact_gradient(divergence, density):
    total = 0.0
    for choice in range(3):
        log_q = density(choice, GRID)
        log_ratio = log_joint(choice, GRID) - log_q - LOG_EVIDENCE
        if divergence.needs_normalizer:
            value = divergence.generator(log_ratio)
        else:  # The objective of reverse KL is minus the ELBO.
            value = -log_ratio
        total = total + (log_q.exp() * value).sum() * (GRID[1] - GRID[0])
    values = list(leaves().values())
    return dict(zip(leaves(), torch.autograd.grad(total, values), strict=True))


@pytest.mark.parametrize("gradient", ["auto", "score"])
@pytest.mark.parametrize(
    "name",
    ["reverse_kl", "forward_kl", "jensen_shannon", "squared_hellinger", "total_variation"],
)
@pytest.mark.parametrize("guide_name", GUIDES)
def test_gradient_is_that_of_enumeration(guide_name, name, gradient):
    guide, density = GUIDES[guide_name]
    guide()
    loss = objective(name, num_particles=1000, gradient=gradient, normalizer=LOG_EVIDENCE)
    expected = exact_gradient(loss.settings.at(0), density)
    draws = gradient_draws(loss, model, guide, count=30)
    for key, exact in expected.items():
        mean, error = draws[key].mean(0), draws[key].std(0) / 30**0.5
        assert bool(((mean - exact).abs() < 5.0 * error + 1e-10).all()), (key, mean, exact, error)
        assert bool((error < 0.2 * exact.abs().max() + 1e-3).all())


@pytest.mark.parametrize("guide_name", GUIDES)
def test_bounds_have_one_gradient_by_two_estimators(guide_name):
    guide, _ = GUIDES[guide_name]
    guide()
    # Independent copies in a plate: as many draws of the gradient in one step.
    copies = pyro.plate("copies", 400, dim=-1)

    def draws(gradient):
        loss = objective(
            "renyi", order=0.5, num_particles=3, gradient=gradient, max_plate_nesting=1
        )
        return gradient_draws(loss, copies(model), copies(guide), count=15)

    assert_same_mean(draws("auto"), draws("score"))


def test_mean_gradient_of_reverse_kl_is_that_of_trace_elbo():
    choice_first()
    arguments = {"num_particles": 8, "vectorize_particles": True, "max_plate_nesting": 0}
    ours = gradient_draws(objective("reverse_kl", **arguments), model, choice_first, count=250)
    theirs = gradient_draws(Trace_ELBO(**arguments), model, choice_first, count=250)
    assert_same_mean(ours, theirs)
    # The leave-one-out baseline is what ours has over the host's.
    assert ours["logits"].var(0).sum() < theirs["logits"].var(0).sum()


def test_a_plate_of_discrete_sites_learns_the_exact_posterior():
    probability = torch.tensor([0.2, 0.5, 0.8])
    data = torch.tensor([1.0, 1.0, 0.0])

    def target():
        with pyro.plate("rows", 3, dim=-1):
            flag = pyro.sample("flag", dist.Bernoulli(probability))
            pyro.sample("x", dist.Bernoulli(0.2 + 0.6 * flag), obs=data)

    def guide():
        logit = pyro.param("logit", torch.zeros(3))
        with pyro.plate("rows", 3, dim=-1):
            pyro.sample("flag", dist.Bernoulli(logits=logit))

    one = probability * dist.Bernoulli(torch.tensor(0.8)).log_prob(data).exp()
    zero = (1.0 - probability) * dist.Bernoulli(torch.tensor(0.2)).log_prob(data).exp()
    for name in ("reverse_kl", "jensen_shannon", "total_variation"):
        pyro.clear_param_store()
        torch.manual_seed(0)
        svi = SVI(target, guide, Adam({"lr": 0.1}), loss=objective(name, num_particles=64))
        tail = []
        for number in range(150):
            svi.step()
            if number >= 100:
                tail.append(pyro.param("logit").detach().sigmoid())
        tolerance = 0.08 if name == "total_variation" else 0.03
        torch.testing.assert_close(
            torch.stack(tail).mean(0), one / (one + zero), atol=tolerance, rtol=0.0
        )


@pytest.mark.parametrize("gradient", ["path", "reparam"])
def test_explicit_estimators_name_the_site_without_reparameterisation(gradient):
    message = f"guide site 'choice' .Categorical.*gradient='{gradient}'.*gradient='auto'"
    with pytest.raises(ValueError, match=message):
        step(objective("forward_kl", gradient=gradient), model, choice_first)


@pytest.mark.parametrize("name", ["reverse_kl", "jensen_shannon"])
def test_enumeration_is_refused_by_name(name):
    with pytest.raises(ValueError, match=r"'choice'.*enumeration.*TraceEnum_ELBO"):
        step(objective(name), model, config_enumerate(choice_first))


def test_tail_adaptive_has_no_score_terms():
    with pytest.raises(ValueError, match="TailAdaptive is defined by its path gradient"):
        step(objective("tail_adaptive"), model, choice_first)


def test_one_particle_of_a_nonlinear_objective_lacks_a_baseline():
    with pytest.raises(ValueError, match="at least 2 for the leave-one-out baseline"):
        step(objective("forward_kl", num_particles=1), model, choice_first)
