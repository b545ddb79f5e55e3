"""Queries of one model version against candidates of another, ON PURPOSE: to measure what such a mistake would cost.

Everywhere else in the project a vector travels with its version, and two versions never meet. Here they are bare
matrices, because the mistake itself is what is measured. Only measures come out: nobody can be shown a candidate that
was found here.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from trainer.evaluation.measures import Values, recall, reciprocal_rank
from trainer.evaluation.queries import Queries
from trainer.evaluation.ranking import Only, Products, Scorer, rank

_log = logging.getLogger(__name__)
_SCORES_BETWEEN_LOOKS = 2**30
"""Scores after which the clock is looked at."""
_SECONDS_BETWEEN_LINES = 10.0
Vectors = NDArray[np.float32]
Measures = dict[str, Values]
"""`recall@20` and so on, and `mrr`: [queries] each."""


@dataclass(frozen=True)
class CandidateVectors:
    """The candidates of one model version in the order of the catalogue.

    Args:
        vectors: [catalogue, dim] float32; zeros where the version has none.
        held: [catalogue] whether the version has one; only those are ranked.
    """

    vectors: Vectors
    held: NDArray[np.bool_]


@dataclass(frozen=True)
class Asked:
    """What every pair is asked.

    Args:
        queries: the same for all.
        ks: where recall is measured, ascending.
        threads: blocks of queries at a time, 64 MB of scores each.
    """

    queries: Queries
    ks: Sequence[int]
    threads: int = 2


def mix(query_vectors: Vectors, candidates: CandidateVectors, asked: Asked, name: str) -> Measures | None:
    """Rank the candidates of one version for the query vectors of another, exactly, and measure.

    A query's own past is left out. A target that the candidates' version does not have counts as missed.

    Args:
        query_vectors: [queries, dim].
        name: of the pair, for the lines of progress.

    Returns:
        None where the two have different dimensions, and so no product.

    Raises:
        DataError: vectors that are not finite.
    """
    if query_vectors.shape[1] != candidates.vectors.shape[1]:
        return None
    return measure(lambda rows: Products(query_vectors[rows], candidates.vectors), candidates.held, asked, name)


def measure(scorer: Callable[[slice], Scorer], held: NDArray[np.bool_], asked: Asked, name: str) -> Measures:
    """Rank whatever a scorer says of the candidates that are held.

    Args:
        scorer: makes it score some queries.
    """
    total, depth = len(asked.queries), max(asked.ks)
    at_once = max(1, _SCORES_BETWEEN_LOOKS // max(len(held), 1))
    hits, first = [], []
    started = looked = time.monotonic()
    for start in range(0, total, at_once):
        rows = slice(start, min(start + at_once, total))
        part = take(asked.queries, np.arange(rows.start, rows.stop))
        ranking = rank(Only(scorer(rows), held), part, depth, exclude_history=True, threads=asked.threads)
        hits.append(ranking.hits)
        first.append(ranking.first)
        now = time.monotonic()
        if now - looked > _SECONDS_BETWEEN_LINES and rows.stop < total:
            left = (now - started) / rows.stop * (total - rows.stop)
            _log.info("%s: %s of %s queries, %.0f s to go", name, f"{rows.stop:,}", f"{total:,}", left)
            looked = now
    found = np.cumsum(np.concatenate(hits), axis=1, dtype=np.int64)
    held_out = asked.queries.held_out
    values = {f"recall@{k}": recall(found[:, min(k, found.shape[1]) - 1], held_out) for k in asked.ks}
    return values | {"mrr": reciprocal_rank(np.concatenate(first))}


def chance(held: NDArray[np.bool_], queries: Queries, k: int) -> float:
    """The recall that a random order of the same candidates has, on average.

    Of n candidates that are ranked for a query, each stands in the top k with probability k / n.

    Args:
        held: [catalogue] whether a candidate is ranked, the query's own past aside.
    """
    expected: list[float] = []
    for history, targets, held_out in zip(queries.history, queries.targets, queries.held_out, strict=True):
        ranked = int(held.sum()) - int(held[history].sum())
        findable = int(held[np.setdiff1d(targets, history, assume_unique=True)].sum())
        expected.append(min(k / ranked, 1.0) * findable / int(held_out) if ranked else 0.0)
    return float(np.mean(expected))


def take(queries: Queries, rows: NDArray[np.int64]) -> Queries:
    """Some of the queries."""
    return Queries(
        queries.features.take(rows),
        [queries.history[row] for row in rows],
        [queries.targets[row] for row in rows],
        queries.held_out[rows],
        queries.cold[rows],
    )
