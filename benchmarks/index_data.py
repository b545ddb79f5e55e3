"""Embeddings for the benchmarks of indexes: a mixture of clusters, or what a model of ours made."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from lockstep.embeddings import VersionedEmbeddings, embedding_batch, read_embeddings
from lockstep.tags import Kind, open_artifact, write_tag
from lockstep.version import ModelVersion

VERSION = ModelVersion(1)
Vectors = NDArray[np.float32]
_ROWS_AT_ONCE = 250_000


def mixture(rows: int, queries: int, dim: int, seed: int, *, spread: float = 0.9) -> tuple[Vectors, Vectors]:
    """Unit vectors around 2,000 directions that are popular to different degrees.

    Args:
        spread: the expected length of what is added to a direction of length 1, in all directions alike.

    Returns:
        [rows, dim] candidates, [queries, dim] queries of the same mixture.
    """
    rng = np.random.default_rng(seed)
    centres = rng.standard_normal((2_000, dim), dtype=np.float32)
    centres /= np.linalg.norm(centres, axis=1, keepdims=True)
    popularity = rng.exponential(size=len(centres))
    picked = rng.choice(len(centres), rows + queries, p=popularity / popularity.sum())
    vectors = np.empty((rows + queries, dim), np.float32)
    for first in range(0, len(vectors), _ROWS_AT_ONCE):
        some = picked[first : first + _ROWS_AT_ONCE]
        noise = rng.standard_normal((len(some), dim), dtype=np.float32)
        added = centres[some] + np.float32(spread / dim**0.5) * noise
        vectors[first : first + len(some)] = added / np.linalg.norm(added, axis=1, keepdims=True)
    return vectors[:rows], vectors[rows:]


def made_by_a_model(root: Path) -> tuple[Vectors, Vectors]:
    """The embeddings of the newest run below a root: candidates and queries."""
    found = []
    for kind in (Kind.CANDIDATE_EMBEDDINGS, Kind.QUERY_EMBEDDINGS):
        newest = max(root.glob(f"runs/*/**/{kind}/tag.json"), key=lambda path: path.stat().st_mtime).parent
        artifact = open_artifact(newest, kind)
        found.append(np.concatenate([embeddings.vectors for _, embeddings in read_embeddings(artifact)]))
    return found[0], found[1]


def write_artifacts(
    folder: Path, candidates: Vectors, queries: Vectors, restricts: pa.Array | None = None
) -> tuple[Path, Path]:
    """The artifacts of embed_candidates and embed_queries, with c0, c1 ... and q0, q1 ... as ids.

    Args:
        restricts: [rows] of `lockstep.embeddings.RESTRICTS`.
    """
    shutil.rmtree(folder, ignore_errors=True)
    for kind, vectors, letter in (
        (Kind.CANDIDATE_EMBEDDINGS, candidates, "c"),
        (Kind.QUERY_EMBEDDINGS, queries, "q"),
    ):
        path = folder / kind
        path.mkdir(parents=True)
        writer: pq.ParquetWriter | None = None
        for first in range(0, len(vectors), _ROWS_AT_ONCE):
            some = np.ascontiguousarray(vectors[first : first + _ROWS_AT_ONCE])
            ids = pa.array([f"{letter}{row}" for row in range(first, first + len(some))])
            of_these = None if restricts is None or letter == "q" else restricts[first : first + len(some)]
            digests = pa.array(["0"] * len(some))
            batch = embedding_batch(kind, ids, VersionedEmbeddings(some, VERSION), digests, of_these)
            writer = writer or pq.ParquetWriter(path / "part-00000-of-00001.parquet", batch.schema)
            writer.write_batch(batch)
        assert writer is not None
        writer.close()
        write_tag(path, kind, run="b", schema="s", rows=len(vectors), model_version=VERSION, snapshot=1)
    return folder / Kind.CANDIDATE_EMBEDDINGS, folder / Kind.QUERY_EMBEDDINGS
