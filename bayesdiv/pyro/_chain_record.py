"""What a run of chains has produced so far: draws and information, their file, their warnings."""

from __future__ import annotations

import os
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

_MOST_CLAMPED = 0.05
_TEMPERATURES = (0.8, 1.25)
# The temperature's own noise: from means of batches, longer than velocities remember.
_BATCHES = 10
_LEAST_STEPS = 500
_STANDARD_ERRORS = 3.0


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
    if "clamped_fraction" not in info:
        return
    fraction = float(info["clamped_fraction"].mean())
    if fraction > _MOST_CLAMPED:
        warnings.warn(
            f"{fraction:.0%} of the coordinates get no injected noise, because the noise of their "
            "gradients exceeds what friction takes out (clamped_fraction), so their variance is "
            "wrong; lower step_size, or raise friction or the plate's subsample_size.",
            UserWarning,
            stacklevel=3,
        )


def warn_temperature(statistics: Mapping[str, torch.Tensor], steps_per_sample: int) -> None:
    """Warn if the kinetic temperature is off by more than its own noise over the draws."""
    temperature = statistics.get("kinetic_temperature")
    if temperature is None or len(temperature) < _BATCHES:
        return
    if len(temperature) * steps_per_sample < _LEAST_STEPS:
        return
    batches = torch.stack([part.mean() for part in temperature.mean(-1).chunk(_BATCHES)])
    mean, error = float(batches.mean()), float(batches.std()) / len(batches) ** 0.5
    low, high = _TEMPERATURES
    if mean + _STANDARD_ERRORS * error >= low and mean - _STANDARD_ERRORS * error <= high:
        return
    cure = (
        "minibatch noise heats the chains: lower step_size, or raise friction or the plate's "
        "subsample_size"
        if mean > 1.0
        else "less noise is injected than friction takes out: lower step_size, or pass "
        "subtract_gradient_noise=False if gradients are exact"
    )
    warnings.warn(
        f"the kinetic temperature over the draws is {mean:.2f} where equilibrium has 1: {cure}.",
        UserWarning,
        stacklevel=3,
    )
