"""Golden rows of every query, worked out by hand from one small world; none was produced by running the SQL.

Days are of January 2024. Used events, by entity, as (candidate, day):

    ann  a 1, b 1, c 3, d 3       b stands twice (a duplicate), a again on day 2 (a repeat), x is no candidate
    bob  b 2, c 2, a 4, g 4       b and c have one position: neither is strictly before the other; so have ann's c, d
    cat  a 5, d 5, b 6, f 6       new on day 5
    dan  c 1, b 2, d 3, a 6       held out: md5("dan") = 9180b4da..., 0x9180b4da % 10000 = 1226;
                                  ann is in bucket 3834, bob in 7420, cat in 1732
    eve  no event
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from dataflow.columns import candidate_features, past_values, query_features, struct
from dataflow.restricts import restrict_columns
from dataflow.split import day_of
from dataflow.sql import literal, render
from dataflow.warehouse import DuckDBWarehouse, Warehouse
from lockstep.schema import Schema
from tests.fakes.warehouses import WAREHOUSES
from tests.fakes.warehouses import opened as open_named

TIME = pa.timestamp("us", tz="UTC")
SCHEMA = Schema.model_validate(
    {
        "query": {
            "history": {"type": "id_sequence", "columns": ["history.candidate_id"], "max_length": 2},
            "prices": {"type": "numeric_sequence", "columns": ["history.price"], "max_length": 2},
            "country": {"type": "categorical"},
            "when": {"type": "timestamp", "columns": ["event_time"]},
            "busy": {"type": "numeric", "columns": ["events.2d"]},
        },
        "candidate": {
            "track": {"type": "id", "columns": ["candidate_id"]},
            "words": {"type": "text", "columns": ["colour", "candidate_id"]},
            "price": {"type": "numeric"},
            "sold": {"type": "numeric", "columns": ["events.2d"]},
        },
        "restricts": ["colour"],
        "deny": {"colour": "clashes", "size": "sizes_gone"},
        "numeric_restricts": ["price", "row", "made", "signed"],
    }
)


def day(number: int, hour: int = 0) -> datetime:
    return datetime(2024, 1, number, hour, tzinfo=UTC)


EVENTS = [
    ("ann", "a", day(1), 0),
    ("ann", "b", day(1), 1),
    ("ann", "b", day(1), 1),  # duplicate event
    ("ann", "a", day(2), 0),  # repeat
    ("ann", "x", day(2), 1),  # unknown candidate
    ("ann", "d", day(3), 0),
    ("ann", "c", day(3), 0),
    ("bob", "g", day(4), 1),  # the file's order is not the events'
    ("bob", "a", day(4), 0),
    ("bob", "c", day(2), 0),
    ("bob", "b", day(2), 0),
    ("cat", "a", day(5, 12), 0),
    ("cat", "d", day(5, 12), 1),
    ("cat", "b", day(6), 0),
    ("cat", "f", day(6), 1),
    ("dan", "c", day(1), 0),
    ("dan", "b", day(2), 0),
    ("dan", "d", day(3), 0),
    ("dan", "a", day(6), 0),
]
ENGAGEMENT = {("ann", "b"): 3.0, ("ann", "c"): 1.0}
CANDIDATES = [  # candidate_id, colour, price, row_number
    ("a", "pink", 9.0, 2),  # a later row of the id: the one below counts
    ("a", "red", 1.0, 0),
    ("b", "blue", 2.0, 1),
    ("c", "green", None, 3),
    ("d", None, 4.0, 4),
    ("f", "red", 5.0, 5),
    ("g", "red", 6.0, 6),
]
FILTERED = {  # row_number: clashes, sizes_gone, row, made, signed
    0: (["blue", "green"], "XL", 2**53, day(2) + timedelta(microseconds=1), True),
    1: ([], None, -1, datetime(1969, 12, 31, 23, 59, 59, 500_000, tzinfo=UTC), False),
    4: (["red"], "", None, None, None),
}
QUERIES = [("ann", "FR", 2), ("ann", "DE", 1), ("bob", None, 3), ("eve", "IT", 4)]


@pytest.fixture(scope="module", params=WAREHOUSES)
def warehouse(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Warehouse]:
    work = tmp_path_factory.mktemp("warehouse")
    tables = {
        "events": (
            [(*event, ENGAGEMENT.get(event[:2])) for event in EVENTS],
            ("query_id", "candidate_id", "event_time", "position", "engagement"),
        ),
        "candidates": (
            [(*row, *FILTERED.get(row[3], ([], None, None, None, None))) for row in CANDIDATES],
            ("candidate_id", "colour", "price", "row_number", "clashes", "sizes_gone", "row", "made", "signed"),
        ),
        "queries": (QUERIES, ("query_id", "country", "row_number")),
    }
    types = {"event_time": TIME, "position": pa.int64(), "row_number": pa.int64()}
    types |= {"price": pa.float64(), "engagement": pa.float64(), "clashes": pa.list_(pa.string())}
    types |= {"row": pa.int64(), "made": TIME, "signed": pa.bool_()}
    with open_named(request.param, work) as opened:
        for name, (values, columns) in tables.items():
            table = pa.table(
                {
                    column: pa.array(of, types.get(column, pa.string()))
                    for column, of in zip(columns, zip(*values, strict=True), strict=True)
                }
            )
            pq.write_table(table, work / f"{name}.parquet")
            assert opened.load(name, [work / f"{name}.parquet"]) == len(values)
        assert opened.create("candidates_now", render("candidates_now")) == 6
        assert opened.create("judged_events", judged()) == 19
        assert opened.create("ordered_events", render("ordered_events", buckets=10_000, held_out_buckets=1_500)) == 16
        assert opened.create("queries_now", render("queries_now", columns=["country"])) == 5
        for tower in ("query", "candidate"):
            opened.create(f"{tower}_days", render("days", key=f"{tower}_id", windows=[2]))
        assert opened.create("staged_events", staged("next_event")) == 16
        assert opened.create("catalogue", catalogue()) == 5
        assert opened.create("training_entities", render("training_entities")) == 1
        yield opened


def judged(min_engagement: float | None = None) -> str:
    return render(
        "judged_events",
        unknown_candidate="unknown candidate",
        duplicate_event="duplicate event",
        min_engagement=min_engagement,
    )


def staged(pairing: str, *, oldest: datetime | None = None) -> str:
    return render("staged_events", pairing=pairing, window=1, validation_from=day(4), oldest=oldest, min_history=1)


def catalogue() -> str:
    return render(
        "catalogue",
        validation_from=day(4),
        test_from=day(5),
        popular_from=day(2),
        popular_from_validation=day(3),
    )


@pytest.fixture
def paired(warehouse: Warehouse, request: pytest.FixtureRequest) -> Iterator[str]:
    """The world with its events staged for another pairing."""
    warehouse.create("staged_events", staged(request.param))
    warehouse.create("catalogue", catalogue())
    yield request.param
    warehouse.create("staged_events", staged("next_event"))
    warehouse.create("catalogue", catalogue())


def rows(warehouse: Warehouse, sql: str) -> list[tuple[Any, ...]]:
    return [tuple(row.values()) for row in warehouse.rows(sql)]


def test_the_first_row_of_each_candidate_counts(warehouse: Warehouse) -> None:
    assert rows(warehouse, "SELECT candidate_id, colour FROM candidates_now ORDER BY candidate_id") == [
        ("a", "red"),
        ("b", "blue"),
        ("c", "green"),
        ("d", None),
        ("f", "red"),
        ("g", "red"),
    ]


def test_query_entities_are_those_of_the_table_and_of_the_events(warehouse: Warehouse) -> None:
    assert rows(warehouse, "SELECT query_id, country FROM queries_now ORDER BY query_id") == [
        ("ann", "DE"),  # row 1, not row 2
        ("bob", None),
        ("cat", None),
        ("dan", None),
        ("eve", "IT"),
    ]


def test_every_event_is_judged(warehouse: Warehouse) -> None:
    assert rows(warehouse, render("counts", table="judged_events", column="verdict")) == [
        ("duplicate event", 1),
        ("repeat", 1),
        ("unknown candidate", 1),
        ("used", 16),
    ]
    assert rows(warehouse, render("dead_events", verdict="duplicate event", limit=9)) == [("ann", "b", day(1), 1)]
    assert rows(warehouse, render("dead_events", verdict="unknown candidate", limit=9)) == [("ann", "x", day(2), 1)]
    assert rows(warehouse, render("dead_events", verdict="repeat", limit=9)) == [("ann", "a", day(2), 0)]


def test_events_are_placed_and_ties_share_their_first_place(warehouse: Warehouse) -> None:
    sql = "SELECT query_id, candidate_id, place, first_place, held_out FROM ordered_events ORDER BY query_id, place"
    assert rows(warehouse, sql) == [
        ("ann", "a", 1, 1, False),
        ("ann", "b", 2, 2, False),
        ("ann", "c", 3, 3, False),
        ("ann", "d", 4, 3, False),
        ("bob", "b", 1, 1, False),
        ("bob", "c", 2, 1, False),
        ("bob", "a", 3, 3, False),
        ("bob", "g", 4, 4, False),
        ("cat", "a", 1, 1, False),
        ("cat", "d", 2, 2, False),
        ("cat", "b", 3, 3, False),
        ("cat", "f", 4, 4, False),
        ("dan", "c", 1, 1, True),
        ("dan", "b", 2, 2, True),
        ("dan", "d", 3, 3, True),
        ("dan", "a", 4, 4, True),
    ]


@pytest.mark.parametrize(
    # Events at or after each moment: day 6: 3, day 5: 5, day 4: 7, day 3: 10, day 2: 13, day 1: 16.
    ("events", "moment"),
    [(1, day(6)), (3, day(6)), (4, day(5, 12)), (5, day(5, 12)), (7, day(4)), (8, day(3)), (16, day(1))],
)
def test_the_cut_is_the_latest_moment_that_leaves_enough(warehouse: Warehouse, events: int, moment: datetime) -> None:
    assert rows(warehouse, render("cut", events=events)) == [(moment,)]


def test_span_and_events_from_a_moment(warehouse: Warehouse) -> None:
    assert rows(warehouse, render("span")) == [(16, day(6))]
    assert rows(warehouse, render("events_from", moment=day(5))) == [(5,)]
    assert rows(warehouse, render("newest_example")) == [(day(3), 3)]
    assert rows(warehouse, render("size", table="queries")) == [(4,)]
    assert rows(warehouse, render("distinct", table="queries", column="query_id")) == [(3,)]


def test_every_ordered_event_has_its_part_in_training(warehouse: Warehouse) -> None:
    sql = "SELECT query_id, candidate_id, stage FROM staged_events ORDER BY query_id, place"
    assert rows(warehouse, sql)[:8] == [
        ("ann", "a", "too little history"),
        ("ann", "b", "example"),
        ("ann", "c", "example"),
        ("ann", "d", "example"),
        ("bob", "b", "too little history"),
        ("bob", "c", "too little history"),  # b has the same moment and position: it is not before c
        ("bob", "a", "not before validation"),
        ("bob", "g", "not before validation"),
    ]
    assert rows(warehouse, render("counts", table="staged_events", column="stage")) == [
        ("example", 3),
        ("held out", 4),
        ("not before validation", 6),
        ("too little history", 3),
    ]
    assert rows(warehouse, "SELECT query_id, examples FROM training_entities") == [("ann", 3)]


def test_the_catalogue_counts_what_was_known_when(warehouse: Warehouse) -> None:
    # f is first seen on day 6, after the test cut. Labels: ann's b, c, d.
    sql = (
        "SELECT candidate_id, candidate_index, labels, training_events, events_before_validation, popular_30d,"
        " popular_30d_validation FROM catalogue ORDER BY candidate_index"
    )
    assert rows(warehouse, sql) == [
        # ann 1 | bob 2 | dan 2 ; popular from day 2 to 5; for validation from day 3 to 4, without dan (held out)
        ("b", 0, 1, 2, 2, 2, 0),
        # ann 3 | bob 2 | dan 1
        ("c", 1, 1, 2, 2, 2, 1),
        # ann 3 | dan 3
        ("d", 2, 1, 1, 1, 2, 1),
        # ann 1 | bob 4
        ("a", 3, 0, 1, 1, 1, 0),
        # bob 4
        ("g", 4, 0, 0, 0, 1, 0),
    ]
    assert rows(warehouse, render("catalogue_rows")) == [
        (0, "b", 1, 2, 0, True),
        (1, "c", 1, 2, 1, True),
        (2, "d", 1, 2, 1, True),
        (3, "a", 0, 1, 0, True),  # no label, but known: ann has it on day 1
        (4, "g", 0, 1, 0, False),  # bob's of day 4 is the first
    ]


def training(
    warehouse: Warehouse,
    max_history: int,
    *,
    pairing: str = "next_event",
    weight: str = "CAST(1 AS FLOAT64)",
    balance: bool = False,
) -> list[dict[str, Any]]:
    """Training rows, with the candidates' ids in place of their indices."""
    query = query_features(SCHEMA, warehouse.schema("queries_now"), moment="label.event_time")
    candidate = candidate_features(SCHEMA, warehouse.schema("candidates_now"))
    sql = render(
        "training_examples",
        pairing=pairing,
        query={name: query[name] for name in ("country", "when", "busy")},
        candidate={"sold": candidate["sold"]},
        max_history=max_history,
        window=1,
        query_counts=SCHEMA.counts("query"),
        newest=day(3),
        weight=weight,
        balance=balance,
        seed=1,
        shards=10,
    )
    ids = [row[0] for row in rows(warehouse, "SELECT candidate_id FROM catalogue ORDER BY candidate_index")]
    found = [
        {**row, "label": ids[row["candidate_index"]], "past": [ids[index] for index in row["past"]]}
        for row in warehouse.rows(sql)
    ]
    return sorted(found, key=lambda row: (row["query_id"], row["label"], row["past"]))


def test_training_examples_know_only_what_is_strictly_before(warehouse: Warehouse) -> None:
    found = training(warehouse, 2)
    assert [(row["query_id"], row["label"], row["past"]) for row in found] == [
        ("ann", "b", ["a"]),
        ("ann", "c", ["a", "b"]),
        ("ann", "d", ["a", "b"]),  # c is of the same moment
    ]
    assert [(row["q_country"], row["q_when"]) for row in found] == [
        ("DE", day(1)),
        ("DE", day(3)),
        ("DE", day(3)),
    ]
    # Of c bob's on day 2; dan's on day 1 is held out.
    assert [row["c_sold"] for row in found] == [0.0, 1.0, 0.0]
    assert [row["q_busy"] for row in found] == [0.0, 2.0, 2.0]
    assert [row["newest_past_time"] for row in found] == [day(1), day(1), day(1)]
    assert [row["weight"] for row in found] == [1.0, 1.0, 1.0]
    assert [(row["candidate_index"], row["age_days"]) for row in found] == [(0, 2.0), (1, 0.0), (2, 0.0)]
    # printf '1 ann b' | md5sum | cut -c1-15, read as hexadecimal
    hashes = [0x892D0192DA2484A, 0x4A6D28AB453C4F8, 0xA3A40B87D9C559B]
    assert [row["order_hash"] for row in found] == hashes
    assert [row["shard"] for row in found] == [number % 10 for number in hashes]


def test_training_examples_keep_the_last_of_a_long_history(warehouse: Warehouse) -> None:
    assert [row["past"] for row in training(warehouse, 1)] == [["a"], ["b"], ["b"]]


def test_training_examples_without_a_past(warehouse: Warehouse) -> None:
    sql = render(
        "training_examples",
        pairing="next_event",
        query={},
        candidate={},
        max_history=0,
        window=1,
        query_counts=(),
        newest=day(3),
        weight="CAST(1 AS FLOAT64)",
        balance=False,
        seed=1,
        shards=1,
    )
    found = sorted((row["query_id"], row["candidate_index"], row["shard"]) for row in warehouse.rows(sql))
    assert found == [("ann", 0, 0), ("ann", 1, 0), ("ann", 2, 0)]


def test_interactions_are_what_training_may_see_by_entity(warehouse: Warehouse) -> None:
    found = warehouse.rows(render("interactions", newest=day(3), entities_of_million=1_000_000))
    ids = [row[0] for row in rows(warehouse, "SELECT candidate_id FROM catalogue ORDER BY candidate_index")]
    by_entity: dict[int, list[str]] = {}
    for row in found:
        by_entity.setdefault(row["query"], []).append(ids[row["candidate"]])
    # Of the first 15 hexadecimal digits of MD5: bob's events of day 4 are not training's.
    numbers = {name: int(hashlib.md5(name.encode()).hexdigest()[:15], 16) for name in ("ann", "bob")}
    assert by_entity == {numbers["ann"]: ["a", "b", "c", "d"], numbers["bob"]: ["b", "c"]}
    assert warehouse.rows(render("interactions", newest=day(3), entities_of_million=0)) == []


def test_labels_are_counted_by_candidate_and_age_in_whole_hours(warehouse: Warehouse) -> None:
    # ann's b of day 1, and c and d of day 3, the newest; a is no label. 90 minutes more are one whole hour.
    for newest, hours in ((day(3), 0), (day(3) + timedelta(minutes=90), 1)):
        assert rows(warehouse, render("labels", newest=newest)) == [
            (0, 48 + hours, 1),  # b
            (1, hours, 1),  # c
            (2, hours, 1),  # d
        ]


@pytest.mark.parametrize("paired", ["candidate_pairs"], indirect=True)
def test_a_label_counts_once_for_each_pair_that_has_it(warehouse: Warehouse, paired: str) -> None:
    # Pairs of neighbours: ann's a b c d give a and d one each, b and c two; bob's b c one each, of day 2.
    # The catalogue is b 3, c 3, a 1, d 1.
    assert rows(warehouse, "SELECT candidate_id, labels FROM catalogue ORDER BY candidate_index")[:4] == [
        ("b", 3),
        ("c", 3),
        ("a", 1),
        ("d", 1),
    ]
    assert rows(warehouse, render("labels", newest=day(3))) == [
        (0, 24, 1),  # bob's b
        (0, 48, 2),  # ann's b, beside a and beside c
        (1, 0, 2),  # ann's c, beside b and beside d
        (1, 24, 1),  # bob's c
        (2, 48, 1),  # ann's a
        (3, 0, 1),  # ann's d
    ]


def test_known_candidates_stand_in_the_order_of_their_index(warehouse: Warehouse) -> None:
    columns = warehouse.schema("candidates_now")
    features = candidate_features(SCHEMA, columns)
    static = {name: features[name] for name in ("track", "words", "price")}
    found = warehouse.rows(
        render("known_candidates", known="catalogue", candidate=static, past=past_values(SCHEMA, columns))
    )
    assert [(row["candidate_id"], row["c_words"], row["past_history"]) for row in found] == [
        ("b", "blue b", "b"),
        ("c", "green c", "c"),
        ("d", " d", "d"),
        ("a", "red a", "a"),
        ("g", "red g", "g"),
    ]
    assert [row["c_price"] for row in found] == [2.0, None, 4.0, 1.0, 6.0]
    assert math.isnan(found[1]["past_prices"])  # BigQuery's arrays hold no NULL


def test_an_example_weighs_by_its_engagement_and_the_mean_where_it_is_unknown(warehouse: Warehouse) -> None:
    # b 3, c 1, d unknown: the mean of those known is 2
    assert rows(warehouse, render("engagement", value="label.engagement")) == [(2.0,)]
    assert [row["weight"] for row in training(warehouse, 2, weight="IFNULL(label.engagement / 2.0, 1)")] == [
        1.5,
        0.5,
        1,
    ]


@pytest.mark.parametrize("paired", ["co_occurrence"], indirect=True)
def test_an_example_weighs_less_where_its_entity_has_many(warehouse: Warehouse, paired: str) -> None:
    # ann has four examples, each of 4 ** -0.5, and bob two: the mean of the six is (4 / 2 + 2 / sqrt(2)) / 6.
    warehouse.create("training_entities", render("training_entities"))
    ((mean,),) = rows(warehouse, render("balance", balance=0.5))
    assert mean == pytest.approx((2 + math.sqrt(2)) / 6)
    weight = "CAST(1 AS FLOAT64) * POW(counted.examples, -0.5)"
    found = training(warehouse, 2, pairing=paired, weight=weight, balance=True)
    warehouse.create("training_entities", "SELECT 'ann' AS query_id, 3 AS examples")  # as the other tests know it
    assert [row["weight"] for row in found] == pytest.approx([0.5] * 4 + [math.sqrt(0.5)] * 2)


@pytest.mark.parametrize("paired", ["co_occurrence"], indirect=True)
def test_co_occurrence_pairs_the_rest_of_the_basket_with_each(warehouse: Warehouse, paired: str) -> None:
    # bob's a and g are of day 4, which training must not see. Nearest two: of ann's a b c d, around b: a and c.
    found = [(row["query_id"], row["label"], row["past"]) for row in training(warehouse, 2, pairing=paired)]
    assert found == [
        ("ann", "a", ["b", "c"]),
        ("ann", "b", ["a", "c"]),
        ("ann", "c", ["b", "d"]),
        ("ann", "d", ["b", "c"]),
        ("bob", "b", ["c"]),
        ("bob", "c", ["b"]),
    ]
    whole = [row["past"] for row in training(warehouse, 9, pairing=paired)]
    assert whole[:4] == [["b", "c", "d"], ["a", "c", "d"], ["a", "b", "d"], ["a", "b", "c"]]
    assert rows(warehouse, "SELECT candidate_id, labels FROM catalogue ORDER BY candidate_index")[:4] == [
        ("b", 2),
        ("c", 2),
        ("a", 1),
        ("d", 1),
    ]


@pytest.mark.parametrize("paired", ["candidate_pairs"], indirect=True)
def test_candidate_pairs_are_neighbours_in_both_directions(warehouse: Warehouse, paired: str) -> None:
    found = training(warehouse, 1, pairing=paired)
    assert [(row["query_id"], row["label"], row["past"]) for row in found] == [
        ("ann", "a", ["b"]),
        ("ann", "b", ["a"]),
        ("ann", "b", ["c"]),
        ("ann", "c", ["b"]),
        ("ann", "c", ["d"]),
        ("ann", "d", ["c"]),
        ("bob", "b", ["c"]),
        ("bob", "c", ["b"]),
    ]
    assert len({row["order_hash"] for row in found}) == 8
    assert rows(warehouse, render("newest_example")) == [(day(3), 8)]
    assert rows(warehouse, "SELECT query_id, examples FROM training_entities ORDER BY query_id") == [("ann", 3)]


def test_old_labels_are_left_out_but_not_from_histories(warehouse: Warehouse) -> None:
    warehouse.create("staged_events", staged("next_event", oldest=day(2)))
    sql = "SELECT candidate_id, stage FROM staged_events WHERE query_id = 'ann' ORDER BY place"
    assert rows(warehouse, sql) == [
        ("a", "too little history"),
        ("b", "too old"),
        ("c", "example"),
        ("d", "example"),
    ]
    found = [(row["label"], row["past"]) for row in training(warehouse, 2)]
    warehouse.create("staged_events", staged("next_event"))
    assert found == [("c", ["a", "b"]), ("d", ["a", "b"])]


def test_counts_are_of_the_days_before_each_day(warehouse: Warehouse) -> None:
    # 2024-01-01 is day 19,723. Of c: bob on day 2, ann on day 3. Nothing of dan, who is held out.
    sql = "SELECT candidate_id, day, events_2d FROM candidate_days WHERE candidate_id IN ('a', 'c') ORDER BY 1, 2"
    assert rows(warehouse, sql) == [
        ("a", 19_723, 0),
        ("a", 19_726, 0),
        ("a", 19_727, 1),  # bob on day 4
        ("c", 19_724, 0),
        ("c", 19_725, 1),
    ]
    assert rows(warehouse, "SELECT day, events_2d FROM query_days WHERE query_id = 'cat' ORDER BY day") == [
        (19_727, 0),
        (19_728, 2),
    ]
    assert rows(warehouse, "SELECT day FROM query_days WHERE query_id = 'dan'") == []


@pytest.mark.parametrize(
    ("held_out", "sold"),
    [
        # On days 3 and 4: ann's c and d, bob's a and g; dan's d, who is held out.
        (True, {"b": 0.0, "c": 1.0, "d": 2.0, "a": 1.0, "g": 1.0}),
        (False, {"b": 0.0, "c": 1.0, "d": 1.0, "a": 1.0, "g": 1.0}),
    ],
)
def test_candidates_as_they_were_at_a_cut(warehouse: Warehouse, held_out: bool, sold: dict[str, float]) -> None:
    candidates = warehouse.schema("candidates_now")
    sql = render(
        "split_candidates",
        candidate=struct(candidate_features(SCHEMA, candidates)),
        counts=SCHEMA.counts("candidate"),
        day=day_of(day(5)),
        held_out=held_out,
    )
    assert [(row["id"], row["features"]["sold"]) for row in warehouse.rows(sql)] == list(sold.items())


def judge(warehouse: Warehouse, split: str, *, seed_events: int, max_targets: int = 500, queries: int = 100) -> None:
    validation = split == "validation"
    cut = day(4) if validation else day(5)
    events = render(
        "evaluation_events",
        cut=cut,
        until=day(5) if validation else None,
        continue_held_out=validation,
        known_before_validation=validation,
        seed_events=seed_events,
        max_targets=max_targets,
    )
    warehouse.create(f"{split}_events", events)
    sql = render("evaluation_judged", events=f"{split}_events", cut=cut, evaluation_queries=queries)
    warehouse.create(f"{split}_judged", sql)


def parts(warehouse: Warehouse, split: str) -> list[tuple[Any, ...]]:
    return rows(warehouse, f"SELECT query_id, candidate_id, part FROM {split}_events ORDER BY query_id, place")


def verdicts(warehouse: Warehouse, split: str) -> list[tuple[Any, ...]]:
    return rows(warehouse, f"SELECT query_id, event_time, verdict FROM {split}_judged ORDER BY query_id")


def test_test_queries_predict_what_comes_after_the_cut(warehouse: Warehouse) -> None:
    judge(warehouse, "test", seed_events=2)
    assert [row for row in parts(warehouse, "test") if row[0] in ("cat", "dan")] == [
        ("cat", "a", "history"),  # new after the cut: two seed events
        ("cat", "d", "history"),
        ("cat", "b", "target"),
        ("cat", "f", "not yet known"),
        ("dan", "c", "history"),  # known before the cut; that training held it out does not matter here
        ("dan", "b", "history"),
        ("dan", "d", "history"),
        ("dan", "a", "target"),
    ]
    assert verdicts(warehouse, "test") == [
        ("ann", day(5), "no event to predict"),
        ("bob", day(5), "no event to predict"),
        ("cat", day(5, 12), "used"),  # the moment of its last seed event
        ("dan", day(5), "used"),
    ]


def test_new_entities_with_nothing_but_seeds_or_unknown_targets_are_filtered(warehouse: Warehouse) -> None:
    judge(warehouse, "test", seed_events=3)
    assert verdicts(warehouse, "test")[2] == ("cat", day(6), "no target known before the cut")
    judge(warehouse, "test", seed_events=4)
    assert verdicts(warehouse, "test")[2] == ("cat", day(6), "no event to predict")


def test_validation_continues_held_out_entities(warehouse: Warehouse) -> None:
    judge(warehouse, "validation", seed_events=1)
    assert parts(warehouse, "validation") == [
        ("ann", "a", "history"),
        ("ann", "b", "history"),
        ("ann", "c", "history"),
        ("ann", "d", "history"),
        ("bob", "b", "history"),
        ("bob", "c", "history"),
        ("bob", "a", "target"),
        ("bob", "g", "not yet known"),  # first seen on day 4, by this very event
        ("dan", "c", "history"),  # held out: one seed event, what follows are targets
        ("dan", "b", "target"),
        ("dan", "d", "target"),
    ]
    assert verdicts(warehouse, "validation") == [
        ("ann", day(4), "no event to predict"),
        ("bob", day(4), "used"),
        ("dan", day(1), "used"),
    ]


def test_targets_and_queries_have_their_limits(warehouse: Warehouse) -> None:
    judge(warehouse, "validation", seed_events=1, max_targets=1, queries=1)
    assert parts(warehouse, "validation")[-2:] == [("dan", "b", "target"), ("dan", "d", "over max_targets")]
    # By hash: md5("dan") = 9180..., md5("bob") = 9f9d...
    assert [verdict for _, _, verdict in verdicts(warehouse, "validation")] == [
        "no event to predict",
        "over evaluation_queries",
        "used",
    ]


def test_evaluation_queries_have_features_history_and_targets(warehouse: Warehouse) -> None:
    judge(warehouse, "test", seed_events=2)
    candidates, queries = warehouse.schema("candidates_now"), warehouse.schema("queries_now")
    sql = render(
        "evaluation_queries",
        events="test_events",
        judged="test_judged",
        query=struct(query_features(SCHEMA, queries, moment="asked.event_time")),
        past=past_values(SCHEMA, candidates),
        max_history=2,
        counts=SCHEMA.counts("query"),
    )
    assert warehouse.rows(sql) == [
        {
            "id": "cat",
            "features": {"busy": 0.0, "country": None, "history": ["a", "d"], "prices": [1.0, 4.0], "when": day(5, 12)},
            "history": ["a", "d"],
            "targets": ["b"],
            "cold": True,
        },
        {
            "id": "dan",  # features keep the last two; the history, which rankings leave out, is whole
            "features": {"busy": 1.0, "country": None, "history": ["b", "d"], "prices": [2.0, 4.0], "when": day(5)},
            "history": ["c", "b", "d"],
            "targets": ["a"],
            "cold": True,  # held out
        },
    ]


def test_query_entities_as_they_are_now(warehouse: Warehouse) -> None:
    assert warehouse.create("numbered_candidates", render("numbered_candidates")) == 6
    query = query_features(SCHEMA, warehouse.schema("queries_now"), moment=literal(day(6)))
    sql = render(
        "query_entities",
        query={name: query[name] for name in ("country", "when", "busy")},
        max_history=2,
        counts=SCHEMA.counts("query"),
        day=day_of(day(6)),
    )
    found = warehouse.rows(sql)
    # By id: a 0, b 1, c 2, d 3, f 4, g 5.
    assert [(row["id"], row["past"] or None) for row in found] == [
        ("ann", [2, 3]),
        ("bob", [0, 5]),
        ("cat", [1, 4]),
        ("dan", [3, 0]),
        ("eve", None),
    ]
    # On days 4 and 5: bob's a and g, cat's a and d.
    assert [row["q_busy"] for row in found] == [0.0, 2.0, 2.0, 0.0, 0.0]
    assert (found[0]["q_country"], found[0]["q_when"]) == ("DE", day(6))


def test_query_entities_without_a_history(warehouse: Warehouse) -> None:
    sql = render("query_entities", query={}, max_history=0, counts=(), day=0)
    assert [list(row.values()) for row in warehouse.rows(sql)] == [["ann"], ["bob"], ["cat"], ["dan"], ["eve"]]


def test_candidates_as_they_are_now(warehouse: Warehouse) -> None:
    candidates = warehouse.schema("candidates_now")
    sql = render(
        "candidate_entities",
        candidate=struct(candidate_features(SCHEMA, candidates)),
        display="candidate.colour",
        restricts=restrict_columns(SCHEMA, candidates),
        crowding="CAST(NULL AS STRING)",
        counts=SCHEMA.counts("candidate"),
        day=day_of(day(6)),
    )
    found = warehouse.rows(sql)
    assert [row["features"]["sold"] for row in found] == [2.0, 0.0, 0.0, 1.0, 0.0, 1.0]
    assert [(row["display"], row["allow_colour"], row["crowding_tag"]) for row in found] == [
        ("red", "red", None),
        ("blue", "blue", None),
        ("green", "green", None),
        ("d", None, None),  # without a name it is shown by its id
        ("red", "red", None),
        ("red", "red", None),
    ]
    assert [(row["deny_colour"] or [], row["deny_size"]) for row in found] == [
        *((["blue", "green"], "XL"), ([], None), ([], None), (["red"], ""), ([], None), ([], None)),
    ]
    # 2 January 2024 is day 19,724 after 1970; the moment of b is half a second before 1970.
    assert [tuple(row[f"number_{name}"] for name in SCHEMA.numeric_restricts) for row in found] == [
        (1.0, 2.0**53, 19_724 * 86_400 + 1e-6, 1.0),
        (2.0, -1.0, -0.5, 0.0),
        (None, None, None, None),
        (4.0, None, None, None),
        (5.0, None, None, None),
        (6.0, None, None, None),
    ]
    assert {type(row["number_row"]) for row in found} == {float, type(None)}


def test_popular_candidates_have_what_they_are_filtered_by(warehouse: Warehouse) -> None:
    restricts = restrict_columns(SCHEMA, warehouse.schema("candidates_now"))
    found = warehouse.rows(render("popular", popular_from=day(5), restricts=restricts, crowding="candidate.sizes_gone"))
    assert [
        (row["id"], row["allow_colour"], row["deny_colour"] or [], row["number_price"], row["crowding_tag"])
        for row in found[:3]
    ] == [
        ("a", "red", ["blue", "green"], 1.0, "XL"),
        ("b", "blue", [], 2.0, None),
        ("d", None, ["red"], 4.0, ""),
    ]


def test_popular_candidates_by_recent_then_all_events(warehouse: Warehouse) -> None:
    # From day 5 on: a twice, b, d, f once. Ever: a 4, b 4, c 3, d 3, f 1, g 1.
    found = warehouse.rows(render("popular", popular_from=day(5), restricts={}, crowding="CAST(NULL AS STRING)"))
    assert [(row["id"], row["count"], row["ever"]) for row in found] == [
        *(("a", 2, 4), ("b", 1, 4), ("d", 1, 3), ("f", 1, 1), ("c", 0, 3), ("g", 0, 1)),
    ]


SOURCE = """(
  SELECT {value} AS value, catalogue.training_events AS weight
  FROM candidates_now AS candidate
  JOIN catalogue ON catalogue.candidate_id = candidate.candidate_id
  WHERE catalogue.training_events > 0
)"""


def vocabulary(warehouse: Warehouse, value: str, **parameters: Any) -> list[tuple[Any, ...]]:
    return rows(warehouse, render("vocabulary", source=SOURCE.format(value=value), sequence=False, **parameters))


def test_vocabularies_rank_by_what_they_count(warehouse: Warehouse) -> None:
    # g, which training never saw, is in none of them.
    assert vocabulary(warehouse, "candidate.candidate_id", counted="events", min_count=1, limit=None) == [
        ("b", 1, 2),
        ("c", 1, 2),
        ("a", 1, 1),
        ("d", 1, 1),
    ]
    assert vocabulary(warehouse, "candidate.candidate_id", counted="events", min_count=2, limit=1) == [("b", 1, 2)]
    # Each colour has one candidate; blue and green have two events each, red one; d has no colour.
    assert vocabulary(warehouse, "candidate.colour", counted="entities", min_count=1, limit=None) == [
        ("blue", 1, 2),
        ("green", 1, 2),
        ("red", 1, 1),
    ]


def test_vocabularies_of_lists_count_elements(warehouse: Warehouse) -> None:
    source = "(SELECT ['y', 'x', 'y'] AS value, 3 AS weight UNION ALL SELECT ['x'], 1)"
    sql = render("vocabulary", source=source, sequence=True, counted="entities", min_count=1, limit=None)
    assert rows(warehouse, sql) == [("y", 2, 6), ("x", 2, 4)]


@pytest.mark.parametrize(
    ("log", "mean", "deviation"),
    [
        # Prices 1, 2 (weight 2) and 4; c has none: mean 9/4, variance (1.5625 + 2 * 0.0625 + 3.0625) / 4.
        (False, 2.25, math.sqrt(1.1875)),
        # ln 2, twice ln 3, ln 5: mean (ln 2 + 2 ln 3 + ln 5) / 4 = ln(90) / 4
        (
            True,
            math.log(90) / 4,
            math.sqrt(sum(w * (math.log(1 + p) - math.log(90) / 4) ** 2 for p, w in [(1, 1), (2, 2), (4, 1)]) / 4),
        ),
    ],
)
def test_statistics_are_weighted(warehouse: Warehouse, log: bool, mean: float, deviation: float) -> None:
    source = SOURCE.format(value="candidate.price")
    found = rows(warehouse, render("statistics", source=source, sequence=False, log=log))
    assert found == [(pytest.approx(mean, abs=1e-12), pytest.approx(deviation, abs=1e-12), 3)]


def test_statistics_leave_out_what_is_no_finite_number(warehouse: Warehouse) -> None:
    numbers = ("CAST('NaN' AS FLOAT64)", "CAST('inf' AS FLOAT64)", "CAST(3 AS FLOAT64)")
    source = "(" + " UNION ALL ".join(f"SELECT {number} AS value, 1 AS weight" for number in numbers) + ")"
    assert rows(warehouse, render("statistics", source=source, sequence=False, log=False)) == [(3.0, 0.0, 1)]
    empty = "(SELECT CAST(NULL AS FLOAT64) AS value, 1 AS weight)"
    assert rows(warehouse, render("statistics", source=empty, sequence=False, log=False)) == []


def test_every_query_has_golden_rows() -> None:
    root = Path(__file__).parents[2]
    tests = "".join(path.read_text(encoding="utf-8") for path in (root / "tests").rglob("test_*.py"))
    queries = {path.stem for path in (root / "dataflow" / "queries").glob("*.sql")}
    assert len(queries) > 20
    assert {query for query in queries if not query.startswith("_") and f'"{query}"' not in tests} == set()


def test_of_identical_rows_exactly_one_counts(tmp_path: Path) -> None:
    """Two windows break ties each in their own way: both copies of a row were once discarded for the other's sake."""
    pairs = [(f"q{number}", "a", day(1), 0) for number in range(300)] * 2
    columns = dict(zip(("query_id", "candidate_id", "event_time", "position"), zip(*pairs, strict=True), strict=True))
    columns["engagement"] = pa.nulls(len(pairs), pa.float64())
    pq.write_table(pa.table(columns), tmp_path / "events.parquet")
    pq.write_table(pa.table({"candidate_id": ["a"]}), tmp_path / "candidates.parquet")
    with DuckDBWarehouse(tmp_path) as opened:
        opened.load("events", [tmp_path / "events.parquet"])
        opened.load("candidates_now", [tmp_path / "candidates.parquet"])
        opened.create("judged_events", judged())
        counts = rows(opened, render("counts", table="judged_events", column="verdict"))
    assert counts == [("duplicate event", 300), ("used", 300)]


def test_events_without_enough_engagement_are_no_positives(tmp_path: Path) -> None:
    events = [
        ("q", "a", day(1), 0, 5.0),  # low; the engaged one on day 2 is the first that counts
        ("q", "a", day(2), 0, 30.0),
        ("q", "a", day(3), 0, 60.0),
        ("q", "b", day(1), 0, None),
        ("q", "c", day(1), 0, 29.0),  # of two rows of one moment the more engaged counts
        ("q", "c", day(1), 0, 31.0),
    ]
    names = ("query_id", "candidate_id", "event_time", "position", "engagement")
    pq.write_table(pa.table(dict(zip(names, zip(*events, strict=True), strict=True))), tmp_path / "events.parquet")
    pq.write_table(pa.table({"candidate_id": ["a", "b", "c"]}), tmp_path / "candidates.parquet")
    with DuckDBWarehouse(tmp_path) as opened:
        opened.load("events", [tmp_path / "events.parquet"])
        opened.load("candidates_now", [tmp_path / "candidates.parquet"])
        opened.create("judged_events", judged(min_engagement=30.0))
        sql = (
            "SELECT candidate_id, engagement, verdict FROM judged_events ORDER BY candidate_id, event_time, engagement"
        )
        assert rows(opened, sql) == [
            ("a", 5.0, "low engagement"),
            ("a", 30.0, "used"),
            ("a", 60.0, "repeat"),
            ("b", None, "low engagement"),
            ("c", 29.0, "duplicate event"),
            ("c", 31.0, "used"),
        ]
