"""A sample of the training rows: those of the smallest hashes, whoever reads them and in whatever order."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from dataflow.encoded import TOWERS
from lockstep.features import features_type
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

    def __init__(self, schema: Schema, rows: int) -> None:
        kinds: list[tuple[str, pa.DataType]] = [(tower, features_type(schema, tower)) for tower in TOWERS]
        numbers = [("age_days", pa.float64()), ("weight", pa.float64()), ("order_hash", pa.int64())]
        self._schema = pa.schema(kinds + numbers)
        # Ten deviations of a binomial: that a hash below the bound is wanted and missed does not happen.
        expected = SAMPLE_ROWS + 10 * SAMPLE_ROWS**0.5
        self._bound = int(_HASHES * min(1.0, expected / max(rows, 1)))

    def candidates(self, batch: pa.RecordBatch) -> pa.Table:
        """The rows of a batch that may be chosen."""
        table = pa.Table.from_batches([batch.select(self._schema.names)])
        return table.filter(pc.less(table["order_hash"], self._bound)).cast(self._schema)

    def of_shard(self, candidates: Sequence[pa.Table], hashes: NDArray[np.int64], order: NDArray[np.int64]) -> pa.Table:
        """The chosen of one shard.

        Args:
            candidates: of its batches, in turn.
            hashes: [rows] of the shard.
            order: [rows] the numbers of its rows, in the order of their records.
        """
        places = np.empty_like(order)
        places[order] = np.arange(len(order))
        table = pa.concat_tables([self._schema.empty_table(), *candidates])
        return self.smallest([table.take(pa.array(np.argsort(places[hashes < self._bound])))])

    def smallest(self, tables: Sequence[pa.Table]) -> pa.Table:
        """The chosen among those of several shards, by hash; equal hashes are of one shard and stay in its order."""
        table = pa.concat_tables([self._schema.empty_table(), *tables])
        rows = np.argsort(table["order_hash"].to_numpy(), kind="stable")[:SAMPLE_ROWS]
        return table.take(pa.array(rows))
