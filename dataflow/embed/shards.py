"""The output files while they are made, and what a job finds of one that died before it.

<output>/
  .unfinished                     the plan as JSON: what the files here are made of
  part-00003-of-00008.parquet     whole; written under a name of its own first
  .canaries-00003.parquet         its rows that may become canaries (dataflow.embed.canaries); written before it
  .batch_size                     what was found by trying, so that all files are made alike
  .part-..., .canaries-...        of an attempt that died

A job goes on with the files of its own plan. Those of another are replaced, as every step replaces an unfinished
folder of its own.
"""

from __future__ import annotations

import json
import os
import shutil
import uuid
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from dataflow.embed.canaries import few
from dataflow.embed.rows import Side
from lockstep.embeddings import Dtype
from lockstep.errors import CorruptArtifactError, StorageError
from lockstep.storage import UNFINISHED, fresh_directory, write_atomically

_RESTRICTS = ("namespace", "allow.list.element", "deny.list.element")
_REPEATING = [
    "model_version",
    *(f"restricts.list.element.{name}" for name in _RESTRICTS),
    *(f"numeric_restricts.list.element.{name}" for name in ("namespace", "value")),
    "crowding_tag",
]
"""Columns, as Parquet names them, that dictionaries and compression make smaller; vectors, ids and digests they do not,
and trying to would take longer than all else about writing."""

_VALUES_AT_ONCE = 65_536
"""Arrow's 1,024 are few vectors."""


@dataclass(frozen=True)
class Plan:
    """What the files of one job are made of; jobs of equal plans may share a folder.

    Args:
        tower, entities: digests of the tags.
        rows: of all files.
        batch_size: rows that the tower computes at once, on which a vector's last bits depend; None where it is found.
    """

    side: Side
    model_version: int
    snapshot: int
    tower: str
    entities: str
    rows: int
    shard_rows: int
    dtype: Dtype
    batch_size: int | None

    @property
    def shards(self) -> int:
        """The number of files."""
        return -(-self.rows // self.shard_rows)

    def span(self, shard: int) -> tuple[int, int]:
        """The first row of a file, and the row after its last."""
        return shard * self.shard_rows, min((shard + 1) * self.shard_rows, self.rows)

    def name(self, shard: int) -> str:
        """The name of a file."""
        return f"part-{shard:05d}-of-{self.shards:05d}.parquet"


class ShardFolder:
    """The folder of one job, begun or gone on with."""

    def __init__(self, path: Path, plan: Plan) -> None:
        self.path, self.plan = path, plan

    @classmethod
    def begin(cls, path: Path, plan: Plan, *, shared: bool = False) -> ShardFolder:
        """Go on with a folder of this plan, or begin one.

        Args:
            shared: other workers write there, so that what is not of this plan is refused and not replaced.

        Raises:
            StorageError: the folder holds something else.
        """
        if not _is_of(path, plan) and shared:
            _create(path, plan)
        elif not _is_of(path, plan):
            fresh_directory(path)
            write_atomically(path / UNFINISHED, _json(plan))
        return cls(path, plan)

    def missing(self) -> list[int]:
        """The numbers of the files that are still to be made."""
        return [shard for shard in range(self.plan.shards) if not (self.path / self.plan.name(shard)).exists()]

    def batch_size(self, find: Callable[[], int]) -> int:
        """The plan's batch size, or, where it leaves that open, the one that the first attempt found."""
        if self.plan.batch_size is not None:
            return self.plan.batch_size
        settled = self.path / ".batch_size"
        if not settled.exists():
            write_atomically(settled, str(find()).encode())
        return int(settled.read_text())

    def canaries(self) -> pa.Table:
        """What the files' rows propose as canaries."""
        return pa.concat_tables(
            map(pq.read_table, sorted(self.path.glob(".canaries-[0-9][0-9][0-9][0-9][0-9].parquet")))
        )

    def remove_hidden(self) -> None:
        """Remove what does not belong to the artifact."""
        for path in self.path.glob(".*"):
            if path.name != UNFINISHED:
                path.unlink(missing_ok=True)


@contextmanager
def local_file(address: str) -> Iterator[Path]:
    """A file to write, which becomes the file at an address, whole or not at all."""
    target = Path(address)
    draft = target.with_name(f".{target.name.lstrip('.')}.{uuid.uuid4().hex}")
    try:
        yield draft
        with draft.open("rb") as file:
            os.fsync(file.fileno())
        draft.replace(target)
    finally:
        draft.unlink(missing_ok=True)


def write_shard(
    folder: str,
    plan: Plan,
    shard: int,
    batches: Iterable[tuple[pa.RecordBatch, pa.Table]],
    file: Callable[[str], AbstractContextManager[Path]] = local_file,
) -> int:
    """Write one file, and before it what its rows propose as canaries.

    Args:
        batches: rows of lockstep.embeddings.embedding_schema, each with its canaries.
        file: makes an address a file to write.

    Returns:
        Its rows.

    Raises:
        CorruptArtifactError: there are more or fewer rows than the plan says.
    """
    proposed, rows = [], 0
    with file(f"{folder}/{plan.name(shard)}") as path:
        with ExitStack() as stack:
            writer = None
            for batch, canaries in batches:
                if writer is None:
                    writer = stack.enter_context(_writer(path, batch.schema))
                writer.write_batch(batch)
                proposed.append(canaries)
                rows += len(batch)
        start, stop = plan.span(shard)
        if rows != stop - start:
            raise CorruptArtifactError(Path(folder), f"{rows} rows read of file {shard}", f"{stop - start} rows")
        with file(f"{folder}/.canaries-{shard:05d}.parquet") as beside:
            pq.write_table(few(pa.concat_tables(proposed)), beside)
    return rows


def _writer(path: Path, schema: pa.Schema) -> pq.ParquetWriter:
    return pq.ParquetWriter(
        path,
        schema,
        compression=dict.fromkeys(_REPEATING, "zstd"),
        use_dictionary=_REPEATING,
        write_statistics=["id", "model_version"],
        write_batch_size=_VALUES_AT_ONCE,
    )


def _json(plan: Plan) -> bytes:
    return json.dumps(asdict(plan), sort_keys=True).encode()


def _is_of(path: Path, plan: Plan) -> bool:
    try:
        return (path / UNFINISHED).read_bytes() == _json(plan)
    except OSError:
        return False


def _create(path: Path, plan: Plan) -> None:
    """Make a folder that none of several workers sees before it has its plan."""
    draft = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    draft.mkdir(parents=True)
    write_atomically(draft / UNFINISHED, _json(plan))
    try:
        draft.rename(path)
    except OSError:
        shutil.rmtree(draft)
        if not _is_of(path, plan):
            raise StorageError(
                f"{path} holds what is not of this job: remove it, then start the workers again"
            ) from None
