"""From written candidates to a finished index: which backend it gets, trained and tuned."""

from __future__ import annotations

import logging
import shutil
import time

import numpy as np
from numpy.typing import NDArray

from lockstep.config import IndexSection
from lockstep.errors import DataError
from lockstep.version import ModelVersion
from serving.index.exact import nearest_rows
from serving.index.files import QUERIES, SCANN, IndexFilesWriter
from serving.index.frontier import write_frontier

_EXACT_ROWS = 20_000
"""Up to here comparing with everything takes a few tenths of a millisecond, misses nothing and needs no tree."""
_NO_TREE_ROWS = 32
"""ScaNN wants more for its codes, so that so few are always searched exactly."""
_TIMED = 48
_LOG = logging.getLogger(__name__)


def finish_index(
    writer: IndexFilesWriter,
    queries: NDArray[np.float32],
    *,
    model_version: ModelVersion,
    snapshot: int,
    section: IndexSection,
) -> None:
    """Write all that an index has beside its candidates, but for its tag.

    Args:
        writer: with all candidates.
        queries: [n, dim] of the same version, to tune on; kept, for an index that changes is tuned again.

    Raises:
        DataError: a tree is to be tuned, and there are no queries.
    """
    np.save(writer.directory / QUERIES, queries)
    backend, parameters = "brute_force", {}
    if writer.rows > (_EXACT_ROWS if section.backend == "auto" else _NO_TREE_ROWS) and section.backend != "brute_force":
        if not len(queries):
            raise DataError(
                f"there are no query embeddings, and the index of {writer.rows} candidates is tuned on some: "
                'see the query entities, or set [index] backend = "brute_force"'
            )
        from serving.index.scann import build_tuned

        # As a plain array over the mapped memory: a memmap is several times slower to index.
        vectors = np.asarray(writer.vectors)
        tuned = build_tuned(vectors, queries, section, writer.directory / SCANN)
        exact = _exact_microseconds(vectors, queries, tuned.chosen.count)
        write_frontier(writer.directory, tuned, exact, section.target_recall)
        missed = tuned.chosen.recall < section.target_recall
        if section.backend == "auto" and (missed or exact <= tuned.chosen.microseconds):
            why = "does not reach the target" if missed else f"takes {tuned.chosen.microseconds:.0f} us"
            _LOG.info("the tree %s, exact search takes %.0f us: it is searched exactly", why, exact)
            shutil.rmtree(writer.directory / SCANN)
        else:
            backend, parameters = "scann", tuned.parameters
    writer.finish(backend, model_version, snapshot, section, parameters)
    _LOG.info("index of %d candidates written (%s)", writer.rows, backend)


def _exact_microseconds(vectors: NDArray[np.float32], queries: NDArray[np.float32], count: int) -> float:
    times = []
    for query in queries[:_TIMED]:
        start = time.perf_counter()
        next(nearest_rows(vectors, query[None, :], count))
        times.append(time.perf_counter() - start)
    return 1e6 * float(np.median(times))
