"""The inner maximisation of learnt slices: Adam on the array namespace."""

from collections.abc import Callable
from typing import Any, NamedTuple

from bayesdiv._array import Array, array_namespace
from bayesdiv._control import repeat, value_and_grad


class Ascent(NamedTuple):
    """Parameters on their way up, with Adam's moments."""

    parameters: tuple[Array, ...]
    first_moment: tuple[Array, ...]
    second_moment: tuple[Array, ...]
    num_steps: Array


def start_ascent(parameters: tuple[Array, ...]) -> Ascent:
    """Adam at rest."""
    xp = array_namespace(*parameters)
    zeros = tuple(xp.zeros_like(parameter) for parameter in parameters)
    return Ascent(parameters, zeros, zeros, xp.zeros_like(xp.sum(parameters[0])))


def ascend(
    objective: Callable[[tuple[Array, ...]], Array],
    ascent: Ascent,
    *,
    num_steps: int,
    learning_rate: Any,
    first_decay: float = 0.9,
    second_decay: float = 0.999,
    offset: float = 1e-8,
) -> tuple[Ascent, Array]:
    """``num_steps`` of Adam up ``objective``; also its value before the last of them.

    Kingma and Ba (2015), algorithm 1, with the sign of a maximisation.
    """

    def step(carry: tuple[Ascent, Array]) -> tuple[Ascent, Array]:
        state, _ = carry
        value, gradient = value_and_grad(objective, state.parameters)
        count = state.num_steps + 1
        first = tuple(
            first_decay * old + (1 - first_decay) * new
            for old, new in zip(state.first_moment, gradient, strict=True)
        )
        second = tuple(
            second_decay * old + (1 - second_decay) * new * new
            for old, new in zip(state.second_moment, gradient, strict=True)
        )
        first_scale, second_scale = 1 - first_decay**count, 1 - second_decay**count
        parameters = tuple(
            parameter + learning_rate * (m / first_scale) / ((v / second_scale) ** 0.5 + offset)
            for parameter, m, v in zip(state.parameters, first, second, strict=True)
        )
        return Ascent(parameters, first, second, count), value

    return repeat(ascent.num_steps, num_steps, step, (ascent, ascent.num_steps))
