"""The ORL faces, 400 photographs of 40 people, read from their PGM files."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from bayesdiv.data._folder import data_folder, missing
from bayesdiv.data._images import Images


def load_faces(size: int = 28, *, folder: str | Path | None = None) -> Images:
    """400 faces, resized to ``size`` × ``size``, in [0, 1]; labels are the people, 1 to 40.

    Parameters
    ----------
    size
        Height and width in pixels; the originals have 112×92.
    folder
        Holds ``s1`` to ``s40`` with ten PGM files each; ``faces`` in ``$BAYESDIV_DATA`` by default.

    Raises
    ------
    FileNotFoundError
        With the command that fetches the files.
    ValueError
        If ``size`` is not a positive whole number.
    ImportError
        If Pillow is not installed.

    References
    ----------
    Samaria and Harter (1994), "Parameterisation of a stochastic model for human face
    identification". The photographs are AT&T Laboratories Cambridge's, who ask for credit.
    """
    if isinstance(size, bool) or not isinstance(size, int) or size < 1:
        raise ValueError(f"size must be a positive whole number of pixels, got {size!r}.")
    from PIL import Image

    folder = data_folder() / "faces" if folder is None else Path(folder)
    paths = [path for path in folder.glob("s*/*.pgm") if path.parent.name[1:].isdigit()]
    if not paths:
        raise missing("faces", folder / "s1" / "1.pgm")
    paths.sort(key=lambda path: (int(path.parent.name[1:]), path.stem.zfill(4)))
    pixels = np.empty((len(paths), size * size), np.float32)
    for row, path in zip(pixels, paths, strict=True):
        with Image.open(path) as image:
            resized = image.convert("L").resize((size, size), Image.Resampling.BOX)
        row[:] = np.asarray(resized, np.float32).ravel() / 255.0
    labels = np.array([int(path.parent.name[1:]) for path in paths])
    return Images(pixels, labels, (size, size))
