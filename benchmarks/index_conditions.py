"""Parts of benchmarks/index.py: searches under filters, and an index that changes."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from index_data import VERSION, Vectors, mixture, write_artifacts
from index_peers import last_scores, singles

from lockstep.config import IndexSection
from lockstep.embeddings import RESTRICTS, VersionedEmbedding, VersionedEmbeddings
from serving import build_index
from serving.index import Restricts, open_index
from serving.index.updates import UpdatableIndex

K = 100
SHARES = {"0.1 %": 0.001, "1 %": 0.01, "10 %": 0.1, "50 %": 0.5}


def filters(candidates: Vectors, queries: Vectors, work: Path) -> dict[str, Any]:
    """Tokens at random, and by the side of a direction: those near a query allow much, or nothing."""
    rng = np.random.default_rng(3)
    ranks = {
        "at random": rng.permutation(len(candidates)),
        "by direction": np.argsort(
            np.argsort(candidates @ rng.standard_normal(candidates.shape[1]).astype(np.float32))
        ),
    }
    columns = {
        f"{kind} {name}": rank < share * len(candidates)
        for kind, rank in ranks.items()
        for name, share in SHARES.items()
    }
    made, asked = write_artifacts(work, candidates, queries[:2_000], _restricts(columns))
    section = IndexSection(target_recall=0.96)
    build_index.run(
        candidate_embeddings=made, query_embeddings=asked, index=work / "index", model_version=VERSION, run_id="b",
        section=section,
    )  # fmt: skip
    index = open_index(work / "index", VERSION, 1)
    report: dict[str, Any] = {"rows": len(candidates), "target": section.target_recall}
    fresh = queries[2_000:2_300]
    for name, column in {"none": None, **columns}.items():
        rows = None if column is None else np.flatnonzero(column)
        restricts = None if column is None else Restricts({"kind": {name}})

        def search(query: Vectors, restricts: Restricts | None = restricts) -> np.ndarray:
            found = index.search(VersionedEmbedding(query, VERSION), K, restricts=restricts)
            return np.array([int(one[1:]) for one in found.ids], np.int64)

        start = time.perf_counter()
        search(queries[0])
        first = 1e3 * (time.perf_counter() - start)
        report[name] = singles(search, candidates, fresh, last_scores(candidates, fresh, K, rows), K)
        report[name]["first ms"] = round(first, 1)
    return report


def _restricts(columns: dict[str, np.ndarray]) -> pa.Array:
    """One namespace, in which every candidate has the names of the columns that it is in."""
    inside = np.stack(list(columns.values()), axis=1)
    _, names = np.nonzero(inside)
    tokens = pa.DictionaryArray.from_arrays(pa.array(names, pa.int32()), pa.array(list(columns))).cast(pa.string())
    offsets = np.concatenate([[0], np.cumsum(inside.sum(axis=1))])
    lists = pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), tokens)
    structs = pa.StructArray.from_arrays(
        [pa.array(["kind"] * len(inside)), lists, pa.nulls(len(inside), pa.list_(pa.string()))],
        fields=list(RESTRICTS.value_type),
    )
    return pa.ListArray.from_arrays(pa.array(np.arange(len(inside) + 1), pa.int32()), structs)


def changes(candidates: Vectors, queries: Vectors, work: Path) -> dict[str, Any]:
    """Replace candidates by others of the same mixture, or of another one, without building anew."""
    rows, dim = candidates.shape
    made, asked = write_artifacts(work, candidates, queries[:2_000])
    build_index.run(
        candidate_embeddings=made, query_embeddings=asked, index=work / "index", model_version=VERSION, run_id="b",
        section=IndexSection(target_recall=0.96),
    )  # fmt: skip
    report: dict[str, Any] = {"rows": rows, "dim": dim, "target": 0.96}
    for kind, others in (
        ("of the same mixture", candidates[np.random.default_rng(5).permutation(rows)]),
        ("of another mixture", mixture(rows, 1, dim, 99)[0]),
    ):
        index = UpdatableIndex(work / "index", work / kind.replace(" ", "-"), VERSION, 1, automatic=False)
        table = []
        changed = 0
        for share in (0.0, 0.05, 0.1, 0.25, 0.5):
            start = time.perf_counter()
            upto = int(share * rows)
            for first in range(changed, upto, 1_000):
                some = slice(first, min(first + 1_000, upto))
                ids = pa.array([f"c{row}" for row in range(some.start, some.stop)])
                index.upsert(VersionedEmbeddings(others[some], VERSION), pa.RecordBatch.from_pydict({"id": ids}))
            rate = (upto - changed) / (time.perf_counter() - start)
            changed = upto
            table.append({"changed": share, "recall@100": round(index.recall(), 4), "upserts/s": round(rate)})
        start = time.perf_counter()
        index.close()
        index = UpdatableIndex(work / "index", work / kind.replace(" ", "-"), VERSION, 1, automatic=False)
        opened, start = time.perf_counter() - start, time.perf_counter()
        index.rebuild()
        table.append({"rebuilt s": round(time.perf_counter() - start, 1), "recall@100": round(index.recall(), 4)})
        report[kind] = {"steps": table, "opened again s": round(opened, 1)}
        index.close()
    return report
