"""The gate (validate_release): the whole system of one release judged together; it fails closed.

<artifact>/            kind verdict
  verdict.json         {"passed": bool, "checks": [{"name", "value", "limit", "passed", "note"}]}
  tag.json             inputs = every part that was judged; rows = checks
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from lockstep.config import GateSection, KVSection
from lockstep.errors import GateError
from lockstep.storage import fresh_directory
from lockstep.tags import Artifact, Kind, Tag, open_artifact, write_tag
from lockstep.version import ModelVersion, ReleaseId
from serving.gate_checks import Check, Subject, check_embeddings, check_fallback, check_kv, check_lineage, check_recall
from serving.gate_index import check_index
from serving.gate_towers import check_canaries
from serving.index import open_index
from serving.kv import open_store

_LOG = logging.getLogger(__name__)
_CHECKS: tuple[Callable[[Subject], Iterable[Check]], ...] = (
    check_lineage,
    check_recall,
    check_embeddings,
    check_index,
    check_kv,
    check_canaries,
    check_fallback,
)


def run(
    *,
    evaluation: Path,
    entities: Path,
    query_tower: Path,
    candidate_tower: Path,
    query_embeddings: Path,
    candidate_embeddings: Path,
    index: Path,
    kv_load: Path,
    kv_root: Path,
    verdict: Path,
    model_version: ModelVersion,
    run_id: str,
    section: GateSection,
) -> Tag:
    """Judge a release; whatever cannot be checked counts as failed.

    Args:
        kv_root: the folder of the embedded store.
        verdict: the folder to write; it holds every check also when some failed.

    Raises:
        ArtifactError: a part is missing, broken or of another version; there is no verdict then.
        GateError: a check failed.
    """
    paths = {
        Kind.EVALUATION: evaluation,
        Kind.ENTITIES: entities,
        Kind.QUERY_TOWER: query_tower,
        Kind.CANDIDATE_TOWER: candidate_tower,
        Kind.QUERY_EMBEDDINGS: query_embeddings,
        Kind.CANDIDATE_EMBEDDINGS: candidate_embeddings,
        Kind.INDEX: index,
        Kind.KV_LOAD: kv_load,
    }
    parts = _open_parts(paths, model_version)
    snapshot = parts[Kind.CANDIDATE_EMBEDDINGS].tag.snapshot
    assert snapshot is not None, "embeddings always have a snapshot"
    release_id = ReleaseId(model_version, snapshot)
    receipt = json.loads((parts[Kind.KV_LOAD] / "kv.json").read_bytes())
    with open_store(KVSection(backend=receipt["backend"]), kv_root) as store:
        subject = Subject(release_id, parts, open_index(index, model_version, snapshot), store, section)
        checks = [check for checker in _CHECKS for check in _checked(checker, subject)]
    tag = _write(verdict, checks, parts, release_id, run_id)
    failures = [
        f"{check.name} is {check.shown}, limit {check.limit}{check.because}" for check in checks if not check.passed
    ]
    if failures:
        raise GateError(release_id, failures, verdict / "verdict.json")
    return tag


def _open_parts(paths: Mapping[Kind, Path], model_version: ModelVersion) -> dict[Kind, Artifact]:
    parts = {}
    for kind, path in paths.items():
        versioned = None if kind is Kind.ENTITIES else model_version
        # The index is verified by open_index.
        parts[kind] = open_artifact(path, kind, model_version=versioned, verify=kind is not Kind.INDEX)
    return parts


def _checked(checker: Callable[[Subject], Iterable[Check]], subject: Subject) -> list[Check]:
    try:
        checks = list(checker(subject))
    except Exception as error:
        _LOG.exception("%s could not be carried out", checker.__name__)
        checks = [Check(checker.__name__, None, "carried out", False, f"{type(error).__name__}: {error}")]
    for check in checks:
        _LOG.info("%s %s: %s (limit %s)", "ok  " if check.passed else "FAIL", check.name, check.shown, check.limit)
    return checks


def _write(
    verdict: Path, checks: list[Check], parts: Mapping[Kind, Artifact], release_id: ReleaseId, run_id: str
) -> Tag:
    fresh_directory(verdict)
    contents: dict[str, Any] = {
        "release": str(release_id),
        "passed": all(check.passed for check in checks),
        "checks": [asdict(check) for check in checks],
    }
    (verdict / "verdict.json").write_text(json.dumps(contents, indent=1) + "\n")
    return write_tag(
        verdict,
        Kind.VERDICT,
        run=run_id,
        schema=parts[Kind.QUERY_TOWER].tag.schema,
        rows=len(checks),
        model_version=release_id.model_version,
        snapshot=release_id.snapshot,
        inputs={str(kind): part.tag for kind, part in parts.items()},
    )
