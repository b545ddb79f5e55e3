"""The job: plan, embed the files that are missing, check the whole, write the tag."""

from __future__ import annotations

import logging
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from itertools import chain, groupby
from pathlib import Path
from typing import Any, TypeVar

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq

from dataflow.digests import FeatureDigests
from dataflow.embed.batches import EMBEDDINGS, READ_ROWS, TOWERS, BatchEmbedder, BatchTower
from dataflow.embed.canaries import difference, few
from dataflow.embed.probing import find_batch_size, share_cores
from dataflow.embed.rows import FOLDERS, EntityRows, Side, entity_rows
from dataflow.embed.shards import Plan, ShardFolder, write_shard
from lockstep.config import EmbedSection
from lockstep.errors import CorruptArtifactError, EmbeddingError, InputMismatchError
from lockstep.tags import Artifact, Kind, Tag, open_artifact, write_tag
from lockstep.towers import Tower
from lockstep.version import ModelVersion

CANARY_TOLERANCE = {"float32": 1e-4, "float16": 1e-3}
"""Largest difference of one coordinate between the file and what serving makes of the same features, in other batches
and so with other roundings."""
_SAY_EVERY_SECONDS = 5.0
_ROOM = 2**26
"""Bytes of entities that are read while the tower is loaded."""
_log = logging.getLogger(__name__)
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

    Files that a job of the same inputs and settings has finished in `output` are kept, whether it died or was one of
    several workers (`embed_shards`).

    Args:
        tower: the tower's artifact, of `model_version`.
        entities: the entities as they are now.
        output: the embeddings artifact; what is not of this job is replaced.
        snapshot: the embedding run of this version, from 1.

    Returns:
        The tag, whose inputs are the tower's and the entities'.

    Raises:
        VersionMismatchError: the tower is of another version, by its tag or by what its weights stamp.
        InputMismatchError: the tower was built for another schema than the entities.
        EmbeddingError: an embedding is not finite or not of unit length, an id is missing or not unique, or serving
            would make other vectors.
        CorruptArtifactError: the entities are not as many as their tag says.
        DataError: there are no entities.
    """
    job = _Job.open(tower, entities, output, side, model_version, snapshot, section)
    missing = job.folder.missing()
    if len(missing) < job.plan.shards:
        _log.info("%d of %d files are finished already", job.plan.shards - len(missing), job.plan.shards)
    job.embed(missing, run_id)
    job.check()
    return write_tag(
        output,
        EMBEDDINGS[side],
        run=run_id,
        schema=job.tower.tag.schema,
        rows=job.plan.rows,
        model_version=model_version,
        snapshot=snapshot,
        inputs={"tower": job.tower.tag, "entities": job.entities.tag},
    )


def embed_shards(
    *,
    tower: Path,
    entities: Path,
    output: Path,
    side: Side,
    model_version: ModelVersion,
    snapshot: int,
    section: EmbedSection,
    worker: int,
    workers: int,
) -> int:
    """Make one worker's part of the files: those whose number is `worker` modulo `workers`.

    All workers write into one folder. When they are done, `run` checks the whole and writes the tag; it makes what a
    worker has left out.

    Args:
        worker: from 0.

    Returns:
        The number of files that this call has made.
    """
    job = _Job.open(tower, entities, output, side, model_version, snapshot, section, shared=True)
    missing = [shard for shard in job.folder.missing() if shard % workers == worker]
    job.embed_here(missing)
    return len(missing)


@dataclass(frozen=True)
class _Job:
    plan: Plan
    section: EmbedSection
    folder: ShardFolder
    tower: Artifact
    entities: Artifact
    rows: EntityRows

    @classmethod
    def open(
        cls,
        tower: Path,
        entities: Path,
        output: Path,
        side: Side,
        model_version: ModelVersion,
        snapshot: int,
        section: EmbedSection,
        *,
        shared: bool = False,
    ) -> _Job:
        source = open_artifact(entities, Kind.ENTITIES)
        opened = open_artifact(tower, TOWERS[side], model_version=model_version)
        if opened.tag.schema != source.tag.schema:
            raise InputMismatchError("schema", tower, opened.tag.schema[:12], entities, source.tag.schema[:12])
        rows = entity_rows(source, side)
        plan = Plan(
            side=side,
            model_version=int(model_version),
            snapshot=snapshot,
            tower=opened.tag.digest,
            entities=source.tag.digest,
            rows=rows.rows,
            shard_rows=section.shard_rows,
            dtype=section.dtype,
            batch_size=section.batch_size,
        )
        return cls(plan, section, ShardFolder.begin(output, plan, shared=shared), opened, source, rows)

    @cached_property
    def loaded(self) -> Tower:
        """The tower, loaded when it is first needed."""
        share_cores()
        return Tower(self.tower)

    def embed(self, shards: list[int], run_id: str) -> None:
        """Make files, where the section says."""
        if self.section.runner == "local":
            self.embed_here(shards)
        elif shards:
            from dataflow.embed.beam import embed_with_beam

            folders = {"tower": self.tower.path, "entities": self.entities.path, "output": self.folder.path}
            embed_with_beam(self.plan, shards, self.rows, folders, self.section, run_id)

    def embed_here(self, shards: list[int]) -> None:
        """Make files in this process."""
        if not shards:
            return
        progress = _Progress(sum(stop - start for start, stop in map(self.plan.span, shards)), FOLDERS[self.plan.side])
        digests = FeatureDigests()
        read = self.read(shards, max(READ_ROWS, self.plan.batch_size or 0))
        embedder, digested = _meanwhile(
            self.embedder, ((shard, batch, digests.of(batch.column("features"))) for shard, batch in read)
        )
        encoded = ((*item, embedder.encode(item[1])) for item in _ahead(digested))
        embedded = ((shard, embedder.embed(*batch)) for shard, *batch in _ahead(encoded))
        for shard, items in groupby(_ahead(embedded), key=lambda item: item[0]):
            batches = (progress.of(batch) for _, batch in items)
            write_shard(str(self.folder.path), self.plan, shard, batches)

    def read(self, shards: list[int], size: int) -> Iterator[tuple[int, pa.RecordBatch]]:
        """The entities of some files, each batch with the number of its file."""
        for shard in shards:
            for batch in self.rows.read(str(self.entities.path), *self.plan.span(shard), size):
                yield shard, batch

    def embedder(self) -> BatchEmbedder:
        """What embeds, with the batch size that was set or that is fastest here, tried on the first rows."""
        tower = BatchTower(self.loaded, 1)

        def find() -> int:
            first = next(self.rows.read(str(self.entities.path), 0, self.plan.rows, READ_ROWS))
            return find_batch_size(self.loaded, tower.encode(first.column("features")))

        tower.batch_size = self.folder.batch_size(find)
        return BatchEmbedder(self.plan.side, tower, self.plan.dtype)

    def check(self) -> None:
        """Look at all files together, and record the canaries.

        Raises:
            EmbeddingError: an id is not unique, or serving makes other vectors.
            CorruptArtifactError: the files hold more or fewer rows than there are entities.
        """
        written = sum(pq.read_metadata(path).num_rows for path in self.folder.path.glob("part-*.parquet"))
        if written != self.plan.rows:
            raise CorruptArtifactError(self.folder.path, f"{written} rows", f"{self.plan.rows} entities")
        with ThreadPoolExecutor(1, "embed-check") as pool:
            canaries = pool.submit(self.check_canaries)
            twice = _twice(self.folder.path)
            if twice:
                raise self.error("an id stands in several entities", twice, "rerun generate_examples")
            canaries.result()
        self.folder.remove_hidden()

    def check_canaries(self) -> None:
        """Hold the canaries against what serving makes of them, and record them."""
        file = self.folder.path / "canaries.parquet"
        if file.exists():
            return
        canaries = few(self.folder.canaries())
        apart = difference(canaries, self.loaded)
        if not apart <= CANARY_TOLERANCE[self.plan.dtype]:
            found = f"serving makes vectors that differ by {apart:.1e}"
            raise self.error(found, canaries.column("id").to_pylist(), "train the tower again")
        pq.write_table(canaries, file)

    def error(self, problem: str, examples: list[Any], remedy: str) -> EmbeddingError:
        """A reason to refuse the whole."""
        return EmbeddingError(self.plan.side, ModelVersion(self.plan.model_version), problem, examples, remedy)


def _twice(folder: Path) -> list[str]:
    """Ids that were embedded twice; out of core, because a catalogue may not fit in memory."""
    with (
        tempfile.TemporaryDirectory(dir=folder.parent, prefix=".unique-") as spill,
        duckdb.connect(config={"temp_directory": spill}) as database,
    ):
        found = database.execute(
            "SELECT id FROM read_parquet(?) GROUP BY id HAVING count(*) > 1 ORDER BY id LIMIT 5",
            [f"{folder}/part-*.parquet"],
        ).fetchall()
    return [row[0] for row in found]


class _Progress:
    """Says every few seconds how far the job is."""

    def __init__(self, rows: int, what: str) -> None:
        self._rows, self._what, self._done = rows, what, 0
        self._started = self._said = time.monotonic()

    def of(self, batch: tuple[pa.RecordBatch, pa.Table]) -> tuple[pa.RecordBatch, pa.Table]:
        """Count a batch, and pass it on."""
        self._done += len(batch[0])
        now = time.monotonic()
        if now - self._said >= _SAY_EVERY_SECONDS or self._done == self._rows:
            self._said = now
            rate = self._done / max(now - self._started, 1e-9)
            _log.info("embedded %d of %d %s, %.0f rows/s", self._done, self._rows, self._what, rate)
        return batch


def _meanwhile(
    make: Callable[[], BatchEmbedder], batches: Iterator[tuple[int, pa.RecordBatch, pa.Array]]
) -> tuple[BatchEmbedder, Iterator[tuple[int, pa.RecordBatch, pa.Array]]]:
    """Make something on another thread, and take batches as long as that lasts: they are the first of all that come."""
    with ThreadPoolExecutor(1, "embed-load") as pool:
        made, first, held = pool.submit(make), [], 0
        while not made.done() and held < _ROOM and (item := next(batches, None)):
            first.append(item)
            held += item[1].nbytes
        return made.result(), chain(first, batches)


def _ahead(items: Iterator[_Item]) -> Iterator[_Item]:
    """The same items, the next one always made while the last one is used."""
    with ThreadPoolExecutor(1, "embed-ahead") as pool:
        future = pool.submit(next, items, None)
        while (item := future.result()) is not None:
            future = pool.submit(next, items, None)
            yield item
