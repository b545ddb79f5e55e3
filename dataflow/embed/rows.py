"""The entities of one side as numbered rows, of which any range can be read by itself."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import accumulate, pairwise
from typing import Any, Literal

import pyarrow as pa
import pyarrow.parquet as pq

from lockstep.errors import CorruptArtifactError, DataError
from lockstep.tags import Artifact

Side = Literal["query", "candidate"]
FOLDERS = {"query": "queries", "candidate": "candidates"}
"""Of the artifact `entities`, by side."""
PASSED_ON = {"query": (), "candidate": ("restricts", "numeric_restricts", "crowding_tag")}
"""Columns that go into the embeddings file as they are."""


@dataclass(frozen=True)
class EntityFile:
    """One file: its place below the artifact, and the rows of each of its row groups."""

    name: str
    groups: tuple[int, ...]


@dataclass(frozen=True)
class EntityRows:
    """The rows of one side, numbered through its files in the order of their names."""

    side: Side
    files: tuple[EntityFile, ...]

    @property
    def rows(self) -> int:
        """Their number."""
        return sum(sum(file.groups) for file in self.files)

    def read(
        self, folder: str, start: int, stop: int, size: int, opened: Callable[[str], Any] = str
    ) -> Iterator[pa.RecordBatch]:
        """Read some rows; row groups that hold none of them are not touched.

        Args:
            folder: the artifact, as its reader addresses it.
            start: the first row.
            stop: the row after the last.
            size: rows of a batch, at most.
            opened: makes something that Arrow can read of a file's address.

        Yields:
            id, features and the columns of `PASSED_ON`.
        """
        first = 0
        for file in self.files:
            begins = [first + before for before in accumulate(file.groups, initial=0)]
            spans = enumerate(pairwise(begins))
            wanted = [number for number, (begin, end) in spans if begin < stop and end > start]
            if wanted:
                skipped = max(start - begins[wanted[0]], 0)
                left = min(stop, begins[-1]) - max(start, first)
                yield from self._read_file(opened(f"{folder}/{file.name}"), wanted, skipped, left, size)
            first = begins[-1]

    def _read_file(self, file: Any, groups: list[int], skipped: int, left: int, size: int) -> Iterator[pa.RecordBatch]:
        columns = ["id", "features", *PASSED_ON[self.side]]
        with pq.ParquetFile(file) as parquet:
            for batch in parquet.iter_batches(size, row_groups=groups, columns=columns):
                rest = batch.slice(skipped, left)
                skipped = max(skipped - len(batch), 0)
                left -= len(rest)
                if len(rest):
                    yield rest


def entity_rows(source: Artifact, side: Side) -> EntityRows:
    """The rows of one side.

    Raises:
        CorruptArtifactError: the files hold more or fewer rows than the tag says.
        DataError: there are no entities of this side.
    """
    sides: tuple[Side, Side] = ("query", "candidate")
    found = {each: EntityRows(each, tuple(_files(source, each))) for each in sides}
    total = sum(of.rows for of in found.values())
    if total != source.tag.rows:
        raise CorruptArtifactError(source.path, f"{total} rows", f"{source.tag.rows} rows")
    if not found[side].rows:
        raise DataError(f"{source.path} holds no {FOLDERS[side]} to embed: check the source and rerun")
    return found[side]


def _files(source: Artifact, side: Side) -> Iterator[EntityFile]:
    for path in sorted((source / FOLDERS[side]).glob("part-*.parquet")):
        metadata = pq.read_metadata(path)
        groups = tuple(metadata.row_group(number).num_rows for number in range(metadata.num_row_groups))
        yield EntityFile(f"{FOLDERS[side]}/{path.name}", groups)
