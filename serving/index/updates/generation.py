"""One generation of a changing index: the index as it was built, and its changes since."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from lockstep.errors import DataError
from lockstep.storage import fresh_directory
from lockstep.tags import Kind, Tag, read_tag, write_tag
from serving.index.base import Index
from serving.index.brute_force import BruteForceIndex
from serving.index.building import finish_index
from serving.index.files import CANDIDATES_SCHEMA, QUERIES, SCANN, IndexFiles, IndexFilesWriter
from serving.index.opening import open_files
from serving.index.updates.change_log import Change, ChangeLog
from serving.index.updates.mutable import MutableRows, MutableTree

CHECK_SHARE = 0.05
"""Changes, as a share of the rows that a generation began with, after which its recall is measured again."""
_TOLERATED = 0.005
_log = logging.getLogger(__name__)


class Generation:
    """An index as it was built, and its changes."""

    def __init__(self, number: int, files: IndexFiles, log: Path) -> None:
        self.number = number
        self.files = files
        self.queries: NDArray[np.float32] = np.load(files.path / QUERIES)
        self.candidates = MutableRows(files)
        self._tree: MutableTree | None = None
        self.index: Index
        if files.backend == "scann":
            from serving.index.scann import ScannIndex
            from serving.index.tuning import Ladder

            self._tree = MutableTree.load(files.path / SCANN, files.parameters["threads"], files.rows)
            self.index = ScannIndex(self.candidates, self._tree, Ladder.from_json(files.parameters["ladder"]))
        else:
            self.index = BruteForceIndex(self.candidates)
        self.least_recall = files.parameters.get("check_recall", 0.0) - _TOLERATED
        """Below it, it is clearly not as good as when it was built."""
        self.changed = self._checked = 0
        self.log = ChangeLog(log, log_header(files))

    def replay(self) -> None:
        """Make the changes of the log again."""
        for change, batch in self.log.read():
            self.apply(change, batch)
        if self.changed:
            _log.info("%s: %d changes made again", self.log.path, self.changed)

    def apply(self, change: Change, batch: pa.RecordBatch) -> None:
        """Make a change, which is in the log already, visible."""
        self.changed += len(batch)
        if change == "R":
            died = [row for row in self.candidates.kill(batch.column("id").to_pylist()) if row is not None]
            if self._tree is not None:
                self._tree.drop(died)
            return
        vectors = batch.column("embedding").flatten().to_numpy().reshape(len(batch), -1)
        first = len(self.candidates.vectors)
        replaced = self.candidates.add(batch.select(CANDIDATES_SCHEMA.names), vectors)
        if self._tree is not None:
            self._tree.put(first, vectors, replaced)

    def is_due(self) -> bool:
        """Whether enough has changed since the last look at its recall."""
        due = self.changed - self._checked >= max(1, CHECK_SHARE * self.candidates.base_rows)
        if due:
            self._checked = self.changed
        return due


def build_generation(
    base: Path,
    old: Generation,
    vectors: NDArray[np.float32],
    rows: NDArray[np.int64],
    batches: Sequence[pa.RecordBatch],
    source: Tag,
) -> IndexFiles:
    """Build the index of the living candidates of a generation, as that one was built.

    Args:
        base: the folder to write.
        vectors: [all rows, dim].
        rows: [n] the living ones, ascending.
        batches: theirs, n candidates in all.
        source: the tag of the index that the generation began with.

    Raises:
        DataError: nothing lives.
    """
    if not len(rows):
        raise DataError(f"the index in {base.parent} holds no candidate any more: there is nothing to build it of")
    fresh_directory(base)
    writer = IndexFilesWriter(base, len(rows), vectors.shape[1])
    for batch in batches:
        if len(batch):
            writer.add(batch, vectors[rows[writer.rows : writer.rows + len(batch)]])
    version, snapshot = old.files.model_version, old.files.snapshot
    finish_index(writer, old.queries, model_version=version, snapshot=snapshot, section=old.files.section)
    write_tag(
        base,
        Kind.INDEX,
        run=source.run,
        schema=source.schema,
        rows=writer.rows,
        model_version=version,
        snapshot=snapshot,
        inputs={"index": source},
    )
    return open_files(base, version, snapshot)


def log_header(files: IndexFiles) -> dict[str, object]:
    """What a log of changes of this index says of it."""
    return {
        "model_version": int(files.model_version),
        "snapshot": files.snapshot,
        "base": read_tag(files.path).digest,
        "dim": files.vectors.shape[1],
    }
