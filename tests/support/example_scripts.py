"""Examples run as a user starts them."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).parents[2]


def example(name: str) -> Callable[..., subprocess.CompletedProcess[str]]:
    """A function of the script's arguments that runs its quick preset to the end."""

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, f"examples/{name}.py", "--preset", "quick", *arguments],
            cwd=ROOT,
            env={**os.environ, "PYTHONWARNINGS": "ignore"},
            capture_output=True,
            text=True,
            check=False,
        )

    return run
