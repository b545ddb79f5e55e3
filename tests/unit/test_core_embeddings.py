"""Vectors that carry their version, and the files that hold them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from lockstep.embeddings import (
    RESTRICTS,
    VersionedEmbedding,
    VersionedEmbeddings,
    embedding_batch,
    embedding_schema,
    read_embeddings,
)
from lockstep.errors import CorruptArtifactError, VersionMismatchError
from lockstep.tags import Artifact, Kind, open_artifact, write_tag
from lockstep.version import ModelVersion

V3, V4 = ModelVersion(3), ModelVersion(4)


def write(folder: Path, batches: list[pa.RecordBatch], rows: int) -> Artifact:
    folder.mkdir()
    for number, batch in enumerate(batches):
        path = folder / f"part-{number:05}-of-{len(batches):05}.parquet"
        pq.write_table(pa.Table.from_batches([batch]), path)
    write_tag(folder, Kind.CANDIDATE_EMBEDDINGS, run="r", schema="s", rows=rows, model_version=V3, snapshot=1)
    return open_artifact(folder, Kind.CANDIDATE_EMBEDDINGS, model_version=V3)


def batch(ids: list[str], version: ModelVersion) -> pa.RecordBatch:
    vectors = np.arange(len(ids) * 2, dtype=np.float32).reshape(-1, 2)
    digests = pa.array(["d"] * len(ids))
    restricts = pa.array([[{"namespace": "genre", "allow": ["rock"]}]] * len(ids), type=RESTRICTS)
    return embedding_batch(
        Kind.CANDIDATE_EMBEDDINGS, pa.array(ids), VersionedEmbeddings(vectors, version), digests, restricts
    )


def test_what_is_written_is_read_with_its_version(tmp_path: Path) -> None:
    artifact = write(tmp_path / "e", [batch(["a", "b"], V3), batch(["c"], V3)], rows=3)
    read = list(read_embeddings(artifact))
    assert [rows.column("id").to_pylist() for rows, _ in read] == [["a", "b"], ["c"]]
    assert read[0][1].vectors.tolist() == [[0, 1], [2, 3]]
    assert read[0][1].model_version == V3
    assert read[0][0].schema.equals(embedding_schema(Kind.CANDIDATE_EMBEDDINGS, 2))
    assert read[0][0].column("restricts").to_pylist()[0] == [{"namespace": "genre", "allow": ["rock"], "deny": None}]


def test_one_row_of_another_version_stops_the_reader(tmp_path: Path) -> None:
    artifact = write(tmp_path / "e", [batch(["a", "b"], V3), batch(["c"], V4)], rows=3)
    with pytest.raises(VersionMismatchError, match=r"part-00001.* is of v4, but the tag of .* is of v3: rerun embed"):
        list(read_embeddings(artifact))


def test_missing_rows_are_found(tmp_path: Path) -> None:
    artifact = write(tmp_path / "e", [batch(["a", "b"], V3)], rows=3)
    with pytest.raises(CorruptArtifactError, match="found 2 rows, expected 3 rows"):
        list(read_embeddings(artifact))


def test_a_vector_is_finite_flat_and_read_only() -> None:
    source = np.array([1.0, 2.0], dtype=np.float32)
    embedding = VersionedEmbedding(source, V3)
    source[0] = 9.0
    assert embedding.vector.tolist() == [1.0, 2.0]
    with pytest.raises(ValueError, match="read-only"):
        embedding.vector[0] = 5.0
    for wrong in ([np.nan, 1.0], [], [[1.0]]):
        with pytest.raises(ValueError, match="one vector of finite floats"):
            VersionedEmbedding(np.array(wrong, dtype=np.float32), V3)
