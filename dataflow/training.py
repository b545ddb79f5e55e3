"""The training rows: positive pairs with what was known of each side, and the catalogue that they index."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import numpy as np
import pyarrow as pa

from dataflow.columns import candidate_features, is_counted, is_past, past_values, query_features
from dataflow.entities import split_candidates, write_parts
from dataflow.interactions import counts_by
from dataflow.numbers import ByIndex
from dataflow.split import POPULAR_DAYS, Cuts
from dataflow.sql import render
from dataflow.stages import Stage
from dataflow.warehouse import Warehouse
from lockstep.config import DataSection
from lockstep.errors import ConfigError, DataError
from lockstep.schema import Schema

KNOWN = "known_candidates.parquet"
"""The file of the candidates that training rows name by index."""
MAX_INTERACTIONS = 20_000_000
"""About how many events the baselines of the evaluation learn from; of more, those of a part of the entities."""
MIN_SHARDS = 4
"""Fewest files of training records, so that small data too is read by several threads."""

_CATALOGUE = pa.schema(
    [
        ("id", pa.string()),
        ("count", pa.int64()),
        ("popular_30d", pa.int64()),
        ("popular_30d_validation", pa.int64()),
        ("known_before_validation", pa.bool_()),
    ]
)
_LABELS = pa.schema([("candidate", pa.int32()), ("age_hours", pa.int32()), ("examples", pa.int64())])
_ENGAGEMENT = {"linear": "GREATEST(label.engagement, 0)", "log": "LN(1 + GREATEST(label.engagement, 0))"}


@dataclass(frozen=True)
class TrainingRows:
    """What was exported for the training records.

    Args:
        stages: the account of the events.
        examples: rows exported.
        candidates: rows of the catalogue.
        shards: folders that the rows are spread over.
    """

    stages: list[Stage]
    examples: int
    candidates: int
    shards: int


def write_training_rows(
    warehouse: Warehouse, schema: Schema, data: DataSection, cuts: Cuts, examples: Path, work: Path
) -> TrainingRows:
    """Stage the events, write the catalogue, and export the training rows and the candidates that they name.

        <work>/training/shard=<n>/*.parquet    see queries/training_examples.sql
        <work>/known_candidates.parquet        see queries/known_candidates.sql

    Creates staged_events, catalogue and training_entities, and candidate_days and query_days where features count.

    Args:
        examples: the artifact's folder, which gets catalogue.parquet and, where candidate features count events,
            the candidates as they were at each cut.

    Raises:
        DataError: no event can be a label.
        ConfigError: [data] pairing has nothing to pair.
    """
    stage = _stage_events(warehouse, schema, data, cuts)
    candidates = _catalogue(warehouse, cuts, examples, work)
    if schema.counts("candidate"):
        for split, cut in (("validation", cuts.validation_from), ("test", cuts.test_from)):
            folder = examples / f"{split}_candidates"
            split_candidates(warehouse, schema, cut, folder, work, held_out=split == "test")
    columns = warehouse.schema("candidates_now")
    features = candidate_features(schema, columns)
    counted = {name: sql for name, sql in features.items() if is_counted(schema.candidate[name])}
    static = {name: sql for name, sql in features.items() if name not in counted}
    known = render("known_candidates", known="catalogue", candidate=static, past=past_values(schema, columns))
    warehouse.export(known, work / KNOWN)
    warehouse.create("training_entities", render("training_entities"))
    newest = warehouse.rows(render("newest_example"))[0]
    expected = int(newest["examples"])
    shards = max(MIN_SHARDS, -(-expected // data.shard_rows))
    query = query_features(schema, warehouse.schema("queries_now"), moment="label.event_time")
    sql = render(
        "training_examples",
        pairing=data.pairing,
        query={name: query[name] for name, feature in schema.query.items() if not is_past(feature)},
        candidate=counted,
        max_history=schema.max_history,
        window=data.window,
        query_counts=schema.counts("query"),
        newest=newest["newest"],
        weight=f"{_weight(warehouse, data)}{_balance(warehouse, data)}",
        balance=data.balance > 0,
        seed=data.seed,
        shards=shards,
    )
    written = warehouse.export_shards(sql, work / "training", column="shard")
    _interactions(warehouse, newest["newest"], stage, examples, work)
    warehouse.export(render("labels", newest=newest["newest"]), work / "labels.parquet")
    write_parts(work / "labels.parquet", examples / "labels.parquet", lambda rows: rows.cast(_LABELS))
    pairs = Stage("training pairs", expected, written).check()
    return TrainingRows([stage, pairs], written, candidates, shards)


def _stage_events(warehouse: Warehouse, schema: Schema, data: DataSection, cuts: Cuts) -> Stage:
    """Create staged_events, and the daily counts that features want."""
    if data.pairing == "candidate_pairs" and not schema.max_history:
        raise ConfigError(
            "[data] pairing = 'candidate_pairs' needs a query feature of the other candidate, such as "
            '[schema.query.other] type = "text_sequence", columns = ["history.title"], max_length = 1'
        )
    staged = warehouse.create(
        "staged_events",
        render(
            "staged_events",
            pairing=data.pairing,
            window=data.window,
            validation_from=cuts.validation_from,
            oldest=cuts.oldest_label(data),
            # A pair takes two.
            min_history=max(data.min_history, 1) if data.pairing == "candidate_pairs" else data.min_history,
        ),
    )
    stages = counts_by(warehouse, "staged_events", "stage")
    labels = stages.pop("example", 0)
    if not labels:
        raise DataError(
            f"no training example is left of {staged} events ({stages}): set [data] validation_from later than "
            f"{cuts.validation_from}, or lower validation_share, test_share, holdout_share or min_history, "
            "or raise max_age_days"
        )
    for tower in ("query", "candidate"):
        if schema.counts(tower):
            warehouse.create(f"{tower}_days", render("days", key=f"{tower}_id", windows=schema.counts(tower)))
    return Stage("training", staged, labels, filtered=stages).check()


def _catalogue(warehouse: Warehouse, cuts: Cuts, examples: Path, work: Path) -> int:
    sql = render(
        "catalogue",
        validation_from=cuts.validation_from,
        test_from=cuts.test_from,
        popular_from=cuts.test_from - POPULAR_DAYS,
        popular_from_validation=cuts.validation_from - POPULAR_DAYS,
    )
    candidates = warehouse.create("catalogue", sql)
    file = work / "catalogue.parquet"
    warehouse.export(render("catalogue_rows"), file)
    order = ByIndex()
    write_parts(
        file, examples / "catalogue.parquet", lambda rows: order.check(rows).select(_CATALOGUE.names).cast(_CATALOGUE)
    )
    return candidates


def _balance(warehouse: Warehouse, data: DataSection) -> str:
    """SQL of what an example's weight is multiplied by, so that entities with many examples do not rule."""
    if not data.balance:
        return ""
    mean = warehouse.rows(render("balance", balance=data.balance))[0]["mean"]
    return f" * POW(counted.examples, {-data.balance!r}) / {float(f'{mean:.7g}')!r}"


def _interactions(warehouse: Warehouse, newest: datetime, stage: Stage, examples: Path, work: Path) -> None:
    """Write interactions.parquet, whose entities are numbered as they come."""
    seen = stage.used + sum(stage.filtered.get(name, 0) for name in ("too little history", "too old"))
    entities_of_million = min(1_000_000, MAX_INTERACTIONS * 1_000_000 // max(seen, 1))
    sql = render("interactions", newest=newest, entities_of_million=entities_of_million)
    file = work / "interactions.parquet"
    warehouse.export(sql, file)
    number, last = -1, -1

    def rows(batch: pa.RecordBatch) -> pa.RecordBatch:
        nonlocal number, last
        entities = batch.column("query").to_numpy()
        numbers = number + np.cumsum(np.diff(entities, prepend=last) != 0)
        if len(numbers):
            number, last = int(numbers[-1]), int(entities[-1])
        columns = [pa.array(numbers, pa.int32()), batch.column("candidate").cast(pa.int32())]
        ages = batch.column("age_days").cast(pa.float32())
        return pa.RecordBatch.from_arrays([*columns, ages], names=["query", "candidate", "age_days"])

    write_parts(file, examples / "interactions.parquet", rows)


def _weight(warehouse: Warehouse, data: DataSection) -> str:
    """SQL of an example's weight; an event of unknown engagement weighs as much as the mean."""
    if data.engagement_weight == "none":
        return "CAST(1 AS FLOAT64)"
    value = _ENGAGEMENT[data.engagement_weight]
    mean = warehouse.rows(render("engagement", value=value))[0]["mean"]
    if mean is None or mean <= 0:
        raise DataError(
            f"[data] engagement_weight = {data.engagement_weight!r}, but no training example has one above 0: "
            "set [data.tables.events] engagement to the column that holds it"
        )
    # Engines add in any order, which moves the last bits: seven digits are the same every time.
    return f"IFNULL({value} / {float(f'{mean:.7g}')!r}, 1)"
