"""Learnt ratios: closed forms, the gradients that path weights promise, parity, refusals."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from helpers import gradient_of, make_array, to_numpy

from bayesdiv.divergences import Alpha, get_divergence, list_divergences
from bayesdiv.objectives import LearnedRatio

MEMBERS = [name for name in list_divergences("f") if get_divergence(name).has_path_gradient]


def key(backend, seed=0):
    return seed if backend == "torch" else jax.random.key(seed)


def clouds(seed=0, n=7, m=5, dim=2):
    generator = np.random.default_rng(seed)
    x = generator.normal(size=(n, dim))
    y = 0.5 + 1.3 * generator.normal(size=(m, dim))
    return x, y, generator.dirichlet(np.ones(n)), generator.dirichlet(np.ones(m))


def trained(backend, divergence, hidden=(8,), **settings):
    """A ratio with a critic that is neither at rest nor perfect, and its state."""
    ratio = LearnedRatio(divergence, hidden=hidden, num_steps=15, learning_rate=0.05, **settings)
    x, y, _, _ = clouds(seed=1, n=40, m=40)
    samples = make_array(backend, x), make_array(backend, y)
    state = ratio.init(*samples, rng=key(backend))
    return ratio, ratio.step(state, *samples)[0]


@pytest.mark.parametrize("name", ["reverse_kl", "forward_kl", "jensen_shannon", "alpha"])
def test_value_converges_to_the_closed_form(name):
    """N(0, 1) against N(½, 1), whose log-ratio the linear critic attains.

    The critic learns from 20,000 points a side and is judged on as many fresh ones. The gate is
    five standard errors of the two means, to which a critic off by its own error adds only second
    order: the bound is flat at its maximum.
    """
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(4, 20_000, 1, generator=generator, dtype=torch.float64)
    x, y, fresh_x, fresh_y = noise[0], 0.5 + noise[1], noise[2], 0.5 + noise[3]
    ratio = LearnedRatio(name, hidden=(), num_steps=150, learning_rate=0.05, penalty=0.0)
    state, info = ratio.step(ratio.init(x, y, rng=0), x, y)
    divergence = get_divergence(name)
    z = torch.linspace(-12.0, 12.0, 40_001, dtype=torch.float64)
    p, q = torch.distributions.Normal(0.0, 1.0), torch.distributions.Normal(0.5, 1.0)
    log_ratio = p.log_prob(z) - q.log_prob(z)
    truth = torch.trapezoid(q.log_prob(z).exp() * divergence.generator(log_ratio), z)
    at_x = divergence.derivative(ratio.log_ratio(state, fresh_x))
    at_y = divergence.pseudo_reward(ratio.log_ratio(state, fresh_y))
    error = ((at_x.var() + at_y.var()) / 20_000) ** 0.5
    value = ratio.evaluate(state, fresh_x, fresh_y)
    assert abs(float(value - truth)) < 5.0 * float(error) < 0.25 * float(truth)
    exact = -0.5 * (fresh_x[:, 0] - 0.25)
    assert float((ratio.log_ratio(state, fresh_x) - exact).abs().max()) < 0.15
    assert info.objective.shape == ()


def test_quadratic_critic_attains_the_ratio_of_gaussians_of_unequal_spread(backend):
    generator = np.random.default_rng(0)
    x, y = generator.normal(size=(2, 4000, 1))
    x = 1.0 + 0.7 * x
    ratio = LearnedRatio(
        "reverse_kl", hidden=(), quadratic=True, num_steps=300, learning_rate=0.05, penalty=0.0
    )
    samples = make_array(backend, x), make_array(backend, y)
    state, _ = ratio.step(ratio.init(*samples, rng=key(backend)), *samples)
    z = np.linspace(-1.0, 2.0, 7)[:, None]
    exact = -0.5 * ((z - 1.0) / 0.7) ** 2 - np.log(0.7) + 0.5 * z**2
    found = to_numpy(ratio.log_ratio(state, make_array(backend, z)))
    np.testing.assert_allclose(found, exact[:, 0], atol=0.35)


def test_the_network_finds_a_ratio_that_is_neither_linear_nor_quadratic():
    """Two modes against one: the network in the value of the Jensen–Shannon divergence."""
    generator = torch.Generator().manual_seed(0)
    sign = torch.randint(0, 2, (2000, 1), generator=generator).double() * 2.0 - 1.0
    x = 2.0 * sign + 0.5 * torch.randn(2000, 1, generator=generator, dtype=torch.float64)
    y = 2.0 * torch.randn(2000, 1, generator=generator, dtype=torch.float64)
    z = torch.linspace(-15.0, 15.0, 20_001, dtype=torch.float64)
    modes = [torch.distributions.Normal(m, 0.5).log_prob(z) for m in (-2.0, 2.0)]
    log_p = torch.logsumexp(torch.stack(modes), 0) - np.log(2.0)
    log_q = torch.distributions.Normal(0.0, 2.0).log_prob(z)
    truth = float(
        torch.trapezoid(log_q.exp() * get_divergence("jensen_shannon").generator(log_p - log_q), z)
    )
    ratio = LearnedRatio(hidden=(32, 32), num_steps=250, learning_rate=0.01, penalty=0.0)
    assert float(ratio(x, y, rng=0)) == pytest.approx(truth, rel=0.08)


CASES = [("torch", name) for name in MEMBERS]
CASES += [("jax", name) for name in ("jensen_shannon", "alpha")]


@pytest.mark.parametrize(("backend", "name"), CASES)
def test_gradients_are_those_of_the_path_weights(backend, name):
    """∂/∂y_j = −b_j path_weight(l) ∇l and ∂/∂x_i = a_i e^(−l) path_weight(l) ∇l, exactly."""
    ratio, state = trained(backend, name)
    x, y, a, b = clouds()
    weights = {"x_weights": make_array(backend, a), "y_weights": make_array(backend, b)}
    found_x, found_y = gradient_of(
        backend, lambda x, y: ratio.evaluate(state, x, y, **weights), x, y
    )
    for found, sample, share, sign in ((found_x, x, a, 1.0), (found_y, y, b, -1.0)):
        (slopes,) = gradient_of(backend, lambda z: ratio.log_ratio(state, z).sum(), sample)
        log_ratio = ratio.log_ratio(state, make_array(backend, sample))
        log_weight = to_numpy(ratio.divergence.log_path_weight(log_ratio))
        if sign > 0:
            log_weight = log_weight - to_numpy(log_ratio)
        expected = sign * (share * np.exp(log_weight))[:, None] * slopes
        np.testing.assert_allclose(found, expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("quadratic", [False, True])
@pytest.mark.parametrize("hidden", [(), (5,), (5, 4)])
def test_written_out_slopes_are_the_derivatives(hidden, quadratic):
    ratio, state = trained("torch", "jensen_shannon", hidden=hidden, quadratic=quadratic)
    z = torch.randn(6, 2, dtype=torch.float64, requires_grad=True)
    logits, slopes = ratio._critic(state.ascent.parameters, z, with_slopes=True)
    (expected,) = torch.autograd.grad(logits.sum(), z)
    torch.testing.assert_close(slopes, expected, rtol=1e-10, atol=1e-12)


SETTINGS = {
    "default": {},
    "bound": {"loss": "bound", "divergence": "squared_hellinger"},
    "regularised": {"penalty": 0.3, "weight_decay": 0.1, "label_smoothing": 0.1},
    "quadratic": {"quadratic": True, "divergence": Alpha(0.3)},
}


@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS)
def test_torch_and_jax_agree_eagerly_and_compiled(settings):
    ratio = LearnedRatio(**{"num_steps": 4, "hidden": (6,), **settings})
    x, y, a, b = clouds()
    torch_samples = make_array("torch", x), make_array("torch", y)
    torch_state = ratio.init(*torch_samples, rng=0)
    jax_samples = make_array("jax", x), make_array("jax", y)
    jax_state = jax.tree.map(lambda leaf: jnp.asarray(to_numpy(leaf)), torch_state)
    results = {}
    for name, state, samples, backend in (
        ("torch", torch_state, torch_samples, "torch"),
        ("jax", jax_state, jax_samples, "jax"),
    ):
        weights = {"x_weights": make_array(backend, a), "y_weights": make_array(backend, b)}
        state, info = ratio.step(state, *samples, **weights)
        value = ratio.evaluate(state, *samples, **weights)
        results[name] = [to_numpy(each) for each in (value, info.objective)]
    np.testing.assert_allclose(results["jax"], results["torch"], rtol=1e-9)

    @jax.jit
    def compiled(state, x, y, a, b):
        state, info = ratio.step(state, x, y, x_weights=a, y_weights=b)
        return ratio.evaluate(state, x, y, x_weights=a, y_weights=b), info.objective

    found = compiled(jax_state, *jax_samples, make_array("jax", a), make_array("jax", b))
    np.testing.assert_allclose(np.array(found), results["torch"], rtol=1e-9)


def test_steps_do_not_move_the_samples(backend):
    """Samples that carry gradients stay out of the critic's training."""
    ratio = LearnedRatio(hidden=(4,), num_steps=3)
    x, y, _, _ = clouds()

    def value(x, y):
        state, info = ratio.step(ratio.init(x, y, rng=key(backend)), x, y)
        return info.objective + 0.0 * x.sum() + 0.0 * y.sum()

    for gradient in gradient_of(backend, value, x, y):
        np.testing.assert_array_equal(gradient, 0.0)


def test_weights_are_repetitions(backend):
    """A row of weight 2/3 is a row that is there twice."""
    ratio = LearnedRatio("reverse_kl", hidden=(4,), num_steps=5)
    x, y, _, _ = clouds(n=2, m=3)
    short, long = make_array(backend, x), make_array(backend, x[[0, 0, 1]])
    y = make_array(backend, y)
    weights = make_array(backend, [2 / 3, 1 / 3])
    state = ratio.init(long, y, rng=key(backend))
    one = ratio.step(state, long, y)[0]
    other = ratio.step(state, short, y, x_weights=weights)[0]
    np.testing.assert_allclose(
        to_numpy(ratio.evaluate(one, long, y)),
        to_numpy(ratio.evaluate(other, short, y, x_weights=weights)),
        rtol=1e-9,
    )


def test_the_penalty_balances_the_logistic_loss():
    """Points at 0 and 1 and a linear critic of slope −v: σ(−v/2) = 2 λ v at the optimum."""
    x = torch.zeros(4, 1, dtype=torch.float64)
    ratio = LearnedRatio(hidden=(), num_steps=1000, learning_rate=0.05, penalty=0.02)
    state, _ = ratio.step(ratio.init(x, x + 1.0, rng=0), x, x + 1.0)
    slope = ratio.log_ratio(state, x)[0] - ratio.log_ratio(state, x + 1.0)[0]
    assert float(torch.sigmoid(-slope / 2)) == pytest.approx(2 * 0.02 * float(slope), rel=1e-3)


def test_label_smoothing_bounds_the_logits():
    """At share s the logistic loss is best at l = log(1/s − 1) where only x is seen."""
    x = torch.zeros(4, 1, dtype=torch.float64)
    ratio = LearnedRatio(
        hidden=(), num_steps=1000, learning_rate=0.05, penalty=0.0, label_smoothing=0.1
    )
    y = x + 1.0
    state, _ = ratio.step(ratio.init(x, y, rng=0), x, y)
    assert float(ratio.log_ratio(state, x)[0]) == pytest.approx(np.log(9.0), abs=1e-3)
    assert float(ratio.log_ratio(state, y)[0]) == pytest.approx(-np.log(9.0), abs=1e-3)


def test_the_ratio_does_not_depend_on_the_units_of_the_data():
    x, y, _, _ = clouds()
    ratio = LearnedRatio(hidden=(6,), num_steps=10)
    plain = ratio(torch.tensor(x), torch.tensor(y), rng=0)
    scaled = ratio(torch.tensor(1e4 * x + 7.0), torch.tensor(1e4 * y + 7.0), rng=0)
    torch.testing.assert_close(scaled, plain, rtol=1e-8, atol=1e-10)


def test_an_undertrained_critic_stays_below_the_divergence():
    """KL(N(1, 1)‖N(0, 1)) = ½."""
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(2, 20_000, 1, generator=generator, dtype=torch.float64)
    ratio = LearnedRatio("reverse_kl", hidden=(), num_steps=10, learning_rate=0.01)
    assert 0.0 < float(ratio(x, y + 1.0, rng=0)) < 0.45


REFUSED = {
    "two-sample": (TypeError, dict(divergence="sinkhorn"), "must be an f-divergence, got Sinkhorn"),
    "total variation": (ValueError, dict(divergence="total_variation"), "must have a path gradien"),
    "hidden": (ValueError, dict(hidden=(4, 0)), "hidden must be an integer of at least 1, got 0"),
    "num_steps": (ValueError, dict(num_steps=0), "num_steps must be an integer of at least 1"),
    "learning_rate": (ValueError, dict(learning_rate=-1.0), "learning_rate must be positive, got"),
    "loss": (ValueError, dict(loss="hinge"), "loss must be one of 'logistic', 'bound', got 'hing"),
    "penalty": (ValueError, dict(penalty=-0.1), "penalty must be finite and at least 0, got -0.1"),
    "weight_decay": (ValueError, dict(weight_decay=np.inf), "weight_decay must be finite"),
    "smoothing": (ValueError, dict(label_smoothing=0.5), r"must be in \[0, 0.5\), got 0.5"),
    "smoothed bound": (
        ValueError,
        dict(loss="bound", label_smoothing=0.1),
        "label_smoothing belongs to loss='logistic'",
    ),
}


@pytest.mark.parametrize(("error", "settings", "message"), REFUSED.values(), ids=REFUSED)
def test_refused_settings(error, settings, message):
    with pytest.raises(error, match=message):
        LearnedRatio(**settings)
