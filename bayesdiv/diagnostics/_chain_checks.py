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
    found = []
    clamped = statistics.get("clamped_fraction")
    if clamped is not None and clamped.mean() > _MOST_CLAMPED:
        found.append(
            f"{clamped.mean():.0%} of the coordinates get no injected noise, because the noise of "
            "their gradients exceeds what friction takes out (clamped_fraction), so their variance "
            "is wrong; lower step_size, or raise friction or the plate's subsample_size."
        )
    temperature = statistics.get("kinetic_temperature")
    if temperature is not None and temperature.shape[1] >= _NUM_BATCHES:
        found += _temperature_problems(temperature)
    return found


def _temperature_problems(temperature: np.ndarray) -> list[str]:
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
