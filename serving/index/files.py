"""What an index is on disk, whatever its backend.

<artifact>/                    kind index
  index.json                   {"format", "backend", "model_version", "snapshot", "dim", "rows", "metric", "parameters"}
  candidates.arrow             Arrow IPC: id: string, crowding_tag: string; one row a candidate
  vectors.npy                  float32[rows, dim], unit length, in the same order; memory-mapped
  restricts.json               {namespace: [token, ...]}, sorted; tokens are numbered in this order
  restrict_offsets.npy         int64[tokens + 1], where each token's rows begin in
  restrict_rows.npy            int32[...], the rows that have the token, ascending
  scann/                       backend scann only: the serialised searcher
  tag.json
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from lockstep.errors import CorruptArtifactError, VersionMismatchError
from lockstep.tags import Artifact
from lockstep.version import ModelVersion
from serving.index.restricts import Postings, PostingsBuilder

FORMAT = 1
DESCRIPTION = "index.json"
CANDIDATES = "candidates.arrow"
VECTORS = "vectors.npy"
SCANN = "scann"
_CANDIDATES_SCHEMA = pa.schema([pa.field("id", pa.string(), nullable=False), pa.field("crowding_tag", pa.string())])


@dataclass(frozen=True, eq=False)
class IndexFiles:
    """The opened files of an index; vectors and ids stay on disk until they are touched.

    Args:
        vectors: [rows, dim] float32, memory-mapped.
        parameters: the backend's own.
    """

    path: Path
    backend: str
    model_version: ModelVersion
    snapshot: int
    vectors: NDArray[np.float32]
    restricts: Postings
    parameters: Mapping[str, Any]
    candidates: pa.Table

    @classmethod
    def open(cls, artifact: Artifact) -> IndexFiles:
        """Map the files of a checked artifact and compare them with each other.

        Raises:
            VersionMismatchError: index.json names another version or snapshot than the tag.
            CorruptArtifactError: files contradict each other.
        """
        description = json.loads((artifact / DESCRIPTION).read_bytes())
        if description["format"] != FORMAT:
            found = f"index format {description['format']}"
            raise CorruptArtifactError(artifact / DESCRIPTION, found, f"format {FORMAT} of this lockstep")
        _check_release(artifact, description)
        vectors = np.load(artifact / VECTORS, mmap_mode="r", allow_pickle=False)
        with pa.memory_map(str(artifact / CANDIDATES)) as source:
            candidates = pa.ipc.open_file(source).read_all()
        shape = (description["rows"], description["dim"])
        if vectors.shape != shape or len(candidates) != shape[0]:
            found = f"vectors of shape {vectors.shape} and {len(candidates)} ids"
            raise CorruptArtifactError(artifact.path, found, f"{shape[0]} rows of {shape[1]} floats")
        return cls(
            path=artifact.path,
            backend=description["backend"],
            model_version=ModelVersion(description["model_version"]),
            snapshot=description["snapshot"],
            vectors=vectors,
            restricts=Postings.load(artifact.path),
            parameters=description["parameters"],
            candidates=candidates,
        )

    def ids(self, rows: NDArray[np.int64]) -> list[str]:
        """The candidates' ids of some rows."""
        found: list[str] = self.candidates.column("id").take(pa.array(rows)).to_pylist()
        return found


class IndexFilesWriter:
    """Writes the common files of an index in one pass, holding one batch of vectors in memory.

    Args:
        directory: an empty folder.
        rows: how many candidates will come.
        dim: the length of a vector.
    """

    def __init__(self, directory: Path, rows: int, dim: int) -> None:
        self._directory = directory
        self._restricts = PostingsBuilder()
        self._sink = pa.OSFile(str(directory / CANDIDATES), "wb")
        self._writer = pa.ipc.new_file(self._sink, _CANDIDATES_SCHEMA)
        self.vectors: NDArray[np.float32] = np.lib.format.open_memmap(
            directory / VECTORS, mode="w+", dtype=np.float32, shape=(rows, dim)
        )
        self.rows = 0

    def add(self, batch: pa.RecordBatch, vectors: NDArray[np.float32]) -> None:
        """Append candidates.

        Args:
            batch: [n] with id, restricts and crowding_tag.
            vectors: [n, dim].
        """
        self.vectors[self.rows : self.rows + len(batch)] = vectors
        columns = [batch.column("id"), batch.column("crowding_tag")]
        self._writer.write_batch(pa.RecordBatch.from_arrays(columns, schema=_CANDIDATES_SCHEMA))
        self._restricts.add(self.rows, batch.column("restricts"))
        self.rows += len(batch)

    def finish(
        self, backend: str, model_version: ModelVersion, snapshot: int, parameters: Mapping[str, Any]
    ) -> dict[str, Any]:
        """Close the files and describe them in index.json."""
        self._writer.close()
        self._sink.close()
        self.vectors.flush()  # type: ignore[attr-defined]
        self._restricts.build().save(self._directory)
        description = {
            "format": FORMAT,
            "backend": backend,
            "model_version": int(model_version),
            "snapshot": snapshot,
            "dim": self.vectors.shape[1],
            "rows": self.rows,
            "metric": "dot_product",
            "parameters": dict(parameters),
        }
        (self._directory / DESCRIPTION).write_text(json.dumps(description, indent=1, sort_keys=True) + "\n")
        return description


def duplicate_ids(ids: pa.ChunkedArray) -> list[str]:
    """Ids that occur more than once."""
    counts = pc.value_counts(ids)
    repeated = pc.greater(pc.struct_field(counts, "counts"), 1)
    found: list[str] = pc.struct_field(counts, "values").filter(repeated).to_pylist()
    return found


def _check_release(artifact: Artifact, description: Mapping[str, Any]) -> None:
    found = f"v{description['model_version']}.{description['snapshot']}"
    expected = f"{artifact.tag.model_version}.{artifact.tag.snapshot}"
    if found != expected:
        raise VersionMismatchError(
            artifact / DESCRIPTION, found, "its tag", expected, f"rerun build_index for {artifact.tag.model_version}"
        )
