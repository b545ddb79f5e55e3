"""The warehouse: what the guard refuses, what passes, and DuckDB behind it."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from dataflow.split import split_bucket
from dataflow.sql import ident, literal, render
from dataflow.warehouse import DuckDBWarehouse, UnsafeQueryError, Warehouse, check_query, to_duckdb
from lockstep.errors import DataError


@pytest.fixture
def warehouse(tmp_path: Path) -> Iterator[Warehouse]:
    with DuckDBWarehouse(tmp_path, memory="500MB", threads=1) as opened:
        yield opened


DENIED = [
    ("SELECT v FROM t, UNNEST(t.a) AS v WITH OFFSET AS o", "WITH OFFSET"),
    ("SELECT a[OFFSET(1)] FROM t", "an array index"),
    ("SELECT a[OFFSET(k)] FROM t", "an array index"),
    ("SELECT a[SAFE_ORDINAL(1)] FROM t", "an array index"),
    ("SELECT a[0] FROM t", "an array index"),
    ("SELECT TIMESTAMP_DIFF(a, b, DAY) FROM t", "a *_DIFF of moments"),
    ("SELECT DATE_DIFF(a, b, DAY) FROM t", "a *_DIFF of moments"),
    ("SELECT DATETIME_DIFF(a, b, DAY) FROM t", "a *_DIFF of moments"),
    ("SELECT TIME_DIFF(a, b, HOUR) FROM t", "a *_DIFF of moments"),
    ("SELECT SAFE_CAST(a AS INT64) FROM t", "a CAST to an integer"),
    ("SELECT CAST('1.5' AS INT64)", "a CAST to an integer"),
    ("SELECT CAST(2.5 AS INT64)", "a CAST to an integer"),
    ("SELECT SAFE_CAST(CONCAT('0x', a) AS INT64) FROM t", "a CAST to an integer"),
    ("SELECT ARRAY_CONCAT(a, b) FROM t", "ARRAY_CONCAT"),
    ("SELECT SUBSTR(a, 0, 3) FROM t", "SUBSTR from other than a literal position of 1 or more"),
    ("SELECT SUBSTR(a, -3) FROM t", "SUBSTR from other than a literal position of 1 or more"),
    ("SELECT SUBSTRING(a, k, 3) FROM t", "SUBSTR from other than a literal position of 1 or more"),
    ("SELECT APPROX_TOP_COUNT(a, 3) FROM t", "an APPROX_* function"),
    ("SELECT APPROX_TOP_SUM(a, b, 3) FROM t", "an APPROX_* function"),
    ("SELECT APPROX_QUANTILES(a, 3) FROM t", "an APPROX_* function"),
    ("SELECT APPROX_COUNT_DISTINCT(a) FROM t", "an APPROX_* function"),
    ("SELECT ARRAY_AGG(a LIMIT 3) FROM t", "ARRAY_AGG with LIMIT"),
    ("SELECT ARRAY_AGG(a ORDER BY b LIMIT 3) FROM t", "ARRAY_AGG with LIMIT"),
    ("SELECT ARRAY_AGG(a) FROM t", "ARRAY_AGG without ORDER BY"),
    ("SELECT ARRAY_AGG(a) OVER (PARTITION BY b) FROM t", "ARRAY_AGG without ORDER BY"),
    ("SELECT FARM_FINGERPRINT(a) FROM t", "FARM_FINGERPRINT"),
    ("SELECT IEEE_DIVIDE(a, b) FROM t", "IEEE_DIVIDE"),
    ("SELECT EXTRACT(ISOWEEK FROM a) FROM t", "EXTRACT or truncation by week"),
    ("SELECT EXTRACT(WEEK FROM a) FROM t", "EXTRACT or truncation by week"),
    ("SELECT TIMESTAMP_TRUNC(a, WEEK) FROM t", "EXTRACT or truncation by week"),
    ("SELECT DATE_TRUNC(a, ISOWEEK) FROM t", "EXTRACT or truncation by week"),
    ("SELECT s.* EXCEPT (a) FROM t AS s", "alias.* EXCEPT"),
    ("SELECT RAND()", "something that changes from run to run"),
    ("SELECT GENERATE_UUID()", "something that changes from run to run"),
    ("SELECT CURRENT_TIMESTAMP()", "something that changes from run to run"),
    ("SELECT NET.HOST(a) FROM t", "a NET. or SAFE. function"),
    ("SELECT SAFE.SUBSTR(a, 1) FROM t", "a NET. or SAFE. function"),
    ("SELECT KEYS.NEW_KEYSET(a) FROM t", "a function that has no known translation"),
    ("SELECT x FROM (SELECT ARRAY_AGG(a[0] ORDER BY b) AS x FROM t)", "an array index"),
]


@pytest.mark.parametrize(("sql", "construct"), DENIED)
def test_the_guard_refuses_what_the_engines_read_differently(sql: str, construct: str) -> None:
    with pytest.raises(UnsafeQueryError) as refused:
        to_duckdb(sql)
    assert refused.value.construct == construct
    assert construct in str(refused.value)


def test_a_refusal_says_what_to_write_instead() -> None:
    with pytest.raises(UnsafeQueryError) as refused:
        check_query("SELECT h[OFFSET(k)] FROM t")
    assert str(refused.value) == (
        "the query uses an array index, which BigQuery and DuckDB read differently: h[OFFSET(k)]; "
        "join flat rows by their ROW_NUMBER()"
    )


@pytest.mark.parametrize(
    "sql",
    [
        "SELECT MOD(CAST(CONCAT('0x', SUBSTR(TO_HEX(MD5(a)), 1, 8)) AS INT64), 10) FROM t",
        "SELECT ARRAY_AGG(a ORDER BY b) FROM t",
        "SELECT ARRAY_AGG(a) OVER (PARTITION BY c ORDER BY b ROWS BETWEEN 3 PRECEDING AND 1 PRECEDING) FROM t",
        "SELECT (UNIX_MICROS(a) - UNIX_MICROS(b)) / 1000 FROM t",
        "SELECT * FROM t WHERE TRUE QUALIFY ROW_NUMBER() OVER (PARTITION BY a ORDER BY b) = 1",
        "SELECT * EXCEPT (a) FROM t",
        "SELECT CAST(a AS STRING), CAST(a AS FLOAT64) FROM t",
    ],
)
def test_the_guard_lets_portable_queries_pass(sql: str) -> None:
    assert to_duckdb(sql)


@pytest.mark.parametrize("sql", ["DROP TABLE t", "SELECT 1; SELECT 2", "SELECT FROM WHERE", ""])
def test_a_query_is_one_select(sql: str) -> None:
    with pytest.raises(DataError):
        to_duckdb(sql)


def test_the_split_hash_is_the_same_in_sql_and_python(warehouse: Warehouse, tmp_path: Path) -> None:
    ids = ["a", "", "Zoë", "日本", "x'y\\z`\n\t", "a" * 300, *(f"user-{n}" for n in range(500))]
    pq.write_table(pa.table({"id": ids}), tmp_path / "ids.parquet")
    warehouse.load("ids", [tmp_path / "ids.parquet"])
    sql = "SELECT id, MOD(CAST(CONCAT('0x', SUBSTR(TO_HEX(MD5(id)), 1, 8)) AS INT64), 10000) AS bucket FROM ids"
    found = {row["id"]: row["bucket"] for row in warehouse.rows(sql)}
    assert found == {entity: split_bucket(entity, 10_000) for entity in ids}
    # printf a | md5sum is 0cc175b9...; 0x0cc175b9 = 214,005,177
    assert found["a"] == 5177


def test_values_survive_as_literals_and_names_as_identifiers(warehouse: Warehouse) -> None:
    nasty = 'it\'s "a" `b` \\n \n\r {{ x }} -- ; DROP'
    moment = datetime(2024, 2, 29, 23, 59, 59, 123456, tzinfo=UTC)
    sql = (
        f"SELECT {literal(nasty)} AS {ident('select')}, {literal(moment)} AS m, {literal(-3)} AS i, {literal(0.1)} AS f"
    )
    row = warehouse.rows(sql)[0]
    assert (row["select"], row["i"], float(row["f"])) == (nasty, -3, 0.1)
    assert row["m"] == moment
    with pytest.raises(DataError, match="cannot be a column name"):
        ident("a`b")


def test_a_template_with_a_missing_parameter_is_an_error() -> None:
    with pytest.raises(DataError, match="the query cut lacks a parameter: 'events' is undefined"):
        render("cut")


def test_tables_are_loaded_created_exported_and_described(warehouse: Warehouse, tmp_path: Path) -> None:
    for part, values in enumerate(([3, 1], [2])):
        pq.write_table(pa.table({"n": pa.array(values, pa.int64())}), tmp_path / f"it's-{part}.parquet")
    assert warehouse.load("numbers", sorted(tmp_path.glob("it's-*.parquet"))) == 3
    assert warehouse.create("odd", "SELECT n FROM numbers WHERE MOD(n, 2) = 1") == 2
    assert warehouse.schema("odd") == pa.schema([("n", pa.int64())])
    assert warehouse.export("SELECT n, [n, n + 1] AS pair FROM odd ORDER BY n", tmp_path / "out.parquet") == 2
    assert pq.read_table(tmp_path / "out.parquet").to_pylist() == [{"n": 1, "pair": [1, 2]}, {"n": 3, "pair": [3, 4]}]


def test_order_puts_nulls_first_as_bigquery_does(warehouse: Warehouse) -> None:
    found = warehouse.rows("SELECT x FROM (SELECT 1 AS x UNION ALL SELECT NULL UNION ALL SELECT 0) ORDER BY x")
    assert [row["x"] for row in found] == [None, 0, 1]


def test_errors_are_sentences(warehouse: Warehouse, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no Parquet files for the table 'events'"):
        warehouse.load("events", [])
    with pytest.raises(DataError, match="no table 'absent'"):
        warehouse.schema("absent")
    with pytest.raises(DataError, match=r"the warehouse refused a query: .*absent"):
        warehouse.rows("SELECT 1 AS a FROM absent")
    with pytest.raises(DataError, match="is no table name"):
        warehouse.create('x"; DROP', "SELECT 1 AS a")
