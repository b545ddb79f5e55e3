"""Rows for Vector Search: whatever candidates hold, the standard readers of both formats find exactly that."""

from __future__ import annotations

import io
import json
from typing import Any

import fastavro
import numpy as np
import pyarrow as pa
from hypothesis import given, settings
from hypothesis import strategies as st

from lockstep.embeddings import NUMERIC_RESTRICTS, RESTRICTS
from serving.index.vector_search import FORMATS

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=12) | st.text('"\\\x00\n\x1f\x7fé字😀', max_size=70)
TOKENS = st.none() | st.lists(TEXT, max_size=3)
RESTRICT = st.fixed_dictionaries({"namespace": TEXT, "allow": TOKENS, "deny": TOKENS})
NUMBER = st.fixed_dictionaries({"namespace": TEXT, "value": st.floats(allow_nan=False, allow_infinity=False)})
ROW = st.fixed_dictionaries(
    {
        "id": TEXT,
        "restricts": st.none() | st.lists(RESTRICT, max_size=3),
        "numeric_restricts": st.none() | st.lists(NUMBER, max_size=3),
        "crowding_tag": st.none() | TEXT,
    }
)
SCHEMA = pa.schema(
    [
        ("id", pa.string()),
        ("restricts", RESTRICTS),
        ("numeric_restricts", NUMERIC_RESTRICTS),
        ("crowding_tag", pa.string()),
    ]
)
FLOATS = st.floats(width=32, allow_nan=False, allow_infinity=False)


@st.composite
def batches(draw: st.DrawFn) -> tuple[list[dict[str, Any]], pa.RecordBatch, np.ndarray[Any, Any]]:
    """Rows, and the same as a part of a longer batch."""
    rows = draw(st.lists(ROW, min_size=1, max_size=6))
    first, dim = draw(st.integers(0, len(rows) - 1)), draw(st.integers(1, 4))
    values = draw(st.lists(FLOATS, min_size=len(rows) * dim, max_size=len(rows) * dim))
    vectors = np.array(values, np.float32).reshape(len(rows), dim)
    return rows[first:], pa.RecordBatch.from_pylist(rows, schema=SCHEMA).slice(first), vectors[first:]


def encoded(name: str, batch: pa.RecordBatch, vectors: np.ndarray[Any, Any]) -> bytes:
    encoder, marker = FORMATS[name], b"0123456789abcdef"
    parts = encoder.blocks(encoder.rows(batch, vectors), marker)
    return encoder.header(marker) + b"".join(bytes(part) for part in parts)


def restricts(row: dict[str, Any]) -> list[tuple[str, list[str], list[str]]]:
    return [(one["namespace"], one.get("allow") or [], one.get("deny") or []) for one in row.get("restricts") or []]


def numbers(row: dict[str, Any], key: str) -> list[tuple[str, str]]:
    # As text, in which -0.0 is not 0.0.
    return [(one["namespace"], repr(float(one[key]))) for one in row.get("numeric_restricts") or []]


def bits(vector: Any) -> bytes:
    return np.array(vector, np.float32).tobytes()


@settings(max_examples=150, deadline=None)
@given(batches())
def test_both_formats_are_read_back_exactly(
    drawn: tuple[list[dict[str, Any]], pa.RecordBatch, np.ndarray[Any, Any]],
) -> None:
    rows, batch, vectors = drawn
    lines = encoded("json", batch, vectors).decode().split("\n")
    assert lines.pop() == ""
    records = {
        "json": [json.loads(line) for line in lines],
        "avro": list(fastavro.reader(io.BytesIO(encoded("avro", batch, vectors)))),
    }
    for name, found in records.items():
        assert [record["id"] for record in found] == [row["id"] for row in rows], name
        assert [bits(record["embedding"]) for record in found] == [bits(vector) for vector in vectors], name
        assert [restricts(record) for record in found] == [restricts(row) for row in rows], name
        assert [numbers(record, "value_double") for record in found] == [numbers(row, "value") for row in rows], name
        assert [record.get("crowding_tag") for record in found] == [row["crowding_tag"] for row in rows], name
    for record in records["json"]:
        assert set(record) <= {"id", "embedding", "restricts", "numeric_restricts", "crowding_tag"}
        assert [] not in record.values()
        assert None not in record.values()
