"""Diversity: how many candidates of one crowding tag a query may find."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

Codes = NDArray[np.int32]


def crowding_codes(tags: pa.ChunkedArray) -> Codes:
    """[rows] numbers that are equal where the tags are; -1 where there is none."""
    codes = tags.combine_chunks().dictionary_encode().indices
    filled: Codes = pc.fill_null(codes, -1).to_numpy(zero_copy_only=False)
    return filled.astype(np.int32)


def uncrowded(codes: Codes, limit: int) -> NDArray[np.int64]:
    """The places whose tag stands at fewer than `limit` places before them, and those without a tag."""
    by_tag = np.argsort(codes, kind="stable")
    ordered = codes[by_tag]
    before = np.empty(len(codes), np.int64)
    before[by_tag] = np.arange(len(codes)) - np.searchsorted(ordered, ordered)
    return np.flatnonzero((before < limit) | (codes < 0))


def uncrowded_count(codes: Codes, limit: int) -> int:
    """How many `uncrowded` would leave."""
    sizes = np.bincount(codes + 1, minlength=1)
    return int(sizes[0] + np.minimum(sizes[1:], limit).sum())
