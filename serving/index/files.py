"""What an index is on disk, whatever its backend.

<artifact>/                    kind index
  index.json                   {"format", "backend", "model_version", "snapshot", "dim", "rows", "metric", "section",
                               "parameters"}
  candidates.arrow             Arrow IPC: id, restricts, numeric_restricts, crowding_tag as in the embeddings; one row
                               a candidate
  vectors.npy                  float32[rows, dim], unit length, in the same order; memory-mapped
  restricts.json, *_rows.npy   what filters read, see serving.index.postings
  crowding.npy                 int32[rows], equal where the crowding tag is, -1 where there is none
  queries.npy                  float32[n, dim], query embeddings of the same version, on which it was tuned
  frontier.json, frontier.svg  backend scann only: what the tuning measured, see serving.index.tuning
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

from lockstep.config import IndexSection, parse_section
from lockstep.embeddings import NUMERIC_RESTRICTS, RESTRICTS
from lockstep.errors import CorruptArtifactError, VersionMismatchError
from lockstep.tags import Artifact
from lockstep.version import ModelVersion
from serving.index.crowding import crowding_codes
from serving.index.postings import Allowed, Postings, PostingsBuilder
from serving.index.restricts import Restricts

FORMAT = 2
DESCRIPTION = "index.json"
CANDIDATES = "candidates.arrow"
VECTORS = "vectors.npy"
SCANN = "scann"
QUERIES = "queries.npy"
CROWDING = "crowding.npy"
CANDIDATES_SCHEMA = pa.schema(
    [
        pa.field("id", pa.string(), nullable=False),
        pa.field("restricts", RESTRICTS),
        pa.field("numeric_restricts", NUMERIC_RESTRICTS),
        pa.field("crowding_tag", pa.string()),
    ]
)


@dataclass(frozen=True, eq=False)
class IndexFiles:
    """The opened files of an index; vectors and ids stay on disk until they are touched.

    Args:
        vectors: [rows, dim] float32, memory-mapped.
        crowding: [rows] int32, memory-mapped; equal where the crowding tag is, -1 where there is none.
        section: how it was built.
        parameters: the backend's own.
        candidates: [rows] as written, memory-mapped.
        id_column: [rows] their ids in one piece, in memory.
    """

    path: Path
    backend: str
    model_version: ModelVersion
    snapshot: int
    vectors: NDArray[np.float32]
    postings: Postings
    crowding: NDArray[np.int32]
    section: IndexSection
    parameters: Mapping[str, Any]
    candidates: pa.Table
    id_column: pa.StringArray

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
        # As plain arrays over the mapped memory: a memmap is several times slower to index.
        vectors = np.asarray(np.load(artifact / VECTORS, mmap_mode="r", allow_pickle=False))
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
            postings=Postings.load(artifact.path),
            crowding=np.asarray(np.load(artifact / CROWDING, mmap_mode="r", allow_pickle=False)),
            section=parse_section(IndexSection, description["section"]),
            parameters=description["parameters"],
            candidates=candidates,
            id_column=candidates.column("id").combine_chunks(),
        )

    @property
    def rows(self) -> int:
        """How many candidates there are."""
        return len(self.vectors)

    @property
    def namespaces(self) -> tuple[str, ...]:
        """Those in which some candidate has a token or a number."""
        return self.postings.namespaces

    def allowed(self, restricts: Restricts | None) -> Allowed | None:
        """The rows that are allowed; None where all are."""
        return self.postings.allowed(restricts) if restricts else None

    def ids(self, rows: NDArray[np.int64]) -> list[str]:
        """The candidates' ids of some rows."""
        found: list[str] = self.id_column.take(pa.array(rows)).to_pylist()
        return found


class IndexFilesWriter:
    """Writes the common files of an index in one pass, holding one batch of vectors in memory.

    Args:
        directory: an empty folder.
        rows: how many candidates will come.
        dim: the length of a vector.
    """

    def __init__(self, directory: Path, rows: int, dim: int) -> None:
        self.directory = directory
        self._restricts = PostingsBuilder()
        self._tags: list[pa.Array] = []
        self._sink = pa.OSFile(str(directory / CANDIDATES), "wb")
        self._writer = pa.ipc.new_file(self._sink, CANDIDATES_SCHEMA)
        self.vectors: NDArray[np.float32] = np.lib.format.open_memmap(
            directory / VECTORS, mode="w+", dtype=np.float32, shape=(rows, dim)
        )
        self.rows = 0

    def add(self, batch: pa.RecordBatch, vectors: NDArray[np.float32]) -> None:
        """Append candidates.

        Args:
            batch: [n] with id, restricts, numeric_restricts and crowding_tag.
            vectors: [n, dim].
        """
        self.vectors[self.rows : self.rows + len(batch)] = vectors
        kept = batch.select(CANDIDATES_SCHEMA.names)
        self._writer.write_batch(kept)
        self._restricts.add(kept.column("restricts"), kept.column("numeric_restricts"))
        self._tags.append(kept.column("crowding_tag"))
        self.rows += len(batch)

    def finish(
        self,
        backend: str,
        model_version: ModelVersion,
        snapshot: int,
        section: IndexSection,
        parameters: Mapping[str, Any],
    ) -> dict[str, Any]:
        """Close the files and describe them in index.json."""
        self._writer.close()
        self._sink.close()
        self.vectors.flush()  # type: ignore[attr-defined]
        self._restricts.build().save(self.directory)
        np.save(self.directory / CROWDING, crowding_codes(pa.chunked_array(self._tags, pa.string())))
        description = {
            "format": FORMAT,
            "backend": backend,
            "model_version": int(model_version),
            "snapshot": snapshot,
            "dim": self.vectors.shape[1],
            "rows": self.rows,
            "metric": "dot_product",
            "section": section.model_dump(mode="json"),
            "parameters": dict(parameters),
        }
        (self.directory / DESCRIPTION).write_text(json.dumps(description, indent=1, sort_keys=True) + "\n")
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
