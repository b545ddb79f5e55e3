"""Batch embedding: every candidate, or every query entity, through its tower once.

Reads `entities/candidates` or `entities/queries` as Arrow batches, so that memory is bounded by `batch_size`, and
writes an embeddings artifact (see `lockstep.embeddings`). Reading, computing and writing overlap: the next batch is
read, and the last one written, while the tower computes.
"""

from __future__ import annotations

import logging
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from dataflow.digests import FeatureDigests
from lockstep.config import EmbedSection
from lockstep.embeddings import VersionedEmbeddings, embedding_batch
from lockstep.errors import CorruptArtifactError, DataError, EmbeddingError, InputMismatchError
from lockstep.storage import fresh_directory
from lockstep.tags import Artifact, Kind, Tag, open_artifact, write_tag
from lockstep.towers import Tower
from lockstep.version import ModelVersion

NORM_TOLERANCE = 1e-3
"""How far from 1 the length of an embedding may be."""
_SAY_EVERY_SECONDS = 5.0
_log = logging.getLogger(__name__)

Side = Literal["query", "candidate"]
_FOLDERS = {"query": "queries", "candidate": "candidates"}
_TOWERS = {"query": Kind.QUERY_TOWER, "candidate": Kind.CANDIDATE_TOWER}
_EMBEDDINGS = {"query": Kind.QUERY_EMBEDDINGS, "candidate": Kind.CANDIDATE_EMBEDDINGS}
_Item = TypeVar("_Item")


def run(
    *,
    tower: Path,
    entities: Path,
    output: Path,
    side: Side,
    model_version: ModelVersion,
    snapshot: int,
    run_id: str,
    section: EmbedSection,
) -> Tag:
    """Embed all entities of one side with the tower of one model version.

    Args:
        tower: the tower's artifact, of `model_version`.
        entities: the entities as they are now.
        output: the embeddings artifact, made anew.
        snapshot: the embedding run of this version, from 1.

    Returns:
        The tag, whose inputs are the tower's and the entities'.

    Raises:
        VersionMismatchError: the tower is of another version, by its tag or by what its weights stamp.
        InputMismatchError: the tower was built for another schema than the entities.
        EmbeddingError: an embedding is not finite or not of unit length, or an id is missing or not unique.
        CorruptArtifactError: the entities are not as many as their tag says.
        DataError: there are no entities.
    """
    source = open_artifact(entities, Kind.ENTITIES)
    loaded = Tower.open(tower, _TOWERS[side], model_version)
    tower_tag = loaded.artifact.tag
    if tower_tag.schema != source.tag.schema:
        raise InputMismatchError("schema", tower, tower_tag.schema[:12], entities, source.tag.schema[:12])
    rows = _count_rows(source, side)
    fresh_directory(output)
    job = _Job(side, model_version, section, output, rows)
    written = _embed_all(job, loaded, _read(source, side, section.batch_size))
    if written != rows:
        raise CorruptArtifactError(entities, f"{written} {_FOLDERS[side]} read", f"{rows} in the files' footers")
    _check_unique(job)
    return write_tag(
        output,
        _EMBEDDINGS[side],
        run=run_id,
        schema=tower_tag.schema,
        rows=rows,
        model_version=model_version,
        snapshot=snapshot,
        inputs={"tower": tower_tag, "entities": source.tag},
    )


@dataclass(frozen=True)
class _Job:
    side: Side
    model_version: ModelVersion
    section: EmbedSection
    output: Path
    rows: int

    def shard(self, number: int) -> Path:
        shards = -(-self.rows // self.section.shard_rows)
        return self.output / f"part-{number:05d}-of-{shards:05d}.parquet"

    def error(self, problem: str, examples: list[Any], remedy: str) -> EmbeddingError:
        return EmbeddingError(self.side, self.model_version, problem, examples, remedy)


def _count_rows(source: Artifact, side: Side) -> int:
    found = {
        name: sum(pq.read_metadata(path).num_rows for path in _parts(source, name)) for name in ("query", "candidate")
    }
    if sum(found.values()) != source.tag.rows:
        raise CorruptArtifactError(source.path, f"{sum(found.values())} rows", f"{source.tag.rows} rows")
    if not found[side]:
        raise DataError(f"{source.path} holds no {_FOLDERS[side]} to embed: check the source and rerun")
    return found[side]


def _parts(source: Artifact, side: str) -> list[Path]:
    return sorted((source / _FOLDERS[side]).glob("part-*.parquet"))


def _read(source: Artifact, side: Side, batch_size: int) -> Iterator[tuple[pa.RecordBatch, pa.Array]]:
    """Batches of entities, each with the digests of its features."""
    columns = ["id", "features"] + (["restricts", "crowding_tag"] if side == "candidate" else [])
    digests = FeatureDigests()
    for path in _parts(source, side):
        with pq.ParquetFile(path) as file:
            for batch in file.iter_batches(batch_size, columns=columns):
                yield batch, digests.of(batch.column("features"))


def _embed_all(job: _Job, tower: Tower, batches: Iterator[tuple[pa.RecordBatch, pa.Array]]) -> int:
    started = said = time.monotonic()
    written = 0
    with _Shards(job) as shards:
        for entities, digests in _ahead(batches):
            embeddings = tower.embed(entities.column("features"))
            _check(job, entities.column("id"), embeddings)
            extra = [entities.column(name) for name in ("restricts", "crowding_tag") if job.side == "candidate"]
            shards.write(embedding_batch(_EMBEDDINGS[job.side], entities.column("id"), embeddings, digests, *extra))
            written += len(entities)
            now = time.monotonic()
            if now - said >= _SAY_EVERY_SECONDS or written == job.rows:
                said = now
                rate = written / max(now - started, 1e-9)
                _log.info("embedded %d of %d %s, %.0f rows/s", written, job.rows, _FOLDERS[job.side], rate)
    return written


def _check(job: _Job, ids: pa.Array, embeddings: VersionedEmbeddings) -> None:
    if len(embeddings) != len(ids):
        raise job.error(
            f"{len(embeddings)} vectors for {len(ids)} entities", ids[:5].to_pylist(), "train the tower again"
        )
    nameless = pc.fill_null(pc.equal(ids, ""), True)
    if pc.any(nameless).as_py():
        raise job.error("an entity has no id", ids.filter(nameless).to_pylist(), "rerun generate_examples")
    norms = np.linalg.norm(embeddings.vectors.astype(np.float64), axis=1)
    for problem, bad in (
        ("vectors are not finite", ~np.isfinite(norms)),
        ("vectors are not of length 1", np.abs(norms - 1) > NORM_TOLERANCE),
    ):
        if bad.any():
            examples = ids.filter(pa.array(bad)).to_pylist()
            raise job.error(f"{len(examples)} {problem}", examples, "look at the training's loss and train again")


def _check_unique(job: _Job) -> None:
    """Look for an id that was embedded twice; out of core, because a catalogue may not fit in memory."""
    with (
        tempfile.TemporaryDirectory(dir=job.output.parent, prefix=".unique-") as spill,
        duckdb.connect(config={"temp_directory": spill}) as database,
    ):
        found = database.execute(
            "SELECT id FROM read_parquet(?) GROUP BY id HAVING count(*) > 1 ORDER BY id LIMIT 5",
            [f"{job.output}/part-*.parquet"],
        ).fetchall()
    if found:
        raise job.error("an id stands in several entities", [row[0] for row in found], "rerun generate_examples")


class _Shards:
    """Writes batches into files of `shard_rows` each, on a thread of its own."""

    def __init__(self, job: _Job) -> None:
        self._job = job
        self._pool = ThreadPoolExecutor(1, "write-embeddings")
        self._pending: Future[None] | None = None
        self._file: pq.ParquetWriter | None = None
        self._number = self._rows = 0

    def write(self, batch: pa.RecordBatch) -> None:
        """Hand over a batch; waits for the one before it."""
        if self._pending is not None:
            self._pending.result()
        self._pending = self._pool.submit(self._write, batch)

    def _write(self, batch: pa.RecordBatch) -> None:
        while len(batch):
            piece = batch.slice(0, self._job.section.shard_rows - self._rows)
            if self._file is None:
                self._file = pq.ParquetWriter(self._job.shard(self._number), batch.schema, compression="zstd")
            self._file.write_batch(piece)
            self._rows += len(piece)
            batch = batch.slice(len(piece))
            if self._rows == self._job.section.shard_rows:
                self._close_file()

    def _close_file(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None
            self._number, self._rows = self._number + 1, 0

    def __enter__(self) -> _Shards:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        with self._pool:
            if self._pending is not None and kind is None:
                self._pending.result()
        self._close_file()


def _ahead(items: Iterator[_Item]) -> Iterator[_Item]:
    """The same items, the next one always made while the last one is used."""
    with ThreadPoolExecutor(1, "read-entities") as pool:
        future = pool.submit(next, items, None)
        while (item := future.result()) is not None:
            future = pool.submit(next, items, None)
            yield item
