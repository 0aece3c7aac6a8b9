"""Names as the package ships them, and as sequences of numbers."""

import importlib.util
from types import SimpleNamespace

import numpy as np
import pytest

from bayesdiv.data import decode_names, encode_names, load_names


def test_lists_of_the_census():
    names = load_names()
    assert [len(part) for part in names] == [88_799, 4_275, 1_219]
    assert names.surnames[0] == "SMITH"
    assert (np.char.str_len(names.surnames) <= 10).sum() == 86_262


def test_encoding_is_undone():
    names = load_names().female
    codes = encode_names(names, 12)
    assert codes.shape == (4_275, 12)
    assert (codes[:, -1] == 0).all()
    assert decode_names(codes) == names.tolist()


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("ABIGAIL", "names must be shorter than max_length = 7, got 'ABIGAIL'"),
        ("Zoë", "letters A to Z, got 'Zoë'; upper-case"),
    ],
)
def test_names_that_do_not_fit_are_named(name, message):
    with pytest.raises(ValueError, match=message):
        encode_names(np.array([name]), 7)


@pytest.mark.parametrize(
    ("found", "message"),
    [(None, "pip install names"), ("elsewhere/__init__.py", "has no dist.all.last; install names")],
)
def test_a_missing_or_another_package_is_named(monkeypatch, found, message):
    spec = None if found is None else SimpleNamespace(origin=found)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: spec)
    with pytest.raises(ImportError, match=message):
        load_names()
