"""Where an example's tasks run: in so many processes, or in this one."""

from __future__ import annotations

import multiprocessing
import os
from concurrent.futures import Executor, ProcessPoolExecutor, ThreadPoolExecutor


def executor(processes: int) -> Executor:
    """So many processes, or this one where there are to be none."""
    if processes == 0:
        return ThreadPoolExecutor(1)
    return ProcessPoolExecutor(processes, mp_context=multiprocessing.get_context("spawn"))


def cpu_seconds() -> float:
    """Of this process and of those that it has waited for."""
    used = os.times()
    return round(used.user + used.system + used.children_user + used.children_system, 1)
