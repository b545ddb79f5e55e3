"""Training records: tf.Examples of fixed-length features, serialised a batch at a time.

A protocol buffer's integers vary in length, so rows of equal shape differ in size and have to be written one by one.
They need not: the wire format allows an integer to be padded with continuation bits. With every id of a feature
padded to the width of its largest, all records have one length, one template and the same place for each number,
and a batch is a matrix of bytes.

Reference: protocol buffer encoding, https://protobuf.dev/programming-guides/encoding/
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

_FLOAT_LIST, _INT64_LIST = 2, 3


@dataclass(frozen=True)
class RecordFeature:
    """One feature of a record.

    Args:
        length: how many values, at least 1.
        size: integers are below this; None for float32.
    """

    name: str
    length: int
    size: int | None

    @property
    def width(self) -> int:
        """Bytes of one value on the wire."""
        return 4 if self.size is None else max(1, -(-(self.size - 1).bit_length() // 7))


class RecordLayout:
    """The bytes of one record and where its numbers go."""

    def __init__(self, features: Sequence[RecordFeature]) -> None:
        entries: list[bytes] = []
        self._places: list[tuple[RecordFeature, int]] = []
        for feature in sorted(features, key=lambda f: f.name):
            before = sum(len(entry) for entry in entries)
            entry = _entry(feature)
            entries.append(entry)
            self._places.append((feature, before + len(entry)))
        body = b"".join(entries)
        start = len(_field(1, body)) - len(body)
        self._template = np.frombuffer(_field(1, body), np.uint8)
        # A feature's numbers are the last bytes of its entry.
        self._places = [(feature, start + end - feature.length * feature.width) for feature, end in self._places]

    @property
    def bytes(self) -> int:
        """The length of every record."""
        return len(self._template)

    def serialize(self, values: Mapping[str, NDArray[Any]]) -> NDArray[np.uint8]:
        """Serialise a batch.

        Args:
            values: by feature, [batch, length]; integers from 0 to below the feature's size.

        Returns:
            [batch, bytes]: one tf.Example a row.
        """
        rows = len(next(iter(values.values())))
        records = np.tile(self._template, (rows, 1))
        for feature, place in self._places:
            encoded = _floats(values[feature.name]) if feature.size is None else _varints(feature, values[feature.name])
            records[:, place : place + feature.length * feature.width] = encoded
        return records


def _entry(feature: RecordFeature) -> bytes:
    payload = bytes(feature.length * feature.width)
    packed = _field(1, payload)
    value = _field(_FLOAT_LIST if feature.size is None else _INT64_LIST, packed)
    return _field(1, _field(1, feature.name.encode()) + _field(2, value))


def _field(number: int, payload: bytes) -> bytes:
    """A length-delimited field."""
    return _varint(number << 3 | 2) + _varint(len(payload)) + payload


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def _floats(values: NDArray[Any]) -> NDArray[np.uint8]:
    contiguous = np.ascontiguousarray(values, dtype="<f4")
    return contiguous.view(np.uint8).reshape(len(values), -1)


def _varints(feature: RecordFeature, values: NDArray[Any]) -> NDArray[np.uint8]:
    assert feature.size is not None
    if values.size and (values.min() < 0 or values.max() >= feature.size):
        raise ValueError(f"{feature.name} holds {values.min()} to {values.max()}, expected 0 to {feature.size - 1}")
    narrow: NDArray[Any] = values.astype(np.uint32 if feature.size <= 2**32 else np.uint64)
    groups = np.empty((*values.shape, feature.width), np.uint8)
    for group in range(feature.width):
        more = 0x80 if group < feature.width - 1 else 0
        groups[:, :, group] = (narrow >> (7 * group)) & 0x7F | more
    return groups.reshape(len(values), -1)
