"""Targets over sequences: golden values by enumeration, Newton's tilt, the evidence of a chain."""

import math

import pyro
import pytest
import torch
from sequence_cases import bigram_chain, count_twos, frozen, has_two

from bayesdiv.divergences import get_divergence
from bayesdiv.models._moment_fit import fit_moments
from bayesdiv.models.sequence_targets import (
    ConditionalTarget,
    ExponentialTilt,
    HiddenMarkovPosterior,
    PointwiseConstraint,
    ScalarPreference,
    SequenceTarget,
    enumerate_target,
)
from bayesdiv.nn.sequences_torch import CharacterGRU
from bayesdiv.pyro.distributions import AutoregressiveSequence


@pytest.fixture
def base():
    return frozen(bigram_chain())


def all_of(base):
    value = base.enumerate_support()
    return {"value": value, "log_weights": base.log_prob(value)}


def between(name, target, law):
    found = enumerate_target(target)
    return get_divergence(name).between_logits(found.log_prob, law.log_prob(found.value)).item()


def test_moment_fit_of_the_bigram_chain(base):
    tilt = ExponentialTilt.fit(base, [has_two], [0.7], **all_of(base))
    assert tilt.coefficients[0] == pytest.approx(0.983508, abs=1e-6)
    assert tilt.fitted.num_steps < 15
    found = enumerate_target(tilt)
    assert found.log_normalizer.exp().item() == pytest.approx(1.78, abs=1e-6)
    assert (found.log_prob.exp() @ has_two(found.value)).item() == pytest.approx(0.7, abs=1e-8)
    golden = {
        "forward_kl": 0.111842,
        "reverse_kl": 0.118299,
        "total_variation": 0.234,
        "jensen_shannon": 0.5 * 0.056913,
    }
    for name, value in golden.items():
        assert between(name, tilt, base) == pytest.approx(value, abs=1e-6)


@pytest.mark.parametrize(("base_rate", "wanted"), [(0.1, 0.5), (0.9, 0.2), (0.01, 0.99)])
def test_closed_form_of_one_binary_feature(base_rate, wanted):
    features = torch.tensor([[0.0], [1.0]], dtype=torch.float64)
    weights = torch.tensor([1 - base_rate, base_rate], dtype=torch.float64).log()
    found = fit_moments(features, torch.tensor([wanted]), weights)
    expected = math.log(wanted * (1 - base_rate) / ((1 - wanted) * base_rate))
    assert found.coefficients.item() == pytest.approx(expected, abs=1e-6)
    assert found.log_normalizer.exp().item() == pytest.approx(
        (1 - base_rate) / (1 - wanted), rel=1e-6
    )


def test_several_features_and_unequal_weights():
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(4000, 3, generator=generator, dtype=torch.float64)
    features = features @ torch.tensor([[1.0, 0.9, 0], [0, 0.5, 0], [0, 0, 3.0]]).double()
    weights = torch.randn(4000, generator=generator, dtype=torch.float64)
    wanted = torch.tensor([0.8, 0.2, -1.5], dtype=torch.float64)
    found = fit_moments(features, wanted, weights)
    torch.testing.assert_close(found.moments, wanted, rtol=1e-8, atol=1e-8)
    assert found.num_steps < 15


def test_a_certain_binary_feature_is_a_constraint(base):
    tilt = ExponentialTilt.fit(base, [has_two, count_twos], [1.0, 1.5], **all_of(base))
    found = enumerate_target(tilt)
    share = found.log_prob.exp()
    assert tilt.coefficients[0] == 0.0
    assert (share @ has_two(found.value)).item() == pytest.approx(1.0, abs=1e-12)
    assert (share @ count_twos(found.value)).item() == pytest.approx(1.5, abs=1e-8)


def test_pointwise_constraint_and_its_projection_on_chains(base):
    target = PointwiseConstraint(base, lambda value: has_two(value) > 0)
    found = enumerate_target(target)
    assert found.log_normalizer.exp().item() == pytest.approx(0.466, abs=1e-9)
    assert between("forward_kl", target, base) == pytest.approx(0.763570, abs=1e-6)
    # The nearest chain in KL(p‖π) has p's expected counts.
    share = found.log_prob.exp()
    hot = torch.nn.functional.one_hot(found.value, 3).double()
    first = share @ hot[:, 0]
    pairs = torch.einsum("n,nti,ntj->ij", share, hot[:, :-1], hot[:, 1:])
    rows = pairs / pairs.sum(1, keepdim=True)
    expected = torch.tensor([[0.29864, 0.28507, 0.41629], [0.06186, 0.25773, 0.68041]]).double()
    torch.testing.assert_close(
        first, torch.tensor([0.268240, 0.302575, 0.429185]).double(), atol=1e-6, rtol=0
    )
    torch.testing.assert_close(rows[:2], expected, atol=1e-5, rtol=0)
    network = type(base.network).from_probabilities(first, rows)
    projected = AutoregressiveSequence(network, 3, end=None)
    assert between("forward_kl", target, projected) == pytest.approx(0.228490, abs=1e-6)
    reached = projected.log_prob(found.value).exp() @ has_two(found.value)
    assert reached.item() == pytest.approx(0.892955, abs=1e-6)


def test_scalar_preference_is_penalised_reward(base):
    beta = 0.5
    target = ScalarPreference(base, count_twos, beta)
    found = enumerate_target(target)
    log_z, share = found.log_normalizer, found.log_prob.exp()
    assert log_z.exp().item() == pytest.approx(22.693336, abs=1e-6)
    assert beta * log_z.item() == pytest.approx(1.561036, abs=1e-6)
    assert (share @ count_twos(found.value)).item() == pytest.approx(2.422180, abs=1e-6)
    at_base = base.log_prob(found.value).exp() @ count_twos(found.value)
    assert at_base.item() == pytest.approx(0.658, abs=1e-9)
    reverse = between("reverse_kl", target, base)
    assert at_base.item() == pytest.approx((beta * log_z).item() - beta * reverse, abs=1e-9)


def hidden_chain():
    generator = torch.Generator().manual_seed(4)
    rows = torch.rand(7, 3, generator=generator, dtype=torch.float64) + 0.1
    rows = rows / rows.sum(1, keepdim=True)
    return HiddenMarkovPosterior(rows[0], rows[1:4], rows[4:7], torch.tensor([0, 2, 2, 1, 0]))


def test_evidence_of_a_hidden_chain_is_the_sum_over_states():
    target = hidden_chain()
    found = enumerate_target(target)
    assert target.log_evidence().item() == pytest.approx(found.log_normalizer.item(), abs=1e-12)
    torch.testing.assert_close(target.exact().log_prob(found.value), found.log_prob)


def test_conditional_target_has_a_normaliser_for_each_context():
    prompts = torch.tensor([[1], [2], [0]])
    network = CharacterGRU(3, 4, 8, seed=0).double().requires_grad_(requires_grad=False)
    base = AutoregressiveSequence(network, 3, end=0, prompts=prompts)

    def wants_its_context(value, contexts):
        return 1.5 * (value[..., 0] == contexts).double()

    target = ConditionalTarget(base, wants_its_context)
    found = enumerate_target(target)
    torch.testing.assert_close(found.log_prob.exp().sum(0), torch.ones(3).double())
    assert found.log_normalizer.shape == (3,)
    assert len(found.log_normalizer.unique()) == 3
    some = torch.tensor([2, 1])
    torch.testing.assert_close(
        target.log_prob(found.value[:, some], some), target.log_prob(found.value)[:, some]
    )


@pytest.mark.parametrize("vectorized", [False, True])
def test_calling_a_target_runs_its_pyro_model(base, vectorized):
    target = ScalarPreference(base, count_twos, 0.5)
    model = pyro.plate("particles", 7, dim=-1)(target) if vectorized else target
    trace = pyro.poutine.trace(model).get_trace()
    trace.compute_log_prob()
    total = trace.nodes["sequence"]["log_prob"] + trace.nodes["target"]["log_prob"]
    torch.testing.assert_close(total, target.log_prob(trace.nodes["sequence"]["value"]))


def constant(value):
    return torch.ones(value.shape[:-1])


@pytest.mark.parametrize(
    ("features", "moments", "message"),
    [
        ([has_two], [1.2], "infeasible moments .1.2.: feature 0 lies between 0 and 1"),
        ([count_twos], [3.0], "feature 0 lies between 0 and 3"),
        ([constant], [0.5], "infeasible moments .*: feature 0 is 1 in every sample"),
        ([has_two, count_twos], [0.9, 0.5], "outside the convex hull of the features"),
        ([has_two], [0.5, 0.5], "moments must be one a feature, got 2 for 1"),
    ],
)
def test_infeasible_moments_are_an_error(base, features, moments, message):
    with pytest.raises(ValueError, match=message):
        ExponentialTilt.fit(base, features, moments, **all_of(base))


def test_moments_on_the_edge_of_the_hull_are_infeasible():
    features = torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0]], dtype=torch.float64)
    with pytest.raises(ValueError, match="infeasible moments"):
        fit_moments(features, torch.tensor([0.5, 0.5]))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda base: ScalarPreference(base, count_twos, 0.0), "beta must be positive .* got 0.0"),
        (
            lambda base: ScalarPreference(base, count_twos, math.inf),
            "beta must be positive and finite, got inf",
        ),
        (
            lambda base: PointwiseConstraint(base, lambda value: value == 2).log_prob(
                torch.tensor([[0, 1, 2]])
            ),
            r"predicate must return one number for each sequence, shape \(1,\) .* got \(1, 3\)",
        ),
        (
            lambda base: ConditionalTarget(base, lambda value, contexts: value),
            r"base must have prompts of shape \(num_contexts, prompt_length\)",
        ),
        (
            lambda base: PointwiseConstraint(base.expand([2]), has_two),
            "base must be one distribution",
        ),
        (
            lambda base: ExponentialTilt(base, [has_two], [1.0, 2.0]),
            "coefficients must be one a feature, got 2 for 1",
        ),
    ],
)
def test_bad_targets_are_named(base, make, message):
    with pytest.raises(ValueError, match=message):
        make(base)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"transition": torch.eye(2)}, r"transition must be \(3, 3\)"),
        ({"emission": torch.ones(3, 2)}, "emission must sum to 1 along its last axis"),
    ],
)
def test_bad_hidden_chains_are_named(change, message):
    parts = {
        "initial": torch.ones(3) / 3,
        "transition": torch.ones(3, 3) / 3,
        "emission": torch.ones(3, 2) / 2,
        "observations": torch.tensor([0, 1]),
    }
    with pytest.raises(ValueError, match=message):
        HiddenMarkovPosterior(**{**parts, **change})


def test_base_must_be_a_distribution():
    with pytest.raises(TypeError, match=r"base must be a distribution .* sample\(\), got Linear"):
        SequenceTarget(torch.nn.Linear(2, 2))
