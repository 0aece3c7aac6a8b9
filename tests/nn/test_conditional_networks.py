"""Conditions of rows: how they are handed on, dropped and embedded."""

import math

import pytest
import torch

from bayesdiv.models.diffusion import EDMDenoiser
from bayesdiv.nn.conditions_torch import drop_condition, given, null_rows, split_pair
from bayesdiv.nn.denoisers_torch import DenoisingMLP, DenoisingUNet, FeatureCritic, NoiseCritic
from bayesdiv.nn.noise_levels_torch import denoising_loss

LABELS = torch.tensor([0, 2, 3, 0, 1])


def mlp(**classes):
    return DenoisingMLP(2, width=8, num_blocks=1, **classes)


def feature_critic(**classes):
    return FeatureCritic(mlp(**classes).features, 8, 4, **classes)


NETWORKS = {
    "mlp": (mlp, (2,)),
    "u_net": (
        lambda **classes: DenoisingUNet((1, 4, 4), width=4, multipliers=(1, 2), **classes),
        (1, 4, 4),
    ),
    "noise_critic": (lambda **classes: NoiseCritic(2, width=8, num_blocks=1, **classes), (2,)),
    "feature_critic": (feature_critic, (2,)),
}


def stir(network):
    """Away from the zeros at which outputs start."""
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return network


@pytest.mark.parametrize("name", NETWORKS)
def test_classes_take_no_draws_and_start_alike(name):
    make, shape = NETWORKS[name]
    parts, states = {}, {}
    for classes in ({}, {"num_classes": 3}):
        torch.manual_seed(1)
        parts[len(classes)] = dict(make(**classes).named_parameters())
        states[len(classes)] = torch.get_rng_state()
    assert torch.equal(states[0], states[1])
    more = parts[1].keys() - parts[0].keys()
    assert {each.rpartition(".")[2] for each in more} == {"vectors"}
    for each in more:
        # Label 3 stands for no class, and says nothing at first; nor do any in a critic's logit.
        assert not parts[1][each][3].any()
        assert parts[1][each][:3].all() == (name != "feature_critic")
    assert all(torch.equal(parts[0][each], parts[1][each]) for each in parts[0])


@pytest.mark.parametrize("name", NETWORKS)
def test_a_row_depends_on_its_own_label(name):
    make, shape = NETWORKS[name]
    network, noise = stir(make(num_classes=3)), torch.full((5,), 0.7)
    x = torch.randn(1, *shape).expand(5, *shape)
    found = network(x, noise, LABELS)
    assert not torch.allclose(found[0], found[1])
    # That of no class is an input like the others.
    assert not torch.allclose(found[0], found[2])
    torch.testing.assert_close(found[0], found[3])
    turned = network(x, noise, LABELS.flip(0).to(torch.uint8)).flip(0)
    torch.testing.assert_close(turned, found)
    if hasattr(network, "features"):
        features = network.features(x, noise, LABELS)
        assert features.shape == (5, network.num_features)
        assert not torch.allclose(features[0], features[1])


def test_critic_on_features_adds_a_projection_of_each_class():
    """With features that know no class, logits differ by (v_c − v_c') · h."""
    bare = mlp()
    critic = stir(
        FeatureCritic(lambda x, sigma, condition: bare.features(x, sigma), 8, 4, num_classes=3)
    )
    x, noise = torch.randn(5, 2), torch.full((5,), 0.7)
    found = critic(x, noise, LABELS) - critic(x, noise, torch.full((5,), 3))
    hidden = critic.head(bare.features(x, noise))
    vectors = critic.classes.vectors
    torch.testing.assert_close(found, ((vectors[LABELS] - vectors[3]) * hidden).sum(1))


def test_critic_without_classes_hands_the_condition_to_its_features():
    critic = stir(FeatureCritic(lambda x, sigma, condition: x + condition, 2, 4))
    x, embedding = torch.randn(5, 2), torch.randn(5, 2)
    without = FeatureCritic(lambda x, sigma: x, 2, 4)
    without.load_state_dict(critic.state_dict())
    torch.testing.assert_close(critic(x, 1.0, embedding), without(x + embedding, 1.0))


@pytest.mark.parametrize("name", NETWORKS)
def test_class_vectors_learn(name):
    make, shape = NETWORKS[name]
    network = stir(make(num_classes=3))
    network(torch.randn(5, *shape), torch.ones(5), LABELS).sum().backward()
    slopes = [value.grad for key, value in network.named_parameters() if key.endswith("vectors")]
    assert slopes
    for slope in slopes:
        assert (slope != 0.0).any(1).tolist() == [True, True, True, True]


def test_conditions_are_dropped_at_their_share():
    count = 4000
    dropped = drop_condition(torch.arange(count) % 3, 0.3, 3) == 3
    error = 5.0 * math.sqrt(0.3 * 0.7 / count)
    assert float(dropped.float().mean()) == pytest.approx(0.3, abs=error)
    kept = drop_condition(torch.arange(count) % 3, 0.3, 3)
    assert torch.equal(kept[kept != 3], (torch.arange(count) % 3)[kept != 3])


def test_embeddings_are_dropped_by_rows():
    embedding, null = torch.randn(50, 2, 3), torch.full((2, 3), 7.0)
    found = drop_condition(embedding, 0.5, null)
    gone = (found == 7.0).flatten(1)
    assert torch.equal(gone.any(1), gone.all(1))
    assert 0 < int(gone.all(1).sum()) < 50
    assert torch.equal(found[~gone.any(1)], embedding[~gone.any(1)])


def test_pairs_are_told_from_rows():
    rows, condition = torch.zeros(3, 2), torch.arange(3)
    assert split_pair(rows) == (rows, None)
    assert split_pair((rows, None)) == (rows, None)
    assert split_pair([rows, condition]) == (rows, condition)
    assert split_pair((None, condition)) == (None, condition)
    assert split_pair(None) == (None, None)


def test_parts_without_a_condition_are_called_without_one():
    def denoiser(*arguments):
        counts.append(len(arguments))
        return arguments[0]

    counts, x = [], torch.randn(3, 2)
    denoising_loss(denoiser, x, torch.ones(3))
    denoising_loss(denoiser, x, torch.ones(3), torch.arange(3))
    assert counts == [2, 3]


X, NOISE = torch.zeros(5, 2), torch.ones(5)
BAD = {
    "num_classes must be a whole number of at least 0, got -1": lambda: mlp(num_classes=-1),
    "num_classes must be a whole number of at least 0, got True": lambda: NoiseCritic(
        2, num_classes=True
    ),
    "condition must be None for a network without classes": lambda: mlp()(X, NOISE, LABELS),
    r"labels of shape \(5,\), got None; label 3 stands": lambda: mlp(num_classes=3)(X, NOISE),
    r"labels of shape \(5,\), got torch.bool": lambda: mlp(num_classes=3)(X, NOISE, LABELS > 0),
    r"labels of shape \(5,\), got torch.float32": lambda: mlp(num_classes=3)(X, NOISE, NOISE),
    r"got torch.int64 of shape \(1,\)": lambda: mlp(num_classes=3)(X, NOISE, LABELS[:1]),
    r"got torch.int64 of shape \(5, 1\)": lambda: mlp(num_classes=3)(X, NOISE, LABELS[:, None]),
    "labels from 0 to 2, got labels from 0 to 3": lambda: mlp(num_classes=2)(X, NOISE, LABELS),
    "labels from 0 to 3, got labels from -3 to 0": lambda: mlp(num_classes=3)(X, NOISE, -LABELS),
    r"condition must be a tensor of shape \(5, ...\), .* got \(4,\)": lambda: denoising_loss(
        EDMDenoiser(mlp(num_classes=3), (2,)), X, NOISE, LABELS[:4]
    ),
    r"condition must be a tensor of shape \(5, ...\), .* got list": lambda: given([0] * 5, 5),
    r"condition must be a tensor of shape \(5, ...\), .* got \(\)": lambda: given(LABELS[0], 5),
    r"null_condition must .* torch.int64 of shape \(\), got torch.float32": lambda: null_rows(
        0.5, LABELS
    ),
    r"torch.float32 of shape \(2,\), got torch.float32 of shape \(3,\)": lambda: null_rows(
        torch.zeros(3), X
    ),
    "got 1 parts": lambda: split_pair((X,)),
    r"condition must be a tensor .* got ndarray": lambda: split_pair((X, X.numpy())),
    "equally long, got lengths 5 and 4": lambda: split_pair((X, LABELS[:4])),
}


@pytest.mark.parametrize("message", BAD)
def test_bad_conditions_are_named(message):
    with pytest.raises(ValueError, match=message):
        BAD[message]()
