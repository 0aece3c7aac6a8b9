"""A pool of codes as a prior: its draws, its shapes, and what it says of its missing density."""

import re

import pyro
import pyro.distributions as dist
import pytest
import torch

from bayesdiv.divergences import get_divergence, list_divergences
from bayesdiv.inference.adversarial import AdversarialInference
from bayesdiv.pyro import EmpiricalPrior, objective


def pool(count=6, dim=2):
    return torch.arange(float(count * dim)).reshape(count, dim)


def test_draws_are_rows_equally_often():
    prior, count = EmpiricalPrior(pool()), 6000
    drawn = prior.sample((count,))
    rows, frequencies = drawn.unique(dim=0, return_counts=True)
    assert torch.equal(rows, pool())
    error = (count * (1 / 6) * (5 / 6)) ** 0.5
    assert float((frequencies - count / 6).abs().max()) < 5.0 * error


def test_encoder_is_applied_to_the_drawn_rows_only():
    seen = []

    def encoder(rows):
        seen.append(len(rows))
        return rows[:, :1] + 100.0

    prior = EmpiricalPrior(pool(), encoder)
    assert prior.event_shape == (1,)
    drawn = prior.sample((3, 4))
    assert seen == [2, 12]
    assert drawn.shape == (3, 4, 1)
    assert set(drawn.flatten().tolist()) <= set((pool()[:, 0] + 100.0).tolist())


def test_pool_may_be_a_view():
    signal = torch.arange(1000.0)
    prior = EmpiricalPrior(signal.unfold(0, 200, 2))
    assert prior.pool.data_ptr() == signal.data_ptr()
    drawn = prior.sample((5,))
    assert drawn.shape == (5, 200)
    assert torch.equal(drawn - drawn[:, :1], torch.arange(200.0).expand(5, 200))


def test_shapes_in_plates():
    scalar = EmpiricalPrior(torch.arange(5.0))
    assert (scalar.batch_shape, scalar.event_shape) == ((), ())
    wide = EmpiricalPrior(pool()).expand([3, 1])
    assert wide.sample((7,)).shape == wide.shape((7,)) == (7, 3, 1, 2)
    with pyro.plate("outer", 4, dim=-2), pyro.plate("inner", 3, dim=-1):
        z = pyro.sample("z", EmpiricalPrior(pool()))
    assert z.shape == (4, 3, 2)
    assert len(z.reshape(-1, 2).unique(dim=0)) > 1


def test_draws_are_constants():
    encoder = torch.nn.Linear(2, 2)
    codes = pool().requires_grad_()
    prior = EmpiricalPrior(codes, encoder)
    assert not prior.has_rsample
    assert not prior.sample((3,)).requires_grad
    with pytest.raises(NotImplementedError, match="cannot be differentiated; use sample"):
        prior.rsample()


def names_in(message):
    return {name for name in list_divergences() if re.search(rf"\b{name}\b", message)}


def program():
    encoder = torch.nn.Linear(2, 2)

    def model(x):
        with pyro.plate("rows", len(x)):
            z = pyro.sample("z", EmpiricalPrior(pool()))
            pyro.sample("x", dist.Normal(z, 1.0).to_event(1), obs=x)

    def guide(x):
        pyro.module("encoder", encoder)
        with pyro.plate("rows", len(x)):
            pyro.sample("z", dist.Delta(encoder(x), event_dim=1))

    return model, guide


def test_missing_density_names_objectives_that_work():
    with pytest.raises(NotImplementedError, match="samples but no density") as error:
        EmpiricalPrior(pool()).log_prob(pool())
    found, x = names_in(str(error.value)), torch.randn(8, 2)
    assert found == set(list_divergences()) - {"total_variation"}
    model, guide = program()
    for name in sorted(found):
        pyro.clear_param_store()
        metrics = AdversarialInference(model, guide, divergence=name).step(x)
        assert all(bool(value.isfinite()) for value in metrics.values())
    for name in list_divergences("two_sample"):
        pyro.clear_param_store()
        loss = objective(get_divergence(name), space="codes")
        svi = pyro.infer.SVI(model, guide, pyro.optim.Adam({}), loss=loss)
        assert svi.step(x) > 0.0


def test_other_objectives_pass_the_message_on():
    model, guide = program()
    svi = pyro.infer.SVI(model, guide, pyro.optim.Adam({}), loss=objective("reverse_kl"))
    with pytest.raises(NotImplementedError, match="AdversarialInference"):
        svi.step(torch.randn(8, 2))


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (([1.0],), TypeError, "pool must be a floating tensor, got list"),
        (
            (torch.arange(3),),
            TypeError,
            "pool must be a floating tensor, got a tensor of torch.int",
        ),
        ((torch.zeros(0, 2),), ValueError, r"at least one row, got \(0, 2\)"),
        ((torch.tensor(1.0),), ValueError, r"shape \(n, ...\) .* got \(\)"),
        ((torch.full((3, 1), torch.nan),), ValueError, "finite codes, got NaN or infinity"),
        ((torch.zeros(3, 1), 1.0), TypeError, "encoder must be callable or None, got float"),
        ((torch.zeros(3, 1), lambda rows: rows.sum()), ValueError, "one row of codes a row"),
        ((torch.zeros(3, 2), torch.nn.BatchNorm1d(2)), ValueError, r"call encoder.eval\(\) first"),
    ],
    ids=["list", "whole", "empty", "scalar", "nan", "encoder", "rows", "training"],
)
def test_bad_input(arguments, error, message):
    with pytest.raises(error, match=message):
        EmpiricalPrior(*arguments)


def test_encoder_in_evaluation_mode_is_taken():
    assert EmpiricalPrior(pool(), torch.nn.BatchNorm1d(2).eval()).sample((2,)).shape == (2, 2)
