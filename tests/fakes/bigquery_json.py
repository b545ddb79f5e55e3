"""Arrow as BigQuery's REST API writes it: schemas, and rows of {"f": [{"v": ...}]}."""

from __future__ import annotations

import math
from datetime import datetime
from typing import Any

import pyarrow as pa

_NAMES = [
    (pa.types.is_string, "STRING"),
    (pa.types.is_large_string, "STRING"),
    (pa.types.is_binary, "BYTES"),
    (pa.types.is_int64, "INTEGER"),
    (pa.types.is_float64, "FLOAT"),
    (pa.types.is_boolean, "BOOLEAN"),
    (pa.types.is_date32, "DATE"),
    (pa.types.is_time, "TIME"),
    (pa.types.is_decimal128, "NUMERIC"),
    (pa.types.is_decimal256, "BIGNUMERIC"),
    (pa.types.is_struct, "RECORD"),
]


def fields_json(schema: pa.Schema) -> list[dict[str, Any]]:
    """The `fields` of a table's schema."""
    return [_field(field.name, field.type, "NULLABLE") for field in schema]


def rows_json(table: pa.Table) -> list[dict[str, Any]]:
    """The `rows` of a page, with integer timestamps."""
    return [
        {"f": [{"v": _value(value, kind)} for value, kind in zip(row.values(), table.schema.types, strict=True)]}
        for row in table.to_pylist()
    ]


def _field(name: str, kind: pa.DataType, mode: str) -> dict[str, Any]:
    if pa.types.is_list(kind):
        return _field(name, kind.value_type, "REPEATED")
    if pa.types.is_timestamp(kind):
        return {"name": name, "mode": mode, "type": "TIMESTAMP" if kind.tz else "DATETIME"}
    if isinstance(kind, pa.OpaqueType):
        return {"name": name, "mode": mode, "type": kind.type_name}
    found = next(title for test, title in _NAMES if test(kind))
    described: dict[str, Any] = {"name": name, "mode": mode, "type": found}
    if found == "RECORD":
        described["fields"] = [_field(inner.name, inner.type, "NULLABLE") for inner in kind]
    return described


def _value(value: Any, kind: pa.DataType) -> Any:
    if value is None:
        return None
    if pa.types.is_list(kind):
        return [{"v": _value(inner, kind.value_type)} for inner in value]
    if pa.types.is_struct(kind):
        return {"f": [{"v": _value(value[inner.name], inner.type)} for inner in kind]}
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, datetime):
        return str(pa.scalar(value, kind).value) if kind.tz else value.isoformat()
    if isinstance(value, float):
        if math.isnan(value):
            return "NaN"
        return ("Infinity" if value > 0 else "-Infinity") if math.isinf(value) else repr(value)
    return str(value)
