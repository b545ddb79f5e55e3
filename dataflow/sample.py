"""A sample of the training rows: those of the smallest hashes, whoever reads them and in whatever order."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from dataflow.columns import is_counted, is_past
from dataflow.numbers import feature_structs, named_values, plain
from lockstep.schema import Schema

SAMPLE_ROWS = 50_000
_HASHES = 2**60
"""order_hash is uniform below."""


class Sample:
    """Chooses the rows with the SAMPLE_ROWS smallest hashes, or all where there are fewer.

    Args:
        rows: how many there are in all. Of so many, all but SAMPLE_ROWS and a few lie above a bound that is known
            beforehand, so that a shard hands on only what may be chosen.
    """

    def __init__(self, rows: int) -> None:
        # Ten deviations of a binomial: that a hash below the bound is wanted and missed does not happen.
        expected = SAMPLE_ROWS + 10 * SAMPLE_ROWS**0.5
        self._bound = int(_HASHES * min(1.0, expected / max(rows, 1)))

    def candidates(self, batch: pa.RecordBatch) -> pa.Table:
        """The rows of a batch that may be chosen."""
        table = pa.Table.from_batches([batch])
        return table.filter(pc.less(table["order_hash"], self._bound))

    def of_shard(self, candidates: Sequence[pa.Table], hashes: NDArray[np.int64], order: NDArray[np.int64]) -> pa.Table:
        """The chosen of one shard.

        Args:
            candidates: of its batches, in turn; at least one.
            hashes: [rows] of the shard.
            order: [rows] the numbers of its rows, in the order of their records.
        """
        places = np.empty_like(order)
        places[order] = np.arange(len(order))
        table = pa.concat_tables(candidates)
        return self.smallest([table.take(pa.array(np.argsort(places[hashes < self._bound])))])

    def smallest(self, tables: Sequence[pa.Table]) -> pa.Table:
        """The chosen among those of several shards, by hash; equal hashes are of one shard and stay in its order."""
        table = pa.concat_tables(tables)
        rows = np.argsort(table["order_hash"].to_numpy(), kind="stable")[:SAMPLE_ROWS]
        return table.take(pa.array(rows))


def with_features(sample: pa.Table, known: Path, schema: Schema) -> pa.Table:
    """Training rows with the raw features that they stand for, in the structs `query` and `candidate`.

    Args:
        sample: rows of queries/training_examples.sql.
        known: the Parquet file of queries/known_candidates.sql.
    """
    past = plain(sample["past"]) if schema.max_history else pa.array([], pa.list_(pa.int64()))
    indices = sample["candidate_index"].to_numpy()
    named = np.unique(np.concatenate([indices, past.flatten().to_numpy()]))
    rows = _rows(known, named)
    labels = rows.take(pa.array(np.searchsorted(named, indices)))
    places = pa.array(np.searchsorted(named, past.flatten().to_numpy()))
    lists = pa.ListArray.from_arrays(_offsets(past), places)
    query = {
        name: named_values(rows[f"past_{name}"], lists) if is_past(feature) else sample[f"q_{name}"]
        for name, feature in schema.query.items()
    }
    candidate = {
        name: (sample if is_counted(feature) else labels)[f"c_{name}"] for name, feature in schema.candidate.items()
    }
    for tower, columns in (("query", query), ("candidate", candidate)):
        sample = sample.append_column(tower, feature_structs(schema, tower, columns))
    return sample


def _offsets(lists: pa.ListArray) -> pa.Array:
    return pa.array(np.concatenate([[0], np.cumsum(np.asarray(lists.value_lengths().fill_null(0)))]), pa.int32())


def _rows(known: Path, named: NDArray[np.int64]) -> pa.Table:
    """The rows of some numbers, which are sorted; of all others no more than a batch is held."""
    found, first = [], 0
    with pq.ParquetFile(known) as file:
        for batch in file.iter_batches():
            begin, end = np.searchsorted(named, (first, first + len(batch)))
            found.append(pa.Table.from_batches([batch]).take(pa.array(named[begin:end] - first)))
            first += len(batch)
    return pa.concat_tables(found).combine_chunks()
