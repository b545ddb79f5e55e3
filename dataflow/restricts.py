"""What a candidate is filtered by, from the columns of its table: tokens that it has or denies, and numbers.

A query of the warehouse gives a column for each: `allow_<namespace>` and `deny_<namespace>` (string or list<string>)
and `number_<namespace>` (double). Here they become one list a candidate, as `lockstep.embeddings` says.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from dataflow.columns import numeric_restrict_column, restrict_column
from lockstep.embeddings import NUMERIC_RESTRICTS, RESTRICTS
from lockstep.schema import Schema


def restrict_columns(schema: Schema, candidates: pa.Schema) -> dict[str, str]:
    """SQL of the columns that the filters are made of, by name, over the candidate table aliased `candidate`.

    Raises:
        SchemaError: a column is missing or of a type that is neither tokens nor, where asked, a number.
    """
    columns = {
        f"allow_{namespace}": restrict_column(namespace, candidates, "[schema] restricts")
        for namespace in schema.restricts
    }
    for namespace, column in sorted(schema.deny.items()):
        columns[f"deny_{namespace}"] = restrict_column(column, candidates, f"[schema] deny.{namespace}")
    for namespace in schema.numeric_restricts:
        columns[f"number_{namespace}"] = numeric_restrict_column(namespace, candidates, "[schema] numeric_restricts")
    return columns


def restricts_of(batch: pa.RecordBatch, schema: Schema) -> pa.Array:
    """The tokens of candidates: of each namespace in which a candidate allows or denies any, both lists.

    Args:
        batch: [rows], with the columns of `restrict_columns`.

    Returns:
        [rows] of RESTRICTS, without nulls; no token is empty.
    """
    namespaces = schema.namespaces
    allow, deny = ([_tokens(batch, f"{side}_{namespace}") for namespace in namespaces] for side in ("allow", "deny"))
    if not namespaces:
        return _lists(np.zeros((len(batch), 0), bool), pa.array([], RESTRICTS.value_type))
    allowed, denied = _by_row(allow), _by_row(deny)
    present = np.maximum(_lengths(allowed), _lengths(denied)) > 0
    kept = pa.array(present)
    fields = [_names(namespaces, len(batch)).filter(kept), allowed.filter(kept), denied.filter(kept)]
    structs = pa.StructArray.from_arrays(fields, fields=list(RESTRICTS.value_type))
    return _lists(present.reshape(len(batch), len(namespaces)), structs)


def numeric_restricts_of(batch: pa.RecordBatch, schema: Schema) -> pa.Array:
    """The numbers of candidates; one that is missing, NaN or infinite is none.

    Args:
        batch: [rows], with the columns of `restrict_columns`.

    Returns:
        [rows] of NUMERIC_RESTRICTS, without nulls.
    """
    namespaces, rows = schema.numeric_restricts, len(batch)
    values = np.empty((rows, len(namespaces)))
    for place, namespace in enumerate(namespaces):
        column = batch.column(f"number_{namespace}").cast(pa.float64())
        values[:, place] = column.fill_null(np.nan).to_numpy(zero_copy_only=False)
    present = np.isfinite(values)
    names = _names(namespaces, rows).filter(pa.array(present.ravel()))
    fields = list(NUMERIC_RESTRICTS.value_type)
    return _lists(present, pa.StructArray.from_arrays([names, pa.array(values[present])], fields=fields))


def _tokens(batch: pa.RecordBatch, name: str) -> pa.ListArray:
    """A column of texts, or lists of texts, as lists without empty or missing tokens; without a column, empty lists."""
    place = batch.schema.get_field_index(name)
    if place < 0:
        return pa.ListArray.from_arrays(pa.array(np.zeros(len(batch) + 1), pa.int32()), pa.array([], pa.string()))
    column = batch.column(place)
    if pa.types.is_list(column.type):
        parents, texts = pc.list_parent_indices(column).to_numpy(), column.flatten().cast(pa.string())
    else:
        parents, texts = np.arange(len(batch)), column.cast(pa.string())
    present = pc.binary_length(texts).fill_null(0).to_numpy() > 0
    counts = np.bincount(parents[present], minlength=len(batch))
    return pa.ListArray.from_arrays(_offsets(counts), texts.filter(pa.array(present)))


def _by_row(columns: Sequence[pa.ListArray]) -> pa.ListArray:
    """Columns [namespaces][rows] as one array [rows * namespaces], in which what belongs to one row stands together."""
    rows = len(columns[0])
    order = np.arange(rows * len(columns)).reshape(len(columns), rows).T.ravel()
    return pa.concat_arrays(columns).take(pa.array(order))


def _names(namespaces: Sequence[str], rows: int) -> pa.Array:
    return pa.DictionaryArray.from_arrays(
        np.tile(np.arange(len(namespaces), dtype=np.int32), rows), pa.array(namespaces, pa.string())
    ).cast(pa.string())


def _lists(present: NDArray[np.bool_], values: pa.StructArray) -> pa.ListArray:
    """Lists of the values that are present, row by row.

    Args:
        present: [rows, namespaces].
        values: those that are.
    """
    return pa.ListArray.from_arrays(_offsets(present.sum(axis=1)), values)


def _offsets(counts: NDArray[np.int64]) -> pa.Array:
    return pa.array(np.concatenate([[0], np.cumsum(counts)]), pa.int32())


def _lengths(lists: pa.ListArray) -> NDArray[np.int64]:
    lengths: NDArray[np.int64] = lists.value_lengths().to_numpy()
    return lengths
