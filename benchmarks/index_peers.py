"""What the index is compared with, and how single queries and recalls are measured for all of them alike."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from serving.index.exact import exact_scores, nearest_rows

Vectors = NDArray[np.float32]
Rows = NDArray[np.int64]
TIE = 1e-6


def last_scores(candidates: Vectors, queries: Vectors, k: int, allowed: Rows | None = None) -> NDArray[np.float64]:
    """[queries] the score of each query's k-th best candidate, by exact search."""
    found = np.empty(len(queries))
    for place, rows in enumerate(nearest_rows(candidates, queries, k, allowed)):
        found[place] = -np.sort(-exact_scores(candidates, rows, queries[place : place + 1]))[k - 1]
    return found


def recalls(
    candidates: Vectors, queries: Vectors, found: Iterable[Rows], last: NDArray[np.float64], k: int
) -> NDArray[np.float64]:
    """[queries] the share of the k best that was found; ties with the last count as found."""
    shares = []
    for place, rows in enumerate(found):
        scores = exact_scores(candidates, np.asarray(rows, np.int64), queries[place : place + 1])
        shares.append(min(int((scores >= last[place] - TIE).sum()), k) / k)
    return np.array(shares)


def singles(
    search: Callable[[Vectors], Rows], candidates: Vectors, queries: Vectors, last: NDArray[np.float64], k: int
) -> dict[str, Any]:
    """Recall and time of queries asked one by one, after a tenth of them as warm-up."""
    for query in queries[: len(queries) // 10]:
        search(query)
    times, found = [], []
    for query in queries:
        start = time.perf_counter()
        rows = search(query)
        times.append(time.perf_counter() - start)
        found.append(rows)
    shares = recalls(candidates, queries, found, last, k)
    return {
        f"recall@{k}": round(float(shares.mean()), 4),
        "half width": round(float(1.96 * shares.std(ddof=1) / len(shares) ** 0.5), 4),
        "p50 us": round(1e6 * float(np.median(times))),
        "p95 us": round(1e6 * float(np.quantile(times, 0.95))),
    }


def plain_scann(candidates: Vectors, leaves: int) -> tuple[Callable[[Vectors], Rows], float]:
    """ScaNN as its documentation sets it up, untuned: a tenth of the leaves, 400 candidates scored again.

    Returns:
        The search of one query for 100 results, and the seconds of the build.
    """
    from scann.scann_ops.py import scann_ops_pybind

    start = time.perf_counter()
    searcher = (
        scann_ops_pybind.builder(candidates, 100, "dot_product")
        .set_n_training_threads(2)
        .tree(leaves, leaves // 10, training_sample_size=min(len(candidates), 100_000))
        .score_ah(2, anisotropic_quantization_threshold=0.2)
        .reorder(400)
        .build()
    )
    return lambda query: searcher.search(query)[0], time.perf_counter() - start


def hnswlib_search(
    candidates: Vectors, threads: int, m: int = 16, ef_construction: int = 200
) -> tuple[Callable[[Vectors, int, int], Rows], float]:
    """hnswlib's graph.

    Returns:
        (queries, k, ef) -> [queries, k] rows, and the seconds of the build.
    """
    import hnswlib

    start = time.perf_counter()
    graph = hnswlib.Index(space="ip", dim=candidates.shape[1])
    graph.init_index(max_elements=len(candidates), ef_construction=ef_construction, M=m)
    graph.add_items(candidates, num_threads=threads)
    seconds = time.perf_counter() - start

    def search(queries: Vectors, k: int, ef: int) -> Rows:
        graph.set_ef(ef)
        rows: Rows = graph.knn_query(queries, k, num_threads=min(threads, len(queries)))[0].astype(np.int64)
        return rows

    return search, seconds
