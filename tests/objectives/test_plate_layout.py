"""Independent plates: which enclose every site, how terms reduce to them, subsampling."""

import numpy as np
import pytest
import torch
from helpers import make_array, to_numpy

from bayesdiv.objectives import estimate
from bayesdiv.objectives._plates import (
    Plate,
    PlateLayout,
    SiteTerm,
    find_layout,
    reduce_to_layout,
    total,
)

ROWS = Plate("rows", -1, 4, 4)
GROUPS = Plate("groups", -2, 3, 3)
MINIBATCH = Plate("rows", -1, 4, 40)


def site(name, *plates, shape=()):
    return SiteTerm(name, np.zeros(shape), frozenset(plates))


class TestFindLayout:
    def test_only_plates_around_every_site_are_common(self):
        layout = find_layout([site("z", GROUPS), site("x", GROUPS, ROWS)], linear=False)
        assert layout == PlateLayout((GROUPS,), 1.0)

    def test_a_global_site_leaves_none(self):
        layout = find_layout([site("w"), site("x", ROWS)], linear=False)
        assert layout == PlateLayout((), 1.0)

    def test_common_plates_are_ordered_from_the_left(self):
        sites = [site("z", ROWS, GROUPS), site("x", GROUPS, ROWS)]
        assert find_layout(sites, linear=False).common == (GROUPS, ROWS)

    def test_scales_of_subsampled_common_plates_multiply(self):
        half = Plate("groups", -2, 3, 6)
        layout = find_layout([site("z", half, MINIBATCH)], linear=False)
        assert layout.scale == 20.0

    def test_no_sites(self):
        assert find_layout([], linear=False) == PlateLayout((), 1.0)

    def test_a_subsampled_plate_that_is_not_common_is_an_error_unless_linear(self):
        sites = [site("weights"), site("bias"), site("x", MINIBATCH)]
        message = (
            r"plate 'rows' is subsampled \(4 of 40\) but does not enclose the sites "
            r"\['weights', 'bias'\]\. .* use 'reverse_kl', drop the subsampling"
        )
        with pytest.raises(ValueError, match=message):
            find_layout(sites, linear=False)
        assert find_layout(sites, linear=True) == PlateLayout((), 1.0)

    def test_a_full_plate_that_is_not_common_is_fine(self):
        assert find_layout([site("w"), site("x", ROWS)], linear=False).common == ()


class TestReduceToLayout:
    TERM = np.random.default_rng(0).normal(size=(5, 3, 4))

    @pytest.mark.parametrize(
        ("common", "expected"),
        [
            ((), TERM.sum((1, 2))),
            ((GROUPS,), TERM.sum(2)),
            ((ROWS,), TERM.sum(1)),
            ((GROUPS, ROWS), TERM),
        ],
        ids=["none", "groups", "rows", "both"],
    )
    def test_keeps_particles_and_common_plates(self, backend, common, expected):
        term = make_array(backend, self.TERM)
        found = reduce_to_layout(term, PlateLayout(common, 1.0), particle_dim=-3)
        np.testing.assert_allclose(to_numpy(found), expected, rtol=1e-14, atol=1e-15)

    def test_one_particle_at_a_time(self, backend):
        term = make_array(backend, self.TERM[0])
        kept = reduce_to_layout(term, PlateLayout((GROUPS,), 1.0), particle_dim=None)
        np.testing.assert_allclose(to_numpy(kept), self.TERM[0].sum(1), rtol=1e-14)
        alone = reduce_to_layout(term, PlateLayout((), 1.0), particle_dim=None)
        assert float(to_numpy(alone)) == pytest.approx(self.TERM[0].sum())

    def test_terms_may_lack_outer_axes(self, backend):
        """A site that no particle changes, and one outside the leftmost plate."""
        constant = make_array(backend, self.TERM[0, 0])
        found = reduce_to_layout(constant, PlateLayout((), 1.0), particle_dim=-3)
        assert tuple(found.shape) == (1,)
        assert float(to_numpy(found)[0]) == pytest.approx(self.TERM[0, 0].sum())
        found = reduce_to_layout(constant, PlateLayout((ROWS,), 1.0), particle_dim=-3)
        np.testing.assert_array_equal(to_numpy(found), self.TERM[:1, 0])

    def test_axes_left_of_the_particles_are_summed(self, backend):
        term = make_array(backend, self.TERM)
        found = reduce_to_layout(term, PlateLayout((ROWS,), 1.0), particle_dim=-2)
        np.testing.assert_allclose(to_numpy(found), self.TERM.sum(0), rtol=1e-14)


class TestTotal:
    def test_terms_are_added_and_broadcast(self, backend):
        small, large = make_array(backend, [[1.0]]), make_array(backend, [[1.0, 2.0]])
        found = total([small, large], (3, 2), like=small)
        np.testing.assert_array_equal(to_numpy(found), [[2.0, 3.0]] * 3)

    def test_no_terms_are_zeros_of_the_right_kind(self, backend):
        like = make_array(backend, [1.0], "float32")
        found = total([], (3, 2), like=like)
        assert found.dtype == like.dtype
        np.testing.assert_array_equal(to_numpy(found), np.zeros((3, 2)))


@pytest.mark.parametrize("name", ["reverse_kl", "forward_kl", "jensen_shannon", "renyi", "iwae"])
def test_subsampled_equals_full_on_exchangeable_data(backend, name):
    """Equal rows: a tenth of them, scaled after the non-linearity, is the whole, exactly."""
    column = np.random.default_rng(1).normal(size=(8, 1))
    full = estimate(name, make_array(backend, np.repeat(column, 40, 1)))
    layout = find_layout([site("z", MINIBATCH), site("x", MINIBATCH)], linear=False)
    part = estimate(name, make_array(backend, np.repeat(column, 4, 1)), scale=layout.scale)
    for attribute in ("value", "surrogate", "log_evidence"):
        assert float(to_numpy(getattr(part, attribute))) == pytest.approx(
            float(to_numpy(getattr(full, attribute))), rel=1e-13
        )


@pytest.mark.parametrize("name", ["forward_kl", "jensen_shannon", "iwae"])
def test_a_random_minibatch_is_unbiased_for_the_full_estimate(name):
    """All minibatches of 2 of 5 rows average to the full value and gradient."""
    log_weight = torch.tensor(np.random.default_rng(2).normal(size=(6, 5)), requires_grad=True)
    full = estimate(name, log_weight)
    pairs = [(i, j) for i in range(5) for j in range(i)]
    parts = [estimate(name, log_weight[:, list(pair)], scale=2.5) for pair in pairs]
    mean = sum(part.loss for part in parts) / len(pairs)
    torch.testing.assert_close(mean, full.loss, rtol=1e-13, atol=1e-13)
    torch.testing.assert_close(
        torch.autograd.grad(mean, log_weight), torch.autograd.grad(full.loss, log_weight)
    )
