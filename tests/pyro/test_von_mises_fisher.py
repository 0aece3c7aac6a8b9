"""The von Mises–Fisher law against SciPy's, its integral, and its moments."""

import math

import numpy as np
import pyro
import pytest
import torch
from scipy.stats import vonmises_fisher

from bayesdiv.pyro.distributions import VonMisesFisher


def unit(*shape):
    rows = torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    return rows / rows.norm(dim=-1, keepdim=True)


@pytest.mark.parametrize(("dim", "kappa"), [(2, 0.3), (3, 2.0), (5, 300.0), (200, 50.0)])
def test_density_is_scipys(dim, kappa):
    center, values = unit(dim), unit(7, dim)
    found = VonMisesFisher(3.0 * center, kappa).log_prob(values)
    expected = vonmises_fisher(center.numpy(), kappa).logpdf(values.numpy())
    np.testing.assert_allclose(found, expected, rtol=1e-9)


def test_density_integrates_to_one_where_bessel_functions_vanish():
    """In 600 dimensions I(κ) is below the smallest number; almost uniform there."""
    dim, kappa = 600, 0.5
    values = unit(2000, dim)
    log_area = math.log(2.0) + dim / 2.0 * math.log(math.pi) - math.lgamma(dim / 2.0)
    found = VonMisesFisher(unit(dim), kappa).log_prob(values)
    mean = (found + log_area).exp().mean()
    assert float(mean) == pytest.approx(1.0, abs=5.0 * kappa / dim**0.5 / 2000**0.5 + 1e-3)


@pytest.mark.parametrize(("dim", "kappa"), [(2, 0.3), (3, 2.0), (20, 40.0)])
def test_draws_have_the_laws_mean(dim, kappa):
    torch.manual_seed(0)
    law = VonMisesFisher(unit(dim), kappa)
    rows = law.sample((20_000,))
    assert rows.shape == (20_000, dim)
    torch.testing.assert_close(rows.norm(dim=-1), torch.ones(20_000, dtype=torch.float64))
    error = rows.std(0) / 20_000**0.5
    assert ((rows.mean(0) - law.mean).abs() < 5.0 * error).all()
    # The second moment along μ: E⟨μ, x⟩² = 1 − (d − 1)/κ · |E x|.
    along = (rows @ law.direction) ** 2
    expected = 1.0 - (dim - 1.0) / kappa * float(law.mean.norm())
    assert float(along.mean()) == pytest.approx(expected, abs=5.0 * float(along.std()) / 141.0)


def test_slope_vanishes_where_shapes_agree_and_amplitude_does_not_count():
    """The angle itself has an infinite slope there."""
    value = unit(6)
    drawn = (2.0 * value).requires_grad_()
    law = VonMisesFisher(drawn, 1.0)
    (slope,) = torch.autograd.grad(law.log_prob(value), drawn)
    torch.testing.assert_close(slope, torch.zeros(6, dtype=torch.float64), atol=1e-12, rtol=0.0)
    # Not to its own length: that is no number to compare acos(1) with.
    other = VonMisesFisher(7.0 * drawn, 1.0).log_prob(unit(2, 6)[1])
    torch.testing.assert_close(other, law.log_prob(unit(2, 6)[1]))
    silent = VonMisesFisher(torch.zeros(6, requires_grad=True), 1.0).log_prob(value.float())
    assert torch.isfinite(silent)


def test_it_goes_into_a_plate():
    with pyro.plate("rows", 5):
        rows = pyro.sample("x", VonMisesFisher(unit(3), 4.0))
    assert rows.shape == (5, 3)
    assert VonMisesFisher(unit(5, 3), 4.0).log_prob(rows).shape == (5,)


@pytest.mark.parametrize(
    ("direction", "kappa", "error", "message"),
    [
        (torch.ones(3), torch.tensor(1.0), TypeError, "must be a number, got Tensor"),
        (torch.ones(3), -1.0, ValueError, "positive and finite, got -1.0"),
        (torch.ones(1), 1.0, ValueError, r"at least 2 dimensions, shape \(..., d\), got \(1,\)"),
    ],
    ids=["tensor", "negative", "line"],
)
def test_bad_input_is_named(direction, kappa, error, message):
    with pytest.raises(error, match=message):
        VonMisesFisher(direction, kappa)


def test_values_off_the_sphere_are_refused():
    with pytest.raises(ValueError, match="sphere|Sphere|support"):
        VonMisesFisher(torch.ones(3), 1.0, validate_args=True).log_prob(torch.ones(3))
