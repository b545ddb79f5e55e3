"""ScaNN: approximate search over millions of candidates."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lockstep.config import IndexSection
from lockstep.errors import CorruptArtifactError
from serving.index.base import Index, Rows
from serving.index.exact import nearest_rows
from serving.index.files import SCANN, IndexFiles

_SCANNED_PER_RESULT = 20
"""Candidates that are looked at for each one that is asked for, at least."""
_OVERFETCH = 1.5
"""Of a filter's share: results are not spread evenly."""
_REORDER = 200
"""Candidates that are scored again with their vectors, at least; four times as many as are asked for otherwise."""
_EXACT_SCAN_ROWS = 5_000
"""Up to this many allowed rows an exact scan is as fast as a filtered approximate search."""


class ScannIndex(Index):
    """A tree of quantised vectors; the best candidates are scored again with their raw vectors.

    Under a filter it asks for more and drops what is not allowed; where that is too much to ask for, or too
    little is left, it scans the allowed raw vectors exactly. So a filter never costs results.
    """

    is_exact = False

    def __init__(self, files: IndexFiles) -> None:
        super().__init__(files)
        parameters = files.parameters
        self._leaves: int = parameters["leaves"]
        self._leaves_to_search: int = parameters["leaves_to_search"]
        self._reorder: int = parameters["reorder"]
        self._searcher = load_searcher(files.path / SCANN)
        self._searcher.set_num_threads(parameters["threads"])
        if self._searcher.size() != len(files.vectors):
            found = f"a searcher over {self._searcher.size()} rows"
            raise CorruptArtifactError(files.path / SCANN, found, f"{len(files.vectors)} rows")

    def _nearest(self, vectors: NDArray[np.float32], count: int, allowed: Rows | None) -> Sequence[Rows]:
        fetch = count
        if allowed is not None:
            fetch = math.ceil(_OVERFETCH * count * self.rows / len(allowed))
        small = allowed is not None and len(allowed) <= _EXACT_SCAN_ROWS
        if small or fetch * _SCANNED_PER_RESULT > self.rows:
            return list(nearest_rows(self._files.vectors, vectors, count, allowed))
        return [
            self._filtered(*pair, count, allowed)
            for pair in zip(vectors, self._approximate(vectors, fetch), strict=True)
        ]

    def _filtered(self, vector: NDArray[np.float32], rows: Rows, count: int, allowed: Rows | None) -> Rows:
        if allowed is not None:
            places = np.minimum(np.searchsorted(allowed, rows), len(allowed) - 1)
            rows = rows[allowed[places] == rows]
        if len(rows) >= count:
            return rows
        return next(nearest_rows(self._files.vectors, vector[None, :], count, allowed))

    def _approximate(self, vectors: NDArray[np.float32], fetch: int) -> list[Rows]:
        leaf_rows = self.rows / self._leaves
        leaves = min(self._leaves, max(self._leaves_to_search, math.ceil(fetch * _SCANNED_PER_RESULT / leaf_rows)))
        reorder = max(self._reorder, 4 * fetch)
        if len(vectors) == 1:
            found, _ = self._searcher.search(vectors[0], fetch, reorder, leaves)
            return [found.astype(np.int64)]
        batch, scores = self._searcher.search_batched_parallel(vectors, fetch, reorder, leaves)
        # Rows past the last result are filled with NaN scores.
        return [row[np.isfinite(score)].astype(np.int64) for row, score in zip(batch, scores, strict=True)]


def build_searcher(vectors: NDArray[np.float32], section: IndexSection, directory: Path) -> dict[str, Any]:
    """Train a searcher, write it, and return the parameters that index.json keeps.

    Tree size, two-dimensional anisotropic hashing and bfloat16 reordering that did well for unit vectors of up to a
    million rows; [index] overrides the sizes.

    Args:
        vectors: [rows, dim].
        directory: an absent or empty folder; its contents can be moved.

    Reference: Guo et al., Accelerating Large-Scale Inference with Anisotropic Vector Quantization, ICML 2020.
    """
    scann = _scann()
    rows = len(vectors)
    leaves = min(section.leaves or default_leaves(rows), rows)
    leaves_to_search = min(section.leaves_to_search or max(10, math.ceil(leaves / 10)), leaves)
    sample = min(rows, max(100_000, rows // 10))
    searcher = (
        scann.builder(vectors, 100, "dot_product")
        .set_n_training_threads(section.threads)
        .tree(leaves, leaves_to_search, training_sample_size=sample)
        .score_ah(2, anisotropic_quantization_threshold=0.2, training_sample_size=sample)
        .reorder(400, quantize=_reorder_type().BFLOAT16)
        .build()
    )
    directory.mkdir(parents=True, exist_ok=True)
    searcher.serialize(str(directory), relative_path=True)
    return {
        "leaves": leaves,
        "leaves_to_search": leaves_to_search,
        "reorder": section.reorder or _REORDER,
        "threads": section.threads,
    }


def default_leaves(rows: int) -> int:
    """Leaves of the tree: about 130 rows in each of a mid-sized catalogue, sqrt(rows) of a large one."""
    return max(1, min(rows // 130, max(1_500, math.isqrt(rows))))


def load_searcher(directory: Path) -> Any:
    """Load what `build_searcher` wrote; it is copied into memory.

    Raises:
        CorruptArtifactError: there is a pickle, which ScaNN would load and which may run any code; ours has none.
    """
    pickles = sorted(path.name for path in directory.glob("*.pkl"))
    if pickles:
        raise CorruptArtifactError(directory, f"the pickle {pickles[0]}", "none, since loading one can run any code")
    return _scann().load_searcher(str(directory))


def _scann() -> Any:
    # Its package imports TensorFlow, so only what searches with it pays for that.
    from scann.scann_ops.py import scann_ops_pybind

    return scann_ops_pybind


def _reorder_type() -> Any:
    from scann.scann_ops.py.scann_builder import ReorderType

    return ReorderType
