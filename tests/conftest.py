"""What every test stands on: float64 in JAX, one thread, fixed seeds, no window."""

import gc
import os
import random
import sys
from collections.abc import Iterator
from pathlib import Path

# Read by the libraries when they are first imported, hence before the imports below.
for variable in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ.setdefault(variable, "1")
os.environ.setdefault("XLA_FLAGS", "--xla_cpu_multi_thread_eigen=false")
os.environ["MPLBACKEND"] = "Agg"
# Most of the time goes into compiling. What the other worker, or an earlier run, has compiled is
# read from files, whose names are hashes of the program, its options and the compiler's version.
_CACHE = Path(__file__).parents[1] / ".pytest_cache" / "jax"
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(_CACHE))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES", "-1")

import jax
import numpy as np
import pytest
import torch
from helpers import BACKENDS
from hypothesis import settings

jax.config.update("jax_enable_x64", True)
torch.set_num_threads(1)
settings.register_profile("bayesdiv", derandomize=True, deadline=None, print_blob=True)
settings.load_profile("bayesdiv")


# Session scope, although it holds only a word: Hypothesis refuses function-scoped fixtures.
@pytest.fixture(scope="session", params=BACKENDS)
def backend(request: pytest.FixtureRequest) -> str:
    """``"torch"``, then ``"jax"``: a test that takes it runs once on each."""
    return request.param


@pytest.fixture(autouse=True)
def same_start() -> Iterator[None]:
    """Seed every global generator, and empty Pyro's parameter store, before each test."""
    random.seed(0)
    np.random.seed(0)  # noqa: NPY002 - the hosts and scikit-learn draw from the global generator
    torch.manual_seed(0)
    if "pyro" in sys.modules:
        sys.modules["pyro"].clear_param_store()
    default_dtype = torch.get_default_dtype()
    yield
    torch.set_default_dtype(default_dtype)
    if "matplotlib.pyplot" in sys.modules:
        sys.modules["matplotlib.pyplot"].close("all")


# A process may hold 65530 memory maps; each compiled JAX program takes several, and the compiler
# dies where it gets no more. A worker of the whole suite would come there.
_MAPS = Path("/proc/self/maps")
_MANY_MAPS = 15_000


@pytest.fixture(autouse=True, scope="module")
def few_memory_maps() -> Iterator[None]:
    """Forget compiled JAX programs after a file's tests where there are many."""
    yield
    if _MAPS.exists() and len(_MAPS.read_bytes().splitlines()) > _MANY_MAPS:
        jax.clear_caches()
        gc.collect()
