"""Rated sentences of film reviews, from a file as the package has it and from an archive of it."""

import io
import tarfile
from pathlib import Path

import numpy as np
import pytest

from bayesdiv.data import fetch, load_film_reviews
from bayesdiv.data.film_reviews import FILM_REVIEWS_FILE

LINES = "1\t2.25\tA triumph ,\u2028 really . \r\n2\t-3.5\tWatch paint dry instead.\r\n"


def archive(name, content):
    """A tar archive of one file."""
    written = io.BytesIO()
    with tarfile.open(fileobj=written, mode="w:gz") as opened:
        member = tarfile.TarInfo(name)
        member.size = len(content)
        opened.addfile(member, io.BytesIO(content))
    return written.getvalue()


def test_sentences_and_ratings_go_together(tmp_path):
    (tmp_path / FILM_REVIEWS_FILE).write_bytes(LINES.encode())
    found = load_film_reviews(tmp_path)
    assert found.sentences.tolist() == ["A triumph ,\u2028 really .", "Watch paint dry instead."]
    np.testing.assert_array_equal(found.ratings, [2.25, -3.5])


def test_a_missing_file_says_how_to_get_it(tmp_path):
    with pytest.raises(FileNotFoundError, match="python -m bayesdiv.data.fetch film_reviews"):
        load_film_reviews(tmp_path)


@pytest.mark.parametrize("line", ["3\tgood\tA rating that is a word.", "3\t1.5", "no tabs"])
def test_a_broken_line_is_named(tmp_path, line):
    (tmp_path / FILM_REVIEWS_FILE).write_bytes((LINES + line).encode())
    with pytest.raises(ValueError, match=r"a rating and a sentence.*in line 3; fetch it again"):
        load_film_reviews(tmp_path)


def download(content):
    """What pip leaves where it is told to."""

    def run(command, folder):
        assert "--no-binary" in command
        (Path(folder) / "vaderSentiment-0.tar.gz").write_bytes(content)

    return run


def test_fetched_reviews_load(tmp_path, monkeypatch):
    inner = archive(f"set/{FILM_REVIEWS_FILE}", LINES.encode())
    monkeypatch.setattr(fetch, "_run", download(archive("package/set.tar.gz", inner)))
    monkeypatch.setenv("BAYESDIV_DATA", str(tmp_path))
    assert fetch.main(["film_reviews"]) == 0
    assert len(load_film_reviews().ratings) == 2


def test_an_archive_without_them_is_refused(tmp_path, monkeypatch, capsys):
    inner = archive("set/other.txt", LINES.encode())
    monkeypatch.setattr(fetch, "_run", download(archive("package/set.tar.gz", inner)))
    monkeypatch.setenv("BAYESDIV_DATA", str(tmp_path))
    assert fetch.main(["film_reviews"]) == 1
    assert "must hold 1 files, got 0 of them" in capsys.readouterr().err
    assert not (tmp_path / "film_reviews").exists()
