"""Which releases are compared, and the parts of each that are needed for it."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from lockstep.embeddings import read_embeddings
from lockstep.errors import ArtifactError, DataError, LockstepError, ReleaseError, SchemaError
from lockstep.features import arrow_type
from lockstep.registry import Registry, Release
from lockstep.schema import Feature, Schema
from lockstep.storage import Storage
from lockstep.tags import Artifact, Kind, open_artifact
from lockstep.version import ModelVersion, ReleaseId
from trainer.evaluation.queries import Catalogue, Queries, read_catalogue, read_queries
from trainer.skew.mixing import CandidateVectors, take

_log = logging.getLogger(__name__)
_CACHE = Path.home() / ".cache" / "lockstep"
_FEWEST = 2


@dataclass(frozen=True)
class Compared:
    """One model version, by its newest release."""

    release: Release
    query_tower: Artifact
    candidate_embeddings: Artifact
    schema: Schema

    @property
    def model_version(self) -> ModelVersion:
        """Its number."""
        return self.release.id.model_version


def choose(registry: Registry, versions: Sequence[ModelVersion]) -> list[ReleaseId]:
    """The newest release of each version, oldest version first.

    Args:
        versions: none for those of the live and the retained releases.

    Raises:
        ReleaseError: nothing is published, a version has no release, or there are fewer than two versions.
    """
    serving, root = registry.serving(), registry.storage.root
    newest = {release.model_version: release for release in registry.releases()}  # ascending, so the last one stays
    if not versions:
        if serving.live is None:
            raise ReleaseError(f"nothing is published in {root}: `lockstep run --config FILE` publishes a release")
        versions = [release.model_version for release in (serving.live, *serving.retained)]
    for version in versions:
        if version not in newest:
            there = ", ".join(map(str, newest)) or "no version"
            raise ReleaseError(f"{version} has no release in {root}, which has releases of {there}")
    chosen = [newest[version] for version in sorted(set(versions))]
    if len(chosen) < _FEWEST:
        raise ReleaseError(
            f"there is one version to compare in {root}, {chosen[0].model_version}: train again (`lockstep run`), "
            "then compare"
        )
    return chosen


def open_versions(registry: Registry, chosen: Sequence[ReleaseId]) -> tuple[list[Compared], dict[str, str]]:
    """Open what the comparison needs of each release, and leave out those that do not have it any more.

    The newest that can be opened says what is asked, so another version must have been made for queries that have the
    features of its own tower.

    Returns:
        Oldest version first; and of those left out the reason.

    Raises:
        ReleaseError: fewer than two are left.
    """
    opened: list[Compared] = []
    left_out: dict[str, str] = {}
    for release_id in reversed(chosen):
        try:
            version = _open(registry, release_id)
            if opened:
                _check_features(version, opened[0])
            opened.append(version)
        except (LockstepError, OSError) as error:
            left_out[str(release_id.model_version)] = str(error)
            _log.warning("%s is left out: %s", release_id.model_version, error)
    if len(opened) < _FEWEST:
        reasons = "; ".join(f"{version}: {reason}" for version, reason in left_out.items())
        left = f"only {opened[0].model_version} is left" if opened else "no version is left"
        raise ReleaseError(f"{left} to compare ({reasons}): train again (`lockstep run`), then compare")
    return opened[::-1], left_out


def read_asked(storage: Storage, newest: Compared, count: int, seed: int) -> tuple[Catalogue, Queries, int]:
    """The test queries of the newest version's run, and the catalogue that they were made with.

    Args:
        count: at most so many, drawn evenly.

    Returns:
        The catalogue, the queries, and how many there were.

    Raises:
        ArtifactError: the examples are gone or damaged.
        DataError: they have no test queries.
    """
    try:
        examples = _part(storage, newest.release, Kind.EXAMPLES, verify=False)
        for name in examples.tag.files:  # only these are read; the training records may be large
            if name == "catalogue.parquet" or name.startswith("test/"):
                examples.read(name)
    except ArtifactError as error:
        raise ArtifactError(
            f"the test queries of {newest.model_version}, which all versions are asked, cannot be read: {error}; or "
            "leave it out with --versions"
        ) from error
    catalogue = read_catalogue(examples)
    queries = read_queries(examples.path / "test", catalogue)
    if not len(queries):
        raise DataError(f"{examples.path} has no test queries: move [data] test_from back or raise test_share")
    there = len(queries)
    if count < there:
        queries = take(queries, np.sort(np.random.default_rng(seed).choice(there, count, replace=False)))
    return catalogue, queries, there


def read_candidates(version: Compared, catalogue: Catalogue) -> CandidateVectors:
    """A version's candidate vectors by id, in the order of the catalogue; what the catalogue lacks is left out."""
    vectors: NDArray[np.float32] | None = None
    held = np.zeros(len(catalogue.ids), dtype=bool)
    for batch, embeddings in read_embeddings(version.candidate_embeddings):
        if vectors is None:
            vectors = np.zeros((len(held), embeddings.vectors.shape[1]), dtype=np.float32)
        found = pc.index_in(batch.column("id").cast(pa.string()), value_set=catalogue.ids)
        known = found.is_valid().to_numpy(zero_copy_only=False)
        places = found.drop_null().to_numpy().astype(np.int64)
        vectors[places] = embeddings.vectors[known]
        held[places] = True
    if vectors is None or not held.any():
        rows = version.candidate_embeddings.tag.rows
        raise DataError(
            f"none of the {len(held):,} candidates of the test queries is among the {rows:,} of {version.release.id}: "
            "these are different data; leave it out with --versions"
        )
    return CandidateVectors(vectors, held)


def _open(registry: Registry, release_id: ReleaseId) -> Compared:
    release = registry.release(release_id)
    tower, embeddings = (
        _part(registry.storage, release, kind) for kind in (Kind.QUERY_TOWER, Kind.CANDIDATE_EMBEDDINGS)
    )
    return Compared(release, tower, embeddings, Schema.from_json(tower.read("schema.json")))


def _part(storage: Storage, release: Release, kind: Kind, verify: bool = True) -> Artifact:
    part = release.part(kind)
    version = None if kind is Kind.EXAMPLES else release.id.model_version
    path = storage.local_copy(part.uri, _CACHE)
    return open_artifact(path, kind, model_version=version, digest=part.digest, verify=verify)


def _check_features(version: Compared, newest: Compared) -> None:
    """Whether the newest version's queries have what a tower takes: the same columns under the same names."""
    asked, wanted = _meanings(newest.schema.query), _meanings(version.schema.query)
    other = sorted(name for name, meaning in wanted.items() if asked.get(name) != meaning)
    if other:
        raise SchemaError(
            f"its query tower takes {', '.join(other)}, which the test queries of {newest.model_version} do not have, "
            "or have of another type or column"
        )


def _meanings(features: Mapping[str, Feature]) -> dict[str, tuple[object, ...]]:
    return {
        name: (arrow_type(feature), feature.columns, feature.size if feature.type == "vector" else None)
        for name, feature in features.items()
    }
