"""Candidates as Vector Search's Avro: object container files without compression.

Reference: Google Cloud, "Vector Search: input data format and structure"; Apache Avro 1.12, "Specification".
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from serving.index.vector_search_rows import (
    BYTES,
    Encode,
    Piece,
    RowFormat,
    contents,
    encode_lists,
    finite,
    join,
    present,
)

_BLOCK_BYTES = 1 << 18
_NULL, _VALUE, _END = b"\x00", b"\x02", b"\x00"
"""The branches of a union with null, and the end of an array."""


def _one(of: Any) -> dict[str, Any]:
    return {"type": of}


def _or_null(of: Any, **default: Any) -> dict[str, Any]:
    return {"type": ["null", of], **default}


def _list_of(items: Any) -> dict[str, Any]:
    return {"type": "array", "items": items}


def _record(name: str, fields: dict[str, dict[str, Any]]) -> dict[str, Any]:
    return {"type": "record", "name": name, "fields": [{"name": field, **of} for field, of in fields.items()]}


AVRO_SCHEMA = _record(
    "FeatureVector",
    {
        "id": {"type": "string"},
        "embedding": {"type": _list_of("float")},
        "sparse_embedding": _or_null(
            _record(
                "sparse_embedding", {"values": {"type": _list_of("float")}, "dimensions": {"type": _list_of("long")}}
            )
        ),
        "restricts": _or_null(
            _list_of(
                _record(
                    "Restrict",
                    {
                        "namespace": _one("string"),
                        "allow": _or_null(_list_of("string")),
                        "deny": _or_null(_list_of("string")),
                    },
                )
            )
        ),
        "numeric_restricts": _or_null(
            _list_of(
                _record(
                    "NumericRestrict",
                    {
                        "namespace": _one("string"),
                        "value_int": _or_null("int", default=None),
                        "value_float": _or_null("float", default=None),
                        "value_double": _or_null("double", default=None),
                    },
                )
            ),
            default=None,
        ),
        "crowding_tag": _or_null("string"),
    },
)
"""As documented; what Lockstep has none of (sparse embeddings, integers, floats) is null."""


class AvroRows(RowFormat):
    """Container files of the documented schema."""

    suffix = ".avro"

    def rows(self, batch: pa.RecordBatch, vectors: NDArray[np.float32]) -> pa.BinaryArray:
        return join(
            _text(batch.column("id")),
            _varint(vectors.shape[1]),
            _fixed(np.ascontiguousarray(vectors, "<f4")),
            _END + _NULL,
            _array(batch.column("restricts"), _restrict),
            _array(batch.column("numeric_restricts"), _number),
            _tag(batch.column("crowding_tag")),
        )

    def header(self, marker: bytes) -> bytes:
        facts = {b"avro.codec": b"null", b"avro.schema": json.dumps(AVRO_SCHEMA).encode()}
        pairs = (_varint(len(text)) + text for pair in facts.items() for text in pair)
        return b"Obj\x01" + _varint(len(facts)) + b"".join(pairs) + _END + marker

    def blocks(self, rows: pa.BinaryArray, marker: bytes) -> Iterator[bytes | pa.Buffer]:
        # A reader holds a block at a time, so blocks stay small.
        size = max(1, len(rows) * _BLOCK_BYTES // max(1, len(contents(rows))))
        for begin in range(0, len(rows), size):
            some = rows.slice(begin, size)
            data = contents(some)
            yield _varint(len(some)) + _varint(len(data))
            yield data
            yield marker


def _restrict(restricts: pa.StructArray) -> pa.BinaryArray:
    namespaces, allow, deny = restricts.flatten()
    return join(_text(present(namespaces)), _array(allow, _text), _array(deny, _text))


def _number(restricts: pa.StructArray) -> pa.BinaryArray:
    namespaces, values = restricts.flatten()
    doubles = _fixed(finite(values).astype("<f8").reshape(-1, 1))
    return join(_text(present(namespaces)), _NULL + _NULL + _VALUE, doubles)


def _text(texts: pa.Array) -> pa.BinaryArray:
    return join(_varints(pc.binary_length(texts)), texts.cast(BYTES))


def _array(column: pa.ListArray, of: Encode) -> Piece:
    """A union of null, where the list is null or empty, with an array of one block."""

    def whole(lists: pa.ListArray) -> pa.BinaryArray:
        return join(_VALUE, _varints(lists.value_lengths()), pc.binary_join(lists, b""), _END)

    return encode_lists(column, of, whole, _NULL)


def _tag(tags: pa.Array) -> Piece:
    if tags.null_count == len(tags):
        return _NULL
    return pc.fill_null(join(_VALUE, _text(tags)), _NULL)


def _varint(number: int) -> bytes:
    """Avro's zigzag coding of a number that is not negative.

    >>> _varint(0), _varint(63), _varint(64)
    (b'\\x00', b'~', b'\\x80\\x01')
    """
    rest, found = 2 * number, bytearray()
    while rest > 0x7F:
        found.append(rest & 0x7F | 0x80)
        rest >>= 7
    return bytes([*found, rest])


def _varints(numbers: pa.Array) -> Piece:
    # There are few different lengths, often one, and each is coded once.
    coded = pc.dictionary_encode(numbers)
    if len(coded.dictionary) == 1 and not numbers.null_count:
        return _varint(coded.dictionary[0].as_py())
    return pa.array([_varint(number) for number in coded.dictionary.to_pylist()], BYTES).take(coded.indices)


def _fixed(values: NDArray[Any]) -> pa.BinaryArray:
    """The memory of each row [rows, n] as bytes."""
    rows, width = len(values), values.itemsize * values.shape[1]
    offsets = np.arange(rows + 1, dtype=np.int32) * np.int32(width)
    return pa.Array.from_buffers(BYTES, rows, [None, pa.py_buffer(offsets), pa.py_buffer(values)])
