"""An index whose candidates change while it is searched.

<folder>/                      one for each index that is changed; one process at a time holds it
  lock
  current.json                 {"generation": n, "first": digest of the release's index}; 0 where it is missing
  changes-<n>.log              what changed since generation n (serving.index.updates.change_log)
  base-<n>/                    the index of generation n, an artifact; generation 0 is the release's own folder

A change is on disk before it is visible, and a search sees all of it or nothing. After enough changes the index is
built and tuned anew in the background, while searches and changes go on; then the new generation takes over.
"""

from __future__ import annotations

import fcntl
import json
import logging
import shutil
import threading
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import TextIO

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from lockstep.embeddings import VersionedEmbeddings
from lockstep.errors import CorruptArtifactError, DataError, InputMismatchError, StorageError
from lockstep.storage import write_atomically
from lockstep.tags import read_tag
from lockstep.version import ModelVersion
from serving.index.base import Index, Neighbours, Rows
from serving.index.files import duplicate_ids
from serving.index.opening import open_files
from serving.index.postings import Allowed
from serving.index.restricts import Restricts
from serving.index.tuning import CHECK_QUERIES, Truth
from serving.index.updates.change_log import REMOVALS, Change, upserts_schema
from serving.index.updates.generation import Generation, build_generation, log_header
from serving.index.updates.read_write_lock import ReadWriteLock
from serving.index.vectors import check_vectors, check_version

REBUILD_SHARE = 0.25
"""Changes, as a share of the rows that a generation began with, after which it is built anew whatever its recall."""
_CURRENT = "current.json"
_log = logging.getLogger(__name__)


class UpdatableIndex(Index):
    """The candidates of one release and what became of them since.

    Args:
        path: the release's index.
        folder: where changes are kept.
        automatic: whether it is built anew by itself.

    Raises:
        ArtifactError: the index is not of this release, or the folder's changes are of another one.
        StorageError: another process holds the folder.
    """

    def __init__(
        self,
        path: Path,
        folder: Path,
        model_version: ModelVersion,
        snapshot: int,
        digest: str | None = None,
        *,
        automatic: bool = True,
    ) -> None:
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise StorageError(f"{folder} is no folder ({error.strerror}): name one for the changes") from error
        self._held = _hold(folder)
        self._folder, self._first = folder, path
        self._automatic = automatic
        self._lock = ReadWriteLock()
        self._writing = threading.Lock()
        self._rebuilding = threading.Lock()
        self._background: threading.Thread | None = None
        self._is_closed = False
        self.failure: Exception | None = None
        """Why the last attempt to build it anew failed."""
        try:
            first = read_tag(path).digest
            if digest is not None and first != digest:
                raise CorruptArtifactError(path, f"tag digest {first[:12]}", f"{digest[:12]} (release)")
            generation = _current(folder, first)
            base = path if generation == 0 else folder / f"base-{generation}"
            files = open_files(base, model_version, snapshot)
            self._generation = Generation(generation, files, _log_path(folder, generation))
            self._generation.replay()
            _remove_leftovers(folder, generation)
        except BaseException:
            self._held.close()
            raise
        super().__init__(self._generation.candidates)

    @property
    def is_exact(self) -> bool:  # type: ignore[override]
        """Whether the search misses nothing."""
        return self._generation.index.is_exact

    @property
    def generation(self) -> int:
        """How often it was built anew."""
        return self._generation.number

    @property
    def changed(self) -> int:
        """Upserts and removals since this generation began."""
        return self._generation.changed

    def upsert(self, embeddings: VersionedEmbeddings, candidates: pa.RecordBatch) -> None:
        """Add candidates, or replace those that are there; searches see all of them or none.

        Searches wait while the change is made (about 25 us a candidate): cut large changes into some.

        Args:
            embeddings: [n, dim] of the index's version.
            candidates: [n] id, restricts, numeric_restricts, crowding_tag as in `CANDIDATES_SCHEMA`; what is missing
                but the id is null.

        Raises:
            VersionMismatchError: the vectors are of another version.
            EmbeddingError: of another dimension, or not finite and of unit length.
            DataError: an id is missing or comes twice, there are not as many as vectors, or a column has another type.
        """
        if not isinstance(candidates, pa.RecordBatch):
            raise DataError(f"candidates are a {type(candidates).__name__}: give an Arrow record batch")
        if len(embeddings) != len(candidates):
            raise DataError(f"{len(embeddings)} vectors for {len(candidates)} candidates: give one for each")
        names = candidates.column("id").to_pylist if "id" in candidates.schema.names else None
        check_version("candidate", embeddings, self.model_version, self._folder)
        check_vectors("candidate", embeddings, dim=self.dim, where=self._folder, ids=names)
        batch = _upserts(embeddings.vectors, candidates)
        _check_ids(batch.column("id"))
        if len(batch):
            self._change("U", batch)

    def remove(self, ids: Collection[str]) -> None:
        """Remove candidates; those that are not there stay absent."""
        if isinstance(ids, str):
            raise DataError(f"{ids!r} is one text: give the ids to remove as a list")
        try:
            names = pa.array(list(dict.fromkeys(ids)), pa.string())
        except (pa.ArrowException, UnicodeError, TypeError) as error:
            raise DataError(f"the ids to remove are no texts: {error}") from error
        _check_ids(names)
        if len(names):
            self._change("R", pa.RecordBatch.from_arrays([names], schema=REMOVALS))

    def __contains__(self, candidate: str) -> bool:
        with self._lock.reading():
            return self._generation.candidates.row_of(candidate) is not None

    def recall(self) -> float:
        """The mean share of the exact neighbours that searches find now, for queries of the tuning."""
        with self._lock.reading():
            generation = self._generation
            queries = generation.queries[:CHECK_QUERIES]
            vectors, allowed = generation.candidates.vectors, generation.candidates.allowed(None)
            k = min(generation.files.section.k, generation.candidates.rows)
            if generation.index.is_exact or not len(queries) or not k:
                return 1.0
            found = generation.index._nearest(queries, k, allowed)
        # Rows never change their meaning, so the exact answers can wait until others may search and write again.
        truth = Truth(vectors, queries, k, None if allowed is None else allowed.rows)
        return float(truth.recalls(found, k).mean())

    def rebuild(self) -> None:
        """Build and tune it anew of what it holds; searches and changes go on meanwhile.

        Raises:
            DataError: it holds nothing.
        """
        with self._rebuilding:
            self._check_open()
            old = self._generation
            with self._writing:
                start = old.log.size
                rows, batches = old.candidates.living()
                # Rows are only ever added, so these stay what they are.
                vectors = old.candidates.vectors
            number = old.number + 1
            base = self._folder / f"base-{number}"
            files = build_generation(base, old, vectors, rows, batches, read_tag(self._base_path(old)))
            path = _log_path(self._folder, number)
            log = old.log.branch(path, log_header(files), start)
            log.close()
            new = Generation(number, files, path)
            new.replay()
            with self._writing:
                # Changes that came while the ones before were replayed.
                for change, batch in old.log.read(start + new.log.size - new.log.first):
                    new.log.append(change, batch)
                    new.apply(change, batch)
                with self._lock.writing():
                    _make_current(self._folder, number, read_tag(self._first).digest)
                    self._generation, self._candidates = new, new.candidates
            old.log.close()
            _remove_leftovers(self._folder, number)
            _log.info("generation %d of %d candidates took over", number, new.candidates.rows)

    def close(self) -> None:
        """Wait for what goes on in the background, and let go of the folder."""
        if self._background is not None:
            self._background.join()
        with self._rebuilding, self._writing:
            if not self._is_closed:
                self._is_closed = True
                self._generation.log.close()
                self._held.close()

    def _search(
        self,
        queries: VersionedEmbeddings,
        k: int,
        restricts: Restricts | None,
        exclude: Sequence[Collection[str]],
        per_crowding_tag: int | None,
    ) -> list[Neighbours]:
        with self._lock.reading():
            return self._generation.index._search(queries, k, restricts, exclude, per_crowding_tag)

    def _nearest(self, vectors: NDArray[np.float32], count: int, allowed: Allowed | None) -> Sequence[Rows]:
        return self._generation.index._nearest(vectors, count, allowed)

    def _change(self, change: Change, batch: pa.RecordBatch) -> None:
        with self._writing:
            self._check_open()
            generation = self._generation
            generation.log.append(change, batch)
            with self._lock.writing():
                generation.apply(change, batch)
        idle = self._background is None or not self._background.is_alive()
        if self._automatic and idle and generation.is_due():
            self._background = threading.Thread(target=self._look_after, name="rebuild-index")
            self._background.start()

    def _check_open(self) -> None:
        if self._is_closed:
            raise StorageError(f"the index in {self._folder} is closed: open it again to change it")

    def _look_after(self) -> None:
        """Measure the recall, and build anew where it fell or too much has changed."""
        generation = self._generation
        try:
            share = generation.changed / max(1, generation.candidates.base_rows)
            recall = self.recall()
            _log.info("%.1f %% changed, recall %.4f (target %g)", 100 * share, recall, generation.least_recall)
            if share >= REBUILD_SHARE or recall < generation.least_recall:
                self.rebuild()
            self.failure = None
        except Exception as error:
            _log.exception("the index in %s could not be built anew; it serves on as it is", self._folder)
            self.failure = error

    def _base_path(self, generation: Generation) -> Path:
        return self._first if generation.number == 0 else self._folder / f"base-{generation.number}"


def _upserts(vectors: NDArray[np.float32], candidates: pa.RecordBatch) -> pa.RecordBatch:
    schema = upserts_schema(vectors.shape[1])
    flat = pa.array(np.ascontiguousarray(vectors, np.float32).reshape(-1))
    columns = {"embedding": pa.FixedSizeListArray.from_arrays(flat, vectors.shape[1])}
    for field in schema:
        if field.name in candidates.schema.names and field.name not in columns:
            try:
                columns[field.name] = candidates.column(field.name).cast(field.type)
            except (pa.ArrowException, UnicodeError) as error:
                raise DataError(f"column {field.name!r} of the change is no {field.type}: {error}") from error
        elif field.name not in columns:
            columns[field.name] = pa.nulls(len(vectors), field.type)
    try:
        return pa.RecordBatch.from_arrays([columns[name] for name in schema.names], schema=schema)
    except pa.ArrowException as error:
        raise DataError(f"the change is unusable: {error}") from error


def _check_ids(ids: pa.Array) -> None:
    nameless = pc.sum(pc.fill_null(pc.equal(ids, ""), True)).as_py() or 0
    if nameless:
        raise DataError(f"{nameless} of {len(ids)} changes have no candidate id: give each one")
    twice = duplicate_ids(ids)
    if twice:
        raise DataError(f"{len(twice)} ids come twice in one change, {twice[0]!r} among them: give each once")


def _hold(folder: Path) -> TextIO:
    held = (folder / "lock").open("w")
    try:
        fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        held.close()
        raise StorageError(f"{folder} is held by another process: an index is changed by one at a time") from error
    return held


def _current(folder: Path, first: str) -> int:
    path = folder / _CURRENT
    if not path.exists():
        return 0
    try:
        current = json.loads(path.read_bytes())
        found, generation = str(current["first"]), int(current["generation"])
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise CorruptArtifactError(path, f"unreadable text ({error})", "a generation") from error
    if found != first:
        raise InputMismatchError("index", folder, found[:12], "the release", first[:12])
    return generation


def _make_current(folder: Path, generation: int, first: str) -> None:
    write_atomically(folder / _CURRENT, json.dumps({"generation": generation, "first": first}).encode())


def _log_path(folder: Path, generation: int) -> Path:
    return folder / f"changes-{generation}.log"


def _remove_leftovers(folder: Path, generation: int) -> None:
    """Of generations before, and of one that was never finished."""
    for path in folder.glob("base-*"):
        if path.name != f"base-{generation}":
            shutil.rmtree(path)
    for path in folder.glob("changes-*.log"):
        if path != _log_path(folder, generation):
            path.unlink()
