"""Divergences by name, and the sentences that a wrong name gets."""

import dataclasses
import pickle

import pytest
from divergence_cases import NAMED

from bayesdiv.divergences import (
    Alpha,
    FDivergence,
    GeneralizedJensenShannon,
    ReverseKL,
    TwoSampleDivergence,
    get_divergence,
    list_divergences,
)


def test_every_listed_name_builds_a_divergence_of_its_kind():
    for name in list_divergences("f"):
        assert isinstance(get_divergence(name), FDivergence)
    for name in list_divergences("two_sample"):
        assert isinstance(get_divergence(name), TwoSampleDivergence)
    assert list_divergences() == list_divergences("f") + list_divergences("two_sample")


def test_names_are_those_of_the_members():
    for name, member in NAMED.items():
        assert get_divergence(name) == member
    assert get_divergence("alpha", order=2.5) == Alpha(2.5)
    assert get_divergence("generalized_jensen_shannon", weight=0.3) == GeneralizedJensenShannon(0.3)


def test_object_is_returned_as_it_is():
    mine = FDivergence.from_generator(lambda u: u * u - 1.0)
    assert get_divergence(mine) is mine


def test_unknown_name_lists_the_known_ones():
    with pytest.raises(ValueError, match="got 'kullback'") as caught:
        get_divergence("kullback")
    for name in list_divergences():
        assert name in str(caught.value)


def test_parameters_have_to_exist():
    with pytest.raises(ValueError, match="'alpha' has no parameter 'alpha'; it takes order"):
        get_divergence("alpha", alpha=0.5)
    with pytest.raises(ValueError, match="'reverse_kl' has no parameter 'order'; it takes none"):
        get_divergence("reverse_kl", order=0.5)
    with pytest.raises(TypeError, match=r"\['order'\] were given beside the object ReverseKL\(\)"):
        get_divergence(ReverseKL(), order=0.5)


def test_class_instead_of_object_is_refused():
    with pytest.raises(TypeError, match="must be a name, an FDivergence.*of type type"):
        get_divergence(ReverseKL)


def test_kinds_are_checked():
    with pytest.raises(ValueError, match="kind must be 'all', 'f' or 'two_sample', got 'g'"):
        list_divergences("g")


@pytest.mark.parametrize("name", list_divergences("f"))
def test_divergences_are_values(name):
    """Equal, hashable (a static argument of jit), printable, picklable, frozen."""
    member, same = get_divergence(name), get_divergence(name)
    assert member == same
    assert hash(member) == hash(same)
    assert pickle.loads(pickle.dumps(member)) == member
    assert repr(member).startswith(type(member).__name__)
    with pytest.raises(dataclasses.FrozenInstanceError):
        member.order = 3.0
