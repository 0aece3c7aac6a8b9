"""MNIST and Fashion-MNIST, read from their own IDX files."""

from __future__ import annotations

import gzip
from pathlib import Path

import numpy as np

from bayesdiv.data._folder import data_folder, missing
from bayesdiv.data._images import Images

FILES = {
    "train": ("train-images-idx3-ubyte", "train-labels-idx1-ubyte"),
    "test": ("t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"),
}


def load_mnist(part: str = "train", *, folder: str | Path | None = None) -> Images:
    """60,000 digits of 28×28 pixels in [0, 1] (``part="train"``), or 10,000 (``"test"``).

    Parameters
    ----------
    part
        Which of the two.
    folder
        Holds the four IDX files, gzipped or not; ``mnist`` in ``$BAYESDIV_DATA`` by default.

    Raises
    ------
    FileNotFoundError
        With the command that fetches the files.
    ValueError
        If ``part`` is neither, or a file is not of the IDX format.

    References
    ----------
    LeCun, Bottou, Bengio and Haffner (1998), "Gradient-based learning applied to document
    recognition".
    """
    return _load("mnist", part, folder)


def load_fashion_mnist(part: str = "train", *, folder: str | Path | None = None) -> Images:
    """60,000 pictures of clothes of 28×28 pixels in [0, 1], or 10,000; ten classes, balanced.

    Parameters
    ----------
    part
        ``"train"`` or ``"test"``.
    folder
        Holds the four IDX files, gzipped or not; ``fashion_mnist`` in ``$BAYESDIV_DATA`` by
        default.

    Raises
    ------
    FileNotFoundError
        With the command that fetches the files.
    ValueError
        If ``part`` is neither, or a file is not of the IDX format.

    References
    ----------
    Xiao, Rasul and Vollgraf (2017), "Fashion-MNIST: a novel image dataset".
    """
    return _load("fashion_mnist", part, folder)


def _load(data_set: str, part: str, folder: str | Path | None) -> Images:
    if part not in FILES:
        raise ValueError(f"part must be 'train' or 'test', got {part!r}.")
    folder = data_folder() / data_set if folder is None else Path(folder)
    images, labels = (read_idx(_find(data_set, folder, name)) for name in FILES[part])
    pixels = images.reshape(len(images), -1).astype(np.float32) / 255.0
    return Images(pixels, labels.astype(np.int64), (images.shape[1], images.shape[2]))


def read_idx(path: Path) -> np.ndarray:
    """The unsigned bytes of an IDX file, in the shape that its header gives.

    Raises
    ------
    ValueError
        If the header is not that of an IDX file of bytes, or the length does not fit it.
    """
    with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as stream:
        content = stream.read()
    # Two zero bytes, the type (8: unsigned bytes), the number of dimensions, then 4 bytes each.
    if len(content) < 4 or content[:3] != b"\0\0\x08":
        raise ValueError(f"{path} must be an IDX file of bytes, got a header {content[:4]!r}.")
    start = 4 + 4 * content[3]
    shape = np.frombuffer(content[4:start], ">u4").astype(int)
    values = np.frombuffer(content, np.uint8, offset=min(start, len(content)))
    if len(values) != shape.prod():
        raise ValueError(
            f"{path} must hold {shape.prod()} bytes for shape {tuple(shape.tolist())}, got "
            f"{len(values)}; it is incomplete."
        )
    return values.reshape(shape)


def _find(data_set: str, folder: Path, name: str) -> Path:
    for path in (folder / name, folder / f"{name}.gz"):
        if path.exists():
            return path
    raise missing(data_set, folder / name)
