"""Exact search: what small indexes use, what filtered searches fall back on, and what approximate ones are held to."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

Vectors = NDArray[np.float32]
Rows = NDArray[np.int64]

_SCORES_AT_ONCE = 8_000_000
"""Dot products held in memory at a time (32 MB)."""
_BLOCK_ROWS = 16_384
_SAMPLED = 16
"""One row of so many tells how high the best scores are."""
_FEW_QUERIES = 8
GATHERED = 16
"""Up to one row in so many is picked out; above, reading all of them in order is faster."""


def nearest_rows(vectors: Vectors, queries: Vectors, count: int, allowed: Rows | None = None) -> Iterator[Rows]:
    """For each query the rows with the largest dot products: at least `count`, and with them every near tie.

    A matrix product rounds differently with the shape of its arguments and the place of a row in them. So rows
    within the rounding error of the last place come along, and the caller scores them exactly (`exact_scores`):
    then the order does not depend on batching, blocking or threads.

    Args:
        vectors: [rows, dim], finite, at most unit length.
        queries: [batch, dim], likewise.
        count: 1 to the number of allowed rows.
        allowed: [n] ascending; None allows all.
    """
    if allowed is not None and len(allowed) <= len(vectors) // GATHERED:
        vectors, chosen = vectors[allowed], None
    else:
        chosen, allowed = allowed, None
    margin = 2 * vectors.shape[1] * float(np.finfo(np.float32).eps)
    if len(queries) > _FEW_QUERIES and chosen is None and len(vectors) > max(_BLOCK_ROWS, _SAMPLED * count):
        found = _in_blocks(vectors, queries, count, margin)
    else:
        found = _at_once(vectors, queries, count, margin, chosen)
    for places in found:
        yield places if allowed is None else allowed[places]


def exact_scores(vectors: Vectors, rows: Rows, queries: Vectors) -> NDArray[np.float64]:
    """Dot products of some rows with a query each, summed in double precision, each on its own.

    Args:
        rows: [n].
        queries: [n, dim]; or [1, dim], the same for all.

    Returns:
        [n].
    """
    # A dot product of its own for every row: the same additions in the same order, whatever stands beside it.
    if len(queries) == 1:
        scores: NDArray[np.float64] = np.vecdot(vectors[rows].astype(np.float64), queries[0].astype(np.float64))
        return scores
    scores = np.empty(len(rows))
    for first in range(0, len(rows), _BLOCK_ROWS):
        block = slice(first, first + _BLOCK_ROWS)
        scores[block] = np.vecdot(vectors[rows[block]].astype(np.float64), queries[block].astype(np.float64))
    return scores


def _at_once(vectors: Vectors, queries: Vectors, count: int, margin: float, chosen: Rows | None) -> Iterator[Rows]:
    """All scores of a query, or of some queries, in memory."""
    step = max(1, _SCORES_AT_ONCE // max(1, len(vectors)))
    for start in range(0, len(queries), step):
        for scores in queries[start : start + step] @ vectors.T:
            found = _largest(scores if chosen is None else scores[chosen], count, margin)
            yield found if chosen is None else chosen[found]


def _in_blocks(vectors: Vectors, queries: Vectors, count: int, margin: float) -> Iterator[Rows]:
    """Blocks of vectors against many queries, of which only scores above an estimate of the last place are kept.

    The estimate comes of a sample of the rows, well below the expected place; a query for which it was still too
    high, so that fewer than `count` rows are above it, is searched again with all its scores.
    """
    step = _SCORES_AT_ONCE // _BLOCK_ROWS
    sample = vectors[::_SAMPLED]
    expected = count / _SAMPLED
    place = min(len(sample), int(expected + 4 * expected**0.5) + 8)
    for start in range(0, len(queries), step):
        some = queries[start : start + step]
        sampled = some @ sample.T
        floors = np.partition(sampled, len(sample) - place, axis=1)[:, len(sample) - place] - margin
        rows: list[list[Rows]] = [[] for _ in some]
        scores: list[list[Vectors]] = [[] for _ in some]
        for first in range(0, len(vectors), _BLOCK_ROWS):
            block = some @ vectors[first : first + _BLOCK_ROWS].T
            above = np.flatnonzero(block >= floors[:, None])
            kept = block.ravel()[above]
            bounds = np.searchsorted(above, np.arange(len(some) + 1) * block.shape[1])
            for query, (begin, end) in enumerate(pairwise(bounds)):
                if end > begin:
                    rows[query].append(above[begin:end] - query * block.shape[1] + first)
                    scores[query].append(kept[begin:end])
        for query in range(len(some)):
            if sum(map(len, rows[query])) < count:
                yield from _at_once(vectors, some[query : query + 1], count, margin, None)
            else:
                yield np.concatenate(rows[query])[_largest(np.concatenate(scores[query]), count, margin)]


def _largest(scores: Vectors, count: int, margin: float) -> Rows:
    if count >= len(scores):
        return np.arange(len(scores))
    last = np.partition(scores, len(scores) - count)[len(scores) - count]
    return np.flatnonzero(scores >= last - margin)
