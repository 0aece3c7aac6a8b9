"""Plates, subsampling, loops and masks under every kind of objective."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import SVI
from pyro.infer.autoguide import AutoNormal
from pyro.optim import SGD
from pyro_steps import leaves, step

from bayesdiv.pyro import objective

ROWS = 6
CONSTANT = torch.full((ROWS,), 0.7, dtype=torch.float64)
DATA = torch.tensor([0.4, 1.1, -0.3, 2.0, 0.7, -1.2], dtype=torch.float64)


@pytest.fixture(autouse=True)
def _float64():
    torch.set_default_dtype(torch.float64)


def normal_guide(name, *, centre=0.2, scale=0.8, shape=()):
    location = pyro.param(f"{name}_location", torch.full(shape, centre))
    return pyro.sample(name, dist.Normal(location, scale))


def no_plate(size=None):
    z = pyro.sample("z", dist.Normal(0.0, 1.0))
    pyro.sample("x", dist.Normal(z, 1.0), obs=DATA[0])


def no_plate_guide(size=None):
    normal_guide("z")


def data_plate(size=None):
    z = pyro.sample("z", dist.Normal(0.0, 1.0))
    with pyro.plate("rows", ROWS, subsample_size=size, dim=-1) as index:
        pyro.sample("x", dist.Normal(z, 1.0), obs=DATA[index])


def common_plate(size=None, data=DATA):
    with pyro.plate("rows", ROWS, subsample_size=size, dim=-1) as index:
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("x", dist.Normal(z, 1.0), obs=data[index])


def common_plate_guide(size=None, data=DATA):
    location, slope = pyro.param("location", torch.tensor(0.1)), pyro.param("slope", DATA.sum())
    with pyro.plate("rows", ROWS, subsample_size=size, dim=-1) as index:
        pyro.sample("z", dist.Normal(location + 0.1 * slope * data[index], 0.8))


def nested_plates(size=None):
    with pyro.plate("columns", 2, dim=-2):
        a = pyro.sample("a", dist.Normal(0.0, 1.0))
        with pyro.plate("rows", ROWS, subsample_size=size, dim=-1) as index:
            pyro.sample("x", dist.Normal(a, 1.0), obs=DATA[index].expand(2, -1))


def nested_plates_guide(size=None):
    with pyro.plate("columns", 2, dim=-2):
        normal_guide("a", shape=(2, 1))


def looped_plate(size=None):
    z = pyro.sample("z", dist.Normal(0.0, 1.0))
    for i in pyro.plate("rows", ROWS, subsample_size=size):
        pyro.sample(f"x{int(i)}", dist.Normal(z, 1.0), obs=DATA[i])


CASES = {
    "no_plate": (no_plate, no_plate_guide),
    "data_plate": (data_plate, no_plate_guide),
    "common_plate": (common_plate, common_plate_guide),
    "nested_plates": (nested_plates, nested_plates_guide),
    "looped_plate": (looped_plate, no_plate_guide),
}
OBJECTIVES = [
    "reverse_kl",
    "forward_kl",
    "jensen_shannon",
    "pearson_chi2",
    "total_variation",
    "iwae",
    "renyi",
    "tail_adaptive",
]


@pytest.mark.parametrize("subsampled", [False, True], ids=["full", "subsampled"])
@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("name", OBJECTIVES)
def test_catalogue_of_plates(name, case, subsampled):
    model, guide = CASES[case]
    size = 2 if subsampled else None
    biased = subsampled and case in ("data_plate", "nested_plates", "looped_plate")
    for vectorized in (True, False):
        loss = objective(name, num_particles=4, vectorize_particles=vectorized)
        if biased and name != "reverse_kl":
            with pytest.raises(ValueError, match=r"plate 'rows' is subsampled \(2 of 6\)"):
                step(loss, model, guide, size)
            continue
        value, gradients = step(loss, model, guide, size)
        assert value == value
        assert gradients
        assert all(bool(torch.isfinite(gradient).all()) for gradient in gradients.values())


@pytest.mark.parametrize("name", ["forward_kl", "jensen_shannon", "squared_hellinger", "iwae"])
@pytest.mark.parametrize("gradient", ["path", "reparam", "score"])
def test_elements_of_a_common_plate_are_independent_problems(name, gradient):
    """The loss of a plate is the sum of the losses of its elements, draw for draw."""
    common_plate_guide()
    arguments = {"num_particles": 5, "gradient": gradient, "max_plate_nesting": 1}
    torch.manual_seed(0)
    noise = torch.randn(5, ROWS)

    def guide(rows):
        location, slope = pyro.param("location"), pyro.param("slope")
        with pyro.plate("rows", len(rows), dim=-1):
            normal = dist.Normal(location + 0.1 * slope * DATA[rows], 0.8)
            pyro.sample("z", _Replayed(normal, noise[:, rows]))

    def model(rows):
        with pyro.plate("rows", len(rows), dim=-1):
            z = pyro.sample("z", dist.Normal(0.0, 1.0))
            pyro.sample("x", dist.Normal(z, 1.0), obs=DATA[rows])

    whole = step(objective(name, **arguments), model, guide, torch.arange(ROWS))
    parts = [
        step(objective(name, **arguments), model, guide, torch.tensor([i])) for i in range(ROWS)
    ]
    assert whole[0] == pytest.approx(sum(part[0] for part in parts), rel=1e-10)
    for key, value in whole[1].items():
        torch.testing.assert_close(value, sum(part[1][key] for part in parts))


class _Replayed(dist.Normal):
    """A normal whose standardised draws are given."""

    def __init__(self, normal, noise, validate_args=None):
        self.noise = noise
        super().__init__(normal.loc, normal.scale, validate_args=False)

    def expand(self, batch_shape, _instance=None):
        wide = dist.Normal(self.loc.expand(batch_shape), self.scale.expand(batch_shape))
        return _Replayed(wide, self.noise)

    def rsample(self, sample_shape=()):
        return self.loc + self.scale * self.noise

    def sample(self, sample_shape=()):
        return self.rsample().detach()


@pytest.mark.parametrize("name", OBJECTIVES)
def test_subsampled_loss_is_the_full_one_on_exchangeable_data(name):
    """Every element has the same data and the same draws, so that any subset will do."""
    noise = torch.randn(5, 1)

    def guide(size):
        location = pyro.param("location", torch.tensor(0.1))
        with pyro.plate("rows", ROWS, subsample_size=size, dim=-1) as index:
            draws = noise.expand(5, len(index))
            pyro.sample("z", _Replayed(dist.Normal(location.expand(len(index)), 0.8), draws))

    arguments = {"num_particles": 5, "max_plate_nesting": 1}

    def model(size):
        common_plate(size, CONSTANT)

    whole = step(objective(name, **arguments), model, guide, None)
    for size in (1, 2, 5):
        part = step(objective(name, **arguments), model, guide, size)
        assert part[0] == pytest.approx(whole[0], rel=1e-10)
        torch.testing.assert_close(
            part[1]["location"], whole[1]["location"], rtol=1e-10, atol=1e-12
        )


def test_a_mask_removes_elements():
    keep = torch.tensor([True, True, False, True, False, False])

    def masked(size=None):
        with poutine.mask(mask=keep):
            common_plate(size)

    def masked_guide(size=None):
        with poutine.mask(mask=keep):
            common_plate_guide(size)

    def only(rows):
        def model():
            with pyro.plate("rows", len(rows), dim=-1):
                z = pyro.sample("z", dist.Normal(0.0, 1.0))
                pyro.sample("x", dist.Normal(z, 1.0), obs=DATA[rows])

        return model

    def only_guide(rows):
        def guide():
            location, slope = pyro.param("location"), pyro.param("slope")
            with pyro.plate("rows", len(rows), dim=-1):
                pyro.sample("z", dist.Normal(location + 0.1 * slope * DATA[rows], 0.8))

        return guide

    common_plate_guide()
    rows = keep.nonzero()[:, 0]
    arguments = {"num_particles": 4000, "max_plate_nesting": 1}
    for name in ("jensen_shannon", "total_variation"):
        masked_step = step(objective(name, **arguments), masked, masked_guide)
        short_step = step(objective(name, **arguments), only(rows), only_guide(rows))
        assert masked_step[0] == pytest.approx(short_step[0], rel=0.1)


def test_annealing_scales_the_terms_inside_the_log_weight():
    def annealed(model, factor):
        return poutine.scale(model, scale=factor)

    guide = AutoNormal(no_plate)
    guide()
    for name in ("reverse_kl", "forward_kl"):
        plain = step(objective(name, num_particles=4), no_plate, guide)
        same = step(objective(name, num_particles=4), annealed(no_plate, 1.0), annealed(guide, 1.0))
        half = step(objective(name, num_particles=4), annealed(no_plate, 0.5), annealed(guide, 0.5))
        assert same[0] == pytest.approx(plain[0], rel=1e-12)
        assert half[0] != pytest.approx(plain[0], rel=1e-3)
    # Reverse KL is linear, so that half of every term is half of the loss.
    assert step(objective("reverse_kl"), annealed(no_plate, 0.5), annealed(guide, 0.5))[
        0
    ] == pytest.approx(0.5 * step(objective("reverse_kl"), no_plate, guide)[0], rel=1e-12)


def test_a_deterministic_site_outside_leaves_the_plate_common():
    def with_total(size=None):
        common_plate(size)
        pyro.deterministic("total", torch.zeros(()))

    value, _ = step(objective("forward_kl", num_particles=4), with_total, common_plate_guide, 2)
    expected, _ = step(
        objective("forward_kl", num_particles=4), common_plate, common_plate_guide, 2
    )
    assert value == pytest.approx(expected, rel=1e-12)


def test_a_running_normaliser_needs_plates_whose_elements_stay():
    with pytest.raises(ValueError, match=r"normalizer='running'.*\['rows'\] are subsampled"):
        step(objective("forward_kl", normalizer="running"), common_plate, common_plate_guide, 2)
    loss = objective("forward_kl", normalizer="running")
    step(loss, common_plate, common_plate_guide)
    assert loss.normalizer_state.log_mean.shape == (ROWS,)
    assert not loss.normalizer_state.log_mean.requires_grad


def test_shapes_that_do_not_fit_their_plates_are_refused():
    def wide(size=None):
        z = pyro.sample("z", dist.Normal(0.0, 1.0))
        pyro.sample("x", dist.Normal(z, 1.0), obs=DATA)

    with pytest.raises(ValueError, match='at site "x", invalid log_prob shape'):
        step(objective("reverse_kl", vectorize_particles=False), wide, no_plate_guide)


def test_a_subsampled_step_moves_parameters_through_svi():
    svi = SVI(common_plate, common_plate_guide, SGD({"lr": 0.01}), loss=objective("forward_kl"))
    svi.step(2)
    before = {name: leaf.detach().clone() for name, leaf in leaves().items()}
    svi.step(2)
    assert any(bool((leaf != before[name]).any()) for name, leaf in leaves().items())
