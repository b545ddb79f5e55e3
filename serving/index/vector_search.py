"""Candidate embeddings as the files that Vertex AI Vector Search builds or updates an index from.

    <output>/
      export.json                        what this is: {"format", "file_format", "model_version", "snapshot", "rows",
                                         "dim", "tag": digest of the embeddings' tag, "files": {name: {rows, bytes}}}
      batch_root/                        what Vector Search is given as contentsDeltaUri; it allows nothing else in it
        part-00000-of-00004.json         or .avro; an id once in all of them

Vector Search has no place for a model version, so export.json has it, outside the folder that is ingested. Whoever
makes an index of `batch_root` names it after that version, or queries of another will meet these candidates.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from lockstep.embeddings import read_embeddings
from lockstep.errors import ConfigError, DataError, StorageError
from lockstep.storage import write_atomically
from lockstep.tags import Artifact, Kind, open_artifact
from lockstep.version import ModelVersion
from serving.index.vector_search_avro import AvroRows
from serving.index.vector_search_json import JsonRows
from serving.index.vector_search_rows import RowFormat

BATCH_ROOT = "batch_root"
MANIFEST = "export.json"
FORMAT = 1
FORMATS: Mapping[str, RowFormat] = {"json": JsonRows(), "avro": AvroRows()}
ROWS_PER_FILE = 250_000
MAX_FILES = 5_000
"""Vector Search takes no more files in one folder."""
_CHUNK_BYTES = 1 << 22
_MAX_WAITING = 6
_LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class ExportedFile:
    """One file below `batch_root`."""

    rows: int
    bytes: int


@dataclass(frozen=True)
class Export:
    """The contents of export.json.

    Args:
        tag: digest of the tag of the embeddings that were exported.
    """

    file_format: str
    model_version: int
    snapshot: int
    rows: int
    dim: int
    tag: str
    files: dict[str, ExportedFile]
    format: int = FORMAT


def export_candidates(
    candidate_embeddings: Path,
    output: Path,
    file_format: str,
    *,
    model_version: ModelVersion,
    snapshot: int | None = None,
    digest: str | None = None,
    rows_per_file: int = ROWS_PER_FILE,
) -> Export:
    """Write the candidates of one release for Vector Search; all files are there at the end, or none.

    Args:
        candidate_embeddings: the artifact.
        output: the folder to write, new or empty.
        file_format: json or avro.
        snapshot: where the release names it; so with `digest`, of the tag.
        rows_per_file: at most; more where there would be over 5,000 files.

    Raises:
        ArtifactError: the embeddings are not those of this version, or not what was written.
        DataError: there are none, or one that no index can hold.
        StorageError: the folder cannot be written.
    """
    if file_format not in FORMATS:
        raise ConfigError(f"the format {file_format!r} is none that Lockstep writes: {', '.join(FORMATS)}")
    source = open_artifact(
        candidate_embeddings, Kind.CANDIDATE_EMBEDDINGS, model_version=model_version, snapshot=snapshot, digest=digest
    )
    if not source.tag.rows:
        raise DataError(f"{source.path} holds no candidates: there is nothing to export; see the entities' report")
    unfinished = _begin(output)
    try:
        export = _write(source, unfinished / BATCH_ROOT, file_format, rows_per_file)
        text = json.dumps(asdict(export), sort_keys=True, indent=1) + "\n"
        write_atomically(unfinished / MANIFEST, text.encode())
        unfinished.replace(output)
    except OSError as error:
        raise StorageError(f"cannot write {output}: {error.strerror or error}; name another folder") from error
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    return export


def _begin(output: Path) -> Path:
    """A new folder beside the output, under whose name it will be put; a crashed attempt's is removed."""
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise StorageError(f"{output} is to be written, but it holds something: name an empty or new folder")
    unfinished = output.parent / f".{output.name}.unfinished"
    try:
        if unfinished.exists():
            shutil.rmtree(unfinished)
        (unfinished / BATCH_ROOT).mkdir(parents=True)
    except OSError as error:
        raise StorageError(f"cannot write beside {output}: {error.strerror}; name another folder") from error
    return unfinished


def _write(source: Artifact, folder: Path, file_format: str, rows_per_file: int) -> Export:
    tag = source.tag
    assert tag.model_version is not None, "embeddings always have a version"
    assert tag.snapshot is not None, "and a snapshot"
    batches = ((batch, embeddings.vectors) for batch, embeddings in read_embeddings(source))
    writer = FilesWriter(folder, FORMATS[file_format], tag.rows, rows_per_file, tag.digest)
    dim = write_records(batches, writer)
    return Export(file_format, int(tag.model_version), tag.snapshot, tag.rows, dim, tag.digest, writer.files)


def write_records(batches: Iterable[tuple[pa.RecordBatch, NDArray[np.float32]]], writer: FilesWriter) -> int:
    """Write candidates: they are read in this thread, made into records in others, and written in one more.

    Args:
        batches: rows of candidate embeddings, at least one, and their vectors [rows, dim].

    Returns:
        The dimension.
    """
    waiting: deque[Future[None]] = deque()
    dim = 0
    with (
        closing(writer),
        ThreadPoolExecutor(1) as writing,
        ThreadPoolExecutor(min(4, os.cpu_count() or 1)) as encoding,
    ):
        for file, batch, vectors in _pieces(batches, writer.rows_per_file):
            dim = vectors.shape[1]
            records = encoding.submit(_records, writer.encoder, batch, vectors)
            waiting.append(writing.submit(writer.write, file, records))
            if len(waiting) > _MAX_WAITING:
                waiting.popleft().result()
        for written in waiting:
            written.result()
    return dim


def _pieces(
    batches: Iterable[tuple[pa.RecordBatch, NDArray[np.float32]]], rows_per_file: int
) -> Iterator[tuple[int, pa.RecordBatch, NDArray[np.float32]]]:
    """Rows in their order, by the file that they go to, few enough at a time to bound the memory."""
    done = 0
    for batch, vectors in batches:
        most = max(1, _CHUNK_BYTES // (4 * vectors.shape[1]))
        begin = 0
        while begin < len(batch):
            rows = min(most, len(batch) - begin, rows_per_file - done % rows_per_file)
            yield done // rows_per_file, batch.slice(begin, rows), vectors[begin : begin + rows]
            begin, done = begin + rows, done + rows


def _records(encoder: RowFormat, batch: pa.RecordBatch, vectors: NDArray[np.float32]) -> pa.BinaryArray:
    if not np.isfinite(vectors).all():
        bad = batch.column("id")[int(np.flatnonzero(~np.isfinite(vectors).all(axis=1))[0])].as_py()
        raise DataError(f"the embedding of {bad!r} is not finite: rerun train_towers, then embed_candidates")
    return encoder.rows(batch, vectors)


class FilesWriter:
    """The files of a batch root, written one after the other.

    Args:
        rows: how many there will be, for the files' names.
        rows_per_file: at most; more where there would be over 5,000 files.
        seed: what the markers in the files are made of, so that equal candidates are equal bytes.
    """

    def __init__(self, folder: Path, encoder: RowFormat, rows: int, rows_per_file: int, seed: str) -> None:
        self.encoder = encoder
        self.rows_per_file = max(rows_per_file, -(-rows // MAX_FILES))
        self.files: dict[str, ExportedFile] = {}
        self._folder, self._rows, self._seed = folder, rows, seed
        self._file: IO[bytes] | None = None
        self._name, self._marker, self._rows_of_file = "", b"", 0

    def write(self, file: int, records: Future[pa.BinaryArray]) -> None:
        """Append records to a file, which is begun by its first ones."""
        rows = records.result()
        name = f"part-{file:05d}-of-{-(-self._rows // self.rows_per_file):05d}{self.encoder.suffix}"
        if name != self._name:
            self.close()
            self._name, self._rows_of_file = name, 0
            self._marker = hashlib.sha256(f"{self._seed}/{name}".encode()).digest()[:16]
            self._file = (self._folder / name).open("wb")
            self._file.write(self.encoder.header(self._marker))
        assert self._file is not None
        for part in self.encoder.blocks(rows, self._marker):
            self._file.write(part)
        self._rows_of_file += len(rows)

    def close(self) -> None:
        """End the file that is being written, if there is one."""
        if self._file is not None:
            self._file.flush()
            os.fsync(self._file.fileno())
            self.files[self._name] = ExportedFile(self._rows_of_file, self._file.tell())
            self._file.close()
            self._file = None
            done = sum(file.rows for file in self.files.values())
            _LOG.info("%d of %d candidates exported", done, self._rows)
