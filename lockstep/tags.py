"""Artifacts and the tag that makes a folder one.

    <artifact>/
      <files>      as documented in the module that writes them
      tag.json     written last: what this is, which version made it, the digest of every file

A folder without a tag does not exist as far as any reader is concerned, so a writer that dies leaves nothing
behind that could be mistaken for its output.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path
from typing import Any

from lockstep import __version__
from lockstep.errors import CorruptArtifactError, IncompleteArtifactError, VersionMismatchError, WrongKindError
from lockstep.storage import UNFINISHED, write_atomically
from lockstep.version import ModelVersion

TAG_FILE = "tag.json"
FORMAT = 1


class Kind(StrEnum):
    """What an artifact is; the step that writes each is in docs/architecture.md."""

    ENTITIES = "entities"
    EXAMPLES = "examples"
    PREPROCESSING = "preprocessing"
    QUERY_TOWER = "query_tower"
    CANDIDATE_TOWER = "candidate_tower"
    EVALUATION = "evaluation"
    QUERY_EMBEDDINGS = "query_embeddings"
    CANDIDATE_EMBEDDINGS = "candidate_embeddings"
    INDEX = "index"
    KV_LOAD = "kv_load"
    VERDICT = "verdict"


@dataclass(frozen=True)
class FileRecord:
    """One file of an artifact: its size and SHA-256."""

    bytes: int
    digest: str


@dataclass(frozen=True)
class Tag:
    """The contents of `tag.json`.

    `model_version` and `snapshot` are None where an artifact is made before there is one: examples and
    entities belong to a run. `inputs` names, by role, the digests of the tags that this artifact was made
    from, so a release can be followed back to its data.
    """

    kind: Kind
    run: str
    schema: str
    rows: int
    files: Mapping[str, FileRecord]
    model_version: ModelVersion | None = None
    snapshot: int | None = None
    inputs: Mapping[str, str] | None = None
    created_at: str = ""
    lockstep: str = __version__
    format: int = FORMAT

    @property
    def digest(self) -> str:
        """SHA-256 of the tag itself, which covers every file through its digest."""
        return hashlib.sha256(self.to_json()).hexdigest()

    def to_json(self) -> bytes:
        """The canonical bytes of `tag.json`: sorted keys, so equal tags are equal bytes."""
        return json.dumps(asdict(self), sort_keys=True, indent=1).encode() + b"\n"

    @classmethod
    def from_json(cls, data: bytes, path: Path) -> Tag:
        """Read a tag, or say that it is corrupt."""
        try:
            raw: dict[str, Any] = json.loads(data)
            if raw["format"] != FORMAT:
                raise CorruptArtifactError(path, f"tag format {raw['format']}", f"format {FORMAT} of this lockstep")
            version = raw["model_version"]
            return cls(
                **{
                    **raw,
                    "kind": Kind(raw["kind"]),
                    "model_version": None if version is None else ModelVersion(version),
                    "files": {name: FileRecord(**record) for name, record in raw["files"].items()},
                }
            )
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise CorruptArtifactError(path, f"an unreadable tag ({error})", "a JSON object of tag format 1") from error


@dataclass(frozen=True)
class Artifact:
    """A folder whose tag was read and checked."""

    path: Path
    tag: Tag

    def __truediv__(self, name: str) -> Path:
        return self.path / name

    def read(self, name: str) -> bytes:
        """One small file, compared with the tag as it is read; for readers that do not need the rest.

        Raises:
            CorruptArtifactError: it is missing, or not what was written.
        """
        path = self.path / name
        record = self.tag.files.get(name)
        if record is None:
            raise CorruptArtifactError(self.path, f"no {name}", "one")
        try:
            data = path.read_bytes()
        except OSError as error:
            raise CorruptArtifactError(path, str(error.strerror), f"{record.bytes} bytes") from error
        digest = hashlib.sha256(data).hexdigest()
        if digest != record.digest:
            raise CorruptArtifactError(path, f"sha256 {digest[:12]}", f"sha256 {record.digest[:12]}")
        return data


def write_tag(
    directory: Path,
    kind: Kind,
    *,
    run: str,
    schema: str,
    rows: int,
    model_version: ModelVersion | None = None,
    snapshot: int | None = None,
    inputs: Mapping[str, Tag] | None = None,
    now: datetime | None = None,
) -> Tag:
    """Turn a folder whose files are complete into an artifact.

    Every file is hashed and flushed to disk before the tag appears under its name in one rename.

    Args:
        directory: the folder; everything in it is part of the artifact.
        inputs: the tags of the artifacts that this one was made from, by role.
        now: the moment of writing; the clock's by default.
    """
    files = {}
    for path in _files(directory):
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
            os.fsync(file.fileno())
        files[path.relative_to(directory).as_posix()] = FileRecord(path.stat().st_size, digest)
    tag = Tag(
        kind=kind,
        run=run,
        schema=schema,
        rows=rows,
        files=files,
        model_version=model_version,
        snapshot=snapshot,
        inputs={role: used.digest for role, used in (inputs or {}).items()},
        created_at=(now or datetime.now(UTC)).isoformat(timespec="milliseconds"),
    )
    write_atomically(directory / TAG_FILE, tag.to_json())
    # Not before: a folder with neither mark nor tag would be taken for somebody else's.
    (directory / UNFINISHED).unlink(missing_ok=True)
    return tag


def read_tag(directory: Path) -> Tag:
    """Read the tag of an artifact without touching its files."""
    path = directory / TAG_FILE
    try:
        data = path.read_bytes()
    except OSError as error:
        what = "it has no readable tag.json" if path.exists() else "it has no tag.json"
        raise IncompleteArtifactError(directory, what if directory.exists() else "there is no such folder") from error
    return Tag.from_json(data, path)


def open_artifact(
    directory: Path,
    kind: Kind,
    *,
    model_version: ModelVersion | None = None,
    snapshot: int | None = None,
    digest: str | None = None,
    verify: bool = True,
) -> Artifact:
    """Open an artifact for reading, checking everything that its reader relies on.

    This is the only door to an artifact: a reader names the kind and the version that it expects.

    Args:
        model_version: the version that the reader works for; None where the artifact has none or any will do.
        snapshot: likewise for the snapshot.
        digest: the digest of the tag, where a release manifest names it.
        verify: also hash every file; readers do so once, on first open.

    Raises:
        IncompleteArtifactError: no tag.
        WrongKindError: another kind of artifact.
        VersionMismatchError: another model version or snapshot.
        CorruptArtifactError: a file or the tag is not what was written.
    """
    directory = Path(directory)
    tag = read_tag(directory)
    if tag.kind is not kind:
        raise WrongKindError(directory, tag.kind, kind)
    if model_version is not None and tag.model_version != model_version:
        found = "no version" if tag.model_version is None else tag.model_version
        remedy = f"rerun the step that writes {kind} for {model_version}"
        raise VersionMismatchError(f"{kind} at {directory}", found, "its reader", model_version, remedy)
    if snapshot is not None and tag.snapshot != snapshot:
        found_snapshot = f"{tag.model_version}.{tag.snapshot}"
        remedy = f"rerun the step that writes {kind} for snapshot {snapshot}"
        raise VersionMismatchError(
            f"{kind} at {directory}", found_snapshot, "its reader", f"{tag.model_version}.{snapshot}", remedy
        )
    if digest is not None and tag.digest != digest:
        raise CorruptArtifactError(directory / TAG_FILE, f"tag digest {tag.digest[:12]}", f"{digest[:12]} (release)")
    if verify:
        verify_files(directory, tag)
    return Artifact(directory, tag)


def verify_files(directory: Path, tag: Tag) -> None:
    """Compare every byte of an artifact with its tag.

    Raises:
        CorruptArtifactError: a file is missing, extra, cut short or changed.
    """
    present = {path.relative_to(directory).as_posix() for path in _files(directory)}
    for name in sorted(present.symmetric_difference(tag.files)):
        found, expected = ("no such file", "one") if name in tag.files else ("a file", "no such file")
        raise CorruptArtifactError(directory / name, found, expected)
    for name, record in tag.files.items():
        path = directory / name
        size = path.stat().st_size
        if size != record.bytes:
            raise CorruptArtifactError(path, f"{size} bytes", f"{record.bytes} bytes")
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        if digest != record.digest:
            raise CorruptArtifactError(path, f"sha256 {digest[:12]}", f"sha256 {record.digest[:12]}")


def _files(directory: Path) -> list[Path]:
    marks = (directory / TAG_FILE, directory / UNFINISHED)
    return sorted(path for path in directory.rglob("*") if path.is_file() and path not in marks)
