"""Exact search: what small indexes use, what filtered searches fall back on, and what approximate ones are held to."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

Vectors = NDArray[np.float32]
Rows = NDArray[np.int64]

_SCORES_AT_ONCE = 16_000_000
"""Dot products held in memory at a time (64 MB)."""


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
    if allowed is not None and 2 * len(allowed) < len(vectors):
        vectors = vectors[allowed]
        chosen = None
    else:
        chosen, allowed = allowed, None
    margin = 2 * vectors.shape[1] * np.finfo(np.float32).eps
    step = max(1, _SCORES_AT_ONCE // max(1, len(vectors)))
    for start in range(0, len(queries), step):
        for scores in queries[start : start + step] @ vectors.T:
            found = _largest(scores if chosen is None else scores[chosen], count, margin)
            places = found if chosen is None else chosen[found]
            yield places if allowed is None else allowed[places]


def exact_scores(vectors: Vectors, rows: Rows, query: Vectors) -> NDArray[np.float64]:
    """Dot products of a query with some rows, summed in double precision, each row on its own.

    Args:
        rows: [n].
        query: [dim].

    Returns:
        [n].
    """
    scores: NDArray[np.float64] = np.einsum(
        "ij,j->i", vectors[rows].astype(np.float64), query.astype(np.float64), optimize=False
    )
    return scores


def _largest(scores: Vectors, count: int, margin: float) -> Rows:
    if count >= len(scores):
        return np.arange(len(scores))
    last = np.partition(scores, len(scores) - count)[len(scores) - count]
    return np.flatnonzero(scores >= last - margin)
