"""Which host an object belongs to, and the adapter's module that knows how to treat it."""

import importlib
from typing import Any

HOSTS = ("pyro", "numpyro")


def check_host(backend: Any) -> str:
    """``backend`` if it is a host's name."""
    if backend not in HOSTS:
        raise ValueError(f"backend must be 'pyro' or 'numpyro', got {backend!r}.")
    return backend


def find_host(*objects: Any) -> str | None:
    """The host whose classes appear among the classes of ``objects``; None for plain functions."""
    for value in objects:
        # A class given as a factory counts as its instances do.
        classes = (value if isinstance(value, type) else type(value)).__mro__
        roots = {parent.__module__.split(".")[0] for parent in classes}
        modules = {".".join(parent.__module__.split(".")[:2]) for parent in classes}
        if roots & {"numpyro", "jax", "jaxlib"} or "bayesdiv.numpyro" in modules:
            return "numpyro"
        if roots & {"pyro", "torch"} or "bayesdiv.pyro" in modules:
            return "pyro"
    return None


def adapter(host: str, part: str) -> Any:
    """The module ``part`` of the host's adapter, imported when it is needed."""
    return importlib.import_module(f"bayesdiv.{check_host(host)}.{part}")
