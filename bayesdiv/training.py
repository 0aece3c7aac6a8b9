"""The one torch loop: progress, early stopping, checkpoints, devices and processes.

A routine owns models, optimisers and random states, and knows one step; `train` runs it. Devices,
processes, mixed precision and data loaders are Hugging Face Accelerate's.
"""

from __future__ import annotations

import copy
import os
import random
import time
import warnings
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import gather_object, send_to_device
from torch.utils.data import DataLoader

from bayesdiv._loop import (
    EarlyStopping,
    LoopProgress,
    TrainingResult,
    check_step_count,
    write_atomically,
)

__all__ = ["EarlyStopping", "Routine", "TensorBatches", "TrainingResult", "train"]


class Routine(Protocol):
    """What `train` runs. ``prepare(accelerator)`` may exist beside these, and is called first.

    ``step`` does everything of one step, several optimisers included, and returns metrics by name:
    scalar tensors, the same names every step, left on their device. ``state_dict`` has all that the
    next step depends on except the global generators of torch, NumPy and Python: tensors, numbers,
    strings, and lists, tuples and dicts of them. Floating tensors in it are finite in a good state.
    """

    def step(self, batch: Any) -> Mapping[str, torch.Tensor]: ...

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state: dict[str, Any]) -> Any: ...


class TensorBatches:
    """Minibatches of tensors in memory, in a new order every pass; shorter last ones are left out.

    Yields a tensor, or a tuple where several are given. Much faster than a ``DataLoader`` for data
    that lie in memory, above all on an accelerator.

    Parameters
    ----------
    tensors
        Equally long, ``(n, ...)``.
    batch_size
        Rows a batch; at most n are given.
    seed
        Of the order.
    """

    def __init__(self, *tensors: torch.Tensor, batch_size: int, seed: int = 0) -> None:
        check_step_count("batch_size", batch_size)
        lengths = [len(tensor) for tensor in tensors]
        if not lengths or len(set(lengths)) > 1 or lengths[0] == 0:
            raise ValueError(f"tensors must be equally long and not empty, got lengths {lengths}.")
        self.tensors = tensors
        self.batch_size = min(batch_size, lengths[0])
        self.generator = torch.Generator().manual_seed(seed)

    def __len__(self) -> int:
        return len(self.tensors[0]) // self.batch_size

    def __iter__(self) -> Iterator[Any]:
        order = torch.randperm(len(self.tensors[0]), generator=self.generator)
        for start in range(0, len(self) * self.batch_size, self.batch_size):
            rows = order[start : start + self.batch_size]
            batch = tuple(tensor[rows.to(tensor.device)] for tensor in self.tensors)
            yield batch if len(batch) > 1 else batch[0]


def train(
    routine: Routine,
    batches: Iterable[Any] | None,
    *,
    num_steps: int,
    checkpoint: str | os.PathLike[str] | None = None,
    checkpoint_every: int = 1000,
    resume: bool = True,
    log_every: int = 50,
    early_stopping: EarlyStopping | None = None,
    progress_bar: bool = True,
    title: str = "training",
    accelerator: Accelerator | None = None,
) -> TrainingResult:
    """Run ``routine.step`` on batch after batch, ``num_steps`` in all.

    Metrics are read from the device every ``log_every`` steps, all at once. A metric or a state
    that is not finite then ends the run: the state of the last reading is restored, and a warning
    names the step.

    Parameters
    ----------
    routine
        See `Routine`.
    batches
        A ``DataLoader``, `TensorBatches`, or whatever else can be passed over again and again;
        ``None`` gives ``None`` to every step. Data loaders are split among processes. Batches are
        moved to the accelerator's device if the routine has ``prepare``, and else left as they are.
    num_steps
        Total, those before an interruption included.
    checkpoint
        A file, written atomically every ``checkpoint_every`` steps and at the end. If it exists the
        run goes on from it, with the numbers of an uninterrupted run: it holds the routine's state,
        the metrics, the random states and the place in the data's order.
    resume
        False ignores a checkpoint that exists, and overwrites it.
    log_every
        Steps between readings of the metrics.
    early_stopping
        See `EarlyStopping`.
    progress_bar, title
        Of the bar that the main process shows.
    accelerator
        None: Accelerate's own choice.

    Raises
    ------
    ValueError
        If a count is not positive, there are no batches, metrics change their names, or
        ``checkpoint`` is not a file of this loop.
    TypeError
        If ``batches`` can be passed over only once, or is a tensor.
    """
    check_step_count("num_steps", num_steps)
    check_step_count("checkpoint_every", checkpoint_every)
    check_step_count("log_every", log_every)
    _check_batches(batches)
    begin = time.perf_counter()
    accelerator = accelerator or Accelerator()
    prepare = getattr(routine, "prepare", None)
    moves = prepare is not None
    if prepare is not None:
        prepare(accelerator)
    if isinstance(batches, DataLoader):
        batches = accelerator.prepare_data_loader(batches, device_placement=moves)
    cursor = _Cursor(batches, track=checkpoint is not None)
    metrics = _Metrics(accelerator)
    step = 0
    if checkpoint is not None and resume and Path(checkpoint).exists():
        step = _load_checkpoint(checkpoint, routine, metrics, cursor, accelerator)

    last_good = step, copy.deepcopy(routine.state_dict())
    stopped = "completed"
    enabled = progress_bar and accelerator.is_local_main_process
    with LoopProgress(title, num_steps, enabled=enabled) as progress:
        while step < num_steps:
            if early_stopping and step and early_stopping.should_stop(metrics.history, log_every):
                stopped = "early_stopping"
                break
            until = min((step // every + 1) * every for every in (log_every, checkpoint_every))
            for _ in range(step, min(until, num_steps)):
                batch = cursor.next()
                batch = send_to_device(batch, accelerator.device) if moves else batch
                metrics.add(routine.step(batch))
                step += 1
            state = copy.deepcopy(routine.state_dict())
            problem = metrics.read(last_good[0]) or _problem_of(state, step, accelerator)
            if problem:
                stopped = "not_finite"
                step, state = last_good
                routine.load_state_dict(state)
                metrics.cut(step)
                warnings.warn(
                    f"{problem}; the state after step {step} is restored and the run stops. Lower "
                    "the learning rate, or look at the data of that step.",
                    RuntimeWarning,
                    stacklevel=2,
                )
                break
            last_good = step, state
            progress.update(step, metrics.history)
            if checkpoint is not None and step % checkpoint_every == 0:
                _save_checkpoint(checkpoint, step, state, metrics, cursor, accelerator)
    if checkpoint is not None and step % checkpoint_every and stopped != "not_finite":
        _save_checkpoint(checkpoint, step, last_good[1], metrics, cursor, accelerator)
    return TrainingResult(dict(metrics.history), step, stopped, time.perf_counter() - begin)


def _check_batches(batches: Any) -> None:
    if batches is None:
        return
    if isinstance(batches, torch.Tensor):
        raise TypeError(
            "batches must yield batches, got a tensor, which yields its rows; pass "
            "TensorBatches(tensor, batch_size=...), or [tensor] for the whole of it every step."
        )
    if not isinstance(batches, Iterable) or iter(batches) is batches:
        raise TypeError(
            "batches must be iterable again and again, such as a DataLoader, a TensorBatches or a "
            f"list, got {type(batches).__name__}."
        )


class _Metrics:
    """Metrics on their device until they are read, then in ``history``."""

    def __init__(self, accelerator: Accelerator) -> None:
        self.history: dict[str, np.ndarray] = {}
        self._accelerator = accelerator
        self._waiting: list[Mapping[str, Any]] = []

    def add(self, metrics: Mapping[str, Any]) -> None:
        first = self.history or (self._waiting[0] if self._waiting else metrics)
        if not metrics or metrics.keys() != first.keys():
            raise ValueError(
                "step must return the same metrics every time, at least one of them; got "
                f"{sorted(metrics)} after {sorted(first)}."
            )
        self._waiting.append(
            {
                name: value.detach() if torch.is_tensor(value) else value
                for name, value in metrics.items()
            }
        )

    def read(self, last_step: int) -> str | None:
        """Move what waits to ``history``; what is wrong with it, if anything."""
        found: dict[str, np.ndarray] = {}
        for name in self._waiting[0]:
            column = torch.stack([torch.as_tensor(row[name]) for row in self._waiting])
            if self._accelerator.num_processes > 1:
                column = self._accelerator.reduce(
                    column.to(self._accelerator.device), reduction="mean"
                )
            found[name] = column.cpu().double().numpy()
        self._waiting.clear()
        bad = ~np.isfinite(np.stack(list(found.values()), axis=1))
        for name, values in found.items():
            old = self.history.get(name)
            self.history[name] = values if old is None else np.concatenate([old, values])
        if not bad.any():
            return None
        row = int(bad.any(1).argmax())
        name = list(found)[int(bad[row].argmax())]
        return f"metric {name!r} became {found[name][row]} at step {last_step + row + 1}"

    def cut(self, num_steps: int) -> None:
        self.history = {name: values[:num_steps] for name, values in self.history.items()}


def _problem_of(state: Any, step: int, accelerator: Accelerator) -> str | None:
    leaves = [leaf for leaf in _tensors(state) if leaf.is_floating_point()]
    bad = torch.zeros((), device=accelerator.device)
    for leaf in leaves:
        bad = bad + (~leaf.isfinite()).any().to(bad.device)
    if not bool(accelerator.reduce(bad, reduction="sum")):
        return None
    return f"the routine's state is not finite after step {step}, although the metrics are"


def _tensors(state: Any) -> Iterator[torch.Tensor]:
    if torch.is_tensor(state):
        yield state
    elif isinstance(state, Mapping):
        for value in state.values():
            yield from _tensors(value)
    elif isinstance(state, list | tuple):
        for value in state:
            yield from _tensors(value)


class _Cursor:
    """Batches without end, and the place in their order.

    The place is the random state in which a pass began and the number of batches taken since:
    loaders draw their order when a pass begins.
    """

    def __init__(self, batches: Iterable[Any] | None, *, track: bool) -> None:
        self._batches = batches
        self._track = track
        self._iterator: Iterator[Any] | None = None
        self._start: Any = None
        self._taken = 0
        candidates = [
            getattr(batches, "generator", None),
            getattr(getattr(batches, "sampler", None), "generator", None),
            # Accelerate's, where it splits a loader among processes.
            getattr(batches, "synchronized_generator", None),
        ]
        found = [each for each in candidates if isinstance(each, torch.Generator)]
        self._generators = list({id(each): each for each in found}.values())

    def next(self) -> Any:
        if self._batches is None:
            return None
        if self._iterator is None:
            self._begin()
        assert self._iterator is not None
        try:
            batch = next(self._iterator)
        except StopIteration:
            if self._taken == 0:
                raise ValueError("batches must not be empty, got none in a whole pass.") from None
            self._iterator = None
            return self.next()
        self._taken += 1
        return batch

    def _begin(self) -> None:
        assert self._batches is not None
        if self._track:
            own = [generator.get_state() for generator in self._generators]
            self._start = {"global": _random_states(), "own": own}
        self._iterator, self._taken = iter(self._batches), 0

    def place(self) -> dict[str, Any]:
        return {"start": self._start, "taken": self._taken}

    def go_to(self, place: dict[str, Any]) -> None:
        if self._batches is None or place["start"] is None:
            return
        if len(place["start"]["own"]) != len(self._generators):
            raise ValueError("batches must have the generators they had at the checkpoint.")
        _set_random_states(place["start"]["global"])
        for generator, state in zip(self._generators, place["start"]["own"], strict=True):
            generator.set_state(state)
        self._begin()
        for _ in range(place["taken"]):
            self.next()


def _random_states() -> dict[str, Any]:
    name, keys, *rest = np.random.get_state()  # noqa: NPY002 - the state that others draw from
    return {
        "torch": torch.get_rng_state(),
        "devices": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
        "numpy": (name, torch.from_numpy(np.asarray(keys, dtype=np.int64)), *rest),
        "python": random.getstate(),
    }


def _set_random_states(states: dict[str, Any]) -> None:
    torch.set_rng_state(states["torch"])
    if states["devices"] and torch.cuda.is_available():
        torch.cuda.set_rng_state_all(states["devices"])
    name, keys, *rest = states["numpy"]
    np.random.set_state((name, keys.numpy().astype(np.uint32), *rest))  # noqa: NPY002
    random.setstate(states["python"])


def _save_checkpoint(
    path: Any, step: int, state: Any, metrics: _Metrics, cursor: _Cursor, accelerator: Accelerator
) -> None:
    local = {"random": _random_states(), "place": cursor.place()}
    processes = gather_object([local])
    if accelerator.is_main_process:
        content = {
            "loop": 1,
            "step": step,
            "routine": state,
            "history": {name: torch.from_numpy(v) for name, v in metrics.history.items()},
            "processes": processes,
        }
        write_atomically(path, lambda file: torch.save(content, file))
    accelerator.wait_for_everyone()


def _load_checkpoint(
    path: Any, routine: Routine, metrics: _Metrics, cursor: _Cursor, accelerator: Accelerator
) -> int:
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # Torch raises whatever its reader trips over.
        raise ValueError(
            f"checkpoint must be a file written by train, got {os.fspath(path)!r}, which cannot be "
            f"read ({error}); remove it or pass resume=False."
        ) from error
    if not isinstance(content, dict) or content.get("loop") != 1:
        raise ValueError(
            f"checkpoint must be a file written by train, got {os.fspath(path)!r} with other "
            "content; pass another path, or resume=False to overwrite it."
        )
    if len(content["processes"]) != accelerator.num_processes:
        raise ValueError(
            f"checkpoint was written by {len(content['processes'])} processes, got "
            f"{accelerator.num_processes}; resume with as many, or pass resume=False."
        )
    routine.load_state_dict(content["routine"])
    metrics.history = {name: values.numpy() for name, values in content["history"].items()}
    own = content["processes"][accelerator.process_index]
    cursor.go_to(own["place"])
    _set_random_states(own["random"])
    return int(content["step"])
