"""Why a target is missed, found with ``python -m benchmarks --profile CASE``."""

from __future__ import annotations

from fnmatch import fnmatch

from benchmarks.results import Row

# Pattern of "case objective against" and the explanation; the first that fits is used.
_REASONS: tuple[tuple[str, str], ...] = ()
UNEXPLAINED = "not explained yet; see `python -m benchmarks --profile CASE`."


def reason(row: Row) -> str:
    """The explanation of a missed row."""
    label = f"{row.case} {row.ours} {row.theirs}"
    return next((text for pattern, text in _REASONS if fnmatch(label, pattern)), UNEXPLAINED)
