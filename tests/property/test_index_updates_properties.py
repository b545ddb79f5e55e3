"""100,000 random changes, searches and restarts of an index against a dictionary."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from lockstep.config import IndexSection
from lockstep.embeddings import VersionedEmbeddings
from lockstep.tags import Kind
from lockstep.version import ModelVersion, ReleaseId
from serving import build_index
from serving.index.updates import UpdatableIndex
from tests.fakes.stub_releases import write_embeddings

V2 = ReleaseId(ModelVersion(2), 1)
DIM, BEGAN, NAMES, K = 16, 3_000, 6_000, 20
OPERATIONS = 100_000
TARGET = 0.95


def unit_rows(rng: np.random.Generator, rows: int) -> np.ndarray:
    vectors = rng.standard_normal((rows, DIM)).astype(np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


class Model:
    """What the index should hold."""

    def __init__(self, vectors: np.ndarray) -> None:
        self.vectors = np.zeros((NAMES, DIM), np.float32)
        self.alive = np.zeros(NAMES, bool)
        self.put(np.arange(len(vectors)), vectors)

    def put(self, names: np.ndarray, vectors: np.ndarray) -> None:
        self.vectors[names], self.alive[names] = vectors, True

    def nearest(self, query: np.ndarray, k: int) -> list[int]:
        scores = np.where(self.alive, self.vectors.astype(np.float64) @ query.astype(np.float64), -9)
        found: list[int] = np.argsort(-scores, kind="stable")[: min(k, int(self.alive.sum()))].tolist()
        return found


def opened(path: Path) -> UpdatableIndex:
    return UpdatableIndex(path / "i", path / "changes", V2.model_version, 1, automatic=True)


@pytest.mark.parametrize("backend", ["brute_force", "scann"])
def test_a_hundred_thousand_operations_lose_and_resurrect_nothing(tmp_path: Path, backend: str) -> None:
    rng = np.random.default_rng(7)
    vectors = unit_rows(rng, BEGAN)
    ids = [f"c{row}" for row in range(BEGAN)]
    write_embeddings(tmp_path / "c", Kind.CANDIDATE_EMBEDDINGS, V2, ids, vectors)
    write_embeddings(tmp_path / "q", Kind.QUERY_EMBEDDINGS, V2, [f"q{n}" for n in range(300)], unit_rows(rng, 300))
    build_index.run(
        candidate_embeddings=tmp_path / "c", query_embeddings=tmp_path / "q", index=tmp_path / "i",
        model_version=V2.model_version, run_id="r",
        section=IndexSection(backend=backend, k=K, target_recall=TARGET),
    )  # fmt: skip
    model, index = Model(vectors), opened(tmp_path)
    operations = restarts = 0
    recalls: list[float] = []
    while operations < OPERATIONS:
        kind = rng.choice(["upsert", "remove", "search", "restart"], p=[0.46, 0.3, 0.23, 0.01])
        if kind == "upsert":
            names = rng.choice(NAMES, rng.integers(1, 120), replace=False)
            new = unit_rows(rng, len(names))
            batch = pa.RecordBatch.from_pydict({"id": pa.array([f"c{name}" for name in names])})
            index.upsert(VersionedEmbeddings(new, V2.model_version), batch)
            model.put(names, new)
            operations += len(names)
        elif kind == "remove":
            names = rng.choice(NAMES, rng.integers(1, 120), replace=False)
            index.remove([f"c{name}" for name in names])
            model.alive[names] = False
            operations += len(names)
        elif kind == "search":
            queries = unit_rows(rng, 10)
            answers = index.search_batch(VersionedEmbeddings(queries, V2.model_version), K)
            for query, answer in zip(queries, answers, strict=True):
                found = [int(name[1:]) for name in answer.ids]
                assert model.alive[found].all()
                np.testing.assert_allclose(answer.scores, model.vectors[found] @ query, atol=1e-6)
                expected = model.nearest(query, K)
                assert len(found) == len(set(found)) == len(expected)
                if index.is_exact:
                    assert found == expected
                recalls.append(len(set(found) & set(expected)) / len(expected))
            operations += len(queries)
        else:
            index.close()
            index = opened(tmp_path)
            restarts += 1
        assert index.rows == model.alive.sum()
    assert restarts >= 5
    assert index.generation >= 3
    # Between two looks at it, the recall of an index that changes may be a little below its target.
    assert float(np.mean(recalls)) >= TARGET - 0.01
    everything = index.search(VersionedEmbeddings(unit_rows(rng, 1), V2.model_version)[0], NAMES)
    assert sorted(int(name[1:]) for name in everything.ids) == np.flatnonzero(model.alive).tolist()
    assert index.failure is None
    index.close()
