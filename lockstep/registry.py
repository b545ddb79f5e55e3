"""The registry: minted versions, immutable releases, and the one pointer that says which of them is live.

    <root>/registry/
      versions/7.json      who minted v7, when, for which run; created atomically, never changed or removed
      releases/7.3.json    the manifest of release v7.3; created atomically, never changed
      serving.json         live and retained releases and how they came to be; changed only by compare-and-swap

Manifests and `serving.json` are sealed: they hold the SHA-256 of their own contents.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from typing import Any

from lockstep import __version__
from lockstep.errors import CorruptArtifactError, PublishConflictError, ReleaseError
from lockstep.storage import Storage
from lockstep.tags import Kind
from lockstep.version import ModelVersion, ReleaseId

FORMAT = 1
VERSIONS = "registry/versions"
RELEASES = "registry/releases"
SERVING = "registry/serving.json"
MAX_TRANSITIONS = 500
"""Transitions that serving.json remembers; older ones are dropped so that the file stays small."""
_ATTEMPTS = 100
_REMEDIES = {
    "releases": "restore it from a backup, or publish another release",
    "serving": "restore it from a backup; or remove it and make a release live again: "
    "python -m components publish_release --release vN.M ...",
}


@dataclass(frozen=True)
class Part:
    """One artifact of a release: where it is and the digest of its tag."""

    kind: Kind
    uri: str
    """Relative to the root where it lies below it, so that a root can be moved."""
    digest: str


@dataclass(frozen=True)
class Release:
    """What serving needs to know of one snapshot of one model version; never changed once registered.

    Args:
        parts: role -> artifact; roles are the artifacts' kinds.
        kv: backend and namespace of the query embeddings, and the digest of the tower that made them.
        data_window: the cuts between the splits and the moment of the newest event, ISO 8601.
        metrics: the evaluation's figures.
        gate: the verdict's checks.
    """

    id: ReleaseId
    run: str
    schema: str
    parts: Mapping[str, Part]
    kv: Mapping[str, Any]
    data_window: Mapping[str, Any] = field(default_factory=dict)
    metrics: Mapping[str, Any] = field(default_factory=dict)
    gate: Mapping[str, Any] = field(default_factory=dict)
    created_at: str = ""
    lockstep: str = __version__

    def part(self, role: str) -> Part:
        """The artifact in one role.

        Raises:
            ReleaseError: the release has none.
        """
        try:
            return self.parts[role]
        except KeyError:
            raise ReleaseError(f"release {self.id} has no {role}; it has {sorted(self.parts)}") from None


@dataclass(frozen=True)
class Transition:
    """One change of what is live: who, when and why."""

    action: str
    from_release: str | None
    to_release: str
    by: str
    why: str
    at: str


@dataclass(frozen=True)
class Serving:
    """What serving answers from: the live release first, then the retained ones.

    Args:
        retained: releases that were live or superseded, latest first, of the last few model versions.
        generation: what compare-and-swap compares; None before the first publish.
    """

    live: ReleaseId | None = None
    retained: tuple[ReleaseId, ...] = ()
    history: tuple[Transition, ...] = ()
    generation: str | None = None

    def plan(self) -> tuple[ReleaseId, ...]:
        """The order in which releases are tried: live, then what is older, highest first.

        Nothing newer than live is in it, so that a rollback also holds when the older release stumbles.
        """
        if self.live is None:
            return ()
        live = self.live
        return (live, *sorted((r for r in self.retained if r < live), reverse=True))


class Registry:
    """Reads and changes the registry below a root."""

    def __init__(self, storage: Storage) -> None:
        self.storage = storage

    def mint_version(self, run: str, by: str, now: datetime | None = None) -> ModelVersion:
        """Take the next model version, for good.

        The number is taken by creating its file, which succeeds for one caller only; the others move on to
        the next number. Nothing ever removes the file, so a number is never used twice.
        """
        self.serving()  # a run whose end cannot be published should not begin
        record = {"format": FORMAT, "run": run, "by": by, "at": _iso(now)}
        number = max(self.versions(), default=0) + 1
        while True:
            data = json.dumps({**record, "model_version": number}, sort_keys=True).encode() + b"\n"
            if self.storage.create(f"{VERSIONS}/{number}.json", data):
                return ModelVersion(number)
            number += 1

    def versions(self) -> list[ModelVersion]:
        """Every minted version, ascending."""
        names = (name.removesuffix(".json") for name in self.storage.names(VERSIONS))
        return sorted(ModelVersion(int(name)) for name in names if name.isdigit())

    def add_release(self, release: Release) -> None:
        """Register a release.

        Raises:
            ReleaseError: the version was never minted, or the release exists with other contents.
        """
        if release.id.model_version not in self.versions():
            raise ReleaseError(
                f"release {release.id}: {release.id.model_version} was never minted here; run mint_version"
            )
        data = _seal(_release_to_dict(release))
        path = _manifest(release.id)
        if not self.storage.create(path, data):
            found = self.storage.read(path)
            if found is None or found[0] != data:
                raise ReleaseError(f"release {release.id} exists and never changes: make a new snapshot or version")

    def release(self, release_id: ReleaseId) -> Release:
        """Read a manifest.

        Raises:
            ReleaseError: there is none.
            CorruptArtifactError: it is not what was written.
        """
        path = _manifest(release_id)
        found = self.storage.read(path)
        if found is None:
            raise ReleaseError(f"there is no release {release_id} in {self.storage.root}: see `lockstep releases`")
        release = _release_from_dict(
            _unseal(found[0], self.storage.uri(path), _REMEDIES["releases"]), self.storage.uri(path)
        )
        if release.id != release_id:
            raise CorruptArtifactError(
                self.storage.uri(path), f"the manifest of {release.id}", str(release_id), _REMEDIES["releases"]
            )
        return release

    def releases(self) -> list[ReleaseId]:
        """Every registered release, ascending."""
        names = (name.removesuffix(".json") for name in self.storage.names(RELEASES))
        return sorted(ReleaseId.parse(name) for name in names)

    def serving(self) -> Serving:
        """What is live and retained now."""
        found = self.storage.read(SERVING)
        if found is None:
            return Serving()
        data, generation = found
        uri = self.storage.uri(SERVING)
        raw = _unseal(data, uri, _REMEDIES["serving"])
        try:
            return Serving(
                live=ReleaseId.parse(raw["live"]) if raw["live"] else None,
                retained=tuple(ReleaseId.parse(text) for text in raw["retained"]),
                history=tuple(Transition(**transition) for transition in raw["history"]),
                generation=generation,
            )
        except (KeyError, TypeError, ReleaseError) as error:
            raise CorruptArtifactError(uri, f"unreadable contents ({error})", "the serving state") from error

    def publish(
        self, release_id: ReleaseId, *, by: str, why: str, keep: int = 5, now: datetime | None = None
    ) -> Serving:
        """Make a release live, unless a newer one already is.

        A run that finishes after a newer run's release went live is superseded: its release is retained and
        can be rolled back to, but live never moves backwards on its own.

        Args:
            keep: model versions that stay retained, the live one included.
        """
        self.release(release_id)

        def change(serving: Serving) -> tuple[Serving, str]:
            if serving.live is not None and release_id < serving.live:
                return replace(serving, retained=(release_id, *serving.retained)), "superseded"
            return _go_live(serving, release_id), "publish"

        return self._change(change, release_id, by, why, keep, now)

    def rollback(
        self, release_id: ReleaseId, *, by: str, why: str, keep: int = 5, now: datetime | None = None
    ) -> Serving:
        """Point live at a retained release, older or newer; nothing is rebuilt.

        Raises:
            ReleaseError: the release is not retained.
        """
        self.release(release_id)

        def change(serving: Serving) -> tuple[Serving, str]:
            if release_id not in serving.retained and release_id != serving.live:
                retained = ", ".join(str(r) for r in serving.retained) or "nothing"
                raise ReleaseError(f"release {release_id} is not retained, so it cannot go live; retained: {retained}")
            return _go_live(serving, release_id), "rollback"

        return self._change(change, release_id, by, why, keep, now)

    def _change(
        self,
        change: Callable[[Serving], tuple[Serving, str]],
        release_id: ReleaseId,
        by: str,
        why: str,
        keep: int,
        now: datetime | None,
    ) -> Serving:
        for _ in range(_ATTEMPTS):
            before = self.serving()
            after, action = change(before)
            origin = None if before.live is None else str(before.live)
            transition = Transition(action, origin, str(release_id), by, why, _iso(now))
            after = replace(
                after,
                retained=_trim(after, keep),
                history=(*before.history, transition)[-MAX_TRANSITIONS:],
            )
            data = _seal(_serving_to_dict(after))
            if before.generation is None:
                done = self.storage.create(SERVING, data)
            else:
                done = self.storage.replace(SERVING, data, before.generation)
            if done:
                return after
        raise PublishConflictError(
            f"release {release_id} was not published: {SERVING} changed under {_ATTEMPTS} attempts; "
            "see who else publishes to this root, then run publish_release again"
        )


def _go_live(serving: Serving, release_id: ReleaseId) -> Serving:
    previous = () if serving.live in (None, release_id) else (serving.live,)
    return replace(serving, live=release_id, retained=(*previous, *serving.retained))


def _trim(serving: Serving, keep: int) -> tuple[ReleaseId, ...]:
    """Retained releases without repeats, of the latest `keep` model versions, live's included."""
    kept: list[ReleaseId] = []
    versions = [] if serving.live is None else [serving.live.model_version]
    for release_id in dict.fromkeys(serving.retained):
        if release_id == serving.live:
            continue
        if release_id.model_version not in versions:
            if len(versions) == keep:
                continue
            versions.append(release_id.model_version)
        kept.append(release_id)
    return tuple(kept)


def _manifest(release_id: ReleaseId) -> str:
    return f"{RELEASES}/{str(release_id).removeprefix('v')}.json"


def _iso(now: datetime | None) -> str:
    return (now or datetime.now(UTC)).isoformat(timespec="milliseconds")


def _seal(contents: dict[str, Any]) -> bytes:
    body = json.dumps(contents, sort_keys=True)
    seal = hashlib.sha256(body.encode()).hexdigest()
    return json.dumps({**contents, "seal": seal}, sort_keys=True, indent=1).encode() + b"\n"


def _unseal(data: bytes, uri: str, remedy: str) -> dict[str, Any]:
    try:
        contents: dict[str, Any] = json.loads(data)
        seal = contents.pop("seal")
        found = contents.get("format")
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise CorruptArtifactError(uri, f"no sealed JSON ({error})", "a sealed JSON object", remedy) from error
    digest = hashlib.sha256(json.dumps(contents, sort_keys=True).encode()).hexdigest()
    if digest != seal:
        raise CorruptArtifactError(uri, f"contents with seal {digest[:12]}", f"seal {str(seal)[:12]}", remedy)
    if found != FORMAT:
        raise CorruptArtifactError(uri, f"format {found}", f"format {FORMAT} of this lockstep", remedy)
    return contents


def _release_to_dict(release: Release) -> dict[str, Any]:
    raw = asdict(release)
    del raw["id"]
    return {
        "format": FORMAT,
        "release": str(release.id),
        "model_version": int(release.id.model_version),
        "snapshot": release.id.snapshot,
        **raw,
    }


def _release_from_dict(raw: dict[str, Any], uri: str) -> Release:
    try:
        return Release(
            id=ReleaseId.parse(raw["release"]),
            parts={role: Part(Kind(p["kind"]), p["uri"], p["digest"]) for role, p in raw["parts"].items()},
            **{name: raw[name] for name in _PLAIN_FIELDS},
        )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise CorruptArtifactError(uri, f"unreadable contents ({error})", "a release manifest") from error


_PLAIN_FIELDS = ("run", "schema", "kv", "data_window", "metrics", "gate", "created_at", "lockstep")


def _serving_to_dict(serving: Serving) -> dict[str, Any]:
    return {
        "format": FORMAT,
        "live": None if serving.live is None else str(serving.live),
        "retained": [str(release_id) for release_id in serving.retained],
        "history": [asdict(transition) for transition in serving.history],
    }
