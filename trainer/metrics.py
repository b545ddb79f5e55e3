"""Exact ranking measures: pure functions of scores, ranks and targets.

A rank is the number of candidates that stand before one, so the best has rank 0. Equal scores are ordered by
candidate index, which makes every measure a function of the scores alone.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Scores = NDArray[np.floating]
UNRANKED = 2**62
"""The rank of a candidate that is out of the ranking: below every k."""


def target_ranks(scores: Scores, targets: NDArray[np.int64], ordered: Scores | None = None) -> NDArray[np.int64]:
    """The rank of each target among all candidates of one query, by counting who scores more.

    Args:
        scores: [candidates] of one query; -inf takes a candidate out of the ranking.
        targets: [targets] candidate indices.
        ordered: the same scores in ascending order, where the caller has them.

    Returns:
        [targets] ranks; UNRANKED for a target at -inf.
    """
    ordered = np.sort(scores) if ordered is None else ordered
    wanted = scores[targets]
    below_or_equal = np.searchsorted(ordered, wanted, side="right")
    ranks: NDArray[np.int64] = len(scores) - below_or_equal
    tied = np.flatnonzero(below_or_equal - np.searchsorted(ordered, wanted, side="left") > 1)
    for position in tied:
        target = targets[position]
        ranks[position] += np.count_nonzero(scores[:target] == wanted[position])
    ranks[np.isneginf(wanted)] = UNRANKED
    return ranks


def top_mask(scores: Scores, k: int, ordered: Scores | None = None) -> NDArray[np.bool_]:
    """Which candidates are the top k of one query.

    Args:
        scores: [candidates]; candidates at -inf are never among the top.
        ordered: the same scores in ascending order, where the caller has them.

    Returns:
        [candidates] with at most k true values.
    """
    if k >= len(scores):
        return ~np.isneginf(scores)
    ordered = np.sort(scores) if ordered is None else ordered
    threshold = ordered[len(scores) - k]
    mask = scores > threshold
    if not np.isneginf(threshold):
        mask[np.flatnonzero(scores == threshold)[: k - np.count_nonzero(mask)]] = True
    return mask


def recall(ranks: NDArray[np.int64], held_out: int, k: int) -> float:
    """Share of the held-out candidates that stand in the top k.

    Args:
        ranks: [targets] of the held-out candidates that can be ranked.
        held_out: number of held-out candidates, those unknown to the catalogue included.
    """
    return float(np.count_nonzero(ranks < k)) / held_out


def ndcg(ranks: NDArray[np.int64], held_out: int, k: int) -> float:
    """Discounted gain of the top k with binary relevance, over that of the best order possible.

    Reference: Järvelin & Kekäläinen, "Cumulated gain-based evaluation of IR techniques", TOIS 2002.
    """
    gain = np.sum(1.0 / np.log2(ranks[ranks < k] + 2.0))
    ideal = np.sum(1.0 / np.log2(np.arange(min(k, held_out)) + 2.0))
    return float(gain / ideal)


def reciprocal_rank(ranks: NDArray[np.int64]) -> float:
    """One over the position of the first held-out candidate, 0 where none is ranked."""
    best = int(ranks.min(initial=UNRANKED))
    return 1.0 / (best + 1) if best < UNRANKED else 0.0


class RankingMeasures:
    """The means of all measures over queries, added one at a time."""

    def __init__(self, candidates: int, ks: Sequence[int]) -> None:
        self._ks = tuple(ks)
        self._sums: dict[str, float] = {}
        self._covered = {k: np.zeros(candidates, dtype=bool) for k in self._ks}
        self.queries = 0

    def add(self, scores: Scores, targets: NDArray[np.int64], held_out: int) -> None:
        """Count one query.

        Args:
            scores: [candidates]; -inf takes a candidate out of the ranking.
            targets: [targets] distinct indices of the held-out candidates that the catalogue has.
            held_out: number of distinct held-out candidates, at least 1.
        """
        ordered = np.sort(scores)
        ranks = target_ranks(scores, targets, ordered)
        values = {f"recall@{k}": recall(ranks, held_out, k) for k in self._ks}
        values |= {f"ndcg@{k}": ndcg(ranks, held_out, k) for k in self._ks}
        values["mrr"] = reciprocal_rank(ranks)
        for name, value in values.items():
            self._sums[name] = self._sums.get(name, 0.0) + value
        for k, covered in self._covered.items():
            covered |= top_mask(scores, k, ordered)
        self.queries += 1

    def means(self) -> dict[str, float]:
        """Every measure's mean over the queries; coverage@k is the share of the catalogue in some top k."""
        means = {name: total / self.queries for name, total in self._sums.items()}
        return means | {f"coverage@{k}": float(covered.mean()) for k, covered in self._covered.items()}
