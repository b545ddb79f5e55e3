"""The gate's checks of what is on disk: lineage, measured recall, embeddings, the key-value store, the fallback."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from lockstep.config import GateSection
from lockstep.embeddings import VersionedEmbeddings, read_embeddings
from lockstep.tags import Artifact, Kind
from lockstep.version import ReleaseId
from serving.fallback import PopularCandidates
from serving.index import Index
from serving.index.files import duplicate_ids
from serving.index.vectors import UNIT_TOLERANCE
from serving.kv import QueryStore

MADE_FROM: Mapping[Kind, tuple[Kind, ...]] = {
    Kind.EVALUATION: (Kind.QUERY_TOWER, Kind.CANDIDATE_TOWER),
    Kind.QUERY_EMBEDDINGS: (Kind.QUERY_TOWER, Kind.ENTITIES),
    Kind.CANDIDATE_EMBEDDINGS: (Kind.CANDIDATE_TOWER, Kind.ENTITIES),
    Kind.INDEX: (Kind.CANDIDATE_EMBEDDINGS,),
    Kind.KV_LOAD: (Kind.QUERY_EMBEDDINGS,),
}
"""What each part must have been made from, by the digests in its tag."""
SIDES = (
    (Kind.QUERY_EMBEDDINGS, Kind.QUERY_TOWER, "queries"),
    (Kind.CANDIDATE_EMBEDDINGS, Kind.CANDIDATE_TOWER, "candidates"),
)


@dataclass(frozen=True)
class Check:
    """One measured value against its limit."""

    name: str
    value: float | str | None
    limit: float | str
    passed: bool
    note: str = ""

    @property
    def shown(self) -> str:
        """The value, short."""
        return f"{self.value:.4g}" if isinstance(self.value, float) else str(self.value)

    @property
    def because(self) -> str:
        """The note, as the end of a sentence."""
        return f" ({self.note})" if self.note else ""


@dataclass(frozen=True)
class Subject:
    """The release under judgement, its parts opened and their bytes verified."""

    release_id: ReleaseId
    parts: Mapping[Kind, Artifact]
    index: Index
    store: QueryStore
    section: GateSection


def at_least(name: str, value: float, limit: float, note: str = "") -> Check:
    """A check with a floor; NaN fails."""
    return Check(name, float(value), limit, bool(value >= limit), note)


def at_most(name: str, value: float, limit: float, note: str = "") -> Check:
    """A check with a ceiling; NaN fails."""
    return Check(name, float(value), limit, bool(value <= limit), note)


def check_lineage(subject: Subject) -> Iterator[Check]:
    """Every part was made from the very parts beside it, by one schema and of one snapshot."""
    tags = {kind: part.tag for kind, part in subject.parts.items()}
    for kind, sources in MADE_FROM.items():
        inputs = set((tags[kind].inputs or {}).values())
        missing = [str(source) for source in sources if tags[source].digest not in inputs]
        note = f"its tag names other {' and '.join(missing)}" if missing else ""
        yield Check(f"lineage of {kind}", "another" if missing else "these parts", "these parts", not missing, note)
    schemas = {tag.schema for tag in tags.values()}
    yield at_most("schemas among the parts", len(schemas), 1)
    snapshots = {tags[kind].snapshot for kind in (*MADE_FROM, Kind.KV_LOAD) if kind is not Kind.EVALUATION}
    yield at_most("snapshots among the parts", len(snapshots), 1)


def check_recall(subject: Subject) -> Iterator[Check]:
    """Recall on the test split, against the floor and against popularity."""
    section = subject.section
    test = json.loads((subject.parts[Kind.EVALUATION] / "report.json").read_bytes())["test"]
    name = f"recall@{section.k}"
    if name not in test["model"]:
        measured = sorted(key for key in test["model"] if key.startswith("recall@"))
        note = f"the evaluation measured {measured}: add {section.k} to [evaluate] ks or change [gate] k"
        yield Check(name, None, section.min_recall, False, note)
        return
    recall, popularity = test["model"][name], test["popularity"][name]
    queries = f"{test['queries']} test queries"
    yield at_least(name, recall, section.min_recall, queries)
    floor = section.min_recall_vs_popularity * popularity
    yield at_least(
        f"{name} vs popularity", recall, floor, f"{section.min_recall_vs_popularity:g} x {popularity:.4g}, {queries}"
    )


def check_embeddings(subject: Subject) -> Iterator[Check]:
    """Both files hold finite unit vectors, one for each entity."""
    for kind, _, side in SIDES:
        not_finite = not_unit = 0
        columns = []
        for batch, embeddings in read_embeddings(subject.parts[kind]):
            lengths = np.sqrt(np.einsum("ij,ij->i", embeddings.vectors, embeddings.vectors, dtype=np.float64))
            not_finite += int((~np.isfinite(lengths)).sum())
            not_unit += int((~(np.abs(lengths - 1) <= UNIT_TOLERANCE)).sum())
            columns.append(batch.column("id"))
        ids = pa.chunked_array(columns, pa.string())
        yield at_most(f"{side}: vectors that are not finite", not_finite, 0)
        yield at_most(f"{side}: vectors of zero or other than unit length", not_unit, 0)
        yield at_most(f"{side}: ids that come twice", len(duplicate_ids(ids)), 0)
        entities = entity_ids(subject, side)
        covered = pc.sum(pc.is_in(entities, value_set=ids)).as_py() or 0
        yield at_least(f"{side}: share embedded", _share(covered, len(entities)), subject.section.min_coverage)
        strangers = len(ids) - (pc.sum(pc.is_in(ids, value_set=entities)).as_py() or 0)
        yield at_most(f"{side}: embedded ids that are no entities", strangers, 0)


def check_kv(subject: Subject) -> Iterator[Check]:
    """The store has published these embeddings, for all entities, and gives back the very vectors."""
    version = subject.release_id.model_version
    source = subject.parts[Kind.QUERY_EMBEDDINGS]
    published = next((found for found in subject.store.versions() if found.model_version == version), None)
    same = published is not None and published.source == source.tag.digest
    yield Check("key-value store: source", "these embeddings" if same else "another", "these embeddings", same)
    entities = len(entity_ids(subject, "queries"))
    stored = subject.store.count(version)
    yield at_least("key-value store: share of entities", _share(stored, entities), subject.section.min_coverage)
    wrong = checked = 0
    for entity, embedding in sample(source, subject.section.ann_queries):
        found = subject.store.find(entity, version)
        wrong += found is None or not np.array_equal(found.vector, embedding.vectors[0])
        checked += 1
    yield at_most("key-value store: vectors unlike the file's", wrong, 0, f"of {checked}")


def check_fallback(subject: Subject) -> Iterator[Check]:
    """There is a popularity list to fall back on."""
    popular = PopularCandidates.open(subject.parts[Kind.ENTITIES].path)
    yield at_least("fallback: popular candidates", len(popular), 1)


def sample(artifact: Artifact, size: int) -> Iterator[tuple[str, VersionedEmbeddings]]:
    """Evenly spaced rows of an embeddings file, as (id, batch of one)."""
    wanted = np.unique(np.linspace(0, artifact.tag.rows - 1, min(size, artifact.tag.rows)).astype(np.int64))
    first = 0
    for batch, embeddings in read_embeddings(artifact):
        ids = batch.column("id")
        for row in wanted[(wanted >= first) & (wanted < first + len(batch))] - first:
            one = embeddings.vectors[row : row + 1]
            yield ids[int(row)].as_py(), VersionedEmbeddings(one, embeddings.model_version)
        first += len(batch)


def entity_ids(subject: Subject, side: str) -> pa.ChunkedArray:
    """The ids of all `queries` or `candidates`."""
    paths = sorted((subject.parts[Kind.ENTITIES] / side).glob("part-*.parquet"))
    columns = [pq.read_table(path, columns=["id"]).column("id") for path in paths]
    return pa.chunked_array([chunk for column in columns for chunk in column.chunks], pa.string())


def _share(part: int, whole: int) -> float:
    return part / whole if whole else float("nan")
