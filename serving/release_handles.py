"""The opened parts of a release: each opened when it is first needed, checked once, kept while it is served."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, TypeVar

from lockstep.registry import Release
from lockstep.storage import Storage
from lockstep.tags import Kind
from lockstep.towers import Tower
from lockstep.version import ReleaseId
from serving.fallback import PopularCandidates
from serving.index import Index, open_index

_Part = TypeVar("_Part")


class Lazy(Generic[_Part]):
    """Something that is opened once. A failure is remembered for a while, so that not every request pays for it.

    Args:
        open_: may fail.
        clock: seconds, monotonic.
        retry_seconds: how long a failure is repeated before the next attempt.
    """

    def __init__(self, open_: Callable[[], _Part], clock: Callable[[], float], retry_seconds: float) -> None:
        self._open = open_
        self._clock = clock
        self._retry_seconds = retry_seconds
        self._lock = threading.Lock()
        self._part: _Part | None = None
        self._failure: tuple[Exception, float] | None = None

    def get(self) -> _Part:
        """What was opened.

        Raises:
            Exception: what opening it raised, now or a moment ago.
        """
        part = self._part
        if part is not None:
            return part
        with self._lock:
            if self._part is not None:
                return self._part
            if self._failure is not None and self._clock() - self._failure[1] < self._retry_seconds:
                raise self._failure[0].with_traceback(None)
            try:
                self._part = self._open()
            except Exception as error:
                self._failure = (error, self._clock())
                raise
            self._failure = None
            return self._part

    def forget_failure(self) -> None:
        """Let the next `get` try again."""
        with self._lock:
            self._failure = None


@dataclass(frozen=True)
class ReleaseHandles:
    """One release as the planner sees it."""

    id: ReleaseId
    release: Lazy[Release]
    index: Lazy[Index]
    query_tower: Lazy[Tower]
    popular: Lazy[PopularCandidates]

    def forget_failures(self) -> None:
        """Try again whatever could not be opened."""
        for lazy in (self.release, self.index, self.query_tower, self.popular):
            lazy.forget_failure()


def release_handles(
    release_id: ReleaseId,
    read_release: Callable[[ReleaseId], Release],
    storage: Storage,
    cache: Path,
    *,
    clock: Callable[[], float],
    retry_seconds: float,
) -> ReleaseHandles:
    """Handles of a release; nothing is opened yet.

    Args:
        read_release: gives the manifest.
        cache: where parts of a remote root are copied to.
    """

    def lazy(open_: Callable[[], _Part]) -> Lazy[_Part]:
        return Lazy(open_, clock, retry_seconds)

    release = lazy(lambda: read_release(release_id))

    def place(kind: Kind) -> tuple[Path, str]:
        part = release.get().part(kind)
        return storage.local_copy(part.uri, cache), part.digest

    def index() -> Index:
        path, digest = place(Kind.INDEX)
        return open_index(path, release_id.model_version, release_id.snapshot, digest)

    def query_tower() -> Tower:
        path, digest = place(Kind.QUERY_TOWER)
        return Tower.open(path, Kind.QUERY_TOWER, release_id.model_version, digest)

    def popular() -> PopularCandidates:
        return PopularCandidates.open(*place(Kind.ENTITIES))

    return ReleaseHandles(release_id, release, lazy(index), lazy(query_tower), lazy(popular))
