"""The walls of the design, enforced from the imports themselves."""

import subprocess
import sys
from pathlib import Path

import pytest
from walls import MAX_LINES, imports_of, module_name, violations

ROOT = Path(__file__).resolve().parents[1]
INSTALLED = ("bayesdiv", "models", "inference")

# Files that choose a backend inside a function, each with the reason why it cannot be elsewhere.
MAY_DEFER = {
    "bayesdiv/_array.py": "JAX has no method for what it does, and torch has no function for it",
    "bayesdiv/divergences/_autodiff.py": "derivatives are each library's own",
    "bayesdiv/_control.py": "loops and inner gradients are Python or transformations",
    "bayesdiv/divergences/_probe.py": "a user's generator may accept only one of the libraries",
    "bayesdiv/_random.py": "generators and keys are each library's own",
}
# Files allowed to pass the limit on lines, each with the reason.
MAY_BE_LONG = {
    "bayesdiv/divergences/_members.py": "the named members are one table, read side by side",
}


def sources(*parts: str) -> dict[str, str]:
    """Text of every Python file under ``parts``, by path relative to the root."""
    return {
        path.relative_to(ROOT).as_posix(): path.read_text(encoding="utf-8")
        for part in parts
        for path in sorted((ROOT / part).rglob("*.py"))
        if "_build" not in path.parts
    }


def test_tree_keeps_the_walls():
    files = sources(*INSTALLED)
    assert {"bayesdiv/__init__.py", "models/__init__.py", "inference/__init__.py"} <= files.keys()
    found = [
        message
        for path, source in files.items()
        for message in violations(path, source, may_defer=path in MAY_DEFER)
    ]
    assert not found, "\n".join(found)


def test_no_file_is_too_long():
    parts = (*INSTALLED, "tests", "examples", "benchmarks")
    lengths = {path: text.count("\n") for path, text in sources(*parts).items()}
    long = {path for path, length in lengths.items() if length > MAX_LINES}
    assert long <= set(MAY_BE_LONG), f"one idea a file, in at most {MAX_LINES} lines"


def test_no_exception_outlives_its_need():
    files = sources(*INSTALLED)
    assert set(MAY_BE_LONG) <= files.keys(), "a file is gone; take it off MAY_BE_LONG"
    for path in MAY_DEFER:
        assert path in files, f"{path} is gone; take it off MAY_DEFER"
        assert violations(path, files[path]), f"{path} needs no exception; take it off MAY_DEFER"


BREACHES = {
    "layer imports models": ("bayesdiv/nn/x.py", "import bayesdiv.models.cnn"),
    "layer imports models from the package": ("bayesdiv/nn/x.py", "from bayesdiv import models"),
    "layer imports inference relatively": ("bayesdiv/nn/x.py", "from ..inference import smc"),
    "layer imports inference by name": (
        "bayesdiv/diagnostics/x.py",
        "import importlib\ndef f():\n    return importlib.import_module('bayesdiv.inference.smc')",
    ),
    "divergences import Pyro": ("bayesdiv/divergences/x.py", "def f():\n    import pyro.infer"),
    "divergences import NumPyro": ("bayesdiv/divergences/x.py", "from numpyro import handlers"),
    "divergences import an adapter": (
        "bayesdiv/divergences/x.py",
        "def f():\n    from bayesdiv.pyro import objective",
    ),
    "divergences import objectives": ("bayesdiv/divergences/x.py", "import bayesdiv.objectives"),
    "objectives import Pyro": ("bayesdiv/objectives/x.py", "from pyro import poutine"),
    "objectives import NumPyro": ("bayesdiv/objectives/x.py", "from ..numpyro import objective"),
    "a type-only import is an import": (
        "bayesdiv/objectives/x.py",
        "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import pyro",
    ),
    "models import inference": ("models/x.py", "from bayesdiv.inference import smc"),
    "models import inference relatively": ("models/x.py", "from ..inference.smc import step"),
    "inference imports models": ("inference/x.py", "import bayesdiv.models"),
    "inference imports models by folder": ("inference/x.py", "import models"),
    "the Pyro adapter imports NumPyro": ("bayesdiv/pyro/x.py", "def f():\n    import numpyro"),
    "the NumPyro adapter imports Pyro": ("bayesdiv/numpyro/x.py", "def f():\n    import pyro"),
    "both libraries": ("models/x.py", "import torch\nimport jax.numpy as jnp"),
    "both libraries through the hosts": ("inference/x.py", "import numpyro\nimport pyro"),
    "both libraries in a try": ("models/x.py", "try:\n    import jax\nexcept E:\n    import torch"),
    "POT at import": ("inference/x.py", "import ot"),
    "the other library in a function": ("models/x.py", "import torch\ndef f():\n    import jax"),
    "both libraries in functions": (
        "models/x.py",
        "def f():\n    import jax\ndef g():\n    import torch",
    ),
    "shared module loads torch": ("bayesdiv/divergences/x.py", "import torch"),
    "shared root module loads JAX": ("bayesdiv/x.py", "from jax import numpy"),
    "shared module defers JAX": ("bayesdiv/objectives/x.py", "def f():\n    import jax"),
    "the else of TYPE_CHECKING runs": (
        "bayesdiv/objectives/x.py",
        "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    pass\nelse:\n    import torch",
    ),
    "installed code imports tests": ("models/x.py", "from tests.support import helpers"),
    "installed code imports benchmarks": ("bayesdiv/nn/x.py", "import benchmarks"),
}


@pytest.mark.parametrize(("path", "source"), BREACHES.values(), ids=BREACHES.keys())
def test_each_wall_can_fail(path, source):
    found = violations(path, source)
    assert found
    assert all(message.startswith(path) for message in found)


SOUND = {
    "shared module on the array namespace": (
        "bayesdiv/divergences/x.py",
        "import math\nfrom bayesdiv._array import array_namespace",
    ),
    "POT in a function": ("bayesdiv/divergences/x.py", "def f():\n    import ot"),
    "adapter imports its host": ("bayesdiv/pyro/x.py", "import torch\nfrom pyro import poutine"),
    "adapter imports objectives": (
        "bayesdiv/numpyro/x.py",
        "import jax\nimport bayesdiv.objectives",
    ),
    "models import data": ("models/x.py", "import torch\nfrom bayesdiv.data import tables"),
    "inference imports its sibling": ("inference/x.py", "from .smc import step\nimport jax"),
    "one library at both depths": ("models/x.py", "import torch\ndef f():\n    import pyro"),
    "the torch loop": ("bayesdiv/training.py", "import torch\nimport accelerate"),
    "a name that only begins alike": ("bayesdiv/divergences/x.py", "import pyroscope"),
}


@pytest.mark.parametrize(("path", "source"), SOUND.values(), ids=SOUND.keys())
def test_sound_code_passes(path, source):
    assert violations(path, source) == []


def test_listed_file_may_choose_a_backend_in_a_function_only():
    deferred = "def f():\n    import jax\ndef g():\n    import torch"
    assert violations("bayesdiv/x.py", deferred, may_defer=True) == []
    assert violations("bayesdiv/x.py", "import jax", may_defer=True)


def test_relative_imports_are_resolved_from_modules_and_packages():
    def names(path):
        return [entry.name for entry in imports_of(path, "from . import a\nfrom ..b import c")]

    assert names("models/deep/x.py") == ["bayesdiv.models.deep.a", "bayesdiv.models.b.c"]
    assert names("models/deep/__init__.py") == ["bayesdiv.models.deep.a", "bayesdiv.models.b.c"]
    assert module_name("bayesdiv/pyro/__init__.py") == "bayesdiv.pyro"


def loaded_by(statement: str, folder: Path) -> set[str]:
    """Which array libraries and hosts a fresh interpreter has loaded after ``statement``."""
    libraries = ("torch", "jax", "pyro", "numpyro")
    code = f"import sys\n{statement}\nprint(*[n for n in {libraries} if n in sys.modules])"
    run = subprocess.run(
        [sys.executable, "-c", code], cwd=folder, capture_output=True, text=True, check=True
    )
    return set(run.stdout.split())


@pytest.mark.parametrize(
    "statement",
    [
        "import bayesdiv",
        "import bayesdiv.divergences, bayesdiv.objectives",
        "from bayesdiv import *",
        "from bayesdiv.divergences import *; from bayesdiv.objectives import *",
    ],
)
def test_importing_the_layer_loads_no_array_library(statement, tmp_path):
    assert loaded_by(statement, tmp_path) == set()


def test_each_adapter_loads_only_its_own_library(tmp_path):
    assert loaded_by("import bayesdiv.pyro", tmp_path) <= {"torch", "pyro"}
    assert loaded_by("import bayesdiv.numpyro", tmp_path) <= {"jax", "numpyro"}


def test_what_a_fresh_interpreter_loads_is_seen(tmp_path):
    assert loaded_by("import torch", tmp_path) == {"torch"}
