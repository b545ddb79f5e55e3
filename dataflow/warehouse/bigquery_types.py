"""The types of a BigQuery table as Arrow types: those that the Storage Read API hands out."""

from __future__ import annotations

import pyarrow as pa
from google.cloud.bigquery import SchemaField

_TYPES = {
    "STRING": pa.string(),
    "BYTES": pa.binary(),
    "INTEGER": pa.int64(),
    "INT64": pa.int64(),
    "FLOAT": pa.float64(),
    "FLOAT64": pa.float64(),
    "NUMERIC": pa.decimal128(38, 9),
    "BIGNUMERIC": pa.decimal256(76, 38),
    "BOOLEAN": pa.bool_(),
    "BOOL": pa.bool_(),
    "TIMESTAMP": pa.timestamp("us", tz="UTC"),
    "DATETIME": pa.timestamp("us"),
    "DATE": pa.date32(),
    "TIME": pa.time64("us"),
}


def arrow_schema(fields: list[SchemaField]) -> pa.Schema:
    """The columns of a table; a type that Arrow has no match for (GEOGRAPHY, JSON ...) is opaque, with its name."""
    return pa.schema([pa.field(field.name, _arrow_type(field)) for field in fields])


def _arrow_type(field: SchemaField) -> pa.DataType:
    if field.field_type in ("RECORD", "STRUCT"):
        found = pa.struct([pa.field(inner.name, _arrow_type(inner)) for inner in field.fields])
    else:
        opaque = pa.opaque(pa.string(), type_name=field.field_type, vendor_name="BigQuery")
        found = _TYPES.get(field.field_type, opaque)
    return pa.list_(found) if field.mode == "REPEATED" else found
