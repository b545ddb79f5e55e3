"""Tuning: the cheapest search that reaches a recall, found by asking real queries and comparing with exact search.

An approximate search of a tree has two settings. `leaves` says how much of the tree is scanned with quantised vectors,
`reorder` how many of the best are then scored with their (nearly) raw vectors. Recall and time grow with both, so for
each `reorder` there is one smallest `leaves` that reaches the target; the cheapest of these pairs is taken, and then
`reorder` is lowered as long as the target holds.

What is best for 100 results is not for 1,000, and a filtered search asks for more than it returns. So a ladder of
counts is tuned, and `Ladder.setting` reads between its steps.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from serving.index.exact import exact_scores, nearest_rows

AIM = 0.0025
"""How far above the target the tuning aims: the middle of the half percent above it."""
_RATIOS = (8.0, 5.0, 3.5, 2.5, 1.8, 1.3, 1.0)
"""Candidates scored again for each result."""
_MORE_RATIOS = (16.0, 32.0, 64.0)
"""Where none of those is enough, as with few results or few dimensions."""
_TIE = 1e-6
_NEAR = 1.1
"""Of the settings that take at most so much more than the fastest, the one is taken whose recall differs least from
query to query: few leaves find all of one query's neighbours and none of another's."""
_ABORT = 1.3
"""Where a setting takes so much more than the fastest, more leaves only make it worse."""
CHECK_QUERIES = 200
"""The first of the queries, whose recall is remembered, to be compared with that of the index once it has changed."""
_SCOUTS = 400
"""Queries that look for settings; all of them decide."""
_STEP_RESULTS, _FEWEST_QUERIES = 60_000, 40
"""Results that are looked at to tune another step than that of k: many queries of few results, or few of many."""
_STEP_FACTORS = (0.1, 1, 4, 16, 64)
_ROWS_PER_RESULT = 100
"""Steps are tuned up to one result in so many rows."""
_ROWS_ASKED = 4
"""A tree is not asked for more results than one in so many rows."""
_log = logging.getLogger(__name__)

Vectors = NDArray[np.float32]
Search = Callable[[Vectors, int, int, int], tuple[Sequence[NDArray[np.integer[Any]]], float]]
"""(queries, count, leaves, reorder) -> (rows found for each, microseconds a query on one thread)."""


@dataclass(frozen=True)
class Point:
    """A setting and what was measured of it."""

    count: int
    leaves: int
    reorder: int
    recall: float
    half_width: float
    """Of the recall's 95 % confidence interval."""
    microseconds: float


@dataclass(frozen=True)
class Ladder:
    """The settings for any number of results, by those of some.

    Args:
        steps: by ascending count.
        leaves: how many the tree has.
        exact: what an exact scan takes: (allowed rows, microseconds) by ascending rows, up to all rows.
    """

    steps: tuple[Point, ...]
    leaves: int
    exact: tuple[tuple[float, float], ...]

    def setting(self, count: int) -> tuple[int, int, float]:
        """Leaves, reorder and microseconds for `count` results, at least 1.

        Between steps along a power law; above the last one all three grow with the count, which is more than is needed.
        """
        counts = np.log([step.count for step in self.steps])
        above = max(1.0, count / self.steps[-1].count)
        place = math.log(max(count, self.steps[0].count))
        leaves, ratio, microseconds = (
            math.exp(np.interp(place, counts, np.log(values)))
            for values in (
                [step.leaves for step in self.steps],
                [step.reorder / step.count for step in self.steps],
                [step.microseconds for step in self.steps],
            )
        )
        reorder = max(count, math.ceil(ratio * max(count, self.steps[0].count)))
        return min(self.leaves, math.ceil(above * leaves - 1e-9)), reorder, above * microseconds

    def prefers_exact(self, count: int, allowed: int) -> bool:
        """Whether an exact scan of the allowed rows is cheaper than an approximate search for `count` results."""
        rows, microseconds = zip(*self.exact, strict=True)
        cannot = _ROWS_ASKED * count > rows[-1]
        return cannot or bool(np.interp(allowed, rows, microseconds) <= self.setting(count)[2])

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values; `from_json` reads them."""
        return asdict(self)

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> Ladder:
        """The inverse of `to_json`."""
        steps = tuple(Point(**step) for step in values["steps"])
        return cls(steps, values["leaves"], tuple((rows, time) for rows, time in values["exact"]))


class Truth:
    """The exact answers to some queries.

    Args:
        vectors: [rows, dim].
        queries: [n, dim].
        count: how many of the best rows are known.
        allowed: [n] ascending; None allows all.
    """

    def __init__(
        self, vectors: Vectors, queries: Vectors, count: int, allowed: NDArray[np.int64] | None = None
    ) -> None:
        self._vectors = vectors
        self.queries = queries
        self._best = np.empty((len(queries), count))
        for place, rows in enumerate(nearest_rows(vectors, queries, count, allowed)):
            scores = exact_scores(vectors, rows, queries[place : place + 1])
            self._best[place] = -np.sort(-scores)[:count]

    def recalls(self, found: Iterable[NDArray[np.integer[Any]]], count: int) -> NDArray[np.float64]:
        """For each query the share of its `count` best that was found; what ties with the last is one of them."""
        shares = []
        for place, rows in enumerate(found):
            scores = exact_scores(self._vectors, rows.astype(np.int64), self.queries[place : place + 1])
            shares.append(min(int((scores >= self._best[place, count - 1] - _TIE).sum()), count) / count)
        return np.array(shares)


class Tuner:
    """Tunes one tree.

    Args:
        search: the tree.
        leaves: how many it has.
        target: the recall to reach, of any number of results.
    """

    def __init__(self, search: Search, leaves: int, target: float) -> None:
        self._search = search
        self._leaves = leaves
        self._aim = min(target + AIM, (1 + target) / 2)
        self.points: list[Point] = []
        """All that was measured."""

    def ladder(self, vectors: Vectors, queries: Vectors, k: int) -> tuple[Point, ...]:
        """Tune for k results with all queries, and for fewer and more with some of them."""
        truth = Truth(vectors, queries, k)
        main = self._land(truth, self._cheapest(truth, k, _RATIOS))
        _log.info("recall@%d %.4f ± %.4f in %.0f us: %d of %d leaves, %d reordered", k, main.recall, main.half_width,
                  main.microseconds, main.leaves, self._leaves, main.reorder)  # fmt: skip
        self._look_around(truth, main)
        counts = sorted({max(1, int(factor * k)) for factor in _STEP_FACTORS} - {k})
        counts = [count for count in counts if count * _ROWS_PER_RESULT <= len(vectors)]
        steps = [main]
        for count in counts:
            some = queries[: max(_FEWEST_QUERIES, _STEP_RESULTS // count)][:_SCOUTS]
            ratio = main.reorder / k
            near = (ratio, max(1.0, 0.6 * ratio)) if count > k else (3 * ratio, ratio)
            steps.append(self._cheapest(Truth(vectors, some, count), count, near, main.leaves))
        return tuple(sorted(steps, key=lambda step: step.count))

    def _look_around(self, truth: Truth, chosen: Point) -> None:
        """Measure the frontier on both sides of a point, so that a reader sees what more or less recall costs."""
        for factor in (0.25, 0.5, 2, 4):
            leaves = min(self._leaves, max(1, round(chosen.leaves * factor)))
            reorder = max(chosen.count, round(chosen.reorder * factor**0.5))
            self._measure(truth, chosen.count, leaves, reorder, _SCOUTS)

    def _measure(self, truth: Truth, count: int, leaves: int, reorder: int, limit: int | None = None) -> Point:
        queries = truth.queries[:limit]
        found, microseconds = self._search(queries, count, leaves, reorder)
        recalls = truth.recalls(found, count)
        half = 1.96 * float(recalls.std(ddof=1)) / math.sqrt(len(recalls)) if len(recalls) > 1 else 0.0
        point = Point(count, leaves, reorder, float(recalls.mean()), half, microseconds)
        self.points.append(point)
        return point

    def _cheapest(self, truth: Truth, count: int, ratios: Sequence[float], guess: int | None = None) -> Point:
        """The best pair of settings; where none reaches the aim, the one of most recall."""
        reached: list[Point] = []
        missed: list[Point] = []
        leaves = max(1, guess // 2 if guess else self._leaves // 64)
        for ratio in (*ratios, *_MORE_RATIOS):
            if ratio in _MORE_RATIOS and reached:
                break
            fastest = min((point.microseconds for point in reached), default=math.inf)
            found, is_enough = self._fewest_leaves(truth, count, math.ceil(ratio * count), leaves, fastest)
            if is_enough:
                # Fewer candidates scored again cannot need fewer leaves.
                leaves = max(leaves, math.floor(0.9 * found.leaves))
            (reached if is_enough else missed).append(found)
        if not reached:
            return max(missed, key=lambda point: point.recall)
        fastest = min(point.microseconds for point in reached)
        return min(
            (point for point in reached if point.microseconds <= _NEAR * fastest), key=lambda one: one.half_width
        )

    def _fewest_leaves(self, truth: Truth, count: int, reorder: int, start: int, fastest: float) -> tuple[Point, bool]:
        """The fewest leaves from `start` on that reach the aim, if they can in not much more than the least time."""
        low, high = 0, min(start, self._leaves)
        point = self._measure(truth, count, high, reorder, _SCOUTS)
        while point.recall < self._aim:
            if high == self._leaves or point.microseconds > _ABORT * fastest:
                return point, False
            low, high = high, min(self._leaves, math.ceil(1.6 * high))
            point = self._measure(truth, count, high, reorder, _SCOUTS)
        return self._least(
            point, lambda tried: self._measure(truth, count, tried, reorder, _SCOUTS), low, high, max(1, high // 25)
        ), True

    def _land(self, truth: Truth, start: Point) -> Point:
        """With all queries: as many leaves as reach the aim, and then as little as keeps it of one and the other."""
        point = self._measure(truth, start.count, start.leaves, start.reorder)
        while point.recall < self._aim and point.leaves < self._leaves:
            more = min(self._leaves, point.leaves + max(1, point.leaves // 25))
            point = self._measure(truth, start.count, more, point.reorder)
        if point.recall < self._aim:
            return point
        point = self._fewest_reordered(truth, point)
        if point.reorder <= point.count + point.count // 50:  # no less to score, so maybe leaves to spare
            count, reorder = point.count, point.reorder
            point = self._least(point, lambda tried: self._measure(truth, count, tried, reorder), 0, point.leaves, 1)
            fewer = self._measure(truth, count, max(1, point.leaves - 1), 2 * count)
            if fewer.recall >= self._aim:
                point = self._fewest_reordered(truth, fewer)
        return point

    def _fewest_reordered(self, truth: Truth, point: Point) -> Point:
        count, leaves = point.count, point.leaves
        return self._least(
            point,
            lambda tried: self._measure(truth, count, leaves, tried),
            count - 1,
            point.reorder,
            max(1, count // 50),
        )

    def _least(self, known: Point, measure: Callable[[int], Point], low: int, high: int, tolerance: int) -> Point:
        """The point of the least setting that reaches the aim, by bisection.

        Args:
            known: the point of `high`, which reaches it.
            low: a setting that does not.
        """
        while high - low > tolerance:
            middle = (low + high) // 2
            tried = measure(middle)
            if tried.recall >= self._aim:
                high, known = middle, tried
            else:
                low = middle
        return known
