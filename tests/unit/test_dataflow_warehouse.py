"""The warehouse: what the guard refuses, what passes, and DuckDB behind it."""

from __future__ import annotations

import pytest

from dataflow.sql import ident, render
from dataflow.warehouse import UnsafeQueryError, check_query, to_duckdb
from dataflow.warehouse.names import qualify, source_tables
from lockstep.errors import DataError

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
    ("SELECT TRIM(a) FROM t", "TRIM without characters"),
    ("SELECT LTRIM(a) FROM t", "TRIM without characters"),
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


def test_a_column_name_has_no_backtick() -> None:
    with pytest.raises(DataError, match="cannot be a column name"):
        ident("a`b")


def test_a_template_with_a_missing_parameter_is_an_error() -> None:
    with pytest.raises(DataError, match="the query cut lacks a parameter: 'events' is undefined"):
        render("cut")


NAMED = [
    ("SELECT a FROM t", "SELECT a FROM `p.d.t` AS `t`"),
    ("SELECT `t`.a FROM `t`", "SELECT `t`.a FROM `p.d.t` AS `t`"),
    ("SELECT x.a FROM t AS x JOIN u y ON y.a = x.a", "SELECT x.a FROM `p.d.t` AS x JOIN `p.d.u` y ON y.a = x.a"),
    ("WITH t AS (SELECT 1 AS a) SELECT a FROM t", None),
    ("WITH t AS (SELECT 1 AS a) SELECT a FROM (SELECT a FROM T)", None),
    ("WITH t AS (SELECT a FROM t) SELECT a FROM t", "WITH t AS (SELECT a FROM `p.d.t` AS `t`) SELECT a FROM t"),
    (
        "WITH b AS (SELECT a FROM c), c AS (SELECT a FROM b) SELECT a FROM c",
        "WITH b AS (SELECT a FROM `p.d.c` AS `c`), c AS (SELECT a FROM b) SELECT a FROM c",
    ),
    (
        "SELECT a FROM (WITH t AS (SELECT 1 AS a) SELECT a FROM t) UNION ALL SELECT a FROM t",
        "SELECT a FROM (WITH t AS (SELECT 1 AS a) SELECT a FROM t) UNION ALL SELECT a FROM `p.d.t` AS `t`",
    ),
    ("SELECT e FROM `o-1.d.t` AS t, UNNEST(t.a) AS e, o.d.u", None),
    ("SELECT 't', a -- from t\nFROM t", "SELECT 't', a -- from t\nFROM `p.d.t` AS `t`"),
]


@pytest.mark.parametrize(("sql", "expected"), NAMED)
def test_tables_get_their_full_names_and_nothing_else_changes(sql: str, expected: str | None) -> None:
    assert qualify(sql, lambda name: f"`p.d.{name}`") == (expected or sql)


def test_the_tables_that_a_query_reads() -> None:
    query = check_query("WITH c AS (SELECT * FROM t) SELECT * FROM c, `o-1.d.u`, UNNEST([1]) AS e")
    assert source_tables(query) == {"t", "o-1.d.u"}
