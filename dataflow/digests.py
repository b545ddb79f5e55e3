"""Digests of raw features, by which a refresh tells what has changed."""

from __future__ import annotations

import duckdb
import pyarrow as pa


class FeatureDigests:
    """Computes digests; one thread at a time.

    A digest is MD5 of the row as JSON, which DuckDB writes and hashes far faster than Python can. It is compared
    with an earlier one of the same entity, so nothing has to withstand an attacker.
    """

    def __init__(self) -> None:
        self._database = duckdb.connect(config={"threads": 1})
        # Moments are written in the time zone of the connection, which otherwise is the machine's.
        self._database.execute("SET TimeZone = 'UTC'")

    def of(self, features: pa.StructArray) -> pa.Array:
        """[rows] 32 hexadecimal digits each, equal exactly when the features are: null is not "", nor [], nor NaN."""
        rows = self._database.from_arrow(pa.table({"features": features}))
        digests: pa.Table = rows.project("md5(to_json(features)::VARCHAR) AS digest").to_arrow_table()
        return digests.column("digest").combine_chunks()
