"""The planner: which release answers a request, and what answers when none can.

For each release, live first and then the older ones, it looks for a query embedding of the release's model version
(from the key-value store if asked by entity, from the query tower if features are given) and for the release's
index. The first release that has both answers. Where none has, the popularity list of the newest release that has
one does, and the answer says that it is degraded. Whatever was passed over is in the answer's reasons.
"""

from __future__ import annotations

import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lockstep.config import KVSection
from lockstep.embeddings import VersionedEmbedding
from lockstep.errors import RequestError, VersionMismatchError
from lockstep.features import features_from_json
from lockstep.registry import Registry, Release
from lockstep.schema import MAX_ID_BYTES
from lockstep.storage import Storage, open_root
from lockstep.version import ModelVersion, ReleaseId
from serving.index import Index, Restricts
from serving.kv import QueryStore, open_store
from serving.release_handles import ReleaseHandles, release_handles

MAX_K = 10_000


@dataclass(frozen=True)
class Request:
    """What is asked for: the candidates for an entity, for raw features, or for whichever of the two is known.

    Args:
        entity: id of a query entity.
        features: raw query features, named as in the schema; those that are missing count as unknown.
        k: 1 to 10,000.
        restricts: what candidates are wanted.
        exclude: candidate ids to leave out, such as the entity's own history.
        per_crowding_tag: at most so many candidates of one crowding tag.
    """

    entity: str | None = None
    features: Mapping[str, Any] | None = None
    k: int = 10
    restricts: Restricts = field(default_factory=Restricts)
    exclude: AbstractSet[str] = frozenset()
    per_crowding_tag: int | None = None

    def __post_init__(self) -> None:
        if self.entity is None and self.features is None:
            raise RequestError("a request names an entity, or gives features, or both; found neither")
        if self.entity is not None and any("\ud800" <= character <= "\udfff" for character in self.entity):
            raise RequestError(f"the entity {self.entity!r} is no Unicode text")
        if not 1 <= self.k <= MAX_K:
            raise RequestError(f"k is {self.k}: ask for 1 to {MAX_K} candidates")
        if self.entity is not None:
            size = len(self.entity.encode(errors="surrogatepass"))
            if not 1 <= size <= MAX_ID_BYTES:
                raise RequestError(
                    f"the entity id {self.entity[:40]!r} has {size} bytes: an id has 1 to {MAX_ID_BYTES}"
                )
        if self.per_crowding_tag is not None and self.per_crowding_tag < 1:
            raise RequestError(f"per_crowding_tag is {self.per_crowding_tag}: allow at least one candidate of a tag")
        if not isinstance(self.restricts, Restricts):
            raise RequestError(f"restricts is {self.restricts!r}: give Restricts(allow={{namespace: {{token}}}})")
        if not isinstance(self.exclude, AbstractSet):
            raise RequestError(f"exclude is {self.exclude!r}: give a set of candidate ids")


@dataclass(frozen=True)
class Answer:
    """Candidates, and which release found them how.

    Args:
        candidates: (id, score), best first; scores are dot products of unit vectors, or a fallback's event counts.
        release: what answered, such as v7.3; None where nothing did.
        rung: "kv v7", "tower v7", "popular within restrict", "popular" or "none".
        degraded: whether a fallback answered, or nothing.
        reasons: one sentence for each better answer that was passed over.
    """

    candidates: tuple[tuple[str, float], ...]
    release: str | None
    rung: str
    degraded: bool
    reasons: tuple[str, ...] = ()


@dataclass(frozen=True)
class Pair:
    """A query and the index that may search for it; made by `pair` only."""

    query: VersionedEmbedding
    index: Index
    source: str


@dataclass(frozen=True)
class View:
    """One state of the registry: the releases in the order in which they are tried. Requests work on one view."""

    releases: tuple[ReleaseHandles, ...]
    generation: str | None = None
    reasons: tuple[str, ...] = ()


class Retriever:
    """Answers requests from the releases of a root.

    Args:
        root: local folder or gs:// prefix.
        cache: where parts of a remote root are copied to; a temporary folder by default.
        refresh_seconds: how old the view of the registry may be; 0 reads it for every request.
        retry_seconds: how long a part that could not be opened is left alone while the registry stays the same.
        clock: seconds, monotonic.
    """

    def __init__(
        self,
        root: str | Storage,
        *,
        cache: Path | None = None,
        refresh_seconds: float = 1.0,
        retry_seconds: float = 30.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._storage = open_root(root) if isinstance(root, str) else root
        self._registry = Registry(self._storage)
        self._cache = cache or Path(tempfile.gettempdir()) / "lockstep-cache"
        self._refresh_seconds = refresh_seconds
        self._retry_seconds = retry_seconds
        self._clock = clock
        self._lock = threading.Lock()
        self._view: View | None = None
        self._viewed_at = 0.0
        self._stores: dict[str, QueryStore] = {}

    def answer(self, request: Request) -> Answer:
        """Retrieve candidates.

        Raises:
            RequestError: the request is malformed. Nothing else: what fails is a reason, not an error.
        """
        return self.answer_from(self.view(), request)

    def answer_from(self, view: View, request: Request) -> Answer:
        """Retrieve candidates from a given view."""
        reasons = list(view.reasons)
        for place, handles in enumerate(view.releases):
            try:
                found = self._search(handles, request, reasons)
            except Exception as error:
                if isinstance(error, RequestError) and not place:
                    raise
                reasons.append(_sentence(handles.id, error))
            else:
                if found is not None:
                    return found
        return _fall_back(view, request, reasons)

    def view(self) -> View:
        """The current view; an unreadable registry leaves the last one in force."""
        now = self._clock()
        with self._lock:
            if self._view is not None and now - self._viewed_at < self._refresh_seconds:
                return self._view
            self._view = self._read_view(self._view)
            self._viewed_at = now
            return self._view

    def view_of(self, release: Release) -> View:
        """A view of one release that need not be registered yet, as deploying needs it."""
        return View((self._handles(release.id, lambda _: release),))

    def close(self) -> None:
        """Let go of the key-value stores."""
        for store in self._stores.values():
            store.close()
        self._stores.clear()

    def _read_view(self, previous: View | None) -> View:
        try:
            serving = self._registry.serving()
        except Exception as error:
            reason = f"the registry cannot be read ({error})"
            return View(previous.releases if previous else (), previous.generation if previous else None, (reason,))
        if serving.live is None:
            return View((), None, (f"nothing is published in {self._storage.root}: run `lockstep run`",))
        known = {handles.id: handles for handles in previous.releases} if previous else {}
        read = self._registry.release
        releases = tuple(known.get(one) or self._handles(one, read) for one in serving.plan())
        if previous is None or previous.generation != serving.generation:
            for handles in releases:
                handles.forget_failures()
        return View(releases, serving.generation)

    def _handles(self, release_id: ReleaseId, read: Callable[[ReleaseId], Release]) -> ReleaseHandles:
        return release_handles(
            release_id, read, self._storage, self._cache, clock=self._clock, retry_seconds=self._retry_seconds
        )

    def _search(self, handles: ReleaseHandles, request: Request, reasons: list[str]) -> Answer | None:
        """What a release finds, or None where it has no embedding of the query."""
        index = handles.index.get()
        for source, embed in self._sources(handles, request):
            try:
                query = embed()
            except RequestError:
                raise
            except Exception as error:
                reasons.append(_sentence(handles.id, error))
                continue
            if query is None:
                version = handles.id.model_version
                reasons.append(f"{handles.id}: the key-value store has no {version} embedding of {request.entity!r}")
                continue
            return _answer(handles.id, pair(handles.id, query, index, source), request, reasons)
        return None

    def _sources(
        self, handles: ReleaseHandles, request: Request
    ) -> Iterator[tuple[str, Callable[[], VersionedEmbedding | None]]]:
        version = handles.id.model_version
        entity, features = request.entity, request.features
        if entity is not None:
            yield f"kv {version}", lambda: self._find(handles.release.get(), entity)
        if features is not None:
            yield f"tower {version}", lambda: _embed(handles, features)

    def _find(self, release: Release, entity: str) -> VersionedEmbedding | None:
        return self._store(release).find(entity, release.id.model_version, release.kv["tower"])

    def _store(self, release: Release) -> QueryStore:
        backend = release.kv["backend"]
        with self._lock:
            store = self._stores.get(backend)
            if store is None:
                section = KVSection(backend=backend)
                store = open_store(section, Path(self._storage.resolve("kv")))
                self._stores[backend] = store
        return store


def pair(release_id: ReleaseId, query: VersionedEmbedding, index: Index, source: str) -> Pair:
    """Bring a query and an index together, if they and the release are of one model version.

    Every comparison that serving makes goes through here, and through the index's own check after it.

    Raises:
        VersionMismatchError: they are not.
    """
    expected: ModelVersion = release_id.model_version
    for what, found in (
        (f"the query embedding from {source}", query.model_version),
        ("the index", index.model_version),
    ):
        if found != expected:
            raise VersionMismatchError(what, found, f"release {release_id}", expected, "deploy the release again")
    return Pair(query, index, source)


def _embed(handles: ReleaseHandles, features: Mapping[str, Any]) -> VersionedEmbedding:
    tower = handles.query_tower.get()
    return tower.embed(features_from_json(tower.schema, "query", features))[0]


def _answer(release_id: ReleaseId, found: Pair, request: Request, reasons: list[str]) -> Answer:
    index = found.index
    neighbours = index.search(
        found.query,
        request.k,
        restricts=request.restricts,
        exclude=request.exclude,
        per_crowding_tag=request.per_crowding_tag,
    )
    for namespace in sorted(request.restricts.namespaces - set(index.namespaces)):
        there_are = ", ".join(index.namespaces) or "none"
        reasons.append(
            f"{release_id}: no candidate has a token or number in namespace {namespace!r}; namespaces: {there_are}"
        )
    candidates = tuple(zip(neighbours.ids, neighbours.scores.tolist(), strict=True))
    return Answer(candidates, str(release_id), found.source, False, tuple(reasons))


def _fall_back(view: View, request: Request, reasons: list[str]) -> Answer:
    rung = "popular within restrict" if request.restricts else "popular"
    for handles in view.releases:
        try:
            popular = handles.popular.get()
            candidates = popular.top(request.k, request.restricts, request.exclude, request.per_crowding_tag)
        except Exception as error:
            reasons.append(_sentence(handles.id, error))
        else:
            return Answer(tuple(candidates), str(handles.id), rung, True, tuple(reasons))
    return Answer((), None, "none", True, tuple(reasons))


def _sentence(release_id: ReleaseId, error: Exception) -> str:
    text = " ".join(str(error).split()) or "no message"
    return f"{release_id}: {text}" if _is_ours(error) else f"{release_id}: {type(error).__name__}: {text}"


def _is_ours(error: Exception) -> bool:
    return type(error).__module__ == "lockstep.errors"
