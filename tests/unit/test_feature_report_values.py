"""What is counted in the warehouse: values, vocabularies' coverage, collisions; golden rows by hand."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import tensorflow as tf

from dataflow.encoded import Learned, Statistics, ValueCounts
from dataflow.sql import render
from dataflow.vocabulary import learn
from dataflow.warehouse import DuckDBWarehouse, Warehouse
from lockstep.schema import Schema

SCHEMA = Schema.model_validate(
    {
        "query": {
            "history": {"type": "id_sequence", "columns": ["history.candidate_id"], "shares": "track"},
            "country": {"type": "categorical"},
            "lately": {"type": "numeric", "columns": ["events.7d"], "log": True},
            "lately_range": {"type": "numeric", "columns": ["events.7d"], "buckets": 2},
            "when": {"type": "timestamp", "columns": ["event_time"]},
        },
        "candidate": {
            "track": {"type": "id", "columns": ["candidate_id"], "min_count": 2, "max_size": 2},
            "artist": {"type": "categorical", "encoding": "hash", "size": 3},
            "title": {"type": "text", "ngrams": 1, "min_count": 2},
            "price": {"type": "numeric"},
            "price_range": {"type": "numeric", "columns": ["price"], "buckets": 2},
            "tags": {"type": "id_sequence"},
            "image": {"type": "vector", "size": 2},
        },
    }
)
ARTISTS = ["Ann", "Bob", "Cat", "Dan", "Eve"]
# candidate_id, training events, artist, title, price, tags
CANDIDATES = [
    ("a", 4, "Ann", "Red car", 1.0, ["t1", "t2"]),
    ("b", 2, "Bob", "red house", 1.0, ["t1", ""]),
    ("c", 2, "Cat", "red", 3.0, []),
    ("d", 1, "Dan", "", float("nan"), None),
    ("e", 1, "Eve", None, None, ["t3"]),
    ("f", 0, "Fay", "never seen", 9.0, ["t9"]),
]
QUERIES = [("u", 5, "DE"), ("v", 3, "DE"), ("w", 1, "FR"), ("x", 1, None)]


@pytest.fixture(scope="module")
def warehouse(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Warehouse]:
    work = tmp_path_factory.mktemp("warehouse")
    ids, events, artists, titles, prices, tags = (list(of) for of in zip(*CANDIDATES, strict=True))
    entities, examples, countries = (list(of) for of in zip(*QUERIES, strict=True))
    tables = {
        "candidates_now": {
            "candidate_id": ids,
            "artist": artists,
            "title": titles,
            "price": pa.array(prices, pa.float64()),
            "tags": tags,
            "image": pa.array([None] * 6, pa.list_(pa.float64())),
        },
        "catalogue": {"candidate_id": ids, "training_events": events},
        "queries_now": {"query_id": entities, "country": countries},
        "training_entities": {"query_id": entities, "examples": examples},
    }
    with DuckDBWarehouse(work) as opened:
        for name, columns in tables.items():
            pq.write_table(pa.table(columns), work / f"{name}.parquet")
            opened.load(name, [work / f"{name}.parquet"])
        yield opened


@pytest.fixture(scope="module")
def learned(warehouse: Warehouse, tmp_path_factory: pytest.TempPathFactory) -> Learned:
    work = tmp_path_factory.mktemp("work")
    for shard, counts in enumerate(([0.0, 1.0], [3.0])):
        (work / "training" / f"shard={shard}").mkdir(parents=True)
        pq.write_table(
            pa.table({"q_lately": counts, "q_lately_range": counts, "weight": [9.0] * len(counts)}),
            work / "training" / f"shard={shard}" / "part.parquet",
        )
    return learn(warehouse, SCHEMA, work)


SOURCE = """(
  SELECT candidate.{} AS value, catalogue.training_events AS weight
  FROM candidates_now AS candidate
  JOIN catalogue ON catalogue.candidate_id = candidate.candidate_id
)"""


def test_golden_rows_of_report_values(warehouse: Warehouse) -> None:
    def rows(column: str, **kind: bool) -> list[tuple[object, int]]:
        sql = render("report_values", source=SOURCE.format(column), **kind)
        return sorted((row["value"], int(row["occurrences"])) for row in warehouse.rows(sql))

    assert rows("price", sequence=False, number=True) == [(1.0, 6), (3.0, 2), (9.0, 0)]
    assert rows("tags", sequence=True, number=False) == [("t1", 6), ("t2", 4), ("t3", 1), ("t9", 0)]


def test_golden_rows_of_report_cardinality(warehouse: Warehouse) -> None:
    values = render("report_values", source=SOURCE.format("tags"), sequence=True, number=False)
    row = {"distinct_values": 4, "once": 1, "occurrences": 11}
    assert warehouse.rows(render("report_cardinality", values=values)) == [row]
    nothing = values.replace("value <> ''", "FALSE")
    empty = {"distinct_values": 0, "once": 0, "occurrences": 0}
    assert warehouse.rows(render("report_cardinality", values=nothing)) == [empty]


def test_golden_rows_of_boundaries(warehouse: Warehouse) -> None:
    def begins(values: list[tuple[float, int]], buckets: int) -> list[float]:
        counted = " UNION ALL ".join(f"SELECT CAST({v} AS FLOAT64) AS value, {n} AS occurrences" for v, n in values)
        rows = warehouse.rows(render("boundaries", values=counted, buckets=buckets))
        return [row["boundary"] for row in rows]

    # Eight occurrences, four to a bucket: 1 has six, so that nothing is left of the first bucket for 3.
    assert begins([(3.0, 2), (1.0, 6), (9.0, 0)], 2) == [1.0, 3.0]
    assert begins([(1.0, 1), (2.0, 1), (4.0, 1), (8.0, 1)], 2) == [1.0, 4.0]
    assert begins([(1.0, 1), (2.0, 1), (4.0, 1), (8.0, 1)], 9) == [1.0, 2.0, 4.0, 8.0]
    assert begins([(5.0, 7)], 3) == [5.0]


def test_buckets_of_numbers_and_of_counts_begin_where_their_share_does(learned: Learned) -> None:
    assert learned.boundaries["candidate", "price_range"] == [3.0]
    assert learned.boundaries["query", "lately_range"] == [3.0]  # of 0, 1 and 3: floor(2 * 2 / 3) is the second


def test_ids_are_covered_by_occurrence(learned: Learned) -> None:
    # Ten events, d and e once each; the vocabulary is a and b, with six events.
    assert learned.vocabularies["candidate_track"] == ["a", "b"]
    assert learned.values["candidate", "track"] == ValueCounts(distinct=5, once=2, occurrences=10, covered=0.6)
    assert learned.values["query", "history"] == ValueCounts(distinct=5, once=2, occurrences=10)


def test_a_query_attribute_weighs_by_examples(learned: Learned) -> None:
    assert learned.values["query", "country"] == ValueCounts(distinct=2, once=1, occurrences=9, covered=1.0)


def test_a_texts_coverage_is_that_of_its_tokens(learned: Learned) -> None:
    # red 4 + 2 + 2, car 4, house 2; only red is in two texts.
    assert learned.vocabularies["candidate_title"] == ["red"]
    expected = ValueCounts(distinct=3, once=0, occurrences=8, covered=8 / 14, tokens=3)
    assert learned.values["candidate", "title"] == expected


def test_numbers_and_lists_are_counted(learned: Learned) -> None:
    assert learned.values["candidate", "price"] == ValueCounts(distinct=2, once=0, occurrences=8)
    expected = ValueCounts(distinct=3, once=1, occurrences=11, covered=1.0)
    assert learned.values["candidate", "tags"] == expected
    assert not {("query", "when"), ("candidate", "image"), ("query", "lately")} & set(learned.values)


def test_collisions_are_those_of_the_preprocessings_hash(learned: Learned) -> None:
    # From TensorFlow's documentation of to_hash_bucket_fast: the hash is FarmHash's Fingerprint64, modulo the bins.
    assert tf.strings.to_hash_bucket_fast(["Hello", "TensorFlow", "2.x"], 3).numpy().tolist() == [0, 2, 2]
    place = {name: int(tf.strings.to_hash_bucket_fast(name, 3)) for name in ARTISTS}
    weight = {artist: events for _, events, artist, *_ in CANDIDATES if events}
    colliding = [a for a in ARTISTS if any(place[a] == place[b] for b in ARTISTS if a != b)]
    assert colliding
    counted = learned.values["candidate", "artist"]
    assert (counted.distinct, counted.occurrences) == (5, 10)
    assert counted.colliding == len(colliding)
    assert counted.colliding_occurrences == sum(weight[artist] for artist in colliding)


def test_statistics_of_counts_come_from_the_training_rows(learned: Learned) -> None:
    logs = np.log1p([0.0, 1.0, 3.0])
    found = learned.statistics["query", "lately"]
    assert found == Statistics(float(f"{logs.mean():.7g}"), float(f"{logs.std():.7g}"))


def test_statistics_of_numbers_are_weighed(learned: Learned) -> None:
    # Six events at 1, two at 3: mean 1.5, deviation sqrt(.75).
    assert learned.statistics["candidate", "price"] == Statistics(1.5, 0.8660254)
