"""Canaries: a few rows with what was embedded, whose vectors the serving signature must reproduce.

`canaries.parquet`: id: string, features: struct, embedding: fixed_size_list<float32>, feature_digest: string.
Those of the smallest digests are taken, so they are drawn evenly, and the same entities give the same canaries.
"""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from lockstep.embeddings import vectors_of
from lockstep.towers import Tower

CANARIES = 16
_KEYS = [("feature_digest", "ascending"), ("id", "ascending")]


def few(rows: pa.Table) -> pa.Table:
    """The canaries among some rows."""
    return rows.take(pc.select_k_unstable(rows, min(CANARIES, len(rows)), sort_keys=_KEYS))


def proposed(entities: pa.RecordBatch, digests: pa.Array, vectors: np.ndarray) -> pa.Table:
    """The canaries of a batch.

    Args:
        entities: [batch] id and features.
        vectors: [batch, dim] as they go into the file.
    """
    keys = pa.table({"feature_digest": digests, "id": entities.column("id")})
    chosen = pc.select_k_unstable(keys, min(CANARIES, len(keys)), sort_keys=_KEYS)
    flat = pa.array(vectors[chosen.to_numpy()].astype(np.float32).reshape(-1))
    return pa.table(
        {
            "id": entities.column("id").take(chosen).cast(pa.string()),
            "features": entities.column("features").take(chosen),
            "embedding": pa.FixedSizeListArray.from_arrays(flat, vectors.shape[1]),
            "feature_digest": digests.take(chosen),
        }
    )


def difference(canaries: pa.Table, tower: Tower) -> float:
    """The largest difference of one coordinate between the canaries and what serving makes of their features."""
    rows = canaries.combine_chunks()
    again = tower.embed(rows.column("features").chunk(0)).vectors
    return float(np.abs(again - vectors_of(rows.column("embedding").chunk(0))).max())
