"""What preprocessing learns: vocabularies and statistics, from training examples only.

Of a candidate attribute, what counts is the candidates that training saw, weighed by their training events; of a
query attribute, the entities that training saw, weighed by their examples. Ids are ranked by that weight; texts and
categories by the number of candidates or entities that have them, so that one busy entity does not fill a vocabulary.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import tensorflow as tf
from numpy.typing import NDArray
from pyarrow import dataset

from dataflow.columns import candidate_features, is_past, past_value, query_features
from dataflow.encoded import TOWERS, Learned, Statistics, ValueCounts, buckets_of, hash_bins, table_name, table_owner
from dataflow.sql import render
from dataflow.text import tokenize
from dataflow.warehouse import Warehouse
from lockstep.schema import Feature, Schema, count_days

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
    """Build every vocabulary and every statistic of a schema, and count the values.

    Args:
        warehouse: holds candidates_now, queries_now, catalogue and training_entities.
        work: a folder for what is read back in batches; its folder `training` holds the training rows, the only place
            that knows the counts of events as they were.
    """
    vocabularies: dict[str, list[str]] = {}
    statistics: dict[tuple[str, str], Statistics] = {}
    values: dict[tuple[str, str], ValueCounts] = {}
    boundaries: dict[tuple[str, str], list[float]] = {}
    for tower in TOWERS:
        for name, feature in schema.features(tower).items():
            if feature.type in ("timestamp", "vector"):
                continue
            buckets = buckets_of(feature)
            if count_days(feature.columns[0]) is not None:
                counts = partial(_counts, work / "training", f"{tower[0]}_{name}")
                statistics[tower, name] = _count_statistics(counts, feature)
                if buckets:
                    boundaries[tower, name] = _count_boundaries(counts, buckets)
                continue
            sequence = feature.is_sequence and not is_past(feature)
            values_of = _Values(warehouse, feature, _source(warehouse, schema, tower, name), sequence, work / "values")
            owner = table_owner(schema, tower, name)
            bins = None if owner is None else hash_bins(schema, owner)
            counted = values_of.count()
            if owner is None:
                statistics[tower, name] = values_of.statistics()
                if buckets:
                    boundaries[tower, name] = values_of.boundaries(buckets)
            elif bins is not None:
                counted = values_of.hashed(counted, bins)
            elif owner == (tower, name):
                vocabularies[table_name(owner)], counted = values_of.vocabulary(counted)
            values[tower, name] = counted
    return Learned(vocabularies, statistics, values, boundaries)


def _source(warehouse: Warehouse, schema: Schema, tower: str, name: str) -> str:
    """The SQL of a feature's values and weights."""
    candidates, queries = warehouse.schema("candidates_now"), warehouse.schema("queries_now")
    if tower == "candidate":
        return _CANDIDATES.format(value=candidate_features(schema, candidates)[name])
    if is_past(schema.query[name]):
        return _CANDIDATES.format(value=past_value(schema, candidates, name))
    return _ENTITIES.format(value=query_features(schema, queries, moment=_EPOCH)[name])


@dataclass(frozen=True)
class _Values:
    """The values of one feature in the training data, in the warehouse.

    Args:
        source: the SQL of values and weights.
        sequence: whether a value of the source is a list.
        file: for what is read back in batches.
    """

    warehouse: Warehouse
    feature: Feature
    source: str
    sequence: bool
    file: Path

    def count(self) -> ValueCounts:
        """How many there are."""
        row = self.warehouse.rows(render("report_cardinality", values=self._all()))[0]
        return ValueCounts(int(row["distinct_values"]), int(row["once"]), int(row["occurrences"]))

    def statistics(self) -> Statistics:
        """Mean and deviation, weighed by the occurrences."""
        log = self.feature.log  # type: ignore[union-attr]
        rows = self.warehouse.rows(render("statistics", source=self.source, sequence=self.sequence, log=log))
        return _rounded(rows[0]["mean"], rows[0]["deviation"]) if rows else Statistics()

    def boundaries(self, buckets: int) -> list[float]:
        """Where the buckets begin, less the first, which takes whatever is below."""
        rows = self.warehouse.rows(render("boundaries", values=self._all(), buckets=buckets))
        return [float(row["boundary"]) for row in rows][1:]

    def hashed(self, counted: ValueCounts, bins: int) -> ValueCounts:
        """Put every value into its bin, by the very operation of preprocessing; the memory is two numbers a bin."""
        self.warehouse.export(self._all(), self.file)
        values, weights = np.zeros(bins, np.int64), np.zeros(bins, np.int64)
        for batch in _batches(self.file):
            found = tf.strings.to_hash_bucket_fast(_texts(batch), bins).numpy()
            np.add.at(values, found, 1)
            np.add.at(weights, found, batch.column("occurrences").cast(pa.int64()).to_numpy())
        shared = values > 1
        return replace(counted, colliding=int(values[shared].sum()), colliding_occurrences=int(weights[shared].sum()))

    def vocabulary(self, counted: ValueCounts) -> tuple[list[str], ValueCounts]:
        """The values or tokens that get an id, most frequent first, and what share of the occurrences they are."""
        feature = self.feature
        if feature.type in ("text", "text_sequence"):
            self.warehouse.export(self._most_frequent("entities", 1, None), self.file)
            entities, events = _count_tokens(_batches(self.file), feature.ngrams)
            ranked = sorted((-count, token) for token, count in entities.items() if count >= feature.min_count)
            kept = [token for _, token in ranked[: feature.size]]
            covered = _share(sum(events[token] for token in kept), events.total())
            return [token.decode() for token in kept], replace(counted, covered=covered, tokens=len(events))
        if feature.type in ("id", "id_sequence"):
            sql = self._most_frequent("events", feature.min_count, feature.max_size)
        else:
            sql = self._most_frequent("entities", feature.min_count, feature.size)  # type: ignore[union-attr]
        self.warehouse.export(sql, self.file)
        found = pq.read_table(self.file, columns=["value", "events"])
        events_found = pc.sum(found.column("events").cast(pa.int64())).as_py() or 0
        covered = _share(events_found, counted.occurrences)
        return found.column("value").to_pylist(), replace(counted, covered=covered)

    def _most_frequent(self, counted: str, min_count: int, limit: int | None) -> str:
        return render(
            "vocabulary",
            source=self.source,
            sequence=self.sequence,
            counted=counted,
            min_count=min_count,
            limit=limit,
        )

    def _all(self) -> str:
        number = self.feature.type in ("numeric", "numeric_sequence")
        return render("report_values", source=self.source, sequence=self.sequence, number=number)


def _batches(file: Path) -> Iterator[pa.RecordBatch]:
    with pq.ParquetFile(file) as parquet:
        yield from parquet.iter_batches(_BATCH)


def _texts(batch: pa.RecordBatch) -> tf.Tensor:
    return tf.constant(batch.column("value").cast(pa.binary()).to_numpy(zero_copy_only=False), tf.string)


def _count_tokens(batches: Iterator[pa.RecordBatch], ngrams: int) -> tuple[Counter[bytes], Counter[bytes]]:
    """Tokens by the candidates or entities that have them, and by their training events or examples."""
    entities: Counter[bytes] = Counter()
    events: Counter[bytes] = Counter()
    for batch in batches:
        tokens = tokenize(_texts(batch), ngrams)
        lengths = tokens.row_lengths().numpy()
        columns = {"token": pa.array(tokens.flat_values.numpy(), pa.binary())}
        for name in ("entities", "events"):
            columns[name] = pa.array(np.repeat(batch.column(name).cast(pa.int64()).to_numpy(), lengths))
        summed = pa.table(columns).group_by("token").aggregate([("entities", "sum"), ("events", "sum")])
        found = summed.column("token").to_pylist()
        for counts, name in ((entities, "entities_sum"), (events, "events_sum")):
            for token, count in zip(found, summed.column(name).to_pylist(), strict=True):
                counts[token] += count
    return entities, events


def _counts(training: Path, column: str) -> Iterator[NDArray[np.float64]]:
    """A count of events in the training rows, batch by batch."""
    for batch in dataset.dataset(training, format="parquet").to_batches(columns=[column]):
        yield batch.column(0).cast(pa.float64()).to_numpy(zero_copy_only=False)


def _count_statistics(counts: Callable[[], Iterator[NDArray[np.float64]]], feature: Feature) -> Statistics:
    """Statistics of a count of events over the training rows, in two passes: the mean, then the distances from it."""

    def batches() -> Iterator[NDArray[np.float64]]:
        for values in counts():
            yield np.sign(values) * np.log1p(np.abs(values)) if feature.log else values  # type: ignore[union-attr]

    rows, total = 0, 0.0
    for values in batches():
        rows, total = rows + len(values), total + float(values.sum())
    mean = total / rows
    squares = sum(float(((values - mean) ** 2).sum()) for values in batches())
    return _rounded(mean, math.sqrt(squares / rows))


def _count_boundaries(counts: Callable[[], Iterator[NDArray[np.float64]]], buckets: int) -> list[float]:
    """What queries/boundaries.sql says, of counts of events, of which there are few different ones."""
    found: Counter[float] = Counter()
    for values in counts():
        distinct, times = np.unique(values, return_counts=True)
        found.update(dict(zip(distinct.tolist(), times.tolist(), strict=True)))
    begins: dict[int, float] = {}
    below, total = 0, found.total()
    for value in sorted(found):
        begins.setdefault(below * buckets // total, value)
        below += found[value]
    return list(begins.values())[1:]


def _rounded(mean: float, deviation: float) -> Statistics:
    """Seven digits are the same every time: engines add in any order, which moves the last bits."""
    mean, deviation = float(f"{mean:.7g}"), float(f"{deviation:.7g}")
    return Statistics(mean, deviation if deviation > 0 else 1.0)


def _share(part: int, whole: int) -> float | None:
    return part / whole if whole else None
