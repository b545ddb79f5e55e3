"""An LMDB environment shared by a process: opened once, grown when full, read by many threads."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar, TypeVar

from lockstep.errors import KVError

_MAX_READERS = 1024
_Result = TypeVar("_Result")


class Environment:
    """One LMDB environment with its named databases.

    LMDB forbids opening a file twice in a process, using it after a fork, and resizing the map while a
    transaction of the process runs; this class is there so that nobody else need know.
    """

    _opened: ClassVar[dict[tuple[int, Path], Environment]] = {}
    _opening: ClassVar[threading.Lock] = threading.Lock()

    def __init__(self, path: Path, names: Sequence[bytes], create: bool, map_bytes: int) -> None:
        import lmdb

        self._lmdb = lmdb
        self._path = path
        self._process = os.getpid()
        self._users = 0
        self._transactions = 0
        self._resizing = False
        self._changed = threading.Condition()
        self._environment = lmdb.open(
            str(path), map_size=map_bytes, max_dbs=len(names), max_readers=_MAX_READERS, create=create
        )
        self._check_size()
        self._environment.reader_check()
        self.databases = [self._environment.open_db(name, create=create) for name in names]

    def _check_size(self) -> None:
        """Refuse a file that is shorter than its contents: touching what is missing kills the process (SIGBUS)."""
        needed = (self._environment.info()["last_pgno"] + 1) * self._environment.stat()["psize"]
        found = (self._path / "data.mdb").stat().st_size
        if found < needed:
            self._environment.close()
            raise KVError(
                f"the key-value store in {self._path} is cut short: {found} bytes, expected {needed}; restore it "
                "from a backup, or remove it and run load_kv for the releases that are retained"
            )

    @classmethod
    def open(cls, path: Path, names: Sequence[bytes], *, create: bool, map_bytes: int) -> Environment:
        """This process's environment at a path; every `open` is paired with a `close`.

        Raises:
            KVError: there is none, or it cannot be opened.
        """
        import lmdb

        key = (os.getpid(), path.resolve())
        with cls._opening:
            cls._close_inherited()
            environment = cls._opened.get(key)
            if environment is None:
                if not create and not (path / "data.mdb").exists():
                    raise KVError(f"there is no key-value store in {path}: run load_kv")
                try:
                    if create:
                        path.mkdir(parents=True, exist_ok=True)
                    environment = cls(path.resolve(), names, create, map_bytes)
                except (lmdb.Error, OSError) as error:
                    raise KVError(
                        f"cannot open the key-value store in {path}: {error}; restore it from a backup, or remove it "
                        "and run load_kv for the releases that are retained"
                    ) from error
                cls._opened[key] = environment
            environment._users += 1
        return environment

    @classmethod
    def _close_inherited(cls) -> None:
        """After a fork, let go of the parent's environments; the parent's own stay as they are."""
        for process, path in list(cls._opened):
            if process != os.getpid():
                cls._opened.pop((process, path))._environment.close()

    def close(self) -> None:
        """Undo one `open`; the last one closes the file."""
        with self._opening:
            self._users -= 1
            if self._users:
                return
            self._opened.pop((os.getpid(), self._path), None)
        with self._exclusive():
            self._environment.close()

    def read(self, work: Callable[[Any], _Result]) -> _Result:
        """Run work in a read transaction: one consistent state, undisturbed by writers."""
        return self._run(work, write=False)

    def write(self, work: Callable[[Any], _Result]) -> _Result:
        """Run work in a write transaction, once no other process writes; it may run again after the map has grown."""
        return self._run(work, write=True)

    def _run(self, work: Callable[[Any], _Result], *, write: bool) -> _Result:
        if os.getpid() != self._process:
            raise KVError(f"the key-value store in {self._path} was opened before a fork: open it again after")
        while True:
            try:
                with self._shared(), self._environment.begin(write=write) as txn:
                    return work(txn)
            except self._lmdb.MapFullError:
                self._resize(2 * self._environment.info()["map_size"])
            except self._lmdb.MapResizedError:
                # Another process has grown the file: 0 adopts its size.
                self._resize(0)
            except self._lmdb.Error as error:
                raise KVError(f"the key-value store in {self._path} failed: {error}") from error

    def _resize(self, size: int) -> None:
        with self._exclusive():
            self._environment.set_mapsize(size)

    @contextmanager
    def _shared(self) -> Iterator[None]:
        with self._changed:
            self._changed.wait_for(lambda: not self._resizing)
            self._transactions += 1
        try:
            yield
        finally:
            with self._changed:
                self._transactions -= 1
                if self._resizing and not self._transactions:
                    self._changed.notify_all()

    @contextmanager
    def _exclusive(self) -> Iterator[None]:
        """Wait until no transaction of this process runs; new ones wait meanwhile, so that readers starve nobody."""
        with self._changed:
            self._changed.wait_for(lambda: not self._resizing)
            self._resizing = True
            self._changed.wait_for(lambda: not self._transactions)
        try:
            yield
        finally:
            with self._changed:
                self._resizing = False
                self._changed.notify_all()
