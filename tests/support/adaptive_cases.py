"""Series on which adaptive proposals are tested, simulated as the literature's models are."""

import numpy as np


def growth_series(emission_scale: float, num_times: int = 50) -> np.ndarray:
    """Observations of the growth model."""
    rng = np.random.default_rng(3)
    states = np.empty(num_times)
    states[0] = 2.0 * rng.normal()
    for time in range(1, num_times):
        last = states[time - 1]
        mean = last / 2 + 25 * last / (1 + last**2) + 8 * np.cos(1.2 * (time - 1))
        states[time] = mean + np.sqrt(10.0) * rng.normal()
    return states**2 / 20 + emission_scale * rng.normal(size=num_times)


def plane_series(persistence: float, num_times: int = 50) -> tuple[np.ndarray, np.ndarray]:
    """States of the plane, ``(num_times, 2)``, and standard normal noise of the observations."""
    rng = np.random.default_rng(3)
    states = np.empty((num_times, 2))
    states[0] = rng.normal(size=2)
    for time in range(1, num_times):
        states[time] = persistence * states[time - 1] + rng.normal(size=2)
    return states, rng.normal(size=num_times)


def ring_series(emission_scale: float) -> np.ndarray:
    """Distances of a random walk from the origin, with noise."""
    states, noise = plane_series(1.0)
    return np.linalg.norm(states, axis=1) + emission_scale * noise


def tobit_series(emission_scale: float) -> np.ndarray:
    """A linear observation, censored at zero."""
    states, noise = plane_series(0.8)
    return np.maximum(states @ [1.0, 0.5] + emission_scale * noise, 0.0)
