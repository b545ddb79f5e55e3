"""Batch embedding as a Beam transform, and the job's files made by a Beam pipeline.

An element is a batch of entities, not a row: what Beam does for an element is then small beside what the tower does.
The pipeline's elements are the files that are missing. Whoever takes one reads its entities, embeds them and writes
it, so nothing is shuffled, and a file that is there is whole.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import apache_beam as beam
import pyarrow as pa
from apache_beam.runners.runner import PipelineState
from apache_beam.utils.shared import Shared

from dataflow.beam_options import pipeline_options
from dataflow.embed.batches import READ_ROWS, TOWERS, BatchEmbedder, BatchTower
from dataflow.embed.rows import EntityRows, Side
from dataflow.embed.shards import Plan, write_shard
from dataflow.worker_files import local, read, seen_by_workers, written
from lockstep.config import EmbedSection
from lockstep.embeddings import Dtype
from lockstep.errors import DataError
from lockstep.towers import Tower
from lockstep.version import ModelVersion

BATCH_SIZE = 4_096
"""Rows that a tower computes at once where [embed] does not say: a fleet does not try by itself."""


@dataclass(frozen=True)
class WorkerTower:
    """The tower as workers find it.

    Args:
        folder: of the artifact, as workers address it.
        digest: of its tag.
    """

    folder: str
    side: Side
    model_version: int
    digest: str
    batch_size: int = BATCH_SIZE
    dtype: Dtype = "float32"

    def open(self) -> Tower:
        """Load it, checked against the digest."""
        with local(self.folder) as folder:
            return Tower.open(folder, TOWERS[self.side], ModelVersion(self.model_version), self.digest)


class EmbedBatches(beam.PTransform):
    """Record batches of entities -> record batches of lockstep.embeddings.embedding_schema.

    A batch has the columns id and features, and those that pass through (`dataflow.embed.rows.PASSED_ON`). The tower
    is loaded once a process. What the job checks of a batch is checked here: length, finiteness, ids, the version's
    stamp; whether ids are unique, and are as many as the entities, is for who has all of them.

    Example:
        entities | "Embed" >> EmbedBatches(WorkerTower("gs://bucket/tower", "candidate", 7, digest))
    """

    def __init__(self, tower: WorkerTower) -> None:
        super().__init__()
        self._tower = tower

    def expand(self, batches: beam.PCollection) -> beam.PCollection:
        return batches | beam.ParDo(_Embed(self._tower))


class _WithTower(beam.DoFn):
    def __init__(self, tower: WorkerTower) -> None:
        self._tower, self._shared = tower, Shared()

    def setup(self) -> None:
        loaded = self._shared.acquire(self._tower.open, tag=self._tower.digest)
        # What remembers words is for one thread, the tower is for all.
        self._embedder = BatchEmbedder(self._tower.side, BatchTower(loaded, self._tower.batch_size), self._tower.dtype)


class _Embed(_WithTower):
    def process(self, batch: pa.RecordBatch) -> Iterator[pa.RecordBatch]:
        yield self._embedder.whole(batch)[0]


class _EmbedShard(_WithTower):
    """A file's number -> the file."""

    def __init__(self, tower: WorkerTower, plan: Plan, rows: EntityRows, entities: str, output: str) -> None:
        super().__init__(tower)
        self._plan, self._rows, self._entities, self._output = plan, rows, entities, output

    def process(self, shard: int) -> None:
        with ExitStack() as stack:
            start, stop = self._plan.span(shard)
            batches = self._rows.read(
                self._entities, start, stop, READ_ROWS, lambda address: stack.enter_context(read(address))
            )
            write_shard(self._output, self._plan, shard, map(self._embedder.whole, batches), written)


def embed_with_beam(
    plan: Plan, shards: list[int], rows: EntityRows, folders: Mapping[str, Path], section: EmbedSection, run_id: str
) -> None:
    """Make files on a Beam runner.

    Args:
        shards: the numbers of the files.
        folders: `tower`, `entities` and `output`.

    Raises:
        ConfigError: an option that Beam does not take, or a folder that workers cannot see.
        DataError: the runner did not finish.
    """
    seen = {name: seen_by_workers(path, section.runner) for name, path in folders.items()}
    size = plan.batch_size or BATCH_SIZE
    tower = WorkerTower(seen["tower"], plan.side, plan.model_version, plan.tower, size, plan.dtype)
    options = pipeline_options(section.runner, section.beam, run_id, section="embed")
    pipeline = beam.Pipeline(options=options)
    embed = _EmbedShard(tower, plan, rows, seen["entities"], seen["output"])
    pipeline | beam.Create(shards) | "Spread" >> beam.Reshuffle() | "Embed" >> beam.ParDo(embed)
    state = pipeline.run().wait_until_finish()
    if state not in (None, PipelineState.DONE):
        raise DataError(f"the embedding ended as {state}: see its log at the {section.runner}, mend it and rerun")
