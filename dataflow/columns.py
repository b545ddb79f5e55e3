"""From the schema's features to SQL expressions over the columns of the tables.

The tables keep what the source had; a feature says what it wants. Here the two meet: a whole number becomes text for
an id, a yes or no becomes 1 or 0 for a number, several columns become one text. What has no sensible meaning
(a number made from text) is refused with a sentence, before any data is read.
"""

from __future__ import annotations

from collections.abc import Mapping

import pyarrow as pa

from dataflow.sql import ident
from lockstep.errors import SchemaError
from lockstep.schema import HISTORY, Feature, Schema, count_days

EVENT_TIME = "event_time"
_PAST = "past_"


def query_features(schema: Schema, queries: pa.Schema, *, moment: str) -> dict[str, str]:
    """SQL of the raw features of a query, by name.

    Args:
        queries: the columns of the query table, aliased `entity` in the query; past columns are aliased `past`, counts
            `query_counts`.
        moment: the SQL expression of the moment of the query.

    Raises:
        SchemaError: a column is missing or of a type that the feature cannot use.
    """
    return {
        name: f"past.{ident(_PAST + name)}"
        if is_past(feature)
        else _feature(schema, "query", name, queries, "entity", moment)
        for name, feature in schema.query.items()
    }


def candidate_features(schema: Schema, candidates: pa.Schema) -> dict[str, str]:
    """SQL of the raw features of a candidate, by name, over `candidate` and, where they count, `candidate_counts`."""
    return {name: _feature(schema, "candidate", name, candidates, "candidate", None) for name in schema.candidate}


def past_values(schema: Schema, candidates: pa.Schema) -> dict[str, str]:
    """SQL of one element of each history feature, over the candidate table aliased `candidate`.

    The keys are the columns of the query's `past`: the features' names with a prefix, so that none is taken.

    BigQuery refuses arrays that hold NULL, so a missing element is '' or NaN, which mean missing everywhere.
    """
    values = {}
    for name, feature in schema.query.items():
        if is_past(feature):
            where = f"[schema.query.{name}]"
            column = feature.columns[0].removeprefix(HISTORY)
            sql = _scalar(where, _element(feature), column, candidates, "candidate")
            values[_PAST + name] = f"IFNULL({sql}, {_missing(feature)})"
    return values


def past_value(schema: Schema, candidates: pa.Schema, name: str) -> str:
    """SQL of one element of one history feature."""
    return past_values(schema, candidates)[_PAST + name]


def count_value(tower: str, days: int) -> str:
    """SQL of the number of events in the last days, over the counts of a tower; no row means no event."""
    return f"CAST(IFNULL({tower}_counts.events_{days}d, 0) AS FLOAT64)"


def is_past(feature: Feature) -> bool:
    """Whether a feature is made of the candidates of past events."""
    return feature.columns[0].startswith(HISTORY)


def is_counted(feature: Feature) -> bool:
    """Whether a feature counts events, so that it differs from day to day."""
    return count_days(feature.columns[0]) is not None


def text_column(column: str, table: pa.Schema, alias: str, where: str) -> str:
    """SQL of a column as one text."""
    return _scalar(where, "categorical", column, table, alias)


def restrict_column(column: str, table: pa.Schema, where: str) -> str:
    """SQL of a candidate's filter tokens: a text, or a list of them."""
    found = _type(where, column, table)
    if pa.types.is_list(found) and _is_text(found.value_type):
        return f"candidate.{ident(column)}"
    return _scalar(where, "categorical", column, table, "candidate")


def numeric_restrict_column(column: str, table: pa.Schema, where: str) -> str:
    """SQL of a candidate's number to compare with: a number, a yes or no, or the seconds since 1970 of a moment."""
    if pa.types.is_timestamp(_type(where, column, table)):
        return f"UNIX_MICROS(candidate.{ident(column)}) / 1e6"
    return _scalar(where, "numeric", column, table, "candidate")


def struct(features: Mapping[str, str]) -> str:
    """A STRUCT of expressions by name."""
    return "STRUCT(" + ", ".join(f"{sql} AS {ident(name)}" for name, sql in features.items()) + ")"


def _feature(schema: Schema, tower: str, name: str, table: pa.Schema, alias: str, moment: str | None) -> str:
    feature = schema.features(tower)[name]
    where = f"[schema.{tower}.{name}]"
    if feature.type == "text" and len(feature.columns) > 1:
        parts = [_scalar(where, "text", column, table, alias) for column in feature.columns]
        return "ARRAY_TO_STRING([" + ", ".join(f"IFNULL({part}, '')" for part in parts) + "], ' ')"
    column = feature.columns[0]
    days = count_days(column)
    if days is not None:
        return count_value(tower, days)
    if moment is not None and column == EVENT_TIME:
        if feature.type != "timestamp":
            raise SchemaError(f"{where}: event_time is a moment: use type = 'timestamp', found {feature.type!r}")
        return moment
    if feature.is_sequence or feature.type == "vector":
        return _list(where, feature, column, table, alias)
    return _scalar(where, feature.type, column, table, alias)


def _list(where: str, feature: Feature, column: str, table: pa.Schema, alias: str) -> str:
    found = _type(where, column, table)
    wanted = "numbers" if feature.type in ("vector", "numeric_sequence") else "texts"
    if pa.types.is_list(found):
        element = found.value_type
        numbers = pa.types.is_floating(element)
        if numbers == (wanted == "numbers") and (numbers or _is_text(element)):
            return f"{alias}.{ident(column)}"
    raise SchemaError(f"{where}: {feature.type} needs a list of {wanted}, but column {column!r} is {found}")


def _scalar(where: str, kind: str, column: str, table: pa.Schema, alias: str) -> str:
    found = _type(where, column, table)
    sql = f"{alias}.{ident(column)}"
    if kind == "numeric":
        if pa.types.is_floating(found):
            return sql
        if pa.types.is_integer(found):
            return f"CAST({sql} AS FLOAT64)"
        if pa.types.is_boolean(found):
            return f"CASE WHEN {sql} THEN CAST(1 AS FLOAT64) WHEN NOT {sql} THEN CAST(0 AS FLOAT64) END"
    elif kind == "timestamp":
        if pa.types.is_timestamp(found):
            return sql
    else:
        if _is_text(found):
            return sql
        if pa.types.is_integer(found) or pa.types.is_boolean(found):
            return f"CAST({sql} AS STRING)"
        if kind == "text" and pa.types.is_list(found) and _is_text(found.value_type):
            return f"ARRAY_TO_STRING({sql}, ' ')"
    raise SchemaError(f"{where}: {kind} cannot be made from column {column!r}, which is {found}")


def _type(where: str, column: str, table: pa.Schema) -> pa.DataType:
    index = table.get_field_index(column)
    if index < 0:
        raise SchemaError(f"{where}: there is no column {column!r}; the table has {sorted(table.names)}")
    return table.field(index).type


def _is_text(found: pa.DataType) -> bool:
    return bool(pa.types.is_string(found) or pa.types.is_large_string(found))


def _element(feature: Feature) -> str:
    return {"id_sequence": "id", "text_sequence": "text", "numeric_sequence": "numeric"}[feature.type]


def _missing(feature: Feature) -> str:
    return "CAST('NaN' AS FLOAT64)" if feature.type == "numeric_sequence" else "''"
