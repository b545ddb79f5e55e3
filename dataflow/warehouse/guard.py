"""The guard between BigQuery's SQL and DuckDB.

sqlglot translates most of the dialect faithfully and some of it into a query that runs and is wrong: an array index
that shifts by one turns a label into its own history. What was seen to differ is listed here and refused with a
sentence that says what to write instead; so is every function that sqlglot does not know, which it would pass on as is.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import sqlglot
from sqlglot import exp
from sqlglot.errors import ErrorLevel, SqlglotError

from lockstep.errors import DataError

_INTEGERS = {exp.DType.BIGINT, exp.DType.INT, exp.DType.SMALLINT, exp.DType.TINYINT, exp.DType.INT128}
_WEEKS = ("WEEK", "ISOWEEK", "ISOYEAR")


class UnsafeQueryError(DataError):
    """A query uses something that means different things on BigQuery and DuckDB."""

    def __init__(self, construct: str, found: str, remedy: str) -> None:
        super().__init__(f"the query uses {construct}, which BigQuery and DuckDB read differently: {found}; {remedy}")
        self.construct = construct


@dataclass(frozen=True)
class _Rule:
    construct: str
    remedy: str
    matches: Callable[[exp.Expr], bool]


def check_query(sql: str) -> exp.Expr:
    """Parse a BigQuery query and refuse what is not portable.

    Returns:
        The parsed query.

    Raises:
        UnsafeQueryError: it uses a construct of the deny-list.
        DataError: it is not one SELECT.
    """
    try:
        statements = sqlglot.parse(sql, read="bigquery")
    except SqlglotError as error:
        raise DataError(f"the query is no BigQuery SQL: {error}") from error
    if len(statements) != 1 or not isinstance(statements[0], exp.Query):
        raise DataError(f"a query is one SELECT, found {len(statements)} statements: {sql[:200]!r}")
    query = statements[0]
    for node in query.walk():
        for rule in _RULES:
            if rule.matches(node):
                raise UnsafeQueryError(rule.construct, node.sql(dialect="bigquery")[:200], rule.remedy)
    return query


def to_duckdb(sql: str) -> str:
    """Translate a BigQuery query to DuckDB's dialect, or refuse it.

    Raises:
        UnsafeQueryError: it uses a construct of the deny-list, or sqlglot cannot translate it.
    """
    query = check_query(sql)
    for length in query.find_all(exp.ByteLength):  # DuckDB counts the octets of a BLOB only
        length.set("this", exp.Encode(this=length.this))
    try:
        return query.sql(dialect="duckdb", unsupported_level=ErrorLevel.RAISE)
    except SqlglotError as error:
        raise UnsafeQueryError("something that DuckDB lacks", str(error), "rewrite it in plain SQL") from error


def _offset(node: exp.Expr) -> bool:
    return isinstance(node, exp.Unnest) and bool(node.args.get("offset"))


def _unknown(*names: str) -> Callable[[exp.Expr], bool]:
    wanted = {name.upper() for name in names}
    return lambda node: isinstance(node, exp.Anonymous) and (not wanted or node.name.upper() in wanted)


def _of(*kinds: type[exp.Expr]) -> Callable[[exp.Expr], bool]:
    return lambda node: isinstance(node, kinds)


def _to_integer(node: exp.Expr) -> bool:
    if not isinstance(node, exp.Cast) or node.to.this not in _INTEGERS:
        return False
    text = node.this
    first = text.expressions[0] if isinstance(text, exp.Concat) else None
    hexadecimal = isinstance(first, exp.Literal) and first.is_string and first.this == "0x"
    return isinstance(node, exp.TryCast) or not hexadecimal


def _substring_start(node: exp.Expr) -> bool:
    if not isinstance(node, exp.Substring):
        return False
    start = node.args.get("start")
    return not (isinstance(start, exp.Literal) and not start.is_string and int(start.this) >= 1)


def _unordered_array(node: exp.Expr) -> bool:
    if not isinstance(node, exp.ArrayAgg) or isinstance(node.this, exp.Order | exp.Limit):
        return False
    window = node.parent
    return not (isinstance(window, exp.Window) and window.args.get("order"))


def _bare_trim(node: exp.Expr) -> bool:
    return isinstance(node, exp.Trim) and node.expression is None


def _array_limit(node: exp.Expr) -> bool:
    return isinstance(node, exp.ArrayAgg) and node.find(exp.Limit) is not None


def _week(node: exp.Expr) -> bool:
    if isinstance(node, exp.Extract):
        return node.name.upper().startswith(_WEEKS)
    if isinstance(node, exp.TimestampTrunc | exp.DateTrunc | exp.DatetimeTrunc):
        unit = node.args.get("unit")
        text = unit.sql() if unit is not None else ""
        return "WEEK" in text.upper()
    return False


def _struct_star(node: exp.Expr) -> bool:
    return isinstance(node, exp.Column) and isinstance(node.this, exp.Star) and bool(node.this.args.get("except_"))


_RULES = (
    _Rule("WITH OFFSET", "number flat rows with ROW_NUMBER()", _offset),
    _Rule("an array index", "join flat rows by their ROW_NUMBER()", _of(exp.Bracket)),
    _Rule(
        "a *_DIFF of moments",
        "subtract UNIX_MICROS() of both",
        _of(exp.TimestampDiff, exp.DatetimeDiff, exp.DateDiff, exp.TimeDiff),
    ),
    _Rule("a CAST to an integer", "only CAST(CONCAT('0x', ...) AS INT64) rounds and fails alike on both", _to_integer),
    _Rule("ARRAY_CONCAT", "aggregate the flat rows of both with ARRAY_AGG(x ORDER BY n)", _of(exp.ArrayConcat)),
    _Rule("SUBSTR from other than a literal position of 1 or more", "count from 1", _substring_start),
    _Rule("TRIM without characters", "BigQuery trims every white space, DuckDB blanks: use REGEXP_REPLACE", _bare_trim),
    _Rule(
        "an APPROX_* function",
        "count exactly with GROUP BY",
        _of(exp.ApproxTopK, exp.ApproxTopSum, exp.ApproxQuantile, exp.ApproxQuantiles, exp.ApproxDistinct),
    ),
    _Rule("ARRAY_AGG with LIMIT", "filter by ROW_NUMBER() first", _array_limit),
    _Rule("ARRAY_AGG without ORDER BY", "write ARRAY_AGG(x ORDER BY n) or an ordered window", _unordered_array),
    _Rule("FARM_FINGERPRINT", "hash with MD5, which both have", _of(exp.FarmFingerprint)),
    _Rule("IEEE_DIVIDE", "write a CASE for a zero divisor", _unknown("IEEE_DIVIDE")),
    _Rule("EXTRACT or truncation by week", "compute days from UNIX_MICROS()", _week),
    _Rule("alias.* EXCEPT", "name the columns", _struct_star),
    _Rule(
        "something that changes from run to run",
        "pass the value in as a literal",
        _of(exp.Rand, exp.Uuid, exp.CurrentTimestamp, exp.CurrentDate, exp.CurrentDatetime, exp.CurrentTime),
    ),
    _Rule("a NET. or SAFE. function", "use a plain one", _of(exp.NetFunc, exp.SafeFunc)),
    _Rule("a function that has no known translation", "use one that both engines have", _unknown()),
)
