"""The mixture of experts as each host uses distributions, and what it refuses."""

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as numpyro_dist
import pyro
import pyro.distributions as pyro_dist
import pytest
import torch
from helpers import make_array, to_numpy

from bayesdiv import _mixture_of_experts as formulas
from bayesdiv.numpyro.distributions import MixtureOfExperts as NumPyroLaw
from bayesdiv.numpyro.distributions import MixtureOfExpertsParameters
from bayesdiv.pyro.distributions import MixtureOfExperts as PyroLaw

LAWS = {"torch": PyroLaw, "jax": NumPyroLaw}
FEATURES = np.array([[1.0, -0.5], [1.0, 0.5], [1.0, 2.0]])
RAW = MixtureOfExpertsParameters(
    np.array([[0.3, 1.0], [0.0, 0.0]]), np.array([[1.0, 2.0], [0.0, -1.0]]), np.array([0.5, 1.5])
)


def make_law(backend, *, features=FEATURES, validate_args=None, **changes):
    settings = {
        key: changes.pop(key) for key in ("experts", "degrees_of_freedom") if key in changes
    }
    raw = RAW._replace(**changes)
    parts = [None if part is None else make_array(backend, part) for part in raw]
    return LAWS[backend](
        make_array(backend, features),
        MixtureOfExpertsParameters(*parts),
        validate_args=validate_args,
        **settings,
    )


def test_pyro_expands_and_stands_in_plates():
    law = make_law("torch")
    wide = law.expand((4, 3))
    assert wide.batch_shape == (4, 3)
    assert wide.sample().shape == (4, 3)
    value = torch.zeros(4, 3, dtype=torch.float64)
    np.testing.assert_allclose(
        to_numpy(wide.log_prob(value)), np.tile(to_numpy(law.log_prob(value[0])), (4, 1))
    )
    assert wide.mean.shape == wide.variance.shape == (4, 3)
    assert wide.to_event(1).log_prob(value).shape == (4,)
    assert not law.has_rsample
    assert make_law("torch", experts="bernoulli", scale=None).support is (
        pyro_dist.constraints.boolean
    )
    with pyro.plate("chains", 4, dim=-2), pyro.plate("data", 3, dim=-1):
        assert pyro.sample("y", law).shape == (4, 3)


def test_numpyro_is_a_pytree_and_stands_in_plates():
    law = make_law("jax")
    value = jnp.zeros(3)
    through = jax.jit(lambda law: law.log_prob(value))(law)
    np.testing.assert_allclose(through, law.log_prob(value))
    shifts = jnp.arange(2.0)

    def shifted(shift):
        parameters = law.parameters._replace(coefficients=law.parameters.coefficients + shift)
        return NumPyroLaw(law.features, parameters)

    laws = jax.vmap(shifted)(shifts)
    found = jax.vmap(lambda law: law.log_prob(value))(laws)
    np.testing.assert_allclose(found[1], shifted(1.0).log_prob(value))
    assert law.expand((4, 3)).to_event(1).log_prob(jnp.zeros((4, 3))).shape == (4,)
    assert not law.has_rsample
    assert law.support is numpyro_dist.constraints.real
    with numpyro.handlers.seed(rng_seed=0), numpyro.plate("data", 3):
        assert numpyro.sample("y", law).shape == (3,)


def test_draws_are_the_same_inside_jit():
    law = make_law("jax", experts="student_t", degrees_of_freedom=4.0)
    key = jax.random.key(0)
    compiled = jax.jit(lambda law, key: law.sample(key, (5,)))(law, key)
    np.testing.assert_allclose(compiled, law.sample(key, (5,)), rtol=1e-12)


def test_torch_draws_carry_no_graph_and_log_prob_does():
    gate = torch.tensor(RAW.gate, requires_grad=True)
    parameters = MixtureOfExpertsParameters(gate, *map(torch.tensor, RAW[1:]))
    law = PyroLaw(torch.tensor(FEATURES), parameters)
    draw = law.sample()
    assert not draw.requires_grad
    (slope,) = torch.autograd.grad(law.log_prob(draw).sum(), gate)
    # Rows of the gate sum to a constant, hence so do the slopes.
    np.testing.assert_allclose(to_numpy(slope.sum(0)), 0.0, atol=1e-14)
    assert to_numpy(slope).any()


def test_integers_and_mixed_precision_are_promoted():
    single = MixtureOfExpertsParameters(*(np.float32(part) for part in RAW))
    counts = np.array([[1, 0], [1, 1], [1, 2]])
    torch_law = PyroLaw(
        torch.tensor(counts), MixtureOfExpertsParameters(*map(torch.tensor, single))
    )
    assert torch_law.mean.dtype == torch.float32
    jax_law = NumPyroLaw(counts, single)
    assert jax_law.mean.dtype == jnp.float32
    np.testing.assert_allclose(to_numpy(torch_law.mean), to_numpy(jax_law.mean), rtol=1e-6)
    mixed = single._replace(gate=RAW.gate)
    assert NumPyroLaw(counts, mixed).mean.dtype == jnp.float64
    torch_mixed = MixtureOfExpertsParameters(*map(torch.tensor, mixed))
    assert PyroLaw(torch.tensor(counts), torch_mixed).mean.dtype == torch.float64


BAD = {
    "unknown family": (
        {"experts": "poisson"},
        "experts must be one of .*, got 'poisson'",
    ),
    "freedom is missing": ({"experts": "student_t"}, "degrees_of_freedom goes with experts='stu"),
    "freedom is too much": (
        {"degrees_of_freedom": 4.0},
        "'normal' and degrees_of_freedom=4",
    ),
    "a scale for logits": (
        {"experts": "bernoulli"},
        r"scale must be None .* shape \(2,\)",
    ),
    "no scale": ({"scale": None}, "scale must be None for experts='bernoulli' and only for them"),
    "gate's width": ({"gate": np.zeros((2, 3))}, r"gate must end in \(2, 2\) for 2 features and 2"),
    "coefficients' experts": (
        {"coefficients": np.zeros((3, 2))},
        r"coefficients must end in \(2, 2\) .* got shape \(3, 2\)",
    ),
    "scale's experts": ({"scale": np.ones(3)}, r"scale must end in \(2,\) .* got shape \(3,\)"),
    "scale's dimensions": (
        {"scale": np.array(1.0)},
        "scale must have one dimension less than",
    ),
    "square scale": (
        {"coefficients": np.zeros((2, 3, 2)), "scale": np.ones((2, 3, 2))},
        r"scale must end in \(2, 3, 3\)",
    ),
    "too few dimensions": ({"gate": np.zeros(2)}, r"gate \(experts, features\) .* \(2,\) and"),
    "negative scale": (
        {"scale": np.array([0.5, -1.0]), "validate_args": True},
        "scale must be positive, got values down to -1",
    ),
    "negative freedom": (
        {"experts": "student_t", "degrees_of_freedom": -2.0, "validate_args": True},
        "degrees_of_freedom must be positive, got values down to -2",
    ),
    "Cholesky diagonal": (
        {
            "coefficients": np.zeros((2, 1, 2)),
            "scale": np.array([[[1.0]], [[0.0]]]),
            "validate_args": True,
        },
        "scale must be positive, got values down to 0",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_parameters_that_disagree_are_named(backend, name):
    changes, message = BAD[name]
    with pytest.raises(ValueError, match=message):
        make_law(backend, **changes)


def test_wrong_types_values_and_keys_are_named(backend):
    with pytest.raises(TypeError, match="parameters must be MixtureOfExpertsParameters.* got dict"):
        LAWS[backend](make_array(backend, FEATURES), {})
    vectors = make_law(backend, coefficients=np.ones((2, 3, 2)), scale=np.stack([np.eye(3)] * 2))
    with pytest.raises(ValueError, match=r"value must have shape \(\*batch, 3\) .* got \(3, 2\)"):
        vectors.log_prob(make_array(backend, np.zeros((3, 2))))
    with pytest.raises(ValueError, match="covariance needs multivariate experts"):
        formulas.covariance(vectors.features, make_law(backend).parameters)
    with pytest.raises(TypeError, match="key must be a JAX key, got int"):
        make_law("jax").sample(3)


def test_validation_looks_at_values():
    counts = {"experts": "bernoulli", "scale": None, "validate_args": True}
    with pytest.raises(ValueError, match="support"):
        make_law("torch", **counts).log_prob(torch.tensor([0.0, 0.5, 1.0]))
    with pytest.warns(UserWarning, match="Out-of-support"):
        make_law("jax", **counts).log_prob(jnp.array([0.0, 0.5, 1.0]))
