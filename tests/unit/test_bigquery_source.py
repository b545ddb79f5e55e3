"""The source "bigquery" reads a table as the source "tables" reads a file of the same rows."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from dataflow.dead_letters import DeadLetters
from dataflow.sources import SourceCounts
from dataflow.sources import bigquery as source
from dataflow.sources.bigquery import read_tables
from dataflow.sql import render
from lockstep.config import BigQuerySection, DataSection, TablesSource
from lockstep.errors import ConfigError, DataError
from tests.fakes.bigquery import FakeBigQuery, serve_bigquery
from tests.fakes.warehouses import on_fake
from tests.unit.sources_harness import Read, read

GOOD = datetime(2024, 3, 1, tzinfo=UTC)
EVENTS = {"query": "user", "candidate": "track", "timestamp": "at"}


@pytest.fixture
def fake(tmp_path: Path) -> Iterator[FakeBigQuery]:
    with serve_bigquery(tmp_path / "bucket") as running:
        running.engine.datasets["shop", "sales"] = {"location": "EU"}
        yield running


def section(tables: dict[str, Any], kind: str) -> dict[str, Any]:
    """The tables' sections, with the key that the source wants."""
    place = {"file": "{}.parquet", "table": "shop.sales.{}"}[kind]
    return {name: {kind: place.format(name), **settings} for name, settings in tables.items()}


def from_files(rows: dict[str, pa.Table], tables: dict[str, Any], folder: Path) -> Read:
    (folder / "files").mkdir()
    for name, table in rows.items():
        pq.write_table(table, folder / "files" / f"{name}.parquet")
    settings = TablesSource.model_validate(section(tables, "file"))
    (folder / "read").mkdir()
    return read(DataSection(source="tables", path=str(folder / "files"), tables=settings), folder / "read")


def from_bigquery(
    fake: FakeBigQuery, rows: dict[str, pa.Table], tables: dict[str, Any], folder: Path
) -> tuple[SourceCounts, dict[str, list[dict[str, Any]]], list[dict[str, Any]]]:
    for name, table in rows.items():
        fake.engine.put(("shop", "sales", name), table)
    settings = TablesSource.model_validate(section(tables, "table"))
    data = DataSection(
        source="bigquery",
        warehouse="bigquery",
        tables=settings,
        bigquery=BigQuerySection(project="p-1", location="EU"),
    )
    with on_fake(fake, folder) as warehouse, DeadLetters(folder / "dead.jsonl") as letters:
        counts = read_tables(data, warehouse, letters, folder)
        found = {name: warehouse.rows(f"SELECT * FROM {name}") for name in ("events", "candidates", "queries")}
    dead = [json.loads(line) for line in (folder / "dead.jsonl").read_text(encoding="utf-8").splitlines()]
    assert sum(line["rows"] for line in dead) == sum(counts.dead_lettered.values())
    return counts, found, dead


def unordered(rows: list[dict[str, Any]]) -> list[str]:
    """The rows without their numbers; BigQuery has no NULL arrays."""
    return sorted(repr([(key, shown(row[key])) for key in sorted(row) if key != "row_number"]) for row in rows)


def shown(value: Any) -> Any:
    if isinstance(value, datetime):
        return value.isoformat()
    return None if value == [] else value


def same(fake: FakeBigQuery, rows: dict[str, pa.Table], tables: dict[str, Any], folder: Path) -> Read:
    """Read both ways, compare everything; returns what the files gave."""
    expected = from_files(rows, tables, folder)
    counts, found, dead = from_bigquery(fake, rows, tables, folder)
    assert counts == expected.counts
    for name in ("events", "candidates", "queries"):
        assert unordered(found[name]) == unordered(getattr(expected, name)), name
    assert sorted((line["reason"], line["column"], line["rows"]) for line in dead) == sorted(
        (line["reason"], line["column"], line["rows"]) for line in expected.dead
    )
    return expected


def events(**columns: Any) -> pa.Table:
    """Events that differ in the given columns only; `n` positions them."""
    rows = len(next(iter(columns.values())))
    base = {
        "user": pa.array([f"u{n % 3}" for n in range(rows)], pa.string()),
        "track": pa.array([f"t{n}" for n in range(rows)], pa.string()),
        "at": pa.array([GOOD] * rows, pa.timestamp("us", tz="UTC")),
        "n": pa.array(range(rows), pa.int64()),
    }
    return pa.table({**base, **columns})


POSITIONED = {"events": {**EVENTS, "position": "n"}}


def test_ids_of_text_are_judged_alike(fake: FakeBigQuery, tmp_path: Path) -> None:
    ids = [
        "a",
        None,
        "",
        " ",
        "\t\u3000\u00a0\u0085\u001c",
        " x ",
        "é" * 128,
        "é" * 128 + "x",
        "x" * 257,
        "日本",
        "\u200b",
    ]
    found = same(fake, {"events": events(user=pa.array(ids))}, POSITIONED, tmp_path)
    assert found.reasons == {"empty id": 4, "id too long": 2}


def test_ids_of_whole_numbers_become_text(fake: FakeBigQuery, tmp_path: Path) -> None:
    rows = events(track=pa.array([1, None, -3, 2**62], pa.int64()))
    found = same(fake, {"events": rows}, POSITIONED, tmp_path)
    assert [row["candidate_id"] for row in found.events] == ["1", "-3", str(2**62)]
    assert found.reasons == {"empty id": 1}


FAR = [datetime(1899, 12, 31, 23, 59, 59), datetime(1900, 1, 1), datetime(2199, 12, 31), datetime(2200, 1, 1)]
TEXTS = [
    *("2024-03-01", "2024-03-01T10", "2024-03-01 10:20", "2024-03-01T10:20:30", "2024-03-01 10:20:30.1234567Z"),
    *("2024-03-01T10:20:30+01", "2024-03-01T10:20:30-0130", "2024-03-01T10:20:30.5+05:30", "2024-03-01Z"),
    *("2024-03-01-05", "2024-03-01T10Z", "2024-03-01T10:20+01:00", " 2024-03-01T10:20:30\n", "2024-02-29"),
    *("2024-02-30", "2024-13-01", "2024-03-01T24:00", "2024-03-01T10:60", "2024-03-01T10:20:60", "yesterday", "1.3.24"),
    *("1899-12-31", "2200-01-01", "", "  ", "x" * 10_001),
]


@pytest.mark.parametrize(
    ("at", "reasons"),
    [
        (pa.array([*FAR, None], pa.timestamp("us", tz="UTC")), {"time out of range": 2, "missing time": 1}),
        (pa.array([*FAR, None], pa.timestamp("us")), {"time out of range": 2, "missing time": 1}),
        (pa.array([date(1899, 12, 31), date(2024, 2, 29), None]), {"time out of range": 1, "missing time": 1}),
        (pa.array([1_700_000_000] * 9 + [10**12, None], pa.int64()), {"time out of range": 1, "missing time": 1}),
        (pa.array([1_700_000_000_123] * 9 + [-(2**62)], pa.int64()), {"time out of range": 1}),
        (pa.array([1_700_000_000_123_456] * 4, pa.int64()), {}),
        (pa.array([1_700_000_000_123_456_789, -1_700_000_000_123_456_789] + [1_700_000_000 * 10**9] * 8), {}),
        (
            pa.array([*TEXTS, None]),
            {"unreadable time": 7, "time out of range": 2, "missing time": 3, "text too long": 1},
        ),
    ],
    ids=["timestamp", "datetime", "date", "s", "ms", "us", "ns", "text"],
)
def test_moments_are_judged_alike(fake: FakeBigQuery, tmp_path: Path, at: pa.Array, reasons: dict[str, int]) -> None:
    assert same(fake, {"events": events(at=at)}, POSITIONED, tmp_path).reasons == reasons


def test_a_named_unit_is_not_guessed(fake: FakeBigQuery, tmp_path: Path) -> None:
    tables = {"events": {**POSITIONED["events"], "timestamp_unit": "ms"}}
    found = same(fake, {"events": events(at=pa.array([86_400_000, 0], pa.int64()))}, tables, tmp_path)
    assert found.events[0]["event_time"] == datetime(1970, 1, 2, tzinfo=UTC)


def test_positions_and_engagement_are_judged_alike(fake: FakeBigQuery, tmp_path: Path) -> None:
    nan, inf = float("nan"), float("inf")
    rows = events(
        n=pa.array([0, None, 2, 3, 4, 5], pa.int64()), seconds=pa.array([1.5, 2.0, None, nan, inf, -1.0], pa.float64())
    )
    found = same(fake, {"events": rows}, {"events": {**POSITIONED["events"], "engagement": "seconds"}}, tmp_path)
    assert found.reasons == {"missing position": 1, "not a finite number": 2}
    assert [row["engagement"] for row in found.events] == [1.5, None, -1.0]


ATTRIBUTES = pa.table(
    {
        "id": ["a", "b", "c", "d", "e", "", "f"],
        "title": ["A", None, "x" * 10_001, "D", "E", "-", "é" * 5_000],
        "price": pa.array([1, 2, 3, None, 5, 6, 7], pa.int64()),
        "weight": ["1.5", " 2e3 ", "", "three", "NaN", "1", "1e999"],
        "sale": ["yes", "NO", None, "", "perhaps", "1", "f"],
        "stock": pa.array([1, 0, None, 1, 1, 1, 0], pa.int64()),
        "made": pa.array([date(2020, 1, 1)] * 6 + [None]),
        "genres": ["rock|pop", "", None, "x", "y|", "z", "|"],
        "vector": pa.array([[0.5, 1.0], [], [2.0], [3.0], [4.0], [5.0], [6.0]]),
        "words": pa.array([["a"], ["b", ""], [], [], [], [], ["c"]]),
    }
)


def test_attributes_are_judged_alike(fake: FakeBigQuery, tmp_path: Path) -> None:
    columns = {name: name for name in ATTRIBUTES.schema.names if name != "id"} | {"label": "price"}
    types = {"weight": "double", "sale": "bool", "stock": "bool", "label": "string", "price": "double"}
    candidates = {"id": "id", "columns": columns, "types": types, "separators": {"genres": "|"}}
    found = same(
        fake,
        {"events": events(track=pa.array(["a", "b"])), "candidates": ATTRIBUTES},
        {**POSITIONED, "candidates": candidates},
        tmp_path,
    )
    assert found.reasons == {
        "text too long": 1,  # c
        "wrong type": 1,  # d: three
        "not a finite number": 2,  # e: NaN; f: 1e999
        "empty id": 1,
    }
    assert [row["candidate_id"] for row in found.candidates] == ["a", "b"]
    assert found.candidates[0]["genres"] == ["rock", "pop"]


def test_bad_elements_of_a_list_reject_their_row(fake: FakeBigQuery, tmp_path: Path) -> None:
    queries = pa.table(
        {"user": ["a", "b", "c"], "v": [[1.0], [float("nan"), 1.0], []], "w": [["x" * 10_001], ["y"], ["", "z"]]}
    )
    rows = {"events": events(user=pa.array(["a"])), "queries": queries}
    assert same(fake, rows, {**POSITIONED, "queries": {"id": "user"}}, tmp_path).reasons == {
        "text too long": 1,
        "not a finite number": 1,
    }


def test_without_a_position_events_of_one_moment_are_simultaneous(fake: FakeBigQuery, tmp_path: Path) -> None:
    rows = events(user=pa.array(["u", "u", "v", "u", "u"]), track=pa.array(["b", "a", "c", "a", "z"]))
    early = rows.set_column(
        2, "at", pa.array([GOOD] * 4 + [datetime(2024, 2, 1, tzinfo=UTC)], rows.schema.field("at").type)
    )
    counts, found, _ = from_bigquery(fake, {"events": early}, {"events": EVENTS}, tmp_path)
    assert sorted((row["query_id"], row["position"], row["candidate_id"]) for row in found["events"]) == [
        ("u", 0, "a"),
        ("u", 0, "a"),
        ("u", 0, "b"),
        ("u", 0, "z"),
        ("v", 0, "c"),
    ]
    assert {row["engagement"] for row in found["events"]} == {None}
    assert counts.derived == ("candidates", "queries")
    assert sorted(found["candidates"], key=repr) == [{"candidate_id": i, "row_number": 0} for i in "abcz"]


def test_of_several_rows_of_an_id_the_smallest_comes_first(fake: FakeBigQuery, tmp_path: Path) -> None:
    candidates = pa.table({"id": ["a", "a", "b"], "colour": ["red", "blue", None], "tags": [["x"], ["y"], []]})
    rows = {"events": events(track=pa.array(["a"])), "candidates": candidates}
    _, found, _ = from_bigquery(fake, rows, {"events": EVENTS, "candidates": {"id": "id"}}, tmp_path)
    by_number = sorted((row["candidate_id"], row["row_number"], row["colour"]) for row in found["candidates"][:3])
    assert by_number == [("a", 0, "blue"), ("a", 1, "red"), ("b", 0, None)]


def test_only_some_bad_rows_are_downloaded_and_all_are_counted(
    fake: FakeBigQuery, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(source, "SHOWN", 3)
    rows = events(user=pa.array([None] * 8 + ["u", "x" * 300]))
    counts, _, dead = from_bigquery(fake, {"events": rows}, POSITIONED, tmp_path)
    assert counts.dead_lettered == {"empty id": 8, "id too long": 1}
    assert [(line["reason"], line["source"], line["column"], line["rows"]) for line in dead] == [
        *[("empty id", "shop.sales.events", "user", 1)] * 3,
        ("empty id", "shop.sales.events", "user", 5),
        ("id too long", "shop.sales.events", "user", 1),
    ]
    assert dead[0]["row"] == {"at": "2024-03-01 00:00:00.000000Z", "n": 0, "track": "t0", "user": None}
    assert dead[3]["row"]["note"] == "5 more rows of this fault, which are not shown"


@pytest.mark.parametrize(
    ("column", "values", "said"),
    [
        ("user", pa.array([1.0]), "column 'user' is double, expected STRING or INT64: read a view"),
        ("n", pa.array(["1"]), "column 'n' is string, expected INT64"),
        ("at", pa.array([1.5]), "column 'at' is double, expected TIMESTAMP, DATETIME, DATE, INT64 or ISO 8601"),
        ("at", pa.array([5_000_000_000_000_000]), "the unit of the moments in column 'at' of shop.sales.events cannot"),
    ],
)
def test_a_type_that_cannot_be_used_is_refused(
    fake: FakeBigQuery, tmp_path: Path, column: str, values: pa.Array, said: str
) -> None:
    with pytest.raises(DataError, match=said):
        from_bigquery(fake, {"events": events(**{column: values})}, POSITIONED, tmp_path)


def test_missing_tables_and_columns_are_named(fake: FakeBigQuery, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"shop\.sales\.events has no column 'n', .*it has at, track, user"):
        from_bigquery(fake, {"events": events(user=pa.array(["u"])).drop(["n"])}, POSITIONED, tmp_path)
    with pytest.raises(DataError, match=r"Not found: Table shop:sales\.candidates"):
        from_bigquery(
            fake, {"events": events(user=pa.array(["u"]))}, {**POSITIONED, "candidates": {"id": "id"}}, tmp_path
        )
    with pytest.raises(DataError, match="holds no rows"):
        from_bigquery(fake, {"events": events(user=pa.array([], pa.string()))}, POSITIONED, tmp_path)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"warehouse": "duckdb"}, "needs warehouse = 'bigquery'"),
        ({"tables": None}, r"needs the section \[data.tables.events\]"),
        (
            {"tables": {"events": {**EVENTS, "file": "x.csv"}}},
            "has file = 'x.csv', but source = 'bigquery' reads tables",
        ),
        ({"tables": {"events": EVENTS}}, "table = None: name it as project.dataset.table"),
        ({"tables": {"events": {**EVENTS, "table": "a.b"}}}, "table = 'a.b': name it as project.dataset.table"),
    ],
)
def test_contradictions_are_errors(changes: dict[str, Any], said: str) -> None:
    base = {"source": "bigquery", "warehouse": "bigquery", "tables": {"events": {**EVENTS, "table": "a.b.c"}}}
    assert source.check_source(DataSection.model_validate(base)).events.table == "a.b.c"
    with pytest.raises(ConfigError, match=said):
        source.check_source(DataSection.model_validate({**base, **changes}))


def test_the_queries_take_any_column_name() -> None:
    sql = render("source_rows", values={"a": "1"}, faults=[], found=["sp ace", "select"], table="p-1.d.t")
    assert "source_row.`sp ace` AS `sp ace`," in sql
    assert "FROM `p-1.d.t` AS source_row" in sql
