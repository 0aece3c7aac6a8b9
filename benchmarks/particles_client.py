"""The library `particles` beside ours: it needs NumPy 1, and so an environment and a process."""

from __future__ import annotations

import atexit
import json
import subprocess
import sys
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from benchmarks.filters_problem import ESS_THRESHOLD, VOLATILITY, Problem

ROOT = Path(__file__).resolve().parents[1]
FOLDER = ROOT / "build" / "peers" / "particles"
SCRIPT = Path(__file__).with_name("particles_peer.py")
REQUIREMENTS = ("numpy<2", "particles==0.4")
PARAMETERS: dict[str, dict[str, float]] = {
    "growth": {},
    "volatility": dict(zip(("mu", "rho", "sigma"), VOLATILITY, strict=True)),
}


class PeerAbsent(Exception):
    """The environment cannot be made, or its process does not start."""


class Peer:
    """A process that answers each line of JSON by another."""

    def __init__(self, command: Sequence[str]) -> None:
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, encoding="utf-8"
        )

    def ask(self, request: dict[str, Any]) -> dict[str, Any]:
        """The reply.

        Raises
        ------
        RuntimeError
            If the request failed there, or the process has ended.
        """
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        try:
            self.process.stdin.write(json.dumps(request) + "\n")
            self.process.stdin.flush()
        except BrokenPipeError:
            # What it was asked last is answered by nothing, which is reported below.
            pass
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError(
                f"the process of `particles` ended with status {self.process.wait()}."
            )
        reply = json.loads(line)
        if "error" in reply:
            raise RuntimeError(f"particles: {reply['error']}")
        return reply

    def close(self) -> None:
        """End the process, which ends when its input does."""
        for pipe in (self.process.stdin, self.process.stdout):
            if pipe is not None:
                pipe.close()
        self.process.wait()


class ParticlesFilter:
    """A filter that is run in the other process."""

    def __init__(self, peer: Peer, problem: Problem, kind: str) -> None:
        self.peer, self.name = peer, f"{kind}/{problem.name}"
        peer.ask(
            {
                "prepare": self.name,
                "model": problem.model,
                "parameters": PARAMETERS[problem.model],
                "filter": kind,
                "num_particles": problem.num_particles,
                "ess_threshold": ESS_THRESHOLD,
                "observations": problem.observations.tolist(),
            }
        )

    def run(self) -> float:
        """The log-evidence, from the next random numbers."""
        return self.peer.ask({"run": self.name})["log_evidence"]

    def seeded(self, seed: int) -> float:
        """The log-evidence, from the random numbers of a seed."""
        return self.peer.ask({"run": self.name, "seed": seed})["log_evidence"]


def open_peer() -> tuple[Peer, str]:
    """The one process, started when first asked for, and the versions there.

    Raises
    ------
    PeerAbsent
        If there is none; its message is the reason.
    """
    found = _opened()
    if isinstance(found, PeerAbsent):
        raise found
    return found


# What failed once is not tried again for every case.
@lru_cache(maxsize=1)
def _opened() -> tuple[Peer, str] | PeerAbsent:
    try:
        peer = Peer([str(environment(FOLDER, REQUIREMENTS)), str(SCRIPT)])
        versions = peer.ask({"versions": True})
    except (PeerAbsent, RuntimeError, OSError) as error:
        return PeerAbsent(str(error))
    atexit.register(peer.close)
    return peer, f"{versions['particles']} with NumPy {versions['numpy']}"


def environment(folder: Path, requirements: Sequence[str]) -> Path:
    """The interpreter of an environment with these packages, made where it is not there yet.

    Raises
    ------
    PeerAbsent
        If it cannot be made; the message ends with what pip said last.
    """
    python = folder / ("Scripts/python.exe" if sys.platform == "win32" else "bin/python")
    # Written last: what was interrupted is made anew.
    stamp = folder / "installed"
    if stamp.exists() and stamp.read_text(encoding="utf-8") == repr(requirements):
        return python
    install = ["-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    for command in (
        [sys.executable, "-m", "venv", "--clear", str(folder)],
        [str(python), *install, *requirements],
    ):
        try:
            done = subprocess.run(command, capture_output=True, text=True, check=False)
        except OSError as error:
            raise PeerAbsent(str(error)) from error
        if done.returncode:
            said = (done.stderr.strip() or done.stdout.strip() or "nothing").splitlines()[-1]
            raise PeerAbsent(f"`{' '.join(command[1:4])}` failed: {said}")
    stamp.write_text(repr(requirements), encoding="utf-8")
    return python
