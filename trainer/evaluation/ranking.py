"""Exact rankings of the full catalogue.

A block of queries is scored against every candidate at once, and of each row only what the measures need is taken:
the best `depth` candidates in their order, and the rank of the best target, by counting who scores more. No row is
sorted; the buffers of the scores are all the memory that grows with the catalogue.

A rank is the number of candidates that stand before one, so the best has rank 0. Equal scores are ordered by
candidate index, which makes every measure a function of the scores alone.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from queue import SimpleQueue
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from lockstep.errors import DataError
from trainer.evaluation.queries import Queries

Scores = NDArray[np.float32]
UNRANKED = 2**62
"""The rank of a candidate that is out of the ranking: below every k."""
_SCORES_AT_ONCE = 16_000_000
"""Elements of a thread's block of scores: 64 MB."""
_ROWS_AT_ONCE = 256
"""Most rows of a block, so that those of a small catalogue stay in the processor's cache."""
_SAMPLE = 8_192
"""Scores of a row that a first guess of its best is made from."""


class Scorer(Protocol):
    """One way to score every candidate for a query."""

    @property
    def candidates(self) -> int:
        """How many candidates there are."""

    def score(self, rows: slice, out: Scores) -> None:
        """Write the scores of some queries to `out`, [rows, candidates]; -inf takes one out of the ranking."""


@dataclass(frozen=True)
class Products:
    """Scores by the product of two vectors.

    Args:
        vectors: [queries, dim] float32.
        candidate_vectors: [candidates, dim] float32.

    Raises:
        DataError: a vector is not finite.
    """

    vectors: Scores
    candidate_vectors: Scores

    def __post_init__(self) -> None:
        for side, vectors in (("query", self.vectors), ("candidate", self.candidate_vectors)):
            broken = np.count_nonzero(~np.isfinite(vectors).all(axis=1))
            if broken:
                raise DataError(
                    f"{broken:,} of {len(vectors):,} {side} vectors hold NaN or infinite numbers, which cannot be "
                    "ranked: train again with a smaller learning rate"
                )

    @property
    def candidates(self) -> int:
        """How many candidates there are."""
        return len(self.candidate_vectors)

    def score(self, rows: slice, out: Scores) -> None:
        """Write the scores of some queries."""
        np.matmul(self.vectors[rows], self.candidate_vectors.T, out=out)


@dataclass(frozen=True)
class SameForAll:
    """The same [candidates] scores for every query."""

    scores: Scores

    @property
    def candidates(self) -> int:
        """How many candidates there are."""
        return len(self.scores)

    def score(self, rows: slice, out: Scores) -> None:
        """Write the scores of some queries."""
        out[:] = self.scores


@dataclass(frozen=True)
class HistorySums:
    """Scores by the sum of what each candidate of the history says of every other.

    Args:
        weights: [candidates, candidates] float32; row i is what candidate i in a history says.
        history: [queries] candidate indices each.
    """

    weights: Scores
    history: Sequence[NDArray[np.int64]]

    @property
    def candidates(self) -> int:
        """How many candidates there are."""
        return len(self.weights)

    def score(self, rows: slice, out: Scores) -> None:
        """Write the scores of some queries."""
        for row, history in enumerate(self.history[rows]):
            np.sum(self.weights[history], axis=0, out=out[row])


@dataclass(frozen=True)
class Only:
    """The scores of another scorer, where only some candidates are ranked.

    Args:
        ranked: [candidates] whether each one is.
    """

    scorer: Scorer
    ranked: NDArray[np.bool_]

    @property
    def candidates(self) -> int:
        """How many candidates there are, ranked or not."""
        return self.scorer.candidates

    def score(self, rows: slice, out: Scores) -> None:
        """Write the scores of some queries."""
        self.scorer.score(rows, out)
        out[:, ~self.ranked] = -np.inf


@dataclass(frozen=True)
class Ranking:
    """The best candidates of each query.

    Args:
        top: [queries, depth] int32 candidate indices, best first; -1 where no more can be ranked.
        hits: [queries, depth] whether each of them is a target.
        first: [queries] int64 rank of the best target, wherever it stands; UNRANKED where none is ranked.
        candidates: how many there are, ranked or not.
    """

    top: NDArray[np.int32]
    hits: NDArray[np.bool_]
    first: NDArray[np.int64]
    candidates: int


def rank(scorer: Scorer, queries: Queries, depth: int, *, exclude_history: bool, threads: int = 1) -> Ranking:
    """Rank the whole catalogue for every query.

    Args:
        depth: how many of the best to keep; the catalogue's size at most.
        exclude_history: take a query's own past out of its ranking.
        threads: blocks at a time, 64 MB of scores each.
    """
    candidates, count = scorer.candidates, len(queries)
    depth = min(depth, candidates)
    top = np.full((count, depth), -1, dtype=np.int32)
    hits = np.zeros((count, depth), dtype=bool)
    first = np.full(count, UNRANKED, dtype=np.int64)
    rows = min(max(1, _SCORES_AT_ONCE // max(candidates, 1)), _ROWS_AT_ONCE, max(1, -(-count // threads)))
    buffers: SimpleQueue[Scores] = SimpleQueue()
    for _ in range(threads):
        buffers.put(np.empty((rows, candidates), dtype=np.float32))

    def rank_block(start: int) -> None:
        buffer = buffers.get()
        block = slice(start, min(start + rows, count))
        scores = buffer[: block.stop - start]
        scorer.score(block, scores)
        for query, of_query in enumerate(scores, start):
            if exclude_history:
                of_query[queries.history[query]] = -np.inf
            targets = queries.targets[query]
            best = best_candidates(of_query, depth)
            top[query, : len(best)] = best
            hits[query, : len(best)] = np.isin(best, targets, assume_unique=True)
            first[query] = np.argmax(hits[query]) if hits[query].any() else best_rank(of_query, targets)
        buffers.put(buffer)

    with ThreadPoolExecutor(threads) as pool:
        for _ in pool.map(rank_block, range(0, count, rows)):
            pass
    return Ranking(top, hits, first, candidates)


def best_candidates(scores: Scores, depth: int) -> NDArray[np.int64]:
    """The best candidates of one query, best first.

    Args:
        scores: [candidates]; those at -inf are never among the best.
        depth: how many, the number of candidates at most.
    """
    found = np.flatnonzero(scores >= _floor(scores, depth))
    values = scores[found]
    last = np.partition(values, len(values) - depth)[len(values) - depth]
    above, tied = found[values > last], found[values == last]
    best = np.concatenate([above, tied[: depth - len(above)]])
    # Both parts ascend, and so do equal scores in a stable order.
    best = best[np.argsort(-scores[best], kind="stable")]
    return best[scores[best] > -np.inf]


def best_rank(scores: Scores, targets: NDArray[np.int64]) -> int:
    """The rank of the best target among all candidates of one query, by counting who scores more.

    Args:
        scores: [candidates].
        targets: [targets] candidate indices, ascending.
    """
    wanted = scores[targets]
    if not len(wanted) or (best := wanted.max()) == -np.inf:
        return UNRANKED
    index = targets[np.argmax(wanted)]
    return int(np.count_nonzero(scores > best) + np.count_nonzero(scores[:index] == best))


def _floor(scores: Scores, depth: int) -> np.float32:
    """A score that at least `depth` candidates reach, and few more than twice as many."""
    step = len(scores) // _SAMPLE
    expected = depth / max(step, 1)
    place = math.ceil(expected + 4 * math.sqrt(expected) + 4)
    if step > 1 and place < _SAMPLE // 4:
        guess: np.float32 = np.partition(scores[::step], -place)[-place]
        if np.count_nonzero(scores >= guess) >= depth:
            return guess
    exact: np.float32 = np.partition(scores, len(scores) - depth)[len(scores) - depth]
    return exact
