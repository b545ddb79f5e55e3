"""Embeddings that carry their model version, in memory and on disk.

In memory there is no bare vector: a tower returns `VersionedEmbeddings`, an index takes a `VersionedEmbedding`.

On disk (artifacts of kind `query_embeddings` and `candidate_embeddings`):

    <artifact>/
      part-00000-of-00004.parquet   id: string
                                    embedding: fixed_size_list<float32>[dim], unit length
                                    model_version: int64, the same in every row
                                    feature_digest: string, of the raw features that were embedded
                                    candidates also: restricts: list<struct<namespace, allow: list<string>>>
                                                     crowding_tag: string
      tag.json
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from lockstep.errors import CorruptArtifactError, VersionMismatchError
from lockstep.tags import Artifact, Kind
from lockstep.version import ModelVersion

RESTRICTS = pa.list_(pa.struct([("namespace", pa.string()), ("allow", pa.list_(pa.string()))]))
"""Filter tokens of a candidate, with Vector Search's meaning."""


@dataclass(frozen=True, eq=False)
class VersionedEmbedding:
    """One vector and the model version that made it.

    Args:
        vector: [dim] float32; made read-only.
    """

    vector: NDArray[np.float32]
    model_version: ModelVersion

    def __post_init__(self) -> None:
        vector = np.ascontiguousarray(self.vector, dtype=np.float32)
        if vector.ndim != 1 or not vector.size or not np.isfinite(vector).all():
            raise ValueError(f"an embedding is one vector of finite floats, found shape {vector.shape}")
        vector = vector.copy() if vector is self.vector and vector.flags.writeable else vector
        vector.flags.writeable = False
        object.__setattr__(self, "vector", vector)


@dataclass(frozen=True, eq=False)
class VersionedEmbeddings:
    """A batch of vectors of one model version.

    Args:
        vectors: [batch, dim] float32.
    """

    vectors: NDArray[np.float32]
    model_version: ModelVersion

    def __len__(self) -> int:
        return len(self.vectors)

    def __getitem__(self, row: int) -> VersionedEmbedding:
        return VersionedEmbedding(self.vectors[row].copy(), self.model_version)


def embedding_schema(kind: Kind, dim: int) -> pa.Schema:
    """The Parquet schema of an embeddings artifact."""
    fields = [
        pa.field("id", pa.string(), nullable=False),
        pa.field("embedding", pa.list_(pa.float32(), dim), nullable=False),
        pa.field("model_version", pa.int64(), nullable=False),
        pa.field("feature_digest", pa.string(), nullable=False),
    ]
    if kind is Kind.CANDIDATE_EMBEDDINGS:
        fields += [pa.field("restricts", RESTRICTS), pa.field("crowding_tag", pa.string())]
    return pa.schema(fields)


def embedding_batch(
    kind: Kind,
    ids: pa.Array,
    embeddings: VersionedEmbeddings,
    feature_digests: pa.Array,
    restricts: pa.Array | None = None,
    crowding_tags: pa.Array | None = None,
) -> pa.RecordBatch:
    """Rows of an embeddings file; what embeds, stamps."""
    rows, dim = embeddings.vectors.shape
    flat = pa.array(np.ascontiguousarray(embeddings.vectors, dtype=np.float32).reshape(-1))
    columns = [
        ids.cast(pa.string()),
        pa.FixedSizeListArray.from_arrays(flat, dim),
        pa.array(np.full(rows, int(embeddings.model_version), dtype=np.int64)),
        feature_digests,
    ]
    if kind is Kind.CANDIDATE_EMBEDDINGS:
        columns += [
            pa.nulls(rows, RESTRICTS) if restricts is None else restricts.cast(RESTRICTS),
            pa.nulls(rows, pa.string()) if crowding_tags is None else crowding_tags.cast(pa.string()),
        ]
    return pa.RecordBatch.from_arrays(columns, schema=embedding_schema(kind, dim))


def read_embeddings(
    artifact: Artifact, batch_size: int = 65_536
) -> Iterator[tuple[pa.RecordBatch, VersionedEmbeddings]]:
    """Read an embeddings artifact batch by batch, checking the version of every row against the tag.

    Yields:
        The Arrow rows, and their vectors as [batch, dim] float32 with their version.

    Raises:
        VersionMismatchError: a row was made by another model version than the tag says.
        CorruptArtifactError: fewer or more rows than the tag says.
    """
    version = artifact.tag.model_version
    assert version is not None, "embeddings always have a version"
    rows = 0
    for path in sorted(artifact.path.glob("part-*.parquet")):
        with pq.ParquetFile(path) as file:
            for batch in file.iter_batches(batch_size):
                found = pc.unique(batch.column("model_version")).to_pylist()
                for other in found:
                    if other != version:
                        raise VersionMismatchError(
                            f"a row of {path}",
                            "no version" if other is None else f"v{other}",
                            f"the tag of {artifact.path}",
                            version,
                            f"rerun embed_candidates or embed_queries for {version}",
                        )
                rows += len(batch)
                yield batch, VersionedEmbeddings(_vectors(batch.column("embedding")), version)
    if rows != artifact.tag.rows:
        raise CorruptArtifactError(artifact.path, f"{rows} rows", f"{artifact.tag.rows} rows")


def _vectors(column: pa.FixedSizeListArray) -> NDArray[np.float32]:
    dim = column.type.list_size
    flat: NDArray[np.float32] = column.flatten().to_numpy(zero_copy_only=False)
    return flat.reshape(-1, dim)
