"""Sentences from film reviews, each rated by some twenty people."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import numpy as np

from bayesdiv.data._folder import data_folder, missing

FILM_REVIEWS_FILE = "movieReviewSnippets_GroundTruth.txt"


class FilmReviews(NamedTuple):
    """Sentences ``(n,)`` and their mean ratings ``(n,)``, from −4, bad, to 4, good."""

    sentences: np.ndarray
    ratings: np.ndarray


def load_film_reviews(folder: str | Path | None = None) -> FilmReviews:
    """10,605 sentences from film reviews, as they were rated for VADER.

    Parameters
    ----------
    folder
        Holds ``movieReviewSnippets_GroundTruth.txt``; ``film_reviews`` in ``$BAYESDIV_DATA`` by
        default.

    Raises
    ------
    FileNotFoundError
        With the command that fetches the file.
    ValueError
        A line that is not a number, a rating and a sentence, with tabs between.

    References
    ----------
    Hutto and Gilbert (2014), "VADER", §3; the sentences are of Pang and Lee (2005).
    """
    place = (data_folder() / "film_reviews" if folder is None else Path(folder)) / FILM_REVIEWS_FILE
    if not place.exists():
        raise missing("film_reviews", place)
    sentences, ratings = [], []
    # Not splitlines: some sentences hold separators of Unicode's.
    for number, line in enumerate(place.read_text("utf-8").rstrip("\n").split("\n"), start=1):
        parts = line.rstrip("\r").split("\t")
        try:
            _, rating, sentence = parts
            ratings.append(float(rating))
        except ValueError as error:
            raise ValueError(
                f"{place} must have a number, a rating and a sentence in each line, with tabs "
                f"between, got {line[:80]!r} in line {number}; fetch it again."
            ) from error
        sentences.append(sentence.strip())
    return FilmReviews(np.array(sentences), np.array(ratings))
