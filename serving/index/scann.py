"""ScaNN: approximate search over millions of candidates."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from lockstep.config import IndexSection
from lockstep.errors import CorruptArtifactError
from serving.index.base import Candidates, Index, Rows
from serving.index.exact import GATHERED, nearest_rows
from serving.index.postings import Allowed
from serving.index.tuning import CHECK_QUERIES, Ladder, Point, Truth, Tuner

_OVERFETCH = 1.5
"""Of a filter's share: what it allows is not spread evenly."""
_SAMPLE = 100_000
_TUNING_PRODUCTS = 130_000_000_000
"""Multiplications that the exact neighbours of the tuning's queries may cost."""
_FEWEST_QUERIES = 500
_TIMED, _LEAST_TIMED, _TIMED_SECONDS = 64, 8, 0.03
_LOG = logging.getLogger(__name__)

Vectors = NDArray[np.float32]


class ScannIndex(Index):
    """A tree of quantised vectors; the best candidates are scored again with their raw vectors.

    Its settings are those that were tuned when it was built. Under a filter it asks for more and drops what is not
    allowed; where exact search of what is allowed is cheaper, by the times measured then, or too little is left, it
    does that. So a filter costs no results.
    """

    is_exact = False

    def __init__(self, candidates: Candidates, tree: ScannTree, ladder: Ladder) -> None:
        super().__init__(candidates)
        self._tree = tree
        # Requests ask for the same few numbers again and again.
        self._setting = lru_cache(4_096)(ladder.setting)
        self._prefers_exact = lru_cache(4_096)(ladder.prefers_exact)

    def _nearest(self, vectors: Vectors, count: int, allowed: Allowed | None) -> Sequence[Rows]:
        available = self.rows if allowed is None else allowed.count
        # The tree knows of living rows only, so that a filter which lets them all through is none.
        filtered = available < self.rows
        fetch = math.ceil(_OVERFETCH * count * self.rows / available) if filtered else count
        if self._prefers_exact(fetch, available):
            return self._exact(vectors, count, allowed)
        leaves, reorder, _ = self._setting(fetch)
        found = self._tree.search(vectors, fetch, leaves, reorder)
        if filtered and allowed is not None:
            found = [rows[allowed.mask[rows]] for rows in found]
        return [
            rows if len(rows) >= count else self._exact(vectors[place : place + 1], count, allowed)[0]
            for place, rows in enumerate(found)
        ]

    def _exact(self, vectors: Vectors, count: int, allowed: Allowed | None) -> list[Rows]:
        return list(nearest_rows(self._candidates.vectors, vectors, count, None if allowed is None else allowed.rows))


class ScannTree:
    """ScaNN's searcher by its settings.

    Args:
        searcher: made by `build` or `load`.
    """

    def __init__(self, searcher: Any, threads: int) -> None:
        # The wrapper of the package converts and checks what is checked here already.
        self._searcher = searcher.searcher
        self._searcher.set_num_threads(threads)
        self._threads = threads
        self.rows = int(searcher.size())

    @classmethod
    def build(cls, vectors: Vectors, leaves: int, threads: int, directory: Path) -> ScannTree:
        """Train a tree with two-dimensional anisotropic hashing and bfloat16 reordering, and write it.

        Args:
            vectors: [rows, dim], unit length.
            directory: an absent or empty folder; its contents can be moved.

        Reference: Guo et al., Accelerating Large-Scale Inference with Anisotropic Vector Quantization, ICML 2020.
        """
        sample = min(len(vectors), max(_SAMPLE, len(vectors) // 10))
        searcher = (
            _scann()
            .builder(vectors, 100, "dot_product")
            .set_n_training_threads(threads)
            .tree(leaves, leaves, training_sample_size=sample)
            .score_ah(2, anisotropic_quantization_threshold=0.2, training_sample_size=sample)
            .reorder(400, quantize=_reorder_type().BFLOAT16)
            .build()
        )
        directory.mkdir(parents=True, exist_ok=True)
        searcher.serialize(str(directory), relative_path=True)
        return cls(searcher, threads)

    @classmethod
    def load(cls, directory: Path, threads: int, rows: int) -> Self:
        """Load what `build` wrote; it is copied into memory.

        Args:
            rows: how many it must hold.

        Raises:
            CorruptArtifactError: it holds other rows; or there is a pickle, which ScaNN would load and which may run
                any code; ours has none.
        """
        pickles = sorted(path.name for path in directory.glob("*.pkl"))
        if pickles:
            found = f"the pickle {pickles[0]}"
            raise CorruptArtifactError(directory, found, "none, since loading one can run any code")
        tree = cls(_scann().load_searcher(str(directory)), threads)
        if tree.rows != rows:
            raise CorruptArtifactError(directory, f"a searcher over {tree.rows} rows", f"{rows} rows")
        return tree

    def search(self, vectors: Vectors, count: int, leaves: int, reorder: int) -> list[Rows]:
        """For each query at most `count` rows, many queries on all threads."""
        if len(vectors) == 1:
            return [self._searcher.search(vectors[0], count, reorder, leaves)[0].astype(np.int64)]
        rows, scores = self._searcher.search_batched(vectors, count, reorder, leaves, True, 256)
        # Rows past the last result are filled with NaN scores.
        finite = np.isfinite(scores)
        if finite.all():
            return list(rows.astype(np.int64))
        return [row[kept].astype(np.int64) for row, kept in zip(rows, finite, strict=True)]

    def timed_search(self, vectors: Vectors, count: int, leaves: int, reorder: int) -> tuple[list[Rows], float]:
        """`search`, and the median microseconds of single queries."""
        times: list[float] = []
        for vector in vectors[:_TIMED]:
            if sum(times) > _TIMED_SECONDS and len(times) > _LEAST_TIMED:
                break
            start = time.perf_counter()
            self._searcher.search(vector, count, reorder, leaves)
            times.append(time.perf_counter() - start)
        return self.search(vectors, count, leaves, reorder), 1e6 * float(np.median(times))


@dataclass(frozen=True)
class TunedTree:
    """A tree and what its tuning found.

    Args:
        parameters: what `ScannIndex` reads.
        chosen: the settings for k results.
        points: all that was measured for k results.
        train_seconds, tune_seconds: what both took.
    """

    parameters: dict[str, Any]
    chosen: Point
    points: tuple[Point, ...]
    train_seconds: float
    tune_seconds: float


def build_tuned(vectors: Vectors, queries: Vectors, section: IndexSection, directory: Path) -> TunedTree:
    """Train a tree, write it, and find the settings that reach [index] target_recall.

    Args:
        vectors: [rows, dim].
        queries: [n, dim] such as will be searched for.
        directory: where the tree goes.
    """
    k = min(section.k, len(vectors))
    queries = queries[: max(_FEWEST_QUERIES, _TUNING_PRODUCTS // vectors.size)]
    leaves = default_leaves(len(vectors))
    started = time.monotonic()
    _LOG.info("training a tree of %d leaves over %d candidates", leaves, len(vectors))
    tree = ScannTree.build(vectors, leaves, section.threads, directory)
    built = time.monotonic()
    _LOG.info("trained in %.1f s; tuning for recall@%d of %g", built - started, k, section.target_recall)
    tuner = Tuner(tree.timed_search, leaves, section.target_recall)
    steps = tuner.ladder(vectors, queries, k)
    chosen = next(step for step in steps if step.count == k)
    tuned = time.monotonic()
    _LOG.info("tuned in %.1f s", tuned - built)
    if chosen.recall < section.target_recall:
        _LOG.warning("no settings reach recall@%d of %g: the best is %.4f", k, section.target_recall, chosen.recall)
    ladder = Ladder(steps, leaves, exact_times(vectors, queries, k))
    checked = queries[:CHECK_QUERIES]
    found = tree.search(checked, k, chosen.leaves, chosen.reorder)
    check_recall = float(Truth(vectors, checked, k).recalls(found, k).mean())
    parameters = {
        "leaves": leaves,
        "threads": section.threads,
        "ladder": ladder.to_json(),
        "check_recall": check_recall,
    }
    points = tuple(point for point in tuner.points if point.count == k)
    return TunedTree(parameters, chosen, points, built - started, tuned - built)


def default_leaves(rows: int) -> int:
    """Leaves that did well at 100,000 to a million rows: twice the root of the rows, the root of large catalogues."""
    root = math.isqrt(rows)
    return max(1, min(rows // 130, 2 * root, max(1_000, root)))


def exact_times(vectors: Vectors, queries: Vectors, count: int) -> tuple[tuple[float, float], ...]:
    """What exact scans take: (allowed rows, microseconds), from few rows, which are picked out, to all of them.

    Args:
        vectors: [rows, dim].
        count: results.
    """
    total = len(vectors)
    rng = np.random.default_rng(0)
    picked = total // GATHERED
    times = []
    for size in sorted({min(picked, max(1, size)) for size in (2 * count, picked // 64, picked // 8, picked)} - {0}):
        rows = np.sort(rng.choice(total, size, replace=False))
        times.append((float(size), _median_microseconds(vectors, queries, min(count, size), rows)))
    most = rng.random(total) < 0.5
    above = _median_microseconds(vectors, queries, count, np.flatnonzero(most)) if most.sum() >= count else None
    whole = _median_microseconds(vectors, queries, count, None)
    return (*times, (picked + 1.0, above or whole), (float(total), whole))


def _median_microseconds(vectors: Vectors, queries: Vectors, count: int, rows: Rows | None) -> float:
    times = []
    for query in queries[:_LEAST_TIMED]:
        start = time.perf_counter()
        next(nearest_rows(vectors, query[None, :], count, rows))
        times.append(time.perf_counter() - start)
    return 1e6 * float(np.median(times))


def _scann() -> Any:
    # Its package imports TensorFlow, so only what searches with it pays for that.
    from scann.scann_ops.py import scann_ops_pybind

    return scann_ops_pybind


def _reorder_type() -> Any:
    from scann.scann_ops.py.scann_builder import ReorderType

    return ReorderType
