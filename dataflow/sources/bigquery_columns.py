"""From the columns of a BigQuery table to Lockstep's: one expression for the value, and one for every fault.

What `dataflow.sources.rows` and `moments` do to files, in SQL that means the same on BigQuery and DuckDB. A table has
types where a CSV file has text only, so conversions that the two engines do not do alike (text or fractions to whole
numbers) are refused before a row is read, with the sentence of what to write into a view.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import pyarrow as pa

from dataflow.dead_letters import Reason
from dataflow.sources.moments import EARLIEST, LATEST, PER_SECOND
from dataflow.sources.output import TIME
from dataflow.sources.rows import MAX_NUMBER, MAX_TEXT_BYTES
from dataflow.sql import ident, literal
from lockstep.errors import DataError
from lockstep.schema import MAX_ID_BYTES

_SPACE = r"[\pZ\x09-\x0d\x1c-\x1f\x{85}]"
_VISIBLE = r"[^\pZ\x09-\x0d\x1c-\x1f\x{85}]"
_NUMBER = r"^[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?$"
_NOT_FINITE = r"(?i)^[+-]?(nan|inf|infinity)$"
_TIME_OF_DAY = r"([01][0-9]|2[0-3])(:[0-5][0-9](:[0-5][0-9](\.[0-9]+)?)?)?"
_ISO = rf"^[0-9]{{4}}-[0-9]{{2}}-[0-9]{{2}}([ T]{_TIME_OF_DAY})?(Z|[+-][0-9]{{2}}(:?[0-9]{{2}})?)?$"
_ISO_TO_FULL = (
    (r"^(.{10})(Z|[+-].*)?$", r"\1T00\2"),
    (r"^(.{13})(Z|[+-].*)?$", r"\1:00\2"),
    (r"^(.{16})(Z|[+-].*)?$", r"\1:00\2"),
    (r"(\.[0-9]{6})[0-9]+", r"\1"),
    (r"^(.{19}(\.[0-9]+)?)$", r"\1+00:00"),
    (r"Z$", "+00:00"),
    (r"([+-][0-9]{2})$", r"\1:00"),
    (r"([+-][0-9]{2})([0-9]{2})$", r"\1:\2"),
)
"""Date, hour and minute are completed, digits beyond microseconds cut, the zone written out: one spelling is left."""


@dataclass(frozen=True)
class SourceColumn:
    """A column of the source.

    Args:
        name: in the source.
        type: its Arrow type.
        where: the configuration key that names it, for errors.
    """

    name: str
    type: pa.DataType
    where: str

    @property
    def sql(self) -> str:
        """The column, of the table aliased `source_row`."""
        return f"source_row.{ident(self.name)}"

    def refuse(self, wanted: str, remedy: str) -> DataError:
        """The error that its type cannot be used."""
        return DataError(f"{self.where}: column {self.name!r} is {self.type}, expected {wanted}: {remedy}")


@dataclass(frozen=True)
class Judged:
    """What becomes of a column.

    Args:
        value: the expression of its value in a good row; in a bad one anything, but never an error.
        type: the Arrow type of the value.
        faults: condition and reason, the first that holds counts.
    """

    value: str
    type: pa.DataType
    faults: tuple[tuple[str, Reason], ...] = ()


def judge_id(column: SourceColumn) -> Judged:
    """Ids: text as it is, whole numbers in decimal."""
    if pa.types.is_integer(column.type):
        return Judged(f"CAST({column.sql} AS STRING)", pa.string(), ((f"{column.sql} IS NULL", Reason.EMPTY_ID),))
    if not pa.types.is_string(column.type):
        raise column.refuse("STRING or INT64", "read a view that has CAST(... AS STRING)")
    blank = f"IFNULL(NOT REGEXP_CONTAINS({column.sql}, {literal(_VISIBLE)}), TRUE)"
    long = f"BYTE_LENGTH({column.sql}) > {MAX_ID_BYTES}"
    return Judged(column.sql, pa.string(), ((blank, Reason.EMPTY_ID), (long, Reason.LONG_ID)))


def judge_position(column: SourceColumn) -> Judged:
    """Whole numbers that may not be missing."""
    found = judge_integer(column)
    return Judged(found.value, found.type, ((f"{column.sql} IS NULL", Reason.MISSING_POSITION),))


def judge_integer(column: SourceColumn) -> Judged:
    """Whole numbers."""
    if not pa.types.is_integer(column.type):
        raise column.refuse("INT64", "read a view that has CAST(... AS INT64)")
    return Judged(column.sql, pa.int64())


def judge_double(column: SourceColumn) -> Judged:
    """Finite numbers, also written as text."""
    if pa.types.is_integer(column.type) or pa.types.is_decimal(column.type):
        return Judged(f"CAST({column.sql} AS FLOAT64)", pa.float64())
    if pa.types.is_floating(column.type):
        return Judged(column.sql, pa.float64(), ((_not_finite(column.sql), Reason.NOT_FINITE),))
    if not pa.types.is_string(column.type):
        raise column.refuse("a number", "map another column")
    text = _trimmed(column.sql)
    number = f"REGEXP_CONTAINS({text}, {literal(_NUMBER)})"
    value = f"SAFE_CAST(CASE WHEN {number} THEN {text} END AS FLOAT64)"
    faults = (
        (f"REGEXP_CONTAINS({text}, {literal(_NOT_FINITE)})", Reason.NOT_FINITE),
        (f"{text} <> '' AND NOT {number}", Reason.WRONG_TYPE),
        (f"{number} AND IFNULL(ABS({value}) > {MAX_NUMBER!r}, TRUE)", Reason.NOT_FINITE),
    )
    return Judged(value, pa.float64(), faults)


def judge_text(column: SourceColumn) -> Judged:
    """Text; numbers are written out."""
    if pa.types.is_integer(column.type) or pa.types.is_boolean(column.type):
        return Judged(f"CAST({column.sql} AS STRING)", pa.string())
    if not pa.types.is_string(column.type):
        raise column.refuse("STRING, INT64 or BOOL", "read a view that has CAST(... AS STRING)")
    return Judged(column.sql, pa.string(), (_too_long(column.sql),))


def judge_boolean(column: SourceColumn) -> Judged:
    """true / false, 1 / 0, yes / no."""
    if pa.types.is_boolean(column.type):
        return Judged(column.sql, pa.bool_())
    if not (pa.types.is_string(column.type) or pa.types.is_integer(column.type)):
        raise column.refuse("BOOL, INT64 or STRING", "map another column")
    text = f"CAST({column.sql} AS STRING)" if pa.types.is_integer(column.type) else column.sql
    text = f"LOWER({_trimmed(text)})"
    true, false = f"{text} IN ('true', '1', 'yes', 't', 'y')", f"{text} IN ('false', '0', 'no', 'f', 'n')"
    faults = ((f"{text} <> '' AND NOT {true} AND NOT {false}", Reason.WRONG_TYPE),)
    return Judged(f"CASE WHEN {true} THEN TRUE WHEN {false} THEN FALSE END", pa.bool_(), faults)


def judge_list(column: SourceColumn, separator: str | None = None) -> Judged:
    """Lists of texts or of finite numbers; text is split where there is a separator."""
    if separator is not None and pa.types.is_string(column.type):
        value = f"CASE WHEN {column.sql} <> '' THEN SPLIT({column.sql}, {literal(separator)}) END"
        return Judged(value, pa.list_(pa.string()), (_too_long(column.sql),))
    element = column.type.value_type if pa.types.is_list(column.type) else None
    if element is not None and pa.types.is_string(element):
        bad, reason = _too_long("element")
    elif element is not None and pa.types.is_floating(element):
        bad, reason = _not_finite("element"), Reason.NOT_FINITE
    else:
        raise column.refuse("ARRAY<STRING>, ARRAY<FLOAT64> or STRING with a separator", "read a view that makes one")
    exists = f"EXISTS(SELECT 1 FROM UNNEST({column.sql}) AS element WHERE {bad})"  # noqa: S608
    return Judged(column.sql, column.type, ((exists, reason),))


def judge_moment(column: SourceColumn, unit: str, *, required: bool) -> Judged:
    """Moments of TIMESTAMP, DATETIME and DATE (taken as UTC), of whole numbers, and of ISO 8601 text.

    Args:
        unit: of whole numbers: s, ms, us or ns.
    """
    missing = ((f"{column.sql} IS NULL", Reason.MISSING_TIME),) if required else ()
    if pa.types.is_timestamp(column.type) or pa.types.is_date(column.type):
        value = f"CAST({column.sql} AS TIMESTAMP)"
        return Judged(value, TIME, ((_out_of_range(value), Reason.TIME_OUT_OF_RANGE), *missing))
    if pa.types.is_integer(column.type):
        low, high = EARLIEST * PER_SECOND[unit], LATEST * PER_SECOND[unit]
        inside = f"{column.sql} >= {low} AND {column.sql} < {high}"
        micros = f"DIV({column.sql}, 1000)" if unit == "ns" else f"{column.sql} * {1_000_000 // PER_SECOND[unit]}"
        value = f"CASE WHEN {inside} THEN CAST(TIMESTAMP_MICROS({micros}) AS TIMESTAMP) END"
        return Judged(value, TIME, ((f"NOT ({inside})", Reason.TIME_OUT_OF_RANGE), *missing))
    if not pa.types.is_string(column.type):
        raise column.refuse("TIMESTAMP, DATETIME, DATE, INT64 or ISO 8601 text", "read a view that makes a TIMESTAMP")
    text = _trimmed(column.sql)
    iso = f"REGEXP_CONTAINS({text}, {literal(_ISO)})"
    value = f"SAFE_CAST({in_full(f'CASE WHEN {iso} THEN {text} END')} AS TIMESTAMP)"
    faults = [_too_long(column.sql), (f"{text} <> '' AND {value} IS NULL", Reason.UNREADABLE_TIME)]
    faults.append((_out_of_range(value), Reason.TIME_OUT_OF_RANGE))
    if required:
        faults.append((f"IFNULL({text}, '') = ''", Reason.MISSING_TIME))
    return Judged(value, TIME, tuple(faults))


def in_full(iso: str) -> str:
    """An expression of ISO 8601 text as one of `YYYY-MM-DD HH:MM:SS.ffffff+HH:MM`, which both engines cast alike."""
    for pattern, replacement in _ISO_TO_FULL:
        iso = f"REGEXP_REPLACE({iso}, {literal(pattern)}, {literal(replacement)})"
    return iso


JUDGES: dict[str, Callable[[SourceColumn], Judged]] = {
    "string": judge_text,
    "int64": judge_integer,
    "double": judge_double,
    "bool": judge_boolean,
}
"""By the name that [data.tables.*] types uses; `timestamp` needs a unit besides."""


def own_type(column: SourceColumn) -> str:
    """The nearest of the types that Lockstep knows, by the names of [data.tables.*] types, or `list`.

    Raises:
        DataError: no feature takes such a column.
    """
    types, kind = pa.types, column.type
    for name, tests in (
        ("string", (types.is_string,)),
        ("int64", (types.is_integer,)),
        ("double", (types.is_floating, types.is_decimal)),
        ("bool", (types.is_boolean,)),
        ("timestamp", (types.is_timestamp, types.is_date)),
        ("list", (types.is_list,)),
    ):
        if any(test(kind) for test in tests):
            return name
    raise column.refuse("a type that a feature takes", "leave it out, or read a view")


def _trimmed(text: str) -> str:
    return f"REGEXP_REPLACE({text}, {literal(f'^{_SPACE}+|{_SPACE}+$')}, '')"


def _too_long(text: str) -> tuple[str, Reason]:
    return f"BYTE_LENGTH({text}) > {MAX_TEXT_BYTES}", Reason.LONG_TEXT


def _not_finite(number: str) -> str:
    return f"IS_NAN({number}) OR ABS({number}) > {MAX_NUMBER!r}"


def _out_of_range(moment: str) -> str:
    micros = f"UNIX_MICROS({moment})"
    return f"{micros} < {EARLIEST * 1_000_000} OR {micros} >= {LATEST * 1_000_000}"
