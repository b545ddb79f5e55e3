"""The evaluation job: what the exported towers retrieve, measured exactly over the full catalogue.

    <artifact>/          kind evaluation; rows = evaluated queries
      report.json        {"model_version", "run",
                          "test": {"model": {"recall@10", "ndcg@10", "hit_rate@10", "coverage@10", "popularity@10", ...,
                                   "mrr", "r_precision", "clicks"}, "popularity": {...}, "popularity_all_time": {...},
                                   "item_knn": {...}, "queries", "candidates", "held_out", "held_out_unknown"},
                          "validation": {...},
                          "baselines": {name: {"settings", "tried": [...]} or {"left_out": reason}},
                          "details": {split: {
                            "intervals": {scorer: {measure: estimate}},
                            "gains": {baseline: {measure: estimate}},       the model's less the baseline's, paired
                            "slices": [{"of", "by", "value", "queries", "held_out", "recall": {scorer: {"recall@10":
                                        estimate}}}],
                            "curves": {scorer: {k: recall}},
                            "held_out_popularity"}}}
                         where an estimate is {"value", "low", "high"}: the mean and its 95 % bootstrap interval
      report.html        the same for a person
      tag.json

`popularity` ranks by the events of the 30 days before the split's cut, `popularity_all_time` by all training
labels; the other baselines are those of trainer.evaluation.baselines. Held-out candidates that the catalogue does not
have cannot be found by anything; they count as missed.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from lockstep.errors import DataError, InputMismatchError
from lockstep.model_sections import EvaluateSection
from lockstep.schema import Schema
from lockstep.storage import fresh_directory
from lockstep.tags import Artifact, Kind, Tag, open_artifact, write_tag
from lockstep.towers import Tower
from lockstep.version import ModelVersion
from trainer.encoding import check_same_origin
from trainer.evaluation.baselines import Baseline, fit_baselines, read_interactions
from trainer.evaluation.comparison import compare
from trainer.evaluation.page import render
from trainer.evaluation.queries import (
    Catalogue,
    Queries,
    candidate_features,
    candidates_of_split,
    read_catalogue,
    read_queries,
)
from trainer.evaluation.ranking import Only, Products, SameForAll, Scorer
from trainer.evaluation.slices import column_slices, standard_slices

_log = logging.getLogger(__name__)
_EMBED_ROWS = 4096
SPLITS = ("validation", "test")


@dataclass
class _Evaluation:
    """What all splits share."""

    examples: Artifact
    entities: Artifact
    towers: Mapping[str, Tower]
    section: EvaluateSection
    catalogue: Catalogue
    schema: Schema
    baselines: Mapping[str, Baseline]
    embedded: dict[Path, NDArray[np.float32]] = field(default_factory=dict)
    """The candidates' vectors by the folder of their features."""


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
    """Measure both towers on the validation and the test split against the baselines.

    The towers are those that serving will load, fed with raw features, so the report covers export and
    preprocessing as well as training.

    Args:
        examples: input, kind `examples`: evaluation queries, catalogue and interactions.
        entities: input, kind `entities`, of the same run: the candidates' features.
        query_tower, candidate_tower: inputs, of `model_version`.
        evaluation: output, kind `evaluation`.

    Raises:
        VersionMismatchError: a tower of another version.
        InputMismatchError: inputs of another run or schema, or a catalogue that the entities do not hold.
        ConfigError: a slice by what the schema does not have.
        DataError: no evaluation queries at all, or towers whose vectors are not finite.
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
    report = _measure(split_artifact, entity_artifact, towers, section)
    report |= {"model_version": int(model_version), "run": run_id}
    fresh_directory(evaluation)
    (evaluation / "report.json").write_text(json.dumps(report, indent=1, sort_keys=True) + "\n", encoding="utf-8")
    (evaluation / "report.html").write_text(render(report), encoding="utf-8")
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
        rows=sum(report[split]["queries"] for split in SPLITS),
        model_version=model_version,
        inputs=inputs,
    )


def _measure(
    examples: Artifact, entities: Artifact, towers: Mapping[str, Tower], section: EvaluateSection
) -> dict[str, Any]:
    """The report without its heading."""
    catalogue = read_catalogue(examples)
    queries = {split: read_queries(examples.path / split, catalogue) for split in SPLITS}
    if not len(queries["test"]):
        raise DataError(f"{examples.path} has no test queries: move [data] test_from back or raise test_share")
    candidates = len(catalogue.ids)
    interactions = read_interactions(examples, candidates)
    baselines, left_out = fit_baselines(interactions, queries["validation"], candidates, section)
    schema = Schema.from_json((examples / "schema.json").read_bytes())
    evaluation = _Evaluation(examples, entities, towers, section, catalogue, schema, baselines)
    report: dict[str, Any] = {"details": {}}
    for split in SPLITS:
        started = time.monotonic()
        report[split], report["details"][split] = _measure_split(evaluation, split, queries[split])
        _log.info("%s: %d queries in %.0f s", split, report[split]["queries"], time.monotonic() - started)
    fitted = {name: {"settings": of.settings, "tried": of.tried} for name, of in baselines.items()}
    return report | {"baselines": {**fitted, **{name: {"left_out": reason} for name, reason in left_out.items()}}}


def _measure_split(evaluation: _Evaluation, split: str, queries: Queries) -> tuple[dict[str, Any], dict[str, Any]]:
    """The measures and the details of one split; both are {} by scorer where it has no queries."""
    catalogue, baselines = evaluation.catalogue, evaluation.baselines
    known = catalogue.known_before_validation if split == "validation" else np.ones(len(catalogue.ids), dtype=bool)
    facts = {
        "queries": len(queries),
        "candidates": int(np.count_nonzero(known)),
        "held_out": int(queries.held_out.sum()),
        "held_out_unknown": int(queries.held_out.sum()) - sum(map(len, queries.targets)),
    }
    if not len(queries):
        return {**{name: {} for name in ("model", "popularity", "popularity_all_time", *baselines)}, **facts}, {}
    source = candidates_of_split(evaluation.examples, evaluation.entities, split)
    features = candidate_features(source, catalogue)
    if source not in evaluation.embedded:
        evaluation.embedded = {source: embed(evaluation.towers["candidate"], features)}
    vectors = embed(evaluation.towers["query"], queries.features)
    recent = catalogue.popular_30d if split == "test" else catalogue.popular_30d_validation
    scorers: dict[str, Scorer] = {
        "model": Products(vectors, evaluation.embedded[source]),
        "popularity": SameForAll(recent),
        "popularity_all_time": SameForAll(catalogue.count),
        **{name: baseline.scorer(queries) for name, baseline in baselines.items()},
    }
    if not known.all():
        scorers = {name: Only(scorer, known) for name, scorer in scorers.items()}
    columns = {"query": queries.features, "candidate": features}
    slices = standard_slices(queries, catalogue) + column_slices(evaluation.section.slices, evaluation.schema, columns)
    measures, details = compare(scorers, queries, catalogue, slices, evaluation.section)
    return {**measures, **facts}, details


def embed(tower: Tower, features: pa.StructArray) -> NDArray[np.float32]:
    """Embed rows of raw features in batches: [rows, dim]."""
    parts = [
        tower.embed(features[start : start + _EMBED_ROWS]).vectors for start in range(0, len(features), _EMBED_ROWS)
    ]
    return np.concatenate(parts)


def _check_tower(tower: Artifact, examples: Artifact) -> None:
    used = (tower.tag.inputs or {}).get("examples")
    facts = (("schema", tower.tag.schema, examples.tag.schema), ("examples", used, examples.tag.digest))
    for what, found, expected in facts:
        if found != expected:
            left, right = f"{tower.tag.kind} at {tower.path}", f"examples at {examples.path}"
            raise InputMismatchError(what, left, str(found)[:12], right, expected[:12])
