"""Embeddings that carry their model version, in memory and on disk.

In memory there is no bare vector: a tower returns `VersionedEmbeddings`, an index takes a `VersionedEmbedding`.

On disk (artifacts of kind `query_embeddings` and `candidate_embeddings`):

    <artifact>/
      part-00000-of-00004.parquet   id: string
                                    embedding: fixed_size_list<float32 or float16>[dim], unit length
                                    model_version: int64, the same in every row
                                    feature_digest: string, of the raw features that were embedded
                                    candidates also: restricts: list<struct<namespace, allow: list<string>,
                                                                            deny: list<string>>>
                                                     numeric_restricts: list<struct<namespace, value: double>>
                                                     crowding_tag: string
      canaries.parquet              a few of the rows with what was embedded: id, features, embedding, feature_digest
      tag.json
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from lockstep.errors import CorruptArtifactError, VersionMismatchError
from lockstep.tags import Artifact, Kind
from lockstep.version import ModelVersion

_TOKENS = pa.list_(pa.string())
RESTRICTS = pa.list_(pa.struct([("namespace", pa.string()), ("allow", _TOKENS), ("deny", _TOKENS)]))
"""Filter tokens of a candidate, with Vector Search's meaning: what it is, and which queries it is not for."""
NUMERIC_RESTRICTS = pa.list_(pa.struct([("namespace", pa.string()), ("value", pa.float64())]))
"""Numbers of a candidate that a query can compare with its own; at most one a namespace."""
Dtype = Literal["float32", "float16"]
"""What the numbers of an embedding are on disk; in memory they are float32."""


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


def embedding_schema(kind: Kind, dim: int, dtype: Dtype = "float32") -> pa.Schema:
    """The Parquet schema of an embeddings artifact."""
    number = pa.float32() if dtype == "float32" else pa.float16()
    fields = [
        pa.field("id", pa.string(), nullable=False),
        pa.field("embedding", pa.list_(number, dim), nullable=False),
        pa.field("model_version", pa.int64(), nullable=False),
        pa.field("feature_digest", pa.string(), nullable=False),
    ]
    if kind is Kind.CANDIDATE_EMBEDDINGS:
        fields += [
            pa.field("restricts", RESTRICTS),
            pa.field("numeric_restricts", NUMERIC_RESTRICTS),
            pa.field("crowding_tag", pa.string()),
        ]
    return pa.schema(fields)


def embedding_batch(
    kind: Kind,
    ids: pa.Array,
    embeddings: VersionedEmbeddings,
    feature_digests: pa.Array,
    restricts: pa.Array | None = None,
    numeric_restricts: pa.Array | None = None,
    crowding_tags: pa.Array | None = None,
    *,
    dtype: Dtype = "float32",
) -> pa.RecordBatch:
    """Rows of an embeddings file; what embeds, stamps."""
    rows, dim = embeddings.vectors.shape
    flat = pa.array(np.ascontiguousarray(embeddings.vectors, dtype=dtype).reshape(-1))
    columns = [
        ids.cast(pa.string()),
        pa.FixedSizeListArray.from_arrays(flat, dim),
        pa.array(np.full(rows, int(embeddings.model_version), dtype=np.int64)),
        feature_digests,
    ]
    if kind is Kind.CANDIDATE_EMBEDDINGS:
        columns += [
            pa.nulls(rows, RESTRICTS) if restricts is None else restricts.cast(RESTRICTS),
            pa.nulls(rows, NUMERIC_RESTRICTS)
            if numeric_restricts is None
            else numeric_restricts.cast(NUMERIC_RESTRICTS),
            pa.nulls(rows, pa.string()) if crowding_tags is None else crowding_tags.cast(pa.string()),
        ]
    return pa.RecordBatch.from_arrays(columns, schema=embedding_schema(kind, dim, dtype))


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
                yield batch, VersionedEmbeddings(vectors_of(batch.column("embedding")), version)
    if rows != artifact.tag.rows:
        raise CorruptArtifactError(artifact.path, f"{rows} rows", f"{artifact.tag.rows} rows")


def vectors_of(column: pa.FixedSizeListArray) -> NDArray[np.float32]:
    """The vectors of an `embedding` column, [rows, dim] float32 whatever they are on disk."""
    dim = column.type.list_size
    flat: NDArray[np.float32] = column.flatten().to_numpy(zero_copy_only=False).astype(np.float32, copy=False)
    return flat.reshape(-1, dim)
