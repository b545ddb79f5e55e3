"""Candidates as the bytes of Vector Search's input formats, thousands of rows at a time: what both formats need.

A piece of a record, such as its id, is a column of byte strings, and a record is its pieces one after the other; so a
file is made by Arrow's string kernels, which need no Python object a value and release the GIL.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from typing import TypeAlias

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from lockstep.errors import DataError

BYTES = pa.binary()
Piece: TypeAlias = bytes | pa.BinaryArray
"""What records have in one place: the same bytes in every row, or a column of them."""
Encode: TypeAlias = Callable[[pa.Array], pa.BinaryArray]
"""Makes one string of bytes of each value."""


class RowFormat(ABC):
    """One of the formats: how rows become bytes, and what stands around them in a file."""

    suffix: str

    @abstractmethod
    def rows(self, batch: pa.RecordBatch, vectors: NDArray[np.float32]) -> pa.BinaryArray:
        """One record a candidate.

        Args:
            batch: [rows] of a candidate embeddings file; a null or empty list or tag is left out of the record.
            vectors: [rows, dim], finite.

        Raises:
            DataError: a token is missing or a number is not finite, which no reader could make sense of.
        """

    def header(self, marker: bytes) -> bytes:
        """What a file begins with.

        Args:
            marker: 16 bytes that are in this file and, as good as certainly, in no record.
        """
        return b""

    def blocks(self, rows: pa.BinaryArray, marker: bytes) -> Iterator[bytes | pa.Buffer]:
        """What to write of some rows, in this order."""
        yield contents(rows)


def join(*pieces: Piece) -> pa.BinaryArray:
    """Pieces of each row one after the other; null where one of them is."""
    columns = (pa.scalar(piece, BYTES) if isinstance(piece, bytes) else piece for piece in pieces)
    return pc.binary_join_element_wise(*columns, pa.scalar(b"", BYTES))


def encode_lists(column: pa.ListArray, of: Encode, whole: Encode, nothing: bytes) -> Piece:
    """Each list of a column as bytes.

    Args:
        of: encodes the values of all lists.
        whole: encodes lists of encoded values.
        nothing: what a null or empty list is.
    """
    values = column.flatten()
    if not len(values):
        return nothing
    lengths = pc.fill_null(column.value_lengths(), 0).to_numpy()
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
    encoded = whole(pa.ListArray.from_arrays(pa.array(offsets), of(present(values))))
    return encoded if lengths.all() else pc.if_else(pa.array(lengths > 0), encoded, pa.scalar(nothing, BYTES))


def present(values: pa.Array) -> pa.Array:
    """Namespaces or tokens, none of which may be missing.

    Raises:
        DataError: one is.
    """
    if values.null_count:
        raise DataError("a restrict of a candidate lacks its namespace or a token: rerun embed_candidates")
    return values


def finite(numbers: pa.Array) -> NDArray[np.float64]:
    """Numbers of candidates, all of them finite.

    Raises:
        DataError: one is missing, infinite or NaN.
    """
    values: NDArray[np.float64] = numbers.to_numpy(zero_copy_only=False)  # a missing one as NaN
    if not np.isfinite(values).all():
        raise DataError("a numeric restrict of a candidate is not a finite number: rerun embed_candidates")
    return values


def contents(rows: pa.Array) -> pa.Buffer:
    """The bytes of all texts or byte strings, which lie one after the other."""
    if not len(rows):
        return pa.py_buffer(b"")
    _, offsets, data = rows.buffers()
    begin, end = (int(np.frombuffer(offsets, np.int32)[rows.offset + place]) for place in (0, len(rows)))
    return data.slice(begin, end - begin)
