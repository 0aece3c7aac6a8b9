"""What the statistics of stochastic-gradient chains say against them; knows no host."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

_MOST_CLAMPED = 0.05
_TEMPERATURES = (0.8, 1.25)
# Of the mean temperature: batches that its error is read off, and errors it may be off by.
_NUM_BATCHES = 10
_STANDARD_ERRORS = 2.0


def chain_problems(statistics: Mapping[str, np.ndarray]) -> list[str]:
    """One sentence a problem, with what to do.

    Parameters
    ----------
    statistics
        ``clamped_fraction`` and ``kinetic_temperature``, each ``(chain, draw)``, where the sampler
        has them.
    """
    clamped = statistics.get("clamped_fraction")
    found = [] if clamped is None else clamped_problems(float(clamped.mean()))
    temperature = statistics.get("kinetic_temperature")
    return found if temperature is None else found + temperature_problems(temperature)


def clamped_problems(fraction: float) -> list[str]:
    """What a share of coordinates without injected noise says; nothing where it is small."""
    if not fraction > _MOST_CLAMPED:
        return []
    return [
        f"{fraction:.0%} of the coordinates get no injected noise, because the noise of their "
        "gradients exceeds what friction takes out (clamped_fraction), so their variance is wrong; "
        "lower step_size, or raise friction or the plate's subsample_size."
    ]


def temperature_problems(temperature: np.ndarray) -> list[str]:
    """What kinetic temperatures ``(chain, draw)`` say beyond their own noise."""
    if temperature.shape[1] < _NUM_BATCHES:
        return []
    batches = [part.mean() for part in np.array_split(temperature.mean(0), _NUM_BATCHES)]
    mean = float(np.mean(batches))
    slack = _STANDARD_ERRORS * float(np.std(batches, ddof=1)) / _NUM_BATCHES**0.5
    low, high = _TEMPERATURES
    if low - slack <= mean <= high + slack:
        return []
    cure = (
        "minibatch noise heats the chains; lower step_size, or raise friction or the plate's "
        "subsample_size"
        if mean > 1.0
        else "less noise is injected than friction takes out; lower step_size, or pass "
        "subtract_gradient_noise=False if the gradients are exact"
    )
    return [f"the kinetic temperature over the draws is {mean:.2f} where it should be 1: {cure}."]
