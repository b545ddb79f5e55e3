"""What every source writes, and the proof that it lost nothing.

    <destination>/
      events/part-*.parquet       query_id, candidate_id: string; event_time: timestamp[us, UTC]; position: int64;
                                  engagement: double, null where the source has none
      candidates/part-*.parquet   candidate_id: string, its attributes, row_number: int64
      queries/part-*.parquet      query_id: string, its attributes, row_number: int64

An id may stand in several rows of candidates or queries; the row with the smallest row_number counts.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from lockstep.errors import DataError
from lockstep.storage import fresh_directory

TIME = pa.timestamp("us", tz="UTC")
EVENTS = pa.schema(
    [
        ("query_id", pa.string()),
        ("candidate_id", pa.string()),
        ("event_time", TIME),
        ("position", pa.int64()),
        ("engagement", pa.float64()),
    ]
)
ID_COLUMNS = {"events": "query_id", "candidates": "candidate_id", "queries": "query_id"}
ROWS_PER_FILE = 4_000_000
REMEMBERED_IDS = 500_000
"""Ids that `SourceWriter.write_new` remembers of a table, so that its memory is bounded; the rest may repeat."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class SourceCounts:
    """Rows of a source: read, written and dead-lettered.

    A table that is not read but made from the rows of another (the candidates of playlists, the queries of
    events) is in `derived`: its rows are written, but were counted where they were read.
    """

    events_in: int
    events_written: int
    candidates_in: int
    candidates_written: int
    queries_in: int
    queries_written: int
    derived: tuple[str, ...]
    dead_lettered: Mapping[str, int]

    @property
    def rows_in(self) -> int:
        """Rows read from the source."""
        return self.events_in + self.candidates_in + self.queries_in

    @property
    def rows_written(self) -> int:
        """Rows written of those read."""
        return sum(getattr(self, f"{table}_written") for table in ID_COLUMNS if table not in self.derived)

    def check(self) -> None:
        """Prove that every row read was written or dead-lettered.

        Raises:
            DataError: rows have vanished, or come from nowhere.
        """
        dead = sum(self.dead_lettered.values())
        if self.rows_in != self.rows_written + dead:
            raise DataError(
                f"{self.rows_in} rows were read, but {self.rows_written} written and {dead} dead-lettered: "
                "this is a defect of the source's reader, please report it"
            )


class Progress:
    """Says every few seconds how far a long reading has come."""

    def __init__(self, what: str, files: int, every_seconds: float = 5.0) -> None:
        self._what, self._files, self._every = what, files, every_seconds
        self._started = self._said = time.monotonic()
        self.rows = 0
        self.files_done = 0

    def advance(self, rows: int) -> None:
        """Count rows that were read."""
        self.rows += rows
        if time.monotonic() - self._said >= self._every:
            self.say()

    def say(self) -> None:
        """Log the state now."""
        self._said = time.monotonic()
        rate = self.rows / max(self._said - self._started, 1e-9)
        _log.info("%s: %d/%d files, %d rows, %.0f rows/s", self._what, self.files_done, self._files, self.rows, rate)


class SourceWriter:
    """Writes the three tables of a source batch by batch, and counts.

    Args:
        destination: the folder; what a crashed attempt left there is removed.
    """

    def __init__(self, destination: Path) -> None:
        self._destination = fresh_directory(destination)
        self._schemas: dict[str, pa.Schema] = {}
        self._files: dict[str, pq.ParquetWriter] = {}
        self._written = dict.fromkeys(ID_COLUMNS, 0)
        self._read = dict.fromkeys(ID_COLUMNS, 0)
        self._part = dict.fromkeys(ID_COLUMNS, 0)
        self._derived: list[str] = []
        self._seen: dict[str, set[str]] = {table: set() for table in ID_COLUMNS}

    def declare(self, table: str, attributes: Sequence[tuple[str, pa.DataType]] = (), *, derived: bool = False) -> None:
        """Fix a table's columns, before its first row; a table without rows still gets a file."""
        if table == "events":
            schema = EVENTS
        else:
            schema = pa.schema([(ID_COLUMNS[table], pa.string()), *attributes, ("row_number", pa.int64())])
            if derived:
                self._derived.append(table)
        self._schemas[table] = schema
        directory = self._destination / table
        directory.mkdir()
        self._open(table, 0)

    def count_read(self, table: str, rows: int) -> None:
        """Note rows that were read from the source, good or bad."""
        self._read[table] += rows

    def write(self, table: str, columns: Mapping[str, pa.Array]) -> None:
        """Append rows; candidates and queries are numbered here.

        Args:
            columns: every declared column but row_number, of one length; engagement may be left out.
        """
        schema, start = self._schemas[table], self._written[table]
        rows = len(columns[ID_COLUMNS[table]])
        if table == "events" and "engagement" not in columns:
            columns = {**columns, "engagement": pa.nulls(rows, pa.float64())}
        if table != "events":
            columns = {**columns, "row_number": pa.array(np.arange(start, start + rows, dtype=np.int64))}
        if start // ROWS_PER_FILE > self._part[table]:
            self._files.pop(table).close()
            self._open(table, start // ROWS_PER_FILE)
        batch = pa.RecordBatch.from_arrays([columns[name] for name in schema.names], schema=schema)
        self._files[table].write_batch(batch)
        self._written[table] += rows

    def write_new(self, table: str, columns: Mapping[str, pa.Array]) -> None:
        """Append the rows of a derived table whose ids have not been written, the first of each id."""
        ids, seen = columns[ID_COLUMNS[table]], self._seen[table]
        encoded = ids.dictionary_encode()
        firsts = np.unique(encoded.indices.to_numpy(), return_index=True)[1]
        texts = encoded.dictionary.to_pylist()
        new = [code for code, text in enumerate(texts) if text not in seen]
        seen.update(texts[code] for code in new[: max(0, REMEMBERED_IDS - len(seen))])
        rows = pa.array(firsts[new].astype(np.int64))
        self.write(table, {name: values.take(rows) for name, values in columns.items()})

    def counts(self, dead_lettered: Mapping[str, int]) -> SourceCounts:
        """What was read and written so far."""
        read = {f"{table}_in": rows for table, rows in self._read.items()}
        written = {f"{table}_written": rows for table, rows in self._written.items()}
        return SourceCounts(**read, **written, derived=tuple(self._derived), dead_lettered=dict(dead_lettered))

    def _open(self, table: str, number: int) -> None:
        self._part[table] = number
        path = self._destination / table / f"part-{number:05d}.parquet"
        self._files[table] = pq.ParquetWriter(path, self._schemas[table], compression="zstd")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for file in self._files.values():
            file.close()
