"""Why a target is missed, found with ``python -m benchmarks --profile CASE``."""

from __future__ import annotations

from fnmatch import fnmatch

from benchmarks.results import Row

# Pattern of "case objective against" and the explanation; the first that fits is used.
_REASONS = (
    (
        "pyro/small/16 * reverse_kl",
        "a fixed 0.2 ms a step, which shows because the whole step takes two. Of the time added "
        "(cProfile), half is the second log q of a path gradient, whose parameters are held fixed "
        "(three more Normals built and evaluated); the rest is the sum by particle and the "
        "weights. Reverse KL needs neither, and is itself faster than Trace_ELBO by as much.",
    ),
)
UNEXPLAINED = "not explained yet; see `python -m benchmarks --profile CASE`."


def reason(row: Row) -> str:
    """The explanation of a missed row."""
    label = f"{row.case} {row.ours} {row.theirs}"
    return next((text for pattern, text in _REASONS if fnmatch(label, pattern)), UNEXPLAINED)
