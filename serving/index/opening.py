"""The door to an index on disk."""

from __future__ import annotations

from pathlib import Path

from lockstep.errors import CorruptArtifactError
from lockstep.tags import Kind, open_artifact
from lockstep.version import ModelVersion
from serving.index.base import Index
from serving.index.brute_force import BruteForceIndex
from serving.index.files import DESCRIPTION, SCANN, IndexFiles


def open_index(path: Path, model_version: ModelVersion, snapshot: int, digest: str | None = None) -> Index:
    """Open an index of one release, with every byte compared to its tag.

    Args:
        model_version: the version that the caller works for; never None, so nobody opens "some" index.
        digest: of the tag, where a release names it.

    Raises:
        ArtifactError: the folder is no index of this release, or not what was written.
    """
    files = open_files(path, model_version, snapshot, digest)
    if files.backend == "brute_force":
        return BruteForceIndex(files)
    from serving.index.scann import ScannIndex, ScannTree
    from serving.index.tuning import Ladder

    try:
        tree = ScannTree.load(files.path / SCANN, files.parameters["threads"], files.rows)
        return ScannIndex(files, tree, Ladder.from_json(files.parameters["ladder"]))
    except (ValueError, KeyError, TypeError, OSError, RuntimeError) as error:
        raise _unreadable(path, error) from error


def open_files(path: Path, model_version: ModelVersion, snapshot: int, digest: str | None = None) -> IndexFiles:
    """The files of an index, checked as `open_index` does."""
    artifact = open_artifact(path, Kind.INDEX, model_version=model_version, snapshot=snapshot, digest=digest)
    try:
        files = IndexFiles.open(artifact)
    except (ValueError, KeyError, TypeError, OSError) as error:
        raise _unreadable(path, error) from error
    if files.backend not in ("brute_force", "scann"):
        found = f"backend {files.backend!r}"
        raise CorruptArtifactError(
            artifact / DESCRIPTION, found, "'brute_force' or 'scann' (is this lockstep too old?)"
        )
    return files


def _unreadable(path: Path, error: Exception) -> CorruptArtifactError:
    return CorruptArtifactError(path, f"unreadable files ({error})", "the files of an index")
