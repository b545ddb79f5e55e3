"""Exact search over all vectors: the fastest there is for some thousand candidates."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from serving.index.base import Index, Rows
from serving.index.exact import nearest_rows
from serving.index.postings import Allowed


class BruteForceIndex(Index):
    """Compares a query with every candidate."""

    is_exact = True

    def _nearest(self, vectors: NDArray[np.float32], count: int, allowed: Allowed | None) -> Sequence[Rows]:
        return list(nearest_rows(self._candidates.vectors, vectors, count, None if allowed is None else allowed.rows))
