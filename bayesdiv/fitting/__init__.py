"""What the hosts' ``fit`` share: where to start, when to stop, what to say."""

from bayesdiv.fitting._schedule import StageSchedule, WindowSummary
from bayesdiv.fitting._start import Start, Target, find_starts
from bayesdiv.fitting._verdict import Verdict, judge

__all__ = [
    "StageSchedule",
    "Start",
    "Target",
    "Verdict",
    "WindowSummary",
    "find_starts",
    "judge",
]
