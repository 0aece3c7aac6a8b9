"""Minibatch potentials of Pyro models: the host's own, exact means over minibatches, fall-backs."""

from itertools import combinations, product

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer.autoguide.initialization import init_to_sample, init_to_uniform, init_to_value
from pyro.infer.mcmc.util import initialize_model
from pyro.nn import PyroModule, PyroSample
from pyro.ops.integrator import potential_grad

from bayesdiv.pyro._batched_potential import BatchedPotential

X = torch.randn(6, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
Y = torch.randn(6, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


@pytest.fixture(autouse=True)
def double_precision():
    torch.set_default_dtype(torch.float64)


def hierarchical(batch=None):
    """Positive scales and a plate inside the latent structure."""
    spread = pyro.sample("spread", dist.HalfNormal(2.0))
    with pyro.plate("groups", 3):
        effect = pyro.sample("effect", dist.Normal(0.0, spread))
    noise = pyro.sample("noise", dist.LogNormal(0.0, 1.0))
    with pyro.plate("data", len(Y), subsample_size=batch) as i:
        pyro.sample("y", dist.Normal(effect[i % 3], noise), obs=Y[i])


def constrained():
    """Supports that change the length of a site, events, masks, scales, factors."""
    share = pyro.sample("share", dist.Dirichlet(torch.ones(3)))
    bounded = pyro.sample("bounded", dist.Uniform(-1.0, torch.tensor([2.0, 3.0])).to_event(1))
    with poutine.scale(scale=0.3):
        pyro.sample("weight", dist.Normal(0.0, 1.0).expand([2, 2]).to_event(2))
    pyro.deterministic("total", bounded.sum())
    with poutine.mask(mask=Y[:3] > 0):
        with pyro.plate("three", 3):
            pyro.sample("y", dist.StudentT(4.0, share, 1.0), obs=Y[:3])
    with poutine.scale(scale=torch.tensor([0.5, 1.0, 2.0])), pyro.plate("scaled", 3):
        pyro.sample("z", dist.Normal(share, 1.0), obs=Y[:3])
    with poutine.mask(mask=False):
        pyro.sample("unused", dist.Normal(bounded.sum(), 1.0), obs=Y[0])
    pyro.factor("penalty", -(bounded**2).sum())


def crossed(rows=None, columns=None):
    """Two plates that cross, one prior inside neither."""
    weight = pyro.sample("weight", dist.Normal(0.0, 1.0).expand([2]).to_event(1))
    scale = pyro.sample("scale", dist.Gamma(2.0, 1.0))
    plate_rows = pyro.plate("rows", 4, subsample_size=rows, dim=-2)
    plate_columns = pyro.plate("columns", 3, subsample_size=columns, dim=-1)
    with plate_rows as i, plate_columns as j:
        table = X[:4, :1] @ torch.ones(1, 3) + Y[:3]
        mean = (X[i] @ weight)[..., None] + 0.0 * j
        pyro.sample("y", dist.Normal(mean, scale), obs=table[i][:, j])


def branching():
    """A Python branch on a value, which torch.func cannot batch."""
    weight = pyro.sample("weight", dist.Normal(0.0, 1.0))
    center = 1.0 if weight > 0 else -1.0
    pyro.sample("y", dist.Normal(weight * center, 1.0), obs=Y[0])


def make(model, *args, jit_compile=False, strategy=init_to_uniform):
    return BatchedPotential(model, args, {}, init_strategy=strategy, jit_compile=jit_compile)


@pytest.mark.parametrize("jit_compile", [False, True], ids=["mapped", "recorded"])
@pytest.mark.parametrize("model", [hierarchical, constrained, crossed])
def test_potential_and_gradient_are_the_hosts(model, jit_compile):
    potential = make(model, jit_compile=jit_compile)
    _, host, transforms, _ = initialize_model(model)
    position = potential.initial_positions(3, seed=0)
    for shift in (0.0, 0.3):
        values, gradients = potential(position + shift, 0)
        for row, value, gradient in zip(position + shift, values, gradients, strict=True):
            params = potential.layout.unpack(row)
            expected, at = potential_grad(host, params)
            assert set(params) == set(transforms)
            torch.testing.assert_close(value, at)
            torch.testing.assert_close(gradient, potential.layout.pack(expected))


@pytest.mark.parametrize("model", [hierarchical, constrained])
def test_rows_alone_and_together_agree(model):
    potential = make(model)
    position = potential.initial_positions(4, seed=1)
    values, gradients = potential(position, 0)
    alone = potential.one_by_one(position)
    torch.testing.assert_close(values, alone[0])
    torch.testing.assert_close(gradients, alone[1])


def test_mean_over_all_minibatches_is_the_full_data():
    full, part = make(hierarchical), make(hierarchical, 2)
    position = full.initial_positions(1, seed=0)
    batches = torch.tensor(list(combinations(range(6), 2)))
    found = part.one_by_one(position.expand(len(batches), -1), batches)
    value, gradient = full(position, 0)
    torch.testing.assert_close(found[0].mean(), value[0])
    torch.testing.assert_close(found[1].mean(0), gradient[0])
    assert found[1].std(0).max() > 0.1


def test_mean_over_crossed_minibatches_is_the_full_data():
    full, part = make(crossed), make(crossed, 2, 1)
    position = full.initial_positions(1, seed=0)
    pairs = list(product(combinations(range(4), 2), combinations(range(3), 1)))
    rows, columns = (torch.tensor(part) for part in zip(*pairs, strict=True))
    assert list(part.plates) == ["rows", "columns"]
    found = part.one_by_one(position.expand(len(pairs), -1), rows, columns)
    value, gradient = full(position, 0)
    torch.testing.assert_close(found[0].mean(), value[0])
    torch.testing.assert_close(found[1].mean(0), gradient[0])


@pytest.mark.parametrize("jit_compile", [False, True], ids=["mapped", "recorded"])
def test_every_chain_has_its_own_minibatch(jit_compile):
    potential = make(hierarchical, 2, jit_compile=jit_compile)
    position = potential.initial_positions(1, seed=0).expand(5, -1)
    values, gradients = potential(position, 7)
    expected = potential.one_by_one(position, *potential.minibatches(7, 5))
    torch.testing.assert_close(values, expected[0])
    torch.testing.assert_close(gradients, expected[1])
    assert len(set(values.tolist())) > 1
    torch.testing.assert_close(potential(position, 7)[0], values, rtol=0.0, atol=0.0)
    assert not torch.equal(potential(position, 8)[0], values)


@pytest.mark.parametrize(("size", "count"), [(50, 20), (3000, 60), (2500, 1)])
def test_minibatches_are_distinct_and_uniform(size, count):
    def model():
        pyro.sample("z", dist.Normal(0.0, 1.0))
        with pyro.plate("data", size, subsample_size=count) as i:
            pyro.sample("y", dist.Normal(torch.zeros(len(i)), 1.0), obs=torch.zeros(len(i)))

    potential = make(model)
    rows = torch.cat([potential.minibatches(seed, 200)[0] for seed in range(20)])
    assert rows.shape == (4000, count)
    assert all(len(set(row)) == count for row in rows.tolist())
    tenths = np.bincount((rows * 10 // size).flatten(), minlength=10)
    expected = rows.numel() / 10
    deviation = np.sqrt(expected * (1.0 - count / size))
    assert np.all(np.abs(tenths - expected) < 5.0 * deviation)
    # The order within a row is uniform too.
    first = np.bincount((rows[:, 0] * 10 // size), minlength=10)
    assert np.all(np.abs(first - 400) < 5.0 * np.sqrt(400))


def test_a_model_that_branches_is_run_one_by_one():
    potential = make(branching)
    position = torch.tensor([[0.5], [-0.5], [2.0]])
    values, gradients = potential(position, 0)
    center = position.sign()
    expected = 0.5 * position**2 + 0.5 * (Y[0] - position * center) ** 2 + np.log(2.0 * np.pi)
    torch.testing.assert_close(values, expected[:, 0])
    torch.testing.assert_close(gradients, position - center * (Y[0] - position * center))


def test_a_model_that_batches_runs_once_for_all_chains():
    calls = []

    def counted():
        calls.append(None)
        hierarchical(2)

    potential = make(counted)
    position = potential.initial_positions(8, seed=0)
    potential(position, 0)
    calls.clear()
    potential(position, 1)
    assert len(calls) == 1


def test_a_recorded_potential_does_not_run_the_model():
    calls = []

    def counted():
        calls.append(None)
        hierarchical(2)

    potential = make(counted, jit_compile=True)
    position = potential.initial_positions(8, seed=0)
    potential(position, 0)
    calls.clear()
    potential(position, 1)
    assert calls == []


@pytest.mark.parametrize("jit_compile", [False, True], ids=["mapped", "recorded"])
def test_parameters_inside_the_model_are_constants(jit_compile):
    layer = torch.nn.Linear(2, 1)

    def model():
        bias = pyro.sample("bias", dist.Normal(0.0, 1.0))
        with pyro.plate("data", 6, subsample_size=3) as i:
            mean = layer(X[i]).squeeze(-1) + bias + pyro.param("shift", torch.tensor(0.1))
            pyro.sample("y", dist.Normal(mean, 1.0), obs=Y[i])

    potential = make(model, jit_compile=jit_compile)
    value, gradient = potential(torch.zeros(3, 1), 0)
    assert not value.requires_grad
    assert not gradient.requires_grad
    assert layer.weight.grad is None
    torch.testing.assert_close(
        gradient, potential.one_by_one(torch.zeros(3, 1), *potential.minibatches(0, 3))[1]
    )


@pytest.mark.parametrize("jit_compile", [False, True], ids=["mapped", "recorded"])
def test_modules_with_priors_and_the_subsample_statement(jit_compile):
    layer = PyroModule[torch.nn.Linear](2, 1)
    # Made here, where validation is on.
    layer.weight = PyroSample(dist.Normal(0.0, 1.0).expand([1, 2]).to_event(2))
    layer.bias = PyroSample(dist.LogNormal(0.0, 1.0).expand([1]).to_event(1))

    def model():
        mean = layer(X).squeeze(-1)
        with pyro.plate("data", 6, subsample_size=3):
            mean = pyro.subsample(mean, event_dim=0)
            pyro.sample("y", dist.Normal(mean, 1.0), obs=pyro.subsample(Y, event_dim=0))

    potential = make(model, jit_compile=jit_compile)
    assert list(potential.layout.sites) == ["bias", "weight"]
    position = potential.initial_positions(4, seed=0)
    found = potential(position, 1)
    alone = potential.one_by_one(position, *potential.minibatches(1, 4))
    torch.testing.assert_close(found[0], alone[0])
    torch.testing.assert_close(found[1], alone[1])


def test_a_minibatch_of_ones_own_stays():
    chosen = torch.tensor([1, 4])

    def model():
        weight = pyro.sample("weight", dist.Normal(0.0, 1.0))
        with pyro.plate("data", 6, subsample=chosen):
            pyro.sample("y", dist.Normal(weight, 1.0), obs=Y[chosen])

    potential = make(model)
    assert potential.plates == {}
    _, gradient = potential(torch.tensor([[0.5]]), 0)
    torch.testing.assert_close(gradient[0, 0], 0.5 + 3.0 * (0.5 - Y[chosen]).sum())


def test_plates_that_are_loops_are_minibatches_too():
    def model(batch=None):
        weight = pyro.sample("weight", dist.Normal(0.0, 1.0))
        for i in pyro.plate("data", 6, subsample_size=batch):
            pyro.sample(f"y_{i}", dist.Normal(weight, 1.0), obs=Y[i])

    position = torch.tensor([[0.3]])
    batches = torch.tensor(list(combinations(range(6), 4)))
    found = make(model, 4).one_by_one(position.expand(len(batches), 1), batches)
    value, gradient = make(model)(position, 0)
    torch.testing.assert_close(found[0].mean(), value[0])
    torch.testing.assert_close(found[1].mean(0), gradient[0])


def test_vector_and_sites_are_the_same_values():
    potential = make(constrained)
    position = potential.initial_positions(2, seed=0)
    assert potential.layout.dim == 2 + 2 + 4
    torch.testing.assert_close(potential.layout.pack(potential.layout.unpack(position)), position)
    values = potential.layout.constrain(position)
    torch.testing.assert_close(values["share"].sum(-1), torch.ones(2))
    assert values["weight"].shape == (2, 2, 2)


def test_starts_follow_the_strategy_and_the_seed():
    potential = make(hierarchical, 2, strategy=init_to_sample)
    torch.manual_seed(3)
    before = torch.get_rng_state()
    starts = potential.initial_positions(3, seed=5)
    torch.testing.assert_close(potential.initial_positions(3, seed=5), starts)
    assert torch.equal(torch.get_rng_state(), before)
    assert len(torch.unique(starts, dim=0)) == 3
    given = init_to_value(values={"noise": torch.tensor(0.7)})
    fixed = make(hierarchical, 2, strategy=given)
    noise = fixed.layout.constrain(fixed.initial_positions(2, seed=0))["noise"]
    torch.testing.assert_close(noise, torch.full((2,), 0.7))


def test_names_of_what_is_not_finite():
    def model():
        weight = pyro.sample("weight", dist.Normal(0.0, 1.0))
        pyro.sample("rate", dist.Exponential(1.0))
        pyro.sample("y", dist.Normal(weight.log(), 1.0), obs=Y[0])
        pyro.factor("root", (weight - 1.0).abs().sqrt())

    potential = make(model, strategy=init_to_value(values={"weight": torch.tensor(2.0)}))
    # Site names sort into the vector: rate, then weight.
    assert "site 'y' is nan" in potential.culprit(torch.tensor([0.0, -1.0]))
    assert "with respect to site 'weight'" in potential.culprit(torch.tensor([0.0, 1.0]))
    assert "site 'rate' is -inf" in potential.culprit(torch.tensor([1e4, 2.0]))
    assert "next position overflows" in potential.culprit(torch.tensor([0.0, 2.0]))


def test_models_that_cannot_be_sampled_are_refused():
    def discrete():
        pyro.sample("kind", dist.Categorical(torch.ones(3)))

    def local():
        with pyro.plate("data", 6, subsample_size=2) as i:
            mean = pyro.sample("mean", dist.Normal(0.0, 1.0))
            pyro.sample("y", dist.Normal(mean, 1.0), obs=Y[i])

    def nothing():
        pyro.sample("y", dist.Normal(0.0, 1.0), obs=Y[0])

    def never_finite():
        pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.factor("hole", torch.tensor(-np.inf))

    with pytest.raises(ValueError, match="'kind' is discrete.*marginalise"):
        make(discrete, strategy=init_to_sample)
    with pytest.raises(
        ValueError, match=r"'mean' is inside the subsampled plate 'data' \(2 of 6\)"
    ):
        make(local)
    with pytest.raises(ValueError, match="no latent sites"):
        make(nothing)
    with pytest.raises(ValueError, match="init_strategy found 0 of 2 starts"):
        make(never_finite).initial_positions(2, seed=0)


def test_models_that_cannot_be_recorded_are_refused():
    def counting():
        # What Python has made of a value is what it was when recorded.
        weight = pyro.sample("weight", dist.Normal(0.0, 1.0))
        pyro.sample("y", dist.Normal(weight * float(weight.detach().numpy()), 1.0), obs=Y[0])

    with pytest.raises(ValueError, match="jit_compile=True needs a model whose operations"):
        make(branching, jit_compile=True)(torch.ones(1, 1), 0)
    with pytest.raises(ValueError, match="jit_compile=False"):
        make(counting, jit_compile=True)(torch.ones(1, 1), 0)


def test_models_that_are_random_outside_their_sites_are_refused():
    def noisy():
        weight = pyro.sample("weight", dist.Normal(0.0, 1.0))
        mean = torch.nn.functional.dropout(weight * torch.ones(6))
        with pyro.plate("data", 6):
            pyro.sample("y", dist.Normal(mean, 1.0), obs=Y)

    for num_chains in (1, 3):
        with pytest.raises(ValueError, match="random numbers outside its sites; .* eval mode"):
            make(noisy)(torch.ones(num_chains, 1), 0)
