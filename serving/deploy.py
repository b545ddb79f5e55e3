"""The jobs deploy_release and publish_release: bind a release, prove that it answers, and make it live."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from lockstep.config import KVSection
from lockstep.errors import ReleaseError, VersionMismatchError
from lockstep.registry import Part, Registry, Release, Serving
from lockstep.storage import Storage, open_root
from lockstep.tags import Artifact, Kind, open_artifact
from lockstep.version import ReleaseId
from serving.kv import open_store
from serving.retriever import Request, Retriever

PARTS = (
    Kind.EXAMPLES,
    Kind.PREPROCESSING,
    Kind.ENTITIES,
    Kind.EVALUATION,
    Kind.QUERY_TOWER,
    Kind.CANDIDATE_TOWER,
    Kind.QUERY_EMBEDDINGS,
    Kind.CANDIDATE_EMBEDDINGS,
    Kind.INDEX,
    Kind.KV_LOAD,
    Kind.VERDICT,
)
"""What a release is made of."""
_VERSIONED = frozenset(PARTS) - {Kind.EXAMPLES, Kind.PREPROCESSING, Kind.ENTITIES}
_SNAPSHOTS = (Kind.QUERY_EMBEDDINGS, Kind.CANDIDATE_EMBEDDINGS, Kind.INDEX, Kind.KV_LOAD, Kind.VERDICT)
_LOG = logging.getLogger(__name__)


def run(*, root: str, release_id: ReleaseId, run_id: str, parts: Mapping[str, str | Path]) -> Release:
    """Bind every part into a release, answer a query from it exactly as serving will, and register it.

    Registered is not live: that is `publish`. Running it again with the same parts changes nothing.

    Args:
        root: local folder or gs:// prefix.
        parts: role -> folder, for every role of `PARTS`.

    Raises:
        ArtifactError: a part is missing, broken, or of another version or snapshot.
        ReleaseError: the gate did not judge exactly these parts, or the release does not answer.
    """
    storage = open_root(root)
    artifacts = {kind: _open(kind, parts, release_id) for kind in PARTS}
    verdict = _read_json(artifacts[Kind.VERDICT], "verdict.json")
    _check_verdict(release_id, artifacts, verdict)
    release = _release(storage, release_id, run_id, artifacts, verdict)
    _LOG.info("opening %s as serving does", release_id)
    _smoke(storage, release, artifacts[Kind.QUERY_EMBEDDINGS])
    Registry(storage).add_release(release)
    _LOG.info("release %s registered", release_id)
    return release


def publish(*, root: str, release_id: ReleaseId, by: str, why: str, section: KVSection) -> Serving:
    """Make a release live in one compare-and-swap, then drop the embeddings that no release needs any more.

    Args:
        by: who, for the history.
        why: one line, for the history.
        section: how many model versions stay retained.

    Raises:
        ReleaseError: there is no such release.
    """
    storage = open_root(root)
    serving = Registry(storage).publish(release_id, by=by, why=why, keep=section.keep)
    _LOG.info("%s is live", serving.live)
    referred = {one.model_version for one in (serving.live, *serving.retained) if one is not None}
    with open_store(section, Path(storage.resolve("kv"))) as store:
        for version in store.retain(referred):
            _LOG.info("query embeddings of %s removed: no release needs them", version)
    return serving


def _open(kind: Kind, parts: Mapping[str, str | Path], release_id: ReleaseId) -> Artifact:
    try:
        path = Path(parts[kind])
    except KeyError:
        raise ReleaseError(f"release {release_id} needs {kind}: got {sorted(parts)}") from None
    # The gate verified the contents; what serving reads is verified again when it is opened, and what is read here as
    # it is read.
    return open_artifact(
        path,
        kind,
        model_version=release_id.model_version if kind in _VERSIONED else None,
        snapshot=release_id.snapshot if kind in _SNAPSHOTS else None,
        verify=False,
    )


def _check_verdict(release_id: ReleaseId, artifacts: Mapping[Kind, Artifact], verdict: Mapping[str, Any]) -> None:
    path = artifacts[Kind.VERDICT].path
    if verdict["passed"] is not True:
        raise ReleaseError(f"release {release_id} failed the gate ({path}): it is not deployed")
    judged = artifacts[Kind.VERDICT].tag.inputs or {}
    for kind, digest in judged.items():
        found = artifacts[Kind(kind)].tag.digest
        if found != digest:
            raise ReleaseError(
                f"release {release_id}: the gate judged {kind} {digest[:12]} ({path}), but {found[:12]} is to be "
                "deployed: run validate_release on these parts"
            )
    schemas = {kind: artifact.tag.schema for kind, artifact in artifacts.items()}
    expected = schemas[Kind.QUERY_TOWER]
    for kind, schema in schemas.items():
        if schema != expected:
            remedy = "run the whole pipeline with one configuration"
            raise VersionMismatchError(kind, f"schema {schema[:12]}", "the tower", f"schema {expected[:12]}", remedy)


def _release(
    storage: Storage, release_id: ReleaseId, run_id: str, artifacts: Mapping[Kind, Artifact], verdict: Mapping[str, Any]
) -> Release:
    receipt = _read_json(artifacts[Kind.KV_LOAD], "kv.json")
    report = _read_json(artifacts[Kind.EVALUATION], "report.json")
    return Release(
        id=release_id,
        run=run_id,
        schema=artifacts[Kind.QUERY_TOWER].tag.schema,
        parts={
            str(kind): Part(kind, storage.relative(str(artifact.path.resolve())), artifact.tag.digest)
            for kind, artifact in artifacts.items()
        },
        kv={
            "backend": receipt["backend"],
            "namespace": receipt["namespace"],
            # A number does not tell a model from another that was trained under it; the tower's tag does.
            "tower": artifacts[Kind.QUERY_TOWER].tag.digest,
        },
        data_window=_read_json(artifacts[Kind.EXAMPLES], "report.json")["cuts"],
        metrics={split: report[split] for split in ("test", "validation") if split in report},
        gate=dict(verdict),
        # Of the gate, not of now: a retried deployment must write the same bytes.
        created_at=artifacts[Kind.VERDICT].tag.created_at,
    )


def _smoke(storage: Storage, release: Release, queries: Artifact) -> None:
    """Ask for the candidates of one entity that the release must know."""
    first = sorted(queries.path.glob("part-*.parquet"))
    entity = next(
        (
            batch.column("id")[0].as_py()
            for path in first
            for batch in pq.ParquetFile(path).iter_batches(1, columns=["id"])
        ),
        None,
    )
    if entity is None:
        raise ReleaseError(f"release {release.id} has no query entities ({queries.path}): nothing could be asked of it")
    retriever = Retriever(storage)
    try:
        view = retriever.view_of(release)
        answer = retriever.answer_from(view, Request(entity=entity, k=10))
        view.releases[0].popular.get()
        view.releases[0].query_tower.get()
    finally:
        retriever.close()
    if answer.degraded or not answer.candidates:
        why = "; ".join(answer.reasons) or "it found nothing"
        raise ReleaseError(f"release {release.id} does not answer for {entity!r} ({answer.rung}): {why}")
    _LOG.info("%s answers for %r: %s ...", release.id, entity, [candidate for candidate, _ in answer.candidates[:3]])


def _read_json(artifact: Artifact, name: str) -> dict[str, Any]:
    contents: dict[str, Any] = json.loads(artifact.read(name))
    return contents
