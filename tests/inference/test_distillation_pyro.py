"""Score distillation of a Pyro posterior is f-divergence inference with path gradients."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import SVI
from pyro.infer.autoguide import AutoDiagonalNormal, AutoMultivariateNormal, AutoNormal

from bayesdiv.inference.score_distillation_pyro import (
    GuideStudent,
    PosteriorTeacher,
    distill_posterior,
)
from bayesdiv.pyro import objective
from bayesdiv.training import train

DATA = torch.tensor([[1.1, 0.7, 1.6], [-0.4, 0.1, -0.9], [2.2, 1.9, 2.8], [0.3, 0.9, 0.2]])


def hierarchical(data):
    """Group means around a common one, with a scale that is learnt."""
    centre = pyro.sample("centre", dist.Normal(0.0, 2.0))
    scale = pyro.sample("scale", dist.LogNormal(0.0, 0.5))
    with pyro.plate("groups", len(data), dim=-2):
        mean = pyro.sample("mean", dist.Normal(centre, scale))
        with pyro.plate("rows", data.shape[1], dim=-1):
            pyro.sample("data", dist.Normal(mean, 0.7), obs=data)


def conjugate():
    z = pyro.sample("z", dist.Normal(0.0, 1.0))
    pyro.sample("x", dist.Normal(z, 1.0), obs=torch.tensor(1.0))


def test_teacher_is_the_posterior_up_to_the_evidence():
    teacher = PosteriorTeacher(conjugate)
    z = torch.linspace(-1.0, 2.0, 7)[:, None]
    score, log_prob = teacher.score_and_log_prob(z)
    exact = dist.Normal(0.5, 0.5**0.5).log_prob(z[:, 0])
    evidence = dist.Normal(0.0, 2.0**0.5).log_prob(torch.tensor(1.0))
    torch.testing.assert_close(log_prob, exact + evidence)
    torch.testing.assert_close(score, -(z - 0.5) / 0.5)
    torch.testing.assert_close(teacher.log_prob(z[:1]), log_prob[:1])


def test_order_and_jacobians_are_those_of_the_guides():
    teacher = PosteriorTeacher(hierarchical, DATA)
    guide = AutoDiagonalNormal(hierarchical)
    guide(DATA)
    z = torch.randn(5, guide.latent_dim)
    rows = []
    for row in z:
        values = {site["name"]: value for site, value in guide._unpack_latent(row)}
        sites = pyro.poutine.trace(hierarchical).get_trace(DATA).nodes
        inverse = {
            name: torch.distributions.biject_to(sites[name]["fn"].support)(value)
            for name, value in values.items()
        }
        trace = pyro.poutine.trace(pyro.poutine.condition(hierarchical, inverse)).get_trace(DATA)
        # The scale is positive: dθ/dz = θ.
        rows.append(trace.log_prob_sum() + inverse["scale"].log().sum())
    torch.testing.assert_close(teacher.log_prob(z), torch.stack(rows), rtol=1e-4, atol=1e-4)


def fresh_guide(kind=AutoDiagonalNormal):
    pyro.clear_param_store()
    torch.manual_seed(2)
    guide = kind(hierarchical, init_scale=0.3)
    guide(DATA)
    return guide


DIVERGENCES = ["reverse_kl", "jensen_shannon", "softened_reverse_kl", "squared_hellinger"]


@pytest.mark.parametrize("name", [*DIVERGENCES, "forward_kl"])
def test_gradient_is_that_of_the_objective(name):
    """For the same draws, up to rounding: a log-weight's path gradient, self-normalised."""
    guide = fresh_guide()
    loss = objective(name, num_particles=64, gradient="path", max_plate_nesting=2)
    loss.loss(hierarchical, guide, DATA)  # The first look at a guide draws more.
    torch.manual_seed(4)
    loss.loss_and_grads(hierarchical, guide, DATA)
    expected = [each.grad.clone() for each in guide.parameters()]
    guide = fresh_guide()
    routine = distill_posterior(hierarchical, guide, DATA, divergence=name, num_particles=64)
    torch.manual_seed(4)
    routine.step()
    for parameter, gradient in zip(guide.parameters(), expected, strict=True):
        torch.testing.assert_close(parameter.grad, gradient, rtol=2e-3, atol=2e-4)


@pytest.mark.parametrize("name", ["reverse_kl", "jensen_shannon"])
@pytest.mark.parametrize("kind", [AutoDiagonalNormal, AutoMultivariateNormal])
def test_same_posterior_in_as_many_steps(name, kind):
    """From the same start, with draws of their own: ends apart by Monte Carlo error alone."""
    steps, particles, rate = 250, 32, 0.02
    guide = fresh_guide(kind)
    torch.manual_seed(5)
    routine = distill_posterior(
        hierarchical, guide, DATA, divergence=name, num_particles=particles, learning_rate=rate
    )
    train(routine, None, num_steps=steps, progress_bar=False)
    found = guide.get_posterior()
    other = fresh_guide(kind)
    torch.manual_seed(6)
    svi = SVI(
        hierarchical,
        other,
        pyro.optim.Adam({"lr": rate}),
        objective(name, num_particles=particles, gradient="path"),
    )
    for _ in range(steps):
        svi.step(DATA)
    expected = other.get_posterior()
    spread = expected.variance.detach().sqrt()
    assert float(((found.mean - expected.mean).detach() / spread).abs().max()) < 0.15
    torch.testing.assert_close(found.variance.detach().sqrt(), spread, rtol=0.15, atol=0.0)


def test_run_resumes_to_the_same_numbers(tmp_path):
    def run(num_steps, path):
        guide = fresh_guide()
        routine = distill_posterior(hierarchical, guide, DATA, divergence="jeffreys")
        settings = {"checkpoint": path, "checkpoint_every": 3, "progress_bar": False}
        train(routine, None, num_steps=num_steps, **settings)
        return [each.detach().clone() for each in guide.parameters()]

    whole = run(7, tmp_path / "whole")
    run(3, tmp_path / "cut")
    for left, right in zip(whole, run(7, tmp_path / "cut"), strict=True):
        assert torch.equal(left, right)


def test_guide_without_a_joint_density_is_refused():
    with pytest.raises(TypeError, match="guide must be an AutoContinuous.*got AutoNormal"):
        GuideStudent(AutoNormal(hierarchical), DATA)


def test_discrete_model_is_refused():
    def model():
        pyro.sample("k", dist.Bernoulli(0.5))

    with pytest.raises(ValueError, match="site 'k' is discrete"):
        PosteriorTeacher(model)
