"""The evaluation job: what the exported towers retrieve, measured exactly over the full catalogue.

    <artifact>/          kind evaluation; rows = evaluated queries
      report.json        {"model_version", "run", "test": {"model": {"recall@10", "ndcg@10", "coverage@10", ..., "mrr"},
                         "popularity": {...}, "popularity_all_time": {...}, "queries", "candidates", "held_out",
                         "held_out_unknown"}, "validation": {...}}
      report.html        the same for a person
      tag.json

`popularity` ranks by the events of the 30 days before the split's cut, `popularity_all_time` by all training
labels. Held-out candidates that the catalogue does not have cannot be found by anything; they count as missed.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds
import pyarrow.parquet as pq
from numpy.typing import NDArray

from lockstep.errors import DataError, InputMismatchError
from lockstep.model_sections import EvaluateSection
from lockstep.storage import fresh_directory
from lockstep.tags import Artifact, Kind, Tag, open_artifact, write_tag
from lockstep.towers import Tower
from lockstep.version import ModelVersion
from trainer.encoding import check_same_origin
from trainer.metrics import RankingMeasures
from trainer.report import html_report

_log = logging.getLogger(__name__)
_EMBED_ROWS = 4096
_SCORES_AT_ONCE = 16_000_000
"""Elements of a block of the score matrix: 64 MB."""


@dataclass(frozen=True)
class Catalogue:
    """The candidates of the evaluation in the order of their index.

    Args:
        ids: [candidates] string.
        popular_30d, popular_30d_validation, count: [candidates] float32 scores of the popularity baselines.
    """

    ids: pa.Array
    popular_30d: NDArray[np.float32]
    popular_30d_validation: NDArray[np.float32]
    count: NDArray[np.float32]


@dataclass(frozen=True)
class Queries:
    """The queries of one split.

    Args:
        history, targets: [queries] distinct catalogue indices each.
        held_out: [queries] number of distinct held-out ids, those unknown to the catalogue included.
    """

    features: pa.StructArray
    history: list[NDArray[np.int64]]
    targets: list[NDArray[np.int64]]
    held_out: NDArray[np.int64]


def run(
    *,
    examples: Path,
    entities: Path,
    query_tower: Path,
    candidate_tower: Path,
    evaluation: Path,
    model_version: ModelVersion,
    run_id: str,
    section: EvaluateSection,
) -> Tag:
    """Measure both towers on the validation and the test split against popularity.

    The towers are those that serving will load, fed with raw features, so the report covers export and
    preprocessing as well as training.

    Args:
        examples: input, kind `examples`: evaluation queries and catalogue.
        entities: input, kind `entities`, of the same run: the candidates' features.
        query_tower, candidate_tower: inputs, of `model_version`.
        evaluation: output, kind `evaluation`.

    Raises:
        VersionMismatchError: a tower of another version.
        InputMismatchError: inputs of another run or schema, or a catalogue that the entities do not hold.
        DataError: no evaluation queries at all.
    """
    split_artifact = open_artifact(examples, Kind.EXAMPLES)
    entity_artifact = open_artifact(entities, Kind.ENTITIES)
    check_same_origin(split_artifact, entity_artifact)
    towers = {
        "query": Tower.open(query_tower, Kind.QUERY_TOWER, model_version),
        "candidate": Tower.open(candidate_tower, Kind.CANDIDATE_TOWER, model_version),
    }
    for tower in towers.values():
        _check_tower(tower.artifact, split_artifact)
    catalogue = read_catalogue(split_artifact)
    report: dict[str, Any] = {"model_version": int(model_version), "run": run_id}
    vectors: dict[Path, NDArray[np.float32]] = {}
    for split in ("validation", "test"):
        started = time.monotonic()
        source = candidates_of_split(split_artifact, entity_artifact, split)
        if source not in vectors:
            vectors = {source: embed(towers["candidate"], candidate_features(source, catalogue))}
        report[split] = evaluate_split(split, split_artifact, catalogue, towers["query"], vectors[source], section)
        _log.info("%s: %d queries in %.0f s", split, report[split]["queries"], time.monotonic() - started)
    if not report["test"]["queries"]:
        raise DataError(f"{examples} has no test queries: move [data] test_from back or raise test_share")
    fresh_directory(evaluation)
    (evaluation / "report.json").write_text(json.dumps(report, indent=1, sort_keys=True) + "\n", encoding="utf-8")
    (evaluation / "report.html").write_text(html_report(report), encoding="utf-8")
    inputs = {
        "examples": split_artifact.tag,
        "entities": entity_artifact.tag,
        **{f"{side}_tower": tower.artifact.tag for side, tower in towers.items()},
    }
    return write_tag(
        evaluation,
        Kind.EVALUATION,
        run=run_id,
        schema=split_artifact.tag.schema,
        rows=sum(report[split]["queries"] for split in ("validation", "test")),
        model_version=model_version,
        inputs=inputs,
    )


def evaluate_split(
    split: str,
    examples: Artifact,
    catalogue: Catalogue,
    query_tower: Tower,
    candidates: NDArray[np.float32],
    section: EvaluateSection,
) -> dict[str, Any]:
    """The report of one split; measures are {} where it has no queries."""
    queries = read_queries(examples.path / split, catalogue)
    recent = catalogue.popular_30d if split == "test" else catalogue.popular_30d_validation
    facts = {
        "queries": len(queries.targets),
        "candidates": len(catalogue.ids),
        "held_out": int(queries.held_out.sum()),
        "held_out_unknown": int(queries.held_out.sum()) - sum(map(len, queries.targets)),
    }
    if not queries.targets:
        return {"model": {}, "popularity": {}, "popularity_all_time": {}, **facts}
    vectors = embed(query_tower, queries.features)
    measures = {
        "model": measure(queries, _products(vectors, candidates), section),
        "popularity": measure(queries, _repeated(recent, len(vectors)), section),
        "popularity_all_time": measure(queries, _repeated(catalogue.count, len(vectors)), section),
    }
    return measures | facts


def measure(queries: Queries, blocks: Iterator[NDArray[np.float32]], section: EvaluateSection) -> dict[str, float]:
    """The measures of one way to score.

    Args:
        blocks: [rows, candidates] scores, one block after the other over all queries; they are overwritten.
    """
    measures: RankingMeasures | None = None
    row = 0
    for block in blocks:
        measures = measures or RankingMeasures(block.shape[1], section.ks)
        for scores in block:
            if section.exclude_history:
                scores[queries.history[row]] = -np.inf
            measures.add(scores, queries.targets[row], int(queries.held_out[row]))
            row += 1
    return measures.means() if measures is not None else {}


def embed(tower: Tower, features: pa.StructArray) -> NDArray[np.float32]:
    """Embed rows of raw features in batches: [rows, dim]."""
    parts = [
        tower.embed(features[start : start + _EMBED_ROWS]).vectors for start in range(0, len(features), _EMBED_ROWS)
    ]
    return np.concatenate(parts)


def read_catalogue(examples: Artifact) -> Catalogue:
    """Read `catalogue.parquet`, whose row order is the candidate index."""
    table = pq.read_table(examples / "catalogue.parquet")
    columns = {
        name: pc.fill_null(table[name], 0).to_numpy().astype(np.float32)
        for name in ("popular_30d", "popular_30d_validation", "count")
    }
    return Catalogue(table["id"].combine_chunks().cast(pa.string()), **columns)


def candidates_of_split(examples: Artifact, entities: Artifact, split: str) -> Path:
    """The folder of the candidates as a split may know them: as of its cut where they change, else as of now."""
    as_of_cut = examples.path / f"{split}_candidates"
    return as_of_cut if as_of_cut.is_dir() else entities.path / "candidates"


def candidate_features(folder: Path, catalogue: Catalogue) -> pa.StructArray:
    """The features of every candidate of the catalogue, in its order.

    Args:
        folder: Parquet files with `id` and `features`.

    Raises:
        InputMismatchError: a candidate is not in them.
    """
    table = ds.dataset(folder, format="parquet").to_table(["id", "features"])
    rows = pc.index_in(catalogue.ids, value_set=table["id"].combine_chunks().cast(pa.string()))
    if rows.null_count:
        missing = catalogue.ids.filter(pc.is_null(rows))
        raise InputMismatchError(
            f"candidate {missing[0].as_py()!r} and {len(missing) - 1} others",
            "the catalogue",
            "present",
            f"candidates at {folder}",
            "absent",
        )
    return _struct(table["features"]).take(rows)


def read_queries(directory: Path, catalogue: Catalogue) -> Queries:
    """Read the queries of one split that have something held out; none where the split has no files."""
    files = sorted(directory.glob("part-*.parquet"))
    if not files:
        return Queries(pa.array([], pa.struct([])), [], [], np.empty(0, dtype=np.int64))
    table = pa.concat_tables([pq.read_table(file) for file in files])
    table = table.filter(pc.greater(pc.fill_null(pc.list_value_length(table["targets"]), 0), 0))
    return Queries(
        _struct(table["features"]),
        _indices(table["history"], catalogue),
        _indices(table["targets"], catalogue),
        np.array([len(set(ids)) for ids in table["targets"].to_pylist()], dtype=np.int64),
    )


def _indices(column: pa.ChunkedArray, catalogue: Catalogue) -> list[NDArray[np.int64]]:
    """The distinct catalogue indices of each list of ids."""
    lists = column.combine_chunks()
    flat = pc.index_in(lists.flatten().cast(pa.string()), value_set=catalogue.ids)
    indices = pc.fill_null(flat, -1).to_numpy(zero_copy_only=False).astype(np.int64)
    ends = np.cumsum(pc.fill_null(pc.list_value_length(lists), 0).to_numpy(zero_copy_only=False))
    rows = np.split(indices, ends[:-1]) if len(ends) else []
    return [np.unique(row[row >= 0]) for row in rows]


def _products(vectors: NDArray[np.float32], candidates: NDArray[np.float32]) -> Iterator[NDArray[np.float32]]:
    rows = max(1, _SCORES_AT_ONCE // len(candidates))
    for start in range(0, len(vectors), rows):
        yield vectors[start : start + rows] @ candidates.T


def _repeated(scores: NDArray[np.float32], rows: int) -> Iterator[NDArray[np.float32]]:
    for _ in range(rows):
        yield scores[np.newaxis].copy()


def _struct(column: pa.ChunkedArray) -> pa.StructArray:
    return column.combine_chunks() if column.num_chunks != 1 else column.chunk(0)


def _check_tower(tower: Artifact, examples: Artifact) -> None:
    used = (tower.tag.inputs or {}).get("examples")
    facts = (("schema", tower.tag.schema, examples.tag.schema), ("examples", used, examples.tag.digest))
    for what, found, expected in facts:
        if found != expected:
            left, right = f"{tower.tag.kind} at {tower.path}", f"examples at {examples.path}"
            raise InputMismatchError(what, left, str(found)[:12], right, expected[:12])
