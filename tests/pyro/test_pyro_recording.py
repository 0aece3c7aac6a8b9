"""Recorded functions give the same, with fewer operations, and refuse what cannot be recorded."""

import pytest
import torch
from torch.fx.experimental.proxy_tensor import make_fx

from bayesdiv.pyro._recording import record

DATA = torch.linspace(0.5, 2.0, 6, dtype=torch.float64)


def wasteful(x):
    """Identities, repetitions and constants around a little that is needed."""
    constant = (DATA.log() + torch.ones_like(DATA)).expand(6)
    y = (x * torch.ones(6, dtype=torch.float64) + torch.zeros(6, dtype=torch.float64)) ** 1
    y = y.view(6).expand(6)
    first = (y - constant) ** 2
    again = (y - constant) ** 2
    return first.sum() + (again * torch.full_like(x, 2.0)).sum(), (y / 1.0).reshape(6)


def count(module):
    return sum(node.op == "call_function" for node in module.graph.nodes)


def test_a_recording_gives_the_same_with_fewer_operations():
    x = torch.randn(6, dtype=torch.float64)
    recorded = record(wasteful, x)
    for point in (x, 3.0 * x + 1.0):
        for found, expected in zip(recorded(point), wasteful(point), strict=True):
            torch.testing.assert_close(found, expected, rtol=0, atol=0)
    plain = make_fx(wasteful)(x)
    # Left: the difference, its square, its sum, the doubled square, its sum and the total.
    assert count(recorded.__wrapped__.__self__) == 6
    assert count(plain) > 15


def test_a_recording_of_a_gradient_is_the_gradient():
    def function(x, index):
        def potential(row, chosen):
            return ((row[:2].exp() * DATA[chosen]).sum() - row[2]) ** 2 + row.prod()

        with torch.no_grad():
            return torch.func.vmap(torch.func.grad_and_value(potential))(x, index)

    x, index = torch.randn(4, 3, dtype=torch.float64), torch.randint(6, (4, 2))
    recorded = record(function, x, index)
    for rows in (index, index.flip(0)):
        for found, expected in zip(recorded(x - 0.3, rows), function(x - 0.3, rows), strict=True):
            torch.testing.assert_close(found, expected)


def test_nothing_is_dropped_that_changes_shape_type_or_value():
    def function(x):
        wide = x * torch.ones(2, 3, dtype=torch.float64)
        double = x.float() * torch.ones(3, dtype=torch.float64)
        turned = wide.transpose(0, 1).reshape(2, 3)
        return wide, double, turned, x * torch.tensor([1.0, 1.0, 2.0]), 1.0 / x, x**2

    x = torch.tensor([1.0, 2.0, 3.0])
    for found, expected in zip(record(function, x)(x + 1.0), function(x + 1.0), strict=True):
        assert found.dtype == expected.dtype
        torch.testing.assert_close(found, expected, rtol=0, atol=0)


def test_functions_that_write_in_place_are_recorded_as_they_are():
    def function(x):
        total = torch.zeros(3)
        total.add_(x)
        total.mul_(total)
        return total, total.sum()

    x = torch.tensor([1.0, 2.0, 3.0])
    recorded = record(function, x)
    for _ in range(2):
        for found, expected in zip(recorded(x), function(x), strict=True):
            torch.testing.assert_close(found, expected)


def test_functions_that_draw_or_branch_are_refused():
    with pytest.raises(RuntimeError, match="draws random numbers"):
        record(lambda x: (x + torch.randn(3),), torch.ones(3))
    with pytest.raises(RuntimeError):
        record(lambda x: (x if x.sum() > 0 else -x,), torch.ones(3))
