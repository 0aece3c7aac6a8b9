"""Adversarial inference: resuming, losses that are not finite, and input that cannot be right."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from adversarial_cases import Autoencoder, Location, normal_pool

from bayesdiv.inference.adversarial import (
    AdversarialInference,
    AdversarialSettings,
    CodeCritic,
    ProbeSettings,
    probe_codes,
)
from bayesdiv.pyro import EmpiricalPrior
from bayesdiv.training import TensorBatches, train


def rows(count=40, dim=3):
    return torch.randn(count, dim, dtype=torch.float64)


def program(**settings):
    torch.manual_seed(0)
    return Autoencoder(3, 2, **{"prior": torch.randn(50, 2, dtype=torch.float64), **settings})


def routine(**arguments):
    one = arguments.pop("program", None) or program()
    return AdversarialInference(one.model, one.guide, **arguments)


# Resuming


class Normalized(Autoencoder):
    """An encoder with running statistics, which are no parameters."""

    def __init__(self, **settings):
        super().__init__(3, 2, **settings)
        self.encoder = torch.nn.Sequential(
            torch.nn.Linear(3, 2, dtype=torch.float64),
            torch.nn.BatchNorm1d(2, dtype=torch.float64),
        )


@pytest.mark.parametrize("name", ["jensen_shannon", "max_sliced_wasserstein", "sliced_wasserstein"])
def test_kill_and_resume(name, tmp_path):
    data = rows(64)

    def run(num_steps, path):
        pyro.clear_param_store()
        torch.manual_seed(1)
        one = Normalized(prior=torch.randn(50, 2, dtype=torch.float64))
        settings = AdversarialSettings(num_decay_steps=20, num_critic_steps=2)
        found = AdversarialInference(one.model, one.guide, divergence=name, settings=settings)
        batches = TensorBatches(data, batch_size=16, seed=2)
        options = {"checkpoint": path, "checkpoint_every": 3, "progress_bar": False}
        return one, train(found, batches, num_steps=num_steps, **options)

    whole, result = run(8, tmp_path / "whole")
    run(3, tmp_path / "cut")
    resumed, again = run(8, tmp_path / "cut")
    for left, right in zip(whole.state_dict().values(), resumed.state_dict().values(), strict=True):
        assert torch.equal(left, right)
    for metric, values in result.history.items():
        assert values.tolist() == again.history[metric].tolist()


def test_state_from_before_the_first_step_can_be_gone_back_to():
    found = routine(divergence="max_sliced_wasserstein")
    start, data = found.state_dict(), rows()
    torch.manual_seed(3)
    first = [float(found.step(data)["loss"]) for _ in range(3)]
    found.load_state_dict(start)
    assert found.num_steps == 0
    torch.manual_seed(3)
    assert [float(found.step(data)["loss"]) for _ in range(3)] == first


def test_state_of_another_model_is_refused():
    found = routine()
    found.step(rows())
    state = found.state_dict()
    pyro.clear_param_store()
    other = AdversarialInference(*(getattr(Autoencoder(3, 1), name) for name in ("model", "guide")))
    other.step(rows())
    with pytest.raises(ValueError, match=r"state must have the parameters .* of another model"):
        other.load_state_dict(state)


# Not finite


class Cliff(torch.autograd.Function):
    """The identity, whose gradient is not a number, as that of acos at 1."""

    @staticmethod
    def forward(context, value):
        return value.clone()

    @staticmethod
    def backward(context, slope):
        return slope * float("nan")


@pytest.mark.parametrize("what", ["reconstruction", "guide's codes", "gradient"])
def test_not_finite_keeps_the_last_good_parameters(what):
    one = program()
    found = routine(program=one)
    data = rows()
    found.step(data)
    before = {name: value.clone() for name, value in one.state_dict().items()}
    critic = found.state_dict()["match"]["critic"]
    arguments = (data, data)
    if what == "reconstruction":
        arguments = (data, torch.full_like(data, torch.inf))
    elif what == "guide's codes":
        arguments = (torch.full_like(data, torch.nan), data)
    else:
        decoder = one.decoder
        one.decoder = torch.nn.Sequential(decoder)
        one.decoder.register_forward_hook(lambda module, inputs, output: Cliff.apply(output))
    with (
        pyro.validation_enabled(is_validate=False),
        pytest.raises(FloatingPointError, match=f"the {what} became not finite at step 2"),
    ):
        found.step(arguments)
    if what == "gradient":
        one.decoder = decoder
    for name, value in one.state_dict().items():
        assert torch.equal(value, before[name])
    if what != "gradient":
        for name, value in found.state_dict()["match"]["critic"].items():
            assert torch.equal(value, critic[name])


def test_critic_refuses_a_gradient_that_is_not_finite():
    class Broken(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = torch.nn.Linear(2, 1, dtype=torch.float64)

        def forward(self, values):
            return Cliff.apply(self.linear(values)[:, 0])

    critic = Broken()
    before = critic.linear.weight.detach().clone()
    with pytest.raises(FloatingPointError, match="gradient of the critic is not finite"):
        routine(critic=critic).step(rows())
    assert torch.equal(critic.linear.weight, before)


# Arguments


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"match": "marginal"}, "match must be one of 'aggregate', 'conditional', 'paired'"),
        ({"weight": -1.0}, "weight must be finite and at least 0, got -1.0"),
        ({"divergence": "kl"}, "divergence must be one of reverse_kl"),
        ({"divergence": "total_variation"}, "must have a path gradient"),
        (
            {"divergence": "reverse_kl", "match": "paired"},
            "divergence must be None with match='paired'",
        ),
        ({"critic": "batch_norm"}, "critic must be one of 'spectral_norm', 'batch_norm_logit'"),
        ({"context": lambda x: x}, "context is what a critic sees .* match=None"),
    ],
)
def test_arguments_that_cannot_be_right(arguments, message):
    with pytest.raises(ValueError, match=message):
        routine(**arguments)


def test_arguments_of_a_wrong_kind():
    with pytest.raises(TypeError, match="critic must be a name or a torch module .* got function"):
        routine(critic=lambda codes: codes)
    with pytest.raises(TypeError, match="context must be a function .* got Tensor"):
        routine(match="conditional", context=rows())
    with pytest.raises(TypeError, match="ratio must be a DensityRatio, got float"):
        AdversarialSettings(ratio=1.0)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"updates": "both"}, "updates must be 'separate', 'joint' or None"),
        ({"num_critic_steps": -1}, "num_critic_steps must be an integer of at least 0"),
        ({"num_decay_steps": 0}, "num_decay_steps must be an integer of at least 1"),
        ({"encoder_rate": 0.0}, "encoder_rate must be positive and finite"),
    ],
)
def test_settings_outside_their_domain(settings, message):
    with pytest.raises(ValueError, match=message):
        AdversarialSettings(**settings)


def test_critic_steps_may_be_left_out_only_without_weight():
    settings = AdversarialSettings(num_critic_steps=0)
    with pytest.raises(ValueError, match="num_critic_steps may be 0 only with weight=0"):
        routine(settings=settings)
    assert set(routine(settings=settings, weight=0.0).step(rows())) == {
        "loss",
        "reconstruction",
        "divergence",
    }


def test_critic_and_probe_refuse_sizes_and_samples():
    with pytest.raises(ValueError, match="dim must be an integer of at least 1, got 0"):
        CodeCritic(0)
    with pytest.raises(ValueError, match="hidden must be an integer of at least 1, got 0"):
        CodeCritic(2, (8, 0))
    with pytest.raises(ValueError, match="num_steps must be an integer of at least 1, got 0"):
        ProbeSettings(num_steps=0)
    with pytest.raises(ValueError, match=r"q must be rows of codes, .* got shape \(3, 2\)"):
        probe_codes(rows(20, 2), rows(3, 2))
    with pytest.raises(ValueError, match="probe needs at least one batch"):
        routine().probe()
    with pytest.raises(ValueError, match="report needs at least one step"):
        routine().report()


# Programs


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"match": "paired"}, "match='paired' needs the prior's code of each row, but site 'z'"),
        ({"match": "conditional"}, "match='conditional' needs context="),
        ({"sites": ["y"]}, r"sites must be among the codes \['z'\]"),
        (
            {"match": "conditional", "context": lambda x: x[:3]},
            r"context must return one row for each of the 40 rows .* got \(3, 3\)",
        ),
    ],
)
def test_programs_that_do_not_go_with_the_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        routine(**arguments).step(rows())


def test_one_row_is_too_few():
    with pytest.raises(ValueError, match="at least 2 rows that are not masked, got 1"):
        routine().step(rows(1))


def test_codes_outside_the_plate_are_refused():
    def model(x):
        z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        with pyro.plate("rows", len(x)):
            pyro.sample("x", dist.Normal(z[0], 1.0), obs=x[:, 0])

    def guide(x):
        pyro.sample("z", dist.Normal(pyro.param("m", torch.zeros(2)), 1.0).to_event(1))

    with pytest.raises(ValueError, match="codes must be latent sites in the vectorised plate"):
        AdversarialInference(model, guide).step(torch.randn(4, 1))


def test_guide_without_parameters_is_refused():
    one = program()

    def guide(x):
        with pyro.plate("rows", len(x)):
            pyro.sample("z", dist.Delta(one.encoder(x), event_dim=1))

    with pytest.raises(ValueError, match="guide has no parameters that Pyro knows of"):
        AdversarialInference(one.model, guide).step(rows())


def test_parameters_of_an_earlier_program_are_refused():
    """Pyro's store keeps the first tensors of a name; other networks would stand still."""
    routine().step(rows())
    with pytest.raises(ValueError, match="no parameter of the guide has any influence"):
        routine(program=program()).step(rows())


def test_site_without_reparameterisation_is_refused():
    def guide(x):
        logits = pyro.param("logits", torch.zeros(2, dtype=torch.float64))
        with pyro.plate("rows", len(x)):
            pyro.sample("z", dist.Bernoulli(logits=logits.expand(len(x), 2)).to_event(1))

    with pytest.raises(ValueError, match="guide site 'z' .* is not reparameterised"):
        AdversarialInference(program().model, guide).step(rows())


# Masks, and codes of which only some have densities


def test_masked_rows_are_not_compared():
    pool = normal_pool(200)
    one = Location(1.0, 0.5, pool=pool)
    keep = torch.arange(30) < 20

    def masked(function):
        def run(count):
            with pyro.poutine.mask(mask=keep):
                return function(count)

        return run

    found = AdversarialInference(masked(one.model), masked(one.guide), modules=[one])
    prior, codes = found.draw(30)
    assert prior.shape == codes.shape == (20, 1)
    found.step(30)


def test_codes_with_densities_keep_their_own_divergence():
    """z₁ is drawn from a pool, z₂ is normal with a normal guide: KL(q₂‖p₂) is in closed form."""
    pool, location = normal_pool(100), torch.nn.Parameter(torch.tensor(0.5, dtype=torch.float64))
    count, like = 2000, torch.zeros((), dtype=torch.float64)

    def model():
        with pyro.plate("rows", count):
            pyro.sample("first", EmpiricalPrior(pool))
            pyro.sample("second", dist.Normal(like, like + 1.0))

    def guide():
        m = pyro.param("m", location)
        with pyro.plate("rows", count):
            pyro.sample("first", dist.Delta(m + torch.randn(count, 1).double(), event_dim=1))
            pyro.sample("second", dist.Normal(m, 0.5))

    found = AdversarialInference(model, guide, divergence="energy_distance").step(None)
    exact = 0.5 * (0.25 + 0.25 - 1.0) - torch.tensor(0.5).log()
    # A row's log q₂ − log p₂ is its mean plus 0.25 ε − 0.375 (ε² − 1).
    error = 5.0 * (0.25**2 + 2.0 * 0.375**2) ** 0.5 / count**0.5
    assert float(found["reconstruction"]) == pytest.approx(float(exact), abs=error)
