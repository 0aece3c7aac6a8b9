"""Gradients, optima and weights of score distillation against quadrature's numbers."""

import math

import pytest
import torch
from distillation_cases import (
    PUBLISHED_SCALE,
    NormalStudent,
    exact_routine,
    standard_normal,
    two_modes,
)

from bayesdiv.divergences import get_divergence
from bayesdiv.inference._ratio_weights import ratio_weights

# σ, divergence, D, dD/dθ, dD/dlog s, standard deviation of one row's θ-gradient; p = N(0, 1),
# θ = 1, s = 0.8, in the paper's scaling.
GAUSSIAN = [
    (0.0, "reverse_kl", 0.5431435513, 1.0, -0.36, 0.450),
    (0.0, "softened_reverse_kl", 0.2641525492, 0.5479627514, -0.0626178315, 0.173),
    (0.0, "jensen_shannon", 0.2789910021, 0.4520372486, -0.2973821685, 0.402),
    (0.0, "squared_hellinger", 0.1519242596, 0.2585596769, -0.1939828210, 0.325),
    (0.0, "forward_kl", 0.8393564487, 1.5625, -2.125, 24.03),
    (0.0, "jeffreys", 1.3825, 2.5625, -2.485, 24.08),
    (0.0, "neyman_chi2", 1.2360151239, 3.2882575352, 0.3636425980, None),
    (0.5, "reverse_kl", 0.4258386838, 0.8, -0.2071011236, 0.305),
    (0.5, "softened_reverse_kl", 0.2074362984, 0.4293480149, -0.0227872856, 0.106),
    (0.5, "jensen_shannon", 0.2184023854, 0.3706519851, -0.1843138380, 0.290),
    (0.5, "squared_hellinger", 0.1166195588, 0.2063972994, -0.1151576859, 0.211),
    (0.5, "forward_kl", 0.5942062600, 1.1235955056, -1.0988511552, 5.10),
    (0.5, "jeffreys", 1.0200449438, 1.9235955056, -1.3059522788, 5.20),
    (2.0, "reverse_kl", 0.1013617731, 0.2, -0.0099310345, 0.033),
    (2.0, "softened_reverse_kl", 0.0501910738, 0.1015465934, 0.0010684519, 0.008),
    (2.0, "jensen_shannon", 0.0511706993, 0.0984534066, -0.0109994864, 0.038),
    (2.0, "squared_hellinger", 0.0259401254, 0.0505217777, -0.0058628105, 0.021),
    (2.0, "forward_kl", 0.1091899510, 0.2155172414, -0.0404280618, 0.156),
    (2.0, "jeffreys", 0.2105517241, 0.4155172414, -0.0503590963, 0.186),
]
# The same for ⅓N(−2, ½²) + ⅔N(2, ½²), θ = 0.5, s = 1.
MIXTURE = [
    (0.5, "reverse_kl", 1.1821233238, -0.5719677941, -1.2514304147, None),
    (0.5, "softened_reverse_kl", 0.7479845602, -0.4073286568, -0.7329671840, None),
    (0.5, "jensen_shannon", 0.4341387636, -0.1646391373, -0.5184632307, None),
    (0.5, "squared_hellinger", 0.2383314488, -0.0858800172, -0.3071384864, None),
    (0.5, "forward_kl", 0.9611658813, -0.1333333333, -1.8133333333, None),
    (0.5, "jeffreys", 2.1432892051, -0.7053011274, -3.0647637480, None),
    (2.0, "reverse_kl", 0.0614715051, -0.0381745092, -0.0829570683, None),
    (2.0, "jensen_shannon", 0.0323922396, -0.0185442251, -0.0460956347, None),
    (2.0, "forward_kl", 0.0712032970, -0.0333333333, -0.1133333333, None),
]


def quadrature(teacher, student, sigma, name):
    """Value and both gradients of the diffused divergence, by a sum over a fine grid."""
    x = torch.linspace(-14.0, 14.0, 40_001, dtype=torch.float64)[:, None]
    scores, logs = zip(
        *(law.score_and_log_prob(x, sigma) for law in (teacher, student.law())), strict=True
    )
    rule, log_ratio = get_divergence(name), logs[0] - logs[1]
    mass = logs[1].exp() * float(x[1] - x[0])
    pull = -mass * rule.path_weight(log_ratio) * (scores[0] - scores[1])[:, 0]
    variance = student.log_scale.detach().exp() ** 2
    # E[s z | x_σ], which stands for ∂x/∂log s.
    along = variance / (variance + sigma**2) * (x[:, 0] - student.location.detach())
    return (mass * rule.generator(log_ratio)).sum(), pull.sum(), (pull * along).sum()


@pytest.mark.parametrize("case", GAUSSIAN + MIXTURE, ids=lambda case: f"{case[1]}-{case[0]}")
def test_exact_gradients(case):
    sigma, name, value, by_location, by_log_scale, _ = case
    teacher, student = (
        (standard_normal(), NormalStudent(1.0, 0.8))
        if case in GAUSSIAN
        else (two_modes(), NormalStudent(0.5, 1.0))
    )
    scale = PUBLISHED_SCALE[name]
    found = [scale * float(each) for each in quadrature(teacher, student, sigma, name)]
    assert found == pytest.approx([value, by_location, by_log_scale], rel=1e-6, abs=1e-8)


@pytest.mark.parametrize("case", [c for c in GAUSSIAN if c[-1]], ids=lambda c: f"{c[1]}-{c[0]}")
def test_step_has_the_exact_gradient(case):
    """One step of plain descent at rate 1 moves θ by minus the gradient."""
    sigma, name, _, by_location, by_log_scale, deviation = case
    student, count = NormalStudent(1.0, 0.8), 60_000
    routine = exact_routine(student, standard_normal(), name, sigma, batch_size=count)
    routine.step()
    moved = [
        1.0 - float(student.location.detach()),
        math.log(0.8) - float(student.log_scale.detach()),
    ]
    scale = PUBLISHED_SCALE[name]
    error = 5.0 * deviation / math.sqrt(count)
    assert scale * moved[0] == pytest.approx(by_location, abs=error)
    # ∂x/∂log s = s z, whose size is s; heavy weights make it larger, hence the factor.
    assert scale * moved[1] == pytest.approx(by_log_scale, abs=4.0 * error)


CLIPPED = {
    "jensen_shannon": 0.451941,
    "softened_reverse_kl": 0.548059,
    "squared_hellinger": 0.256002,
    "forward_kl": 1.412437,
}


@pytest.mark.parametrize("name", CLIPPED)
def test_bias_of_clipping(name):
    student = NormalStudent(1.0, 0.8, grid=True)
    routine = exact_routine(
        student, standard_normal(), name, 0.0, batch_size=400_000, ratio_clip=(0.1, 20.0)
    )
    metrics = routine.step()
    moved = 1.0 - float(student.location.detach())
    assert PUBLISHED_SCALE[name] * moved == pytest.approx(CLIPPED[name], abs=3e-6)
    assert 0.0 < float(metrics["clipped"]) < 0.2


# Where the best single Gaussian for the two modes is reached, by the start.
ENDS_WITHOUT_NOISE = {
    (0.5, 1.35): {
        "reverse_kl": (2.0, 0.5),
        "softened_reverse_kl": (2.0, 0.5),
        "jensen_shannon": (0.687, 1.923),
        "squared_hellinger": (0.673, 1.891),
        "forward_kl": (0.667, 1.951),
        "jeffreys": (0.607, 1.679),
    },
    (-1.5, 0.5): {
        "reverse_kl": (-2.0, 0.501),
        "softened_reverse_kl": (-2.0, 0.5),
        "jensen_shannon": (-1.999, 0.501),
        "squared_hellinger": (-1.999, 0.503),
    },
}
# Started on the minor mode: who leaves it.
ENDS_WITH_NOISE = {
    "reverse_kl": (-1.966, 0.562),
    "softened_reverse_kl": (-1.981, 0.534),
    "jensen_shannon": (0.670, 1.916),
    "squared_hellinger": (0.645, 1.874),
    "forward_kl": (0.667, 1.951),
    "jeffreys": (0.583, 1.749),
}


def descend(student, name, sigma, *, steps, count, rate=0.05):
    optimizer = torch.optim.Adam(student.parameters(), lr=rate)
    routine = exact_routine(
        student, two_modes(), name, sigma, optimizer=optimizer, batch_size=count
    )
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = rate * min(1.0, 2.0 * (1.0 - step / steps))
        routine.step()
    return float(student.location.detach()), float(student.log_scale.detach().exp())


@pytest.mark.parametrize(
    ("start", "name"),
    [(start, name) for start, ends in ENDS_WITHOUT_NOISE.items() for name in ends],
)
def test_restricted_student_ends_at_the_optimum(start, name):
    found = descend(NormalStudent(*start, grid=True), name, 0.0, steps=400, count=2000)
    assert found == pytest.approx(ENDS_WITHOUT_NOISE[start][name], abs=0.02)


@pytest.mark.parametrize("name", ENDS_WITH_NOISE)
def test_who_leaves_the_minor_mode(name):
    found = descend(NormalStudent(-1.5, 0.5), name, 0.5, steps=600, count=1000, rate=0.03)
    assert found == pytest.approx(ENDS_WITH_NOISE[name], abs=0.05)


# Var h / (E h)² for p = N(0, 1), q = N(δ, 1).
VARIANCES = {
    0.5: (0.0495, 0.0626, 0.0645, 0.2840, 0.0710),
    1.0: (0.1120, 0.2564, 0.2840, 1.7183, 0.4296),
    2.0: (0.1029, 1.2242, 1.7183, None, None),
    3.0: (0.0487, 4.0699, None, None, None),
}
WEIGHTED = (
    "softened_reverse_kl",
    "jensen_shannon",
    "squared_hellinger",
    "forward_kl",
    "jeffreys",
)


def weights_of(name, log_ratio, **settings):
    options = {"decay": 0.0, "normalize_ratio": False, "normalize_weight": True, **settings}
    keep = torch.ones_like(log_ratio, dtype=torch.bool)
    bins, means = torch.zeros_like(log_ratio), log_ratio.new_full((1,), -math.inf)
    return ratio_weights(get_divergence(name), log_ratio, bins, means, keep=keep, **options).weights


@pytest.mark.parametrize("shift", VARIANCES)
def test_variance_of_the_weights(shift):
    count = 2_000_000
    z = torch.special.ndtri((torch.arange(count, dtype=torch.float64) + 0.5) / count)
    log_ratio = 0.5 * shift**2 - shift * (z + shift)
    for name, expected in zip(WEIGHTED, VARIANCES[shift], strict=True):
        if expected is not None:
            found = float(weights_of(name, log_ratio).var())
            assert found == pytest.approx(expected, rel=5e-3, abs=1e-4), name


def test_identities_between_weights():
    log_ratio = torch.linspace(-8.0, 8.0, 201, dtype=torch.float64)
    raw = {
        name: scale * weights_of(name, log_ratio, normalize_weight=False)
        for name, scale in PUBLISHED_SCALE.items()
    }
    ones = torch.ones_like(log_ratio)
    torch.testing.assert_close(raw["jensen_shannon"] + raw["softened_reverse_kl"], ones)
    torch.testing.assert_close(raw["reverse_kl"], ones, rtol=0.0, atol=0.0)
    torch.testing.assert_close(raw["forward_kl"] + raw["reverse_kl"], raw["jeffreys"])
