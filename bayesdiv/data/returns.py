"""Daily returns of a share index and of a currency."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np

from bayesdiv.data._folder import data_folder, missing

GBP_USD_FILE = "GBP_vs_USD_9798.txt"


class Returns(NamedTuple):
    """Logarithmic returns in per cent, and the days at whose close they ended.

    Parameters
    ----------
    returns
        ``(num_days,)``.
    dates
        ``(num_days,)``, of type ``datetime64[D]``.
    """

    returns: np.ndarray
    dates: np.ndarray

    @classmethod
    def from_prices(cls, prices: np.ndarray, dates: np.ndarray) -> Returns:
        """100 times the differences of log-prices; the first day has none."""
        return cls(100.0 * np.diff(np.log(prices)), dates[1:].astype("datetime64[D]"))

    def between(self, first: str, last: str) -> Returns:
        """Those of the days from ``first`` to ``last``, both included, given as ``"2007-01-03"``.

        Raises
        ------
        ValueError
            If a date cannot be read, or no day lies between the two.
        """
        within = np.ones(len(self.dates), bool)
        for name, day, compare in (
            ("first", first, np.greater_equal),
            ("last", last, np.less_equal),
        ):
            try:
                within &= compare(self.dates, np.datetime64(day, "D"))
            except ValueError as error:
                raise ValueError(
                    f"{name} must be a date such as 2007-01-03, got {day!r}."
                ) from error
        if not within.any():
            raise ValueError(
                f"no return lies between first={first!r} and last={last!r}; there are some from "
                f"{self.dates[0]} to {self.dates[-1]}."
            )
        return Returns(self.returns[within], self.dates[within])


def load_sp500() -> Returns:
    """5,030 daily returns of the S&P 500 index, adjusted close, 1999 to 2018.

    From the copy inside the package ``arch``.

    Raises
    ------
    ImportError
        If that package is not installed.
    """
    try:
        from arch.data import sp500
    except ImportError as error:
        raise ImportError(
            "load_sp500 reads the table that the package arch ships; pip install arch."
        ) from error
    table = sp500.load()
    return Returns.from_prices(table["Adj Close"].to_numpy(), table.index.to_numpy())


def load_gbp_usd(*, folder: str | Path | None = None) -> Returns:
    """750 daily returns of the dollar in pounds, 1997 to 1999.

    Parameters
    ----------
    folder
        Holds the table; ``gbp_usd`` in ``$BAYESDIV_DATA`` by default.

    Raises
    ------
    FileNotFoundError
        With the command that fetches the table.
    ValueError
        If the file is not that table.

    References
    ----------
    Pacific Exchange Rate Service, in the package ``particles`` of Chopin and Papaspiliopoulos
    (2020), "An Introduction to Sequential Monte Carlo".
    """
    folder = data_folder() / "gbp_usd" if folder is None else Path(folder)
    path = folder / GBP_USD_FILE
    if not path.exists():
        raise missing("gbp_usd", path)
    # Under two lines of title: Julian day, date, day of the week, pounds for a dollar.
    rows = [line.split() for line in path.read_text(encoding="utf-8").splitlines()]
    rows = [row for row in rows if len(row) == 4 and row[0].isdigit()]
    if len(rows) < 2:
        raise ValueError(
            f"{path} must hold lines of Julian day, date, day of the week and rate, got "
            f"{len(rows)} of them."
        )
    dates = np.array([row[1].replace("/", "-") for row in rows], dtype="datetime64[D]")
    return Returns.from_prices(np.array([float(row[3]) for row in rows]), dates)
