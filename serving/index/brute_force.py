"""Exact search over all vectors: the fastest there is for some ten thousand candidates."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from serving.index.base import Index, Rows
from serving.index.exact import nearest_rows


class BruteForceIndex(Index):
    """Compares a query with every candidate."""

    is_exact = True

    def _nearest(self, vectors: NDArray[np.float32], count: int, allowed: Rows | None) -> Sequence[Rows]:
        return list(nearest_rows(self._files.vectors, vectors, count, allowed))
