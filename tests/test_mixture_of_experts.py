"""The mixture of experts: quadrature, independent densities, invariances, both hosts' classes."""

import math

import jax
import numpy as np
import numpyro.distributions as numpyro_dist
import pyro.distributions as pyro_dist
import pytest
from helpers import BACKENDS, assert_within_standard_errors, gradient_of, make_array, to_numpy
from scipy import stats
from scipy.integrate import quad
from scipy.special import log_softmax

from bayesdiv import _mixture_of_experts as formulas
from bayesdiv.numpyro.distributions import MixtureOfExperts as NumPyroLaw
from bayesdiv.numpyro.distributions import MixtureOfExpertsParameters
from bayesdiv.pyro.distributions import MixtureOfExperts as PyroLaw

LAWS = {"torch": PyroLaw, "jax": NumPyroLaw}
NUM_EXPERTS, WIDTH, DIM, ROWS = 4, 3, 2, 6
# Nine degrees of freedom: the sampling test needs the fourth moment.
CASES = {
    "normal": ("normal", None, None),
    "student_t": ("student_t", 9.0, None),
    "bernoulli": ("bernoulli", None, None),
    "normal, vectors": ("normal", None, DIM),
    "student_t, vectors": ("student_t", 9.0, DIM),
}


def raw_parameters(case: str, num_experts: int = NUM_EXPERTS) -> MixtureOfExpertsParameters:
    experts, _, dim = CASES[case]
    rng = np.random.default_rng(len(case))
    gate = rng.normal(size=(num_experts, WIDTH))
    shape = (num_experts, WIDTH) if dim is None else (num_experts, dim, WIDTH)
    coefficients = rng.normal(size=shape)
    scale = None
    if experts != "bernoulli":
        scale = np.exp(0.3 * rng.normal(size=num_experts))
    if dim is not None:
        lower = np.tril(rng.normal(size=(num_experts, dim, dim)), -1)
        scale = 0.5 * lower + scale[:, None, None] * np.eye(dim)
    return MixtureOfExpertsParameters(gate, coefficients, scale)


def raw_features(rows: int = ROWS) -> np.ndarray:
    values = np.random.default_rng(1).normal(size=(rows, WIDTH))
    values[:, 0] = 1.0
    return values


def as_parameters(backend: str, raw: MixtureOfExpertsParameters) -> MixtureOfExpertsParameters:
    parts = [None if part is None else make_array(backend, part) for part in raw]
    return MixtureOfExpertsParameters(*parts)


def make_law(backend, case, *, raw=None, features=None, **settings):
    experts, freedom, _ = CASES[case]
    return LAWS[backend](
        make_array(backend, raw_features() if features is None else features),
        as_parameters(backend, raw_parameters(case) if raw is None else raw),
        experts=experts,
        degrees_of_freedom=freedom,
        **settings,
    )


def raw_values(case: str) -> np.ndarray:
    experts, _, dim = CASES[case]
    rng = np.random.default_rng(2)
    if experts == "bernoulli":
        return rng.integers(2, size=ROWS).astype(float)
    return 2.0 * rng.normal(size=(ROWS,) if dim is None else (ROWS, dim))


def draws_of(backend, law, num):
    return law.sample((num,)) if backend == "torch" else law.sample(jax.random.key(3), (num,))


def scipy_densities(case: str, value: np.ndarray, features: np.ndarray) -> np.ndarray:
    """log p_k of one row from SciPy's own laws."""
    experts, freedom, dim = CASES[case]
    raw = raw_parameters(case)
    found = []
    for index in range(NUM_EXPERTS):
        place = raw.coefficients[index] @ features
        if experts == "bernoulli":
            found.append(stats.bernoulli(1.0 / (1.0 + np.exp(-place))).logpmf(value))
        elif dim is None and freedom is None:
            found.append(stats.norm(place, raw.scale[index]).logpdf(value))
        elif dim is None:
            found.append(stats.t(freedom, place, raw.scale[index]).logpdf(value))
        else:
            shape = raw.scale[index] @ raw.scale[index].T
            law = (
                stats.multivariate_normal(place, shape)
                if freedom is None
                else stats.multivariate_t(place, shape, df=freedom)
            )
            found.append(law.logpdf(value))
    return np.array(found)


@pytest.mark.parametrize("case", CASES)
def test_density_and_responsibilities_against_scipy(backend, case):
    law, features, values = make_law(backend, case), raw_features(), raw_values(case)
    value = make_array(backend, values)
    densities = np.array(
        [scipy_densities(case, *pair) for pair in zip(values, features, strict=True)]
    )
    joint = log_softmax(features @ raw_parameters(case).gate.T, axis=1) + densities
    total = np.logaddexp.reduce(joint, axis=1)
    np.testing.assert_allclose(to_numpy(law.log_prob(value)), total, rtol=1e-12, atol=1e-12)
    found = to_numpy(law.responsibilities(value))
    np.testing.assert_allclose(found, np.exp(joint - total[:, None]), rtol=1e-10, atol=1e-14)
    np.testing.assert_allclose(found.sum(1), 1.0, rtol=1e-14)


@pytest.mark.parametrize("case", ["normal", "student_t"])
def test_mass_and_moments_by_quadrature(backend, case):
    features = raw_features(1)
    law = make_law(backend, case, features=features)

    def moment(function):
        def integrand(y):
            return function(y) * math.exp(float(law.log_prob(make_array(backend, [y]))[0]))

        return sum(
            quad(integrand, *ends, epsabs=1e-11, epsrel=1e-11, limit=200)[0]
            for ends in ((-np.inf, -4.0), (-4.0, 0.0), (0.0, 4.0), (4.0, np.inf))
        )

    assert abs(moment(lambda y: 1.0) - 1.0) < 1e-9
    mean = moment(lambda y: y)
    assert abs(float(law.mean[0]) - mean) < 1e-8
    variance = moment(lambda y: (y - mean) ** 2)
    assert abs(float(law.variance[0]) - variance) < 1e-6 * variance


def test_bernoulli_moments_are_sums(backend):
    law = make_law(backend, "bernoulli")
    ones = np.exp(to_numpy(law.log_prob(make_array(backend, np.ones(ROWS)))))
    zeros = np.exp(to_numpy(law.log_prob(make_array(backend, np.zeros(ROWS)))))
    np.testing.assert_allclose(ones + zeros, 1.0, rtol=1e-14)
    np.testing.assert_allclose(to_numpy(law.mean), ones, rtol=1e-13)
    np.testing.assert_allclose(to_numpy(law.variance), ones * zeros, rtol=1e-12)


@pytest.mark.parametrize("case", CASES)
def test_hosts_agree(case):
    values = raw_values(case)
    torch_law, jax_law = make_law("torch", case), make_law("jax", case)
    found = {
        "log_prob": lambda law, value: law.log_prob(value),
        "responsibilities": lambda law, value: law.responsibilities(value),
        "mean": lambda law, _: law.mean,
        "variance": lambda law, _: law.variance,
    }
    if CASES[case][2] is not None:
        found["covariance"] = lambda law, _: law.covariance_matrix
    for name, function in found.items():
        np.testing.assert_allclose(
            to_numpy(function(torch_law, make_array("torch", values))),
            to_numpy(function(jax_law, make_array("jax", values))),
            rtol=1e-12,
            atol=1e-14,
            err_msg=name,
        )


@pytest.mark.parametrize("case", CASES)
def test_labels_and_the_gates_baseline_do_not_matter(backend, case):
    raw, value = raw_parameters(case), make_array(backend, raw_values(case))
    order = np.array([2, 0, 3, 1])
    shift = np.random.default_rng(5).normal(size=WIDTH)
    law = make_law(backend, case)
    permuted = MixtureOfExpertsParameters(*(None if p is None else p[order] for p in raw))
    shifted = raw._replace(gate=raw.gate + shift)
    for changed in (permuted, shifted):
        other = make_law(backend, case, raw=changed)
        for first, second in (
            (law.log_prob(value), other.log_prob(value)),
            (law.mean, other.mean),
            (law.variance, other.variance),
        ):
            np.testing.assert_allclose(to_numpy(first), to_numpy(second), rtol=1e-12, atol=1e-12)
    relabelled = make_law(backend, case, raw=permuted).responsibilities(value)
    np.testing.assert_allclose(
        to_numpy(relabelled), to_numpy(law.responsibilities(value))[:, order], atol=1e-12
    )
    referenced = to_numpy(formulas.referenced_gate(make_array(backend, raw.gate)))
    assert (referenced[-1] == 0.0).all()
    np.testing.assert_allclose(referenced, raw.gate - raw.gate[-1])


@pytest.mark.parametrize("case", CASES)
def test_draws_have_the_moments(backend, case):
    law = make_law(backend, case)
    draws = draws_of(backend, law, 40_000)
    assert draws.shape == (40_000, *law.batch_shape, *law.event_shape)
    assert_within_standard_errors(draws, law.mean)
    assert_within_standard_errors((draws - law.mean) ** 2, law.variance)
    if law.event_shape:
        centred = draws - law.mean
        products = centred[..., :, None] * centred[..., None, :]
        assert_within_standard_errors(products, law.covariance_matrix)


def test_draws_follow_the_distribution_function(backend):
    # Moments do not tell an expert's label drawn by the wrong weight from a wrong scale.
    features = np.array([[1.0, 0.7, -0.4]])
    raw = raw_parameters("student_t")
    law = make_law(backend, "student_t", features=features)
    weights = np.exp(log_softmax(features @ raw.gate.T, axis=1))[0]
    places = raw.coefficients @ features[0]
    draws = to_numpy(draws_of(backend, law, 20_000))[:, 0]
    result = stats.kstest(
        draws, lambda y: (weights * stats.t(9.0, places, raw.scale).cdf(y[:, None])).sum(1)
    )
    assert result.pvalue > 1e-6


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("case", CASES)
def test_one_expert_is_the_hosts_own_law(backend, case):
    raw, features, values = raw_parameters(case, 1), raw_features(), raw_values(case)
    law, value = make_law(backend, case, raw=raw), make_array(backend, values)
    (coefficients,) = raw.coefficients
    place = make_array(backend, features @ coefficients.T)
    module = {"torch": pyro_dist, "jax": numpyro_dist}[backend]
    experts, freedom, dim = CASES[case]
    scale = None if raw.scale is None else make_array(backend, raw.scale[0])
    if experts == "bernoulli":
        host = module.Bernoulli(logits=place)
    elif dim is None:
        host = (
            module.Normal(place, scale) if freedom is None else module.StudentT(9.0, place, scale)
        )
    elif freedom is None:
        host = module.MultivariateNormal(place, scale_tril=scale)
    else:
        freedom = make_array(backend, freedom)
        host = module.MultivariateStudentT(freedom, place, scale)
    np.testing.assert_allclose(
        to_numpy(law.log_prob(value)), to_numpy(host.log_prob(value)), rtol=1e-12, atol=1e-13
    )
    np.testing.assert_allclose(to_numpy(law.mean), to_numpy(host.mean), rtol=1e-12)
    np.testing.assert_allclose(to_numpy(law.variance), to_numpy(host.variance), rtol=1e-12)
    assert law.support.is_discrete == host.support.is_discrete


@pytest.mark.parametrize(
    ("freedom", "mean", "variance"), [(0.8, math.nan, math.nan), (1.5, 2.0, math.inf), (4.0, 2, 8)]
)
def test_moments_that_students_experts_lack(backend, freedom, mean, variance):
    parameters = as_parameters(backend, MixtureOfExpertsParameters([[0.0]], [[2.0]], [2.0]))
    law = LAWS[backend](
        make_array(backend, [[1.0]]), parameters, experts="student_t", degrees_of_freedom=freedom
    )
    np.testing.assert_allclose(to_numpy(law.mean), [mean])
    np.testing.assert_allclose(to_numpy(law.variance), [variance])


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_extreme_gates_values_and_logits_stay_in_log_space(backend, dtype):
    features = make_array(backend, [[1.0]], dtype)

    def law(gate, coefficients, scale, **settings):
        parts = (gate, coefficients, scale)
        arrays = [None if part is None else make_array(backend, part, dtype) for part in parts]
        parameters = MixtureOfExpertsParameters(*arrays)
        return LAWS[backend](features, parameters, **settings)

    # The only expert near the value has log gate −2000: exp would make it 0, and the density too.
    far = law([[-2000.0], [0.0]], [[1e4], [-1e4]], [1.0, 1.0])
    value = make_array(backend, [1e4], dtype)
    expected = -2000.0 - 0.5 * math.log(2.0 * math.pi)
    np.testing.assert_allclose(to_numpy(far.log_prob(value)), [expected], rtol=1e-6)
    np.testing.assert_array_equal(to_numpy(far.responsibilities(value)), [[1.0, 0.0]])
    # log(1 − σ(100)) is −100, not log 0.
    sure = law([[0.0], [0.0]], [[100.0], [100.0]], None, experts="bernoulli")
    found = sure.log_prob(make_array(backend, [0.0], dtype))
    np.testing.assert_allclose(to_numpy(found), [-100.0], rtol=1e-6)
    assert to_numpy(found).dtype == np.dtype(dtype)


def test_gradients_are_finite_where_an_expert_is_impossible(backend):
    def total(gate, coefficients, scale):
        features = make_array(backend, [[1.0, 30.0], [1.0, -30.0]])
        parameters = MixtureOfExpertsParameters(gate, coefficients, scale)
        return formulas.log_prob(make_array(backend, [900.0, 0.0]), features, parameters).sum()

    found = gradient_of(
        backend, total, [[0.0, 60.0], [0.0, 0.0]], [[0.0, 1.0], [0.0, 0.0]], [0.1, 0.1]
    )
    assert all(np.isfinite(part).all() for part in found)
    assert any(np.abs(part).max() > 0.0 for part in found)


def test_no_draw_comes_from_an_expert_of_weight_zero(backend):
    # In float32 all of these gates but the third are exactly 0.
    gate = [[-200.0], [-150.0], [0.0], [-180.0]]
    parts = (gate, [[-3.0], [-1.0], [1.0], [3.0]], [0.1] * 4)
    parameters = MixtureOfExpertsParameters(
        *(make_array(backend, part, "float32") for part in parts)
    )
    law = LAWS[backend](make_array(backend, [[1.0]], "float32"), parameters)
    draws = to_numpy(draws_of(backend, law, 100_000))
    assert draws.dtype == np.float32
    assert (np.abs(draws - 1.0) < 1.0).all()
    zero, one = (make_array(backend, [end], "float32") for end in (0.0, 1.0 - 2.0**-24))
    noise = make_array(backend, [0.0], "float32")
    for uniform in (zero, one):
        assert float(formulas.draw(uniform, noise, law.features, parameters)[0]) == 1.0


@pytest.mark.parametrize("case", CASES)
def test_batches_of_parameters_broadcast(backend, case):
    raw, values = raw_parameters(case), raw_values(case)
    order = np.array([1, 3, 0, 2])
    other = MixtureOfExpertsParameters(
        *(None if part is None else 1.1 * part[order] for part in raw)
    )
    # Two sets of parameters on the left of the rows, as vectorised particles have them.
    stacked = MixtureOfExpertsParameters(
        *(None if a is None else np.stack([a, b])[:, None] for a, b in zip(raw, other, strict=True))
    )
    law, value = make_law(backend, case, raw=stacked), make_array(backend, values)
    assert tuple(law.batch_shape) == (2, ROWS)
    each = [make_law(backend, case, raw=part) for part in (raw, other)]
    for name in ("log_prob", "responsibilities"):
        found = to_numpy(getattr(law, name)(value))
        expected = np.stack([to_numpy(getattr(single, name)(value)) for single in each])
        np.testing.assert_allclose(found, expected, rtol=1e-12, atol=1e-14)
    for name in ("mean", "variance"):
        expected = np.stack([to_numpy(getattr(single, name)) for single in each])
        np.testing.assert_allclose(to_numpy(getattr(law, name)), expected, rtol=1e-12)
    assert draws_of(backend, law, 3).shape == (3, 2, ROWS, *law.event_shape)


def test_degrees_of_freedom_may_be_an_array(backend):
    freedom = np.linspace(2.5, 9.0, ROWS)
    raw, value = raw_parameters("student_t"), make_array(backend, raw_values("student_t"))
    features = raw_features()
    parameters = as_parameters(backend, raw)

    def law(rows, number):
        return LAWS[backend](
            make_array(backend, rows), parameters, experts="student_t", degrees_of_freedom=number
        )

    together = law(features, make_array(backend, freedom))
    for index, number in enumerate(freedom):
        alone = law(features[index : index + 1], float(number))
        expected = to_numpy(alone.log_prob(value[index : index + 1]))[0]
        np.testing.assert_allclose(to_numpy(together.log_prob(value))[index], expected, rtol=1e-12)
        np.testing.assert_allclose(
            to_numpy(together.variance)[index], to_numpy(alone.variance)[0], rtol=1e-12
        )
