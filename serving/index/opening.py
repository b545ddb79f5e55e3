"""The door to an index on disk."""

from __future__ import annotations

from pathlib import Path

from lockstep.errors import CorruptArtifactError
from lockstep.tags import Kind, open_artifact
from lockstep.version import ModelVersion
from serving.index.base import Index
from serving.index.brute_force import BruteForceIndex
from serving.index.files import DESCRIPTION, IndexFiles


def open_index(path: Path, model_version: ModelVersion, snapshot: int, digest: str | None = None) -> Index:
    """Open an index of one release, with every byte compared to its tag.

    Args:
        model_version: the version that the caller works for; never None, so nobody opens "some" index.
        digest: of the tag, where a release names it.

    Raises:
        ArtifactError: the folder is no index of this release, or not what was written.
    """
    artifact = open_artifact(path, Kind.INDEX, model_version=model_version, snapshot=snapshot, digest=digest)
    try:
        files = IndexFiles.open(artifact)
    except (ValueError, KeyError, TypeError, OSError) as error:
        raise CorruptArtifactError(path, f"unreadable files ({error})", "the files of an index") from error
    if files.backend == "brute_force":
        return BruteForceIndex(files)
    if files.backend == "scann":
        from serving.index.scann import ScannIndex

        return ScannIndex(files)
    found = f"backend {files.backend!r}"
    raise CorruptArtifactError(artifact / DESCRIPTION, found, "'brute_force' or 'scann' (is this lockstep too old?)")
