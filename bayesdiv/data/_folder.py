"""Where fetched data lie."""

from __future__ import annotations

import os
from pathlib import Path


def data_folder() -> Path:
    """``$BAYESDIV_DATA``, or ``~/.cache/bayesdiv`` where it is not set."""
    return Path(os.environ.get("BAYESDIV_DATA") or "~/.cache/bayesdiv").expanduser()


def missing(name: str, wanted: Path) -> FileNotFoundError:
    """The error that says how to get the data set ``name``."""
    return FileNotFoundError(
        f"{name} needs {wanted}, which is not there; run python -m bayesdiv.data.fetch {name}, or "
        "set BAYESDIV_DATA to the folder that has it."
    )
