"""What preprocessing learns: vocabularies and statistics, from training examples only.

Of a candidate attribute, what counts is the candidates that training saw, weighed by their training events; of a
query attribute, the entities that training saw, weighed by their examples. Ids are ranked by that weight; texts and
categories by the number of candidates or entities that have them, so that one busy entity does not fill a vocabulary.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import tensorflow as tf

from dataflow.columns import candidate_features, is_past, past_value, query_features
from dataflow.encoded import TOWERS, Learned, Statistics, hash_bins, table_name, table_owner
from dataflow.sql import render
from dataflow.text import tokenize
from dataflow.warehouse import Warehouse
from lockstep.schema import Feature, Schema

_BATCH = 20_000
_EPOCH = "TIMESTAMP '1970-01-01 00:00:00+00:00'"

_CANDIDATES = """(
  SELECT {value} AS value, catalogue.training_events AS weight
  FROM candidates_now AS candidate
  JOIN catalogue ON catalogue.candidate_id = candidate.candidate_id
  WHERE catalogue.training_events > 0
)"""
_ENTITIES = """(
  SELECT {value} AS value, counted.examples AS weight
  FROM training_entities AS counted
  JOIN queries_now AS entity ON entity.query_id = counted.query_id
)"""


def learn(warehouse: Warehouse, schema: Schema, work: Path) -> Learned:
    """Build every vocabulary and every statistic of a schema.

    Args:
        warehouse: holds candidates_now, queries_now, catalogue and training_entities.
        work: a folder for what is read back in batches.
    """
    vocabularies = {}
    statistics = {}
    for tower in TOWERS:
        for name, feature in schema.features(tower).items():
            owner = table_owner(schema, tower, name)
            if owner == (tower, name) and hash_bins(schema, owner) is None:
                source = _source(warehouse, schema, tower, name)
                sequence = feature.is_sequence and not is_past(feature)
                vocabularies[table_name(owner)] = _vocabulary(warehouse, feature, source, sequence, work / "values")
            elif feature.type in ("numeric", "numeric_sequence"):
                source = _source(warehouse, schema, tower, name)
                sequence = feature.is_sequence and not is_past(feature)
                statistics[tower, name] = _statistics(warehouse, feature, source, sequence)
    return Learned(vocabularies, statistics)


def _source(warehouse: Warehouse, schema: Schema, tower: str, name: str) -> str:
    """The SQL of a feature's values and weights."""
    candidates, queries = warehouse.schema("candidates_now"), warehouse.schema("queries_now")
    if tower == "candidate":
        return _CANDIDATES.format(value=candidate_features(schema, candidates)[name])
    if is_past(schema.query[name]):
        return _CANDIDATES.format(value=past_value(schema, candidates, name))
    return _ENTITIES.format(value=query_features(schema, queries, moment=_EPOCH)[name])


def _vocabulary(warehouse: Warehouse, feature: Feature, source: str, sequence: bool, file: Path) -> list[str]:
    if feature.type in ("text", "text_sequence"):
        sql = _values(source, sequence, "entities", 1, None)
        warehouse.export(sql, file)
        counts = _count_tokens(_texts(file), feature.ngrams)
        ranked = sorted((-count, token) for token, count in counts.items() if count >= feature.min_count)
        return [token.decode() for _, token in ranked[: feature.size]]
    if feature.type in ("id", "id_sequence"):
        sql = _values(source, sequence, "events", feature.min_count, feature.max_size)
    else:
        sql = _values(source, sequence, "entities", feature.min_count, feature.size)  # type: ignore[union-attr]
    warehouse.export(sql, file)
    return pq.read_table(file, columns=["value"]).column("value").to_pylist()


def _values(source: str, sequence: bool, counted: str, min_count: int, limit: int | None) -> str:
    return render("vocabulary", source=source, sequence=sequence, counted=counted, min_count=min_count, limit=limit)


def _texts(file: Path) -> Iterator[pa.RecordBatch]:
    with pq.ParquetFile(file) as parquet:
        yield from parquet.iter_batches(_BATCH, columns=["value", "entities"])


def _count_tokens(batches: Iterator[pa.RecordBatch], ngrams: int) -> Counter[bytes]:
    counts: Counter[bytes] = Counter()
    for batch in batches:
        texts = batch.column("value").cast(pa.binary()).to_numpy(zero_copy_only=False)
        tokens = tokenize(tf.constant(texts, tf.string), ngrams)
        weights = batch.column("entities").cast(pa.int64()).to_numpy()
        repeated = np.repeat(weights, tokens.row_lengths().numpy())
        table = pa.table({"token": pa.array(tokens.flat_values.numpy(), pa.binary()), "count": repeated})
        summed = table.group_by("token").aggregate([("count", "sum")])
        for token, count in zip(*(summed.column(name).to_pylist() for name in ("token", "count_sum")), strict=True):
            counts[token] += count
    return counts


def _statistics(warehouse: Warehouse, feature: Feature, source: str, sequence: bool) -> Statistics:
    rows = warehouse.rows(render("statistics", source=source, sequence=sequence, log=feature.log))  # type: ignore[union-attr]
    if not rows:
        return Statistics()
    # Engines add in any order, which moves the last bits: seven digits are the same every time.
    mean, deviation = (float(f"{rows[0][name]:.7g}") for name in ("mean", "deviation"))
    return Statistics(mean, deviation if deviation > 0 else 1.0)
