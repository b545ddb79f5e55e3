"""The gate's checks of the index: does it find what an exact search finds, of everything, fast enough."""

from __future__ import annotations

import time
from collections.abc import Iterator

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from lockstep.embeddings import read_embeddings
from lockstep.tags import Kind
from serving.gate_checks import Check, Subject, at_least, at_most, entity_ids, sample
from serving.index.exact import exact_scores, nearest_rows

_TIE = 1e-6


def check_index(subject: Subject) -> Iterator[Check]:
    """Coverage, recall against exact search, and latency."""
    index, section = subject.index, subject.section
    entities = entity_ids(subject, "candidates")
    vectors, ids = _catalogue(subject)
    yield at_least("index: share of candidates", index.rows / max(len(entities), 1), section.min_coverage)
    queries = [embedding for _, embedding in sample(subject.parts[Kind.QUERY_EMBEDDINGS], section.ann_queries)]
    k = min(section.k, len(vectors))
    found, milliseconds = [], []
    for query in queries:
        start = time.perf_counter()
        found.append(index.search(query[0], k).ids)
        milliseconds.append(1e3 * (time.perf_counter() - start))
    recalls = [
        _recall(vectors, query.vectors[0], rows, k) for query, rows in zip(queries, _rows(found, ids), strict=True)
    ]
    mean, half = _interval(np.array(recalls))
    note = f"lower end of {mean:.4f} ± {half:.4f} (95 %), {len(queries)} queries"
    yield at_least(f"index: recall@{k} against exact search", mean - half, section.min_ann_recall, note)
    yield at_most("index: median search ms", float(np.median(milliseconds)), section.max_latency_ms)


def _catalogue(subject: Subject) -> tuple[NDArray[np.float32], pa.ChunkedArray]:
    """The candidates as the embeddings file has them: the index's own copy proves nothing about itself."""
    artifact = subject.parts[Kind.CANDIDATE_EMBEDDINGS]
    vectors = np.empty((artifact.tag.rows, subject.index.dim), np.float32)
    columns = []
    first = 0
    for batch, embeddings in read_embeddings(artifact):
        vectors[first : first + len(batch)] = embeddings.vectors
        columns.append(batch.column("id"))
        first += len(batch)
    return vectors, pa.chunked_array(columns, pa.string())


def _rows(found: list[tuple[str, ...]], ids: pa.ChunkedArray) -> list[NDArray[np.int64]]:
    """The rows of the ids that each search found; strangers have none."""
    flat = pa.array([one for answer in found for one in answer], pa.string())
    rows = pc.fill_null(pc.index_in(flat, value_set=ids), -1).to_numpy(zero_copy_only=False).astype(np.int64)
    answers = np.split(rows, np.cumsum([len(answer) for answer in found])[:-1])
    return [np.unique(answer[answer >= 0]) for answer in answers]


def _recall(vectors: NDArray[np.float32], query: NDArray[np.float32], found: NDArray[np.int64], k: int) -> float:
    """The share of the k best that was found; whatever ties with the last of them counts as one of them."""
    best = next(nearest_rows(vectors, query[None, :], k))
    last = np.sort(exact_scores(vectors, best, query[None, :]))[-k]
    good = exact_scores(vectors, found, query[None, :]) >= last - _TIE
    return float(min(good.sum(), k) / k)


def _interval(values: NDArray[np.float64]) -> tuple[float, float]:
    """Mean, and half the width of its 95 % confidence interval."""
    if len(values) < 2:
        return float(values.mean()), 0.0
    return float(values.mean()), float(1.96 * values.std(ddof=1) / np.sqrt(len(values)))
