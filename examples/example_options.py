"""What the examples' options share: names that are checked, and a device that is chosen."""

from __future__ import annotations

from collections.abc import Iterable, Sequence


def check_names(name: str, values: Iterable[str], allowed: Sequence[str]) -> None:
    """Refuse values of the option ``name`` that are not allowed, naming both."""
    unknown = sorted(set(values) - set(allowed))
    if unknown:
        raise ValueError(f"{name} must be among {list(allowed)}, got {unknown}.")


def choose_device(device: str) -> str:
    """cpu or cuda; "auto" takes cuda where there is one."""
    # The scripts in JAX share this file and have no use for torch.
    import torch

    if device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    return device
