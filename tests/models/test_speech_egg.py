"""The program that draws EGG from speech: its likelihood, prior, guide and networks."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine

from bayesdiv.inference.adversarial import AdversarialInference, AdversarialSettings
from bayesdiv.models.speech_egg import EGGAutoencoder, EGGLikelihood, SpeechToEGG

WINDOW, CODES = 24, 4


@pytest.fixture(autouse=True)
def _fresh():
    pyro.clear_param_store()
    torch.manual_seed(0)


def rows(count=30):
    return torch.randn(count, WINDOW)


def network(**settings):
    prior = EGGAutoencoder(WINDOW, CODES, hidden=(16,)).prior(rows(200))
    return SpeechToEGG(prior, WINDOW, hidden=(16,), **settings)


def observed(likelihood, drawn, egg):
    """Log-densities of the sites, ``(n,)``, by name."""
    with pyro.plate("windows", len(egg)):
        trace = poutine.trace(likelihood.observe).get_trace(drawn, egg)
    trace.compute_log_prob()
    return {
        name: trace.nodes[name]["log_prob"] for name in ("egg", "direction") if name in trace.nodes
    }


def test_likelihood_is_the_squared_error_and_one_less_the_cosine():
    """Up to constants: differences between two drawings are compared."""
    egg, drawn, other = rows(), rows(), rows()
    terms = [observed(EGGLikelihood(), each, egg) for each in (drawn, other)]
    found = sum(terms[0].values()) - sum(terms[1].values())

    def loss(each):
        cosine = torch.cosine_similarity(each, egg, dim=1)
        return ((egg - each) ** 2).sum(1) + 1.0 - cosine

    torch.testing.assert_close(found, loss(other) - loss(drawn), atol=1e-4, rtol=1e-4)


def test_windows_without_voice_have_no_direction():
    egg, drawn = rows(6), rows(6)
    egg[2] = 0.0
    egg[4] *= 0.01
    found = observed(EGGLikelihood(), drawn, egg)
    assert (found["direction"][[2, 4]] == 0.0).all()
    assert (found["direction"][[0, 1, 3, 5]] != 0.0).all()
    assert torch.isfinite(found["egg"]).all()


def test_angle_is_no_part_of_it():
    """At ê = e the angle has no slope, not even a number; what is used has slope zero."""
    egg = rows(5)
    drawn = egg.clone().requires_grad_()
    (slope,) = torch.autograd.grad(observed(EGGLikelihood(), drawn, egg)["direction"].sum(), drawn)
    torch.testing.assert_close(slope, torch.zeros_like(slope), atol=1e-6, rtol=0.0)
    angle = torch.cosine_similarity(drawn, egg, dim=1).clamp(max=1.0).acos().sum()
    (published,) = torch.autograd.grad(angle, drawn)
    assert not torch.isfinite(published).all() or published.abs().max() > 10.0


@pytest.mark.parametrize(
    ("settings", "sites"),
    [({"scale": None}, {"direction"}), ({"concentration": None}, {"egg"})],
    ids=["shape alone", "amplitude alone"],
)
def test_either_term_can_be_left_out(settings, sites):
    assert set(observed(EGGLikelihood(**settings), rows(), rows())) == sites


def test_prior_is_the_law_of_the_codes():
    autoencoder, egg = EGGAutoencoder(WINDOW, CODES, hidden=(16,)), rows(50)
    prior = autoencoder.prior(egg)
    assert autoencoder.training
    expected = autoencoder.eval().encode(egg)
    drawn = prior.sample((200,))
    assert drawn.shape == (200, CODES)
    gaps = (drawn[:, None] - expected.detach()).abs().amax(2)
    assert (gaps.min(1).values < 1e-6).all()
    assert drawn.abs().max() < 1.0


def test_autoencoder_learns_as_the_routine_with_weight_zero():
    base = torch.randn(3, WINDOW)
    egg = torch.randn(400, 3) @ base / 3.0
    autoencoder = EGGAutoencoder(WINDOW, CODES, hidden=(16,))
    routine = AdversarialInference(
        autoencoder.model, autoencoder.guide, divergence="energy_distance", weight=0.0
    )
    losses = [float(routine.step(egg)["reconstruction"]) for _ in range(150)]
    assert losses[-1] < losses[0] - 2.0
    cosine = torch.cosine_similarity(autoencoder.eval()(egg), egg, dim=1)
    assert cosine.mean().item() > 0.85


def test_guide_is_a_point_or_a_normal():
    for stochastic, kind in ((False, dist.Delta), (True, dist.Independent)):
        pyro.clear_param_store()
        net = network(stochastic=stochastic)
        trace = poutine.trace(net.guide).get_trace(rows(), rows())
        assert isinstance(trace.nodes["z"]["fn"], kind)
        assert trace.nodes["z"]["value"].shape == (30, CODES)
    location, scale = net.eval().encode(rows())
    assert location.abs().max() < 1.0
    assert (scale > 0.0).all()


def test_drawing_with_noise_moves_by_the_guides_deviations():
    net = network(stochastic=True).eval()
    speech, noise = rows(), torch.randn(CODES)
    location, scale = net.encode(speech)
    expected = net.decoder(location + scale * noise)
    torch.testing.assert_close(net.draw(speech, noise), expected.detach())
    torch.testing.assert_close(net.draw(speech), net.decoder(location).detach())
    with pytest.raises(ValueError, match="noise needs a stochastic guide"):
        network().draw(speech, noise)


def test_normal_prior_is_the_evidence_bound():
    """With densities on both sides the routine's loss is minus the bound, a row of data."""
    prior = dist.Normal(torch.zeros(CODES), 1.0).to_event(1)
    net = SpeechToEGG(prior, WINDOW, hidden=(16,), stochastic=True, bounded=False)
    routine = AdversarialInference(
        net.model,
        net.guide,
        divergence="reverse_kl",
        settings=AdversarialSettings(reconstruction_rate=1e-12),
    )
    batch = (rows(), rows())
    torch.manual_seed(3)
    found = float(routine.step(batch)["loss"])
    torch.manual_seed(3)
    expected = pyro.infer.Trace_ELBO().loss(net.model, net.guide, *batch) / 30
    assert found == pytest.approx(expected, rel=1e-4)


def test_convolutions_see_the_surroundings():
    net = network(context=40, convolutional=True).eval()
    speech = torch.randn(5, WINDOW + 80)
    drawn = net.draw(speech)
    speech[:, :10] += 1.0
    assert drawn.shape == (5, WINDOW)
    assert (net.draw(speech) - drawn).abs().max() > 1e-6


def test_published_widths():
    net = SpeechToEGG(EGGAutoencoder().prior(torch.randn(300, 200)))
    shapes = [
        tuple(layer.weight.shape) for layer in net.encoder.layers if hasattr(layer, "in_features")
    ]
    assert shapes == [(175, 200), (125, 175), (100, 125)]
    first = net.decoder[0].weight
    assert first.std().item() == pytest.approx(100**-0.5, rel=0.05)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: EGGLikelihood(scale=None, concentration=None), "must not both be None"),
        (lambda: EGGLikelihood(scale=-1.0), "scale must be positive and finite, got -1.0"),
        (lambda: EGGAutoencoder(0), "window must be a whole number of at least 1, got 0"),
        (lambda: SpeechToEGG(dist.Normal(0.0, 1.0), 8), r"event_shape \(dim,\), got \(\)"),
        (lambda: network(context=-1), "context must be a whole number of samples, got -1"),
        (lambda: network(convolutional=True), "at least 64 samples, got 24"),
        (
            lambda: network().model(rows(), torch.randn(30, 7)),
            r"shapes \(30, 24\) and \(30, 24\), got \(30, 24\) and \(30, 7\)",
        ),
        (
            lambda: network(context=2).guide(rows(), rows()),
            r"shapes \(30, 28\) and \(30, 24\), got \(30, 24\)",
        ),
    ],
    ids=["nothing", "scale", "window", "prior", "context", "short", "egg", "speech"],
)
def test_bad_input_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_one_row_cannot_be_normalised():
    """Batch normalisation in training needs two; the routine says so before torch does."""
    net = network()
    routine = AdversarialInference(net.model, net.guide)
    with pytest.raises(ValueError, match=r"at least 2|more than 1 value"):
        routine.step((rows(1), rows(1)))
