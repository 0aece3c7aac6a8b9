"""Golden values from two methods' dossiers, translated to this layer's convention.

Their tables write r = p/q or t = q/p and leave scale and linear terms open; ours fix
f(1) = f'(1) = 0. Their Jensen–Shannon is twice ours, and f-distill's squared Hellinger,
f = 1 − √r, is half of ours.
"""

import math

import numpy as np
import pytest
import torch
from helpers import make_array, to_numpy

from bayesdiv.divergences import get_divergence

# Fixture A of f-DPG: name, scale (theirs = scale · ours), D, −f'(q/p) up to a constant, ∂D/∂logits.
P_A = [0.5, 0.25, 0.125, 0.125]
Q_A = [0.1, 0.2, 0.3, 0.4]
FULL_SUPPORT = [
    ("forward_kl", 1.0, 0.605677, [5, 1.25, 0.416667, 0.3125], [-0.4, -0.05, 0.175, 0.275]),
    (
        "reverse_kl",
        1.0,
        0.522328,
        [0.609438, -0.776856, -1.875469, -2.163151],
        [-0.21318, -0.14909, 0.10594, 0.25633],
    ),
    ("total_variation", 1.0, 0.45, [0.5, 0.5, -0.5, -0.5], [-0.07, -0.14, 0.09, 0.12]),
    (
        "jensen_shannon",
        2.0,
        0.261202,
        [1.098612, 0.117783, -0.344840, -0.421213],
        [-0.12371, -0.05126, 0.06190, 0.11308],
    ),
    (
        "pearson_chi2",
        1.0,
        1.903646,
        [24, 0.5625, -0.826389, -0.902344],
        [-2.20964, 0.26823, 0.81901, 1.12240],
    ),
    ("neyman_chi2", 1.0, 1.18, [1.6, 0.4, -2.8, -4.4], [-0.396, -0.552, 0.132, 0.816]),
    (
        "squared_hellinger",
        1.0,
        0.271061,
        [1.236068, 0.118034, -0.354503, -0.440983],
        [-0.13716, -0.05071, 0.06569, 0.12218],
    ),
    (
        "jeffreys",
        1.0,
        1.128006,
        [5.609438, 0.473144, -1.458802, -1.850651],
        [-0.61318, -0.19909, 0.28094, 0.53133],
    ),
]


@pytest.mark.parametrize(
    ("name", "scale", "value", "rewards", "gradient"), FULL_SUPPORT, ids=lambda x: str(x)[:20]
)
def test_two_categoricals_of_full_support(backend, name, scale, value, rewards, gradient):
    member = get_divergence(name)
    p, q = make_array(backend, np.log(P_A)), make_array(backend, np.log(Q_A))
    found = scale * to_numpy(member.pseudo_reward(p - q))
    # Rewards are defined up to a constant, which no gradient sees.
    np.testing.assert_allclose(found - found[0], np.subtract(rewards, rewards[0]), atol=2e-6)
    assert scale * float(member.between_logits(p, q)) == pytest.approx(value, abs=1e-6)
    score = -scale * np.asarray(Q_A) * to_numpy(member.pseudo_reward(p - q))
    np.testing.assert_allclose(score - np.asarray(Q_A) * score.sum(), gradient, atol=6e-6)


@pytest.mark.parametrize(("name", "scale", "value", "rewards", "gradient"), FULL_SUPPORT)
def test_gradient_of_the_closed_form(name, scale, value, rewards, gradient):
    logits = torch.tensor(np.log(Q_A), requires_grad=True)
    divergence = scale * get_divergence(name).between_logits(torch.tensor(np.log(P_A)), logits)
    found = torch.autograd.grad(divergence, logits)[0]
    np.testing.assert_allclose(found, gradient, atol=6e-6)


@pytest.mark.parametrize(
    ("name", "scale", "value", "gradient"),
    [
        ("forward_kl", 1.0, 0.458145, [-0.3, 0.0, 0.3]),
        ("jensen_shannon", 2.0, 0.274358, [-0.13113, -0.04801, 0.17914]),
        # The dossier leaves this gradient out: two classes tie.
        ("total_variation", 1.0, 0.3, None),
        ("pearson_chi2", 1.0, 0.75, [-0.9, 0.375, 0.525]),
        ("squared_hellinger", 1.0, 0.367544, [-0.15298, -0.09189, 0.24487]),
        ("reverse_kl", 1.0, math.inf, None),
        ("neyman_chi2", 1.0, math.inf, None),
    ],
)
def test_target_without_mass_in_one_class(backend, name, scale, value, gradient):
    p = [math.log(0.5), math.log(0.5), -math.inf]
    q = np.log([0.2, 0.5, 0.3])
    member = get_divergence(name)
    found = member.between_logits(make_array(backend, p), make_array(backend, q))
    assert scale * float(found) == pytest.approx(value, abs=1e-6)
    if gradient is not None:
        logits = torch.tensor(q, requires_grad=True)
        closed = scale * member.between_logits(torch.tensor(p, dtype=torch.float64), logits)
        np.testing.assert_allclose(torch.autograd.grad(closed, logits)[0], gradient, atol=6e-6)


def test_pseudo_rewards_where_the_target_has_no_mass():
    """f-DPG's column "r when P(x) = 0", each less its value at p = q."""
    absent = torch.tensor([-math.inf], dtype=torch.float64)
    for name, expected in (
        ("forward_kl", -1.0),
        ("reverse_kl", -math.inf),
        ("total_variation", -0.5),
        ("jensen_shannon", -0.5 * math.log(2.0)),
        ("pearson_chi2", -1.0),
        ("neyman_chi2", -math.inf),
        ("squared_hellinger", -1.0),
        ("jeffreys", -math.inf),
    ):
        assert float(get_divergence(name).pseudo_reward(absent)) == pytest.approx(expected), name


# Fixture C of f-DPG: 27 sequences of three tokens from a bigram chain, target tilted by λ φ(x).
def bigram_log_probabilities():
    start = np.asarray([0.5, 0.3, 0.2])
    rows = np.asarray([[0.6, 0.3, 0.1], [0.2, 0.5, 0.3], [0.3, 0.3, 0.4]])
    sequences = [(a, b, c) for a in range(3) for b in range(3) for c in range(3)]
    logs = [math.log(start[a] * rows[a, b] * rows[b, c]) for a, b, c in sequences]
    return np.asarray(logs), np.asarray([float(2 in sequence) for sequence in sequences])


@pytest.mark.parametrize(
    ("name", "scale", "value"),
    [
        ("forward_kl", 1.0, 0.111842),
        ("reverse_kl", 1.0, 0.118299),
        ("total_variation", 1.0, 0.234),
        ("jensen_shannon", 2.0, 0.056913),
    ],
)
def test_exponential_tilt_of_a_bigram_chain(backend, name, scale, value):
    log_base, feature = bigram_log_probabilities()
    target = make_array(backend, log_base + 0.983508 * feature)
    found = get_divergence(name).between_logits(target, make_array(backend, log_base))
    assert scale * float(found) == pytest.approx(value, abs=2e-6)


def test_pointwise_constraint_on_a_bigram_chain():
    log_base, feature = bigram_log_probabilities()
    target = torch.tensor(np.where(feature > 0.0, log_base, -np.inf))
    found = get_divergence("forward_kl").between_logits(target, torch.tensor(log_base))
    assert float(found) == pytest.approx(0.763570, abs=1e-6)


GRID = np.linspace(-40.0, 40.0, 80_001)


def normal(mean, scale):
    return -0.5 * ((GRID - mean) / scale) ** 2 - math.log(scale * math.sqrt(2.0 * math.pi))


def mixture(shift_scale):
    width = math.hypot(0.5, shift_scale)
    return np.logaddexp(
        math.log(1.0 / 3.0) + normal(-2.0, width), math.log(2.0 / 3.0) + normal(2.0, width)
    )


def expectation(log_q, values):
    kept = log_q > -300.0
    return float(np.sum(np.exp(log_q[kept]) * values[kept]) * (GRID[1] - GRID[0]))


def divergence(name, log_p, log_q):
    log_ratio = torch.tensor(log_p - log_q)
    return expectation(log_q, get_divergence(name).generator(log_ratio).numpy())


@pytest.mark.parametrize(
    ("name", "scale", "value"),
    [
        ("reverse_kl", 1.0, 0.288144),
        ("forward_kl", 1.0, 0.440919),
        ("neyman_chi2", 1.0, 0.536789),
        ("squared_hellinger", 1.0, 0.166722),
        ("jensen_shannon", 2.0, 0.156486),
        ("total_variation", 1.0, 0.313754),
    ],
)
def test_one_dimensional_gaussians(name, scale, value):
    """Fixture D of f-DPG: q = N(0.7, 0.8²), p = N(0, 1)."""
    found = divergence(name, normal(0.0, 1.0), normal(0.7, 0.8))
    assert scale * found == pytest.approx(value, abs=1e-6)


# f-distill §8.1: scale (theirs = scale · ours), then D, ∂D/∂θ, ∂D/∂log s for each blur σ.
GAUSSIAN_STUDENT = {
    "reverse_kl": (
        1.0,
        {
            0.0: (0.5431435513, 1.0, -0.36),
            0.5: (0.4258386838, 0.8, -0.2071011236),
            2.0: (0.1013617731, 0.2, -0.0099310345),
        },
    ),
    "softened_reverse_kl": (
        1.0,
        {
            0.0: (0.2641525492, 0.5479627514, -0.0626178315),
            0.5: (0.2074362984, 0.4293480149, -0.0227872856),
            2.0: (0.0501910738, 0.1015465934, 0.0010684519),
        },
    ),
    "jensen_shannon": (
        2.0,
        {
            0.0: (0.2789910021, 0.4520372486, -0.2973821685),
            0.5: (0.2184023854, 0.3706519851, -0.1843138380),
            2.0: (0.0511706993, 0.0984534066, -0.0109994864),
        },
    ),
    "squared_hellinger": (
        0.5,
        {
            0.0: (0.1519242596, 0.2585596769, -0.1939828210),
            0.5: (0.1166195588, 0.2063972994, -0.1151576859),
            2.0: (0.0259401254, 0.0505217777, -0.0058628105),
        },
    ),
    "forward_kl": (
        1.0,
        {
            0.0: (0.8393564487, 1.5625, -2.125),
            0.5: (0.5942062600, 1.1235955056, -1.0988511552),
            2.0: (0.1091899510, 0.2155172414, -0.0404280618),
        },
    ),
    "jeffreys": (
        1.0,
        {
            0.0: (1.3825, 2.5625, -2.485),
            0.5: (1.0200449438, 1.9235955056, -1.3059522788),
            2.0: (0.2105517241, 0.4155172414, -0.0503590963),
        },
    ),
    "neyman_chi2": (1.0, {0.0: (1.2360151239, 3.2882575352, 0.3636425980)}),
}
MIXTURE_TEACHER = {
    "reverse_kl": (
        1.0,
        {
            0.5: (1.1821233238, -0.5719677941, -1.2514304147),
            2.0: (0.0614715051, -0.0381745092, -0.0829570683),
        },
    ),
    "softened_reverse_kl": (1.0, {0.5: (0.7479845602, -0.4073286568, -0.7329671840)}),
    "jensen_shannon": (
        2.0,
        {
            0.5: (0.4341387636, -0.1646391373, -0.5184632307),
            2.0: (0.0323922396, -0.0185442251, -0.0460956347),
        },
    ),
    "squared_hellinger": (0.5, {0.5: (0.2383314488, -0.0858800172, -0.3071384864)}),
    "forward_kl": (
        1.0,
        {
            0.5: (0.9611658813, -0.1333333333, -1.8133333333),
            2.0: (0.0712032970, -0.0333333333, -0.1133333333),
        },
    ),
    "jeffreys": (1.0, {0.5: (2.1432892051, -0.7053011274, -3.0647637480)}),
}


def rows(table):
    return [
        pytest.param(name, scale, blur, expected, id=f"{name} at {blur}")
        for name, (scale, by_blur) in table.items()
        for blur, expected in by_blur.items()
    ]


def student_report(name, log_p, mean, scale, blur):
    """D, ∂D/∂θ and ∂D/∂log s by the path gradient, for x_t = θ + s z + blur ε."""
    width = math.hypot(scale, blur)
    log_q = normal(mean, width)
    log_ratio = torch.tensor(log_p - log_q)
    weight = get_divergence(name).path_weight(log_ratio).numpy()
    force = -weight * (np.gradient(log_p, GRID) + (GRID - mean) / width**2)
    share = (scale / width) ** 2
    return (
        divergence(name, log_p, log_q),
        expectation(log_q, force),
        expectation(log_q, force * share * (GRID - mean)),
    )


@pytest.mark.parametrize(("name", "scale", "blur", "expected"), rows(GAUSSIAN_STUDENT))
def test_gaussian_student(name, scale, blur, expected):
    found = student_report(name, normal(0.0, math.hypot(1.0, blur)), 1.0, 0.8, blur)
    np.testing.assert_allclose(scale * np.asarray(found), expected, rtol=2e-6, atol=2e-6)


@pytest.mark.parametrize(("name", "scale", "blur", "expected"), rows(MIXTURE_TEACHER))
def test_mixture_teacher(name, scale, blur, expected):
    found = student_report(name, mixture(blur), 0.5, 1.0, blur)
    np.testing.assert_allclose(scale * np.asarray(found), expected, rtol=2e-6, atol=2e-6)


@pytest.mark.parametrize(
    ("name", "by_shift"),
    [
        ("softened_reverse_kl", {0.5: 0.0495, 1.0: 0.1120, 2.0: 0.1029, 3.0: 0.0487}),
        ("jensen_shannon", {0.5: 0.0626, 1.0: 0.2564, 2.0: 1.2242, 3.0: 4.0699}),
        ("squared_hellinger", {0.5: 0.0645, 1.0: 0.2840, 2.0: 1.7183, 3.0: 8.4877}),
        ("forward_kl", {0.5: 0.2840, 1.0: 1.7183, 2.0: 53.60, 3.0: 8102.0}),
        ("jeffreys", {0.5: 0.0710, 1.0: 0.4296, 2.0: 13.40, 3.0: 2025.5}),
    ],
)
def test_normalised_variance_of_the_weights(name, by_shift):
    """f-distill §8.4: Var_q w / (E_q w)², p = N(0, 1), q = N(δ, 1)."""
    for shift, expected in by_shift.items():
        log_q = normal(shift, 1.0)
        log_ratio = torch.tensor(normal(0.0, 1.0) - log_q)
        weight = get_divergence(name).path_weight(log_ratio).numpy()
        mean = expectation(log_q, weight)
        found = expectation(log_q, weight**2) / mean**2 - 1.0
        assert found == pytest.approx(expected, rel=1e-3)


# f-distill §8.3 without blur: scale, θ*, s* and D of the best single Gaussian.
@pytest.mark.parametrize(
    ("name", "scale", "mean", "width", "value"),
    [
        ("reverse_kl", 1.0, 2.0, 0.5, 0.4054),
        ("softened_reverse_kl", 1.0, 2.0, 0.5, 0.1408),
        ("jensen_shannon", 2.0, 2.0, 0.501, 0.2646),
        ("squared_hellinger", 0.5, 2.0, 0.501, 0.1834),
        ("jeffreys", 1.0, 0.607, 1.679, 2.6324),
        ("forward_kl", 1.0, 0.6667, 1.9508, 0.7250),
    ],
)
def test_best_single_gaussian_for_a_mixture(name, scale, mean, width, value):
    log_p = mixture(0.0)

    def at(theta, s):
        return scale * divergence(name, log_p, normal(theta, s))

    best = at(mean, width)
    assert best == pytest.approx(value, abs=6e-5)
    # No better on a grid of the plane, up to the three digits that the optimum is given with.
    grid = [at(theta, s) for theta in np.linspace(-3, 3, 25) for s in np.linspace(0.3, 2.4, 15)]
    assert min(grid) > best - 1e-5


def test_divergences_of_f_distill_add_up(backend):
    """f-distill §2.2: theirs are 2 · ours for Jensen–Shannon and ours for the rest."""
    log_ratio = make_array(backend, np.linspace(-8.0, 8.0, 33))

    def function_of(name, part):
        return to_numpy(getattr(get_divergence(name), part)(log_ratio))

    for part in ("generator", "pseudo_reward", "path_weight"):
        js, softened, reverse, forward, jeffreys = (
            function_of(name, part)
            for name in (
                "jensen_shannon",
                "softened_reverse_kl",
                "reverse_kl",
                "forward_kl",
                "jeffreys",
            )
        )
        np.testing.assert_allclose(2.0 * js + softened, reverse, rtol=1e-11, atol=1e-11)
        np.testing.assert_allclose(forward + reverse, jeffreys, rtol=1e-11, atol=1e-11)


def test_softened_reverse_kl_is_twice_a_kl_to_the_mixture(backend):
    p, q = np.asarray(P_A), np.asarray(Q_A)
    middle = 0.5 * (p + q)
    expected = 2.0 * np.sum(middle * np.log(middle / p))
    found = get_divergence("softened_reverse_kl").between_logits(
        make_array(backend, np.log(p)), make_array(backend, np.log(q))
    )
    assert float(found) == pytest.approx(expected, rel=1e-12)
