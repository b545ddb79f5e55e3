"""Candidates that change: rows are only ever added or marked dead, so a row's number always means the same."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from serving.index.files import IndexFiles
from serving.index.postings import Allowed, Postings, PostingsBuilder
from serving.index.restricts import Restricts
from serving.index.scann import ScannTree

_SEALED_ROWS = 4_096
"""Added rows whose postings are made once; those of fewer are made again after each change that a filter meets."""

_REMEMBERED_BYTES = 500_000
_UPSERTED_AT_ONCE = 256
"""Vectors that ScaNN takes at a time; one by one costs it twenty times as much."""

Rows = NDArray[np.int64]


class MutableRows:
    """The candidates of an opened index and what was added since, in memory.

    Not for several threads by itself: `UpdatableIndex` keeps readers and writers apart.

    Args:
        files: what it begins with.
    """

    def __init__(self, files: IndexFiles) -> None:
        self.path: Path = files.path
        self.model_version, self.snapshot = files.model_version, files.snapshot
        self.parameters: Mapping[str, Any] = files.parameters
        self.base_rows = self._end = len(files.vectors)
        self.rows = self.base_rows
        """Those alive."""
        self._base = files.candidates
        self._vectors = _grown(files.vectors, 2 * self._end)
        self._alive = _grown(np.ones(self._end, bool), 2 * self._end)
        self._crowding = _grown(files.crowding, 2 * self._end)
        self._ids: list[str] = files.id_column.to_pylist()
        self._row_of = {name: row for row, name in enumerate(self._ids)}
        self._tags = _first_codes(files.candidates.column("crowding_tag"), files.crowding)
        self._sealed: list[pa.RecordBatch] = []
        self._postings: list[Postings] = [files.postings]
        self._unsealed: list[pa.RecordBatch] = []
        self._tail: Postings | None = None
        self._everything: Allowed | None = None

    @property
    def vectors(self) -> NDArray[np.float32]:
        """[all rows ever, dim]."""
        return self._vectors[: self._end]

    @property
    def crowding(self) -> NDArray[np.int32]:
        """[all rows ever]; equal where the crowding tag is, -1 where there is none."""
        return self._crowding[: self._end]

    @property
    def namespaces(self) -> tuple[str, ...]:
        """Those in which some candidate has, or had, a token or a number."""
        return tuple(sorted({name for postings in self._all_postings() for name in postings.namespaces}))

    def ids(self, rows: Rows) -> list[str]:
        """The candidates' ids of some rows."""
        return [self._ids[row] for row in rows.tolist()]

    def row_of(self, name: str) -> int | None:
        """The living row of a candidate."""
        return self._row_of.get(name)

    def allowed(self, restricts: Restricts | None) -> Allowed | None:
        """The living rows that are allowed; None where all rows are."""
        alive = self._alive[: self._end]
        if restricts:
            masks = [postings.allowed(restricts).mask for postings in self._all_postings()]
            return Allowed(np.concatenate(masks) & alive)
        if self.rows == self._end:
            return None
        if self._everything is None:
            self._everything = Allowed(alive.copy())
        return self._everything

    def add(self, batch: pa.RecordBatch, vectors: NDArray[np.float32]) -> list[int | None]:
        """Append candidates, each in the place of the living one of its id.

        Args:
            batch: [n] of `CANDIDATES_SCHEMA`, ids unique.
            vectors: [n, dim].

        Returns:
            The rows that died, None for an id that was not there.
        """
        first, end = self._end, self._end + len(batch)
        if end > len(self._vectors):
            self._vectors, self._alive, self._crowding = (
                _grown(array, 2 * end) for array in (self._vectors, self._alive, self._crowding)
            )
        self._vectors[first:end] = vectors
        names = batch.column("id").to_pylist()
        replaced = self.kill(names)
        self._ids.extend(names)
        self._row_of.update(zip(names, range(first, end), strict=True))
        tags = batch.column("crowding_tag").to_pylist()
        self._crowding[first:end] = [-1 if tag is None else self._tags.setdefault(tag, len(self._tags)) for tag in tags]
        self._alive[first:end] = True
        self._end = end
        self.rows += len(batch)
        self._unsealed.append(batch)
        self._everything = self._tail = None
        if sum(map(len, self._unsealed)) >= _SEALED_ROWS:
            sealed = _combined(self._unsealed)
            self._sealed.append(sealed)
            self._postings.append(_postings(sealed))
            self._unsealed = []
        return replaced

    def kill(self, names: Sequence[str]) -> list[int | None]:
        """Mark candidates dead.

        Returns:
            The rows that died, None for an id that was not there.
        """
        rows = [self._row_of.pop(name, None) for name in names]
        died = [row for row in rows if row is not None]
        self._alive[died] = False
        self.rows -= len(died)
        self._everything = None
        return rows

    def living(self) -> tuple[Rows, list[pa.RecordBatch]]:
        """The living rows, and their batches of `CANDIDATES_SCHEMA`, as they are now."""
        alive = self._alive[: self._end].copy()
        batches = [*self._base.to_batches(), *self._sealed, *self._unsealed]
        found, first = [], 0
        for batch in batches:
            found.append(batch.filter(pa.array(alive[first : first + len(batch)])))
            first += len(batch)
        return np.flatnonzero(alive), found

    def _all_postings(self) -> list[Postings]:
        if not self._unsealed:
            return self._postings
        tail = self._tail
        if tail is None:
            # Of several readers each may do so, with the same result.
            combined = _combined(self._unsealed)
            tail = _postings(combined)
            self._unsealed, self._tail = [combined], tail
        return [*self._postings, tail]


class MutableTree(ScannTree):
    """A tree whose vectors are added, replaced and removed; it answers in the rows of `MutableRows`.

    ScaNN numbers its vectors by slots without holes: the last one moves into that of a removed one.
    """

    def __init__(self, searcher: Any, threads: int) -> None:
        super().__init__(searcher, threads)
        self._row_in = np.arange(self.rows, dtype=np.int64)
        self._slot_of = np.arange(self.rows, dtype=np.int64)

    def search(self, vectors: NDArray[np.float32], count: int, leaves: int, reorder: int) -> list[Rows]:
        """As in `ScannTree`, but what is found are rows."""
        return [self._row_in[slots] for slots in super().search(vectors, count, leaves, reorder)]

    def put(self, first_row: int, vectors: NDArray[np.float32], replaced: Sequence[int | None]) -> None:
        """Add vectors, or put them in the slots of those that they replace.

        Args:
            first_row: of consecutive new rows.
            vectors: [n, dim].
            replaced: [n] the rows that died for them; None for a new one.
        """
        slots = [None if row is None else int(self._slot_of[row]) for row in replaced]
        landed = np.array(self._searcher.upsert(slots, list(vectors), _UPSERTED_AT_ONCE), np.int64)
        end, self.rows = first_row + len(vectors), int(self._searcher.size())
        if end > len(self._slot_of):
            self._slot_of = _grown(self._slot_of, 2 * end)
        if self.rows > len(self._row_in):
            self._row_in = _grown(self._row_in, 2 * self.rows)
        self._slot_of[first_row:end] = landed
        self._row_in[landed] = np.arange(first_row, end)

    def drop(self, rows: Sequence[int]) -> None:
        """Remove vectors."""
        slots = []
        for row in rows:
            slot, last = int(self._slot_of[row]), self.rows - 1
            slots.append(slot)
            moved = self._row_in[last]
            self._row_in[slot], self._slot_of[moved] = moved, slot
            self.rows = last
        if slots:
            self._searcher.delete(slots)


def _grown(array: NDArray[Any], rows: int) -> NDArray[Any]:
    """A copy with room for more rows; room that is not used takes no memory yet."""
    grown = np.empty((max(rows, 1), *array.shape[1:]), array.dtype)
    grown[: len(array)] = array
    return grown


def _combined(batches: Sequence[pa.RecordBatch]) -> pa.RecordBatch:
    return pa.concat_batches(batches) if len(batches) > 1 else batches[0]


def _postings(batch: pa.RecordBatch) -> Postings:
    builder = PostingsBuilder()
    builder.add(batch.column("restricts"), batch.column("numeric_restricts"))
    return builder.build(_REMEMBERED_BYTES)


def _first_codes(tags: pa.ChunkedArray, codes: NDArray[np.int32]) -> dict[str, int]:
    """The code of every tag, which an index numbers in the order of their first rows."""
    first = np.unique(codes[codes >= 0], return_index=True)[1]
    named = tags.filter(pa.array(codes >= 0)).take(pa.array(first)).to_pylist()
    return {tag: code for code, tag in enumerate(named)}
