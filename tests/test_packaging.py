"""What is installed: the declared packages, and wheels and sdists that import without the clone."""

import os
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import tomllib
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
# The root folder of each installed tree, and the name it is installed under.
TREES = {"bayesdiv": "bayesdiv", "models": "bayesdiv.models", "inference": "bayesdiv.inference"}


def packages_on_disk() -> set[str]:
    """Dotted names of every folder with an ``__init__.py``, as installed."""
    return {
        ".".join([name, *path.parent.relative_to(ROOT / folder).parts])
        for folder, name in TREES.items()
        for path in (ROOT / folder).rglob("__init__.py")
    }


def installed_modules() -> set[str]:
    """Paths of every module of the clone, as they must lie in a wheel."""
    return {
        (Path(*name.split(".")) / path.relative_to(ROOT / folder)).as_posix()
        for folder, name in TREES.items()
        for path in (ROOT / folder).rglob("*.py")
    }


def test_every_package_is_declared():
    with (ROOT / "pyproject.toml").open("rb") as stream:
        settings = tomllib.load(stream)["tool"]["setuptools"]
    assert set(settings["packages"]) == packages_on_disk()
    assert settings["package-dir"] == {name: folder for folder, name in TREES.items()}


@pytest.fixture(scope="module")
def distributions(tmp_path_factory) -> dict[str, Path]:
    """The sdist, and the wheel built from that sdist, out of a copy of the clone."""
    clone = tmp_path_factory.mktemp("clone")
    ignored = shutil.ignore_patterns("__pycache__", "*.egg-info")
    for folder in TREES:
        shutil.copytree(ROOT / folder, clone / folder, ignore=ignored)
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, clone / name)
    subprocess.run(
        [sys.executable, "-m", "build", "--no-isolation", str(clone)],
        check=True,
        capture_output=True,
    )
    return {
        "sdist": next((clone / "dist").glob("*.tar.gz")),
        "wheel": next((clone / "dist").glob("*.whl")),
    }


@pytest.mark.slow
def test_wheel_holds_every_module_and_the_marker(distributions):
    with zipfile.ZipFile(distributions["wheel"]) as archive:
        files = {name for name in archive.namelist() if ".dist-info/" not in name}
        licences = [name for name in archive.namelist() if name.endswith("licenses/LICENSE")]
    assert files == installed_modules() | {"bayesdiv/py.typed"}
    assert licences


@pytest.mark.slow
def test_sdist_holds_what_a_build_needs(distributions):
    with tarfile.open(distributions["sdist"]) as archive:
        files = {name.partition("/")[2] for name in archive.getnames()}
    sources = {
        path.relative_to(ROOT).as_posix()
        for folder in TREES
        for path in (ROOT / folder).rglob("*.py")
    }
    assert sources | {"pyproject.toml", "README.md", "LICENSE", "bayesdiv/py.typed"} <= files


@pytest.fixture
def clean_python(tmp_path):
    """A new environment with no package of ours; ``run(*arguments)`` calls its interpreter.

    It reads the running environment's third-party packages by ``PYTHONPATH``, where ``.pth`` files,
    and so the editable install, have no effect.
    """
    subprocess.run([sys.executable, "-m", "venv", str(tmp_path / "venv")], check=True)
    scripts = sysconfig.get_path("scripts", "venv", {"base": str(tmp_path / "venv")})
    interpreter = Path(scripts) / "python"
    environment = {**os.environ, "PYTHONPATH": sysconfig.get_path("purelib")}

    def run(*arguments: str, check: bool = True) -> subprocess.CompletedProcess:
        return subprocess.run(
            [str(interpreter), *arguments],
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
            check=check,
        )

    return run


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["wheel", "sdist"])
def test_installed_distribution_imports_by_itself(kind, distributions, clean_python, tmp_path):
    before = clean_python("-c", "import bayesdiv", check=False)
    assert "No module named 'bayesdiv'" in before.stderr

    clean_python(
        "-m", "pip", "install", "--no-deps", "--no-index", "--no-build-isolation", "--quiet",
        "--ignore-installed", str(distributions[kind]),
    )  # fmt: skip
    imports = ", ".join(sorted(packages_on_disk()))
    origin = clean_python(
        "-c",
        f"import {imports}; from importlib.resources import files; "
        "assert files('bayesdiv').joinpath('py.typed').is_file(); "
        "modules = (bayesdiv, bayesdiv.models, bayesdiv.inference); "
        "print(*[module.__file__ for module in modules], sep='\\n')",
    )
    site = tmp_path / "venv"
    for line in origin.stdout.splitlines():
        assert Path(line).is_relative_to(site), (
            f"imported from {line}, not from the new environment"
        )
