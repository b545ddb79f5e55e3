"""Golden rows of the queries of source "bigquery", worked out by hand; none was produced by running the SQL."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from dataflow.sources.bigquery_columns import in_full
from dataflow.sources.bigquery_plans import Plan, attributes_plan, events_plan
from dataflow.sql import literal, render
from dataflow.warehouse import Warehouse
from lockstep.config import AttributesTable, EventsTable
from tests.fakes.warehouses import WAREHOUSES, opened


def day(number: int, hour: int = 0, minute: int = 0, second: int = 0) -> datetime:
    return datetime(2024, 1, number, hour, minute, second, tzinfo=UTC)


PLAYS = {  # who, what, when, seconds
    "who": ["ann", "ann", "ann", None, "bob", "bob", "bob", "x" * 257, "ann"],
    "what": pa.array([2, 1, 3, 1, None, 1, 1, 1, 1], pa.int64()),
    "when": [
        "2024-01-02",
        "2024-01-02T01:00:00+01:00",  # the same moment
        "2024-01-01T12:30Z",
        "2024-01-01",
        "2024-01-01",
        "2024-01-32",
        "",
        "2024-01-01",
        "2300-01-01",
    ],
    "seconds": [1.0, None, 2.5, 1.0, 1.0, 1.0, 1.0, 1.0, float("nan")],
}
TRACKS = {
    "id": ["a", "b", "a", " "],
    "tags": ["rock|pop", "", "x", "y"],
    "hot": ["yes", "N", None, "1"],
    "price": ["1.50", " +2e1", "", "3"],
}


@pytest.fixture(scope="module", params=WAREHOUSES)
def warehouse(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Warehouse]:
    work = tmp_path_factory.mktemp("warehouse")
    with opened(request.param, work) as found:
        for name, columns in (("plays", PLAYS), ("tracks", TRACKS)):
            pq.write_table(pa.table(columns), work / f"{name}.parquet")
            found.load(name, [work / f"{name}.parquet"])
        yield found


def make(warehouse: Warehouse, plan: Plan) -> list[tuple[str, str, int]]:
    """Judge and take the rows; returns the faults."""
    warehouse.create(plan.judged, plan.judged_sql())
    warehouse.create(plan.table, plan.good_sql())
    counts = warehouse.rows(render("source_faults", judged=plan.judged))
    return [
        (str(plan.faults[row["fault"] - 1][1]), plan.faults[row["fault"] - 1][2], row["rows"])
        for row in counts
        if row["fault"]
    ]


def rows(warehouse: Warehouse, sql: str) -> list[tuple[Any, ...]]:
    return [tuple(row.values()) for row in warehouse.rows(sql)]


def plays(warehouse: Warehouse) -> Plan:
    section = EventsTable(table="plays", query="who", candidate="what", timestamp="when", engagement="seconds")
    return events_plan(section, warehouse)


def test_events_are_judged_in_the_order_of_their_columns(warehouse: Warehouse) -> None:
    assert make(warehouse, plays(warehouse)) == [
        ("empty id", "who", 1),
        ("id too long", "who", 1),
        ("empty id", "what", 1),
        ("unreadable time", "when", 1),  # there is no 32nd of January
        ("time out of range", "when", 1),  # the year 2300; that its engagement is NaN comes after
        ("missing time", "when", 1),
    ]
    assert rows(warehouse, "SELECT * FROM events ORDER BY query_id, event_time, candidate_id") == [
        ("ann", "3", day(1, 12, 30), 0, 2.5),
        ("ann", "1", day(2), 0, None),  # of one moment and simultaneous
        ("ann", "2", day(2), 0, 1.0),
    ]


def test_bad_rows_are_kept_as_they_were_found(warehouse: Warehouse) -> None:
    plan = plays(warehouse)
    warehouse.create(plan.judged, plan.judged_sql())
    sql = render("source_dead", judged=plan.judged, fault=1, id="query_id", limit=5)
    assert rows(warehouse, sql) == [({"seconds": 1.0, "what": 1, "when": "2024-01-01", "who": None},)]
    good = rows(warehouse, f"SELECT COUNT(*) AS n FROM {plan.judged} WHERE fault = 0 AND found IS NULL")
    assert good == [(3,)]


def test_ids_of_the_events_make_a_table(warehouse: Warehouse) -> None:
    make(warehouse, plays(warehouse))
    warehouse.create("ids", render("source_ids", id="candidate_id"))
    assert rows(warehouse, "SELECT * FROM ids ORDER BY candidate_id") == [("1", 0), ("2", 0), ("3", 0)]


def test_attributes_are_cast_and_numbered_within_their_id(warehouse: Warehouse) -> None:
    section = AttributesTable(
        table="tracks",
        id="id",
        columns={"tags": "tags", "hot": "hot", "price": "price"},
        types={"hot": "bool", "price": "double"},
        separators={"tags": "|"},
    )
    assert make(warehouse, attributes_plan("candidates", section, warehouse)) == [("empty id", "id", 1)]
    found = rows(warehouse, "SELECT * FROM candidates ORDER BY candidate_id, `row_number`")
    assert [(*row[:1], row[1] or [], *row[2:]) for row in found] == [
        ("a", ["rock", "pop"], True, 1.5, 0),  # 'rock pop' sorts before 'x'
        ("a", ["x"], None, None, 1),
        ("b", [], False, 20.0, 0),
    ]


def test_the_unit_of_whole_numbers_is_counted(warehouse: Warehouse) -> None:
    ranges = {"s": (1, 3), "ms": (3, 1_000)}
    sql = render("source_unit", table="plays", column="source_row.what", ranges=ranges)
    assert rows(warehouse, sql) == [(7, 1, 8)]  # 2 and six times 1; 3; one is missing


@pytest.mark.parametrize(
    ("text", "full"),
    [
        ("2024-03-01", "2024-03-01T00:00:00+00:00"),
        ("2024-03-01Z", "2024-03-01T00:00:00+00:00"),
        ("2024-03-01-05", "2024-03-01T00:00:00-05:00"),
        ("2024-03-01T10", "2024-03-01T10:00:00+00:00"),
        ("2024-03-01 10+0130", "2024-03-01 10:00:00+01:30"),
        ("2024-03-01T10:20-01:00", "2024-03-01T10:20:00-01:00"),
        ("2024-03-01T10:20:30.1234567Z", "2024-03-01T10:20:30.123456+00:00"),
        ("2024-03-01T10:20:30.5", "2024-03-01T10:20:30.5+00:00"),
    ],
)
def test_moments_have_one_spelling_before_they_are_cast(warehouse: Warehouse, text: str, full: str) -> None:
    assert rows(warehouse, f"SELECT {in_full(literal(text))} AS full_text") == [(full,)]


def test_a_position_of_the_source_is_kept(warehouse: Warehouse) -> None:
    section = EventsTable(table="plays", query="who", candidate="what", timestamp="when", position="what")
    plan = events_plan(section, warehouse)
    warehouse.create(plan.judged, plan.judged_sql())
    good = render("source_events", judged=plan.judged, positioned=True)
    assert plan.good_sql() == good
    # The NaN of an engagement that nobody asked for is no fault; the year 2300 still is.
    assert sorted(rows(warehouse, good)) == [
        ("ann", "1", day(2), 1, None),
        ("ann", "2", day(2), 2, None),
        ("ann", "3", day(1, 12, 30), 3, None),
    ]


def test_entities_are_ordered_by_what_has_an_order(warehouse: Warehouse) -> None:
    section = AttributesTable(table="tracks", id="id", columns={"tags": "tags"}, separators={"tags": "|"})
    plan = attributes_plan("candidates", section, warehouse)
    columns = {"judged": plan.judged, "id": "candidate_id", "columns": ["tags"]}
    assert plan.good_sql() == render("source_entities", **columns, order=["ARRAY_TO_STRING(`tags`, ' ')"])
    warehouse.create(plan.judged, plan.judged_sql())
    backwards = render("source_entities", **columns, order=["ARRAY_TO_STRING(`tags`, ' ') DESC"])
    assert sorted((row[0], row[2], row[1] or []) for row in rows(warehouse, backwards)) == [
        ("a", 0, ["x"]),
        ("a", 1, ["rock", "pop"]),
        ("b", 0, []),
    ]
