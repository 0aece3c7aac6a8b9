"""Names of people as short sequences: surnames and first names of a United States census."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import NamedTuple

import numpy as np

__all__ = ["ALPHABET", "Names", "decode_names", "encode_names", "load_names"]

ALPHABET = ".ABCDEFGHIJKLMNOPQRSTUVWXYZ"
"""Symbols by number; number 0, the full stop, ends a name and pads what follows."""

_FILES = ("dist.all.last", "dist.female.first", "dist.male.first")


class Names(NamedTuple):
    """Upper-case names, the most common first.

    Parameters
    ----------
    surnames, female, male
        ``(88799,)``, ``(4275,)`` and ``(1219,)``, strings; some first names are in both lists.
    """

    surnames: np.ndarray
    female: np.ndarray
    male: np.ndarray


def load_names() -> Names:
    """The lists of the 1990 census of the United States, from the package ``names``.

    Raises
    ------
    ImportError
        If that package is not installed.

    References
    ----------
    United States Census Bureau (1995), "Frequently occurring surnames and given names in 1990".
    """
    found = importlib.util.find_spec("names")
    if found is None or found.origin is None:
        raise ImportError(
            "load_names reads the lists that the package names ships; pip install names."
        )
    folder = Path(found.origin).parent
    lists = []
    for file in _FILES:
        if not (folder / file).exists():
            raise ImportError(f"this package called names has no {file}; install names 0.3.0.")
        lines = (folder / file).read_text(encoding="ascii").splitlines()
        lists.append(np.array([line.split()[0] for line in lines]))
    return Names(*lists)


def encode_names(names: np.ndarray, max_length: int) -> np.ndarray:
    """Names as numbers in `ALPHABET`, ``(n, max_length)``, ended and padded with 0.

    Raises
    ------
    ValueError
        A name without room for its end, or with a symbol outside the alphabet.
    """
    codes = np.zeros((len(names), max_length), dtype=np.int64)
    number = {symbol: index for index, symbol in enumerate(ALPHABET)}
    for row, name in zip(codes, names, strict=True):
        if len(name) >= max_length:
            raise ValueError(
                f"names must be shorter than max_length = {max_length}, got {str(name)!r}; leave "
                "longer ones out."
            )
        unknown = set(name) - set(ALPHABET[1:])
        if unknown:
            raise ValueError(
                f"names must consist of the letters A to Z, got {str(name)!r}; upper-case them."
            )
        row[: len(name)] = [number[symbol] for symbol in name]
    return codes


def decode_names(codes: np.ndarray) -> list[str]:
    """Strings from ``(n, max_length)`` numbers, up to the first end.

    Examples
    --------
    >>> decode_names(encode_names(np.array(["ADA", "ZOE"]), 5))
    ['ADA', 'ZOE']
    """
    rows = np.asarray(codes)
    return ["".join(ALPHABET[code] for code in row).split(".")[0] for row in rows]
