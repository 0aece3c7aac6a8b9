"""Versions, processor and threads, to be kept beside every number."""

from __future__ import annotations

import importlib.metadata
import os
import platform
from pathlib import Path
from typing import Any

THREAD_VARIABLES = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
_PACKAGES = {
    "torch": ("torch", "pyro-ppl", "pot", "geomloss", "posteriors", "transformers"),
    "jax": ("jax", "jaxlib", "numpyro", "pot", "ott-jax", "blackjax", "smcx", "cuthbert"),
}


def with_threads(threads: int) -> dict[str, str]:
    """The environment of a process whose libraries use that many threads."""
    variables = dict(os.environ)
    variables.update({name: str(threads) for name in THREAD_VARIABLES})
    if threads == 1:
        variables["XLA_FLAGS"] = "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1"
    return variables


def describe(framework: str, threads: int) -> dict[str, Any]:
    """What the numbers of this process depend on."""
    return {
        "framework": framework,
        "threads": threads,
        "processor": _processor(),
        "cores": os.cpu_count(),
        "load": round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None,
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "versions": {name: _version(name) for name in (*_PACKAGES[framework], "numpy", "bayesdiv")},
    }


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "absent"


def _processor() -> str:
    table = Path("/proc/cpuinfo")
    if table.exists():
        for line in table.read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()
