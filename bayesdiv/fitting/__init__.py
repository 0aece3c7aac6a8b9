"""What the hosts' ``fit`` share: where to start, when to stop, what to say."""

from bayesdiv.fitting._result import BaseFitResult
from bayesdiv.fitting._run import WINDOW, FitRun
from bayesdiv.fitting._schedule import StageSchedule, WindowSummary
from bayesdiv.fitting._stages import (
    GUIDES,
    check_fit_arguments,
    first_schedule,
    name_of,
    plan_stages,
)
from bayesdiv.fitting._start import Start, find_starts
from bayesdiv.fitting._target import Target
from bayesdiv.fitting._verdict import Verdict, judge

__all__ = [
    "GUIDES",
    "WINDOW",
    "BaseFitResult",
    "FitRun",
    "StageSchedule",
    "Start",
    "Target",
    "Verdict",
    "WindowSummary",
    "check_fit_arguments",
    "find_starts",
    "first_schedule",
    "judge",
    "name_of",
    "plan_stages",
]
