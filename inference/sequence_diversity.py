"""How varied a set of sequences is: distinct n-grams, and how well each is told by the others."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from typing import Any

__all__ = ["distinct_ngrams", "self_bleu"]


def _ngrams(sequence: Sequence[Any], order: int) -> Counter:
    ranges = range(len(sequence) - order + 1)
    return Counter(tuple(sequence[start : start + order]) for start in ranges)


def distinct_ngrams(sequences: Sequence[Sequence[Any]], order: int) -> float:
    """Distinct n-grams over n-grams of a sequence, the mean over sequences of at least n symbols.

    Source: Li, Galley, Brockett, Gao and Dolan (2016), §5, by sequence.

    Examples
    --------
    >>> distinct_ngrams(["ABAB", "AAAA"], 1)
    0.375
    """
    _check_order(order)
    found = [_ngrams(sequence, order) for sequence in sequences]
    shares = [len(counts) / counts.total() for counts in found if counts]
    return sum(shares) / len(shares) if shares else math.nan


def self_bleu(sequences: Sequence[Sequence[Any]], order: int = 5) -> float:
    """BLEU of each sequence with all others as references, the mean; lower is more varied.

    Geometric mean of clipped precisions of 1- to ``order``-grams (those that the sequence is long
    enough for), 0.1 matches for none, times the brevity penalty against the nearest length.

    Raises
    ------
    ValueError
        Fewer than two sequences that are not empty, or an order below 1.

    References
    ----------
    Papineni, Roukos, Ward and Zhu (2002); Zhu et al. (2018), "Texygen", §2.1; the smoothing: Chen
    and Cherry (2014), method 1.

    Examples
    --------
    >>> self_bleu(["ABCDEF", "ABCDEF"])
    1.0
    """
    _check_order(order)
    rows = [tuple(sequence) for sequence in sequences if len(sequence)]
    if len(rows) < 2:
        raise ValueError(f"sequences must be at least 2 that are not empty, got {len(rows)}.")
    lengths = Counter(len(row) for row in rows)
    logs = [0.0] * len(rows)
    used = [0] * len(rows)
    for size in range(1, order + 1):
        counts = [_ngrams(row, size) for row in rows]
        # The largest count of each n-gram, who has it, and the largest among the others.
        best: dict[Any, tuple[int, int, int]] = {}
        for index, found in enumerate(counts):
            for gram, count in found.items():
                first, holder, second = best.get(gram, (0, -1, 0))
                if count > first:
                    best[gram] = count, index, first
                elif count > second:
                    best[gram] = first, holder, count
        for index, found in enumerate(counts):
            total = found.total()
            if not total:
                continue
            matched = 0
            for gram, count in found.items():
                first, holder, second = best[gram]
                matched += min(count, second if holder == index else first)
            logs[index] += math.log(max(matched, 0.1) / total)
            used[index] += 1
    scores = []
    for row, log_sum, terms in zip(rows, logs, used, strict=True):
        own = len(row)
        others = [size for size, count in lengths.items() if count > (size == own)]
        nearest = min(others, key=lambda size: (abs(size - own), size))
        brevity = min(0.0, 1.0 - nearest / own)
        scores.append(math.exp(log_sum / terms + brevity))
    return sum(scores) / len(scores)


def _check_order(order: int) -> None:
    if isinstance(order, bool) or not isinstance(order, int) or order < 1:
        raise ValueError(f"order must be an integer of at least 1, got {order!r}.")
