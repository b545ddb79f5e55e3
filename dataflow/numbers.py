"""Candidates by number: rows name them by their place in a file, and what features want of them is put in here.

A warehouse moves numbers quickly and in little memory where strings, twenty to a history, would fill it.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from lockstep.errors import DataError
from lockstep.features import features_type
from lockstep.schema import Schema


class ByIndex:
    """Proves that rows come in the order of candidate_index, for their place in a file is what the index means.

    A warehouse that reads results in another order would pair every candidate with another one's features.
    """

    def __init__(self) -> None:
        self._next = 0

    def check(self, batch: pa.RecordBatch) -> pa.RecordBatch:
        """The batch, where it goes on where the last one ended.

        Raises:
            DataError: it does not.
        """
        expected = np.arange(self._next, self._next + len(batch))
        found = batch.column("candidate_index").cast(pa.int64()).to_numpy(zero_copy_only=False)
        if not np.array_equal(found, expected):
            place = int(np.flatnonzero(found != expected)[0])
            raise DataError(
                f"the candidate of index {found[place]} came in place {expected[place]}: the warehouse did not keep "
                "the order of the result; rerun the step, and report this as a defect if it comes again"
            )
        self._next += len(batch)
        return batch


def read_elements(known: Path) -> pa.Table:
    """All rows of queries/known_candidates.sql, in one chunk and with offsets that many strings cannot overflow.

    Raises:
        DataError: they are in another order.
    """
    order, batches = ByIndex(), []
    with pq.ParquetFile(known) as file:
        schema = pa.schema([(field.name, _large(field.type)) for field in file.schema_arrow])
        for batch in file.iter_batches():
            batches.append(order.check(batch).cast(schema))
    return pa.Table.from_batches(batches, schema).combine_chunks()


def named_values(elements: pa.ChunkedArray, past: pa.ListArray) -> pa.ListArray:
    """Lists with values in place of numbers; no list becomes an empty one.

    Args:
        elements: a value for each number.
        past: [rows] lists of numbers.
    """
    values = elements.take(past.flatten())
    lengths = np.asarray(past.value_lengths().fill_null(0))
    offsets = pa.array(np.concatenate([[0], np.cumsum(lengths)]), pa.int32())
    return pa.ListArray.from_arrays(offsets, plain(values))


def feature_structs(schema: Schema, tower: str, columns: Mapping[str, pa.Array | pa.ChunkedArray]) -> pa.StructArray:
    """The `features` column of a tower, of its features by name in any types that cast to the contract's."""
    fields = list(features_type(schema, tower))
    arrays = [plain(columns[field.name]).cast(field.type) for field in fields]
    return pa.StructArray.from_arrays(arrays, fields=fields)


def plain(column: pa.ChunkedArray | pa.Array) -> pa.Array:
    """A column in one piece."""
    return column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column


def _large(kind: pa.DataType) -> pa.DataType:
    return pa.large_string() if pa.types.is_string(kind) else kind
