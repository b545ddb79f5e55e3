"""What `lockstep export-candidates` does: the candidates of a release, as files for Vertex AI Vector Search."""

from __future__ import annotations

from pathlib import Path

from lockstep.errors import ReleaseError
from lockstep.registry import Registry
from lockstep.storage import open_root
from lockstep.tags import Kind
from lockstep.version import ReleaseId
from serving.index.vector_search import BATCH_ROOT, export_candidates


def export(root: str, release: str | None, file_format: str, output: Path) -> str:
    """Export a release's candidate embeddings, the live one's by default, and say what to do with them.

    Raises:
        ReleaseError: there is no such release.
    """
    storage = open_root(root)
    registry = Registry(storage)
    release_id = registry.serving().live if release is None else ReleaseId.parse(release)
    if release_id is None:
        raise ReleaseError(f"nothing is published in {storage.root}: `lockstep run --config FILE` publishes a release")
    part = registry.release(release_id).part(Kind.CANDIDATE_EMBEDDINGS)
    made = export_candidates(
        storage.local_copy(part.uri, Path.home() / ".cache" / "lockstep"),
        output,
        file_format,
        model_version=release_id.model_version,
        snapshot=release_id.snapshot,
        digest=part.digest,
    )
    return (
        f"exported {made.rows} candidates of release {release_id}, {made.dim} floats each, to {output / BATCH_ROOT} "
        f"({len(made.files)} {file_format} files): copy that folder to a bucket and give it as contentsDeltaUri; "
        f"name the index after {release_id.model_version}, for Vector Search keeps no version"
    )
