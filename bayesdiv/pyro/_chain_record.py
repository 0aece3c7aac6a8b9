"""What a run of chains has produced so far: draws and information, their file, their warnings."""

from __future__ import annotations

import os
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from bayesdiv.diagnostics._chain_checks import clamped_problems, temperature_problems
from bayesdiv.diagnostics._groups import as_numpy

# Fewer do not tell the temperature from its noise, as velocities remember.
_LEAST_STEPS = 500


class ChainRecord:
    """Positions ``(num_chains, dim)`` and information ``{name: (num_chains,)}`` of each draw."""

    def __init__(self) -> None:
        self.positions: list[torch.Tensor] = []
        self.infos: list[dict[str, torch.Tensor]] = []

    def __len__(self) -> int:
        return len(self.positions)

    def add(self, position: torch.Tensor, info: Mapping[str, torch.Tensor]) -> None:
        """Append one draw."""
        self.positions.append(position)
        self.infos.append(dict(info))

    def statistics(self) -> dict[str, torch.Tensor]:
        """``{name: (draw, num_chains)}``."""
        if not self.infos:
            return {}
        return {name: torch.stack([info[name] for info in self.infos]) for name in self.infos[0]}

    def state_dict(self) -> dict[str, Any]:
        """Draws and information, stacked."""
        draws = torch.stack(self.positions) if self.positions else None
        return {"draws": draws, "info": self.statistics()}

    @classmethod
    def from_state_dict(cls, saved: Mapping[str, Any], device: torch.device) -> ChainRecord:
        """The record that `state_dict` was made of."""
        record = cls()
        if saved["draws"] is not None:
            record.positions = list(saved["draws"].to(device))
            parts = {name: value.to(device) for name, value in saved["info"].items()}
            record.infos = [
                {name: value[draw] for name, value in parts.items()} for draw in range(len(record))
            ]
        return record


def write_record(path: Path, state_dict: Mapping[str, Any]) -> None:
    """Write, such that a kill in between leaves the file as it was."""
    unfinished = path.with_name(path.name + ".unfinished")
    torch.save(dict(state_dict), unfinished)
    os.replace(unfinished, path)


def read_record(path: Path) -> dict[str, Any]:
    """What `write_record` wrote.

    Raises
    ------
    ValueError
        If the file is something else.
    """
    try:
        saved = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise ValueError(
            f"checkpoint {str(path)!r} cannot be read as one ({type(error).__name__}); remove it, "
            "or give another path."
        ) from error
    if not isinstance(saved, dict) or "settings" not in saved:
        raise ValueError(
            f"checkpoint {str(path)!r} was not written by a stochastic-gradient kernel; remove "
            "it, or give another path."
        )
    return saved


def warn_clamped(info: Mapping[str, torch.Tensor]) -> None:
    """Warn where injected noise is missing; the scales are frozen when draws are made."""
    if "clamped_fraction" in info:
        for problem in clamped_problems(float(info["clamped_fraction"].mean())):
            warnings.warn(problem, UserWarning, stacklevel=3)


def warn_temperature(statistics: Mapping[str, torch.Tensor], steps_per_sample: int) -> None:
    """Warn if the kinetic temperature is off by more than its own noise over the draws."""
    temperature = statistics.get("kinetic_temperature")
    if temperature is None or len(temperature) * steps_per_sample < _LEAST_STEPS:
        return
    for problem in temperature_problems(as_numpy(temperature).T):
        warnings.warn(problem, UserWarning, stacklevel=3)
