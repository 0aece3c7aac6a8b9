"""The joint normal law of a linear-Gaussian model's states and observations, built as a matrix."""

import numpy as np

from bayesdiv.models.kalman import LinearGaussianParameters

VECTOR = LinearGaussianParameters(
    transition_matrix=np.array([[0.8, 0.3], [-0.2, 0.6]]),
    transition_scale=np.array([[0.7, 0.0], [0.2, 0.4]]),
    emission_matrix=np.array([[1.0, 0.5], [0.0, 1.0], [1.0, -1.0]]),
    emission_scale=np.array([[0.5, 0.0, 0.0], [0.1, 0.6, 0.0], [0.0, 0.2, 0.3]]),
    initial_mean=np.array([0.3, -0.4]),
    initial_scale=np.array([[1.2, 0.0], [-0.3, 0.9]]),
    transition_offset=np.array([0.1, 0.2]),
    emission_offset=np.array([0.0, -0.3, 0.5]),
)
SCALAR = LinearGaussianParameters(0.9, 0.7, 1.3, 0.4, 0.5, 1.5, -0.2, 0.1)


def joint_law(parameters: LinearGaussianParameters, num_times: int) -> tuple[np.ndarray, ...]:
    """Means and covariance blocks: of the states, of the observations, and across.

    Every state and observation is a linear map of independent standard normal numbers: those of
    the start, of each step, and of each emission.
    """
    model = LinearGaussianParameters(*(np.asarray(entry) for entry in parameters.as_matrices()))
    width, dim = model.emission_matrix.shape
    state = np.zeros((dim, num_times * (dim + width)))
    state[:, :dim], mean = model.initial_scale, model.initial_mean
    states, observations, means, observed_means = [], [], [], []
    for time in range(num_times):
        if time:
            state = model.transition_matrix @ state
            state[:, time * dim : (time + 1) * dim] += model.transition_scale
            mean = model.transition_matrix @ mean + model.transition_offset
        seen = model.emission_matrix @ state
        start = num_times * dim + time * width
        seen[:, start : start + width] += model.emission_scale
        states.append(state)
        observations.append(seen)
        means.append(mean)
        observed_means.append(model.emission_matrix @ mean + model.emission_offset)
    of_states, of_observations = np.concatenate(states), np.concatenate(observations)
    return (
        np.concatenate(means),
        np.concatenate(observed_means),
        of_states @ of_states.T,
        of_observations @ of_observations.T,
        of_states @ of_observations.T,
    )
